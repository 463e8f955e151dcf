import csv
import json
import math
import shutil
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
from cohort import MEAN, SCALE, STD, head_phantom, write_cohort, write_oriented, write_synthetic
from notebook_tables import rows
from tool import ENVIRONMENT

from unscanned.errors import DatasetError, SettingsError
from unscanned.evaluation.cases import evaluated_images
from unscanned.evaluation.evaluate import evaluate
from unscanned.evaluation.metrics import METRICS, Metric, mae
from unscanned.report.page import write_report
from unscanned.volumes.intensity import head_mask
from unscanned.volumes.nifti import STAMP, read_volume, write_volume

SUBJECTS = ("01", "02", "03", "04")
ARMS = {"good": 0.02, "poor": 0.1}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return write_cohort(tmp_path_factory.mktemp("cohort"), SUBJECTS, ARMS)


@pytest.fixture(scope="module")
def evaluated(cohort, tmp_path_factory):
    return evaluate(*cohort, tmp_path_factory.mktemp("out"), subjects=("02", "03", "04"), training=("01",))


def values(evaluation, arm, region, metric):
    return {row.case: row.values[metric] for row in evaluation.scores if row.arm == arm and row.region == region}


def test_every_case_arm_and_region_has_every_metric(evaluated):
    assert evaluated.arms == ("source", "regression", "good", "poor")
    assert not evaluated.failures
    assert len(evaluated.scores) == 3 * 4 * 2
    assert all(set(row.values) == set(METRICS) for row in evaluated.scores)


def test_the_better_arm_scores_better_and_both_beat_the_source(evaluated):
    for case, good in values(evaluated, "good", "head", "mae").items():
        assert good < values(evaluated, "poor", "head", "mae")[case]
        assert good < values(evaluated, "source", "head", "mae")[case]
    assert values(evaluated, "good", "head", "ssim")["sub-02"] > values(evaluated, "poor", "head", "ssim")["sub-02"]


def test_the_regression_is_better_than_the_source_where_contrast_is_not_linear(evaluated):
    regression, source = (values(evaluated, arm, "head", "mse") for arm in ("regression", "source"))
    assert all(regression[case] < source[case] for case in source)


def test_the_mae_is_that_of_z_scores_with_the_sidecars_constants(evaluated, cohort):
    _, target = head_phantom(1)
    head = head_mask(target)
    written = nib.load(cohort[1]["good"] / "sub-02/anat/sub-02_desc-synthetic_T2w.nii.gz").get_fdata()
    z_target = (target / np.percentile(target[head], 99.9) - MEAN) / STD
    z_synthetic = (written / SCALE - MEAN) / STD
    assert values(evaluated, "good", "head", "mae")["sub-02"] == pytest.approx(
        mae(z_target, z_synthetic, head), rel=1e-4
    )
    assert values(evaluated, "good", "volume", "mae")["sub-02"] == pytest.approx(mae(z_target, z_synthetic), rel=1e-4)


def test_the_json_holds_summaries_comparisons_and_definitions(evaluated):
    content = json.loads((evaluated.folder / "evaluation.json").read_text())
    assert content == evaluated.content.to_json()
    summary = content["arms"]["good"]["head"]["mae"]
    scored = list(values(evaluated, "good", "head", "mae").values())
    assert summary == pytest.approx({"mean": np.mean(scored), "sd": np.std(scored, ddof=1), "n": 3, "of": 3})
    pairs = {(row["arm"], row["against"]) for row in content["comparisons"]}
    assert pairs == {
        ("poor", "good"), ("good", "source"), ("poor", "source"), ("regression", "source"),
        ("good", "regression"), ("poor", "regression"),
    }  # fmt: skip
    assert set(content["definitions"]) == set(METRICS)
    assert content["constants"]["mean"] == MEAN


def test_a_difference_is_that_of_the_arm_minus_what_it_is_compared_with(evaluated):
    row = next(
        row for row in evaluated.content.comparisons
        if (row.arm, row.against, row.region, row.metric) == ("poor", "good", "head", "mae")
    )  # fmt: skip
    assert row.difference > 0
    assert row.low < row.difference < row.high


def test_the_tables_read_back(evaluated):
    with open(evaluated.folder / "scores.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(evaluated.scores)
    assert float(rows[0]["mae"]) == pytest.approx(evaluated.scores[0].values["mae"], rel=1e-5)
    with open(evaluated.folder / "slices.csv", newline="") as file:
        slices = list(csv.DictReader(file))
    assert {row["plane"] for row in slices} == {"sagittal", "coronal", "axial"}


def test_the_mse_of_slices_averages_to_that_of_the_volume(evaluated):
    with open(evaluated.folder / "slices.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if (row["case"], row["arm"]) == ("sub-02", "poor")]
    _, target = head_phantom(1)
    head = head_mask(target)
    for axis, plane in enumerate(("sagittal", "coronal", "axial")):
        weights = np.count_nonzero(head, axis=tuple({0, 1, 2} - {axis}))
        inside = [row for row in rows if row["plane"] == plane and row["mse_head"]]
        total = sum(float(row["mse_head"]) * weights[int(row["index"])] for row in inside)
        assert total / head.sum() == pytest.approx(values(evaluated, "poor", "head", "mse")["sub-02"], rel=1e-3)


def test_every_slice_is_listed_also_one_without_a_head(evaluated):
    with open(evaluated.folder / "slices.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if (row["case"], row["arm"]) == ("sub-02", "poor")]
    planes = {
        entry["plane"]: entry
        for entry in json.loads((evaluated.folder / "evaluation.json").read_text())["slices"]
        if (entry["case"], entry["arm"]) == ("sub-02", "poor")
    }
    head = head_mask(head_phantom(1)[1])
    for axis, plane in enumerate(("sagittal", "coronal", "axial")):
        table = [row for row in rows if row["plane"] == plane]
        holds_head = head.any(axis=tuple({0, 1, 2} - {axis})).tolist()
        assert [int(row["index"]) for row in table] == list(range(head.shape[axis]))
        assert [row["mse_head"] != "" for row in table] == holds_head
        assert [value is not None for value in planes[plane]["mse_head"]] == holds_head
        for name in ("mse_head", "mse_volume"):
            written = [float(row[name] or "nan") for row in table]
            kept = [math.nan if value is None else value for value in planes[plane][name]]
            assert written == pytest.approx(kept, rel=1e-5, nan_ok=True)
    assert not all(holds_head)


def test_a_contrast_in_small_letters_finds_the_volumes_that_it_was_written_as(cli, cohort, tmp_path):
    raw, arms = cohort
    done = cli("evaluate", raw, arms["good"], "-o", tmp_path / "out", "--source", "pd", "--target", "t2")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text())["arms"]["good"]["head"]["mae"]["n"] == 4


def test_a_synthetic_volume_in_another_orientation_is_the_same(evaluated, cohort, tmp_path):
    raw, arms = cohort
    original = nib.as_closest_canonical(nib.load(arms["good"] / "sub-02/anat/sub-02_desc-synthetic_T2w.nii.gz"))
    write_synthetic(tmp_path / "arm", "sub-02", original.get_fdata(dtype=np.float32) / SCALE, orientation="PIR")
    again = evaluate(raw, {"good": tmp_path / "arm"}, tmp_path / "out")
    for metric in METRICS:
        expected = values(evaluated, "good", "head", metric)["sub-02"]
        assert values(again, "good", "head", metric)["sub-02"] == pytest.approx(expected, rel=1e-4)


def test_a_synthetic_volume_on_another_grid_is_refused_unless_resampling_is_asked_for(cohort, tmp_path):
    raw, arms = cohort
    _, target = head_phantom(1)
    write_synthetic(tmp_path / "arm", "sub-02", target / 1000, orientation="RAS", shift_mm=3.0)
    refused = evaluate(raw, {"good": arms["good"], "moved": tmp_path / "arm"}, tmp_path / "out")
    reasons = {failure.case: failure.reason for failure in refused.failures if failure.arm == "moved"}
    assert "different grid" in reasons["sub-02"]
    allowed = evaluate(raw, {"moved": tmp_path / "arm"}, tmp_path / "out", resample=True)
    assert values(allowed, "moved", "head", "mae").keys() == {"sub-02"}


@pytest.mark.parametrize("alone", [True, False])
def test_where_no_arm_can_be_scored_the_reason_is_the_error_and_nothing_is_written(cli, tmp_path, alone):
    raw, arms = write_cohort(tmp_path, ("01",), {"good": 0.02})
    source, _ = head_phantom(0)
    if not alone:
        write_oriented(raw / "sub-01" / "anat" / "sub-01_PDw.nii.gz", source, shift_mm=10.0)
    write_synthetic(arms["good"], "sub-01", source, shift_mm=10.0)
    done = cli("evaluate", raw, arms["good"], "-o", tmp_path / "evaluation")
    assert done.returncode == 3
    assert "no volume could be scored" in done.stderr
    assert "allow resampling" in done.stderr
    assert not list((tmp_path / "evaluation").glob("*.json"))
    assert cli("evaluate", raw, arms["good"], "-o", tmp_path / "evaluation", "--resample").returncode == 0


def test_without_sidecars_the_volumes_own_percentile_and_the_targets_own_constants_are_used_and_said(
    cli, cohort, tmp_path
):
    raw, _ = cohort
    _, target = head_phantom(1)
    write_synthetic(tmp_path / "arm", "sub-02", 17 * target, sidecar=False)
    evaluation = evaluate(raw, {"other": tmp_path / "arm"}, tmp_path / "out")
    assert values(evaluation, "other", "head", "mae")["sub-02"] == pytest.approx(0, abs=1e-5)
    assert any("no intensity constants" in text for text in evaluation.content.warnings)
    done = cli("evaluate", raw, f"other={tmp_path / 'arm'}", "-o", tmp_path / "again")
    assert "warning: sub-02: sub-02_desc-synthetic_T2w.nii.gz has no intensity constants" in done.stderr
    assert evaluation.content.constants.mean is None


@pytest.fixture(scope="module")
def at_97(tmp_path_factory):
    """An arm whose model was trained with 97 as its percentile, and which made the acquired target itself."""
    folder = tmp_path_factory.mktemp("arm")
    _, target = head_phantom(1)
    write_synthetic(folder, "sub-02", target / np.percentile(target[head_mask(target)], 97), percentile=97)
    return folder


def test_the_target_is_scaled_by_the_percentile_of_the_sidecars(cli, cohort, at_97, tmp_path):
    done = cli("evaluate", cohort[0], f"same={at_97}", "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert content["percentile"] == 97
    assert content["arms"]["same"]["head"]["mae"]["mean"] == pytest.approx(0, abs=1e-5)


def test_an_arm_at_another_percentile_is_refused_and_both_are_named(cli, cohort, at_97, tmp_path):
    _, target = head_phantom(1)
    write_synthetic(tmp_path / "arm", "sub-02", target / 1000, percentile=99.9)
    done = cli("evaluate", cohort[0], f"first={at_97}", f"second={tmp_path / 'arm'}", "-o", tmp_path / "out")
    assert done.returncode == 2
    assert "found first: 97, second: 99.9" in done.stderr
    with pytest.raises(SettingsError, match=r"found first: 97, expected 99\.9, as given"):
        evaluate(cohort[0], {"first": at_97}, tmp_path / "out", percentile=99.9)
    assert evaluate(cohort[0], {"first": at_97}, tmp_path / "out", percentile=97).content.percentile == 97


def test_without_a_percentile_in_any_sidecar_it_is_99_9_or_the_one_that_is_given(cohort, evaluated, tmp_path):
    assert evaluated.content.percentile == 99.9
    assert evaluate(*cohort, tmp_path / "out", subjects=("02",), percentile=97).content.percentile == 97


def test_a_volume_that_is_missing_or_broken_does_not_stop_the_others(cohort, tmp_path):
    raw, arms = cohort
    _, target = head_phantom(0)
    arm = tmp_path / "arm"
    write_synthetic(arm, "sub-01", target / 1000)
    write_synthetic(arm, "sub-02", target / 1000)
    write_synthetic(arm, "sub-03", target / 1000)
    broken = arm / "sub-02/anat/sub-02_desc-synthetic_T2w.nii.gz"
    broken.write_bytes(broken.read_bytes()[:500])
    (arm / "sub-03/anat/sub-03_desc-synthetic_T2w.json").write_text('{"Intensity": {"scale": 0, "mean": 0, "std": 1}}')
    evaluation = evaluate(raw, {"good": arms["good"], "odd": arm}, tmp_path / "out")
    failed = {failure.case: failure.reason for failure in evaluation.failures}
    assert failed.keys() == {"sub-02", "sub-03", "sub-04"}
    assert str(broken) in failed["sub-02"]
    assert "Intensity: scale: must be positive; found 0" in failed["sub-03"]
    assert "missing" in failed["sub-04"]
    assert evaluation.content.arms["odd"]["head"]["mae"].n == 1
    assert evaluation.content.arms["odd"]["head"]["mae"].of == 4
    assert evaluation.content.arms["good"]["head"]["mae"].n == 4
    table = (tmp_path / "out" / "scores.csv").read_text()
    assert table.count("failed") == 3


def test_a_target_that_cannot_be_read_fails_its_case_only(tmp_path):
    raw, arms = write_cohort(tmp_path, ("01", "02"), {"good": 0.02})
    path = raw / "sub-01/anat/sub-01_T2w.nii.gz"
    path.write_bytes(path.read_bytes()[:900])
    evaluation = evaluate(raw, arms, tmp_path / "out")
    assert [(failure.case, failure.arm) for failure in evaluation.failures] == [("sub-01", "target")]
    assert values(evaluation, "good", "head", "mae").keys() == {"sub-02"}


def test_a_case_with_several_targets_is_a_failure_with_their_names(tmp_path):
    raw, arms = write_cohort(tmp_path, ("01", "02"), {"good": 0.02})
    first = next((raw / "sub-02").rglob("*_T2w.nii.gz"))
    for run in ("run-1", "run-2"):
        shutil.copy(first, first.with_name(f"sub-02_{run}_T2w.nii.gz"))
    first.unlink()
    result = evaluate(raw, arms, tmp_path / "evaluation")
    assert [(failure.case, failure.arm) for failure in result.failures] == [("sub-02", "target")]
    assert "sub-02_run-1_T2w.nii.gz" in result.failures[0].reason
    assert {score.case for score in result.scores} == {"sub-01"}


def test_a_subject_to_score_that_is_not_in_the_dataset_is_a_failure(cohort, tmp_path):
    evaluation = evaluate(*cohort, tmp_path, subjects=("02", "77"))
    assert [(failure.case, failure.arm) for failure in evaluation.failures] == [("77", "target")]


def test_a_perfect_volume_has_no_number_in_json_where_its_psnr_is_infinite(cohort, tmp_path):
    raw, _ = cohort
    _, target = head_phantom(1)
    write_oriented(tmp_path / "arm" / "sub-02_desc-synthetic_T2w.nii.gz", target)
    evaluation = evaluate(raw, {"same": tmp_path / "arm"}, tmp_path / "out")
    assert values(evaluation, "same", "head", "psnr")["sub-02"] == math.inf
    assert evaluation.content.arms["same"]["head"]["psnr"].mean is None


def test_a_subject_that_was_trained_on_is_never_scored(cohort, tmp_path):
    with pytest.raises(DatasetError, match="trained on"):
        evaluate(*cohort, tmp_path / "out", training=("01",))
    assert not (tmp_path / "out").exists()


def test_left_out_one_by_one_each_subject_has_the_regression_of_all_others(cli, cohort, tmp_path):
    left_out = evaluate(*cohort, tmp_path / "left-out", leave_one_out=True)
    for subject in SUBJECTS:
        others = [other for other in SUBJECTS if other != subject]
        alone = evaluate(*cohort, tmp_path / subject, subjects=[subject], training=others)
        for metric in ("mae", "psnr", "ssim"):
            expected = values(alone, "regression", "head", metric)
            found = values(left_out, "regression", "head", metric)
            assert found[f"sub-{subject}"] == pytest.approx(expected[f"sub-{subject}"], rel=1e-9)
    assert left_out.content.regression is None
    page = write_report(tmp_path / "left-out", tmp_path / "report.html")
    assert "regression" in page.read_text(encoding="utf-8")
    dataset, arms = cohort
    words = [dataset, f"good={arms['good']}", "-o", tmp_path / "cli", "--leave-one-out"]
    done = cli("evaluate", *words)
    assert done.returncode == 0, done.stderr
    again = json.loads((tmp_path / "cli" / "evaluation.json").read_text())
    assert [case["regression"] for case in again["cases"]] == [
        case.regression.model_dump() for case in left_out.content.cases
    ]


def test_one_subject_alone_has_no_other_to_fit_a_regression_on(cohort, tmp_path):
    found = evaluate(*cohort, tmp_path, subjects=["01"], leave_one_out=True)
    assert found.arms == ("source", "good", "poor")
    assert "no regression baseline" in "".join(found.content.warnings)


def test_a_regression_on_training_subjects_and_on_all_others_is_refused(cohort, tmp_path):
    with pytest.raises(SettingsError, match="training subjects too: 01"):
        evaluate(*cohort, tmp_path, subjects=["02"], training=["01"], leave_one_out=True)


def test_folders_without_volumes_are_refused(cohort, tmp_path):
    (tmp_path / "arm").mkdir()
    with pytest.raises(DatasetError, match="no case to score"):
        evaluate(cohort[0], {"empty": tmp_path / "arm"}, tmp_path / "out")
    with pytest.raises(DatasetError, match="no such folder"):
        evaluate(cohort[0], {"nowhere": tmp_path / "nowhere"}, tmp_path / "out")


@pytest.mark.parametrize("arms", [{}, {"source": "arm"}, {"regression": "arm"}])
def test_no_arm_or_an_arm_named_like_a_baseline_is_refused(cohort, tmp_path, arms):
    with pytest.raises(SettingsError):
        evaluate(cohort[0], dict.fromkeys(arms, tmp_path), tmp_path / "out")


def test_a_metric_that_one_entry_adds_stands_in_every_table_with_all_that_the_entry_says(
    cli, cohort, monkeypatch, tmp_path
):
    def worst(target, synthetic, mask=None, *, data_range):
        return float(np.abs(synthetic - target)[... if mask is None else mask].max() / data_range)

    added = Metric(
        worst,
        title="Worst voxel",
        unit="of 2",
        better="lower",
        digits=4,
        definition="largest absolute error in unit scale, divided by 2",
        words="How far the worst voxel is off.",
        scale="unit scale",
        data_range=2.0,
    )
    monkeypatch.setitem(METRICS, "worst", added)
    monkeypatch.setenv("COLUMNS", "160")
    raw, arms = cohort
    out = tmp_path / "out"
    done = cli("evaluate", raw, *(f"{arm}={folder}" for arm, folder in arms.items()), "-o", out)
    assert done.returncode == 0, done.stderr

    _, target = head_phantom(1)
    head = head_mask(target)
    written = nib.load(arms["good"] / "sub-02/anat/sub-02_desc-synthetic_T2w.nii.gz").get_fdata()
    expected = np.abs(written / SCALE - target / np.percentile(target[head], 99.9))[head].max() / 2
    with open(out / "scores.csv", newline="") as file:
        rows = {(row["case"], row["arm"], row["region"]): row for row in csv.DictReader(file)}
    assert float(rows["sub-02", "good", "head"]["worst"]) == pytest.approx(expected, rel=1e-4)

    content = json.loads((out / "evaluation.json").read_text())
    scored = [row["values"]["worst"] for row in content["scores"] if (row["arm"], row["region"]) == ("good", "head")]
    summary = content["arms"]["good"]["head"]["worst"]
    assert summary == pytest.approx({"mean": np.mean(scored), "sd": np.std(scored, ddof=1), "n": 4, "of": 4})
    assert content["definitions"]["worst"] == f"{added.definition}; lower is better"
    [difference] = [
        row["difference"] for row in content["comparisons"]
        if (row["arm"], row["against"], row["region"], row["metric"]) == ("poor", "good", "head", "worst")
    ]  # fmt: skip
    assert difference > 0

    shown = f"{summary['mean']:.4f} ({summary['sd']:.4f})"
    assert "Worst voxel ↓" in done.stdout
    assert "of 2" in done.stdout
    assert shown in done.stdout

    page = write_report(out, tmp_path / "report.html").read_text(encoding="utf-8")
    assert '<th class="num">Worst voxel ↓<small>of 2</small></th>' in page
    assert shown.replace("(", "<small>(") + "</small>" in page
    assert f'How far the worst voxel is off. <span class="quiet">{added.definition}; lower is better.</span>' in page


def test_a_terminal_without_arrows_has_the_table_without_them(tmp_path):
    raw, arms = write_cohort(tmp_path, ("01",), {"good": 0.02})
    call = [sys.executable, "-m", "unscanned", "evaluate", raw, arms["good"], "-o", tmp_path / "out"]
    environment = {**ENVIRONMENT, "PYTHONIOENCODING": "ascii:strict"}
    done = subprocess.run(call, capture_output=True, text=True, env=environment, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "PSNR, Nie" in done.stdout


def test_progress_counts_to_its_end(cohort, tmp_path):
    calls = []
    evaluate(*cohort, tmp_path, subjects=("02",), training=("01",), progress=lambda *call: calls.append(call))
    assert [call[0] for call in calls] == [0, 1, 2]
    assert {call[1] for call in calls} == {2}


def test_a_notebook_shows_the_scores_of_the_files(evaluated):
    table = rows(evaluated._repr_html_())
    head, arms = table[0], {row[0]: row for row in table[1:5]}
    assert head[0] == "arm"
    assert [text.split(" ")[0] for text in head[1:]] == ["MAE", "PSNR,", "PSNR", "SSIM", "n"]
    for arm, row in arms.items():
        psnr = evaluated.content.arms[arm]["head"]["psnr"]
        assert row[3] == f"{psnr.mean:.2f} ({psnr.sd:.2f})"
        assert row[-1] == "3"
    differences = {row[0]: row for row in table[6:]}
    [wanted] = [
        row
        for row in evaluated.content.comparisons
        if (row.arm, row.against, row.region, row.metric) == ("good", "regression", "head", "psnr")
    ]
    expected = f"{wanted.difference:+.2f} [{wanted.low:+.2f}, {wanted.high:+.2f}]"
    assert differences["good minus regression"][3] == expected
    assert set(differences) >= {"poor minus good", "good minus source", "poor minus source", "poor minus regression"}


def test_an_evaluation_says_what_it_is_in_a_line(evaluated):
    assert repr(evaluated) == f"Evaluation(source, regression, good, poor; 3 subjects, {evaluated.folder})"


def test_a_notebook_shows_one_subject_without_an_interval_and_names_what_failed(cohort, tmp_path):
    dataset, arms = cohort
    folder = tmp_path / "arm"
    shutil.copytree(arms["good"], folder)
    [damaged] = (folder / "sub-02").rglob("*.nii.gz")
    damaged.write_bytes(b"")
    found = evaluate(dataset, {"<arm>": folder}, tmp_path / "out", subjects=["02", "03"])
    page = found._repr_html_()
    table = {row[0]: row for row in rows(page)}
    assert table["<arm>"][3].count("(") == 0
    assert table["<arm> minus source"][3].count("[") == 0
    assert table["sub-02"][1] == "<arm>"
    assert "<arm>" not in page
    assert repr(found).startswith("Evaluation(source, <arm>; 2 subjects, 1 failed, ")


def test_a_metric_that_cannot_be_computed_leaves_the_others(cli, tmp_path, monkeypatch):
    monkeypatch.setattr("cohort.SHAPE", (40, 48, 9))  # thinner than the window of SSIM
    raw, arms = write_cohort(tmp_path, ("01", "02"), {"good": 0.02})
    done = cli("evaluate", raw, arms["good"], "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "warning: sub-01: good: cannot be computed: ssim" in done.stderr
    scored = json.loads((tmp_path / "out" / "evaluation.json").read_text())["arms"]["good"]["head"]
    assert (scored["ssim"]["mean"], scored["ssim"]["n"]) == (None, 0)
    assert scored["psnr"]["n"] == 2
    assert scored["psnr"]["mean"] > 20
    page = tmp_path / "report.html"
    assert cli("report", tmp_path / "out", "-o", page).returncode == 0
    assert page.exists()


def test_an_arm_of_links_is_found_and_shown_as_it_was_scored(cohort, tmp_path):
    raw, arms = cohort
    store, linked = tmp_path / "store", tmp_path / "linked"
    store.mkdir()
    for number, path in enumerate(sorted(arms["good"].rglob("*.nii.gz"))):
        shutil.copy(path, store / f"key-{number}.nii.gz")
        path_of_link = store / "tree" / path.relative_to(arms["good"])
        path_of_link.parent.mkdir(parents=True)
        path_of_link.with_name(path.name.replace(".nii.gz", ".NII.GZ")).symlink_to(store / f"key-{number}.nii.gz")
        shutil.copy(path.with_name(path.name.replace(".nii.gz", ".json")), path_of_link.parent)
    linked.mkdir()
    for folder in (store / "tree").iterdir():
        (linked / folder.name).symlink_to(folder)
    found = evaluate(raw, {"good": linked}, tmp_path / "out")
    assert not found.failures
    again = evaluated_images(found.content.cases[0], found.content)
    scored = values(found, "good", "head", "psnr")[found.content.cases[0].case]
    assert METRICS["psnr"](again.target, again.arms["good"], again.head) == pytest.approx(scored)


def test_a_split_without_a_test_subject_is_named(cohort, tmp_path):
    with pytest.raises(DatasetError, match="no test subject"):
        evaluate(*cohort, tmp_path / "out", subjects=())


def test_a_synthetic_volume_is_no_truth_to_score_against(tmp_path):
    raw, arms = write_cohort(tmp_path, ("01", "02"), {"good": 0.02})
    target = raw / "sub-02" / "anat" / "sub-02_T2w.nii.gz"
    volume = read_volume(target)
    write_volume(target, volume.array, volume.affine, description=STAMP)
    found = evaluate(raw, arms, tmp_path / "out")
    assert [failure.case for failure in found.failures] == ["sub-02"]
    assert "a generator made this volume" in found.failures[0].reason
