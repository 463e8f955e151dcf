"""What a contrast looks like: the same in every unit, grid and receive field, and another in every contrast."""

from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from unscanned.contrast.appearance import measure_appearance
from unscanned.simulation.simulate import simulate
from unscanned.volumes.nifti import Volume, read_volume

TOLERANCE = {"balance": 0.16, "order": 0.1, "strength": 0.31}


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Volume]:
    root = simulate(
        tmp_path_factory.mktemp("appearance") / "heads",
        subjects=1,
        contrasts=("PD", "T2", "T1"),
        spacing_mm=3.0,
        shading=(0.0, 0.0),
        seed=2,
    )
    paths: dict[str, Path] = {path.name.split("_")[1][:2]: path for path in root.glob("sub-001/anat/*.nii.gz")}
    return {contrast: read_volume(path) for contrast, path in paths.items()}


def difference(volume: Volume, array: np.ndarray, affine: np.ndarray) -> dict[str, float]:
    before, after = measure_appearance(volume.array, volume.affine), measure_appearance(array, affine)
    return {name: abs(getattr(after, name) - getattr(before, name)) for name in TOLERANCE}


def assert_alike(found: dict[str, float]) -> None:
    assert {name: value for name, value in found.items() if value > TOLERANCE[name]} == {}


def test_fluid_is_bright_in_t2_dark_in_t1_and_little_apart_in_pd(scans):
    seen = {contrast: measure_appearance(scan.array, scan.affine) for contrast, scan in scans.items()}
    assert seen["T2"].balance > 0.2 > 0 > seen["T1"].balance
    assert np.exp(seen["PD"].strength) < 0.5 * min(np.exp(seen["T1"].strength), np.exp(seen["T2"].strength))


def test_white_matter_is_brighter_than_what_surrounds_it_in_t1_only(scans):
    seen = {contrast: measure_appearance(scan.array, scan.affine).order for contrast, scan in scans.items()}
    assert seen["T1"] < -0.1
    assert min(seen["PD"], seen["T2"]) > 0


@pytest.mark.parametrize("contrast", ["PD", "T2", "T1"])
def test_units_do_not_matter(scans, contrast):
    scan = scans[contrast]
    assert max(difference(scan, 0.001 * scan.array, scan.affine).values()) < 1e-3


@pytest.mark.parametrize("contrast", ["PD", "T2", "T1"])
def test_the_order_and_direction_of_axes_do_not_matter(scans, contrast):
    scan = scans[contrast]
    turned = np.transpose(scan.array, (1, 2, 0))[:, :, ::-1]
    # Voxel (b, c, a') of the turned array is voxel (a, b, c) of the scan, with a = size - 1 - a'.
    flip = np.array([[0, 0, -1, scan.shape[0] - 1], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1.0]])
    assert max(difference(scan, turned, scan.affine @ flip).values()) < 0.02


@pytest.mark.parametrize("contrast", ["PD", "T2", "T1"])
def test_a_strong_receive_field_matters_little(scans, contrast):
    scan = scans[contrast]
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in scan.shape), indexing="ij")
    field = np.exp(0.5 * x - 0.4 * y * z + 0.4 * z**2)
    assert field.max() / field.min() > 3
    assert_alike(difference(scan, scan.array * field.astype(np.float32), scan.affine))


@pytest.mark.parametrize("contrast", ["PD", "T2", "T1"])
def test_thick_slices_matter_little(scans, contrast):
    scan = scans[contrast]
    thick = ndimage.uniform_filter1d(scan.array, 2, axis=2, origin=-1)[:, :, ::2]
    affine = scan.affine @ np.diag([1, 1, 2, 1.0])
    affine[:3, 3] = (scan.affine @ [0, 0, 0.5, 1])[:3]
    assert_alike(difference(scan, thick, affine))


def test_a_field_of_view_that_ends_above_the_neck_matters_little(scans):
    scan = scans["PD"]
    start = scan.shape[2] // 5
    affine = scan.affine.copy()
    affine[:3, 3] = (scan.affine @ [0, 0, start, 1])[:3]
    assert_alike(difference(scan, scan.array[:, :, start:], affine))


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((40, 40, 40), np.float32),
        np.pad(np.ones((8, 8, 8), np.float32), 4),
        np.pad(np.full((50, 60, 50), 7.0, np.float32), 8),
    ],
    ids=["empty", "tiny", "uniform"],
)
def test_what_holds_no_head_or_no_contrast_has_no_appearance(array):
    assert measure_appearance(array, np.diag([3.0, 3.0, 3.0, 1.0])) is None
