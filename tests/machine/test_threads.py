"""Pieces are shared among threads, each whole on one of them, and nothing else changes."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from unscanned.machine import threads
from unscanned.machine.threads import for_each
from unscanned.models import spectral
from unscanned.models.nie import NieGenerator
from unscanned.models.spectral import ValidKernel, kernel_spectrum, spectral_convolution
from unscanned.synthesis.whole_volume import map_volume

CPU = torch.device("cpu")


@pytest.fixture(params=[1, 2, 3])
def number(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_every_piece_is_worked_on_once_by_a_thread_of_its_own_share(number: int) -> None:
    seen: list[tuple[int, int, str]] = []
    meeting = threading.Barrier(number)

    def work(piece: int) -> None:
        meeting.wait(timeout=30)  # passes only if as many pieces are in work at a time
        seen.append((piece, torch.get_num_threads(), threading.current_thread().name))

    for_each(range(6), work, CPU)
    assert sorted(piece for piece, _, _ in seen) == list(range(6))
    assert {share for _, share, _ in seen} == {1}
    assert len({name for _, _, name in seen}) == number
    assert torch.get_num_threads() == number


def with_threads(count: int, work: Callable[[], list[Tensor]]) -> list[Tensor]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        return work()
    finally:
        torch.set_num_threads(before)


def spectral_results() -> list[Tensor]:
    """A layer's output and its three gradients, a kept kernel's output, and that of a block without padding."""
    generator = torch.Generator().manual_seed(0)
    weight, bias, x, cotangent = (
        torch.randn(*size, generator=generator, dtype=torch.float64)
        for size in ((6, 8, 5, 5, 5), (6,), (7, 9, 8, 8, 4), (7, 9, 8, 6, 4))
    )
    arguments = [tensor.requires_grad_() for tensor in (x, weight, bias)]
    y = spectral_convolution(*arguments)
    with torch.no_grad():
        kept = kernel_spectrum(weight, bias, (7, 9, 8))(x)
        valid = ValidKernel(weight.detach(), bias.detach(), (4, 5, 6), batch=2)
        valid.input(2).copy_(torch.randn(valid.input(2).shape, generator=generator, dtype=torch.complex128))
        block = valid(2).clone()
    return [y.detach(), *torch.autograd.grad(y, arguments, cotangent), kept, block]


@pytest.mark.parametrize("count", [2, 3])
def test_the_number_of_threads_does_not_change_a_bit(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spectral, "CACHE_BYTES", 1)  # the smallest pieces, so that all sweeps have many
    shared = []
    monkeypatch.setattr(spectral, "for_each", lambda *arguments: shared.append(arguments) or for_each(*arguments))
    alone, together = (with_threads(n, spectral_results) for n in (1, count))
    assert len(shared) > 10
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


def test_mode_volume_is_the_same_to_the_last_bit_with_more_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(spectral, "CACHE_BYTES", 1)
    network = NieGenerator(filters=(2,) * 8).eval()
    source = torch.randn(1, 20, 33, 26).numpy()
    alone, together = (
        with_threads(n, lambda: [torch.from_numpy(map_volume(source, network, memory_mib=1000))]) for n in (1, 2)
    )
    assert torch.equal(alone[0], together[0])


def test_the_inference_mode_is_that_of_the_caller_and_there_are_no_gradients(number: int) -> None:
    seen: list[tuple[bool, bool]] = []

    def look(piece: int) -> None:
        seen.append((torch.is_inference_mode_enabled(), torch.is_grad_enabled()))

    for mode in (False, True):
        seen.clear()
        with torch.inference_mode(mode):
            assert torch.is_grad_enabled() != mode
            for_each(range(4), look, CPU)
        assert set(seen) == {(mode, False)}


def test_an_error_is_raised_as_it_is_and_what_was_not_begun_is_left_out(number: int) -> None:
    begun: list[int] = []

    def work(piece: int) -> None:
        begun.append(piece)
        raise MemoryError(f"piece {piece}")

    with pytest.raises(MemoryError, match=r"piece [0-2]"):
        for_each(range(1000), work, CPU)
    assert len(begun) <= number
    for_each(range(3), begun.append, CPU)  # the threads are still of use


def test_beyond_the_largest_number_of_pieces_at_a_time_each_has_more_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "LARGEST", 2)
    before, seen = torch.get_num_threads(), []
    torch.set_num_threads(6)
    try:
        for_each(range(4), lambda _: seen.append(torch.get_num_threads()), CPU)
    finally:
        torch.set_num_threads(before)
        threads._pools.pop(6).shutdown()
    assert seen == [3] * 4


def test_a_forked_process_has_threads_of_its_own() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    for_each(range(2), lambda _: None, CPU)
    child = multiprocessing.get_context("fork").Process(target=for_each, args=(range(2), lambda _: None, CPU))
    child.start()
    child.join(60)
    torch.set_num_threads(before)
    assert child.exitcode == 0
