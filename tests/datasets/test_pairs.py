"""Finding pairs, splitting them, and the report on a dataset. Damaged volumes are in tests/faults/test_a_input.py."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nifti_files import AFFINE, some_voxels, write_nifti

from unscanned.datasets.pairs import Pair, check_dataset, find_pairs, split_subjects, survey
from unscanned.errors import DatasetError, SettingsError


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def pairs_of(subjects: list[str], sessions: tuple[str | None, ...] = (None,)) -> list[Pair]:
    return [Pair(subject, session, Path("s"), Path("t")) for subject in subjects for session in sessions]


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


def test_bids_pairs_are_found_by_suffix_with_and_without_sessions(tmp_path):
    touch(
        tmp_path,
        "sub-01/anat/sub-01_PDw.nii.gz",
        "sub-01/anat/sub-01_T2w.nii",
        "sub-02/ses-b/anat/sub-02_ses-b_PDw.nii.gz",
        "sub-02/ses-b/anat/sub-02_ses-b_T2w.nii.gz",
        "sub-01/anat/sub-01_T2star.nii.gz",
    )
    first, second = find_pairs(tmp_path)
    assert first == Pair(
        "01", None, tmp_path / "sub-01/anat/sub-01_PDw.nii.gz", tmp_path / "sub-01/anat/sub-01_T2w.nii"
    )
    assert (second.case, second.session) == ("sub-02_ses-b", "b")


@pytest.mark.parametrize(("source", "target"), [("PD", "T2"), ("PDw", "T2w"), ("pd", "t2W")])
def test_contrasts_are_named_with_or_without_the_w(tmp_path, source, target):
    touch(tmp_path, "sub-01_PDw.nii.gz", "sub-01_T2w.nii.gz")
    assert len(find_pairs(tmp_path, source=source, target=target)) == 1


def test_derivatives_hidden_and_synthetic_files_are_never_used(tmp_path):
    touch(
        tmp_path,
        "sub-01/anat/sub-01_PDw.nii.gz",
        "sub-01/anat/sub-01_desc-synthetic_T2w.nii.gz",
        "derivatives/other/sub-01/anat/sub-01_T2w.nii.gz",
        ".git/annex/sub-01_T2w.nii.gz",
    )
    pairs, findings = survey(tmp_path)
    assert pairs == []
    assert [(finding.case, finding.fault) for finding in findings] == [("sub-01", "missing-partner")]


def test_the_file_without_further_entities_is_preferred(tmp_path):
    touch(tmp_path, *(f"sub-01_{name}.nii.gz" for name in ("PDw", "acq-fast_PDw", "run-1_T2w")))
    (pair,) = find_pairs(tmp_path)
    assert pair.source.name == "sub-01_PDw.nii.gz"
    assert pair.target.name == "sub-01_run-1_T2w.nii.gz"


def test_several_candidates_are_an_error_that_lists_them_and_names_the_way_out(tmp_path):
    touch(tmp_path, *(f"sub-01_{name}.nii.gz" for name in ("PDw", "run-1_T2w", "run-2_T2w")))
    pairs, (finding,) = survey(tmp_path)
    assert pairs == []
    assert (finding.case, finding.severity, finding.fault) == ("sub-01", "error", "ambiguous")
    assert "CSV: sub-01_run-1_T2w.nii.gz, sub-01_run-2_T2w.nii.gz" in finding.message


def test_no_case_is_lost_in_silence(tmp_path):
    touch(tmp_path, "sub-01_PDw.nii.gz", "sub-01_T2w.nii.gz", "sub-02_PDw.nii.gz", "sub-03_T2w.nii.gz")
    touch(tmp_path, "sub-04_T1w.nii.gz", "sub-05_my_T2w.nii.gz", "sub-06_PDw.nii.gz", "sub-06_PDw.nii")
    pairs, findings = survey(tmp_path)
    assert [pair.case for pair in pairs] == ["sub-01"]
    assert [(finding.case, finding.severity, finding.fault) for finding in findings] == [
        ("dataset", "warning", "name"),
        ("sub-02", "error", "missing-partner"),
        ("sub-03", "error", "missing-partner"),
        ("sub-04", "warning", "missing-partner"),
        ("sub-06", "error", "ambiguous"),
    ]
    sources = find_pairs(tmp_path, require_target=False)
    assert [(pair.case, pair.target is None) for pair in sources] == [("sub-01", False), ("sub-02", True)]


def test_ixi_files_are_paired_by_their_id_at_any_depth(tmp_path):
    touch(tmp_path, "IXI-PD/IXI012-HH-1211-PD.nii.gz", "IXI-T2/IXI012-HH-1211-T2.nii.gz", "IXI013-Guys-1-PD.nii.gz")
    pairs, findings = survey(tmp_path)
    assert [(pair.case, pair.source.parent.name, pair.target.parent.name) for pair in pairs] == [
        ("sub-IXI012", "IXI-PD", "IXI-T2")
    ]
    assert [finding.case for finding in findings] == ["sub-IXI013"]


def test_a_table_names_files_of_any_name_relative_to_itself(tmp_path):
    table = tmp_path / "pairs.csv"
    table.write_text(
        "subject,session,T1,FLAIR\nsub-01,1,a/one.nii.gz,two.nii.gz\n01,ses-2,three.nii,\n", encoding="utf-8-sig"
    )
    pairs, (finding,) = survey(table, source="T1w", target="FLAIR")
    assert pairs == [Pair("01", "1", tmp_path / "a/one.nii.gz", tmp_path / "two.nii.gz")]
    assert (finding.case, finding.fault) == ("sub-01_ses-2", "missing-partner")


def test_a_table_of_sources_alone_is_enough_where_no_target_is_needed(tmp_path):
    table = tmp_path / "sources.csv"
    table.write_text("subject,PD\n01,one.nii.gz\n")
    (pair,) = find_pairs(table, require_target=False)
    assert (pair.case, pair.source, pair.target) == ("sub-01", tmp_path / "one.nii.gz", None)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "lacks a column; found no columns, expected subject, PD, T2"),
        ("subject,PD\n01,a.nii\n", "lacks a column; found subject, PD"),
        ("subject,PD,T2\n../01,a.nii,b.nii\n", "line 2: a label"),
        ("subject,PD,T2\n,a.nii,b.nii\n", "line 2: a label"),
        ("subject,PD,T2\n01,a.nii,b.nii\n01,c.nii,d.nii\n", "listed twice, in lines 2 and 3"),
        ("subject,PD,T2\n01,,\n", "no pair of PD and T2"),
        (b"\xff\xfe\0", "cannot be read"),
    ],
)
def test_a_wrong_table_is_refused_with_the_reason(tmp_path, content, reason):
    table = tmp_path / "pairs.csv"
    table.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(DatasetError, match=reason):
        find_pairs(table)


def test_a_dataset_that_is_not_there_or_holds_nothing_is_refused(tmp_path):
    with pytest.raises(DatasetError, match="not there"):
        find_pairs(tmp_path / "missing")
    with pytest.raises(DatasetError, match="cannot be read"):
        find_pairs(tmp_path / "missing.csv")
    touch(tmp_path, "scan 1.nii.gz")
    with pytest.raises(DatasetError, match="found 1 NIfTI files, the first scan 1"):
        find_pairs(tmp_path)
    with pytest.raises(DatasetError, match=r"sub-01_T1w\.nii\.gz .BIDS. or IXI012-HH-1211-T1\.nii\.gz .*, T1w and T2w"):
        find_pairs(tmp_path, source="T1w", target="T2w")
    with pytest.raises(SettingsError, match="the same contrast"):
        find_pairs(tmp_path, source="T2", target="T2w")


@settings(max_examples=100)
@given(
    subjects=st.sets(st.text("abc019", min_size=1, max_size=5), min_size=6, max_size=30).map(sorted),
    seed=st.integers(0, 2**31),
    numbers=st.tuples(*[st.integers(0, 2)] * 3),
)
def test_a_split_is_disjoint_complete_and_does_not_depend_on_the_order(subjects, seed, numbers):
    train, validation, test = numbers
    pairs = pairs_of(subjects, ("1", "2"))
    split = split_subjects(pairs, train=train, validation=validation, test=test, seed=seed)
    assert [len(split[part]) for part in ("train", "validation", "test")] == [train, validation, test]
    listed = [subject for part in split.values() for subject in part]
    assert len(set(listed)) == len(listed)
    assert set(listed) <= set(subjects)
    assert split == split_subjects(pairs[::-1], train=train, validation=validation, test=test, seed=seed)


def test_seeds_give_different_splits_and_one_seed_always_the_same():
    pairs = pairs_of([f"{i:02d}" for i in range(20)])
    splits = [split_subjects(pairs, train=10, validation=2, test=3, seed=seed) for seed in range(5)]
    assert len({json.dumps(split) for split in splits}) == 5
    assert splits[0]["validation"] == ["06", "08"]


def test_too_few_subjects_are_refused_with_both_numbers():
    with pytest.raises(DatasetError, match="found 2 subjects with both contrasts, expected 60 train"):
        split_subjects(pairs_of(["a", "b"], ("1", "2")), train=60, validation=3, test=26)


def test_a_split_is_taken_from_a_file(tmp_path):
    file = tmp_path / "split.json"
    file.write_text('{"train": ["sub-b", "a"], "validation": ["c"], "test": []}')
    split = split_subjects(pairs_of(["a", "b", "c", "d"]), train=60, validation=3, test=26, file=file)
    assert split == {"train": ["a", "b"], "validation": ["c"], "test": []}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"train": ["a"], "validation": ["a"], "test": []}', "more than once; found a"),
        ('{"train": ["x"], "validation": [], "test": []}', "unknown subjects; found x"),
        ('{"train": ["a"], "test": []}', "KeyError: 'validation'"),
        ('{"train": 3, "validation": [], "test": []}', "TypeError"),
        ("[]", "TypeError"),
        ("{", "cannot be read"),
    ],
)
def test_a_wrong_split_file_is_refused(tmp_path, content, reason):
    (tmp_path / "split.json").write_text(content)
    with pytest.raises(DatasetError, match=reason):
        split_subjects(pairs_of(["a", "b"]), train=1, validation=1, test=0, file=tmp_path / "split.json")


def test_the_report_names_every_fault_and_leaves_the_good_case_alone(tmp_path):
    targets = {
        "good": {},
        "nan": {"voxels": np.where(some_voxels() > 990, np.nan, some_voxels()).astype("<f4")},
        "flat": {"voxels": np.zeros((8, 9, 10), "<i2")},
        "four": {"voxels": some_voxels((8, 9, 10, 2))},
        "moved": {"affine": np.array([[1.0, 0, 0, 9], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]) @ AFFINE},
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
    ]
    assert seen[-1] == (6, 6, "sub-nan")


@pytest.mark.parametrize(
    ("spacing", "odd"), [((1, 1, 3), False), ((1, 1, 3.1), True), ((0.2, 0.2, 0.2), True), ((7, 7, 7), True)]
)
def test_odd_spacing_is_a_warning(tmp_path, spacing, odd):
    affine = np.diag([*spacing, 1.0])
    write_nifti(tmp_path / "sub-01_PDw.nii.gz", affine=affine)
    write_nifti(tmp_path / "sub-01_T2w.nii.gz", some_voxels(seed=1), affine=affine)
    findings = check_dataset(tmp_path, source="PD", target="T2")
    assert [(finding.severity, finding.fault) for finding in findings] == 2 * odd * [("warning", "spacing")]


def test_equal_scans_of_one_subject_in_two_sessions_are_only_a_warning(tmp_path):
    for session in ("1", "2"):
        write_nifti(tmp_path / f"sub-01_ses-{session}_PDw.nii.gz", some_voxels(seed=1))
        write_nifti(tmp_path / f"sub-01_ses-{session}_T2w.nii.gz", some_voxels(seed=2))
    findings = check_dataset(tmp_path, source="PD", target="T2")
    assert [(finding.case, finding.severity, finding.fault) for finding in findings] == 2 * [
        ("sub-01_ses-2", "warning", "duplicate")
    ]
