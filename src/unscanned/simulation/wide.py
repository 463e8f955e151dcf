"""A subject with the spread of real scanners: field strength, tissues, sequences, slices, coil, noise, coverage.

A head is bent onto a fine grid, given lesions, and its tissues vary there, smoothly and from voxel to voxel. Each
contrast's signal equation is evaluated there, voxel by voxel, and the scanner samples the result. So the signal of a
voxel across two tissues is the mixture of their signals.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np

from unscanned.settings import Spread
from unscanned.simulation import acquisition
from unscanned.simulation.acquisition import Axes, Geometry, Receiver
from unscanned.simulation.anatomy import Warp, draw_warp, smooth_field
from unscanned.simulation.coverage import brain_mask, deface, draw_window
from unscanned.simulation.heads import Head
from unscanned.simulation.lesions import draw_lesions
from unscanned.simulation.relaxation import FIELDS_T, NAMES, Parameters, draw_values, typical_values
from unscanned.simulation.sequences import CONTRASTS, Mprage, PulseSequence, SpoiledGradientEcho, draw_protocols
from unscanned.volumes.intensity import head_mask, head_scale

__all__ = ["Drawn", "draw_subject"]

_VOXELS, _NOISE, _PATIENT = 3, 4, 8
_WHITE, _FLUIDS = NAMES.index("white matter"), [NAMES.index("cerebrospinal fluid"), NAMES.index("eye fluid")]
_FATTY = [NAMES.index("fat"), NAMES.index("marrow")]
_FAT_IN_TRAINS = 1.6
"Trains of pulses keep fat bright: R. M. Henkelman et al., JMRI 2, 1992. The factor on its T2 is chosen."
_FAT_SUPPRESSED = {"PD": 0.15, "T2": 0.25, "T1": 0.05, "FLAIR": 0.6}
"Share of scans with fat suppression; chosen."
_NOISE_OF = {"PD": 0.67, "T2": 1.33, "T1": 0.67, "FLAIR": 1.33}

Coverage = Literal["whole", "defaced", "brain"]

_DEFAULT = Spread()


@dataclass(frozen=True, eq=False)
class Drawn:
    """One subject on one grid, axes in RAS+ order.

    Attributes:
        images: Magnitude by contrast, float32 (i, j, k), white matter at about 1 before the receive field.
        clean: The same without noise and ghosts, of the contrasts that were asked for.
        typical: The same contrasts of the same anatomy and scanner with the values of `VALUES`, uniform in each tissue.
        posterior: Their mean over other patients, each in unit scale; empty where it was not asked for.
        tissues: Index into `NAMES`, uint8 (i, j, k); 0 where the image was cut away.
        field_t: Field strength, tesla.
        protocols: Sequence by contrast.
        geometry: The slices, which all contrasts share.
        noise_sigma: Standard deviation of the noise by contrast, in the images' units.
        fat_left: Part of the signal of fat that is not suppressed, by contrast.
        coverage: whole, defaced or brain.
        values: Tissue values, in the order of `NAMES`.
    """

    images: Mapping[str, np.ndarray]
    clean: Mapping[str, np.ndarray]
    typical: Mapping[str, np.ndarray]
    posterior: Mapping[str, np.ndarray]
    tissues: np.ndarray
    field_t: float
    protocols: Mapping[str, PulseSequence]
    geometry: Geometry
    noise_sigma: Mapping[str, float]
    fat_left: Mapping[str, float]
    coverage: Coverage
    values: Parameters


def draw_subject(
    head: Head,
    shape: tuple[int, int, int],
    spacing_mm: tuple[float, float, float],
    contrasts: Sequence[str],
    *,
    target: str | None,
    seed: int,
    subject: int,
    spread: Spread = _DEFAULT,
    clean: Sequence[str] = (),
    patients: int = 0,
) -> Drawn:
    """Draw one subject: a function of the head, the grid, the contrasts, the seed and the subject's number.

    Args:
        head: The anatomy.
        shape: Voxels along the axes of RAS+.
        spacing_mm: Voxel size.
        contrasts: Of PD, T2, T1 and FLAIR.
        target: The contrast whose sequence is fixed; None draws all.
        seed: Seed of the dataset.
        subject: The subject's number.
        spread: What is drawn from.
        clean: Contrasts to return without noise too.
        patients: Over how many other patients `posterior` is the mean, for the contrasts of `clean`; 0 makes none.
    """
    rng = np.random.default_rng([seed, _VOXELS, subject])
    field_t = float(rng.choice(FIELDS_T))
    values, protocols = draw_values(rng, field_t), draw_protocols(rng, contrasts, target)
    axes = acquisition.axes_of(shape, spacing_mm)
    extent_mm = np.multiply(shape, spacing_mm)
    fine_axes = _fine_axes(extent_mm, spacing_mm)
    geometry = acquisition.draw_geometry(rng, spacing_mm, spread.thickness_mm, spread.volumetric)
    tissues, eyes_mm = _place(rng, head, fine_axes, extent_mm, spread)
    painter = _Painter(tissues, fine_axes, geometry, extent_mm)
    vary = _draw_variation(rng, fine_axes, painter.inside, painter.index)
    acquired = painter.acquired
    strength = float(rng.uniform(*spread.receive))
    shared = acquisition.draw_field(rng, acquired, strength)
    bright_vessels = float(rng.uniform(1, 4))
    level = np.exp(rng.uniform(*np.log(spread.noise)))
    kept, coverage = _draw_coverage(rng, _pick(tissues, fine_axes, axes), axes, eyes_mm, geometry, spread)

    images, sigmas, fats = {}, {}, {}
    without: dict[str, np.ndarray] = {}
    typical: dict[str, np.ndarray] = {}
    posterior: dict[str, np.ndarray] = {}
    for contrast, protocol in protocols.items():
        own = np.random.default_rng([seed, _NOISE, subject, CONTRASTS.index(contrast)])
        fats[contrast] = _draw_fat(own, contrast, is_target=contrast == target)
        apparent = _apparent(values, protocol, bright_vessels, fats[contrast])
        unit = np.float32(abs(protocol.signal(apparent)[_WHITE]))
        signal = painter.sample(protocol.signal(vary(apparent)) / unit)
        field = shared * acquisition.draw_field(own, acquired, 0.15 * strength)
        receiver = acquisition.draw_receiver(own, geometry, acquired, field, spread.ghosts)
        sigmas[contrast] = float(_NOISE_OF[contrast] * level * np.exp(own.uniform(-0.3, 0.3)))
        image = acquisition.acquire(signal, receiver, sigmas[contrast], own, acquired, axes)
        images[contrast] = image * kept
        if contrast in clean:
            known = _apparent(typical_values(field_t), protocol, bright_vessels, fats[contrast])
            uniform = painter.sample(protocol.signal(known)[painter.index] / unit)
            quiet = partial(_receive_quietly, receiver, acquired, axes, kept)
            without[contrast], typical[contrast] = quiet(signal), quiet(uniform)
            if patients:
                inside, mean = head_mask(typical[contrast]), np.zeros(shape)
                for patient in range(patients):
                    other = np.random.default_rng([seed, _PATIENT, subject, patient])
                    apparent = _apparent(draw_values(other, field_t), protocol, other.uniform(1, 4), fats[contrast])
                    vary_other = _draw_variation(other, fine_axes, painter.inside, painter.index)
                    unit = np.float32(abs(protocol.signal(apparent)[_WHITE]))
                    signal = painter.sample(protocol.signal(vary_other(apparent)) / unit)
                    noisy = acquisition.acquire(signal, receiver, sigmas[contrast], other, acquired, axes)
                    mean += quiet(signal) / (head_scale(noisy * kept, inside) * patients)
                posterior[contrast] = mean.astype(np.float32)
    return Drawn(
        images,
        without,
        typical,
        posterior,
        _pick(tissues, fine_axes, axes) * kept,
        field_t,
        protocols,
        geometry,
        sigmas,
        fats,
        coverage,
        values,
    )


def _receive_quietly(
    receiver: Receiver, acquired: Axes, axes: Axes, kept: np.ndarray, signal: np.ndarray
) -> np.ndarray:
    """Return the image that a coil makes of a sampled signal, without noise and ghosts, where the scan covers it."""
    return acquisition.interpolate(receiver.receive(signal, ghosts=False), acquired, axes) * kept


class _Painter:
    """Puts the signals of tissues onto the fine grid, and samples them as the scanner does.

    Attributes:
        inside: Where the head is, as places in the flattened fine grid.
        index: Tissue of each of these.
        acquired: Positions of the acquired voxels.
    """

    def __init__(self, tissues: np.ndarray, axes: Axes, geometry: Geometry, extent_mm: np.ndarray) -> None:
        self.shape, self.axes, self.geometry = tissues.shape, axes, geometry
        self.inside = np.flatnonzero(tissues)
        self.index = tissues.ravel()[self.inside]
        self.acquired = geometry.axes_mm(extent_mm)

    def sample(self, signal: np.ndarray) -> np.ndarray:
        """Return the magnitude of what the acquired voxels hold of a signal that is given inside the head."""
        fine = np.zeros(self.shape, np.float32)
        fine.ravel()[self.inside] = signal
        return np.abs(acquisition.sample(fine, self.axes, self.geometry, self.acquired))


def _place(
    rng: np.random.Generator, head: Head, axes: Axes, extent_mm: np.ndarray, spread: Spread
) -> tuple[np.ndarray, np.ndarray]:
    """Return the tissues of a bent head with its lesions on the fine axes, and where its eyes are, mm."""
    painted = draw_lesions(rng, head.tissues, head.sites, head.spacing_mm)
    warp = draw_warp(rng, extent_mm, deformation_mm=spread.deformation_mm, tilt_deg=spread.tilt_deg)
    mirror = np.diag([rng.choice((-1.0, 1.0)), 1.0, 1.0])
    vertex = np.array([rng.uniform(-8, 8), rng.uniform(-8, 8), extent_mm[2] / 2 - rng.uniform(3, 22)])
    # The head's axis through its vertex is mirrored about itself; then world becomes voxels, all in one linear map.
    to_voxel = np.linalg.inv(head.affine)
    linear = to_voxel[:3, :3] @ mirror
    offset = to_voxel[:3, :3] @ head.vertex_mm + to_voxel[:3, 3] - linear @ vertex
    # The map from a scanner's point p to the head is warp(p) - vertex, mirrored, from the head's own vertex.
    into = Warp(
        linear @ warp.matrix,
        linear @ warp.shift_mm + offset,
        np.tensordot(linear, warp.coefficients_mm, axes=1),
        warp.origin_mm,
        warp.knot_mm,
    )
    eyes_mm = np.linalg.solve(linear @ warp.matrix, to_voxel[:3, :3] @ head.eyes_mm + to_voxel[:3, 3] - into.shift_mm)
    return _nearest(painted, into, axes), eyes_mm


def _nearest(tissues: np.ndarray, into: Warp, axes: Axes) -> np.ndarray:
    """Return the tissue at each point of a box, a few planes at a time; outside the head it is air."""
    padded = np.pad(tissues, 1)
    limits = np.subtract(padded.shape, 1)
    flat, (_, rows, columns) = padded.ravel(), padded.shape
    placed = np.empty([len(axis) for axis in axes], np.uint8)
    planes = max(1, 2**18 // (len(axes[1]) * len(axes[2])))
    for first in range(0, len(axes[0]), planes):
        slab = slice(first, first + planes)
        points = into([axes[0][slab], axes[1], axes[2]])
        points += np.float32(1.5)
        i, j, k = (
            np.clip(along, 0, limit, out=along).astype(np.int32) for along, limit in zip(points, limits, strict=True)
        )
        i *= rows
        i += j
        i *= columns
        i += k
        placed[slab] = flat[i]
    return placed


def _draw_variation(rng: np.random.Generator, axes: Axes, inside: np.ndarray, index: np.ndarray) -> Any:
    """Draw how tissues vary from place to place; returns the map from tissue values to those of each voxel inside.

    Water content moves the proton density and T1 together, R2 moves alone, both smoothly and from voxel to voxel. In
    fluid, pulsation takes a part of the signal away.
    """

    def field(knot_mm: float) -> np.ndarray:
        return smooth_field(rng, axes, knot_mm).ravel()[inside]

    def grain() -> np.ndarray:
        return rng.standard_normal(len(inside), np.float32)

    smooth, rough = rng.uniform(0.3, 1.0), rng.uniform(0.0, 1.0)
    water = np.float32(0.02 * smooth) * field(rng.uniform(15, 40)) + np.float32(0.012 * rough) * grain()
    decay = np.float32(0.05 * smooth) * field(rng.uniform(12, 30)) + np.float32(0.03 * rough) * grain()
    flow = np.where(np.isin(index, _FLUIDS), np.float32(rng.uniform(0, 0.3)) * np.abs(field(18)), 0)
    density, t1, t2 = np.exp(water - flow), np.exp(np.float32(1.5) * water), np.exp(decay)

    def vary(values: Parameters) -> Parameters:
        here = values.take(index)
        return replace(here, proton_density=here.proton_density * density, t1_ms=here.t1_ms * t1, t2_ms=here.t2_ms * t2)

    return vary


def _draw_fat(rng: np.random.Generator, contrast: str, *, is_target: bool) -> float:
    """Draw which part of the signal of fat is left; of a target it is fixed: suppressed in FLAIR alone."""
    suppressed, left = rng.random() < _FAT_SUPPRESSED[contrast], float(rng.uniform(0.03, 0.25))
    if is_target:
        return 0.1 if contrast == "FLAIR" else 1.0
    return left if suppressed else 1.0


def _apparent(values: Parameters, protocol: PulseSequence, bright_vessels: float, fat_left: float) -> Parameters:
    """Return the tissue values as a kind of sequence sees them: fat suppressed or bright, and blood that flows in."""
    density, t2_ms = values.proton_density.copy(), values.t2_ms.copy()
    density[_FATTY] *= np.float32(fat_left)
    if protocol.is_fast:
        t2_ms[_FATTY] *= np.float32(_FAT_IN_TRAINS)
    elif isinstance(protocol, Mprage | SpoiledGradientEcho):
        density[NAMES.index("vessels")] *= np.float32(bright_vessels)
    return replace(values, proton_density=density, t2_ms=t2_ms)


def _draw_coverage(
    rng: np.random.Generator, tissues: np.ndarray, axes: Axes, eyes_mm: np.ndarray, geometry: Geometry, spread: Spread
) -> tuple[np.ndarray, Coverage]:
    """Return which voxels of the grid an image keeps, and the name of what is left."""
    spacing_mm = tuple(float(axis[1] - axis[0]) if len(axis) > 1 else 1.0 for axis in axes)
    kind, is_cropped = rng.random(), rng.random() < spread.cropped
    kept, coverage = np.ones(tissues.shape, bool), "whole"
    if kind < spread.brain:
        kept, coverage = brain_mask(rng, tissues, spacing_mm), "brain"  # type: ignore[arg-type]
    elif kind < spread.brain + spread.defaced:
        kept, coverage = deface(rng, axes, eyes_mm), "defaced"
    if is_cropped:
        window = np.zeros(tissues.shape, bool)
        window[draw_window(rng, tissues, geometry.slice_axis)] = True
        kept = kept & window
    return kept, coverage  # type: ignore[return-value]


def _fine_axes(extent_mm: np.ndarray, spacing_mm: tuple[float, float, float]) -> Axes:
    """Return the axes that signals are evaluated on: about as fine as label maps, coarser for a coarse grid."""
    fine = np.clip(np.divide(spacing_mm, 1.5), 1.0, 2.0)
    return acquisition.axes_of(tuple(np.ceil(extent_mm / fine).astype(int).tolist()), tuple(fine.tolist()))


def _pick(tissues: np.ndarray, fine_axes: Axes, axes: Axes) -> np.ndarray:
    """Return the tissues at the voxels of a grid, by the nearest fine voxel."""
    nearest = [
        np.clip(np.rint((at - of[0]) / (of[1] - of[0])), 0, len(of) - 1).astype(int)
        if len(of) > 1
        else np.zeros(len(at), int)
        for at, of in zip(axes, fine_axes, strict=True)
    ]
    return tissues[np.ix_(*nearest)]
