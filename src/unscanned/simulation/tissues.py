"""Tissues of the head and their signal in a spin-echo sequence."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import astuple, dataclass

import numpy as np

__all__ = ["LABELS", "TISSUES", "SpinEcho", "Tissue", "draw_sequences", "draw_tissues", "spin_echo"]


@dataclass(frozen=True)
class Tissue:
    """What the signal equation knows of a tissue, at 1.5 T."""

    proton_density: float
    "Relative to water."
    t1_ms: float
    "Longitudinal relaxation time."
    t2_ms: float
    "Transverse relaxation time."


@dataclass(frozen=True)
class SpinEcho:
    """The timing of one spin echo."""

    tr_ms: float
    "Repetition time."
    te_ms: float
    "Echo time."


def spin_echo(tissue: Tissue, sequence: SpinEcho) -> float:
    """Return the spin-echo signal of a tissue: PD (1 - exp(-TR / T1)) exp(-TE / T2).

    It assumes a 90 degree excitation, and an echo time that is short beside TR. Both echoes of a dual-echo sequence
    follow it, each with its own TE.

    Args:
        tissue: Proton density and relaxation times.
        sequence: Repetition and echo time.

    Returns:
        Signal, in units of the proton density.

    Example:
        >>> round(spin_echo(Tissue(1.0, 1000.0, 100.0), SpinEcho(1e9, 100.0)), 4)
        0.3679

    Reference:
        R. W. Brown et al., Magnetic Resonance Imaging: Physical Principles and Sequence Design, 2nd ed., Wiley 2014,
        chapter 8.
    """
    if tissue.proton_density == 0:
        return 0.0
    recovery = 1 - math.exp(-sequence.tr_ms / tissue.t1_ms)
    return tissue.proton_density * recovery * math.exp(-sequence.te_ms / tissue.t2_ms)


def draw_tissues(
    rng: np.random.Generator, *, proton_density: float = 0.02, relaxation: float = 0.04
) -> dict[str, Tissue]:
    """Draw one subject's tissues around `TISSUES`.

    Args:
        rng: Source of randomness.
        proton_density: Coefficient of variation between subjects, of proton densities.
        relaxation: The same for T1 and T2.

    Returns:
        The drawn tissues, by name. Each factor is log-normal, cut at 2.5 standard deviations.
    """
    spread = np.array([proton_density, relaxation, relaxation])
    drawn = {}
    for name, tissue in TISSUES.items():
        factor = np.exp(spread * np.clip(rng.standard_normal(3), -2.5, 2.5))
        drawn[name] = Tissue(*(factor * astuple(tissue)).tolist())
    return drawn


def draw_sequences(rng: np.random.Generator) -> Mapping[str, SpinEcho]:
    """Draw one subject's sequences: PD and T2 are two echoes of one excitation, T1 is a sequence of its own.

    The dual echo has the timing of IXI (TR 5725 to 8178 ms, TE 8 and 100 ms). T1 weighting is the textbook's short TR
    and short TE (TR 450 to 600 ms, TE 10 to 15 ms), at which white matter is brighter than grey; IXI's own T1 is a
    gradient echo, which this equation does not describe.

    Returns:
        Sequences by contrast.
    """
    tr_ms = float(rng.uniform(5725, 8178))
    return {
        "PD": SpinEcho(tr_ms, 8.0),
        "T2": SpinEcho(tr_ms, 100.0),
        "T1": SpinEcho(float(rng.uniform(450, 600)), float(rng.uniform(10, 15))),
    }


# Rounded from the literature at 1.5 T, in the manner of BrainWeb: Kwan, Evans and Pike, IEEE TMI 18(11), 1999.
TISSUES: dict[str, Tissue] = {
    "air": Tissue(0.0, 1000.0, 100.0),
    "white matter": Tissue(0.70, 600.0, 80.0),
    "grey matter": Tissue(0.82, 950.0, 100.0),
    "deep grey matter": Tissue(0.78, 850.0, 85.0),
    "brain stem": Tissue(0.72, 700.0, 80.0),
    "cerebrospinal fluid": Tissue(1.00, 4000.0, 1500.0),
    "eye fluid": Tissue(1.00, 3500.0, 1200.0),
    "fat": Tissue(0.90, 280.0, 90.0),
    "muscle": Tissue(0.75, 900.0, 45.0),
    "mucosa": Tissue(0.90, 1300.0, 110.0),
    "skin": Tissue(0.70, 450.0, 45.0),
    "bone": Tissue(0.05, 800.0, 2.0),
    "marrow": Tissue(0.75, 350.0, 60.0),
    "vessels": Tissue(0.15, 1200.0, 60.0),
}

_NUMBERS = {
    "air": (0,),
    "white matter": (2, 41, 7, 46, 85, 28, 60, 13, 52, 530),
    "grey matter": (3, 42, 8, 47, 17, 53, 18, 54, 26, 58, 11, 50, 136, 137, 163, 164),
    "deep grey matter": (10, 49, 12, 51),
    "brain stem": (16, 512),
    "cerebrospinal fluid": (4, 43, 5, 44, 14, 15, 24, 25, 57, 72),
    "eye fluid": (506,),
    "fat": (507,),
    "muscle": (508,),
    "mucosa": (509,),
    "skin": (511,),
    "bone": (515,),
    "marrow": (516,),
    "vessels": (30, 62, 502, 514),
}

LABELS: dict[int, str] = {number: tissue for tissue, numbers in _NUMBERS.items() for number in numbers}
"""Tissue by label number: FreeSurfer's aseg inside the brain, and 502 to 530 of SynthSeg's training maps outside it."""
