"""What is taken for a lack of memory, and what is tried then."""

import pytest
import torch

from unscanned.machine.memory import is_out_of_memory, largest_that_fits


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried ..."),
        RuntimeError("std::bad_alloc"),
        RuntimeError("CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("could not create a memory object"),
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
