import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unscanned.datasets.pairs import find_pairs
from unscanned.errors import DatasetError
from unscanned.settings import Augmentation, Prepare, Training
from unscanned.training.batches import PatchBatches
from unscanned.training.prepare import prepare
from unscanned.volumes.intensity import Contrast, Normalization
from unscanned.volumes.patches import axis_starts, cut, starts

CONSTANTS = Normalization(99.9, Contrast(500.0, 0.3, 0.4), Contrast(800.0, 0.2, 0.3))


@pytest.fixture(scope="module")
def cases(tiny_dataset, tmp_path_factory):
    prepared, _ = prepare(find_pairs(tiny_dataset)[:3], tmp_path_factory.mktemp("cache"), Prepare(shape=(32, 40, 32)))
    return prepared


@pytest.fixture
def batches(cases):
    return PatchBatches(cases, CONSTANTS, Training(patch=16, batch=5, seed=3))


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_the_report_cuts_196_training_and_8125_test_patches():
    assert len(starts((224, 224, 128), 32, 32)) == 196
    assert len(starts((224, 224, 128), 32, 8)) == 8125
    assert len(starts((128, 224, 224), 32, 8)) == 13 * 25 * 25


@st.composite
def grids(draw):
    patch = draw(st.integers(1, 9))
    stride = draw(st.integers(1, patch))
    shape = draw(st.tuples(*[st.integers(patch, 30)] * 3))
    return shape, patch, stride


@settings(deadline=None, max_examples=150)
@given(grids())
def test_no_voxel_is_left_out_and_no_patch_leaves_the_volume(grid):
    shape, patch, stride = grid
    covered = np.zeros(shape, int)
    positions = starts(shape, patch, stride)
    for start in positions:
        piece = cut(covered, start, patch)
        assert piece.shape == (patch,) * 3
        piece += 1
    assert covered.min() >= 1
    assert len(np.unique(positions, axis=0)) == len(positions)


@settings(deadline=None, max_examples=150)
@given(st.integers(1, 40), st.integers(0, 200), st.data())
def test_patches_of_an_axis_are_a_stride_apart_but_the_last(patch, extra, data):
    stride = data.draw(st.integers(1, patch))
    n = patch + extra
    first = axis_starts(n, patch, stride)
    assert first[0] == 0
    assert first[-1] == n - patch
    steps = np.diff(first)
    assert np.all(steps[:-1] == stride)
    assert np.all((steps > 0) & (steps <= stride))
    assert len(first) == 1 + -(-extra // stride)


@pytest.mark.parametrize(("shape", "patch", "stride"), [((31, 40, 40), 32, 8), ((40,) * 3, 32, 0), ((40,) * 3, 32, 33)])
def test_a_grid_that_would_leave_voxels_out_does_not_exist(shape, patch, stride):
    with pytest.raises(ValueError, match="no grid of patches"):
        starts(shape, patch, stride)


def test_a_partition_of_a_divisible_volume_meets_every_voxel_once():
    covered = np.zeros((32, 48, 16), int)
    for start in starts(covered.shape, 16, 16):
        cut(covered, start, 16)[:] += 1
    assert np.all(covered == 1)


def test_a_batch_is_the_z_scores_of_its_patches(cases, batches):
    inputs, targets = batches(2)
    assert inputs.shape == targets.shape == (5, 1, 16, 16, 16)
    for (number, *start), source, target in zip(batches.chosen(2), inputs, targets, strict=True):
        case = cases[number]
        np.testing.assert_allclose(source[0], (cut(case.source, start, 16) - 0.3) / 0.4, atol=1e-5)
        np.testing.assert_allclose(target[0], (cut(case.target, start, 16) - 0.2) / 0.3, atol=1e-5)


def test_a_batch_depends_on_seed_and_step_alone(cases, batches):
    later = batches(7)
    fresh = PatchBatches(cases, CONSTANTS, Training(patch=16, batch=5, seed=3))
    assert same(fresh(7), later)
    assert not same(fresh(6), later)
    assert not same(PatchBatches(cases, CONSTANTS, Training(patch=16, batch=5, seed=4))(7), later)


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("first", [0, 3])
def test_the_loader_yields_the_same_batches_for_any_number_of_workers_and_any_start(batches, workers, first):
    loaded = list(batches.loader(first, 9, workers))
    assert len(loaded) == 9 - first
    for step, batch in enumerate(loaded, first):
        assert same(batch, batches(step))


def test_the_global_random_state_changes_no_batch(batches):
    before = batches(4)
    np.random.seed(1)
    torch.manual_seed(1)
    assert same(batches(4), before)


@settings(deadline=None, max_examples=30)
@given(batch=st.integers(1, 40), seed=st.integers(0, 1000))
def test_every_patch_comes_once_a_pass_and_passes_differ_in_order(cases, batch, seed):
    batches = PatchBatches(cases, CONSTANTS, Training(patch=16, batch=batch, seed=seed))
    n = len(batches.index)
    assert n == 3 * 2 * 3 * 2
    rows = np.concatenate([batches.chosen(step) for step in range(-(-2 * n // batch))])
    passes = rows[:n], rows[n : 2 * n]
    everything = sorted(map(tuple, batches.index))
    for one in passes:
        assert sorted(map(tuple, one)) == everything
    assert not np.array_equal(*passes)
    assert batches.steps_per_pass == -(-n // batch)


def context_of(cases):
    """What a stage before might have made of each case."""
    return {
        case.name: np.random.default_rng(n).standard_normal(case.source.shape, np.float32)
        for n, case in enumerate(cases)
    }


def test_the_context_is_the_second_channel_of_the_same_patch(cases):
    volumes = context_of(cases)
    plain = PatchBatches(cases, CONSTANTS, Training(patch=16, batch=4))
    chained = PatchBatches(cases, CONSTANTS, Training(patch=16, batch=4), volumes)
    inputs, targets = chained(1)
    assert inputs.shape == (4, 2, 16, 16, 16)
    assert torch.equal(inputs[:, :1], plain(1)[0])
    assert torch.equal(targets, plain(1)[1])
    for (number, *start), pair in zip(chained.chosen(1), inputs, strict=True):
        assert np.array_equal(pair[1], cut(volumes[cases[number].name], start, 16))


def test_patches_with_too_little_head_are_left_out(cases):
    share = 0.6
    chosen = PatchBatches(cases, CONSTANTS, Training(patch=16, batch=1, min_head=share)).index
    expected = [
        (number, *start)
        for number, case in enumerate(cases)
        for start in itertools.product((0, 16), (0, 16, 24), (0, 16))
        if np.mean(cut(case.head, start, 16)) >= share
    ]
    assert 0 < len(expected) < 36
    assert sorted(map(tuple, chosen)) == expected


def test_no_patch_with_enough_head_is_an_error_that_names_the_setting(cases):
    with pytest.raises(DatasetError, match=r"training\.min_head"):
        PatchBatches(cases, CONSTANTS, Training(patch=32, batch=1, min_head=1.0))


def test_a_volume_smaller_than_the_patch_is_refused_by_its_case(cases):
    with pytest.raises(DatasetError, match="sub-001: a training volume is smaller than the patch"):
        PatchBatches(cases, CONSTANTS, Training(patch=40, batch=1))


FLIPS = Augmentation(flip=0.5, shift=0.5)


def test_flips_and_shifts_depend_on_seed_step_and_slot_alone(cases):
    settings = Training(patch=16, batch=5, seed=3)
    one, other = (PatchBatches(cases, CONSTANTS, settings, augmentation=FLIPS) for _ in range(2))
    later = other(7)
    one(0)
    assert same(one(7), later)
    another = PatchBatches(cases, CONSTANTS, settings.model_copy(update={"seed": 4}), augmentation=FLIPS)
    assert not same(another(7), later)
    one.order = 1
    assert not same(one(7), later)


def test_about_half_of_the_patches_are_mirrored_left_to_right_source_target_context_and_head_alike(cases):
    volumes = context_of(cases)
    settings, flips = Training(patch=16, batch=32), Augmentation(flip=0.5)
    plain = PatchBatches(cases, CONSTANTS, settings, volumes, gives_head=True)(0)
    mirrored = PatchBatches(cases, CONSTANTS, settings, volumes, augmentation=flips, gives_head=True)(0)
    changed = 0
    for before, now in zip(zip(*plain, strict=True), zip(*mirrored, strict=True), strict=True):
        is_mirrored = not torch.equal(before[0], now[0])
        changed += is_mirrored
        assert all(torch.equal(a.flip(1) if is_mirrored else a, b) for a, b in zip(before, now, strict=True))
    assert 8 <= changed <= 24


def test_shifted_patches_lie_inside_the_volume_near_their_place_and_hold_enough_of_the_head(cases):
    settings = Training(patch=16, batch=18, min_head=0.3)
    plain = PatchBatches(cases, CONSTANTS, settings)
    moved = PatchBatches(cases, CONSTANTS, settings, augmentation=Augmentation(shift=0.5))
    rows, places = plain.chosen(0), moved.chosen(0)
    assert np.array_equal(rows[:, 0], places[:, 0])
    assert np.abs(places - rows).max() <= 8
    assert not np.array_equal(rows, places)
    for (number, *start), target in zip(places.tolist(), moved(0)[1], strict=True):
        assert cut(cases[number].head, start, 16).mean() >= 0.3
        expected = CONSTANTS.target.standardize(cut(cases[number].target, start, 16))
        assert np.array_equal(target[0], expected)
    assert str(tuple(places[0, 1:].tolist())) in moved.describe(0)


def test_a_batch_says_where_the_head_is_if_it_is_asked(cases):
    batches = PatchBatches(cases, CONSTANTS, Training(patch=16, batch=4), gives_head=True)
    _, _, head = batches(0)
    for (number, *start), inside in zip(batches.chosen(0).tolist(), head, strict=True):
        assert np.array_equal(inside[0], cut(cases[number].head, start, 16))


def test_the_target_is_only_mirrored_and_shares_the_receive_field(cases):
    settings = Training(patch=16, batch=6, margin=2)
    plain, kept, shared = (
        PatchBatches(cases, CONSTANTS, settings, augmentation=augmentation)(3)
        for augmentation in (
            Augmentation(),
            Augmentation(intensity=0.3, noise=0.1, blur=1.0, resolution=2.0),
            Augmentation(field=0.5),
        )
    )
    assert kept[0].shape == plain[0].shape == (6, 1, 20, 20, 20)
    assert not torch.equal(kept[0], plain[0])
    assert torch.equal(kept[1], plain[1])
    source, target = (
        [getattr(CONSTANTS, name).unit(tensor.numpy()) for tensor in (plain[n], shared[n])]
        for n, name in enumerate(("source", "target"))
    )
    source = [array[:, :, 2:-2, 2:-2, 2:-2] for array in source]
    bright = source[0] > 0.2
    field = source[1][bright] / source[0][bright]
    assert np.allclose(target[0][bright] * field, target[1][bright], rtol=1e-3, atol=1e-4)
    assert np.ptp(field) > 0.1
