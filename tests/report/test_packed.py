import base64
import gzip

import numpy as np
import pytest

from unscanned.report.packed import pack, pack_mask

SHAPE = (23, 19, 17)


def unpack(packed, mask=None):
    """The values of a packed volume, as viewer.js computes them."""
    planes = np.frombuffer(gzip.decompress(base64.b64decode(packed.data)), np.uint8).astype(int)
    folded = iter(planes[: len(planes) // 2] + 256 * planes[len(planes) // 2 :])
    levels = np.zeros(packed.shape, int)
    for k, j, i in np.ndindex(packed.shape[::-1]):
        if mask is not None and not mask[i, j, k]:
            continue
        neighbours = (levels[i - 1, j, k] if i else 0, levels[i, j - 1, k] if j else 0, levels[i, j, k - 1] if k else 0)
        this = next(folded)
        level = sum(neighbours) // 3 + (-(this + 1) // 2 if this % 2 else this // 2)
        levels[i, j, k] = level & 0xFFFF  # as a Uint16Array keeps it
    assert next(folded, None) is None
    return packed.low + packed.step * levels


@pytest.fixture
def volume():
    ramp = np.add.outer(np.add.outer(np.arange(SHAPE[0]), 2.0 * np.arange(SHAPE[1])), np.arange(SHAPE[2]))
    return (ramp + 3 * np.random.default_rng(0).standard_normal(SHAPE) - 20).astype(np.float32)


def test_every_voxel_comes_back_within_the_stated_error(volume):
    packing = pack({"one": volume}, 10**6)
    assert packing.bits == 12
    packed = packing.volumes["one"]
    assert np.abs(unpack(packed) - volume).max() <= 1.001 * packed.error < 0.02


def test_whole_numbers_of_16_bits_come_back_as_they_are(volume):
    whole = np.round(400 * volume).astype(np.float32)
    assert np.ptp(whole) > 2**14
    packed = pack({"one": whole}, 10**6).volumes["one"]
    assert packed.error == 0
    assert np.array_equal(unpack(packed), whole)


def test_whole_numbers_that_jump_by_all_16_bits_come_back_as_they_are():
    jumps = 65535.0 * (np.random.default_rng(1).random(SHAPE) > 0.5).astype(np.float32)
    packed = pack({"one": jumps}, 10**6).volumes["one"]
    assert packed.error == 0
    assert np.array_equal(unpack(packed), jumps)


def test_a_volume_of_one_value_comes_back(volume):
    packed = pack({"one": np.full(SHAPE, 2.5, np.float32)}, 10**6).volumes["one"]
    assert np.array_equal(unpack(packed), np.full(SHAPE, 2.5))


def test_less_room_makes_coarser_levels_then_keeps_the_mask_only_then_leaves_out_the_last(volume):
    mask = np.zeros(SHAPE, bool)
    mask[5:18, 4:15, 3:14] = True
    volumes = {"one": volume, "two": volume[::-1], "three": volume[:, ::-1]}
    limits = (100_000, 30_000, 12_000, 5_000, 4_000, 100)
    found = [pack(volumes, limit, mask) for limit in limits]
    assert [(packing.bits, packing.inside_only) for packing in found[:4]] == [
        (12, False),
        (9, False),
        (8, True),
        (7, True),
    ]
    assert [packing.left_out for packing in found] == [[], [], [], [], ["three"], ["one", "two", "three"]]
    assert found[4].wanted_bytes > limits[4]
    for limit, packing in zip(limits, found, strict=True):
        assert sum(len(each.data) for each in packing.volumes.values()) <= limit
        for name, packed in packing.volumes.items():
            inside = mask if packing.inside_only else np.ones(SHAPE, bool)
            back = unpack(packed, mask if packing.inside_only else None)
            assert np.abs(back - volumes[name])[inside].max() <= 1.001 * packed.error


def test_a_mask_comes_back(volume):
    mask = volume > 0
    back = np.frombuffer(gzip.decompress(base64.b64decode(pack_mask(mask))), np.uint8)
    assert np.array_equal(back.reshape(SHAPE, order="F"), mask)
