"""What is found in a dataset. Damaged volumes are in tests/faults/test_a_input.py."""

import numpy as np
import pytest
from nifti_files import AFFINE, some_voxels, write_nifti

from unscanned.datasets import check
from unscanned.datasets.check import check_dataset
from unscanned.datasets.pairs import find_pairs
from unscanned.errors import ResourceError, VolumeError
from unscanned.training.prepare import prepare_pair
from unscanned.volumes.nifti import STAMP, read_volume, write_volume


@pytest.mark.parametrize("target", ["T2w", "FLAIR"])
def test_no_real_scan_is_refused(shared_data, target):
    cases = []
    for name in ("ms-t1-t2-flair", "glioma-t1-t2-flair"):
        root = shared_data / name
        cases += [pair.case for pair in find_pairs(root, source="T1w", target=target)]
        findings = check_dataset(root, source="T1w", target=target)
        assert [finding for finding in findings if finding.severity == "error"] == []
        assert {finding.fault for finding in findings} <= {"spacing"}
    assert cases == [
        "sub-ms07",
        "sub-ms19",
        "sub-mslong01_ses-1",
        "sub-mslong01_ses-2",
        "sub-mslong03_ses-2",
        "sub-mslong04_ses-1",
        "sub-tcgadu7294",
    ]


def test_the_report_names_every_fault_and_leaves_the_good_case_alone(tmp_path):
    targets = {
        "good": {},
        "nan": {"voxels": np.where(some_voxels() > 990, np.nan, some_voxels()).astype("<f4")},
        "flat": {"voxels": np.zeros((8, 9, 10), "<i2")},
        "four": {"voxels": some_voxels((8, 9, 10, 2))},
        "moved": {"affine": np.array([[1.0, 0, 0, 9], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]) @ AFFINE},
        "near": {"affine": np.array([[1.0, 0, 0, 0.5], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]) @ AFFINE},
        "broken": {"fields": {"datatype": 999}},
    }
    for seed, (subject, facts) in enumerate(targets.items()):
        write_nifti(tmp_path / f"sub-{subject}_PDw.nii.gz", some_voxels(seed=seed + 1))
        write_nifti(tmp_path / f"sub-{subject}_T2w.nii.gz", **{"voxels": some_voxels(seed=seed + 50), **facts})
    seen = []
    findings = check_dataset(tmp_path, source="PD", target="T2", progress=lambda *step: seen.append(step))
    assert [(finding.case, finding.severity, finding.fault) for finding in findings] == [
        ("sub-broken", "error", "unreadable"),
        ("sub-flat", "error", "constant"),
        ("sub-four", "error", "4d"),
        ("sub-moved", "error", "grid"),
        ("sub-nan", "error", "nonfinite"),
        ("sub-near", "warning", "shift"),
    ]
    assert seen[-1] == (7, 7, "sub-near")


@pytest.mark.parametrize(
    ("spacing", "odd"), [((1, 1, 3), False), ((1, 1, 3.1), True), ((0.2, 0.2, 0.2), True), ((7, 7, 7), True)]
)
def test_odd_spacing_is_one_warning_where_both_scans_have_it(tmp_path, spacing, odd):
    affine = np.diag([*spacing, 1.0])
    write_nifti(tmp_path / "sub-01_PDw.nii.gz", affine=affine)
    write_nifti(tmp_path / "sub-01_T2w.nii.gz", some_voxels(seed=1), affine=affine)
    findings = check_dataset(tmp_path, source="PD", target="T2")
    assert [(finding.severity, finding.fault) for finding in findings] == odd * [("warning", "spacing")]


def test_equal_scans_of_one_subject_in_two_sessions_are_only_a_warning(tmp_path):
    for session in ("1", "2"):
        write_nifti(tmp_path / f"sub-01_ses-{session}_PDw.nii.gz", some_voxels(seed=1))
        write_nifti(tmp_path / f"sub-01_ses-{session}_T2w.nii.gz", some_voxels(seed=2))
    findings = check_dataset(tmp_path, source="PD", target="T2")
    assert [(finding.case, finding.severity, finding.fault) for finding in findings] == 2 * [
        ("sub-01_ses-2", "warning", "duplicate")
    ]


def test_a_file_that_stands_for_two_scans_is_found_in_a_table_too(tmp_path):
    for name in ("a", "b", "c"):
        write_nifti(tmp_path / f"{name}.nii", some_voxels(seed=ord(name)))
    (tmp_path / "pairs.csv").write_text("subject,PD,T2\n01,a.nii,b.nii\n02,a.nii,c.nii\n03,c.nii,c.nii\n")
    findings = check_dataset(tmp_path / "pairs.csv", source="PD", target="T2")
    assert [(finding.case, finding.severity, finding.fault) for finding in findings] == [
        ("sub-02", "error", "duplicate"),
        ("sub-03", "error", "duplicate"),
        ("sub-03", "error", "duplicate"),
    ]
    assert "a.nii, the source of sub-01" in findings[0].message


def test_pd_and_t2_that_are_one_file_are_found(tmp_path, cli, settings_file):
    rows = []
    for subject in range(4):
        voxels = some_voxels((20, 24, 22), seed=subject)
        write_nifti(tmp_path / f"{subject}.nii", voxels, affine=np.diag([2.0, 2.0, 2.0, 1.0]))
        write_nifti(tmp_path / f"{subject}-t2.nii", voxels // 3, affine=np.diag([2.0, 2.0, 2.0, 1.0]))
        rows.append(f"{subject},{subject}.nii,{subject}{'' if subject == 2 else '-t2'}.nii\n")
    (tmp_path / "pairs.csv").write_text("subject,PD,T2\n" + "".join(rows))
    done = cli("check", tmp_path / "pairs.csv")
    assert done.returncode == 3
    assert "found sub-2" in done.stderr
    done = cli("train", tmp_path / "pairs.csv", "-o", tmp_path / "run", "--settings", settings_file)
    assert done.returncode == 3
    assert "both scans of one" in done.stderr


def test_a_scan_without_a_head_is_found_before_it_is_prepared(tmp_path):
    write_nifti(tmp_path / "sub-01_PDw.nii", -some_voxels(seed=1))
    write_nifti(tmp_path / "sub-01_T2w.nii", some_voxels(seed=2))
    (finding,) = check_dataset(tmp_path, source="PD", target="T2")
    assert (finding.case, finding.severity, finding.fault) == ("sub-01", "error", "head")
    assert finding.path == tmp_path / "sub-01_PDw.nii"


def test_a_synthetic_volume_under_the_name_of_a_scan_is_an_error_and_is_not_trained_on(tmp_path):
    for seed, name in enumerate(("sub-01_PDw", "sub-01_T2w")):
        write_nifti(tmp_path / f"{name}.nii.gz", some_voxels(seed=seed + 1))
    volume = read_volume(tmp_path / "sub-01_T2w.nii.gz")
    write_volume(tmp_path / "sub-01_T2w.nii.gz", volume.array, volume.affine, description=STAMP)
    found = check_dataset(tmp_path, source="PD", target="T2")
    assert ("sub-01", "error", "synthetic") in [(each.case, each.severity, each.fault) for each in found]
    [pair] = find_pairs(tmp_path, source="PD", target="T2")
    with pytest.raises(VolumeError, match="a generator made this volume"):
        prepare_pair(pair, tmp_path / "cache")


def test_short_memory_is_told_as_such_and_not_as_a_bug(tmp_path, monkeypatch, cli):
    for seed, name in enumerate(("sub-01_PDw", "sub-01_T2w")):
        write_nifti(tmp_path / f"{name}.nii.gz", some_voxels(seed=seed + 1))

    def short(path):
        raise ResourceError("there is not enough memory for this volume", where=path)

    monkeypatch.setattr(check, "read_volume", short)
    done = cli("check", tmp_path, "--source", "PD", "--target", "T2")
    assert done.returncode == 7
    assert "resource" in done.stdout
    assert "some cases could not be looked at; found sub-01: " in done.stderr
    assert "there is not enough memory for this volume" in done.stderr
