import json
import time
from pathlib import Path

import pytest

from unscanned.datasets.pairs import Pair, find_pairs, survey
from unscanned.datasets.split import split_subjects
from unscanned.errors import DatasetError, SettingsError


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


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
        ("subject,PD,PDw,T2\n01,a.nii,b.nii,c.nii\n", "one meaning; found PD and PDw, expected one column PD"),
        ("subject,PD,T2,t2W\n01,a.nii,b.nii,c.nii\n", "one meaning; found T2 and t2W, expected one column T2"),
        ("subject,Subject,PD,T2\n01,02,a.nii,b.nii\n", "one meaning; found subject and Subject"),
        ("subject,PD,T2\n" + 101 * "a" + ",a.nii,b.nii\n", "line 2: a label"),
        (b"\xff\xfe\0", "cannot be read"),
        ("subject,PD,T2\n01,a\0.nii,b.nii\n", "null character"),
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


def test_a_table_of_100_000_rows_is_read_in_seconds_and_names_ten(tmp_path):
    table = tmp_path / "pairs.csv"
    table.write_text("subject,PD,T2\n" + "".join(f"s{row},{row}-pd.nii,{row}-t2.nii\n" for row in range(100_000)))
    began = time.monotonic()
    pairs = find_pairs(table)
    assert len(pairs) == 100_000
    split = {"train": [f"x{row}" for row in range(100_000)], "validation": [], "test": []}
    (tmp_path / "split.json").write_text(json.dumps(split))
    with pytest.raises(DatasetError, match="and 99,990 more") as refusal:
        split_subjects(pairs, train=1, validation=1, test=1, file=tmp_path / "split.json")
    assert len(str(refusal.value)) < 1000
    assert time.monotonic() - began < 30
