import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unscanned.evaluation.metrics import ssim
from unscanned.losses import (
    CRITERIA,
    GeneratorLoss,
    discriminator_loss,
    generator_adversarial_loss,
    gradient_difference_loss,
    l1_loss,
    ssim_loss,
)

LOG2 = math.log(2)


def image(*values, axis=0, batch=1):
    """A row of voxels along one of the axes i, j, k."""
    shape = [1, 1, 1, 1, 1]
    shape[2 + axis] = len(values)
    return torch.tensor(values).view(shape).expand(batch, -1, -1, -1, -1)


def random(seed, shape=(2, 1, 4, 5, 6)):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_l1_is_the_sum_over_voxels_and_the_mean_over_the_batch():
    synthetic = torch.stack([torch.full((1, 2, 2, 2), 0.5), torch.full((1, 2, 2, 2), -1.0)])
    target = torch.zeros(2, 1, 2, 2, 2)
    assert l1_loss(synthetic, target).item() == (8 * 0.5 + 8 * 1.0) / 2
    assert l1_loss(synthetic, target, "mean").item() == (0.5 + 1.0) / 2


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_gdl_of_a_ramp_against_a_flat_image_is_its_squared_steps_along_every_axis(axis):
    ramp, flat = image(0.0, 1.0, 3.0, axis=axis), image(7.0, 7.0, 7.0, axis=axis)
    assert gradient_difference_loss(flat, ramp).item() == 1**2 + 2**2
    assert gradient_difference_loss(ramp, flat).item() == 1**2 + 2**2
    assert gradient_difference_loss(ramp, flat, "mean").item() == pytest.approx(5 / 3)


def test_gdl_compares_magnitudes_so_the_sign_of_an_edge_costs_nothing():
    assert gradient_difference_loss(image(0.0, -1.0, 2.0), image(0.0, 1.0, -2.0)).item() == 0
    # Steps 1 and 3 against 2 and 1: (1 - 2)^2 + (3 - 1)^2.
    assert gradient_difference_loss(image(0.0, -1.0, 2.0), image(0.0, 2.0, 3.0)).item() == 1 + 4


def test_gdl_adds_the_axes():
    target = torch.tensor([[0.0, 1.0], [2.0, 5.0]]).view(1, 1, 2, 2, 1)
    # Along i: 2 and 4; along j: 1 and 3; along k there is one voxel and no step.
    assert gradient_difference_loss(torch.zeros_like(target), target).item() == 2**2 + 4**2 + 1**2 + 3**2


def test_gdl_is_the_mean_over_the_batch():
    ramp = torch.cat([image(0.0, 1.0), image(0.0, 3.0)])
    assert gradient_difference_loss(torch.zeros_like(ramp), ramp).item() == (1 + 9) / 2


@given(st.integers(0, 100), st.floats(-5, 5))
def test_no_loss_between_an_image_and_itself_and_no_gdl_for_an_offset(seed, offset):
    x = random(seed)
    for reduction in ("sum", "mean"):
        assert l1_loss(x, x, reduction).item() == 0
        assert gradient_difference_loss(x, x + offset, reduction).item() == pytest.approx(0, abs=1e-20)


@given(st.integers(0, 100))
def test_the_sum_is_the_mean_times_the_voxels_of_one_image(seed):
    x, y = random(seed), random(seed + 1)
    for loss in (l1_loss, gradient_difference_loss):
        assert loss(x, y).item() == pytest.approx(120 * loss(x, y, "mean").item())


@given(st.integers(0, 100))
def test_the_loss_of_a_batch_is_the_mean_of_the_losses_of_its_images(seed):
    x, y = random(seed), random(seed + 1)
    for loss in (l1_loss, gradient_difference_loss):
        singles = [loss(x[n : n + 1], y[n : n + 1]).item() for n in range(2)]
        assert loss(x, y).item() == pytest.approx(sum(singles) / 2)


def test_the_gradients_of_the_image_terms_are_the_derivatives():
    target = random(1, (1, 1, 3, 3, 2))
    synthetic = random(2, (1, 1, 3, 3, 2)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: l1_loss(x, target), synthetic)
    assert torch.autograd.gradcheck(lambda x: gradient_difference_loss(x, target), synthetic)


def test_a_discriminator_that_guesses_costs_two_log_two():
    assert discriminator_loss(torch.zeros(3, 1), torch.zeros(3, 1)).item() == pytest.approx(2 * LOG2)
    assert generator_adversarial_loss(torch.zeros(3, 1)).item() == pytest.approx(LOG2)


def test_the_adversarial_terms_are_those_worked_out_by_hand():
    three = torch.full((1, 1), math.log(3))  # the sigmoid of log 3 is 3/4
    assert discriminator_loss(three, -three).item() == pytest.approx(2 * math.log(4 / 3))
    assert discriminator_loss(three, three).item() == pytest.approx(math.log(4 / 3) + math.log(4))
    assert generator_adversarial_loss(three).item() == pytest.approx(math.log(4 / 3))
    assert generator_adversarial_loss(-three).item() == pytest.approx(math.log(4))
    assert generator_adversarial_loss(torch.cat([three, -three])).item() == pytest.approx(
        (math.log(4 / 3) + math.log(4)) / 2
    )


def test_extreme_logits_cost_much_and_not_infinity():
    huge = torch.full((1, 1), 1e4)
    assert discriminator_loss(-huge, huge).item() == pytest.approx(2e4)
    assert discriminator_loss(huge, -huge).item() == 0


def test_the_ssim_term_is_one_minus_the_metric_of_this_name():
    target, noise = random(3, (2, 1, 14, 15, 16)).sigmoid(), random(4, (2, 1, 14, 15, 16))
    synthetic = target + 0.1 * noise
    expected = [1 - ssim(y[0].numpy(), x[0].numpy(), data_range=1.0) for x, y in zip(synthetic, target, strict=True)]
    assert ssim_loss(synthetic, target, "mean").item() == pytest.approx(sum(expected) / 2, abs=1e-5)
    assert ssim_loss(synthetic, target).item() == pytest.approx(14 * 15 * 16 * sum(expected) / 2, rel=1e-4)


def test_the_gradient_of_the_ssim_term_is_that_of_finite_differences():
    target = random(5, (1, 1, 11, 11, 12)).sigmoid()
    synthetic = (target + 0.1 * random(6, target.shape)).requires_grad_()
    (gradient,) = torch.autograd.grad(ssim_loss(synthetic, target, "mean"), synthetic)
    direction = random(7, target.shape)
    step = 1e-6
    with torch.no_grad():
        ends = [ssim_loss(synthetic + sign * step * direction, target, "mean") for sign in (1, -1)]
    assert (gradient * direction).sum().item() == pytest.approx(float(ends[0] - ends[1]) / (2 * step), rel=1e-5)


def test_the_ssim_term_sees_unit_scale_whatever_the_z_scores_are():
    target = random(8, (1, 1, 12, 12, 12)).sigmoid()
    synthetic = (target + 0.1 * random(9, target.shape)).clamp(0, 1)
    loss = GeneratorLoss({"ssim": 2.0}, "mean", mean=0.3, std=0.2)
    total, values = loss((synthetic - 0.3) / 0.2, (target - 0.3) / 0.2)
    assert total.item() == pytest.approx(2 * ssim_loss(synthetic, target, "mean").item(), rel=1e-6)
    assert values["ssim"] == pytest.approx(total.item() / 2)
    assert "ssim" not in GeneratorLoss({"l1": 1.0})(synthetic, target)[1]


@pytest.mark.parametrize(
    ("name", "of_discriminator", "of_generator"),
    [
        # logits of acquired patches 2 and 0, of synthetic ones -1 and 0.5
        ("least_squares", (1 + 1) / 2 + (1 + 0.25) / 2, (4 + 0.25) / 2),
        ("hinge", (0 + 1) / 2 + (0 + 1.5) / 2, 0.25),
    ],
)
def test_the_other_criteria_are_those_worked_out_by_hand(name, of_discriminator, of_generator):
    real, fake = torch.tensor([[2.0], [0.0]]), torch.tensor([[-1.0], [0.5]])
    assert CRITERIA[name].discriminator(real, fake).item() == pytest.approx(of_discriminator)
    assert CRITERIA[name].generator(fake).item() == pytest.approx(of_generator)
    assert CRITERIA[name].boundary == {"least_squares": 0.5, "hinge": 0.0}[name]
