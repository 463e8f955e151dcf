"""Nothing depends on how a file stores its axes. What a model makes is in tests/synthesis/test_axes.py."""

import nibabel as nib
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from stored import ORDERS, all_stored, back, head, stored

from unscanned.contrast.appearance import measure_appearance
from unscanned.volumes.grid import frame
from unscanned.volumes.intensity import head_mask
from unscanned.volumes.nifti import grid_difference
from unscanned.volumes.orientation import from_ras, orientation, ras_grid, to_ras

SHAPES = st.tuples(*[st.integers(8, 15)] * 3)
DEGREES = st.tuples(*[st.sampled_from([0.0, 45.0, -45.0, 90.0, 12.3]) | st.floats(-180, 180)] * 3)
GRIDS = [{"shape": (6, 7, 8)}, {"shape": (9, 6, 20)}, {"shape": (6, 9, 7), "spacing_mm": 2.0}, {"spacing_mm": 1.7}]


@settings(deadline=None, max_examples=60)
@given(SHAPES, DEGREES, st.sampled_from(ORDERS), st.sampled_from(GRIDS), st.booleans())
@example((8, 9, 10), (0.0, 0.0, 45.0), ORDERS[13], GRIDS[0], False)
@example((9, 9, 9), (45.0, 0.0, 0.0), ORDERS[22], GRIDS[2], True)
def test_a_scan_comes_to_the_grid_of_the_model_alike_however_its_axes_are_stored(shape, degrees, order, grid, pads):
    first = head(shape, (2.0, 1.5, 2.5), degrees)
    other = stored(first, order)
    mask = head_mask(first.array, first.affine)
    assert np.array_equal(back(head_mask(other.array, other.affine), order), mask)
    wheres = [frame(scan, **grid, head=head_mask(scan.array, scan.affine), pads=pads) for scan in (first, other)]
    assert wheres[0].start == wheres[1].start
    assert wheres[0].holds(mask) == wheres[1].holds(head_mask(other.array, other.affine))
    there = [where.forward(scan.array) for where, scan in zip(wheres, (first, other), strict=True)]
    np.testing.assert_allclose(there[1], there[0], rtol=1e-5, atol=1e-3)
    there = [where.inverse(array) for where, array in zip(wheres, there, strict=True)]
    np.testing.assert_allclose(back(there[1], order), there[0], rtol=1e-5, atol=1e-3)
    assert grid_difference(first, other) is None


@pytest.mark.parametrize("shape", [(97, 64, 99), (96, 97, 40)])
def test_the_head_is_the_same_in_all_48_orders_at_odd_and_even_sizes(shape):
    first = head(shape, (2.0, 2.5, 2.0), (10.0, -5.0, 20.0))
    mask = head_mask(first.array, first.affine)
    seen = measure_appearance(first.array, first.affine)
    for order, scan in all_stored(first):
        assert np.array_equal(back(head_mask(scan.array, scan.affine), order), mask)
        other = measure_appearance(scan.array, scan.affine)
        assert (other is None) == (seen is None)
        if seen is not None:
            np.testing.assert_allclose(other.vector, seen.vector, rtol=1e-4)


@pytest.mark.parametrize("degrees", [(0, 0, 45), (0, 45, 0), (45, 0, 0), (-45, 0, 0), (45, 45, 0), (45, 90, 45)])
@pytest.mark.parametrize("digits", [None, np.float32])
def test_a_turn_by_45_degrees_leaves_nothing_to_chance(degrees, digits):
    first = head((8, 9, 10), (1.0, 1.0, 1.0), degrees)
    shape, affine = ras_grid(first.shape, first.affine)
    for _, scan in all_stored(first):
        found = scan.affine if digits is None else scan.affine.astype(digits).astype(float)
        other_shape, other = ras_grid(scan.shape, found)
        assert other_shape == shape
        np.testing.assert_allclose(other, affine, atol=1e-4)


@settings(deadline=None, max_examples=200)
@given(st.tuples(*[st.floats(-44, 44)] * 3), st.sampled_from(ORDERS))
def test_a_grid_that_is_turned_by_little_about_one_axis_is_brought_to_ras_as_nibabel_does(degrees, order):
    scan = stored(head((3, 4, 5), (1.0, 2.0, 3.0), (degrees[0], 0, 0)), order)
    assert np.array_equal(orientation(scan.affine), nib.io_orientation(scan.affine))
    assert np.array_equal(from_ras(to_ras(scan.array, scan.affine), scan.affine), scan.array)
