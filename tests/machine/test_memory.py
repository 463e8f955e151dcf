"""What is taken for a lack of memory, and what is tried then."""

import ctypes
import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
import torch

from unscanned.machine.memory import is_out_of_memory, keep_freed_memory_in_process, largest_that_fits
from unscanned.models.nie import NieGenerator
from unscanned.synthesis.reconstruct import reconstruct
from unscanned.synthesis.whole_volume import map_volume


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried ..."),
        RuntimeError("std::bad_alloc"),
        RuntimeError("CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("could not create a memory object"),
        RuntimeError("could not create a primitive"),
    ],
)
def test_these_are_a_lack_of_memory(error):
    assert is_out_of_memory(error)


@pytest.mark.parametrize("error", [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("bad_alloc")])
def test_these_are_not(error):
    assert not is_out_of_memory(error)


def test_the_largest_of_the_halves_that_fits_is_found():
    tried = []

    def attempt(size):
        tried.append(size)
        if size > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")

    assert largest_that_fits(attempt, 16) == 2
    assert tried == [16, 8, 4, 2]


def test_another_error_is_not_swallowed_on_the_way():
    def attempt(size):
        raise RuntimeError("shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes"):
        largest_that_fits(attempt, 4)


class Mallinfo(ctypes.Structure):
    """What glibc tells of its memory, mallinfo(3)."""

    _fields_ = [(name, ctypes.c_size_t) for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", *"fgvxy")]


def is_mapped_anew() -> bool:
    """Whether glibc maps a block of 64 MiB from the system for itself, as it does by default."""
    mallinfo = ctypes.CDLL(None).mallinfo2
    mallinfo.restype = Mallinfo
    before = mallinfo().hblkhd
    block = torch.empty(2**24)
    return mallinfo().hblkhd - before >= block.nbytes


def before_and_after(work: str) -> tuple[bool, bool]:
    network = NieGenerator(filters=(1,), kernels=(1, 1))
    volume = np.zeros((1, 8, 8, 8), np.float32)
    before = is_mapped_anew()
    {
        "patches": lambda: reconstruct(volume, network, patch=8),
        "volume": lambda: map_volume(volume, network),
        "nothing": lambda: None,
    }[work]()
    return before, is_mapped_anew()


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="needs glibc 2.33")
@pytest.mark.parametrize(("work", "keeps"), [("nothing", False), ("patches", True), ("volume", True)])
def test_a_process_keeps_freed_memory_from_its_first_synthesis_on_without_being_told(work, keeps):
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as fresh:
        assert fresh.submit(before_and_after, work).result() == (True, not keeps)


def test_the_c_library_is_told_once():
    keep_freed_memory_in_process()
    told = keep_freed_memory_in_process.cache_info().misses
    keep_freed_memory_in_process()
    assert keep_freed_memory_in_process.cache_info().misses == told
