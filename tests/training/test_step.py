import copy

import pytest
import torch

from unscanned.losses import generator_adversarial_loss
from unscanned.models import discriminators, generators
from unscanned.training.adversary import Adversary
from unscanned.training.step import Step


def test_the_discriminator_takes_its_step_first_so_that_the_generator_learns_from_the_new_one():
    torch.manual_seed(0)
    generator, discriminator = generators.build("small"), discriminators.build("small", patch=16)
    optimizer = torch.optim.Adam(generator.parameters(), 1e-3)
    adversary = Adversary(discriminator, torch.optim.Adam(discriminator.parameters(), 1e-2))
    source, target = torch.randn(2, 2, 1, 16, 16, 16)
    synthetic = generator(source).detach()
    old = copy.deepcopy(discriminator)
    losses = Step(generator, optimizer, adversary, None, "float32", adversarial=0.5, l1=1.0, gdl=1.0, reduction="sum")(
        source, target
    )
    new, old = (generator_adversarial_loss(network(source, synthetic)).item() for network in (discriminator, old))
    assert losses["adversarial"] == pytest.approx(new, rel=1e-5)
    assert losses["adversarial"] != pytest.approx(old, rel=1e-2)
