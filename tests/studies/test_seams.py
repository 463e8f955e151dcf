import numpy as np
import pytest
import torch
from seams import border_planes, border_ratios, seam_index
from torch import nn

from unscanned.errors import DatasetError
from unscanned.synthesis.reconstruct import reconstruct
from unscanned.volumes.patches import starts


def volumes(shape=(17, 19, 16), noise=0.1, seed=0):
    random = np.random.default_rng(seed)
    target = random.random(shape).astype(np.float32)
    return target, (target + noise * random.standard_normal(shape)).astype(np.float32)


def ball(shape):
    grid = np.meshgrid(*(np.linspace(-1, 1, length) for length in shape), indexing="ij")
    return sum(axis**2 for axis in grid) < 0.8


@pytest.mark.parametrize(
    ("n", "patch", "stride", "expected"),
    [
        (64, 32, 16, [16, 32, 48]),
        (128, 48, 32, [32, 48, 64, 80, 112]),
        (160, 48, 32, [32, 48, 64, 80, 96, 112, 144]),
        (100, 32, 32, [32, 64, 68, 96]),  # the last patch is moved back to 68
        (48, 48, 32, []),
        (20, 32, 8, []),
    ],
)
def test_borders_are_where_a_patch_of_the_reconstruction_begins_or_ends(n, patch, stride, expected):
    assert border_planes((n,), patch, stride) == [expected]
    if n > patch:
        along = starts((n, n, n), patch, stride)[:, 2]
        assert set(expected) == {*along.tolist(), *(along + patch).tolist()} - {0, n}


def test_the_seam_index_of_a_volume_without_seams_is_one():
    target, _ = volumes((32, 40, 100))
    planes = border_planes(target.shape, 16, 12)
    assert seam_index(target, target, planes=planes) == pytest.approx(1)
    assert seam_index(target, 3 * target, ball(target.shape), planes=planes) == pytest.approx(1)


def test_steps_at_known_planes_are_told_by_their_size():
    """A ramp of steps of 1 along k, and of 3 across the borders: at these the volume changes three times as much."""
    planes = border_planes((24, 24, 100), 48, 32)
    assert planes == [[], [], [32, 48, 52, 80]]
    steps = np.ones(100, np.float32)
    ramp = np.broadcast_to(np.cumsum(steps), (24, 24, 100))
    steps[planes[2]] = 3
    seamed = np.broadcast_to(np.cumsum(steps), (24, 24, 100))
    assert border_ratios(ramp, planes=planes) == [None, None, pytest.approx(1)]
    assert seam_index(ramp, seamed, planes=planes) == pytest.approx(3)
    between = [[], [], [40, 66]]
    assert seam_index(ramp, seamed, planes=between) == pytest.approx(1 / (1 + 2 * 4 / 97))


class Slanted(nn.Module):
    """Adds to each patch a ramp that starts anew with it, as a network does that goes wrong at borders."""

    def forward(self, x):
        ramp = torch.linspace(-1, 1, x.shape[-1])
        return x + ramp[:, None, None] + ramp[:, None] + ramp


@pytest.mark.parametrize(("patch", "stride"), [(16, 8), (24, 16), (24, 18), (16, 16)])
def test_the_seams_of_a_reconstruction_are_found_at_its_borders_and_only_there(patch, stride):
    target, _ = volumes((40, 48, 50))
    made = reconstruct(target[None], Slanted(), patch=patch, stride=stride)
    planes = border_planes(target.shape, patch, stride)
    elsewhere = [{p + 3 for p in along} - {*along} for along in planes]
    assert seam_index(target, made, ball(target.shape), planes=planes) > 1.1
    assert seam_index(target, made, ball(target.shape), planes=elsewhere) < 1


def test_the_seam_index_needs_borders_and_other_planes():
    target, synthetic = volumes((6, 6, 6))
    with pytest.raises(DatasetError, match="no patch borders to compare"):
        seam_index(target, synthetic, planes=border_planes(target.shape, 8, 8))
    with pytest.raises(DatasetError, match="no patch borders to compare"):
        seam_index(target, synthetic, planes=border_planes(target.shape, 3, 1))
