import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from unscanned.errors import SettingsError
from unscanned.models import generators
from unscanned.synthesis.reconstruct import default_batch, reconstruct
from unscanned.volumes.patches import cut, starts


class Source(nn.Module):
    """Returns channel 0."""

    def forward(self, x):
        return x[:, :1]


class Counting(nn.Module):
    """Adds up the voxels around each voxel, and counts the patches that it was given."""

    def __init__(self):
        super().__init__()
        self.patches = 0

    def forward(self, x):
        self.patches += len(x)
        return nn.functional.avg_pool3d(x[:, :1], 3, 1, 1) * 27


class Mean(nn.Module):
    """Fills each patch with its mean, so that every patch has its own say in an overlap."""

    def forward(self, x):
        return x[:, :1].mean((2, 3, 4), keepdim=True).expand_as(x[:, :1])


def noise(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def trained(in_channels=1, **options):
    """A small generator whose norms have seen data."""
    torch.manual_seed(0)
    network = generators.build("small", in_channels=in_channels, **options)
    with torch.no_grad():
        for seed in range(3):
            network(torch.randn(2, in_channels, 16, 16, 16, generator=torch.Generator().manual_seed(seed)) * 2 + 0.5)
    return network.eval()


@pytest.mark.parametrize(("shape", "residual", "channels"), [((40, 48, 56), True, 1), ((32, 45, 39), False, 2)])
def test_it_equals_the_sliding_window_of_monai(shape, residual, channels):
    inferers = pytest.importorskip("monai.inferers", reason="MONAI is not installed")
    network = trained(channels, residual=residual, convolution="plain")
    volume = noise(channels, *shape)
    with torch.inference_mode():
        expected = inferers.sliding_window_inference(
            torch.from_numpy(volume)[None], (32, 32, 32), 4, network, overlap=0.75, mode="constant"
        )
    assert np.abs(reconstruct(volume, network, patch=32, stride=8) - expected[0, 0].numpy()).max() < 1e-5


@settings(deadline=None, max_examples=50)
@given(
    shape=st.tuples(*[st.integers(1, 70)] * 3),
    patch=st.sampled_from([8, 16, 24]),
    share=st.sampled_from([1, 2, 4]),
    batch=st.sampled_from([1, 4, 1000]),
)
def test_a_network_that_returns_its_input_gives_the_volume_back_whatever_its_shape(shape, patch, share, batch):
    volume = noise(1, *shape)
    result = reconstruct(volume, Source(), patch=patch, stride=patch // share, batch=batch)
    assert result.shape == shape
    assert result.dtype == np.float32
    assert np.abs(result - volume[0]).max() < 1e-6 * np.abs(volume).max() * 2


@settings(deadline=None, max_examples=25)
@given(shape=st.tuples(*[st.integers(5, 14)] * 3), stride=st.integers(1, 5))
def test_every_voxel_is_the_plain_mean_of_the_patches_that_cover_it(shape, stride):
    volume = noise(*shape)
    total, count = np.zeros(shape), np.zeros(shape)
    for start in starts(shape, 5, stride):
        cut(total, start, 5)[:] += cut(volume, start, 5).mean()
        cut(count, start, 5)[:] += 1
    result = reconstruct(volume[None], Mean(), patch=5, stride=stride, batch=7)
    np.testing.assert_allclose(result, total / count, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 40, 3), (15, 16, 17)])
def test_a_volume_smaller_than_the_patch_is_that_of_the_volume_with_its_edge_repeated(shape):
    network, volume = trained(), noise(1, *shape)
    padded = np.pad(volume, [(0, 0), *((0, max(0, 16 - n)) for n in shape)], mode="edge")
    expected = reconstruct(padded, network, patch=16, stride=8)[tuple(map(slice, shape))]
    assert np.array_equal(reconstruct(volume, network, patch=16, stride=8), expected)


@pytest.mark.parametrize("batch", [2, 3, 100])
def test_the_number_of_patches_at_a_time_changes_nothing_but_rounding(batch):
    network, volume = trained(residual=True), noise(1, 20, 29, 33)
    one = reconstruct(volume, network, patch=16, stride=8, batch=1)
    np.testing.assert_allclose(reconstruct(volume, network, patch=16, stride=8, batch=batch), one, atol=1e-5)


@pytest.mark.parametrize("batch", [1, 4, 1000])
def test_a_constant_patch_is_mapped_once_for_each_constant(batch):
    volume = np.zeros((1, 32, 32, 32), np.float32)
    volume[:, :, :, 16:] = 3
    volume[:, :8, :8, :8] = noise(8, 8, 8)
    network = Counting()
    result = reconstruct(volume, network, patch=8, stride=8, batch=batch)
    assert network.patches == 1 + 2
    for corner in itertools.product((8, 16, 24), repeat=3):
        place = tuple(slice(first, first + 8) for first in corner)
        alone = reconstruct(volume[(slice(None), *place)], Counting(), patch=8, stride=8)
        assert np.array_equal(result[place], alone)


def test_patches_are_constant_only_where_every_channel_is():
    volume = np.zeros((2, 16, 16, 16), np.float32)
    volume[1, :8] = noise(8, 16, 16)
    network = Counting()
    reconstruct(volume, network, patch=8, stride=8)
    assert network.patches == 4 + 1


@pytest.mark.parametrize("training", [True, False])
def test_the_network_is_in_evaluation_while_it_runs_and_then_as_it_was(training):
    network, volume = trained().train(training), noise(1, 16, 16, 24)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    expected = reconstruct(volume, trained(), patch=16, stride=8)
    assert np.array_equal(reconstruct(volume, network, patch=16, stride=8), expected)
    assert network.training is training
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_progress_counts_patches():
    told = []
    reconstruct(noise(1, 16, 8, 8), Source(), patch=8, stride=4, batch=2, progress=lambda *now: told.append(now))
    assert told == [(2, 3, "patches"), (3, 3, "patches")]


@pytest.mark.parametrize("options", [{"stride": 0}, {"stride": 17}, {"stride": -1}, {"batch": 0}, {"batch": -1}])
def test_a_stride_or_batch_that_would_leave_voxels_out_is_refused(options):
    with pytest.raises(SettingsError):
        reconstruct(noise(1, 16, 16, 16), Source(), **{"patch": 16, "stride": 8, **options})


def test_the_volume_itself_is_left_as_it_was():
    volume = noise(1, 16, 16, 16)
    before = volume.copy()
    reconstruct(volume, Source(), patch=16, stride=8)
    assert np.array_equal(volume, before)


@pytest.mark.parametrize(("patch", "batch"), [(8, 64), (16, 64), (32, 16), (48, 4), (64, 2), (128, 1)])
def test_larger_patches_go_fewer_at_a_time(patch, batch):
    assert default_batch(torch.device("cpu"), patch) == batch


def test_gaussian_weights_keep_what_all_patches_agree_on_and_quieten_the_borders():
    class Bordered(nn.Module):
        """The identity but for the outermost voxels of a patch, as a network that pads has them."""

        def forward(self, x):
            y = x.clone()
            for axis in (2, 3, 4):
                y.select(axis, 0).add_(1.0)
                y.select(axis, -1).add_(1.0)
            return y

    volume = np.random.default_rng(0).standard_normal((1, 40, 33, 32)).astype(np.float32)
    kept = reconstruct(volume, nn.Identity(), patch=16, stride=8, blend="gaussian")
    assert np.allclose(kept, volume[0], atol=1e-5)
    inside = (slice(16, -16), slice(12, -12), slice(12, -12))
    equal, gaussian = (
        np.abs(reconstruct(volume, Bordered(), patch=16, stride=8, blend=blend) - volume[0])[inside].max()
        for blend in ("equal", "gaussian")
    )
    assert gaussian < 0.1 * equal
