"""What a page's viewer shows: volumes packed to a size, differences between them, and words for their precision.

NiiVue (https://github.com/niivue/niivue) draws them; its file lies in `niivue/` beside this module, and its README says
where it came from.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np

from unscanned.errors import SettingsError
from unscanned.evaluation.cases import Images
from unscanned.formats.sidecar import STAMP
from unscanned.report import LIMIT_MB, MOST_MB
from unscanned.report.figures import difference_limit, display_white
from unscanned.report.packed import Packing, pack, pack_mask, text

__all__ = ["Shown", "Viewer", "case_viewer", "files_viewer", "licences", "niivue", "viewer_facts"]


@dataclass(frozen=True, eq=False)
class Shown:
    """One volume to show.

    Attributes:
        name: Above its picture.
        array: (i, j, k).
        affine: (4, 4), voxel to world, mm.
        synthetic: Whether it carries the stamp.
        window: Values that are black and white.
        unit: Of its values; empty for intensities.
        scale: Intensity of the file that a value of 1 stands for; None where the values are the file's own.
    """

    name: str
    array: np.ndarray
    affine: np.ndarray
    synthetic: bool
    window: tuple[float, float]
    unit: str = ""
    scale: float | None = None


@dataclass(frozen=True)
class Viewer:
    """One case of a viewer, ready for its page.

    Attributes:
        facts: What the script reads.
        data: Text by the id that the facts name.
        left_out: What has no room, and why; empty where everything has.
    """

    facts: dict[str, Any]
    data: dict[str, str]
    left_out: str


def case_viewer(
    name: str,
    images: Images,
    *,
    contrasts: tuple[str, str],
    std: float,
    number: int = 0,
    limit_mb: float = LIMIT_MB,
) -> Viewer:
    """Return the viewer of a case: source, regression, every arm, target, and each one's difference from the target.

    Args:
        name: The case.
        images: Its images; the arm `source`, which is the source at the target's brightness, is left out.
        contrasts: Names of source and target contrast.
        std: Standard deviation of the target contrast in unit scale, which makes z-scores of differences.
        number: Of the case in its page.
        limit_mb: Room for its volumes, MB of text.

    Returns:
        Its `data` are empty where not even the target has room.
    """
    window = (0.0, display_white(images.target, images.head))

    def shown(title: str, array: np.ndarray, synthetic: bool, scale: str | None) -> Shown:
        return Shown(title, array, images.affine, synthetic, window, "", images.scales.get(scale) if scale else None)

    # In the order of their importance: what has no room is left out from the end.
    volumes = {"target": shown(f"{contrasts[1]} (acquired)", images.target, False, "target")}
    if images.source is not None:
        volumes["source"] = shown(f"{contrasts[0]} (source)", images.source, False, "source")
    made = {arm: array for arm, array in images.arms.items() if arm != "source"}
    for arm in sorted(made, key=lambda arm: arm == "regression"):
        volumes[f"arm {arm}"] = shown(arm, made[arm], arm != "regression", arm)
    packing = pack({key: each.array for key, each in volumes.items()}, _bytes(limit_mb), images.head)
    titles = {key: volume.name for key, volume in volumes.items()}
    left_out = _left_out(packing, titles, limit_mb)
    if not packing.volumes:
        return Viewer({}, {}, left_out)
    kept = [key for key in volumes if key in packing.volumes]
    errors = {key: np.abs(volumes[key].array - images.target)[images.head] / std for key in kept if key[:4] == "arm "}
    limit = difference_limit(errors.values())
    differences = [
        {
            "name": f"{volumes[key].name} − {contrasts[1]}",
            "of": kept.index(key),
            "from": 0,
            "divide": std,
            "unit": "z",
            "synthetic": volumes[key].synthetic,
            "window": [-limit, limit],
        }
        for key in errors
    ]
    centre = [int((places.min() + places.max()) // 2) for places in np.nonzero(images.head)]
    error = max(packing.volumes[key].error for key in kept)
    words = f"Values are in unit scale, within ±{error:.2g} of the files' ({packing.bits} bits); z is a z-score."
    viewer = _assemble(name, number, {key: volumes[key] for key in kept}, packing, differences, centre, words, left_out)
    # The truth below the source, and each difference below its arm.
    groups = {"source": 0, "target": 0, **{key: place for place, key in enumerate(errors, 1)}}
    for key, entry in zip(kept, viewer.facts["images"], strict=True):
        entry["group"], entry["first"] = groups[key], key == "source"
    for place, entry in enumerate(viewer.facts["differences"], 1):
        entry["group"] = place
    if packing.inside_only:
        viewer.facts["mask"] = f"viewer-{number}-mask"
        viewer.facts["precision"] += " To save room, only the voxels of the head are in this page."
        viewer.data[f"viewer-{number}-mask"] = pack_mask(images.head)
    return viewer


def files_viewer(volumes: Sequence[Shown], *, limit_mb: float = LIMIT_MB) -> Viewer:
    """Return the viewer of any volumes, each on its own grid; its `data` are empty where not one has room.

    Args:
        volumes: In the order in which they are shown, which is that of their importance.
        limit_mb: Room for them, MB of text.
    """
    keyed = {str(number): volume for number, volume in enumerate(volumes)}
    packing = pack({key: volume.array for key, volume in keyed.items()}, _bytes(limit_mb))
    left_out = _left_out(packing, {key: volume.name for key, volume in keyed.items()}, limit_mb)
    kept = {key: volume for key, volume in keyed.items() if key in packing.volumes}
    if not kept:
        return Viewer({}, {}, left_out)
    errors = [(packing.volumes[key].error, volume.name) for key, volume in kept.items()]
    near = ", ".join(f"within ±{error:.2g} for {name}" if error else f"exact for {name}" for error, name in errors)
    words = f"Values are those of the files: {near}." if any(error for error, _ in errors) else "Values are exact."
    centre = [length // 2 for length in volumes[0].array.shape]
    return _assemble("", 0, kept, packing, [], centre, words, left_out)


def _bytes(limit_mb: float) -> int:
    if not 0 < limit_mb <= MOST_MB:
        raise SettingsError(
            "no room that a page can have",
            where="limit_mb",
            found=limit_mb,
            expected=f"above 0, at most {MOST_MB:,} MB",
        )
    return int(limit_mb * 1e6)


def _left_out(packing: Packing, names: Mapping[str, str], limit_mb: float) -> str:
    """What had no room, and why."""
    if not packing.left_out:
        return ""
    return (
        f"Left out of the viewer: {', '.join(names[key] for key in packing.left_out)}. All volumes would take "
        f"{packing.wanted_bytes / 1e6:.3g} MB at the coarsest precision, and there is room for {limit_mb:g} MB; "
        "--limit-mb makes more."
    )


def _assemble(
    name: str,
    number: int,
    volumes: Mapping[str, Shown],
    packing: Packing,
    differences: list[dict[str, Any]],
    start: Sequence[int],
    precision: str,
    left_out: str,
) -> Viewer:
    """Bring packed volumes into the form that the script reads."""
    ids = {key: f"viewer-{number}-{place}" for place, key in enumerate(volumes)}
    facts = {
        "name": name,
        "start": list(start),
        "precision": precision,
        "mask": None,
        "differences": differences,
        "images": [
            {
                "name": volume.name,
                "data": ids[key],
                "shape": packing.volumes[key].shape,
                "affine": np.asarray(volume.affine, float)[:3].ravel().tolist(),
                "low": packing.volumes[key].low,
                "step": packing.volumes[key].step,
                "synthetic": volume.synthetic,
                "window": volume.window,
                "unit": volume.unit,
                "scale": volume.scale,
                "group": place,
            }
            for place, (key, volume) in enumerate(volumes.items())
        ],
    }
    return Viewer(facts, {ids[key]: packing.volumes[key].data for key in volumes}, left_out)


def viewer_facts(viewers: Sequence[Viewer]) -> str:
    """Return what the script of a page reads, safe inside a script element."""
    return json.dumps({"stamp": STAMP, "cases": [viewer.facts for viewer in viewers]}).replace("<", "\\u003c")


def niivue() -> str:
    """Return the file of NiiVue, packed."""
    return text(resources.files("unscanned.report").joinpath("niivue", "niivue.umd.js").read_bytes())


def licences() -> str:
    """Return the licences of NiiVue and of what its file holds."""
    return resources.files("unscanned.report").joinpath("niivue", "LICENSES.txt").read_text("utf-8")
