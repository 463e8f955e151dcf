"""A step whose backward pass finds what it needs in the host's memory: the bits of one without."""

import contextlib

import pytest
import torch

from unscanned.machine.offload import keep_on_host
from unscanned.settings import resolve
from unscanned.training.stage import build_step

CASES = {
    "the nine layers and their discriminator": {"preset": "resgan"},
    "a residual U-Net": {"preset": "strong"},
    "a gradient penalty": {"preset": "strong-gan", "loss": {"adversarial_after": 0}},
    "in parts": {"preset": "resgan", "generator": {"name": "small"}, "training": {"accumulate": 2}},
}

AS_A_GPU_COMPUTES = {"preset": "resgan", "generator": {"convolution": "plain"}}


def taken(case, device, *, offload=False, through=contextlib.nullcontext, patch=16):
    """Take two steps of two patches of noise, and return losses and networks."""
    tables = {name: table for name, table in case.items() if name != "preset"}
    tables["training"] = {**tables.get("training", {}), "patch": patch, "validation_stride": patch, "offload": offload}
    tables |= {"synthesis": {"stride": patch}, "context": {"stride": patch}}
    torch.manual_seed(0)
    step = build_step(resolve(case["preset"], overrides=tables), 1, device)
    source, target = torch.randn(2, 2, 1, patch, patch, patch).to(device)
    with through():
        losses = [step(source, target) for _ in range(2)]
    return losses, {name: network.state_dict() for name, network in step.networks.items()}


def assert_same_bits(one, other):
    assert one[0] == other[0]
    for name, state in one[1].items():
        for key, value in state.items():
            assert torch.equal(value, other[1][name][key]), (name, key)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_steps_are_those_without_where_all_that_is_kept_is_a_copy(case):
    """A CPU has no other memory to keep it in, but the copies are made and read all the same."""
    assert_same_bits(taken(case, torch.device("cpu"), through=keep_on_host), taken(case, torch.device("cpu")))


def test_a_cpu_has_nothing_to_offload():
    case = CASES["in parts"]
    assert_same_bits(taken(case, torch.device("cpu"), offload=True), taken(case, torch.device("cpu")))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no CUDA device")
def test_a_gpu_takes_the_same_steps_in_less_memory():
    device, case = torch.device("cuda"), AS_A_GPU_COMPUTES
    found, peaks = [], []
    for offload in (False, True):
        torch.cuda.reset_peak_memory_stats(device)
        losses, _ = taken(case, device, offload=offload, patch=32)
        peaks.append(torch.cuda.max_memory_allocated(device))
        found.append(losses)
    assert found[0] == [pytest.approx(each, rel=1e-4) for each in found[1]]  # CUDA adds in no fixed order
    assert peaks[1] < 0.8 * peaks[0]
