import copy

import pytest
import torch

from unscanned.losses import discriminator_loss, gradient_penalty
from unscanned.models import discriminators, generators
from unscanned.training.adversary import Adversary


def steepness(network, adversary, source, target, steps=20):
    """Train against the source as the synthetic image, and return the squared gradient at the target."""
    for _ in range(steps):
        adversary.train(source, target, source)
    images = target.clone().requires_grad_()
    return gradient_penalty(network(source, images), images).item()


@pytest.fixture
def parts():
    """Generator, discriminator, adversary, source and target of one step."""
    torch.manual_seed(0)
    generator, discriminator = generators.build("small"), discriminators.build("small", patch=16)
    adversary = Adversary(discriminator, torch.optim.Adam(discriminator.parameters(), 1e-3))
    source, target = torch.randn(2, 2, 1, 16, 16, 16)
    return generator, discriminator, adversary, source, target


def weights(network):
    return [parameter.detach().clone() for parameter in network.parameters()]


def changed(network, before):
    return [not torch.equal(now, then) for now, then in zip(network.parameters(), before, strict=True)]


def test_the_step_of_the_discriminator_moves_all_of_it_and_leaves_no_trace_in_the_generator(parts):
    generator, discriminator, adversary, source, target = parts
    synthetic = generator(source)
    before_g, before_d = weights(generator), weights(discriminator)
    adversary.train(source, target, synthetic)
    assert all(changed(discriminator, before_d))
    assert not any(changed(generator, before_g))
    assert all(parameter.grad is None for parameter in generator.parameters())


def test_the_loss_returned_is_the_one_before_the_step(parts):
    generator, discriminator, adversary, source, target = parts
    synthetic = generator(source).detach()
    expected = discriminator_loss(discriminator(source, target), discriminator(source, synthetic))
    assert adversary.train(source, target, synthetic).item() == pytest.approx(expected.item(), rel=1e-6)


def test_the_term_of_the_generator_leaves_no_gradient_in_the_discriminator(parts):
    generator, discriminator, adversary, source, target = parts
    adversary.train(source, target, generator(source))
    discriminator.zero_grad(set_to_none=True)
    before = weights(discriminator)
    adversary.generator_loss(source, generator(source)).backward()
    assert all(parameter.grad is None for parameter in discriminator.parameters())
    assert not any(changed(discriminator, before))
    assert all(parameter.grad.abs().sum() > 0 for parameter in generator.convolutions[-1].parameters())


def test_the_discriminator_learns_again_after_the_term_of_the_generator(parts):
    generator, discriminator, adversary, source, target = parts
    adversary.generator_loss(source, generator(source))
    assert all(parameter.requires_grad for parameter in discriminator.parameters())
    before = weights(discriminator)
    adversary.train(source, target, generator(source))
    assert all(changed(discriminator, before))


def test_steps_on_the_same_batches_tell_acquired_from_synthetic(parts):
    generator, _, adversary, source, target = parts
    synthetic = generator(source).detach()
    losses = [adversary.train(source, target, synthetic).item() for _ in range(15)]
    assert losses[-1] < 0.5 * losses[0]


def test_on_a_cpu_the_discriminator_is_float32_whatever_the_precision(parts):
    generator, discriminator, _, source, target = parts
    rounded = Adversary(discriminator, torch.optim.Adam(discriminator.parameters(), 1e-3), "bfloat16")
    synthetic = generator(source).detach()
    expected = discriminator_loss(discriminator(source, target), discriminator(source, synthetic))
    assert rounded.train(source, target, synthetic).item() == pytest.approx(expected.item(), rel=1e-6)


def test_the_penalty_is_half_the_squared_gradient_at_acquired_patches_and_makes_the_discriminator_flatter(parts):
    _, discriminator, _, source, target = parts
    images = target.clone().requires_grad_()
    logits = discriminator(source, images)
    (gradient,) = torch.autograd.grad(logits.sum(), images)
    expected = gradient.square().sum().item() / 2 / len(target)
    images = target.clone().requires_grad_()
    assert gradient_penalty(discriminator(source, images), images).item() == pytest.approx(expected, rel=1e-4)
    steep = []
    for penalty in (0.0, 100.0):
        network = copy.deepcopy(discriminator)
        adversary = Adversary(network, torch.optim.Adam(network.parameters(), 1e-3), penalty=penalty)
        steep.append(steepness(network, adversary, source, target))
    assert steep[1] < 0.5 * steep[0]


def test_spectral_norm_makes_the_discriminator_flatter_and_leaves_the_generator_its_gradient(parts):
    generator, _, _, source, target = parts
    steep = []
    for spectral_norm in (False, True):
        torch.manual_seed(0)
        network = discriminators.build("small", patch=16, spectral_norm=spectral_norm)
        adversary = Adversary(network, torch.optim.Adam(network.parameters(), 1e-3))
        steep.append(steepness(network, adversary, source, target))
    assert steep[1] < 0.5 * steep[0]
    before = weights(network)
    adversary.generator_loss(source, generator(source)).backward()
    assert not any(changed(network, before))
    assert all(parameter.grad.abs().sum() > 0 for parameter in generator.convolutions[-1].parameters())
