"""The parts that the patches of a step pass through the networks in, one after another."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

__all__ = ["Part", "in_parts"]

Part = tuple[Tensor, Tensor, Tensor | None]
"Source, target and head of some patches."


def in_parts(count: int, first: Tensor, *others: Tensor | None) -> Iterator[tuple[Any, ...]]:
    """Yield equal parts of tensors along the batch, as views; what is None stays so.

    Args:
        count: Parts; where there are fewer patches, as many as these.
        first: (batch, ...).
        *others: Of the same batch.
    """
    count = min(count, len(first))
    split = ([None] * count if tensor is None else tensor.tensor_split(count) for tensor in (first, *others))
    return zip(*split, strict=True)
