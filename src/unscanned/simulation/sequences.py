"""Pulse sequences: each a frozen protocol with its signal equation, and the ranges that protocols are drawn from.

Signals are in units of the proton density, and signed: what has not recovered from an inversion is negative. A voxel
holds the mean of its tissues' signals, and an image its magnitude. Decay during a gradient echo uses T2 in the place of
T2*: its echo times are a few ms.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from unscanned.simulation.relaxation import Parameters

__all__ = [
    "CONTRASTS",
    "TARGETS",
    "FastSpinEcho",
    "Flair",
    "Mprage",
    "PulseSequence",
    "SingleEcho",
    "SpoiledGradientEcho",
    "draw_protocols",
    "fluid_null_ms",
]

CONTRASTS = ("PD", "T2", "T1", "FLAIR")
_FLUID_T1_MS = 4250.0


class PulseSequence(Protocol):
    """What an image is taken with."""

    @property
    def is_fast(self) -> bool:
        """Whether a train of refocusing pulses reads the image: fat is bright, and bound protons saturate."""

    def signal(self, tissue: Parameters) -> np.ndarray:
        """Return the noise-free signal of each element with its sign, in units of the proton density."""

    def sidecar(self) -> dict[str, Any]:
        """Return the fields of the BIDS sidecar: times in s, angle in degrees."""


@dataclass(frozen=True)
class SingleEcho:
    """A spin echo after an excitation of 90 degrees; both echoes of a dual echo are taken for one each.

    PD (1 - 2 exp(-(TR - TE / 2) / T1) + exp(-TR / T1)) exp(-TE / T2).

    In a dual echo the second refocusing pulse inverts what has recovered since the first. That is left out: it takes at
    most 3 % from the first echo of brain tissues and 5 % from that of fluid, at the shortest repetition time.

    Reference:
        M. A. Bernstein, K. F. King and X. J. Zhou, Handbook of MRI Pulse Sequences, Elsevier 2004, section 14.3.
    """

    tr_ms: float
    te_ms: float
    is_fast = False

    def signal(self, tissue: Parameters) -> np.ndarray:
        """Return the signal of each element."""
        t1 = tissue.t1_ms
        recovery = 1 - 2 * np.exp(-(self.tr_ms - self.te_ms / 2) / t1) + np.exp(-self.tr_ms / t1)
        return tissue.proton_density * recovery * np.exp(-self.te_ms / tissue.t2_ms)

    def sidecar(self) -> dict[str, Any]:
        """Return the fields of the BIDS sidecar."""
        return _sidecar("SE", "Spin Echo", 90, self.tr_ms, self.te_ms)


@dataclass(frozen=True)
class FastSpinEcho:
    """A train of refocused echoes with an effective echo time.

    PD (1 - exp(-(TR - train) / T1)) exp(-TE / T2) (1 - saturation * bound): recovery starts when the train ends, and
    its pulses saturate bound protons of the slices beside it. Refocusing is by 180 degrees.

    References:
        J. Hennig, A. Nauerth and H. Friedburg, MRM 3, 1986: the train; P. S. Melki and R. V. Mulkern, MRM 24, 1992:
        the saturation, whose factor is this project's.
    """

    tr_ms: float
    te_ms: float
    "Effective echo time."
    train_ms: float
    "From the excitation to the last echo."
    saturation: float = 0.5
    "Part of the bound share that is lost, 0 to 1."
    is_fast = True

    def signal(self, tissue: Parameters) -> np.ndarray:
        """Return the signal of each element."""
        recovery = 1 - np.exp(-(self.tr_ms - self.train_ms) / tissue.t1_ms)
        bound = 1 - self.saturation * tissue.bound
        return tissue.proton_density * recovery * np.exp(-self.te_ms / tissue.t2_ms) * bound

    def sidecar(self) -> dict[str, Any]:
        """Return the fields of the BIDS sidecar."""
        return _sidecar("SE", "Fast Spin Echo", 90, self.tr_ms, self.te_ms)


@dataclass(frozen=True)
class Flair:
    """A fast spin echo after an inversion that nulls fluid; with short times it is T1w, and called T1 FLAIR or TIRM.

    PD (1 - 2 exp(-TI / T1) + exp(-(TR - train) / T1)) exp(-TE / T2) (1 - saturation * bound).

    References:
        J. V. Hajnal et al., J. Comput. Assist. Tomogr. 16, 1992; J. N. Rydberg et al., MRM 34, 1995, and for T1w
        images JMRI 6, 1996.
    """

    tr_ms: float
    te_ms: float
    ti_ms: float
    "From the inversion to the excitation."
    train_ms: float
    saturation: float = 0.5
    is_fast = True

    def signal(self, tissue: Parameters) -> np.ndarray:
        """Return the signal of each element."""
        t1 = tissue.t1_ms
        inverted = 1 - 2 * np.exp(-self.ti_ms / t1) + np.exp(-(self.tr_ms - self.train_ms) / t1)
        bound = 1 - self.saturation * tissue.bound
        return tissue.proton_density * inverted * np.exp(-self.te_ms / tissue.t2_ms) * bound

    def sidecar(self) -> dict[str, Any]:
        """Return the fields of the BIDS sidecar."""
        fields = _sidecar("IR", "Fluid Attenuated Inversion Recovery", 90, self.tr_ms, self.te_ms)
        return {**fields, "InversionTime": self.ti_ms / 1000}


@dataclass(frozen=True)
class SpoiledGradientEcho:
    """A spoiled gradient echo in its steady state.

    PD sin(a) (1 - E) / (1 - cos(a) E) exp(-TE / T2), with E = exp(-TR / T1).

    References:
        R. R. Ernst and W. A. Anderson, Rev. Sci. Instrum. 37, 1966: the steady state; A. Haase et al., J. Magn. Reson.
        67, 1986: the sequence.
    """

    tr_ms: float
    te_ms: float
    flip_deg: float
    is_fast = False

    def signal(self, tissue: Parameters) -> np.ndarray:
        """Return the signal of each element."""
        angle, left = math.radians(self.flip_deg), np.exp(-self.tr_ms / tissue.t1_ms)
        steady = math.sin(angle) * (1 - left) / (1 - math.cos(angle) * left)
        return tissue.proton_density * steady * np.exp(-self.te_ms / tissue.t2_ms)

    def sidecar(self) -> dict[str, Any]:
        """Return the fields of the BIDS sidecar."""
        return _sidecar("GR", "Spoiled Gradient Echo", self.flip_deg, self.tr_ms, self.te_ms)


@dataclass(frozen=True)
class Mprage:
    """An inversion, and a train of spoiled gradient echoes, one of which fills the centre of k-space.

    The longitudinal magnetization is followed through inversion, wait, train and recovery until it repeats itself: each
    part is linear in it, so the steady state is one division.

    References:
        J. P. Mugler and J. R. Brookeman, MRM 15, 1990; R. Deichmann et al., NeuroImage 12, 2000; equations as in
        J. P. Marques et al., NeuroImage 49, 2010, appendix.
    """

    tr_ms: float
    "From inversion to inversion."
    ti_ms: float
    "From the inversion to the echo that fills the centre."
    te_ms: float
    flip_deg: float
    echo_spacing_ms: float
    echoes: int
    efficiency: float = 0.96
    "Part of the magnetization that the pulse inverts."
    centre: float = 0.5
    "Share of the train before the centre: a half where k-space is read in order, 0 where it is read from its centre."
    is_fast = False

    def signal(self, tissue: Parameters) -> np.ndarray:
        """Return the signal of each element."""
        t1, angle = tissue.t1_ms, math.radians(self.flip_deg)
        before_centre = int(self.centre * self.echoes)
        wait_ms = self.ti_ms - before_centre * self.echo_spacing_ms
        rest_ms = self.tr_ms - wait_ms - self.echoes * self.echo_spacing_ms
        left = np.exp(-self.echo_spacing_ms / t1)
        driven = math.cos(angle) * left
        equilibrium = (1 - left) / (1 - driven)
        waited, rested = np.exp(-wait_ms / t1), np.exp(-rest_ms / t1)
        to_centre = np.exp(before_centre * np.log(driven))
        through = to_centre * np.exp((self.echoes - before_centre) * np.log(driven))
        # z before an inversion gives 1 - (1 + e z) waited after the wait; z is what comes back after the rest.
        after_train = (1 - waited) * through + equilibrium * (1 - through)
        before = (1 - rested + rested * after_train) / (1 + self.efficiency * waited * through * rested)
        after_wait = 1 - (1 + self.efficiency * before) * waited
        read = after_wait * to_centre + equilibrium * (1 - to_centre)
        return tissue.proton_density * math.sin(angle) * read * np.exp(-self.te_ms / tissue.t2_ms)

    def sidecar(self) -> dict[str, Any]:
        """Return the fields of the BIDS sidecar."""
        fields = _sidecar("GR", "MPRAGE", self.flip_deg, self.tr_ms, self.te_ms)
        return {**fields, "InversionTime": self.ti_ms / 1000}


def fluid_null_ms(tr_ms: float, train_ms: float, t1_ms: float = _FLUID_T1_MS) -> float:
    """Return the inversion time at which fluid of this T1 has no signal in a FLAIR."""
    return t1_ms * (math.log(2) - math.log1p(math.exp(-(tr_ms - train_ms) / t1_ms)))


def draw_protocols(
    rng: np.random.Generator, contrasts: Sequence[str], target: str | None = None
) -> dict[str, PulseSequence]:
    """Draw the sequence of each contrast of one subject.

    Ranges are chosen to span what public protocols use: IXI (dual echo TE 8 and 100 ms, TR 5.7 to 8.2 s), ADNI (dual
    echo TE 12 and 100 ms at TR 3 s; MPRAGE TR 2300 to 2400 ms, TI 900 to 1000 ms, 8 to 9 degrees; FLAIR TR 9 to 11 s,
    TI 2.2 to 2.5 s), UK Biobank (MPRAGE TR 2000 ms, TI 880 ms, 8 degrees; FLAIR TR 5 s, TI 1.8 s), HCP (MPRAGE TR
    2400 ms, TI 1000 ms, 8 degrees), inversion-prepared gradient echoes read from the centre of k-space with a short TI,
    T1 FLAIR of clinical scanners (TR about 2 s, TI about 0.8 s, short TE), and older spin and gradient echoes.

    PD and T2 of one subject are the echoes of one excitation. The target's sequence is fixed (`TARGETS`), except that
    the repetition time and the train of a dual echo are the source's too: a source has one answer.

    Args:
        rng: Source of randomness.
        contrasts: Of `CONTRASTS`.
        target: The contrast whose sequence is fixed; None draws all.
    """
    # All are drawn, whatever is asked for, so that one contrast more does not change the others.
    drawn: dict[str, PulseSequence] = {**_draw_dual_echo(rng, target), "T1": _draw_t1(rng), "FLAIR": _draw_flair(rng)}
    is_dual = {"PD", "T2"} <= set(contrasts)
    if target is not None and not (is_dual and target in ("PD", "T2")):
        drawn[target] = TARGETS[target]
    return {contrast: drawn[contrast] for contrast in contrasts}


def _draw_dual_echo(rng: np.random.Generator, target: str | None) -> dict[str, PulseSequence]:
    tr_ms = float(rng.uniform(2000, 8500))
    te_ms = {"PD": float(rng.uniform(8, 35)), "T2": float(rng.uniform(75, 125))}
    if target in te_ms:
        te_ms[target] = TARGETS[target].te_ms
    is_fast, train_ms, saturation = rng.random() < 0.7, float(rng.uniform(120, 250)), float(rng.uniform(0.1, 0.9))
    return {
        name: FastSpinEcho(tr_ms, te, train_ms, saturation) if is_fast else SingleEcho(tr_ms, te)
        for name, te in te_ms.items()
    }


def _draw_t1(rng: np.random.Generator) -> PulseSequence:
    kind = rng.random()
    share = rng.random(6)
    if kind < 0.2:
        spacing_ms, echoes = _between(share[0], 5.5, 8.5), int(_between(share[1], 120, 200))
        ti_ms = _between(share[2], 450, 750)
        tr_ms = ti_ms + echoes * spacing_ms + _between(share[3], 0, 250)
        flip_deg = _between(share[5], 9, 15)
        return Mprage(tr_ms, ti_ms, _between(share[4], 2, 4), flip_deg, spacing_ms, echoes, centre=0.0)
    if kind < 0.5:
        ti_ms = _between(share[0], 800, 1250)
        spacing_ms, echoes = _between(share[1], 5.5, 9.5), int(_between(share[2], 120, 208))
        echoes = min(echoes, int(1.9 * ti_ms / spacing_ms))
        shortest = ti_ms + (echoes - echoes // 2) * spacing_ms
        tr_ms = max(_between(share[3], 1800, 2700), shortest + 50)
        return Mprage(tr_ms, ti_ms, _between(share[4], 2, 4.5), _between(share[5], 7, 12), spacing_ms, echoes)
    if kind < 0.65:
        return SpoiledGradientEcho(_between(share[0], 7, 30), _between(share[1], 2, 6), _between(share[2], 14, 32))
    if kind < 0.85:
        tr_ms, train_ms = _between(share[0], 1700, 3000), _between(share[1], 40, 120)
        ti_ms = fluid_null_ms(tr_ms, train_ms) * _between(share[2], 0.92, 1.05)
        return Flair(tr_ms, _between(share[3], 6, 25), ti_ms, train_ms, _between(share[4], 0.1, 0.9))
    return SingleEcho(_between(share[0], 400, 800), _between(share[1], 8, 20))


def _draw_flair(rng: np.random.Generator) -> Flair:
    tr_ms, te_ms = float(rng.uniform(5000, 11500)), float(rng.uniform(85, 150))
    train_ms = float(rng.uniform(1.5, 2.5)) * te_ms
    ti_ms = fluid_null_ms(tr_ms, train_ms) * float(rng.uniform(0.92, 1.04))
    return Flair(tr_ms, te_ms, ti_ms, train_ms, float(rng.uniform(0.1, 0.9)))


def _between(share: float, low: float, high: float) -> float:
    return low + float(share) * (high - low)


def _sidecar(kind: str, name: str, flip_deg: float, tr_ms: float, te_ms: float) -> dict[str, Any]:
    return {
        "EchoTime": te_ms / 1000,
        "RepetitionTime": tr_ms / 1000,
        "FlipAngle": flip_deg,
        "ScanningSequence": kind,
        "PulseSequenceType": name,
    }


TARGETS: Mapping[str, Any] = {
    "PD": FastSpinEcho(5000.0, 12.0, 180.0),
    "T2": FastSpinEcho(5000.0, 95.0, 180.0),
    "T1": Mprage(2300.0, 900.0, 3.0, 9.0, 7.0, 176),
    "FLAIR": Flair(9000.0, 120.0, round(0.98 * fluid_null_ms(9000.0, 240.0)), 240.0),
}
"The sequence of a target: fixed, as echo times differ between scanners and no source tells them."
