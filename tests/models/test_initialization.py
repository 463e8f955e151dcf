"""Weights begin as their name says."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from unscanned.errors import SettingsError
from unscanned.models import discriminators, generators
from unscanned.models.initialization import INITIALIZATIONS, initialize

INPUTS, OUTPUTS, TAPS = 16, 32, 27


def layer() -> nn.Conv3d:
    torch.manual_seed(0)
    return nn.Conv3d(INPUTS, OUTPUTS, 3)


@pytest.mark.parametrize(
    ("name", "deviation"),
    [
        ("xavier_uniform", math.sqrt(2 / (TAPS * (INPUTS + OUTPUTS)))),
        ("xavier_normal", math.sqrt(2 / (TAPS * (INPUTS + OUTPUTS)))),
        ("kaiming_normal", math.sqrt(2 / (1 + 0.2**2) / (TAPS * INPUTS))),
        ("normal", 0.02),
    ],
)
def test_the_weights_have_the_spread_of_their_paper_and_biases_are_zero(name: str, deviation: float) -> None:
    filled = layer()
    initialize(filled, name, where="here")
    assert float(filled.weight.detach().std()) == pytest.approx(deviation, rel=0.03)
    assert abs(float(filled.weight.detach().mean())) < 0.03 * deviation
    assert filled.bias is not None
    assert not filled.bias.any()
    is_uniform = float(filled.weight.detach().abs().max()) <= math.sqrt(3) * deviation * 1.001
    assert is_uniform == (name == "xavier_uniform")


def test_as_pytorch_makes_them_they_stay() -> None:
    filled = layer()
    initialize(filled, "pytorch", where="here")
    assert torch.equal(filled.weight, layer().weight)


@pytest.mark.parametrize("build", [generators.build, discriminators.build])
def test_networks_take_it_by_name_and_begin_with_xavier_uniform(build) -> None:
    first = {}
    for name in INITIALIZATIONS:
        torch.manual_seed(0)
        first[name] = next(build("small", initialization=name).parameters())
    torch.manual_seed(0)
    assert torch.equal(next(build("small").parameters()), first["xavier_uniform"])
    assert len({float(weight.detach().sum()) for weight in first.values()}) == len(INITIALIZATIONS)
    with pytest.raises(SettingsError, match="xavier_uniform") as refusal:
        build("small", initialization="zero")
    assert "initialization" in str(refusal.value)
