"""Tissue values at 1.5 and 3 T, and how they are drawn around the literature's spread."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from unscanned.simulation.tissues import TISSUES

__all__ = ["FIELDS_T", "LESION", "LESION_LEVELS", "NAMES", "VALUES", "Parameters", "draw_values", "typical_values"]

FIELDS_T = (1.5, 3.0)
LESION_LEVELS = 4
LESION = len(TISSUES)
"First index of a lesion; the last level, of the highest severity, is LESION + LESION_LEVELS - 1."

NAMES = (*TISSUES, *(f"lesion {level}" for level in range(1, LESION_LEVELS + 1)))
"Tissues by index: those of `TISSUES`, then white-matter lesions in order of severity."


@dataclass(frozen=True, eq=False)
class Parameters:
    """What the signal equations know of each element, arrays of one shape.

    Attributes:
        proton_density: Relative to water.
        t1_ms: Longitudinal relaxation time.
        t2_ms: Transverse relaxation time.
        bound: Share of the signal that saturates when refocusing pulses of other slices excite bound protons.
    """

    proton_density: np.ndarray
    t1_ms: np.ndarray
    t2_ms: np.ndarray
    bound: np.ndarray

    def take(self, index: np.ndarray) -> Parameters:
        """Return the values of elements of these tissues."""
        return Parameters(*(column[index] for column in vars(self).values()))


def draw_values(rng: np.random.Generator, field_t: float) -> Parameters:
    """Draw one subject's tissue values at a field strength, in the order of `NAMES`, float32.

    A factor that all T1 share, and one that all T2 share, stands for the difference between published methods; each
    tissue has a factor of its own beside it. All are log-normal, cut at two standard deviations.

    Args:
        rng: Source of randomness.
        field_t: 1.5 or 3.0, tesla.
    """
    table = np.array([VALUES[field_t][name] for name in TISSUES])
    shared = np.exp(np.clip(rng.standard_normal(3), -2, 2) * (0.0, 0.09, 0.06))
    own = np.exp(np.clip(rng.standard_normal((len(table), 3)), -2, 2) * (0.03, 0.07, 0.07))
    names = list(TISSUES)
    # Free fluid has one T1 in all methods, which FLAIR relies on.
    fluids = [names.index("cerebrospinal fluid"), names.index("eye fluid")]
    own[fluids, 1] **= 0.6
    table[:, :3] *= own
    table[np.setdiff1d(np.arange(len(table)), fluids), :3] *= shared
    # Fluid measured in tissue-sized voxels loses T2 to pulsation and diffusion: 300 ms (BrainWeb) to 2000 ms (free).
    table[fluids, 2] *= np.exp(0.35 * np.clip(rng.standard_normal(2), -2, 2))
    # Blood flows: a void in spin echoes, or bright where it was not saturated; soft tissue outside the brain varies.
    table[names.index("vessels"), 0] *= rng.uniform(0.4, 3.0)
    for name in ("fat", "muscle", "mucosa", "skin", "marrow"):
        table[names.index(name), :3] *= np.exp(0.08 * np.clip(rng.standard_normal(3), -2, 2))
    worst = np.array([rng.uniform(1.15, 1.30), rng.uniform(1.5, 2.6), rng.uniform(1.7, 3.0), 0.3])
    return _with_lesions(table, worst, rng.uniform(0.7, 1.3))


def typical_values(field_t: float) -> Parameters:
    """Return the tissue values at a field strength as the table has them, in the order of `NAMES`, float32."""
    table = np.array([VALUES[field_t][name] for name in TISSUES])
    return _with_lesions(table, np.array([1.22, 2.0, 2.3, 0.3]), 1.0)


def _with_lesions(table: np.ndarray, worst: np.ndarray, power: float) -> Parameters:
    """Add lesions, from slight demyelination to loss of tissue: water, T1 and T2 rise together, bound protons go.

    The factors are chosen, between white matter and fluid. The one lesion of R. K.-S. Kwan et al. (below) has 1.5 times
    the T1 and 3.4 times the T2 of their white matter.
    """
    white = table[list(TISSUES).index("white matter")]
    severity = np.linspace(0.35, 1.0, LESION_LEVELS)[:, None] ** power
    return Parameters(*np.concatenate([table, white * worst**severity]).astype(np.float32).T)


# Proton density, T1 ms, T2 ms, bound share. T1 / T2 of these tissues lie between the values of the sources, whose
# spread `draw_values` covers; tests/simulation/test_relaxation.py holds them there:
# - White and grey matter: G. J. Stanisz et al., MRM 54, 2005 (1.5 T: 884 / 72 and 1124 / 95; 3 T: 1084 / 69 and 1820 /
#   99); J. P. Wansapura et al., JMRI 9, 1999 (3 T: 832 / 80 and 1331 / 110); P. J. Wright et al., MAGMA 21, 2008 (T1 at
#   1.5 T: 646 and 1197; 3 T: 838 and 1607); H. Lu et al., JMRI 22, 2005 (T2 at 3 T: 75 and 83); R. K.-S. Kwan, A. C.
#   Evans and G. B. Pike, IEEE TMI 18, 1999 (1.5 T: 500 / 70 and 833 / 83). Water content: K. P. Whittall et al., MRM
#   37, 1997 (0.71 and 0.83). White matter's T2 at 1.5 T lies between 70 and the 80 at 3 T: it does not grow with the
#   field.
# - Deep grey matter: T1 between white matter and the putamen and caudate head of Wright et al. (1.5 T: 1084 and 1109;
#   3 T: 1332 and 1395), as the thalamus is part of it.
# - Cerebrospinal fluid: W. D. Rooney et al., MRM 57, 2007 (T1 about 4300, whatever the field). Its T2 is chosen between
#   329 (Kwan et al.) and the 2000 of free fluid.
# - Fat, muscle and marrow: C. M. J. de Bazelaire et al., Radiology 230, 2004 (1.5 T: 343 / 58, 856 / 27 and 549 / 49;
#   3 T: 382 / 68, 898 / 29 and 586 / 49); G. E. Gold et al., AJR 183, 2004 (1.5 T: 288 / 165, 1130 / 35 and 288 / 165;
#   3 T: 371 / 133, 1420 / 32 and 365 / 133); muscle also Stanisz et al. (1.5 T: 1008 / 44; 3 T: 1412 / 50).
# - Blood: T1 of Stanisz et al. (1441 and 1932), T2 chosen between theirs (290 and 275) and that of veins.
# - Bone: its pore water, J. Chen et al., MRM 77, 2017, p. 2136 (T1 at 3 T: 524); bound water has gone before any echo.
# All else is chosen: the brain stem near white matter, eye fluid near cerebrospinal fluid; mucosa and skin as in
# `TISSUES` at 1.5 T. T1 without a source at the other field grows to 3 T by the power of 0.35, about the third that P.
# A. Bottomley et al., Med. Phys. 11, 1984, found from 1 to 100 MHz. Bound shares are of the order that P. S. Melki and
# R. V. Mulkern, MRM 24, 1992, saw.
VALUES: Mapping[float, Mapping[str, tuple[float, float, float, float]]] = {
    1.5: {
        "air": (0.0, 1000.0, 100.0, 0.0),
        "white matter": (0.70, 650.0, 76.0, 0.20),
        "grey matter": (0.82, 1080.0, 95.0, 0.11),
        "deep grey matter": (0.78, 870.0, 83.0, 0.13),
        "brain stem": (0.72, 750.0, 80.0, 0.17),
        "cerebrospinal fluid": (1.00, 4200.0, 800.0, 0.0),
        "eye fluid": (1.00, 3800.0, 900.0, 0.0),
        "fat": (0.90, 300.0, 80.0, 0.0),
        "muscle": (0.76, 1050.0, 40.0, 0.25),
        "mucosa": (0.90, 1300.0, 110.0, 0.08),
        "skin": (0.70, 450.0, 45.0, 0.15),
        "bone": (0.05, 410.0, 2.0, 0.0),
        "marrow": (0.75, 380.0, 70.0, 0.0),
        "vessels": (0.15, 1440.0, 120.0, 0.0),
    },
    3.0: {
        "air": (0.0, 1000.0, 100.0, 0.0),
        "white matter": (0.70, 900.0, 72.0, 0.20),
        "grey matter": (0.82, 1520.0, 94.0, 0.11),
        "deep grey matter": (0.78, 1200.0, 75.0, 0.13),
        "brain stem": (0.72, 1020.0, 74.0, 0.17),
        "cerebrospinal fluid": (1.00, 4300.0, 750.0, 0.0),
        "eye fluid": (1.00, 4000.0, 850.0, 0.0),
        "fat": (0.90, 375.0, 80.0, 0.0),
        "muscle": (0.76, 1410.0, 37.0, 0.25),
        "mucosa": (0.90, 1650.0, 100.0, 0.08),
        "skin": (0.70, 570.0, 42.0, 0.15),
        "bone": (0.05, 525.0, 2.0, 0.0),
        "marrow": (0.75, 450.0, 65.0, 0.0),
        "vessels": (0.15, 1900.0, 110.0, 0.0),
    },
}
