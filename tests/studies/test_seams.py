import numpy as np
import pytest
from seams import seam_index

from unscanned.errors import DatasetError, SettingsError


def volumes(shape=(17, 19, 16), noise=0.1, seed=0):
    random = np.random.default_rng(seed)
    target = random.random(shape).astype(np.float32)
    return target, (target + noise * random.standard_normal(shape)).astype(np.float32)


def ball(shape):
    grid = np.meshgrid(*(np.linspace(-1, 1, length) for length in shape), indexing="ij")
    return sum(axis**2 for axis in grid) < 0.8


def test_the_seam_index_of_a_volume_without_seams_is_one():
    target, _ = volumes((32, 32, 32))
    assert seam_index(target, target, stride=8) == pytest.approx(1)
    assert seam_index(target, 3 * target, ball(target.shape), stride=8) == pytest.approx(1)


@pytest.mark.parametrize("offset", [(0, 0, 0), (3, -2, 5)])
def test_the_seam_index_grows_with_steps_at_the_patch_borders_and_only_there(offset):
    target, _ = volumes((33, 40, 37))
    blocks = sum(
        ((np.arange(length) - start) // 8 % 2).reshape([-1 if axis == own else 1 for axis in range(3)])
        for own, (length, start) in enumerate(zip(target.shape, offset, strict=True))
    )
    seamed = (target + 2.0 * blocks).astype(np.float32)
    assert seam_index(target, seamed, ball(target.shape), stride=8, offset=offset) > 3
    elsewhere = tuple(start + 4 for start in offset)
    assert seam_index(target, seamed, ball(target.shape), stride=8, offset=elsewhere) < 1


def test_the_seam_index_needs_a_border():
    target, synthetic = volumes((6, 6, 6))
    with pytest.raises(DatasetError, match="no patch border"):
        seam_index(target, synthetic, stride=8)
    with pytest.raises(SettingsError, match="at least 2"):
        seam_index(target, synthetic, stride=1)
