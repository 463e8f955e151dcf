"""The limit that noise sets: the noise-free target of a simulated dataset, scored beside every arm."""

import json
import math
import re
import shutil

import numpy as np
import pytest
from scipy import ndimage

from unscanned.errors import SettingsError
from unscanned.evaluation.evaluate import evaluate
from unscanned.report.page import write_report
from unscanned.simulation.simulate import simulate
from unscanned.volumes.intensity import head_mask, head_scale
from unscanned.volumes.nifti import read_volume, write_volume

SMALL = {"subjects": 2, "shape": (32, 36, 32), "noise": (0.03, 0.03), "seed": 2}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    root = tmp_path_factory.mktemp("ceiling")
    simulate(root / "heads", clean=True, **SMALL)
    for path in sorted((root / "heads").glob("sub-*/anat/*_T2w.nii.gz")):
        volume = read_volume(path)
        write_volume(root / "blurred" / path.name, ndimage.gaussian_filter(volume.array, 1.0), volume.affine)
    return root


def test_the_noise_free_target_scores_what_its_noise_allows_and_every_arm_is_told_how_far_below_it_is(cohort, tmp_path):
    evaluation = evaluate(cohort / "heads", {"blurred": cohort / "blurred"}, tmp_path)
    assert evaluation.arms == ("source", "noise-free", "tissues", "blurred")
    for subject in ("001", "002"):
        path = cohort / "heads" / f"sub-{subject}" / "anat" / f"sub-{subject}_T2w.nii.gz"
        target = read_volume(path)
        sigma = json.loads(path.with_name(f"sub-{subject}_T2w.json").read_text())["Simulation"]["NoiseSigma"]
        scale = head_scale(target.array, head_mask(target.array, target.affine))
        [found] = [
            row.values["psnr"]
            for row in evaluation.scores
            if (row.subject, row.arm, row.region) == (subject, "noise-free", "head")
        ]
        # where there is signal, a Rician magnitude varies by sigma around it
        assert found == pytest.approx(-20 * math.log10(sigma / scale), abs=0.6)
    means = {arm: evaluation.content.arms[arm]["head"]["psnr"].mean for arm in evaluation.arms}
    [row] = [
        row
        for row in evaluation.content.comparisons
        if (row.arm, row.against, row.region, row.metric) == ("blurred", "noise-free", "head", "psnr")
    ]
    assert row.difference == pytest.approx(means["blurred"] - means["noise-free"])
    assert row.difference < -3


def test_the_terminal_says_how_far_below_what_noise_allows_an_arm_is(cli, cohort, tmp_path):
    result = cli("evaluate", cohort / "heads", cohort / "blurred", "-o", tmp_path / "out")
    assert result.returncode == 0
    assert re.search(r"blurred: PSNR \d+\.\d dB below what noise allows", result.stdout)
    assert re.search(r"blurred: PSNR \d+\.\d dB (above|below) what the literature's tissue values allow", result.stdout)


def test_the_report_tells_the_limits_from_the_arms(cohort, tmp_path):
    evaluate(cohort / "heads", {"blurred": cohort / "blurred"}, tmp_path)
    page = write_report(tmp_path, tmp_path / "report.html").read_text(encoding="utf-8")
    assert re.search(
        r"<b>blurred</b>.* dB below what noise allows and \d+\.\d dB (above|below) what the literature", page
    )
    assert '<th scope="row">noise-free <small>limit</small></th>' in page
    assert '<th scope="row">blurred</th>' in page


def test_the_label_maps_that_were_simulated_are_taken_where_none_are_named(cohort, tmp_path):
    arms = {"blurred": cohort / "blurred"}
    own = evaluate(cohort / "heads", arms, tmp_path / "own")
    fluid = own.content.arms["blurred"]["tissue: cerebrospinal fluid"]["psnr"]
    assert fluid.n == 2
    assert "tissue: air" not in own.content.regions
    truth = cohort / "heads" / "derivatives" / "truth"
    named = evaluate(cohort / "heads", arms, tmp_path / "named", labels=truth)
    assert (named.scores, named.content.regions) == (own.scores, own.content.regions)
    shutil.copytree(cohort / "heads", tmp_path / "heads")
    for path in (tmp_path / "heads").rglob("*_dseg.nii.gz"):
        path.unlink()
    without = evaluate(tmp_path / "heads", arms, tmp_path / "without")
    assert list(without.content.regions) == ["head", "volume"]


def test_the_terminal_has_a_row_for_each_tissue(cli, cohort, tmp_path):
    result = cli("evaluate", cohort / "heads", cohort / "blurred", "-o", tmp_path / "out")
    [row] = [line for line in result.stdout.splitlines() if "eye fluid" in line]
    assert len(re.findall(r"\d+\.\d\d", row)) == 4  # of the source, both limits and the arm


def test_a_dataset_without_noise_free_images_has_no_ceiling(cohort, tmp_path):
    simulate(tmp_path / "heads", **SMALL)
    evaluation = evaluate(tmp_path / "heads", {"blurred": cohort / "blurred"}, tmp_path / "out")
    assert evaluation.arms == ("source", "blurred")
    assert not [row for row in evaluation.content.comparisons if row.against in ("noise-free", "tissues")]


def test_the_tissues_alone_explain_less_than_everything_but_the_noise_and_more_than_the_source(cohort, tmp_path):
    evaluation = evaluate(cohort / "heads", {"blurred": cohort / "blurred"}, tmp_path)
    means = {arm: evaluation.content.arms[arm]["head"]["psnr"].mean for arm in evaluation.arms}
    assert means["source"] + 3 < means["tissues"] < means["noise-free"]


def test_the_mean_over_patients_is_a_limit_too_and_as_near_as_so_few_of_them_allow(cohort, tmp_path):
    simulate(tmp_path / "heads", clean=True, patients=8, **SMALL)
    image = "derivatives/truth/sub-001/anat/sub-001_desc-tissues_T2w.nii.gz"
    sidecar = tmp_path / "heads" / image.replace("tissues_T2w.nii.gz", "posterior_T2w.json")
    assert json.loads(sidecar.read_text())["Simulation"]["Patients"] == 8
    assert (tmp_path / "heads" / image).read_bytes() == (cohort / "heads" / image).read_bytes()
    evaluation = evaluate(tmp_path / "heads", {"blurred": cohort / "blurred"}, tmp_path / "out")
    assert evaluation.arms == ("source", "noise-free", "tissues", "posterior", "blurred")
    means = {arm: evaluation.content.arms[arm]["head"]["psnr"].mean for arm in evaluation.arms}
    # Where patients differ little, the literature's values are about their mean; a mean over 8 is not quite.
    assert means["tissues"] - 10 * math.log10(1 + 1 / 8) < means["posterior"] < means["noise-free"]
    assert any(row.against == "posterior" for row in evaluation.content.comparisons if row.arm == "blurred")
    # In unit scale of another percentile the mean over patients has a percentile of its own, as a network's output has.
    other = evaluate(tmp_path / "heads", {"blurred": cohort / "blurred"}, tmp_path / "other", percentile=95)
    scores = {row.case: row.values["psnr"] for row in other.scores if (row.arm, row.region) == ("posterior", "head")}
    for case in ("sub-001", "sub-002"):
        target = read_volume(tmp_path / "heads" / case / "anat" / f"{case}_T2w.nii.gz")
        truth = tmp_path / "heads/derivatives/truth" / case / "anat"
        mean = read_volume(truth / f"{case}_desc-posterior_T2w.nii.gz")
        head = head_mask(target.array, target.affine)
        one, two = (image.array / head_scale(image.array, head, 95) for image in (mean, target))
        assert scores[case] == pytest.approx(-10 * math.log10(np.mean((one - two)[head] ** 2)), abs=0.01)


@pytest.mark.parametrize("name", ["noise-free", "tissues", "posterior"])
def test_no_arm_may_take_the_name_of_a_ceiling(cohort, tmp_path, name):
    with pytest.raises(SettingsError, match="the name is taken"):
        evaluate(cohort / "heads", {name: cohort / "blurred"}, tmp_path)


def test_a_noise_free_image_that_cannot_be_read_fails_alone(cohort, tmp_path):
    simulate(tmp_path / "heads", clean=True, **SMALL)
    truth = tmp_path / "heads" / "derivatives" / "truth" / "sub-001" / "anat" / "sub-001_desc-noisefree_T2w.nii.gz"
    truth.write_bytes(b"no volume")
    evaluation = evaluate(tmp_path / "heads", {"blurred": cohort / "blurred"}, tmp_path / "out")
    assert [(row.case, row.arm) for row in evaluation.failures] == [("sub-001", "noise-free")]
    assert np.isfinite([row.values["psnr"] for row in evaluation.scores if row.arm == "blurred"]).all()
