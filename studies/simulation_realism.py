"""Simulated heads beside real scans: histograms, contrast ratios of tissues, noise with its spectrum, and shading.

Run: python studies/simulation_realism.py REAL [REAL ...] --labels FOLDER --subjects 70 --picture out.png

REAL are BIDS datasets with T1w, T2w and FLAIR on one grid. Every scan, real or simulated, is brought to 1.5 mm and unit
scale as preparation does it. What is measured looks at the scans alone; no model and no score of synthesis comes in.

Tissues are found in the same way in both: in the upper inner head (26 mm below the skin, at most 100 mm below the
vertex, or the whole of an extracted brain), three clusters of the three contrasts by k-means. Fluid is bright in T2w
and dark in T1w; of the other two, white matter is darker in T2w and FLAIR and brighter in T1w. Simulated heads are
measured by their labels too, which shows what the clusters miss.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from scipy import ndimage
from scipy.cluster.vq import kmeans2

from unscanned.datasets.layout import bids_suffix, take_inventory
from unscanned.simulation.heads import read_head
from unscanned.simulation.relaxation import NAMES
from unscanned.simulation.stream import Stream
from unscanned.simulation.wide import draw_subject
from unscanned.volumes.grid import frame
from unscanned.volumes.intensity import head_mask, head_scale
from unscanned.volumes.nifti import read_volume

CONTRASTS, SPACING_MM, SHAPE = ("T1", "T2", "FLAIR"), 1.5, (128, 160, 128)
EDGES = np.linspace(0, 1.2, 61)
LAGS = 8
"Voxels over which the noise's autocovariance is taken for its spectrum."
FREQUENCIES = np.linspace(0, 0.5 / SPACING_MM, 2 * LAGS + 1)
"Of the spectrum, cycles per mm, up to Nyquist's."
WHITE, GREY, FLUID = (NAMES.index(name) for name in ("white matter", "grey matter", "cerebrospinal fluid"))


def real(roots: list[Path]) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """Yield each session's contrasts at 1.5 mm, its own intensities."""
    for root in roots:
        sessions: dict[tuple[str, str | None], dict[str, Path]] = {}
        for scan in take_inventory(root, "bids", source="T1", target="T2").scans:
            sessions.setdefault((scan.subject, scan.session), {})[scan.contrast.upper()] = scan.path
        for (subject, session), paths in sessions.items():
            if set(CONTRASTS) <= set(paths):
                volumes = {contrast: read_volume(paths[contrast]) for contrast in CONTRASTS}
                where = frame(volumes["T1"], spacing_mm=SPACING_MM)
                name = subject + (f" {session}" if session else "")
                yield name, {contrast: where.forward(volume.array) for contrast, volume in volumes.items()}


def simulated(folder: Path, subjects: int, seed: int) -> Iterator[tuple[str, dict[str, np.ndarray], np.ndarray]]:
    """Yield simulated subjects with all sequences drawn, and their tissues."""
    paths = sorted(folder.glob("*.nii.gz"))
    for first, path in enumerate(paths):
        head = read_head(path, np.random.default_rng(first))
        for subject in range(first, subjects, len(paths)):
            drawn = draw_subject(head, SHAPE, (SPACING_MM,) * 3, CONTRASTS, target=None, seed=seed, subject=subject)
            yield f"{subject}", dict(drawn.images), drawn.tissues


def clusters(unit: dict[str, np.ndarray], heads: dict[str, np.ndarray]) -> np.ndarray:
    """Return white matter, grey matter and fluid of the inner head, numbered as in `NAMES`; 0 elsewhere."""
    head = heads["T1"] & heads["T2"]
    depth = ndimage.distance_transform_edt(head) * SPACING_MM
    deep = {contrast: np.median(unit[contrast][depth > 30]) for contrast in CONTRASTS}
    bone = np.all([unit[contrast] < 0.45 * deep[contrast] for contrast in CONTRASTS], axis=0)
    # Whole heads have a ring of bone below their surface; extracted brains do not.
    is_brain = bone[(depth > 3) & (depth < 12)].mean() < 0.15
    inner = head & (depth > (1 if is_brain else 26)) & ~bone
    if not is_brain:  # nor the face and the neck
        top = np.flatnonzero(head.any(axis=(0, 1)))[-1]
        inner[:, :, : max(0, int(top - 100 / SPACING_MM))] = False
    values = np.stack([unit[contrast][inner] / deep[contrast] for contrast in CONTRASTS], 1)
    inner[inner] = plain = (values < (2, 8, 2)).all(1) & (
        values.sum(1) > 1.5
    )  # neither fat nor vessels nor bone's edge
    # Square roots bring fluid, many times brighter than tissue in T2w, nearer to it.
    values = np.sqrt(values[plain])
    centres, label = kmeans2(values, 3, minit="++", rng=np.random.default_rng(0), iter=30)
    fluid = int(np.argmax(centres[:, 1] - centres[:, 0]))
    white, grey = sorted({0, 1, 2} - {fluid}, key=lambda n: centres[n, 1] + centres[n, 2] - centres[n, 0])
    found = np.zeros(head.shape, np.uint8)
    found[inner] = np.select([label == white, label == grey], [WHITE, GREY], FLUID)
    return found


def measure(images: dict[str, np.ndarray], tissues: np.ndarray | None = None) -> dict[str, float | list[float]]:
    """Return what is compared."""
    heads = {contrast: head_mask(image) for contrast, image in images.items()}
    unit = {contrast: image / head_scale(image, heads[contrast]) for contrast, image in images.items()}
    if tissues is None:
        tissues = clusters(unit, heads)
    masks = {"WM": tissues == WHITE, "GM": tissues == GREY, "CSF": tissues == FLUID}
    deep = ndimage.binary_erosion(masks["WM"])
    cores = {
        name: inner if (inner := ndimage.binary_erosion(mask)).sum() > 200 else mask for name, mask in masks.items()
    }
    told: dict[str, float | list[float]] = {}
    for contrast in CONTRASTS:
        image = unit[contrast]
        level = {name: float(np.median(image[mask])) for name, mask in cores.items()}
        told[f"{contrast} GM/WM"], told[f"{contrast} CSF/WM"] = (level[name] / level["WM"] for name in ("GM", "CSF"))
        told[f"{contrast} WM in unit scale"] = level["WM"]
        one, two = _roughness(image, deep, 1), _roughness(image, deep, 2)
        told[f"{contrast} noise/WM"] = one / level["WM"]
        told[f"{contrast} noise, one to two voxels"] = one / max(two, 1e-9)
        told[f"{contrast} shading"] = _shading(image, deep)
        spectrum = _spectrum(image / level["WM"], deep)
        told[f"{contrast} spectrum"] = spectrum.tolist()
        told[f"{contrast} noise above half of Nyquist"] = float(spectrum[LAGS:].sum() / spectrum.sum())
        told[f"{contrast} histogram"] = np.histogram(image[heads[contrast]], EDGES, density=True)[0].tolist()
    return told


def _roughness(image: np.ndarray, mask: np.ndarray, step: int) -> float:
    """Return the standard deviation of noise by mixed differences over a step, in the plane where it is greatest."""
    seen = []
    for one, other in ((0, 1), (0, 2), (1, 2)):
        moved = [np.roll(image, shift, (one, other)) for shift in ((0, 0), (-step, -step), (-step, 0), (0, -step))]
        inside = np.all(
            [np.roll(mask, s, (one, other)) for s in ((0, 0), (-step, -step), (-step, 0), (0, -step))], axis=0
        )
        mixed = (moved[0] + moved[1] - moved[2] - moved[3])[inside] / 2
        seen.append(1.4826 * float(np.median(np.abs(mixed))) if mixed.size else 0.0)
    return max(seen)


def _spectrum(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the power of noise within a mask at the `FREQUENCIES`, mean of the three axes.

    The mask has any shape, so it is the cosine transform of the autocovariance, with Parzen's window (Blackman and
    Tukey 1958). What varies more slowly than about 5 mm is taken off first.
    """
    seen = mask.astype(np.float32)
    weight = np.maximum(ndimage.gaussian_filter(seen, 5 / SPACING_MM), 1e-3)
    residual = (image - ndimage.gaussian_filter(seen * image, 5 / SPACING_MM) / weight) * seen
    # A few voxels of vessels or of grey matter would outweigh the noise of all others.
    limit = 5 * 1.4826 * np.median(np.abs(residual[mask]))
    seen *= np.abs(residual) <= limit
    residual *= seen
    share = np.arange(LAGS + 1) / (LAGS + 1)
    window = np.where(share <= 0.5, 1 - 6 * share**2 * (1 - share), 2 * (1 - share) ** 3)
    power = np.zeros(len(FREQUENCIES))
    for axis in range(3):
        product, pairs = np.moveaxis(residual, axis, 0), np.moveaxis(seen, axis, 0)
        size = len(product)
        covariance = [
            (product[: size - lag] * product[lag:]).sum() / max(1.0, (pairs[: size - lag] * pairs[lag:]).sum())
            for lag in range(LAGS + 1)
        ]
        waves = np.cos(2 * np.pi * FREQUENCIES[:, None] * SPACING_MM * np.arange(1, LAGS + 1))
        power += SPACING_MM * (covariance[0] + 2 * waves @ (window[1:] * covariance[1:])) / 3
    return np.maximum(power, 1e-9)


def _shading(image: np.ndarray, mask: np.ndarray) -> float:
    """Return the standard deviation of a smooth fit (quadratic in place) to the logarithm of white matter."""
    places = np.argwhere(mask)
    if len(places) < 500:
        return float("nan")
    places, log = places[::7], np.log(np.maximum(image[mask][::7], 1e-3))
    x = (places - places.mean(0)) / 40
    columns = np.concatenate(
        [np.ones((len(x), 1)), x, x**2, x[:, [0]] * x[:, [1]], x[:, [0]] * x[:, [2]], x[:, [1]] * x[:, [2]]], 1
    )
    keep = np.abs(log - np.median(log)) < 0.5
    fit = columns @ np.linalg.lstsq(columns[keep], log[keep], rcond=None)[0]
    return float(fit.std())


def draw(path: Path, of_real: dict[str, dict], by_label: list[dict], by_cluster: list[dict]) -> None:
    """Save the picture."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(3, 4, figsize=(14.5, 9), layout="constrained")
    middle = (EDGES[1:] + EDGES[:-1]) / 2
    plots = (("GM/WM", "CSF/WM"), ("noise/WM", "noise, one to two voxels"))
    for row, contrast in enumerate(CONTRASTS):
        place = axes[row, 0]
        low, mid, high = np.percentile([m[f"{contrast} histogram"] for m in by_label], (5, 50, 95), axis=0)
        place.fill_between(middle, low, high, color="0.85", label="simulated, 5 to 95 %")
        place.plot(middle, mid, color="0.5", label="simulated, median")
        for name, told in of_real.items():
            place.plot(middle, told[f"{contrast} histogram"], lw=0.9, label=name)
        place.set(title=f"{bids_suffix(contrast)}: histogram in the head", xlabel="unit scale", ylim=(0, 7))
        for place, (x, y) in zip(axes[row, 1:3], plots, strict=True):
            for drawn, options in ((by_cluster, {"color": "0.75"}), (by_label, {"fc": "none", "ec": "0.35"})):
                place.scatter(
                    [m[f"{contrast} {x}"] for m in drawn], [m[f"{contrast} {y}"] for m in drawn], s=9, **options
                )
            for told in of_real.values():
                place.scatter(told[f"{contrast} {x}"], told[f"{contrast} {y}"], s=45, marker="X", zorder=3)
            shown = np.array([[m[f"{contrast} {name}"] for m in (*by_label, *of_real.values())] for name in (x, y)])
            (left, right), (bottom, top) = ((0.8 * seen.min(), 1.15 * seen.max()) for seen in shown)
            place.set(title=bids_suffix(contrast), xlabel=x, ylabel=y, xlim=(left, right), ylim=(bottom, top))
        place = axes[row, 3]
        low, mid, high = np.percentile([m[f"{contrast} spectrum"] for m in by_cluster], (5, 50, 95), axis=0)
        place.fill_between(FREQUENCIES, low, high, color="0.85")
        place.plot(FREQUENCIES, mid, color="0.5")
        for told in of_real.values():
            place.plot(FREQUENCIES, told[f"{contrast} spectrum"], lw=0.9)
        place.set(
            title=f"{bids_suffix(contrast)}: noise in white matter",
            xlabel="cycles per mm",
            ylabel="power, (share of white matter)² mm",
            yscale="log",
        )
    axes[0, 0].legend(fontsize=6)
    figure.savefig(path, dpi=80)


def time_draws(folder: Path) -> None:
    """Print the processor time that a pair takes, heads already read."""
    [first, *_] = sorted(folder.glob("*.nii.gz"))
    for spacing_mm, shape in ((1.5, (128, 160, 128)), (1.0, (192, 240, 192))):
        stream = Stream([first], source="T1", target="T2", spacing_mm=spacing_mm, shape=shape)
        stream.load()
        taken = []
        for number in range(11):
            began = time.process_time()
            stream.draw(number)
            taken.append(time.process_time() - began)
        low, middle, high = np.percentile(taken[1:], (0, 50, 100))
        size = " x ".join(map(str, shape))
        print(f"{size} voxels of {spacing_mm} mm: {middle:.2f} s a pair ({low:.2f} to {high:.2f}), ten pairs")


def main() -> None:
    """Measure and show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("real", nargs="+", type=Path)
    parser.add_argument("--labels", type=Path, required=True)
    parser.add_argument("--subjects", type=int, default=70)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    of_real = {name: measure(images) for name, images in real(given.real)}
    by_label, by_cluster = [], []
    for _, images, tissues in simulated(given.labels, given.subjects, given.seed):
        by_label.append(measure(images, tissues))
        by_cluster.append(measure(images))
    print(
        "| measure | real, from to | simulated by labels, 5, 50, 95 % | by clusters, 5, 50, 95 % | real in 5 to 95 % |"
    )
    print("| --- | --- | --- | --- | --- |")
    for key in next(iter(of_real.values())):
        if key.endswith(("histogram", "spectrum")):
            continue
        seen = np.array([told[key] for told in of_real.values()])
        labelled, clustered = (
            np.nanpercentile([m[key] for m in drawn], (5, 50, 95)) for drawn in (by_label, by_cluster)
        )
        inside = [int(np.sum((seen >= low) & (seen <= high))) for low, _, high in (labelled, clustered)]
        words = ["{:.2f}, {:.2f}, {:.2f}".format(*q) for q in (labelled, clustered)]
        words.append(f"{inside[0]}, {inside[1]} of {len(seen)}")
        print(f"| {key} | {seen.min():.2f} to {seen.max():.2f} | {' | '.join(words)} |")
    time_draws(given.labels)
    if given.json:
        given.json.write_text(json.dumps({"real": of_real, "clusters": by_cluster, "labels": by_label}))
    if given.picture:
        draw(given.picture, of_real, by_label, by_cluster)


if __name__ == "__main__":
    main()
