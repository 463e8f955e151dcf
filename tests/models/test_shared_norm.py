"""Batch norm over the patches of several processes; `test_several_devices.py` holds it to that of one process."""

import torch
from torch import nn

from unscanned.models.shared_norm import SharedBatchNorm, _Moments, share_batch_norm


def test_mean_and_variance_and_their_first_and_second_derivatives_are_right():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 2, 3, 2, dtype=torch.float64, requires_grad=True)
    mean, variance = _Moments.apply(x)
    torch.testing.assert_close(mean, x.mean((0, 2, 3, 4)))
    torch.testing.assert_close(variance, x.var((0, 2, 3, 4), correction=0))
    assert torch.autograd.gradcheck(_Moments.apply, (x,))
    assert torch.autograd.gradgradcheck(_Moments.apply, (x,))


def test_in_a_process_of_its_own_batch_norm_stays_what_it_is():
    network = nn.Sequential(nn.BatchNorm3d(2))
    share_batch_norm(network)
    assert type(network[0]) is nn.BatchNorm3d
    x = torch.randn(2, 2, 3, 3, 3)
    shared = SharedBatchNorm(2)
    assert torch.equal(shared(x), network(x))
    assert torch.equal(shared.eval()(x), network.eval()(x))
