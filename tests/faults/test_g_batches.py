"""Section G, batches: whatever happens in one scan is told of that scan, and the others are made."""

import contextlib
import io
import re
import shutil
import tempfile
from pathlib import Path

import pytest
from tool import as_ordinary_user

from unscanned.cli import main
from unscanned.volumes import nifti

CRASH = re.compile(r"this is a bug; what happened is in (\S+?\.txt)\. Please report")


@pytest.fixture
def own(tiny_dataset, tmp_path):
    return shutil.copytree(tiny_dataset, tmp_path / "dataset")


@pytest.fixture
def bug_in(monkeypatch):
    """Make the reader fail in a way that nobody foresaw for files whose path holds a word."""

    def choose(word, error=None):
        true = nifti.read_volume

        def read(path, *arguments, **options):
            if word in str(path):
                raise error or ZeroDivisionError("of the test")
            return true(path, *arguments, **options)

        for module in (
            "datasets.check",
            "training.prepare",
            "synthesis.synthesize",
            "evaluation.cases",
        ):
            monkeypatch.setattr(f"unscanned.{module}.read_volume", read)

    return choose


def crashes_of(done):
    """Return the content of the crash files that were told of, and remove them."""
    text = done.stdout.replace("\n", "") + done.stderr
    paths = {Path(name) for name in CRASH.findall(text)}
    content = [path.read_text() for path in paths]
    for path in paths:
        path.unlink()
    return content


def verbs(dataset, run, out, settings_file):
    return {
        "synthesize": ["synthesize", run, dataset, "-o", out / "made", "--force"],
        "prepare": ["prepare", dataset, "-o", out / "prepared", "--preset", "demo"],
        "train": ["train", dataset, "-o", out / "run", "--preset", "demo", "--settings", settings_file],
    }


@pytest.mark.parametrize("verb", ["synthesize", "prepare", "train"])
def test_g04_a_bug_in_one_scan_of_a_batch_is_its_row_with_its_crash_file_and_the_others_are_made(
    cli, own, tiny_run, settings_file, tmp_path, bug_in, verb
):
    command = verbs(own, tiny_run, tmp_path, settings_file)[verb]
    prepared = tmp_path / "run" / "prepared"
    chosen = "sub-004"
    if verb == "train":
        # Of the two training subjects one may fail; the validation subject may not.
        import json

        chosen = f"sub-{json.loads((tiny_run / 'split.json').read_text())['train'][0]}"
    bug_in(chosen)
    done = cli(*command)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert f"{chosen}" in done.stderr
    assert "in at least one case; the others went on" in done.stderr
    (crash,) = crashes_of(done)
    assert "ZeroDivisionError: of the test" in crash
    if verb == "synthesize":
        assert len(list((tmp_path / "made").rglob("*.nii.gz"))) == 3
    elif verb == "prepare":
        assert len(list((tmp_path / "prepared").rglob("case.json"))) == 3
    else:
        assert (tmp_path / "run" / "model" / "model.safetensors").exists()
        assert not (prepared / chosen).exists()


def test_g04_a_bug_in_one_case_of_a_check_is_a_finding_and_the_others_are_checked(cli, own, bug_in, tmp_path):
    bug_in("sub-002")
    (own / "sub-003" / "anat" / "sub-003_T2w.nii.gz").write_bytes(b"")
    done = cli("check", own, "--measure-s", 0, "--json", tmp_path / "check.json")
    assert done.returncode == 1, done.stderr
    assert "2 usable pairs PD -> T2 of 2 subjects, 2 unusable cases" in done.stdout
    text = (tmp_path / "check.json").read_text()
    assert "sub-003_T2w.nii.gz" in text
    (path,) = map(Path, CRASH.findall(text))
    assert "ZeroDivisionError" in path.read_text()
    path.unlink()


@pytest.mark.parametrize("word", ["sub-003_PDw", "sub-003_T2w", "sub-003_desc-synthetic"])
def test_g04_a_bug_in_one_case_of_an_evaluation_is_its_row_and_the_others_are_scored(
    cli, own, tiny_run, bug_in, tmp_path, word
):
    assert cli("synthesize", tiny_run, own, "-o", tmp_path / "made", "--force").returncode == 0
    bug_in(word)
    done = cli("evaluate", own, tmp_path / "made", "-o", tmp_path / "scores")
    assert done.returncode == 1, done.stderr
    text = (tmp_path / "scores" / "scores.csv").read_text()
    assert "sub-001,001,,made,head,ok" in text
    assert "this is a bug" in text
    assert crashes_of(done)


def test_g04_memory_that_is_short_for_one_scan_is_its_row_and_no_bug(cli, own, tiny_run, bug_in, tmp_path):
    bug_in("sub-002", MemoryError())
    done = cli("synthesize", tiny_run, own, "-o", tmp_path / "made", "--force")
    assert done.returncode == 4, done.stderr
    assert "sub-002_PDw.nii.gz: memory is short" in done.stderr
    assert len(list((tmp_path / "made").rglob("*.nii.gz"))) == 3


@pytest.mark.parametrize("verb", ["synthesize", "check", "evaluate", "report", "verify", "dicom", "simulate", "train"])
def test_g04_what_a_user_has_no_right_to_look_at_is_named_and_is_no_bug(verb, tiny_run, tiny_dataset, tmp_path):
    # pytest's own folders are closed to other users
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        base.chmod(0o755)
        open_to_all, locked, out = (base / which for which in ("open", "locked", "out"))
        shutil.copytree(tiny_dataset, open_to_all)
        shutil.copytree(tiny_run, locked / "run")
        (locked / "scan.nii.gz").write_bytes(b"")
        out.mkdir(mode=0o777)
        out.chmod(0o777)
        hidden = locked / "run"
        words = {
            "synthesize": [hidden / "model", open_to_all, "-o", out / "a"],
            "check": [hidden],
            "evaluate": [open_to_all, hidden, "-o", out / "a"],
            "report": [hidden, "-o", out / "a.html"],
            "verify": [locked / "scan.nii.gz", "--model", hidden],
            "dicom": [locked / "scan.nii.gz", hidden, "-o", out / "a"],
            "simulate": ["-o", out / "a", "--labels", hidden, "--subjects", "1"],
            "train": [open_to_all, "-o", out / "a", "--settings", hidden / "model" / "model.json"],
        }[verb]

        def ends_with_a_word():
            told = io.StringIO()
            with contextlib.redirect_stderr(told):
                code = main([verb, *map(str, words)])
            assert code in (2, 3, 4, 5, 7), told.getvalue()
            assert "bug" not in told.getvalue()
            assert str(locked) in told.getvalue().replace("\n", "")

        locked.chmod(0o600)
        try:
            assert as_ordinary_user(ends_with_a_word) == 0
        finally:
            locked.chmod(0o700)
