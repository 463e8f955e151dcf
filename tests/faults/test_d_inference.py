"""Section D of the table of faults: inference, evaluation, report. Each test causes the fault and names its row."""

import gzip
import itertools
import shutil
import signal
from functools import partial

import numpy as np
import pytest
import torch
from cohort import write_cohort
from hypothesis import given, settings
from hypothesis import strategies as st
from killed import killed_at
from nifti_files import nifti_bytes, some_voxels, write_nifti
from storm.storm_synthesize import storm

from unscanned.cli import main
from unscanned.datasets.layout import sidecar_path
from unscanned.errors import ResourceError, SettingsError
from unscanned.evaluation.evaluate import evaluate
from unscanned.files import lock, read_json, read_sealed, sha256, write_sealed
from unscanned.report.page import write_report
from unscanned.settings import resolve
from unscanned.synthesis.model_file import load_model
from unscanned.synthesis.reconstruct import reconstruct
from unscanned.synthesis.synthesize import synthesize
from unscanned.volumes.nifti import read_volume, write_volume

ATTACK = "<script>alert(1)</script>"


def fill(folder, leave):
    """Fill a disk but for so many bytes."""
    (folder / "filling").write_bytes(bytes(max(0, shutil.disk_usage(folder).free - leave)))


def scan_of(dataset, subject):
    return dataset / f"sub-{subject}" / "anat" / f"sub-{subject}_PDw.nii.gz"


@settings(max_examples=25, deadline=None)
@given(shape=st.tuples(*[st.integers(1, 70)] * 3), stride=st.integers(8, 16))
def test_d01_a_volume_of_any_shape_comes_back_in_its_shape(shape, stride):
    volume = np.random.default_rng(0).standard_normal((1, *shape)).astype(np.float32)
    made = reconstruct(volume, torch.nn.Identity(), patch=16, stride=stride, batch=64)
    np.testing.assert_allclose(made, volume[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["constant", "ramp", "noise"])
def test_d02_overlaps_leave_no_seam_whatever_the_stride_and_the_batch(kind):
    shape = (21, 34, 19)
    volume = {
        "constant": np.full(shape, 3.25),
        "ramp": np.add.outer(np.add.outer(np.arange(21.0), np.arange(34.0)), np.arange(19.0)),
        "noise": np.random.default_rng(1).standard_normal(shape),
    }[kind].astype(np.float32)
    for stride, batch in ((16, 1), (5, 3), (3, 64)):
        made = reconstruct(volume[None], torch.nn.Identity(), patch=16, stride=stride, batch=batch)
        np.testing.assert_allclose(made, volume, rtol=1e-6, atol=1e-6)


def break_scans(dataset):
    """Cause A1, A2, A3, A7 and A8 in five of six subjects."""
    good = scan_of(dataset, "001").read_bytes()
    flipped = bytearray(gzip.compress(gzip.decompress(good), 0))
    flipped[len(flipped) // 2] ^= 4
    faults = {
        "002": good[: len(good) // 2],
        "003": bytes(flipped),
        "004": nifti_bytes(fields={"dim": [3, 32767, 32767, 32767, 1, 1, 1, 1]}),
        "005": nifti_bytes(np.full((8, 9, 10), np.nan, "<f4")),
        "006": nifti_bytes(np.full((8, 9, 10), 5, "<i2")),
    }
    for subject, content in faults.items():
        path = scan_of(dataset, subject)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return set(faults)


def test_d03_bad_cases_are_named_with_their_reasons_and_the_others_are_written(
    tmp_path, capsys, tiny_run, tiny_dataset
):
    dataset = shutil.copytree(tiny_dataset, tmp_path / "dataset", ignore=shutil.ignore_patterns("*T2w*"))
    broken = break_scans(dataset)
    out = tmp_path / "out"
    code = main(["synthesize", str(tiny_run / "model"), str(dataset), "-o", str(out)])
    message = capsys.readouterr().err
    assert code == 4, message
    for subject in broken:
        assert f"sub-{subject}_PDw.nii.gz: " in message
    assert f"{len(broken)} of 6 cases failed, the others were written" in message
    assert [path.name[:7] for path in sorted(out.rglob("*.nii.gz"))] == ["sub-001"]
    assert "Traceback" not in message


def test_d03_a_case_that_failed_stands_in_the_tables_and_the_report_with_its_reason(tmp_path):
    raw, arms = write_cohort(tmp_path, ("01", "02"), {"good": 0.02})
    broken = next((arms["good"] / "sub-02").rglob("*.nii.gz"))
    broken.write_bytes(broken.read_bytes()[:400])
    result = evaluate(raw, arms, tmp_path / "evaluation", subjects=("01", "02"))
    assert [(failure.case, failure.arm) for failure in result.failures] == [("sub-02", "good")]
    assert "cut short" in result.failures[0].reason
    page = write_report(result.folder, tmp_path / "report.html").read_text(encoding="utf-8")
    assert "cut short" in page
    assert result.content.arms["good"]["head"]["mae"].n == 1


def test_d04_an_output_that_is_a_link_is_written_through_it(tmp_path, tiny_run, tiny_dataset):
    scan = next(tiny_dataset.rglob("sub-001_PDw.nii.gz"))
    made = tmp_path / "out" / "sub-001" / "anat" / "sub-001_desc-synthetic_T2w.nii.gz"
    assert main(["synthesize", str(tiny_run), str(scan), "-o", str(tmp_path / "out")]) == 0
    content = made.read_bytes()
    (tmp_path / "elsewhere.nii.gz").write_bytes(b"old")
    made.unlink()
    made.symlink_to(tmp_path / "elsewhere.nii.gz")
    assert main(["synthesize", str(tiny_run), str(scan), "-o", str(tmp_path / "out"), "--overwrite"]) == 0
    assert made.is_symlink()
    assert (tmp_path / "elsewhere.nii.gz").read_bytes() == content


def test_d04_a_disk_full_at_an_output_is_exit_7_and_what_was_there_still_loads(
    small_disk, capsys, tiny_run, tiny_dataset
):
    out = small_disk / "out"
    first, second = str(scan_of(tiny_dataset, "001")), str(scan_of(tiny_dataset, "002"))
    model = str(tiny_run / "model")
    assert main(["synthesize", model, first, "-o", str(out)]) == 0
    before = {path: sha256(path) for path in out.rglob("*") if path.suffix in (".gz", ".json")}
    fill(small_disk, 20_000)
    capsys.readouterr()
    assert main(["synthesize", model, second, "-o", str(out)]) == 7
    message = capsys.readouterr().err
    assert "sub-002_desc-synthetic_T2w.nii.gz: the disk is full; found " in message
    assert "bytes free" in message
    after = {path: sha256(path) for path in out.rglob("*") if path.suffix in (".gz", ".json")}
    assert after == before
    assert not list(out.rglob(".partial*"))
    read_volume(next(out.rglob("*.nii.gz")))


def test_d04_a_disk_full_at_the_report_leaves_the_old_report(small_disk, tmp_path):
    raw, arms = write_cohort(tmp_path, ("01",), {"good": 0.02})
    result = evaluate(raw, arms, tmp_path / "evaluation", subjects=("01",))
    report = small_disk / "report.html"
    report.write_text("<title>Unscanned · report</title>the old one")
    fill(small_disk, 10_000)
    with pytest.raises(ResourceError, match=r"the disk is full; found [\d,]+ bytes free, expected [\d,]+") as refusal:
        write_report(result.folder, report)
    assert refusal.value.exit_code == 7
    assert report.read_text() == "<title>Unscanned · report</title>the old one"


def test_d04_killed_at_random_moments_no_file_under_a_final_name_is_partial(tmp_path):
    outcome = storm(tmp_path, 4, seed=2)
    assert outcome.kills == 4
    assert (outcome.partial, outcome.wrong, outcome.bare, outcome.parted, outcome.missing) == (0, 0, 0, 0, 0)


@pytest.mark.slow
def test_d04_killed_between_any_two_names_no_volume_stands_without_its_own_sidecar(tmp_path, tiny_run, tiny_dataset):
    model, scans = load_model(tiny_run), [(scan_of(tiny_dataset, "001"), None)]
    whole = {
        stride: sha256(synthesize(model, scans, tmp_path / str(stride), stride=stride).written[0])
        for stride in (16, 12)
    }
    for number in itertools.count(1):
        out = tmp_path / f"killed {number}"
        ends = set()
        for stride in (16, 12):  # a new volume, then one in the place of another
            ends.add(killed_at(number, partial(synthesize, model, scans, out, stride=stride)))
            for path in out.rglob("*_T2w.nii.gz"):
                assert read_json(sidecar_path(path))["Sha256"] == sha256(path)
            synthesize(model, scans, out, stride=stride)
            (path,) = out.rglob("*_T2w.nii.gz")
            assert read_json(sidecar_path(path))["Sha256"] == sha256(path) == whole[stride]
        if ends == {0}:
            break
        assert ends <= {0, -signal.SIGKILL}
    assert number > 3


def test_d04_of_two_runs_on_one_output_the_second_is_exit_8(tmp_path, capsys, tiny_run, tiny_dataset):
    out = tmp_path / "out"
    with lock(out):
        call = ["synthesize", str(tiny_run / "model"), str(scan_of(tiny_dataset, "001")), "-o", str(out)]
        assert main(call) == 8
    assert "the folder is in use by another run" in capsys.readouterr().err
    assert main(call) == 0
    scores = tmp_path / "scores"
    with lock(scores):
        assert main(["evaluate", str(tiny_dataset), str(out), "-o", str(scores)]) == 8
    assert not (scores / "scores.csv").exists()


def test_d04_a_second_run_makes_only_what_is_missing_or_damaged(tmp_path, tiny_run, tiny_dataset):
    model = load_model(tiny_run)
    scans = [(scan_of(tiny_dataset, subject), None) for subject in ("001", "002")]
    first = synthesize(model, scans, tmp_path)
    damaged = first.written[1]
    content = bytearray(damaged.read_bytes())
    content[-9] ^= 1
    damaged.write_bytes(bytes(content))
    again = synthesize(model, scans, tmp_path)
    assert (again.skipped, again.written) == (first.written[:1], [damaged])


@pytest.mark.parametrize("value", [np.nan, 0.0])
def test_d05_a_case_without_a_number_is_refused_by_its_kind_and_the_mean_says_n_of_n(tmp_path, value):
    raw, arms = write_cohort(tmp_path, ("01", "02"), {"good": 0.02})
    target = next((raw / "sub-02").rglob("*T2w.nii.gz"))
    voxels = np.full(read_volume(target).shape, value, "<f4")
    write_nifti(target, voxels, affine=read_volume(next((raw / "sub-02").rglob("*PDw.nii.gz"))).affine)
    result = evaluate(raw, arms, tmp_path / "evaluation", subjects=("01", "02"))
    assert {failure.case for failure in result.failures} == {"sub-02"}
    summary = read_json(result.folder / "evaluation.json")["arms"]["good"]["head"]["psnr"]
    assert summary["n"] == 1
    assert np.isfinite(summary["mean"])


def test_d06_a_case_named_like_a_program_is_text_in_the_report(tmp_path):
    raw, arms = write_cohort(tmp_path, ("01",), {ATTACK + "\n..": 0.02})
    result = evaluate(raw, arms, tmp_path / "evaluation", subjects=("01",))
    page = write_report(result.folder, tmp_path / "report.html").read_text(encoding="utf-8")
    assert ATTACK not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page


@pytest.mark.parametrize("name", ["../../outside", "a/b", "..", "a\nb", ATTACK])
def test_d06_a_case_name_of_a_table_cannot_leave_the_output_folder(tmp_path, capsys, tiny_run, tiny_dataset, name):
    table = tmp_path / "table.csv"
    table.write_text(f'subject,PD\n"{name}",{scan_of(tiny_dataset, "001")}\n')
    out = tmp_path / "inside" / "out"
    code = main(["synthesize", str(tiny_run / "model"), str(table), "-o", str(out)])
    written = [path for path in tmp_path.rglob("*.nii.gz") if out not in path.parents]
    assert not written
    assert code in (0, 3)
    if code:
        assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("name", ["x/../../../../sub-01_T2w", "..\\\\T2w", "T2w\n", " ", 3, None])
def test_d06_a_contrast_of_a_model_cannot_leave_the_output_folder(tmp_path, capsys, tiny_run, tiny_dataset, name):
    model = shutil.copytree(tiny_run / "model", tmp_path / "model")
    facts = read_sealed(model / "model.json")
    facts["settings"]["data"]["target"] = name
    write_sealed(model / "model.json", facts)
    scan = scan_of(tiny_dataset, "001")
    assert main(["synthesize", str(model), str(scan), "-o", str(tmp_path / "inside" / "out")]) == 5
    assert "data.target: " in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.nii.gz"))
    with pytest.raises(SettingsError, match=r"data\.target"):
        resolve(overrides={"data": {"target": name}})


HOSTILE = {
    "empty.nii.gz": b"",
    "text.nii.gz": b"not an image",
    "cut.nii.gz": gzip.compress(nifti_bytes())[:300],
    "huge.nii": nifti_bytes(fields={"dim": [3, 32767, 32767, 32767, 1, 1, 1, 1]}),
    "negative.nii": nifti_bytes(fields={"dim": [3, -1, 8, 8, 1, 1, 1, 1]}),
    "complex.nii": nifti_bytes(fields={"datatype": 32}),
    "nan.nii": nifti_bytes(np.full((8, 9, 10), np.nan, "<f4")),
    "constant.nii": nifti_bytes(np.full((8, 9, 10), 7, "<i2")),
    "four.nii": nifti_bytes(some_voxels((8, 8, 8, 3))),
    "nowhere.nii": nifti_bytes(affine=None),
    "flat.nii": nifti_bytes(affine=np.diag([0.0, 1, 1, 1])),
    "näme mit space.nii": nifti_bytes(fields={"datatype": 999}),
    "bomb.nii.gz": gzip.compress(nifti_bytes(tail=bytes(2**26))),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_no_hostile_scan_leaves_a_traceback_and_every_message_names_the_file(tmp_path, capsys, tiny_run, name):
    path = tmp_path / name
    path.write_bytes(HOSTILE[name])
    code = main(["synthesize", str(tiny_run / "model"), str(path), "-o", str(tmp_path / "out")])
    message = capsys.readouterr().err
    assert code == 3, message
    assert name in message
    assert "Traceback" not in message
    assert not list((tmp_path / "out").rglob("*.nii*"))


def write_bad(folder):
    folder.mkdir()
    for name, content in HOSTILE.items():
        (folder / name).write_bytes(content)
    (folder / "model.json").write_text('{"format": 1}')
    (folder / "settings.toml").write_text("[training\n")
    (folder / "table.csv").write_text("subject,PD,T2\n1,nan.nii,four.nii\n1,nan.nii,cut.nii.gz\n")
    (folder / "evaluation.json").write_text("[1, 2")
    return folder


def test_no_command_leaves_a_traceback_on_a_folder_of_hostile_files(tmp_path, capsys):
    bad = write_bad(tmp_path / "bad")
    out = str(tmp_path / "out")
    nothing = str(tmp_path / "nothing")
    commands = [
        ["check", str(bad)],
        ["check", str(bad / "table.csv")],
        ["check", nothing],
        ["prepare", str(bad), "-o", out],
        ["train", str(bad), "-o", out, "--settings", str(bad / "settings.toml")],
        ["train", str(bad / "table.csv"), "-o", out],
        ["train", str(bad), "-o", out, "--training.epochs", "none"],
        ["synthesize", str(bad), str(bad / "nan.nii"), "-o", out],
        ["synthesize", nothing, nothing, "-o", out],
        ["evaluate", str(bad), str(bad), "-o", out],
        ["report", str(bad), "-o", out + ".html"],
        ["report", nothing, "-o", out + ".html"],
        ["verify", str(bad / "nan.nii")],
        ["verify", nothing],
        ["dicom", str(bad / "nan.nii"), str(bad), "-o", out],
        ["dicom", nothing, nothing, "-o", out],
        ["simulate", "-o", out, "--labels", str(bad)],
        ["reproduce", str(bad), "-o", out],
        ["fetch", "abc", "-o", out],
    ]
    for command in commands:
        code = main(command)
        shown = capsys.readouterr()
        message = shown.err + shown.out
        assert code in (2, 3, 5), (command, message)
        assert "Traceback" not in message, command
        assert message.strip(), command


def test_the_writer_refuses_what_it_could_only_store_wrongly(tmp_path, capsys):
    bad = np.full((4, 4, 4), np.inf, np.float32)
    with pytest.raises(Exception, match="finite"):
        write_volume(tmp_path / "x.nii.gz", bad, np.eye(4))
    assert not list(tmp_path.iterdir())
