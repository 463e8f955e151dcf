"""A scanner of the signal equation: it turns an anatomy into aligned images of one subject.

What a voxel holds is a mixture, and the signal of a mixture is the mixture of the signals: each contrast is painted on
the anatomy's own grid, blurred by the target's voxel, and sampled through the subject's deformation. The receive field
multiplies the signal; noise is added to both channels of the complex signal, of which the magnitude is stored (Rician;
Gudbjartsson and Patz, MRM 34, 1995).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from unscanned.simulation.anatomy import Anatomy, draw_warp, smooth_field
from unscanned.simulation.tissues import TISSUES, SpinEcho, Tissue, draw_sequences, draw_tissues, spin_echo
from unscanned.volumes.intensity import head_mask, head_scale

__all__ = ["CONTRASTS", "Grid", "Scan", "add_rician_noise", "scan"]

CONTRASTS = ("PD", "T2", "T1")

_SUBJECT, _NOISE, _PATIENT = 1, 2, 7
_ABOVE_VERTEX_MM = 14.0
# Tissues are not uniform: proton density varies by about 1.5 %, and 1 / T2 by as much as 4 % of a T2 of 90 ms.
_DENSITY_VARIATION = 0.015
_DECAY_VARIATION_HZ = 0.45


@dataclass(frozen=True)
class Grid:
    """An axial grid around the scanner's origin; voxels run to the left, to the back and up (LPS)."""

    shape: tuple[int, int, int]
    "Voxels along i, j, k."
    spacing_mm: tuple[float, float, float]
    "Voxel size along i, j, k."

    @property
    def extent_mm(self) -> np.ndarray:
        """Field of view, (3,)."""
        return np.multiply(self.shape, self.spacing_mm)

    @property
    def axes_mm(self) -> list[np.ndarray]:
        """World positions of the voxels along i, j and k."""
        return [
            sign * (np.arange(size) - (size - 1) / 2) * spacing
            for sign, size, spacing in zip((-1, -1, 1), self.shape, self.spacing_mm, strict=True)
        ]

    @property
    def affine(self) -> np.ndarray:
        """Voxel to world mm, RAS+, float64 (4, 4)."""
        affine = np.diag([-self.spacing_mm[0], -self.spacing_mm[1], self.spacing_mm[2], 1.0])
        affine[:3, 3] = [axis[0] for axis in self.axes_mm]
        return affine


@dataclass(frozen=True, eq=False)
class Scan:
    """One simulated subject."""

    images: Mapping[str, np.ndarray]
    "Magnitude by contrast, whole numbers as float32 (i, j, k)."
    sequences: Mapping[str, SpinEcho]
    "SpinEcho by contrast."
    tissues: Mapping[str, Tissue]
    "The subject's tissues."
    noise_sigma: float
    "Standard deviation of each channel of the complex noise, in the images' units."
    gain: float
    "The images' units per unit of proton density."
    shading: float
    "Standard deviation of the logarithm of the receive field."
    labels: np.ndarray
    "Tissue at the middle of each voxel, as an index into the names of `TISSUES`, uint8 (i, j, k); 0 is air."
    clean: Mapping[str, np.ndarray]
    "The images without noise, float32; empty where they were not asked for."
    typical: Mapping[str, np.ndarray]
    "The images of the same anatomy and scanner with the tissue values of `TISSUES`, without noise; likewise."
    posterior: Mapping[str, np.ndarray]
    "Their mean over other patients, in unit scale, without noise; likewise."


def scan(
    anatomy: Anatomy,
    grid: Grid,
    contrasts: Sequence[str],
    *,
    seed: int,
    subject: int,
    noise: tuple[float, float],
    shading: tuple[float, float],
    deformation_mm: float,
    clean: bool = False,
    patients: int = 0,
) -> Scan:
    """Simulate one subject: all contrasts on one grid, with one deformation and one receive field.

    Args:
        anatomy: The head.
        grid: Where the images lie.
        contrasts: Keys of the images.
        seed: Seed of the dataset.
        subject: The subject's number; with the seed it determines all that is drawn here.
        noise: As in `simulate`.
        shading: As in `simulate`.
        deformation_mm: As in `simulate`.
        clean: As in `simulate`.
        patients: As in `simulate`.
    """
    rng = np.random.default_rng([seed, _SUBJECT, subject])
    tissues, sequences = draw_tissues(rng), draw_sequences(rng)
    warp = draw_warp(rng, grid.extent_mm, deformation_mm=deformation_mm)
    strength = float(rng.uniform(*shading))
    receive = np.exp(strength * smooth_field(rng, grid.axes_mm, 90.0))
    vary = _draw_variation(rng, grid)
    gain = float(rng.uniform(500, 1500))
    sigma = gain * float(rng.uniform(*noise)) * spin_echo(tissues["white matter"], sequences["PD"])
    used = {contrast: sequences[contrast] for contrast in contrasts}
    painted = _paint(anatomy, grid, tissues, [*used.values()])
    known = _paint(anatomy, grid, TISSUES, [*used.values()]) if clean else []
    sampled, labels = _sample([*painted, *known], anatomy, warp, grid)
    images, without, typical = {}, {}, {}
    posterior: dict[str, np.ndarray] = {}
    for contrast, signal in zip(used if clean else (), sampled[len(used) :], strict=True):
        typical[contrast] = signal * np.float32(gain) * receive
    for contrast, signal in zip(used, sampled[: len(used)], strict=True):
        signal *= gain * receive * vary(sequences[contrast])
        if clean:
            without[contrast] = signal
        noise_rng = np.random.default_rng([seed, _NOISE, subject, CONTRASTS.index(contrast)])
        images[contrast] = np.round(add_rician_noise(signal, sigma, noise_rng))
    if patients:
        heads = {contrast: head_mask(image, grid.affine) for contrast, image in typical.items()}
        shares = [_blur(anatomy.mix({name: name == own for name in TISSUES}), anatomy, grid) for own in TISSUES]
        sampled, _ = _sample(shares, anatomy, warp, grid)
        drawn = (np.random.default_rng([seed, _PATIENT, subject, patient]) for patient in range(patients))
        posterior = _mean_over_patients(sampled, used, receive, sigma / gain, heads, grid, [*drawn])
    return Scan(images, used, tissues, sigma, gain, strength, labels, without, typical, posterior)


def _mean_over_patients(
    shares: Sequence[np.ndarray],
    sequences: Mapping[str, SpinEcho],
    receive: np.ndarray,
    sigma: float,
    heads: Mapping[str, np.ndarray],
    grid: Grid,
    patients: Sequence[np.random.Generator],
) -> dict[str, np.ndarray]:
    """Return by contrast the mean of noise-free images, each in unit scale, of patients with these shares of tissues.

    Args:
        shares: Of each tissue in each voxel, in the order of `TISSUES`.
        sequences: By contrast.
        receive: Receive field.
        sigma: Of the noise, per unit of proton density; it is in what a scale is the percentile of.
        heads: Voxels that the scale is taken from, by contrast.
        grid: Where the images lie.
        patients: What the values and the variation of each patient are drawn from.
    """
    mean = {contrast: np.zeros(grid.shape) for contrast in sequences}
    for rng in patients:
        tissues, vary = draw_tissues(rng), _draw_variation(rng, grid)
        for contrast, sequence in sequences.items():
            image = np.zeros(grid.shape, np.float32)
            for share, tissue in zip(shares, tissues.values(), strict=True):
                image += np.float32(spin_echo(tissue, sequence)) * share
            image *= receive * vary(sequence)
            scale = head_scale(add_rician_noise(image, sigma, rng), heads[contrast])
            mean[contrast] += image / (scale * len(patients))
    return {contrast: image.astype(np.float32) for contrast, image in mean.items()}


def _draw_variation(rng: np.random.Generator, grid: Grid) -> Callable[[SpinEcho], np.ndarray]:
    """Draw how a patient's tissues vary; returns the factor that it puts on the signal of a sequence, (i, j, k)."""
    density = np.exp(_DENSITY_VARIATION * smooth_field(rng, grid.axes_mm, 15.0))
    extra_decay_hz = _DECAY_VARIATION_HZ * smooth_field(rng, grid.axes_mm, 15.0)
    return lambda sequence: density * np.exp(-sequence.te_ms / 1000 * extra_decay_hz)


def add_rician_noise(signal: np.ndarray, sigma: float, rng: np.random.Generator) -> np.ndarray:
    """Return the magnitude of a signal in complex Gaussian noise, float32.

    Args:
        signal: Noise-free magnitude, any shape.
        sigma: Standard deviation of the real and of the imaginary channel. Where there is no signal, the mean of the
            result is sigma sqrt(pi / 2).
        rng: Source of randomness.
    """
    real = rng.standard_normal(signal.shape, np.float32)
    imaginary = rng.standard_normal(signal.shape, np.float32)
    return np.hypot(signal + np.float32(sigma) * real, np.float32(sigma) * imaginary)


def _paint(
    anatomy: Anatomy, grid: Grid, tissues: Mapping[str, Tissue], sequences: Sequence[SpinEcho]
) -> list[np.ndarray]:
    """Return the signal of each sequence on the anatomy's own grid, averaged over the target's voxel."""
    values = ({name: spin_echo(tissue, sequence) for name, tissue in tissues.items()} for sequence in sequences)
    return [_blur(anatomy.mix(signals), anatomy, grid) for signals in values]


def _blur(image: np.ndarray, anatomy: Anatomy, grid: Grid) -> np.ndarray:
    """Average over the target's voxel: a Gaussian of its box's variance, and enough to hide the anatomy's voxels."""
    steps = anatomy.affine[:3, :3]
    world_axis = np.argmax(np.abs(steps), axis=0)
    own_mm = np.linalg.norm(steps, axis=0)
    variance = np.take(grid.spacing_mm, world_axis) ** 2 / 12 + (0.35 * own_mm) ** 2
    return ndimage.gaussian_filter(image, np.sqrt(variance) / own_mm, truncate=3.0)


def _sample(
    images: Sequence[np.ndarray], anatomy: Anatomy, warp: Callable[[list[np.ndarray]], np.ndarray], grid: Grid
) -> tuple[list[np.ndarray], np.ndarray]:
    """Sample images of the anatomy and its tissues on the grid, a few slices at a time to bound memory."""
    x, y, z = grid.axes_mm
    to_voxel = np.linalg.inv(anatomy.affine)
    vertex = np.array([0.0, 0.0, grid.extent_mm[2] / 2 - _ABOVE_VERTEX_MM])
    offset = to_voxel[:3, :3] @ (anatomy.vertex_mm - vertex) + to_voxel[:3, 3]
    sampled = [np.empty(grid.shape, np.float32) for _ in images]
    tissues, labels = anatomy.tissues, np.empty(grid.shape, np.uint8)
    slices = max(1, 2**20 // (len(x) * len(y)))
    for first in range(0, len(z), slices):
        slab = slice(first, first + slices)
        voxels = np.tensordot(to_voxel[:3, :3], warp([x, y, z[slab]]), axes=1) + offset[:, None, None, None]
        for image, target in zip(images, sampled, strict=True):
            target[:, :, slab] = ndimage.map_coordinates(image, voxels, order=1, cval=0.0)
        labels[:, :, slab] = ndimage.map_coordinates(tissues, voxels, order=0, cval=0)
    return sampled, labels
