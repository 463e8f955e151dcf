"""Every optimizer takes its own kind of step, and goes on from a checkpoint as if nothing had been."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from unscanned.errors import SettingsError
from unscanned.settings import Training
from unscanned.training.checkpoint import restore, state
from unscanned.training.optimizers import OPTIMIZERS, build, clip, rate, set_rate

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


def test_the_rate_rises_over_the_warm_up_and_falls_by_half_a_cosine() -> None:
    settings = Training(schedule="cosine", warmup_steps=4, final_rate=0.1)
    rates = [rate(settings, step, 104) for step in range(105)]
    assert rates[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert rates[4 + 50] == pytest.approx(0.55)
    assert rates[-1] == pytest.approx(0.1)
    assert all(later < earlier for earlier, later in itertools.pairwise(rates[4:]))


def test_by_default_the_rate_stays_the_one_that_is_set_bit_for_bit() -> None:
    assert {rate(Training(), step, 10) for step in range(10)} == {1.0}
    optimizer = build(nn.Linear(1, 1), SETTINGS)
    set_rate([optimizer], 1.0)
    assert optimizer.param_groups[0]["lr"] == RATE


def test_a_share_of_the_rate_is_that_of_the_first_one_however_often_it_was_changed() -> None:
    optimizer = build(nn.Linear(1, 1), SETTINGS)
    for share in (0.5, 0.1, 0.7):
        set_rate([optimizer], share)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(share * RATE)


def test_the_weight_decay_of_adamw_is_the_one_that_is_set() -> None:
    layer = nn.Linear(1, 1, bias=False)
    nn.init.ones_(layer.weight)
    optimizer = build(layer, SETTINGS.model_copy(update={"optimizer": "adamw", "weight_decay": 0.5}))
    layer.weight.grad = torch.ones_like(layer.weight)
    optimizer.step()
    assert float(layer.weight.detach()) == pytest.approx(1 - 0.5 * RATE - RATE, rel=1e-5)


@pytest.mark.parametrize(("most", "expected"), [(None, [3.0, 4.0]), (10.0, [3.0, 4.0]), (1.0, [0.6, 0.8])])
def test_a_gradient_is_cut_to_its_norm_where_it_is_longer(most: float | None, expected: list[float]) -> None:
    layer = nn.Linear(2, 1, bias=False)
    layer.weight.grad = torch.tensor([[3.0, 4.0]])
    clip(layer, torch.tensor(5.0), most)
    assert layer.weight.grad[0].tolist() == pytest.approx(expected, rel=1e-5)
