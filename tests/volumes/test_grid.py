import json

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from scipy.spatial.transform import Rotation

from unscanned.errors import DatasetError
from unscanned.volumes.grid import Frame, frame, onto_grid
from unscanned.volumes.nifti import Volume

SHAPES = st.tuples(*[st.integers(1, 13)] * 3)
SPACINGS_MM = st.tuples(*[st.floats(0.3, 6.0)] * 3)
ORDERS = st.permutations([0, 1, 2])
SIGNS = st.tuples(*[st.sampled_from([-1.0, 1.0])] * 3)
ANGLES = st.tuples(*[st.floats(-40, 40)] * 3)


@st.composite
def volumes(draw, shapes=SHAPES):
    """Scans of any order and direction of axes, oblique, anisotropic, anywhere in the world."""
    shape = draw(shapes)
    axes = np.eye(3)[:, draw(ORDERS)] * draw(SIGNS) * draw(SPACINGS_MM)
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", draw(ANGLES), degrees=True).as_matrix() @ axes
    affine[:3, 3] = draw(st.tuples(*[st.floats(-200, 200)] * 3))
    seed = draw(st.integers(0, 9))
    return Volume(np.random.default_rng(seed).standard_normal(shape).astype(np.float32), affine)


def world(affine, shape):
    """World coordinates, mm, of all voxels: (i, j, k, 3)."""
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    return index @ affine[:3, :3].T + affine[:3, 3]


def smooth(points):
    """A slow function of the place in the world, mm."""
    x, y, z = np.moveaxis(points, -1, 0)
    return (np.sin(x / 25) + np.cos(y / 30) * np.sin(z / 28 + 1)).astype(np.float32)


@settings(deadline=None, max_examples=60)
@given(volumes())
def test_there_and_back_changes_no_voxel(volume):
    where = frame(volume)
    assert np.array_equal(where.inverse(where.forward(volume.array)), volume.array)


@settings(deadline=None, max_examples=40)
@given(volumes())
def test_the_working_grid_is_ras_and_every_voxel_stays_where_it_was_in_the_world(volume):
    where = frame(volume)
    axes = where.working_affine[:3, :3]
    left, _, right = np.linalg.svd(axes / np.linalg.norm(axes, axis=0))
    cosines = left @ right
    # nibabel assigns one axis after the other, and so another one than the best where a grid is very oblique
    best = np.abs(cosines)[linear_sum_assignment(np.abs(cosines), maximize=True)].sum()
    assert np.diag(cosines).min() > 0
    assert np.trace(cosines) == pytest.approx(best, abs=1e-4)
    there = world(volume.affine, volume.shape)
    moved = np.stack([where.forward(there[..., axis]) for axis in range(3)], -1)
    np.testing.assert_allclose(moved, world(where.working_affine, where.working_shape), atol=1e-6)


@settings(deadline=None, max_examples=60)
@given(volumes(), st.tuples(*[st.integers(0, 9)] * 3))
def test_a_padded_grid_gives_every_voxel_back(volume, extra):
    ras = frame(volume).working_shape
    where = frame(volume, shape=tuple(n + e for n, e in zip(ras, extra, strict=True)))
    there = where.forward(volume.array)
    assert np.count_nonzero(there) == np.count_nonzero(volume.array)
    assert np.array_equal(where.inverse(there), volume.array)


@settings(deadline=None, max_examples=60)
@given(volumes(), SHAPES)
def test_a_cropped_grid_gives_back_what_it_holds_and_zero_elsewhere(volume, shape):
    where = frame(volume, shape=shape)
    there = where.forward(volume.array)
    assert there.shape == shape
    back = where.inverse(there)
    kept = where.inverse(np.ones(shape, bool))
    assert back.shape == volume.shape
    assert np.array_equal(back[kept], volume.array[kept])
    assert not back[~kept].any()
    ras = frame(volume).working_shape
    assert kept.sum() == np.prod(np.minimum(shape, ras))


@settings(deadline=None, max_examples=40)
@given(volumes(), SHAPES)
def test_without_a_head_the_crop_is_centred_on_the_grid_to_half_a_voxel(volume, shape):
    where = frame(volume, shape=shape)
    middle = np.array(where.start) + (np.array(shape) - 1) / 2
    assert np.all(np.abs(middle - (np.array(where.working_shape) - 1) / 2) <= 0.5)


@settings(deadline=None, max_examples=40)
@given(volumes(st.tuples(*[st.integers(6, 13)] * 3)), st.data())
def test_the_crop_is_centred_on_the_head(volume, data):
    low = [data.draw(st.integers(0, n - 3)) for n in volume.shape]
    high = [data.draw(st.integers(a + 1, n)) for a, n in zip(low, volume.shape, strict=True)]
    head = np.zeros(volume.shape, bool)
    head[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = True
    where = frame(volume, shape=(9, 9, 9), head=head)
    inside = np.argwhere(frame(volume).forward(head))
    centre = (inside.min(0) + inside.max(0)) / 2
    assert np.all(np.abs(np.array(where.start) + 4 - centre) <= 0.5)


@settings(deadline=None, max_examples=40)
@given(volumes(st.tuples(*[st.integers(1, 12)] * 3)), st.floats(0.7, 3.0))
def test_an_isotropic_grid_covers_the_scan_and_keeps_its_corner_and_directions(volume, spacing_mm):
    plain, where = frame(volume), frame(volume, spacing_mm=spacing_mm)
    np.testing.assert_allclose(np.linalg.norm(where.working_affine[:3, :3], axis=0), spacing_mm, rtol=1e-6)
    np.testing.assert_allclose(where.working_affine[:3, 3], plain.working_affine[:3, 3], atol=1e-6)
    spacing = np.linalg.norm(plain.working_affine[:3, :3], axis=0)
    assert np.all(np.array(where.working_shape) * spacing_mm >= np.array(plain.working_shape) * spacing - 1e-3)


@settings(deadline=None, max_examples=15)
@given(volumes(st.tuples(*[st.integers(10, 16)] * 3)))
def test_a_smooth_scan_survives_resampling_there_and_back(volume):
    spacing = np.linalg.norm(volume.affine[:3, :3], axis=0)
    array = smooth(world(volume.affine, volume.shape))
    where = frame(volume, spacing_mm=float(spacing.min()))
    there = where.forward(array)
    truth = smooth(world(where.working_affine, where.working_shape))
    inner = tuple(slice(0, int((n - 1) * s / spacing.min())) for n, s in zip(*_ras(volume), strict=True))
    curvature = 0.125 * (spacing.max() / 25) ** 2 * 3
    assert np.abs(there - truth)[inner].max() < curvature + 1e-3
    back = np.abs(where.inverse(there) - array)
    assert back[1:-1, 1:-1, 1:-1].max() < 2 * curvature + 1e-3


def _ras(volume):
    where = frame(volume)
    return where.working_shape, np.linalg.norm(where.working_affine[:3, :3], axis=0)


@settings(deadline=None, max_examples=25)
@given(volumes(), SHAPES, st.sampled_from([None, 1.7]))
def test_a_frame_read_from_its_json_does_the_same(volume, shape, spacing_mm):
    where = frame(volume, shape=shape, spacing_mm=spacing_mm)
    again = Frame.from_json(json.loads(json.dumps(where.to_json())))
    assert again.resampled == where.resampled
    assert np.array_equal(again.forward(volume.array), where.forward(volume.array))


@settings(deadline=None, max_examples=40)
@given(volumes(), ORDERS, SIGNS)
def test_a_target_with_other_axes_on_the_same_grid_is_only_turned(source, order, signs):
    ornt = np.column_stack([order, signs])
    image = nib.Nifti1Image(source.array, source.affine).as_reoriented(ornt)
    target = Volume(np.asarray(image.dataobj), image.affine)
    assert np.array_equal(onto_grid(source, target, "sub-01"), source.array)


def head(shape=(20, 24, 18), spacing_mm=(3.0, 2.5, 4.0), shift_mm=0.0):
    affine = np.diag([*spacing_mm, 1.0])
    affine[:3, 3] = -np.multiply(spacing_mm, shape) / 2 + shift_mm
    return Volume(smooth(world(affine, shape)), affine)


def test_a_target_on_another_grid_is_refused_and_the_case_named():
    with pytest.raises(DatasetError, match=r"sub-07: source and target lie on different grids.*prepare\.resample"):
        onto_grid(head(), head(shape=(40, 48, 36), spacing_mm=(1.5, 1.25, 2.0)), "sub-07")


@pytest.mark.parametrize(("shift_mm", "refused"), [(0.4, False), (3.0, True)])
def test_a_shift_of_more_than_a_millimetre_is_another_grid(shift_mm, refused):
    source, target = head(), head(shift_mm=shift_mm)
    if refused:
        with pytest.raises(DatasetError, match=r"5\.2 mm apart"):
            onto_grid(source, target, "sub-07")
    else:
        assert np.array_equal(onto_grid(source, target, "sub-07"), target.array)


def test_a_target_on_another_grid_is_resampled_when_asked_to_where_it_is_in_the_world():
    source = head()
    target = head(shape=(40, 48, 36), spacing_mm=(1.5, 1.25, 2.0))
    moved = onto_grid(source, target, "sub-07", resample=True)
    assert np.abs(moved - source.array)[1:-1, 1:-1, 1:-1].max() < 0.01


def test_what_lies_outside_a_smaller_target_is_zero_and_not_its_edge_drawn_out():
    source, target = head(), head(shape=(10, 24, 18))
    target = Volume(target.array + 5, target.affine)
    moved = onto_grid(source, target, "sub-07", resample=True)
    assert moved[5:15].min() > 2
    assert not moved[:4].any()
    assert not moved[16:].any()


def test_a_crop_that_may_not_pad_stays_inside_the_scan_and_says_whether_it_holds_the_head():
    affine = np.diag([-2.0, 1.0, 1.0, 1.0])
    volume = Volume(np.zeros((20, 12, 30), np.float32), affine)
    head = np.zeros(volume.shape, bool)
    head[0:8, 5:9, 20:30] = True
    where = frame(volume, shape=(10, 16, 12), head=head, pads=False)
    assert where.crop == (10, 12, 12)
    assert where.start == (10, 0, 18)  # i runs to the left, and in RAS+ the head lies at its end
    assert where.holds(head)
    kept = where.inverse(where.forward(np.ones(volume.shape, np.float32)))
    assert kept[head].all()
    assert kept.sum() == 10 * 12 * 12
    head[11, 6, 25] = True
    assert not frame(volume, shape=(10, 16, 12), head=head, pads=False).holds(head)
    assert frame(volume, shape=(12, 16, 12), head=head, pads=False).holds(head)
    assert frame(volume, shape=(24, 16, 12), spacing_mm=1.0, head=head, pads=False).holds(head)
    assert where.holds(np.zeros(volume.shape, bool))


@settings(deadline=None, max_examples=40)
@given(volumes(st.tuples(*[st.integers(1, 12)] * 3)), st.floats(0.7, 3.0), st.sampled_from([1, 3]))
def test_a_spline_brings_a_slow_function_back_to_where_it_is_in_the_world(volume, spacing_mm, order):
    where = frame(volume, spacing_mm=spacing_mm)
    there = smooth(world(where.working_affine, where.working_shape))
    back, wanted = where.interpolate(there, order=order), smooth(world(volume.affine, volume.shape))
    assert back.dtype == np.float32
    assert back.shape == volume.shape
    # Beyond the last voxel of the working grid its edge goes on, for less than a voxel of that grid.
    assert np.abs(back - wanted).max() < 0.04 * spacing_mm * np.sqrt(3) + 0.02


@settings(deadline=None, max_examples=40)
@given(volumes(), SHAPES, st.one_of(st.none(), st.floats(0.7, 3.0)), st.booleans())
def test_a_constant_comes_back_by_splines_where_the_crop_lies_and_nothing_elsewhere(volume, shape, spacing_mm, pads):
    where = frame(volume, shape=shape, spacing_mm=spacing_mm, pads=pads)
    back = where.interpolate(np.full(where.crop, 3.0), order=3)
    plain = where.inverse(np.full(where.crop, 3.0))
    assert np.isclose(back, 3, atol=1e-5).sum() + (back == 0).sum() == back.size
    # Linearly, a voxel has the product of three weights, each of which is half where the crop ends.
    assert (back[plain > 3 / 2 + 0.001] > 2.9).all()
    assert not back[plain < 3 / 8 - 0.001].any()


def noise(spacing_mm):
    """A scan of noise alone, in a mean of 5."""
    array = 5 + np.random.default_rng(0).standard_normal((60, 60, 30)).astype(np.float32)
    return Volume(array, np.diag([*spacing_mm, 1.0]))


def test_a_coarser_grid_averages_the_voxels_of_a_finer_scan_where_asked_to():
    volume = noise((0.5, 0.5, 1.0))
    points = frame(volume, spacing_mm=2.0).forward(volume.array)[1:-1, 1:-1, 1:-1]
    means = frame(volume, spacing_mm=2.0, averages=True).forward(volume.array)[1:-1, 1:-1, 1:-1]
    assert means.mean() == pytest.approx(5, abs=0.05)
    assert means.std() < 0.5 * points.std()


def test_an_axis_that_is_not_coarser_is_interpolated_as_ever():
    volume = noise((2.0, 3.0, 6.0))
    plain, averages = (frame(volume, spacing_mm=2.0, averages=yes).forward(volume.array) for yes in (False, True))
    assert np.array_equal(plain, averages)


def test_a_frame_says_in_json_whether_it_averages_and_one_of_before_did_not():
    where = frame(noise((0.5, 0.5, 1.0)), spacing_mm=2.0, averages=True)
    content = json.loads(json.dumps(where.to_json()))
    assert Frame.from_json(content).averages is True
    del content["averages"]
    assert Frame.from_json(content).averages is False


def test_a_target_that_is_off_by_less_than_a_millimetre_is_resampled_when_asked_to():
    source, target = head(), head(shift_mm=0.5)
    moved = onto_grid(source, target, "sub-07", resample=True)
    assert np.abs(moved - source.array)[1:-1, 1:-1, 1:-1].max() < 0.01 < np.abs(target.array - source.array).max()
    near = head(shift_mm=0.05)
    assert np.array_equal(onto_grid(source, near, "sub-07", resample=True), near.array)
