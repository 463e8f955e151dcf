import copy

import pytest
import torch
from torch import nn

from unscanned.errors import TrainingError
from unscanned.losses import (
    GeneratorLoss,
    discriminator_loss,
    generator_adversarial_loss,
    gradient_difference_loss,
    l1_loss,
)
from unscanned.models import discriminators, generators
from unscanned.training.adversary import Adversary
from unscanned.training.step import Step

LOSS = GeneratorLoss({"l1": 1.0, "gdl": 1.0})


@pytest.mark.parametrize("order", ["discriminator_first", "generator_first"])
def test_the_generator_learns_from_the_discriminator_as_it_is_after_or_before_its_step(order):
    torch.manual_seed(0)
    generator, discriminator = generators.build("small"), discriminators.build("small", patch=16)
    optimizer = torch.optim.Adam(generator.parameters(), 1e-3)
    adversary = Adversary(discriminator, torch.optim.Adam(discriminator.parameters(), 1e-2))
    source, target = torch.randn(2, 2, 1, 16, 16, 16)
    synthetic = generator(source).detach()
    old = copy.deepcopy(discriminator)
    first = discriminator_loss(old(source, target), old(source, synthetic)).item()
    take_step = Step(generator, optimizer, LOSS, adversary, adversarial=0.5, order=order)
    losses = take_step(source, target)
    new, old = (generator_adversarial_loss(network(source, synthetic)).item() for network in (discriminator, old))
    seen, unseen = (new, old) if order == "discriminator_first" else (old, new)
    assert losses["adversarial"] == pytest.approx(seen, rel=1e-5)
    assert losses["adversarial"] != pytest.approx(unseen, rel=1e-2)
    assert losses["d_loss"] == pytest.approx(first, rel=1e-5)  # on the synthetic batch that both saw


class Judge(nn.Module):
    """A discriminator small enough that the gradients of all three terms are of one size."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(1.0))

    def forward(self, source, target):
        return self.weight * (target - source).mean((1, 2, 3, 4))[:, None]


class Scaled(nn.Module):
    """A generator of one weight."""

    def __init__(self, value=0.7):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(value))

    def forward(self, source):
        return self.weight * source[:, -1:]


def parts(generator, discriminator):
    adversary = Adversary(discriminator, torch.optim.SGD(discriminator.parameters(), 0.5))
    return generator, torch.optim.SGD(generator.parameters(), 0.1), adversary


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_each_term_has_its_own_weight(reduction):
    torch.manual_seed(0)
    source, target = torch.randn(2, 2, 1, 4, 4, 4)
    generator, optimizer, adversary = parts(Scaled(), Judge())
    weight = generator.weight.detach().clone().requires_grad_()
    synthetic = weight * source
    take_step = Step(
        generator, optimizer, GeneratorLoss({"l1": 2.0, "gdl": 5.0}, reduction), adversary, adversarial=30.0
    )
    losses = take_step(source, target)
    adversarial = generator_adversarial_loss(adversary.discriminator(source, synthetic))  # as it is after its step
    l1, gdl = (term(synthetic, target, reduction) for term in (l1_loss, gradient_difference_loss))
    expected = 30 * adversarial + 2 * l1 + 5 * gdl
    assert losses["g_loss"] == pytest.approx(expected.item(), rel=1e-6)
    assert losses["adversarial"] == pytest.approx(adversarial.item(), rel=1e-6)
    voxels = 64 if reduction == "sum" else 1
    assert losses["l1"] * voxels == pytest.approx(l1.item(), rel=1e-6)
    assert losses["gdl"] * voxels == pytest.approx(gdl.item(), rel=1e-6)
    (gradient,) = torch.autograd.grad(expected, weight)
    assert generator.weight.item() == pytest.approx(0.7 - 0.1 * gradient.item(), rel=1e-5)


def test_the_context_on_a_patch_is_what_the_earlier_stages_make_of_the_source():
    seen = []

    class Recording(Scaled):
        def forward(self, source):
            seen.append(source.detach().clone())
            return super().forward(source)

    torch.manual_seed(0)
    source, target = torch.randn(2, 2, 1, 4, 4, 4)
    generator, optimizer, _ = parts(Recording(), Judge())
    previous = Scaled(3.0)
    Step(generator, optimizer, LOSS, previous=previous)(source, target)
    (given,) = seen
    assert torch.equal(given, torch.cat([source, 3.0 * source], 1))
    assert previous.weight.grad is None


class _Broken(torch.autograd.Function):
    """The identity, whose gradient is infinite."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * float("inf")


@pytest.mark.parametrize("broken", ["generator", "discriminator"])
def test_a_gradient_that_is_not_finite_is_refused_before_the_weights_move(broken):
    class Fragile(Scaled if broken == "generator" else Judge):
        def forward(self, *images):
            return _Broken.apply(super().forward(*images))

    torch.manual_seed(0)
    source, target = torch.randn(2, 2, 1, 4, 4, 4)
    generator, optimizer, adversary = parts(*((Fragile(), Judge()) if broken == "generator" else (Scaled(), Fragile())))
    faulty = generator if broken == "generator" else adversary.discriminator
    before = faulty.weight.item()
    take_step = Step(generator, optimizer, LOSS, adversary, adversarial=0.5)
    with pytest.raises(TrainingError, match=f"the {broken}'s loss or gradient is not finite.*gradient norm (inf|nan)"):
        take_step(source, target)
    assert faulty.weight.item() == before


def test_outside_the_head_only_the_share_of_the_error_that_is_set_counts():
    source, target = torch.ones(1, 1, 4, 4, 4), torch.zeros(1, 1, 4, 4, 4)
    head = torch.zeros(target.shape, dtype=torch.bool)
    head[:, :, :2] = True
    for outside, expected in ((1.0, 0.5), (0.25, 0.3125), (0.0, 0.25)):
        generator = Scaled(0.5)
        optimizer = torch.optim.SGD(generator.parameters(), 0.1)
        loss = GeneratorLoss({"l1": 1.0}, "mean")
        losses = Step(generator, optimizer, loss, outside=outside)(source, target, head)
        assert losses["l1"] == pytest.approx(expected)
        assert generator.weight.item() == pytest.approx(0.5 - 0.1 * 2 * expected)


def test_an_adversary_that_takes_no_part_is_neither_trained_nor_heard():
    torch.manual_seed(0)
    source, target = torch.randn(2, 2, 1, 4, 4, 4)
    generator, optimizer, adversary = parts(Scaled(), Judge())
    alone = Scaled()
    expected = Step(alone, torch.optim.SGD(alone.parameters(), 0.1), LOSS)(source, target)
    adversary.takes_part = False
    assert Step(generator, optimizer, LOSS, adversary, adversarial=30.0)(source, target) == expected
    assert adversary.discriminator.weight.item() == 1.0
    assert generator.weight.item() == alone.weight.item()
