import numpy as np
import pytest
import torch

from unscanned.models import generators
from unscanned.settings import Synthesis
from unscanned.synthesis.context import PatchChain, chain
from unscanned.synthesis.reconstruct import reconstruct


@pytest.fixture(scope="module")
def networks():
    """Three generators, the second and third with a second channel."""
    torch.manual_seed(0)
    return [generators.build("small", in_channels=n, residual=True).eval() for n in (1, 2, 2)]


@pytest.fixture(scope="module")
def source():
    return np.random.default_rng(0).standard_normal((20, 24, 17)).astype(np.float32)


def test_a_chain_of_one_is_plain_reconstruction(networks, source):
    expected = reconstruct(source[None], networks[0], patch=16, stride=8)
    assert np.array_equal(chain(source, networks[:1], Synthesis(stride=8), context="volume", patch=16), expected)
    np.testing.assert_allclose(
        chain(source, networks[:1], Synthesis(stride=8), context="patch", patch=16), expected, atol=1e-5
    )


def test_each_stage_sees_the_source_and_the_whole_volume_of_the_one_before(networks, source):
    expected = reconstruct(source[None], networks[0], patch=16, stride=8)
    for network in networks[1:]:
        expected = reconstruct(np.stack([source, expected]), network, patch=16, stride=8)
    assert np.array_equal(chain(source, networks, Synthesis(stride=8), context="volume", patch=16), expected)


def test_on_patches_each_stage_sees_the_output_of_the_one_before_on_the_same_patch(networks):
    x = torch.randn(2, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        first = networks[0](x)
        second = networks[1](torch.cat([x, first], 1))
        third = networks[2](torch.cat([x, second], 1))
        assert torch.equal(PatchChain(networks)(x), third)


def test_a_chain_on_patches_averages_the_outputs_of_the_last_stage_alone(networks, source):
    expected = reconstruct(source[None], PatchChain(networks), patch=16, stride=8)
    made = chain(source, networks, Synthesis(stride=8), context="patch", patch=16)
    np.testing.assert_allclose(made, expected, atol=1e-5)
    assert not np.allclose(made, chain(source, networks, Synthesis(stride=8), context="volume", patch=16), atol=1e-3)


@pytest.mark.parametrize(("context", "stages"), [("volume", 3), ("patch", 1)])
def test_progress_runs_once_from_nothing_to_all_over_the_stages(networks, source, context, stages):
    told = []
    chain(source, networks, Synthesis(stride=16), context=context, patch=16, progress=lambda *now: told.append(now))
    done = [now[0] for now in told]
    assert done == [8 * stage for stage in range(1, stages + 1)]  # fewer patches than are mapped at a time on a CPU
    assert {now[1] for now in told} == {8 * stages}
