import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unscanned.errors import VolumeError
from unscanned.volumes.intensity import Contrast, head_mask, head_scale
from unscanned.volumes.nifti import read_volume


def ball(shape, radius, centre=None):
    centre = [(n - 1) / 2 for n in shape] if centre is None else centre
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    return np.linalg.norm(index - centre, axis=-1) <= radius


def test_the_mask_of_a_ball_is_the_ball_to_a_voxel():
    truth = ball((40, 41, 42), 14)
    mask = head_mask(100.0 * truth)
    assert not (mask & ~ball((40, 41, 42), 16)).any()
    assert not (ball((40, 41, 42), 13) & ~mask).any()


@pytest.mark.parametrize("scale", [1e-3, 1.0, 3e4])
def test_the_mask_does_not_depend_on_the_intensity_scale(scale):
    array = ball((30, 31, 32), 10) * np.random.default_rng(0).uniform(0.5, 1, (30, 31, 32))
    assert np.array_equal(head_mask(array * scale), head_mask(array))


def test_dark_holes_inside_the_head_belong_to_it_and_bright_specks_outside_do_not():
    array = 100.0 * ball((48, 48, 48), 18)
    array[ball((48, 48, 48), 6)] = 0
    array[2:4, 2:4, 2:4] = 1000
    mask = head_mask(array)
    assert mask[24, 24, 24]
    assert not mask[:5, :5, :5].any()


def test_rician_noise_of_the_air_is_not_head():
    random = np.random.default_rng(0)
    head = ball((64, 64, 64), 22)
    noisy = np.hypot(100 * head + random.normal(0, 2, head.shape), random.normal(0, 2, head.shape))
    mask = head_mask(noisy)
    assert not (mask & ~ball((64, 64, 64), 24)).any()
    assert not (head & ~mask).any()


def test_one_spike_does_not_hide_the_head():
    array = 100.0 * ball((40, 40, 40), 14)
    array[20, 20, 20] = 1e6
    assert head_mask(array).sum() > 0.9 * ball((40, 40, 40), 14).sum()


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 40, 40), (97, 3, 101), (96, 95, 5)])
def test_the_mask_has_the_shape_of_the_array(shape):
    array = np.random.default_rng(0).uniform(0.5, 1, shape).astype(np.float32)
    mask = head_mask(array)
    assert mask.shape == shape
    assert mask.dtype == bool


def test_nothing_bright_is_no_head():
    assert not head_mask(np.zeros((8, 9, 10))).any()
    assert not head_mask(np.full((8, 9, 10), -1.0)).any()


def test_simulated_heads_fill_a_sensible_share_of_their_field_of_view(tiny_dataset):
    scans = sorted(tiny_dataset.rglob("*w.nii.gz"))
    assert len(scans) == 8
    for scan in scans:
        mask = head_mask(read_volume(scan).array)
        assert 0.3 < mask.mean() < 0.75, scan
        assert mask[mask.shape[0] // 2, mask.shape[1] // 2, mask.shape[2] // 2], scan


@pytest.mark.parametrize(("subject", "low", "high"), [("ms07", 0.15, 0.3), ("mslong01", 0.2, 0.6)])
def test_real_heads_fill_a_sensible_share_and_agree_between_contrasts(shared_data, subject, low, high):
    folder = shared_data / "ms-t1-t2-flair" / f"sub-{subject}"
    masks = [head_mask(read_volume(next(folder.rglob(f"*_{suffix}.nii.gz"))).array) for suffix in ("T1w", "T2w")]
    for mask in masks:
        assert low < mask.mean() < high
    dice = 2 * (masks[0] & masks[1]).sum() / (masks[0].sum() + masks[1].sum())
    assert dice > 0.9


def test_the_scale_is_the_percentile_inside_the_head_alone():
    array = np.concatenate([np.full(1000, 1e6), np.arange(1001.0)]).reshape(3, 23, 29)
    mask = np.concatenate([np.zeros(1000, bool), np.ones(1001, bool)]).reshape(array.shape)
    assert head_scale(array, mask, 99.9) == pytest.approx(999.0)
    assert head_scale(array, mask, 50) == pytest.approx(500.0)


def test_a_few_extreme_voxels_do_not_set_the_scale():
    array = np.random.default_rng(0).uniform(50, 100, (30, 30, 30))
    mask = np.ones(array.shape, bool)
    plain = head_scale(array, mask)
    array[:2, :2, :2] = 1e6
    assert head_scale(array, mask) == pytest.approx(plain, rel=0.01)


@pytest.mark.parametrize("mask", [False, True])
def test_a_scan_without_a_head_is_refused_by_its_name(mask):
    array = np.full((4, 4, 4), -1.0)
    with pytest.raises(VolumeError, match=r"a\.nii: no contrast inside the head"):
        head_scale(array, np.full(array.shape, mask), where="a.nii")


@given(st.floats(-3, 3), st.floats(0.01, 10), st.integers(0, 1000))
def test_standardizing_and_back_is_exact_to_rounding(mean, std, seed):
    contrast = Contrast(scale=1.0, mean=mean, std=std)
    unit = np.random.default_rng(seed).uniform(0, 1.5, (3, 4, 5)).astype(np.float32)
    z = contrast.standardize(unit)
    assert z.dtype == contrast.unit(z).dtype == np.float32
    np.testing.assert_allclose(z, (unit.astype(float) - mean) / std, rtol=1e-5, atol=1e-6 * (1 + abs(mean)) / std)
    np.testing.assert_allclose(contrast.unit(z), unit, atol=1e-6 * (2 + abs(mean)))
