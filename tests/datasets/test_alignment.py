"""The rigid offset of a pair, and what is no pair: on simulated heads, and on the real ones beside the repository."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from scipy import ndimage

from unscanned.datasets.alignment import AGREES, SHARP, measure_alignment
from unscanned.datasets.check import check_dataset
from unscanned.datasets.pairs import find_pairs
from unscanned.simulation.simulate import simulate
from unscanned.volumes.nifti import Volume, read_volume, write_volume
from unscanned.volumes.orientation import orientation

REAL = ["ms-t1-t2-flair", "glioma-t1-t2-flair"]


@pytest.fixture(scope="module")
def heads(tmp_path_factory):
    """Two simulated subjects, PD and T2, 2 mm."""
    return simulate(tmp_path_factory.mktemp("heads") / "dataset", subjects=2, seed=5)


@pytest.fixture(scope="module")
def simulated(heads):
    return [(read_volume(pair.source), read_volume(pair.target)) for pair in find_pairs(heads)]


def moved(volume, shift_mm):
    """The same head further to the right, front and up; the grid stays."""
    ras = np.linalg.inv(volume.affine[:3, :3]) @ np.asarray(shift_mm, float)
    return replace(volume, array=ndimage.shift(volume.array, ras, order=1))


def write_dataset(folder, source, target):
    write_volume(folder / "sub-01_PDw.nii.gz", source.array, source.affine)
    write_volume(folder / "sub-01_T2w.nii.gz", target.array, target.affine)
    return [(finding.severity, finding.fault) for finding in check_dataset(folder, source="PD", target="T2")]


@pytest.mark.parametrize("shift_mm", [(0, 0, 0), (3.3, 0, 0), (0, -5, 2.5), (-30, 14, 8)])
def test_a_known_shift_is_found_to_half_a_millimetre(simulated, shift_mm):
    source, target = simulated[0]
    found = measure_alignment(source, moved(target, shift_mm))
    assert found.is_pair
    assert found.offset_mm == pytest.approx(shift_mm, abs=0.5)
    assert np.linalg.norm(found.rotation_deg) < 0.5


def test_a_known_turn_is_found_and_the_pair_is_still_one(simulated):
    source, target = simulated[0]
    angle = np.radians(8)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    middle = np.array(target.shape) / 2
    turned = ndimage.affine_transform(target.array, turn, middle - turn @ middle, order=1)
    found = measure_alignment(source, replace(target, array=turned))
    assert found.is_pair
    assert np.abs(found.rotation_deg) == pytest.approx([0, 0, 8], abs=0.7)
    assert found.is_off


def test_the_offset_does_not_depend_on_how_the_target_is_stored(simulated):
    source, target = simulated[0]
    target = moved(target, (4, 0, -2))
    flip = np.diag([-1.0, 1, 1, 1])
    flip[0, 3] = target.shape[0] - 1
    stored = Volume(np.ascontiguousarray(target.array[::-1]), target.affine @ flip)
    assert measure_alignment(source, stored).offset_mm == measure_alignment(source, target).offset_mm


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_target_of_thicker_slices_is_compared_in_space(simulated, axis):
    source, target = simulated[0]
    pairs = np.moveaxis(target.array, axis, 0).reshape(target.shape[axis] // 2, 2, -1).mean(1)
    rest = [n for number, n in enumerate(target.shape) if number != axis]
    thick = np.moveaxis(pairs.reshape(-1, *rest), 0, axis)
    affine = target.affine.copy()
    affine[:3, 3] += affine[:3, axis] / 2
    affine[:3, axis] *= 2
    found = measure_alignment(source, Volume(thick, affine))
    assert found.is_pair
    assert found.offset_mm == pytest.approx([0, 0, 0], abs=0.3)


def test_two_scans_of_one_grid_and_one_twice_as_fine_lie_alike(simulated):
    source, target = simulated[0]
    fine = Volume(ndimage.zoom(target.array, 2, order=1, grid_mode=True, mode="nearest"), target.affine.copy())
    fine.affine[:3, :3] /= 2
    fine.affine[:3, 3] -= fine.affine[:3, :3] @ [0.5, 0.5, 0.5]
    assert measure_alignment(source, fine).offset_mm == pytest.approx([0, 0, 0], abs=0.2)


def test_the_warning_begins_at_half_a_voxel(simulated):
    source, target = simulated[0]
    assert not measure_alignment(source, moved(target, (0.6, 0, 0))).is_off
    assert measure_alignment(source, moved(target, (1.6, 0, 0))).is_off


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda target, other: target, []),
        (lambda target, other: moved(target, (0, 3, 0)), [("warning", "offset")]),
        (lambda target, other: replace(target, array=np.roll(target.array, 25, 0)), [("error", "offset")]),
        (lambda target, other: replace(target, array=target.array[::-1].copy()), [("error", "flip")]),
        (lambda target, other: other, [("error", "no-pair")]),
    ],
    ids=["aligned", "shifted", "rolled", "mirrored", "of another person"],
)
def test_check_tells_a_partner_that_is_none(tmp_path, simulated, change, told):
    (source, target), (_, other) = simulated
    assert write_dataset(tmp_path, source, change(target, other)) == told


def test_a_mirrored_target_is_named_by_its_axis(tmp_path, simulated):
    source, target = simulated[1]
    found = measure_alignment(source, replace(target, array=target.array[::-1].copy()))
    assert found.mirrored == ("left-right",)


def test_what_cannot_be_judged_is_not(simulated):
    source, target = simulated[0]
    coarse = [
        Volume(each.array[::3, ::3, ::3].copy(), each.affine @ np.diag([3.0, 3, 3, 1])) for each in (source, target)
    ]
    assert measure_alignment(*coarse) is None  # voxels of 6 mm
    corner = [Volume(each.array[:20, :20, :20].copy(), each.affine) for each in (source, target)]
    assert measure_alignment(*corner) is None
    nothing = replace(target, array=np.zeros_like(target.array))
    assert measure_alignment(source, nothing) is None


@cache
def measured(pair):
    """How the files of a pair lie, which two tests ask."""
    return measure_alignment(read_volume(pair.source), read_volume(pair.target))


@pytest.mark.parametrize("target", ["T2w", "FLAIR"])
@pytest.mark.parametrize("name", REAL)
def test_no_aligned_pair_of_real_scans_raises_an_alarm(shared_data, name, target):
    for pair in find_pairs(shared_data / name, source="T1w", target=target):
        found = measured(pair)
        assert found.sharpness > SHARP + 2, pair.case
        assert found.agreement > AGREES + 0.2, pair.case
        assert not found.is_off, f"{pair.case}: {found}"
        assert found.mirrored == ()


@pytest.mark.parametrize(("case", "shift_voxels"), [("sub-ms19", (-2, 3, 1)), ("sub-mslong03_ses-2", (4, -3, 1))])
@pytest.mark.parametrize("target", ["T2w", "FLAIR"])
def test_a_shift_of_a_real_scan_is_found_to_half_a_voxel(shared_data, case, shift_voxels, target):
    [pair] = [pair for pair in find_pairs(shared_data / REAL[0], source="T1w", target=target) if pair.case == case]
    source, volume = read_volume(pair.source), read_volume(pair.target)
    shifted = replace(volume, array=np.roll(volume.array, shift_voxels, (0, 1, 2)))
    found = measure_alignment(source, shifted)
    by = np.array(found.offset_mm) - measured(pair).offset_mm
    wanted = orientation(volume.affine)[:, 1] * volume.spacing_mm * shift_voxels  # along the grid's axes, in RAS+
    assert (np.abs(by - wanted) < 0.5 * np.array(source.spacing_mm)).all()
    assert found.is_off


@pytest.mark.parametrize(("one", "another"), [("sub-ms07", "sub-ms19"), ("sub-mslong03_ses-2", "sub-mslong04_ses-1")])
def test_scans_of_two_persons_are_no_pair(shared_data, one, another):
    pairs = {pair.case: pair for pair in find_pairs(shared_data / REAL[0], source="T1w", target="T2w")}
    found = measure_alignment(read_volume(pairs[one].source), read_volume(pairs[another].target))
    assert not found.is_pair
    assert min(found.sharpness / SHARP, found.agreement / AGREES) < 0.9


def test_a_target_that_is_a_fragment_is_judged_without_a_number_that_is_none(tmp_path, simulated, recwarn):
    source, target = simulated[0]
    array = np.zeros_like(target.array)
    array[:3, :3, :3] = target.array[target.array > 0][:27].reshape(3, 3, 3)
    found = measure_alignment(source, replace(target, array=array))
    assert found is None or np.isfinite([*found.offset_mm, *found.uncertainty_mm]).all()
    assert not [warning for warning in recwarn if issubclass(warning.category, RuntimeWarning)]
