"""The average of weights is the weighted sum worked out by hand, and knows nothing of gradients."""

import pytest
import torch
from torch import nn

from unscanned.training.average import Average


def network(value, mean=0.0):
    layers = nn.Sequential(nn.Conv3d(1, 1, 1, bias=False), nn.BatchNorm3d(1))
    nn.init.constant_(layers[0].weight, value)
    layers[1].running_mean.fill_(mean)
    return layers


def test_the_average_forgets_the_first_weights_soon_and_ends_at_the_decay():
    generator = network(1.0)
    average = Average(generator, 0.5)
    expected = 1.0
    for step, value in enumerate((2.0, 3.0, 4.0, 5.0), 1):
        nn.init.constant_(generator[0].weight, value)
        average.update(step)
        kept = min(0.5, step / (step + 9))
        expected = kept * expected + (1 - kept) * value
        assert average.network[0].weight.item() == pytest.approx(expected, rel=1e-6)
    average.update(10**6)
    assert average.network[0].weight.item() == pytest.approx((expected + 5.0) / 2, rel=1e-6)


def test_statistics_of_batch_norm_are_averaged_and_counts_are_taken():
    generator = network(1.0, mean=0.0)
    average = Average(generator, 0.9)
    generator[1].running_mean.fill_(10.0)
    generator[1].num_batches_tracked.fill_(7)
    average.update(1)
    assert average.network[1].running_mean.item() == pytest.approx(9.0)
    assert average.network[1].num_batches_tracked.item() == 7


def test_a_share_of_the_first_weights_stays_however_long_it_goes_on():
    generator = network(1.0, mean=4.0)
    plain, keeping = Average(generator, 0.5), Average(generator, 0.5, keep=0.25)
    for step, value in enumerate((2.0, 3.0, 7.0), 1):
        nn.init.constant_(generator[0].weight, value)
        generator[1].running_mean.fill_(-value)
        plain.update(step)
        keeping.update(step)
    for name, first in (("0.weight", 1.0), ("1.running_mean", 4.0)):
        mixed = 0.75 * plain.network.state_dict()[name] + 0.25 * first
        assert torch.allclose(keeping.network.state_dict()[name], mixed, rtol=1e-6)


def test_the_generator_is_left_alone_and_no_gradient_reaches_the_average():
    generator = network(2.0)
    before = {name: tensor.clone() for name, tensor in generator.state_dict().items()}
    average = Average(generator, 0.9)
    average.update(1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in generator.state_dict().items())
    assert not any(parameter.requires_grad for parameter in average.network.parameters())
    assert all(parameter.requires_grad for parameter in generator.parameters())
