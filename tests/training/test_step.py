import copy

import pytest
import torch

from unscanned.losses import discriminator_loss, generator_adversarial_loss
from unscanned.models import discriminators, generators
from unscanned.training.adversary import Adversary
from unscanned.training.step import Step


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
    take_step = Step(generator, optimizer, adversary, None, "float32", 0.5, 1.0, 1.0, "sum", order)
    losses = take_step(source, target)
    new, old = (generator_adversarial_loss(network(source, synthetic)).item() for network in (discriminator, old))
    seen, unseen = (new, old) if order == "discriminator_first" else (old, new)
    assert losses["adversarial"] == pytest.approx(seen, rel=1e-5)
    assert losses["adversarial"] != pytest.approx(unseen, rel=1e-2)
    assert losses["d_loss"] == pytest.approx(first, rel=1e-5)  # on the synthetic batch that both saw
