"""The convolution in the frequency domain is the convolution: values, gradients, precision."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from unscanned.models import spectral
from unscanned.models.spectral import ValidKernel, kernel_spectrum, spectral_convolution


def direct(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    y = F.conv3d(x.permute(4, 3, 0, 1, 2), weight, bias, padding=weight.shape[2] // 2)
    return y.permute(2, 3, 4, 1, 0)


def example(
    shape: tuple[int, int, int], kernel: int, into: int, out: int, batch: int, dtype: torch.dtype
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(kernel)

    def make(*size: int) -> Tensor:
        return torch.randn(*size, dtype=dtype, generator=generator).requires_grad_()

    return [make(*shape, into, batch), make(out, into, kernel, kernel, kernel), make(out)]


def relative(a: Tensor, b: Tensor) -> float:
    a, b = a.detach().double(), b.detach().double()
    return float((a - b).norm() / b.norm())


SIZES = [
    ((6, 6, 6), 3, 2, 3, 4),
    ((5, 8, 7), 5, 3, 2, 1),
    ((4, 3, 6), 9, 2, 2, 3),  # the kernel is larger than the signal
    ((7, 5, 9), 7, 1, 4, 2),
    ((3, 4, 5), 1, 3, 3, 2),
    ((1, 1, 1), 3, 2, 2, 2),
]


@pytest.mark.parametrize(("shape", "kernel", "into", "out", "batch"), SIZES)
def test_values_and_gradients_equal_those_of_conv3d_in_float64(
    shape: tuple[int, int, int], kernel: int, into: int, out: int, batch: int
) -> None:
    arguments = example(shape, kernel, into, out, batch, torch.float64)
    ours, theirs = spectral_convolution(*arguments), direct(*arguments)
    assert relative(ours, theirs) < 1e-12
    cotangent = torch.randn_like(theirs)
    for a, b in zip(
        torch.autograd.grad(ours, arguments, cotangent), torch.autograd.grad(theirs, arguments, cotangent), strict=True
    ):
        assert relative(a, b) < 1e-12


def test_float32_errors_are_at_most_three_times_those_of_conv3d() -> None:
    arguments = example((12, 12, 12), 9, 4, 5, 2, torch.float32)
    exact = [argument.detach().double().requires_grad_() for argument in arguments]
    reference = direct(*exact)
    cotangent = torch.randn(reference.shape)
    references = [reference, *torch.autograd.grad(reference, exact, cotangent.double())]
    errors = []
    for convolve in (spectral_convolution, direct):
        y = convolve(*arguments)
        values = [y, *torch.autograd.grad(y, arguments, cotangent)]
        errors.append([relative(value, truth) for value, truth in zip(values, references, strict=True)])
    for ours, theirs in zip(*errors, strict=True):
        assert ours < max(3 * theirs, 3e-7)
        assert ours < 1e-5


def test_only_the_gradients_asked_for_are_made() -> None:
    x, weight, bias = example((4, 4, 4), 3, 2, 2, 2, torch.float64)
    x.requires_grad_(False)
    bias.requires_grad_(False)
    spectral_convolution(x, weight, bias).sum().backward()
    assert x.grad is None
    assert bias.grad is None
    assert relative(weight.grad, torch.autograd.grad(direct(x, weight, bias).sum(), weight)[0]) < 1e-12


def test_the_result_does_not_depend_on_how_the_work_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = example((8, 6, 7), 3, 3, 4, 5, torch.float64)
    whole = spectral_convolution(*arguments)
    monkeypatch.setattr(spectral, "CACHE_BYTES", 1)
    pieces = spectral_convolution(*arguments)
    assert relative(pieces, whole) < 1e-13
    cotangent = torch.randn_like(whole)
    in_pieces = torch.autograd.grad(pieces, arguments, cotangent)
    monkeypatch.undo()
    for a, b in zip(in_pieces, torch.autograd.grad(whole, arguments, cotangent), strict=True):
        assert relative(a, b) < 1e-13


def test_a_kept_spectrum_gives_the_same_as_the_kernel() -> None:
    x, weight, bias = (argument.detach() for argument in example((6, 4, 8), 5, 2, 3, 2, torch.float64))
    kernel = kernel_spectrum(weight, bias, (6, 4, 8))
    assert torch.equal(kernel(x), spectral_convolution(x, weight, bias))
    assert relative(kernel(2 * x), direct(2 * x, weight, bias)) < 1e-12


@pytest.mark.parametrize("shape", [(5, 4, 6), (1, 8, 3)])
def test_without_padding_blocks_give_the_outputs_that_see_the_whole_kernel(shape) -> None:
    _, weight, bias = (argument.detach() for argument in example((4, 4, 4), 5, 3, 2, 2, torch.float64))
    kernel = ValidKernel(weight, bias, shape, batch=4)
    for batch in (4, 2):
        x = torch.view_as_real(kernel.input(batch).normal_()).transpose(4, 5).flatten(3, 4)
        expected = F.conv3d(x.permute(3, 4, 0, 1, 2), weight, bias).permute(2, 3, 4, 0, 1)
        assert relative(kernel(batch).flatten(3, 4), expected) < 1e-12


def test_the_largest_layer_has_gradients_as_good_as_those_of_conv3d() -> None:
    arguments = example((8, 8, 8), 9, 64, 64, 2, torch.float32)
    cotangent = torch.randn(8, 8, 8, 64, 2, generator=torch.Generator().manual_seed(1))
    ours = torch.autograd.grad(spectral_convolution(*arguments), arguments, cotangent)
    plain = torch.autograd.grad(direct(*arguments), arguments, cotangent)
    exact = [argument.detach().double().requires_grad_() for argument in arguments]
    truth = torch.autograd.grad(direct(*exact), exact, cotangent.double())
    for one, other, right in zip(ours, plain, truth, strict=True):
        assert relative(one, right) < max(3 * relative(other, right), 1e-6)


def test_no_bias_is_a_bias_of_zero() -> None:
    x, weight, bias = example((4, 4, 4), 3, 2, 2, 2, torch.float64)
    assert relative(spectral_convolution(x, weight), direct(x, weight, 0 * bias)) < 1e-12
