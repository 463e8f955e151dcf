"""What the benchmark times, each number declared once for Python and the command line."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from unscanned.schema import Schema

__all__ = ["PATCH", "STRIDE", "Workload"]

PATCH, STRIDE = 32, 8
"Edge of the patches that are mapped, and voxels between them."

Numbers = Annotated[tuple[PositiveInt, ...], Field(strict=False)]


class Workload(Schema):
    """What is timed. Weights and inputs are noise: the time does not depend on them."""

    device: str = "cpu"
    "cpu, cuda or cuda:N."
    threads: int | None = Field(None, gt=0, le=4096)
    "CPU threads; unset leaves it to PyTorch."
    network: Literal["nie", "small"] = "nie"
    "Generator and discriminator of one name."
    edge: int = Field(48, ge=PATCH, le=1024)
    "Edge of the cubic volume whose stride-8 patches are mapped; 48 has 27 of them."
    repeats: int = Field(3, gt=0, le=10**6)
    "Rounds of inference and of the cost against size; the contenders take turns in each."
    batch: int = Field(7, gt=0, le=10**6)
    "Patches of a training step."
    steps: int = Field(1, gt=0, le=10**6)
    "Rounds of training; a plain step takes about a minute on two cores."
    patches: Numbers = (1, 8, 64)
    "Numbers of patches for mode patches."
    volumes: Numbers = (64, 96, 128)
    "Edges of the cubic volumes for mode volume, in voxels."
    seed: int = 0
    "Seed of the weights and the inputs."
