"""A model with a spacing takes a scan of any voxels, direction and field of view, and gives it back on its own grid.

The network is the identity, so that what a scan loses on the way to the model's grid and back is all that is seen.
"""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as example_settings
from hypothesis import strategies as st
from peak_memory import MEASURABLE, WHERE, in_fresh_process, peak_growth_mib
from scipy import ndimage
from scipy.spatial.transform import Rotation
from seams import seam_index
from stored import ORDERS, back, head, stored

from unscanned.evaluation.metrics import hfen, psnr, ssim
from unscanned.models import generators
from unscanned.settings import resolve
from unscanned.synthesis.model import Model
from unscanned.synthesis.model_file import load_model, save_model
from unscanned.synthesis.sidecar import read_sidecar
from unscanned.synthesis.synthesize import synthesize
from unscanned.synthesis.verify import verify
from unscanned.volumes.intensity import Contrast, Normalization, head_mask, head_scale
from unscanned.volumes.nifti import Volume, write_volume

SPACING_MM = 4.0
SMALL = {"patch": 16, "validation_stride": 16}


def model_of(*, spacing_mm=SPACING_MM, shape=(16, 16, 16), is_identity=True, averages=False, **synthesis):
    """A model whose network gives back what it gets, in unit scale, or has fresh weights."""
    torch.manual_seed(0)
    network = generators.build("small", residual=True).eval()
    if is_identity:
        *_, last = (layer for layer in network.modules() if isinstance(layer, torch.nn.Conv3d))
        torch.nn.init.zeros_(last.weight)
        torch.nn.init.zeros_(last.bias)
    overrides = {
        "generator": {"name": "small", "residual": True},
        "discriminator": {"name": "small"},
        "prepare": {"shape": list(shape), "spacing_mm": spacing_mm, "averages": averages},
        "training": SMALL,
        "synthesis": {"stride": 16, **synthesis},
        "context": {"stride": 16},
    }
    contrast = Contrast(1.0, 0.2, 0.3, 0.0)
    return Model([network], resolve("resgan", overrides=overrides), Normalization(99.9, contrast, contrast))


def scan_of(shape, spacing_mm, degrees=(0, 0, 0), order=0, radius_mm=60.0, shift_mm=(0, 0, 0)):
    """A smooth head of that radius around the middle of a grid, which it may fill or reach beyond."""
    rotation = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1) - (np.array(shape) - 1) / 2
    x, y, z = np.moveaxis((index * spacing_mm) @ rotation.T - shift_mm, -1, 0)
    distance = np.sqrt(x**2 + (y / 1.2) ** 2 + z**2)
    inside = 1 / (1 + np.exp((distance - radius_mm) / 6))
    array = 900 * inside * (0.7 + 0.2 * np.sin(x / 20) * np.cos(y / 25) + 0.1 * np.sin(z / 22))
    affine = np.eye(4)
    affine[:3, :3] = rotation * spacing_mm
    return stored(Volume(array.astype(np.float32), affine), ORDERS[order])


def textured(shape=(96, 88, 60), spacing_mm=(1.0, 1.0, 2.0)):
    """A head with detail that a grid of 2 mm cannot hold."""
    scan = scan_of(shape, spacing_mm, radius_mm=36.0)
    grain = ndimage.gaussian_filter(np.random.default_rng(0).standard_normal(shape), 0.7).astype(np.float32)
    return Volume(scan.array * (1 + 0.8 * grain), scan.affine)


def unit(volume):
    mask = head_mask(volume.array, volume.affine)
    return volume.array / head_scale(volume.array, mask), mask


@pytest.mark.parametrize("detail", ["none", "source"])
@example_settings(deadline=None, max_examples=25)
@given(
    shape=st.tuples(st.integers(20, 44), st.integers(20, 44), st.integers(12, 40)),
    in_plane_mm=st.floats(1.5, 5.0),
    slices_mm=st.floats(1.5, 8.0),
    degrees=st.tuples(*[st.floats(-40, 40)] * 3),
    order=st.integers(0, 47),
    radius_mm=st.floats(40, 75),
    shift_mm=st.tuples(*[st.floats(-15, 15)] * 3),
    averages=st.booleans(),
    mode=st.sampled_from(["patches", "volume"]),
)
def test_any_scan_comes_back_whole_on_its_own_grid(
    detail, shape, in_plane_mm, slices_mm, degrees, order, radius_mm, shift_mm, averages, mode
):
    """Thin and thick slices, oblique grids, heads that the field of view cuts and heads beyond the training grid."""
    spacing_mm = (in_plane_mm, in_plane_mm, slices_mm)
    scan = scan_of(shape, spacing_mm, degrees, order, radius_mm, shift_mm)
    made = model_of(detail=detail, averages=averages, mode=mode, shape=(24, 24, 24)).synthesize(scan)
    assert made.array.shape == scan.array.shape
    assert np.array_equal(made.affine, scan.affine)
    expected, mask = unit(scan)
    assert made.array[mask & (expected > 0.2)].min() > 0.05  # nothing of the head is cut off
    error = np.abs(made.array - expected)[mask]
    assert np.sqrt(np.mean(error**2)) < 0.03
    assert error.max() < 0.2


@pytest.mark.parametrize("crop", ["auto", "always", "never"])
@pytest.mark.parametrize("detail", ["none", "source"])
def test_the_order_of_axes_changes_nothing_where_a_scan_is_resampled(crop, detail):
    model = model_of(is_identity=False, detail=detail, averages=True, shape=(20, 20, 20))
    first = head((33, 40, 22), (3.0, 2.5, 5.0), (4.0, 0.0, 45.0))
    made = model.synthesize(first, crop=crop).array
    for order in ORDERS[1::5]:
        other = model.synthesize(stored(first, order), crop=crop).array
        np.testing.assert_allclose(back(other, order), made, atol=1e-5 * np.abs(made).max())


def test_detail_of_the_source_is_kept_that_the_grid_of_the_model_cannot_hold():
    scan = textured()
    model = model_of(spacing_mm=2.0)
    expected, mask = unit(scan)
    plain, detailed = (model.synthesize(scan, detail=name).array for name in ("none", "source"))
    assert psnr(expected, detailed, mask, data_range=1.0) > psnr(expected, plain, mask, data_range=1.0) + 5
    assert ssim(expected, detailed, mask, data_range=1.0) > ssim(expected, plain, mask, data_range=1.0) + 0.05
    assert hfen(expected, detailed, mask) < 0.5 * hfen(expected, plain, mask)


def test_detail_that_the_synthetic_volume_does_not_share_is_not_added():
    """A contrast that the network keeps flat stays flat, whatever detail the source has."""
    scan = textured()
    model = model_of(spacing_mm=2.0)
    flat = Contrast(1.0, 0.2, 1e-6, 0.0)
    flattened = dataclasses.replace(model, normalization=dataclasses.replace(model.normalization, target=flat))
    made = flattened.synthesize(scan, detail="source", crop="never").array
    np.testing.assert_allclose(made, 0.2, atol=1e-3)


@pytest.mark.parametrize("spacing_mm", [None, 2.0])
def test_a_scan_on_the_grid_of_the_model_is_the_same_bits_with_detail(spacing_mm):
    scan = scan_of((33, 34, 35), (2.0, 2.0, 2.0), radius_mm=24.0)
    model = model_of(spacing_mm=spacing_mm, is_identity=False)
    made = [model.synthesize(scan, detail=name).array for name in ("none", "source")]
    assert np.array_equal(*made)


@pytest.mark.parametrize("shape", [(40, 44, 1), (1, 44, 40), (40, 2, 44)])
def test_a_scan_of_a_slice_or_two_comes_back(shape):
    scan = scan_of(shape, (2.0, 2.0, 2.0), radius_mm=30.0)
    made = model_of(detail="source").synthesize(scan)
    expected, mask = unit(scan)
    assert made.array.shape == shape
    assert np.abs(made.array - expected)[mask].mean() < 0.03


def test_what_lies_outside_the_grid_of_the_model_is_zero_with_detail_too():
    scan = scan_of((60, 60, 60), (2.0, 2.0, 2.0), radius_mm=18.0)
    model = model_of(shape=(20, 20, 20), is_identity=False)
    plain, detailed = (
        model.synthesize(scan, detail=name, crop="always", clip="none").array for name in ("none", "source")
    )
    box = [np.flatnonzero(np.any(detailed, axis=others)) for others in ((1, 2), (0, 2), (0, 1))]
    assert [len(along) for along in box] == [40, 40, 40]
    inner = tuple(slice(along[0] + 1, along[-1]) for along in box)
    assert plain[inner].all()
    outside = np.ones(scan.array.shape, bool)
    outside[tuple(slice(along[0] - 1, along[-1] + 2) for along in box)] = False
    assert not plain[outside].any()


def test_no_seam_shows_where_a_volume_was_cut():
    """Patches of 16 voxels of the model's grid are 32 of the scan's: with them the first index is 1.03."""
    scan = textured((128, 120, 100), (2.0, 2.0, 2.0))
    made = model_of(is_identity=False, mode="volume", detail="source", crop="never").synthesize(scan).array
    expected, mask = unit(scan)
    for first in range(0, 32, 8):
        planes = [range(first, n, 32) for n in made.shape]
        assert seam_index(expected, made, mask, planes=planes) == pytest.approx(1, abs=0.02)


def test_a_volume_with_detail_is_on_disk_what_verify_makes_again(tmp_path):
    scan = textured()
    write_volume(tmp_path / "sub-1_PDw.nii.gz", scan.array, scan.affine)
    model = load_model(save_model(model_of(spacing_mm=2.0, detail="source"), tmp_path / "model"))
    scans = [(tmp_path / "sub-1_PDw.nii.gz", None)]
    (path,) = synthesize(model, scans, tmp_path / "out").written
    assert read_sidecar(path).synthesis.detail == "source"
    assert verify(path, device="cpu").verdict == "identical"
    assert synthesize(model, scans, tmp_path / "out").skipped == [path]
    assert synthesize(model, scans, tmp_path / "out", detail="none").written == [path]
    assert read_sidecar(path).synthesis.detail == "none"


def volumes_of_memory():
    """The peak of a synthesis with detail, in volumes of the scan."""
    torch.set_num_threads(1)
    scan = textured((200, 200, 160), (1.0, 1.0, 1.0))
    model = model_of(spacing_mm=3.0, detail="source", averages=True)
    model.synthesize(textured((40, 40, 40), (1.0, 1.0, 1.0)))  # loads what is loaded once
    return peak_growth_mib(lambda: model.synthesize(scan)) / (scan.array.nbytes / 2**20)


@pytest.mark.skipif(not MEASURABLE, reason=WHERE)
def test_the_way_back_with_detail_takes_a_few_volumes_of_memory():
    assert 1 < in_fresh_process(volumes_of_memory) < 9
