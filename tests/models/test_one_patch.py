"""A batch of one patch: the fast convolutions, the same function."""

import copy

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from unscanned.models.generators import build

OPTIONS = {"segresnet": {"filters": 8, "blocks_down": [1, 1], "blocks_up": [1]}, "unet": {}, "small": {}}


def pair(name):
    """The same network with and without, in training mode."""
    torch.manual_seed(0)
    fast = build(name, options=OPTIONS[name])
    plain = build(name, options=OPTIONS[name], convolution="plain")
    plain.load_state_dict(fast.state_dict())
    return fast, plain


def passed(network, x):
    """Return output, gradients of all weights, and the weights' shapes that the slow operator was called with."""
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiled:
        y = network(x)
        y.square().mean().backward()
    events = profiled.key_averages(group_by_input_shape=True)
    slow = [event.input_shapes[1] for event in events if event.key == "aten::slow_conv3d"]
    # kernels of 1 are faster there on one thread
    return y.detach(), [parameter.grad for parameter in network.parameters()], [at for at in slow if at[-1] > 1]


@pytest.mark.parametrize("name", OPTIONS)
def test_one_patch_takes_the_fast_convolutions_and_gives_the_same_output_and_gradients(name):
    fast, plain = pair(name)
    x = torch.randn(1, 1, 16, 16, 16)
    found, gradients, slow = passed(fast, x)
    expected, wanted, slow_of_plain = passed(plain, x)
    assert slow_of_plain
    assert not slow
    assert float((found - expected).norm() / expected.norm()) < 1e-5
    assert found.layout == torch.strided
    whole, whole_of_plain = (torch.cat([g.ravel() for g in part]) for part in (gradients, wanted))
    assert float((whole - whole_of_plain).norm() / whole_of_plain.norm()) < 1e-5


def test_a_copy_takes_them_too_and_what_a_file_holds_is_unchanged():
    fast, plain = pair("segresnet")
    twin = copy.deepcopy(fast)
    assert not passed(twin, torch.randn(1, 1, 16, 16, 16))[2]
    assert [*fast.state_dict()] == [*plain.state_dict()]


def test_two_patches_and_other_precisions_go_as_before():
    fast, plain = pair("segresnet")
    x = torch.randn(2, 1, 16, 16, 16)
    assert torch.equal(fast(x), plain(x))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(fast(x[:1]), plain(x[:1]))
    assert torch.equal(fast.double()(x[:1].double()), plain.double()(x[:1].double()))


def test_an_exported_network_holds_ordinary_tensors_alone():
    exported = torch.export.export(pair("small")[0].eval(), (torch.randn(1, 1, 16, 16, 16),))
    assert "mkldnn" not in str(exported.graph)
