import pytest
from cohort import write_cohort

from unscanned.evaluation.evaluate import evaluate
from unscanned.formats.evaluation import Comparison
from unscanned.report.verdict import below_baselines, explain_psnr, verdicts


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    root = tmp_path_factory.mktemp("cohort")
    raw, arms = write_cohort(root, ("01", "02", "03"), {"resgan": 0.02, "unet": 0.02, "noise": 0.4})
    return evaluate(raw, arms, root / "evaluation", subjects=("02", "03"), training=("01",)).content


def with_psnr(content, rows, ssim=()):
    """The content with these PSNR comparisons inside the head: (arm, against, difference, low, high)."""
    made = [
        Comparison(
            arm=arm,
            against=against,
            region="head",
            metric=metric,
            difference=difference,
            sd=None,
            n=1 if low is None else 5,
            low=low,
            high=high,
            confidence=0.95,
            wilcoxon_p=None,
        )
        for metric, given in (("psnr", rows), ("ssim", ssim))
        for arm, against, difference, low, high in given
    ]
    return content.model_copy(update={"comparisons": made})


def test_the_verdict_names_the_difference_with_its_interval_and_what_is_not_shown(content):
    rows = [
        ("resgan", "regression", 2.26, 1.94, 2.6),
        ("unet", "regression", 2.1, 1.6, 2.55),
        ("unet", "resgan", -0.16, -0.5, 0.2),
        ("noise", "regression", -8.0, -9.0, -7.0),
        ("noise", "resgan", -10.2, None, None),
    ]
    told = {verdict.arm: verdict for verdict in verdicts(with_psnr(content, rows))}
    assert told["resgan"].text == "is 2.3 dB [1.9, 2.6] above the voxelwise regression."
    assert told["unet"].text == (
        "is 2.1 dB [1.6, 2.5] above the voxelwise regression; is not better than resgan: −0.2 dB [−0.5, +0.2] holds 0."
    )
    assert told["noise"].text == (
        "is 8.0 dB [7.0, 9.0] below the voxelwise regression; is 10.2 dB below resgan; one subject gives no interval."
    )
    assert [told[arm].side for arm in ("resgan", "unet", "noise")] == ["above", "above", "below"]


def test_a_gain_that_may_be_chance_is_not_called_none(content):
    (verdict, *_) = verdicts(with_psnr(content, [("resgan", "regression", 3.0, -0.1, 6.1)]))
    assert verdict.text == "is not shown to be better than the voxelwise regression: +3.0 dB [−0.1, +6.1] holds 0."


def test_the_limits_of_a_simulated_target_are_told(content):
    rows = [
        ("resgan", "regression", 2.26, 1.94, 2.6),
        ("resgan", "tissues", 0.4, -1.0, 1.8),
        ("resgan", "noise-free", -12.34, -14.0, -10.0),
    ]
    (verdict, *_) = verdicts(with_psnr(content, rows))
    assert verdict.text == (
        "is 2.3 dB [1.9, 2.6] above the voxelwise regression. It is 12.3 dB below what noise allows and 0.4 dB above "
        "what the literature's tissue values allow."
    )


def test_ssim_that_says_the_opposite_is_told(content):
    rows = [("resgan", "regression", 2.0, 1.0, 3.0)]
    opposite = [("resgan", "regression", -0.05, -0.08, -0.02)]
    assert "other way round: −0.050 against the voxelwise" in verdicts(with_psnr(content, rows, opposite))[0].text
    open_ = [("resgan", "regression", -0.05, -0.08, 0.02)]
    assert "other way round" not in verdicts(with_psnr(content, rows, open_))[0].text


def test_verdicts_of_a_real_evaluation_agree_with_its_differences(content):
    told = {verdict.arm: verdict for verdict in verdicts(content)}
    assert "above the voxelwise regression" in told["resgan"].text
    assert told["noise"].side == "below"
    assert below_baselines(content)["noise"] == ["source", "regression"]
    assert "resgan" not in below_baselines(content)


def test_two_psnrs_are_explained_and_their_disagreement_is_named(content):
    assert "different peaks" in explain_psnr(content)
    assert "disagree" not in explain_psnr(content)
    arms = {arm: {"head": dict(regions["head"])} for arm, regions in content.arms.items()}
    for name, arm in (("psnr", "resgan"), ("psnr_nie", "unet")):
        arms[arm]["head"][name] = arms[arm]["head"][name].model_copy(update={"mean": 60.0})
    told = explain_psnr(content.model_copy(update={"arms": arms}))
    assert "resgan is above unet in PSNR, and below it in PSNR, Nie" in told


def test_an_evaluation_without_psnr_has_no_verdict(content):
    without = content.model_copy(update={"definitions": {"mae": "mean absolute error"}})
    assert verdicts(without) == []
    assert explain_psnr(without) == ""
