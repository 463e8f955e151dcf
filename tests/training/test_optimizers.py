"""Every optimizer takes its own kind of step, and goes on from a checkpoint as if nothing had been."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from unscanned.errors import SettingsError
from unscanned.settings import Training
from unscanned.training.checkpoint import restore, state
from unscanned.training.optimizers import OPTIMIZERS, build

RATE, BETAS = 0.1, (0.5, 0.9)
SETTINGS = Training(learning_rate=RATE, beta1=BETAS[0], beta2=BETAS[1])


def weights(name: str, steps: int, *, saved_after: int | None = None) -> torch.Tensor:
    """Return a weight that began at 1 after steps with gradients 1, 2, 3, ..."""
    layer = nn.Linear(1, 1, bias=False)
    nn.init.ones_(layer.weight)
    settings = SETTINGS.model_copy(update={"optimizer": name})
    optimizer = build(layer, settings)
    for step in range(steps):
        if step == saved_after:
            tensors = {key: tensor.clone() for key, tensor in state({"g": layer}, {"o": optimizer}).items()}
            layer = nn.Linear(1, 1, bias=False)
            optimizer = build(layer, settings)
            restore(tensors, {"g": layer}, {"o": optimizer})
        layer.weight.grad = torch.full_like(layer.weight, step + 1.0)
        optimizer.step()
    return layer.weight.detach()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("adam", 1 - RATE),  # the first step of Adam is the learning rate
        ("adamw", 1 - 0.01 * RATE - RATE),  # and the weight shrinks by the decay
        ("rmsprop", 1 - RATE / (1 - BETAS[1]) ** 0.5),
        ("sgd", 1 - RATE),
    ],
)
def test_the_first_step_is_the_one_worked_out_by_hand(name: str, expected: float) -> None:
    assert float(weights(name, 1)) == pytest.approx(expected, rel=1e-5)


def test_momentum_is_the_first_beta() -> None:
    assert float(weights("sgd", 2)) == pytest.approx(1 - RATE - RATE * (2 + BETAS[0] * 1), rel=1e-5)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_from_a_checkpoint_it_goes_on_bit_for_bit(name: str) -> None:
    assert torch.equal(weights(name, 5, saved_after=3), weights(name, 5))


def test_a_name_that_is_not_known_is_refused_with_the_known_ones() -> None:
    with pytest.raises(SettingsError, match="adam, adamw, rmsprop, sgd"):
        build(nn.Linear(1, 1), SETTINGS.model_copy(update={"optimizer": "lion"}))
