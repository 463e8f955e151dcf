"""Whether a scan shows a whole head or a brain alone, on real scans and on simulated heads."""

import itertools

import numpy as np
import pytest
from scipy import ndimage

from unscanned.simulation.simulate import simulate
from unscanned.volumes.intensity import head_mask
from unscanned.volumes.nifti import read_volume
from unscanned.volumes.skull import looks_skull_stripped

BRAINS = ("sub-ms07", "sub-ms19", "sub-tcgadu7294")


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory):
    root = simulate(tmp_path_factory.mktemp("skull") / "heads", subjects=1, contrasts=("T1",), spacing_mm=3.0)
    return read_volume(next(root.rglob("*_T1w.nii.gz")))


def ball(radius_mm: float, spacing_mm: float = 4.0) -> tuple[np.ndarray, np.ndarray]:
    index = np.indices((64, 64, 64)) - 31.5
    return 100.0 * (np.linalg.norm(index, axis=0) * spacing_mm <= radius_mm), np.diag([spacing_mm] * 3 + [1.0])


def test_every_real_scan_is_seen_as_what_it_is(shared_data):
    scans = sorted(shared_data.glob("*/sub-*/**/*.nii.gz"))
    assert len(scans) == 21
    for path in scans:
        volume = read_volume(path)
        assert looks_skull_stripped(volume.array, volume.affine) == path.name.startswith(BRAINS), path.name


def test_a_head_from_a_label_map_is_whole(shared_data, tmp_path):
    labels = shared_data / "head-labels"
    root = simulate(tmp_path / "heads", labels=labels, subjects=2, contrasts=("PD", "T2", "T1"), spacing_mm=2.0)
    paths = [path for contrast in ("PDw", "T2w", "T1w") for path in root.rglob(f"*_{contrast}.nii.gz")]
    assert len(paths) == 6
    for path in paths:
        volume = read_volume(path)
        assert not looks_skull_stripped(volume.array, volume.affine), path.name


@pytest.mark.parametrize("name", ["sub-ms19/anat/sub-ms19_T2w", "sub-mslong03/ses-2/anat/sub-mslong03_ses-2_FLAIR"])
def test_neither_the_order_nor_the_direction_of_axes_matters(shared_data, name):
    volume = read_volume(shared_data / "ms-t1-t2-flair" / f"{name}.nii.gz")
    array, affine = volume.array[::2, ::2], volume.affine @ np.diag([2.0, 2.0, 1.0, 1.0])
    for order in itertools.permutations(range(3)):
        turn = np.eye(4)[:, [*order, 3]]
        turned = np.flip(np.transpose(array, order), order[0])
        assert looks_skull_stripped(turned, affine @ turn) == ("ms19" in name)


def test_units_do_not_matter(shared_data):
    volume = read_volume(shared_data / "ms-t1-t2-flair/sub-ms07/anat/sub-ms07_T1w.nii.gz")
    assert looks_skull_stripped(1e-4 * volume.array, volume.affine)


def test_a_whole_head_whose_background_was_emptied_is_whole(head):
    array = np.where(head_mask(head.array, head.affine), head.array, 0)
    assert not looks_skull_stripped(array, head.affine)


def test_a_slab_of_a_head_is_no_brain(head):
    assert not looks_skull_stripped(head.array[:, :, 20:30], head.affine)


def test_a_brain_keeps_its_verdict_after_interpolation(shared_data):
    volume = read_volume(shared_data / "ms-t1-t2-flair/sub-ms07/anat/sub-ms07_T2w.nii.gz")
    coarser = ndimage.zoom(volume.array, 0.5, order=3)
    assert looks_skull_stripped(coarser, volume.affine @ np.diag([2.0, 2.0, 2.0, 1.0]))


@pytest.mark.parametrize(("radius_mm", "expected"), [(66, True), (90, False)])
def test_size_tells_a_brain_from_a_head_on_an_empty_background(radius_mm, expected):
    assert looks_skull_stripped(*ball(radius_mm)) is expected


@pytest.mark.parametrize("value", [0.0, 7.0])
def test_a_scan_of_nothing_is_no_brain(value):
    assert looks_skull_stripped(np.full((8, 9, 10), value), np.eye(4)) is False
