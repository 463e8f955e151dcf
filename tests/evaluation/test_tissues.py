"""Errors by tissue are those of the voxels that a label map calls so, and of these alone."""

import nibabel as nib
import numpy as np
import pytest
from cohort import SHAPE, write_cohort, write_oriented

from unscanned.cli import main
from unscanned.errors import DatasetError
from unscanned.evaluation.evaluate import evaluate
from unscanned.evaluation.tissues import find_labels
from unscanned.formats.evaluation import read_evaluation
from unscanned.report.page import write_report

NAMES = "index\tname\n0\tair\n1\tcortex\n2\twhite matter\n"


@pytest.fixture
def cohort(tmp_path):
    """Two subjects, whose left half is label 1, a block of the right one label 2, and one voxel label 7."""
    raw, arms = write_cohort(tmp_path, ["01", "02"], {"near": 0.02, "far": 0.2})
    labels = np.zeros(SHAPE, np.float32)
    labels[: SHAPE[0] // 2], labels[30:34, 20:24, 10:14], labels[25, 30, 12] = 1, 2, 7
    folder = tmp_path / "labels"
    for subject in ("01", "02"):
        write_oriented(folder / f"sub-{subject}" / "anat" / f"sub-{subject}_dseg.nii.gz", labels, "PIR")
    (folder / "dseg.tsv").write_text(NAMES)
    return raw, arms, folder, labels


def test_a_tissue_has_the_error_of_its_own_voxels(cohort, tmp_path):
    raw, arms, folder, labels = cohort
    found = evaluate(raw, arms, tmp_path / "evaluation", labels=folder)
    tissues = ["tissue: 7", "tissue: cortex", "tissue: white matter"]
    assert list(found.content.regions) == ["head", "volume", *tissues]
    values = {row.region: row.values for row in found.scores if row.subject == "01" and row.arm == "far"}
    assert list(values["tissue: cortex"]) == ["mae", "psnr"]
    files = next(arms["far"].rglob("sub-01*.nii.gz")), raw / "sub-01" / "anat" / "sub-01_T2w.nii.gz"
    made, truth = (np.asarray(nib.as_closest_canonical(nib.load(file)).dataobj) for file in files)
    scale = np.percentile(truth[truth > 0], 99.9)
    inside = labels == 2
    expected = 20 * np.log10(1 / np.sqrt(np.mean((made / 700.0 - truth / scale)[inside] ** 2)))
    assert values["tissue: white matter"]["psnr"] == pytest.approx(expected, abs=0.5)
    summary = found.content.arms["near"]["tissue: white matter"]["psnr"]
    assert summary.n == 2
    assert summary.mean > found.content.arms["far"]["tissue: white matter"]["psnr"].mean
    assert any(row.region == "tissue: cortex" and row.metric == "mae" for row in found.content.comparisons)


def test_the_report_shows_one_table_by_tissue_and_the_file_is_read_again(cohort, tmp_path, capsys):
    raw, arms, folder, _ = cohort
    words = ["evaluate", raw, *(f"{name}={path}" for name, path in arms.items()), "-o", tmp_path / "out"]
    assert main([*map(str, words), "--labels", str(folder)]) == 0
    assert "white matter" in (tmp_path / "out" / "scores.csv").read_text()
    assert "tissue: cortex" in read_evaluation(tmp_path / "out").regions
    page = write_report(tmp_path / "out", tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count("<h3>By tissue</h3>") == 1
    assert page.count('<th scope="row">cortex</th>') == 2  # MAE and PSNR
    found = read_evaluation(tmp_path / "out")
    [gain] = [
        row
        for row in found.comparisons
        if (row.arm, row.against, row.region, row.metric) == ("near", "source", "tissue: cortex", "psnr")
    ]
    assert f"<small>{gain.difference:+.2f} [{gain.low:+.2f}, {gain.high:+.2f}]</small>".replace("-", "−") in page
    assert page.count("<h3>Whole volume</h3>") == 1


def test_a_case_whose_labels_cannot_be_used_has_a_warning_and_its_other_scores(cohort, tmp_path):
    raw, arms, folder, labels = cohort
    write_oriented(folder / "sub-02" / "anat" / "sub-02_dseg.nii.gz", labels, "RAS", shift_mm=30.0)
    write_oriented(folder / "sub-01" / "anat" / "sub-01_dseg.nii.gz", labels + 0.5, "RAS")
    found = evaluate(raw, arms, tmp_path / "evaluation", labels=folder)
    assert list(found.content.regions) == ["head", "volume"]
    warnings = " ".join(found.content.warnings)
    assert "labels and target lie on different grids" in warnings
    assert "labels are whole numbers" in warnings
    assert not found.failures


def test_a_folder_without_labels_or_with_a_case_twice_is_refused(cohort, tmp_path):
    raw, arms, folder, labels = cohort
    with pytest.raises(DatasetError, match="no label maps"):
        evaluate(raw, arms, tmp_path / "evaluation", labels=tmp_path / "nothing")
    assert not (tmp_path / "evaluation").exists()
    (folder / "dseg.tsv").write_text("number\tword\n1\tcortex\n")
    with pytest.raises(DatasetError, match="names of the labels cannot be read"):
        find_labels(folder)
    (folder / "dseg.tsv").unlink()
    assert find_labels(folder).names == {}
    write_oriented(folder / "again" / "sub-02_dseg.nii.gz", labels, "RAS")
    with pytest.raises(DatasetError, match="two label maps of one case"):
        find_labels(folder)


def test_labels_of_one_name_are_one_tissue_and_a_mark_of_the_encoding_is_no_part_of_a_name(cohort, tmp_path):
    raw, arms, folder, _ = cohort
    (folder / "dseg.tsv").write_text("\ufeffindex\tname\n1\ttissue\n2\ttissue\n7\n", encoding="utf-8")
    assert find_labels(folder).names == {1: "tissue", 2: "tissue"}
    found = evaluate(raw, {"far": arms["far"]}, tmp_path / "one", labels=folder)
    assert [*found.content.regions][2:] == ["tissue: 7", "tissue: tissue"]
    (folder / "dseg.tsv").write_text(NAMES)
    apart = evaluate(raw, {"far": arms["far"]}, tmp_path / "two", labels=folder)
    both, cortex, white = (
        next(row.values["mae"] for row in each.scores if (row.arm, row.subject, row.region) == ("far", "01", region))
        for each, region in ((found, "tissue: tissue"), (apart, "tissue: cortex"), (apart, "tissue: white matter"))
    )
    assert min(cortex, white) < both < max(cortex, white)


def test_label_maps_of_no_case_are_refused_and_a_case_without_one_is_named(cohort, tmp_path):
    raw, arms, folder, _ = cohort
    (folder / "sub-02" / "anat" / "sub-02_dseg.nii.gz").unlink()
    found = evaluate(raw, arms, tmp_path / "evaluation", labels=folder)
    assert any(f"{folder} has no label map of it" in text and "sub-02" in text for text in found.content.warnings)
    left = folder / "sub-01" / "anat" / "sub-01_dseg.nii.gz"
    left.rename(left.with_name("sub-01_space-T2w_dseg.nii.gz"))
    with pytest.raises(DatasetError, match=r"no label map has the name of a case.*sub-01_dseg"):
        evaluate(raw, arms, tmp_path / "other", labels=folder)


def test_label_maps_behind_a_link_and_with_a_loud_ending_are_found(cohort, tmp_path):
    _, _, folder, _ = cohort
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "sub-01").symlink_to(folder / "sub-01")
    two = folder / "sub-02" / "anat" / "sub-02_dseg.nii.gz"
    (linked / "sub-02_dseg.NII.GZ").symlink_to(two)
    assert [*find_labels(linked).files] == ["sub-01", "sub-02"]
