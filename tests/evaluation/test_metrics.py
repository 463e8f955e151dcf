import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from unscanned.errors import DatasetError, SettingsError
from unscanned.evaluation.metrics import METRICS, mae, mse, psnr, psnr_nie, slice_mse, ssim


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
    ("name", "perfect"), [("mae", 0), ("mse", 0), ("psnr_nie", math.inf), ("psnr", math.inf), ("ssim", 1)]
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
