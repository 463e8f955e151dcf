"""Section G of the table of faults: streams, signals, and what a terminal shows. Each test names its row."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tool import ENVIRONMENT, start

from unscanned.cli.terminal import raise_partial, shown
from unscanned.errors import PartialFailure, VolumeError

TOOL = [sys.executable, "-m", "unscanned"]
WRITES = [["--help"], ["--version"], ["check", "--help"], ["train", "--help"], ["check"]]
TELLS = [["check", "missing"], ["check"]]
STEERING = "sub-07\x1b[2J\x9b1m\u202e"


def call(arguments, dataset, **streams):
    words = [*arguments, dataset, "--measure-s", 0] if arguments == ["check"] else arguments
    unbuffered = {**ENVIRONMENT, "PYTHONUNBUFFERED": "1"}
    return subprocess.run([*TOOL, *map(str, words)], env=unbuffered, timeout=120, check=False, **streams)


@pytest.fixture(scope="module")
def dataset(tiny_dataset, tmp_path_factory):
    """One subject, for speed."""
    folder = tmp_path_factory.mktemp("one")
    shutil.copytree(tiny_dataset / "sub-001", folder / "sub-001")
    return folder


@pytest.mark.parametrize("arguments", WRITES, ids=" ".join)
def test_g01_a_reader_that_has_gone_ends_a_verb_as_sigpipe_does_without_a_word(arguments, dataset):
    read, write = os.pipe()
    os.close(read)
    done = call(arguments, dataset, stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert done.returncode == 128 + signal.SIGPIPE
    assert done.stderr.strip() == b""


@pytest.mark.parametrize("arguments", WRITES, ids=" ".join)
def test_g01_a_full_standard_output_ends_with_7_and_one_line(arguments, dataset):
    with open("/dev/full", "wb") as full:
        done = call(arguments, dataset, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 7
    assert done.stderr.split(b"\n")[-2:] == [
        b"unscanned: standard output: cannot be written; found No space left on device",
        b"",
    ]
    assert b"bug" not in done.stderr
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", TELLS, ids=" ".join)
def test_g01_standard_error_that_cannot_be_written_changes_no_exit_code(arguments, dataset):
    wanted = 0 if arguments == ["check"] else 3
    with open("/dev/full", "wb") as full:
        assert call(arguments, dataset, stdout=subprocess.DEVNULL, stderr=full).returncode == wanted
    read, write = os.pipe()
    os.close(read)
    assert call(arguments, dataset, stdout=subprocess.DEVNULL, stderr=write).returncode == wanted
    os.close(write)


def test_g01_a_closed_stream_is_no_file_that_is_opened_later(dataset):
    command = f"exec {sys.executable} -m unscanned check {dataset} --measure-s 0 0<&- 1>&- 2>&-"
    assert subprocess.run(command, shell=True, env=ENVIRONMENT, timeout=120, check=False).returncode == 0


@pytest.mark.parametrize("verb", ["check", "simulate", "evaluate", "prepare", "benchmark"])
def test_g02_sigterm_ends_a_verb_with_a_word_and_143_and_leaves_nothing_unfinished(verb, tiny_dataset, tmp_path):
    heads = tmp_path / "heads"
    words = {
        "check": [tiny_dataset],
        "simulate": ["-o", heads, "--subjects", 500],
        "evaluate": [tiny_dataset, tiny_dataset, "-o", tmp_path / "scores", "--source", "PD", "--target", "T2"],
        "prepare": [tiny_dataset, "-o", tmp_path / "prepared", "--preset", "demo"],
        "benchmark": ["--json", tmp_path / "benchmark.json"],
    }[verb]
    # It is stopped at the first file that it reads or makes; each of these verbs has opened one after its start.
    program = (
        "import sys, os, signal, threading\n"
        "from unscanned.cli import main\n"
        "def stop(event, arguments):\n"
        "    if event == 'open' and str(arguments[0]).endswith(('.nii.gz', '.npy', '.json', '.pt')) "
        "or event == 'subprocess.Popen':\n"
        "        if threading.current_thread() is threading.main_thread(): os.kill(os.getpid(), signal.SIGTERM)\n"
        "sys.addaudithook(stop)\n"
        f"sys.exit(main({[verb, *map(str, words)]}))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=ENVIRONMENT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    assert "stopped at once; what was finished before is kept" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.rglob(".partial-*"))


def test_g02_sigterm_while_python_runs_a_string_as_imports_do_ends_with_143_too(tmp_path):
    (tmp_path / "stopped.py").write_text(
        "import os, signal, sys\n"
        "from unscanned.cli import main\n"
        "def verb(*_, **__):\n"
        "    exec('os.kill(os.getpid(), signal.SIGTERM)')\n"
        "sys.modules['unscanned.cli.main'].app = verb\n"
        "sys.exit(main([]))\n"
    )
    done = subprocess.run([sys.executable, "-m", "stopped"], cwd=tmp_path, env=ENVIRONMENT, timeout=120, check=False)
    assert done.returncode == 143  # Python would end itself by SIGINT


def test_g02_a_signal_from_outside_ends_a_simulation_with_143(tmp_path):
    with start("simulate", "-o", tmp_path / "heads", "--subjects", 500) as process:
        while not list(tmp_path.rglob("sub-*")):
            assert process.poll() is None
            time.sleep(0.05)
        process.terminate()
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 143
    assert "stopped at once" in errors


def test_g03_names_that_steer_a_terminal_are_shown_as_escapes(cli, tiny_dataset, tmp_path):
    odd = tmp_path / STEERING
    shutil.copytree(tiny_dataset / "sub-001", odd / "sub-001")
    (odd / "sub-001" / "anat" / f"sub-001_{STEERING}.nii.gz").write_bytes(b"")
    (odd / "sub-001" / "anat" / "sub-001_PDw.nii.gz").write_bytes(b"nothing")
    told = [
        cli("check", odd),
        cli("check", tmp_path / STEERING / "missing"),
        cli("prepare", odd, "-o", tmp_path / "prepared", "--preset", "demo"),
        cli("mend", tiny_dataset / "sub-001" / "anat" / "sub-001_PDw.nii.gz", "-o", odd / "a.nii.gz"),
        cli("train", odd, "-o", odd, "--preset", "demo", "--data.source", f"PD{STEERING}", "--dry-run"),
    ]
    for done in told:
        text = done.stdout + done.stderr
        assert "\\x1b[2J\\x9b1m\\u202e" in text.replace("\n", ""), text
        assert not {"\x1b", "\x9b", "\u202e"} & set(text)


def test_g03_what_is_shown_keeps_all_other_letters():
    assert shown("Prüfung é 頭部 a\tb\n\udcf6") == "Prüfung é 頭部 a\tb\n\udcf6"
    assert shown(str(Path("a\x07b"))) == "a\\x07b"


@pytest.mark.parametrize(
    "words",
    [
        ["check", "{long}"],
        ["mend", "{scan}", "-o", "{out}/{long}.nii.gz"],
        ["report", "{out}", "--runs", "x={long}", "-o", "{out}/report.html"],
        ["report", "{out}", "-o", "{out}/{long}.html"],
        ["synthesize", "{run}", "{scan}", "-o", "{out}/{long}"],
        ["train", "{dataset}", "-o", "{out}/{long}"],
    ],
    ids=lambda words: words[0],
)
def test_g12_a_name_that_is_too_long_is_refused_wherever_it_is_met(cli, tmp_path, tiny_dataset, tiny_run, words):
    scan = next(tiny_dataset.glob("sub-001/anat/*PDw.nii.gz"))
    names = {"long": "x" * 300, "scan": scan, "out": tmp_path, "run": tiny_run, "dataset": tiny_dataset}
    done = cli(*(word.format(**names) for word in words))
    assert done.returncode in (2, 3, 7), done.stderr
    assert "bug" not in done.stderr


def test_g12_an_output_below_a_working_folder_that_is_gone_is_refused(cli, tmp_path, tiny_dataset, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    for words in (("prepare", tiny_dataset, "-o", "prepared"), ("check", tiny_dataset, "--json", ".")):
        done = cli(*words)
        assert done.returncode in (2, 7), done.stderr
        assert "bug" not in done.stderr


def test_g12_a_volume_that_is_not_named_or_not_there_is_refused(cli, tmp_path, tiny_run):
    assert cli("verify", "", "--model", tiny_run).returncode == 3
    gone = tmp_path / "sub-01_desc-synthetic_T2w.nii.gz"
    gone.symlink_to(tmp_path / "nowhere.nii.gz")
    (tmp_path / "dicom").mkdir()
    assert cli("dicom", gone, tmp_path / "dicom", "-o", tmp_path / "out").returncode == 3


def test_g03_line_breaks_in_names_and_words_that_are_not_options_are_shown_as_escapes(cli, tmp_path):
    missing = cli("check", tmp_path / "a\nb")
    assert "a\\nb" in missing.stderr
    wrong = cli("check", tmp_path, "--no\x1b[2Jsuch\nthing")
    assert wrong.returncode == 2
    assert "\x1b" not in wrong.stderr
    assert "\\x1b[2Jsuch\\nthing" in wrong.stderr


def test_g03_of_many_failures_the_first_ten_and_a_count_are_shown(capsys):
    failures = {f"row {number}": VolumeError("bad") for number in range(100_000)}
    with pytest.raises(PartialFailure, match="100000 cases failed"):
        raise_partial(failures, None)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 11
    assert lines[-1] == "unscanned: and 99,990 more failed"
