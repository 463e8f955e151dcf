"""Pieces are shared among threads, each whole on one of them, and nothing else changes."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Iterator

import pytest
import torch

from unscanned import threads
from unscanned.models.spectral import kernel_spectrum
from unscanned.threads import for_each

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


def test_the_number_of_threads_does_not_change_a_bit() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, x = (torch.randn(*size, generator=generator) for size in ((8, 8, 5, 5, 5), (12, 12, 12, 8, 16)))
    results = []
    before = torch.get_num_threads()
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        results.append(kernel_spectrum(weight, None, (12, 12, 12))(x))
    torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


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
