"""What is drawn for a patch: nothing at strength 0, within its strength else, and never a disturbed target."""

import numpy as np
import pytest
from scipy import ndimage

from unscanned.settings import Augmentation
from unscanned.training.augment import Changes

SHAPE, PATCH = (20, 16, 18), 16


def patch():
    return np.random.default_rng(0).uniform(0.1, 1.0, SHAPE).astype(np.float32)


def places(n=40):
    return [(3, 0, step, slot) for step in range(n // 4) for slot in range(4)]


def test_without_strength_a_patch_stays_as_it_is():
    changes = Changes(Augmentation(), (0, 0, 0, 0))
    assert changes.field(SHAPE, PATCH) is None
    assert np.array_equal(changes.source(patch(), None), patch())
    assert not changes.is_mirrored


ALL = Augmentation(flip=0.5, intensity=0.3, field=0.4, noise=0.05, blur=1.0, resolution=3.0)


def test_what_is_drawn_depends_on_the_place_alone():
    def made(place):
        changes = Changes(ALL, place)
        return changes.source(patch(), changes.field(SHAPE, PATCH))

    assert np.array_equal(made((3, 0, 7, 1)), made((3, 0, 7, 1)))
    for other in ((4, 0, 7, 1), (3, 1, 7, 1), (3, 0, 8, 1), (3, 0, 7, 2)):
        assert not np.array_equal(made((3, 0, 7, 1)), made(other))


def test_a_part_draws_the_same_whatever_else_is_on():
    for place in places(8):
        alone, beside = Changes(Augmentation(field=0.4), place), Changes(ALL, place)
        assert np.array_equal(alone.field(SHAPE, PATCH), beside.field(SHAPE, PATCH))
        assert Changes(Augmentation(flip=0.5), place).is_mirrored == beside.is_mirrored


def test_a_receive_field_is_smooth_and_stays_within_its_strength():
    fields = [Changes(Augmentation(field=0.4), place).field(SHAPE, PATCH) for place in places()]
    assert min(field.min() for field in fields) >= 0.6 - 1e-5
    assert max(field.max() for field in fields) <= 1 / 0.6 + 1e-5
    assert min(field.min() for field in fields) < 0.7
    for field in fields:
        assert max(np.abs(np.diff(np.log(field), axis=axis)).max() for axis in range(3)) < 0.15


def test_a_curve_keeps_the_order_of_intensities_and_both_ends():
    ramp = np.linspace(0, 1, 64, dtype=np.float32).reshape(4, 4, 4)
    powers = set()
    for place in places():
        curved = Changes(Augmentation(intensity=0.5), place).source(ramp, None).ravel()
        assert (curved[0], curved[-1]) == (0, 1)
        assert (np.diff(curved) > 0).all()
        powers.add(round(float(np.log(curved[32]) / np.log(ramp.ravel()[32])), 4))
    assert 0.6 < min(powers) < 0.8
    assert 1.2 < max(powers) < 1.65


def test_noise_is_rician_and_no_stronger_than_it_may_be():
    for level in (0.0, 0.8):
        flat = np.full((24, 24, 24), level, np.float32)
        spreads = []
        for place in places(12):
            noisy = Changes(Augmentation(noise=0.1), place).source(flat, None)
            assert noisy.min() >= 0
            spreads.append(noisy.std())
        assert max(spreads) <= 0.105
        assert max(spreads) > 0.04


@pytest.mark.parametrize("part", [{"blur": 2.0}, {"resolution": 4.0}])
def test_blur_and_thick_slices_take_detail_away_and_keep_what_is_constant(part):
    changes = [Changes(Augmentation(**part), place) for place in places(12)]
    assert all(np.allclose(each.source(np.full(SHAPE, 0.7, np.float32), None), 0.7, atol=1e-5) for each in changes)
    spreads = [each.source(patch(), None).std() / patch().std() for each in changes]
    assert max(spreads) <= 1.001
    assert min(spreads) < 0.75


def test_a_thick_slice_is_the_mean_across_one_axis_and_leaves_the_others():
    ramps = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij")).astype(np.float32)
    changed = set()
    for place in places():
        changes = Changes(Augmentation(resolution=3.0), place)
        moved = [np.abs(changes.source(ramp, None) - ramp)[4:-4, 4:-4, 4:-4].max() > 1e-3 for ramp in ramps]
        edges = [np.abs(changes.source(ramp, None) - ramp).max() > 1e-3 for ramp in ramps]
        assert sum(moved) == 0  # a line stays a line
        assert sum(edges) <= 1
        changed |= {axis for axis, edge in enumerate(edges) if edge}
    assert changed == {0, 1, 2}


@pytest.mark.parametrize(
    ("own", "least"), [({"noise": 0.5}, 0.2), ({"noise": 0.99}, 0.0), ({"intensity": 1.6}, 0.6), ({"field": 0.9}, 0.3)]
)
def test_the_strongest_that_is_allowed_leaves_something_of_a_patch(own, least):
    """Correlation with itself of a patch of soft blobs in unit scale, the lowest of forty draws."""
    blobs = ndimage.gaussian_filter(np.random.default_rng(1).standard_normal((32, 32, 32)), 3)
    blobs = np.clip(0.5 + 0.2 * blobs / blobs.std(), 0, 1).astype(np.float32)
    kept = []
    for place in places():
        changes = Changes(Augmentation(**own), place)
        made = changes.source(blobs, changes.field(blobs.shape, 32))
        kept.append(np.corrcoef(made.ravel(), blobs.ravel())[0, 1])
    assert least < min(kept) < least + 0.4
