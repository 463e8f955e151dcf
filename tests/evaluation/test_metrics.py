import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from unscanned.errors import DatasetError, SettingsError
from unscanned.evaluation.metrics import (
    METRICS,
    hfen,
    mae,
    mse,
    mutual_information,
    psnr,
    psnr_nie,
    psnr_one_gain,
    slice_mse,
    ssim,
    tissue_dice,
    tissue_volumes,
)


def volumes(shape=(17, 19, 16), noise=0.1, seed=0):
    random = np.random.default_rng(seed)
    target = random.random(shape).astype(np.float32)
    return target, (target + noise * random.standard_normal(shape)).astype(np.float32)


def ball(shape):
    grid = np.meshgrid(*(np.linspace(-1, 1, length) for length in shape), indexing="ij")
    return sum(axis**2 for axis in grid) < 0.8


def test_numbers_worked_out_by_hand():
    target, synthetic = np.array([[[0.0, 2.0]]]), np.array([[[1.0, 5.0]]])
    assert mae(target, synthetic) == 2
    assert mse(target, synthetic) == 5
    assert psnr(target, synthetic, data_range=10) == pytest.approx(20 * math.log10(10 / math.sqrt(5)))
    assert psnr_nie(target, synthetic) == pytest.approx(20 * math.log10(5 / math.sqrt(5)))


def test_the_peak_of_psnr_nie_comes_from_whichever_volume_is_brighter():
    target, synthetic = np.array([[[0.0, 7.0]]]), np.array([[[1.0, 5.0]]])
    assert psnr_nie(target, synthetic) == pytest.approx(20 * math.log10(7 / math.sqrt(2.5)))


@pytest.mark.parametrize(
    ("name", "perfect"),
    [
        ("mae", 0),
        ("mse", 0),
        ("psnr_nie", math.inf),
        ("psnr", math.inf),
        ("ssim", 1),
        ("psnr_one_gain", math.inf),
        ("hfen", 0),
        ("mutual_information", 2),
        ("tissue_dice", 1),
        ("tissue_volumes", 0),
    ],
)
@pytest.mark.parametrize("masked", [False, True])
def test_a_volume_compared_with_itself_is_perfect(name, perfect, masked):
    target, _ = volumes()
    assert METRICS[name](target, target, ball(target.shape) if masked else None) == perfect


def test_psnr_agrees_with_scikit_image():
    target, synthetic = volumes()
    assert psnr(target, synthetic, data_range=1.0) == pytest.approx(
        peak_signal_noise_ratio(target, synthetic, data_range=1.0), abs=1e-5
    )


def test_ssim_agrees_with_scikit_image():
    target, synthetic = volumes()
    expected, full = structural_similarity(
        target, synthetic, data_range=1.0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True
    )
    mask = ball(target.shape)
    assert ssim(target, synthetic, data_range=1.0) == pytest.approx(expected, abs=1e-6)
    assert ssim(target, synthetic, mask, data_range=1.0) == pytest.approx(float(full[mask].mean()), abs=1e-6)


def test_ssim_agrees_with_monai():
    import torch
    from monai.metrics.regression import SSIMMetric, compute_ssim_and_cs

    target, synthetic = volumes((24, 20, 22))
    tensors = [torch.from_numpy(array)[None, None] for array in (synthetic, target)]
    measured = ssim(target, synthetic, data_range=1.0)
    assert measured == pytest.approx(SSIMMetric(spatial_dims=3, data_range=1.0)(*tensors).item(), abs=1e-4)
    values, _ = compute_ssim_and_cs(
        *tensors, spatial_dims=3, kernel_size=[11] * 3, kernel_sigma=[1.5] * 3, data_range=1.0
    )
    assert measured == pytest.approx(values.mean().item(), abs=1e-4)


@pytest.mark.parametrize("corner", [(0, 0, 0), (20, 24, 9), (9, 11, 4)])
def test_ssim_in_a_small_mask_is_that_of_the_whole_map(corner):
    target, synthetic = volumes((30, 34, 18))
    mask = np.zeros(target.shape, bool)
    mask[tuple(slice(start, start + 4) for start in corner)] = True
    _, full = structural_similarity(
        target, synthetic, data_range=1.0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True
    )
    assert ssim(target, synthetic, mask, data_range=1.0) == pytest.approx(float(full[mask].mean()), abs=1e-5)


@given(st.integers(0, 2**32 - 1), st.floats(0.01, 10), st.floats(-5, 5))
@settings(max_examples=25, deadline=None)
def test_mae_and_mse_scale_with_the_intensities_and_ignore_a_shift(seed, factor, shift):
    target, synthetic = (array.astype(np.float64) for array in volumes((5, 4, 6), seed=seed))
    assert mae(factor * target + shift, factor * synthetic + shift) == pytest.approx(factor * mae(target, synthetic))
    assert mse(factor * target + shift, factor * synthetic + shift) == pytest.approx(factor**2 * mse(target, synthetic))


@pytest.mark.parametrize("name", METRICS)
def test_only_voxels_inside_the_mask_count(name):
    target, synthetic = volumes((30, 30, 30))
    mask = np.zeros(target.shape, bool)
    mask[12:18, 12:18, 12:18] = True
    far = np.ones(target.shape, bool)
    far[6:24, 6:24, 6:24] = False
    changed = np.where(far, 40.0, synthetic).astype(np.float32)
    assert METRICS[name](target, changed, mask) == METRICS[name](target, synthetic, mask)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slice_mse_is_the_mse_of_each_slice_alone(axis):
    target, synthetic = volumes()
    mask = ball(target.shape)
    whole, inside = slice_mse(target, synthetic, axis=axis), slice_mse(target, synthetic, mask, axis=axis)
    for index in range(target.shape[axis]):
        one, other, voxels = (array.take(index, axis) for array in (target, synthetic, mask))
        assert whole[index] == pytest.approx(mse(one, other))
        if voxels.any():
            assert inside[index] == pytest.approx(mse(one, other, voxels))
        else:
            assert math.isnan(inside[index])


@pytest.mark.parametrize("name", METRICS)
class TestRefusals:
    def test_an_empty_mask_is_refused(self, name):
        target, synthetic = volumes()
        with pytest.raises(DatasetError, match="mask is empty"):
            METRICS[name](target, synthetic, np.zeros(target.shape, bool))

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_a_voxel_that_is_not_finite_is_refused(self, name, value):
        target, synthetic = volumes()
        synthetic[3, 4, 5] = value
        with pytest.raises(DatasetError, match=f"found 1 of {target.size}"):
            METRICS[name](target, synthetic)

    def test_different_shapes_are_refused(self, name):
        target, synthetic = volumes()
        with pytest.raises(DatasetError, match="another shape"):
            METRICS[name](target, synthetic[1:])
        with pytest.raises(DatasetError, match="mask has another shape"):
            METRICS[name](target, synthetic, np.ones((2, 2, 2), bool))


@pytest.mark.parametrize("name", ["psnr", "ssim"])
@pytest.mark.parametrize("data_range", [0, -1, math.nan, math.inf])
def test_a_data_range_that_is_no_range_is_refused(name, data_range):
    target, synthetic = volumes()
    with pytest.raises(SettingsError, match="data_range"):
        METRICS[name].function(target, synthetic, data_range=data_range)


def test_psnr_nie_without_a_peak_is_refused():
    with pytest.raises(DatasetError, match="no peak"):
        psnr_nie(np.full((2, 2, 2), -1.0), np.full((2, 2, 2), -2.0))


def test_ssim_of_a_volume_thinner_than_its_window_is_refused():
    target, synthetic = volumes((30, 30, 8))
    with pytest.raises(DatasetError, match="smaller than the window"):
        ssim(target, synthetic, np.ones(target.shape, bool), data_range=1.0)


def test_psnr_after_one_gain_forgives_a_gain_and_nothing_else():
    target, synthetic = volumes()
    mask = ball(target.shape)
    plain = psnr_one_gain(target, synthetic, mask, data_range=1.0)
    assert psnr_one_gain(target, 3.7 * synthetic, mask, data_range=1.0) == pytest.approx(plain, abs=1e-4)
    assert psnr_one_gain(target, synthetic + 0.5, mask, data_range=1.0) < plain - 1
    best = max(psnr(target, gain * synthetic, mask, data_range=1.0) for gain in np.linspace(0.9, 1.1, 201))
    assert plain == pytest.approx(best, abs=1e-3)
    assert psnr_one_gain(target, np.zeros_like(target), data_range=1.0) == pytest.approx(
        psnr(target, np.zeros_like(target), data_range=1.0), abs=1e-4
    )


def test_hfen_is_the_norm_of_the_filtered_difference_and_sees_edges_not_levels():
    from scipy.ndimage import correlate, gaussian_laplace

    target, synthetic = volumes((24, 20, 22))
    assert hfen(target, target + 0.3) < 1e-3
    assert hfen(target, np.zeros_like(target)) == pytest.approx(1)
    steps = np.arange(-7, 8)
    squared = sum(axis.astype(float) ** 2 for axis in np.meshgrid(steps, steps, steps))
    kernel = (squared / 1.5**4 - 3 / 1.5**2) * np.exp(-squared / (2 * 1.5**2))
    filtered = [correlate(array.astype(np.float64), kernel, mode="reflect") for array in (synthetic - target, target)]
    expected = np.linalg.norm(filtered[0]) / np.linalg.norm(filtered[1])
    assert hfen(target, synthetic) == pytest.approx(expected, rel=0.02)
    blurred = synthetic - 0.5 * gaussian_laplace(target, 1.5)
    assert hfen(target, blurred) > hfen(target, synthetic)


def test_mutual_information_agrees_with_scikit_image_and_does_not_mind_the_curve():
    from skimage.metrics import normalized_mutual_information

    target, synthetic = (np.clip(array, 0, 1) for array in volumes())
    for array in (target, synthetic):
        array.flat[:2] = 0, 1
    measured = mutual_information(target, synthetic, data_range=1.0)
    assert measured == pytest.approx(normalized_mutual_information(target, synthetic, bins=64), abs=1e-9)
    assert mutual_information(target, 1 - target, data_range=1.0) == pytest.approx(2, abs=0.02)
    independent = np.random.default_rng(9).random((40, 40, 40))
    assert mutual_information(np.roll(independent, 7, 1), independent, data_range=1.0) < 1.02
    assert mutual_information(np.zeros((3, 3, 3)), np.ones((3, 3, 3)), data_range=1.0) == 2


def test_tissues_are_told_by_their_own_thresholds():
    target = np.repeat([0.1, 0.5, 0.9], 100) + np.random.default_rng(0).uniform(-0.05, 0.05, 300)
    assert tissue_dice(target, 0.3 * target + 0.2) == 1
    moved = target.copy()
    moved[90:100] = 0.5  # a tenth of the dark voxels became middle ones
    assert tissue_dice(target, moved) == pytest.approx((2 * 90 / 190 + 2 * 100 / 210 + 1) / 3)
    assert tissue_volumes(target, moved) == pytest.approx((0.1 + 0.1 + 0) / 3)
    assert tissue_dice(target, np.zeros_like(target)) == pytest.approx(2 * 100 / 400 / 3)
    assert tissue_volumes(target, np.zeros_like(target)) == pytest.approx((2 + 1 + 1) / 3)


@pytest.mark.parametrize("far", [1e6, 3e38])
def test_one_voxel_far_beyond_all_others_hides_no_classes(far):
    target = np.random.default_rng(0).random((10, 10, 10), np.float32)
    damaged, upside_down = target.copy(), 1 - target
    damaged[0, 0, 0] = upside_down[0, 0, 0] = far
    assert tissue_dice(target, damaged) > 0.98
    assert tissue_volumes(target, damaged) < 0.02
    assert tissue_dice(damaged, upside_down) < 0.4


@pytest.mark.parametrize("name", ["ssim", "hfen", "mutual_information", "tissue_dice", "tissue_volumes"])
def test_a_metric_from_the_literature_names_its_source_in_reports_and_in_the_docs(name):
    source = re.compile(r"[A-Z]\w+ (et al\. |and \w+ )?(19|20)\d\d")
    assert source.search(METRICS[name].definition)
    page = (Path(__file__).parents[2] / "docs" / "method.md").read_text(encoding="utf-8")
    (row,) = [line for line in page.splitlines() if line.startswith("|") and f"`{name}`" in line.split("|")[1]]
    assert re.search(r"\(.*[A-Z]\w+.*, .* (19|20)\d\d.*\)", row)
