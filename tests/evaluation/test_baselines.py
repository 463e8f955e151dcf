import numpy as np
import pytest

from unscanned.errors import DatasetError
from unscanned.evaluation.baselines import JointSums, Regression, fit_regression, source_as_target


def draw(seed, shape=(30, 30, 30)):
    return np.random.default_rng(seed).random(shape).astype(np.float32)


def everywhere(array):
    return np.ones(array.shape, bool)


def test_the_source_baseline_has_the_targets_mean_and_sd_inside_the_head():
    source, target = draw(0), 3 * draw(1) + 2
    mask = draw(2) < 0.5
    predicted = source_as_target(source, target, mask)
    assert predicted[mask].mean() == pytest.approx(target[mask].mean(), rel=1e-4)
    assert predicted[mask].std() == pytest.approx(target[mask].std(), rel=1e-4)
    assert np.array_equal(predicted[~mask], source[~mask])


def test_a_source_that_is_a_scaled_target_is_a_perfect_prediction():
    target = draw(0)
    assert source_as_target(0.3 * target + 0.1, target, everywhere(target)) == pytest.approx(target, abs=1e-5)


def test_a_constant_source_is_refused():
    with pytest.raises(DatasetError, match="no contrast"):
        source_as_target(np.ones((4, 4, 4)), draw(0, (4, 4, 4)), np.ones((4, 4, 4), bool))


def test_the_regression_learns_a_function_that_is_not_monotone():
    pairs = [(source, np.sin(6 * source), everywhere(source)) for source in (draw(0), draw(1))]
    curve = fit_regression(pairs)
    fresh = draw(2)
    assert curve(fresh, everywhere(fresh)) == pytest.approx(np.sin(6 * fresh), abs=0.02)


def test_the_regression_is_the_conditional_mean():
    source = np.repeat([0.2, 0.8], 500).reshape(10, 10, 10)
    target = np.tile([1.0, 3.0], 500).reshape(10, 10, 10) + source
    curve = fit_regression([(source, target, everywhere(source))])
    assert curve(np.array([0.2, 0.8]), np.array([True, True])) == pytest.approx([2.2, 2.8])


def test_the_regression_does_not_depend_on_how_voxels_are_spread_over_subjects():
    source, target = draw(0), draw(1)
    whole = fit_regression([(source, target, everywhere(source))])
    halves = fit_regression([(source[i], target[i], everywhere(source[i])) for i in (slice(0, 11), slice(11, 30))])
    assert whole.source == pytest.approx(halves.source)
    assert whole.target == pytest.approx(halves.target)


def test_only_the_head_is_fitted_and_predicted():
    source, mask = draw(0), draw(1) < 0.5
    curve = fit_regression([(source, np.where(mask, 1 - source, 50.0), mask)])
    predicted = curve(source, mask)
    assert predicted[mask] == pytest.approx(1 - source[mask], abs=0.02)
    assert np.array_equal(predicted[~mask], source[~mask])


def test_beyond_the_training_intensities_the_curve_is_constant():
    curve = fit_regression([(draw(0), draw(0), everywhere(draw(0)))])
    low, high = curve(np.array([-9.0, 9.0]), np.array([True, True]))
    assert (low, high) == pytest.approx((curve.target[0], curve.target[-1]))


def test_the_regression_survives_its_curve():
    curve = fit_regression([(draw(0), draw(1), everywhere(draw(0)))])
    again = Regression.from_curve(curve.curve())
    assert np.array_equal(curve.source, again.source)
    assert np.array_equal(curve.target, again.target)


def test_no_pair_at_all_is_refused():
    with pytest.raises(DatasetError, match="no voxel"):
        fit_regression([])


def test_sums_without_a_pair_are_those_of_the_others():
    first, second, third = ((draw(n), draw(n + 1), everywhere(draw(n))) for n in (0, 2, 4))
    sums = [JointSums.of(*pair) for pair in (first, second, third)]
    left = (sum(sums, JointSums.none()) - sums[1]).fit()
    others = fit_regression([first, third])
    assert left.source == pytest.approx(others.source, rel=1e-12)
    assert left.target == pytest.approx(others.target, rel=1e-12)
