"""How bright each arm of an evaluation to T2w makes the fluid in the middle of the ventricles, as a Markdown table.

Run: python studies/fluid.py EVALUATION [--deeper-mm 3]

Fluid is the brightest of three classes of the acquired T2w inside the head (Otsu 1979), its middle what lies deeper
than so many mm below the surface of that class; eyes are among it in whole heads. Each cell is the median there over
the median inside the head, of the same image, so no gain matters. The acquired target is the yardstick; the source
shows how little there was to see.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from scipy import ndimage
from skimage.filters import threshold_multiotsu

from unscanned.evaluation.cases import Images, evaluated_images
from unscanned.formats.evaluation import read_evaluation


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("evaluation", type=Path)
    parser.add_argument("--deeper-mm", type=float, default=3.0)
    given = parser.parse_args()
    record = read_evaluation(given.evaluation)
    arms = list(record.folders)
    print(f"| scan | voxels | {record.source} | {' | '.join(arms)} | {record.target}, acquired |")
    print(f"|{' --- |' * (len(arms) + 4)}")
    for case in record.cases:
        images = evaluated_images(case, record)
        middle = middle_of_fluid(images, given.deeper_mm)
        shown = [images.source, *(images.arms[arm] for arm in arms), images.target]
        ratios = [np.median(image[middle]) / np.median(image[images.head]) if middle.any() else None for image in shown]
        cells = ["–" if ratio is None else f"{ratio:.2f}" for ratio in ratios]
        print(f"| {case.case} | {middle.sum()} | {' | '.join(cells)} |")


def middle_of_fluid(images: Images, deeper_mm: float) -> np.ndarray:
    """Return where the acquired T2w has fluid all around for so many mm, bool (i, j, k)."""
    _, brightest = threshold_multiotsu(images.target[images.head], 3)
    fluid = images.head & (images.target > brightest)
    return np.asarray(ndimage.distance_transform_edt(fluid, sampling=images.spacing_mm) > deeper_mm)


if __name__ == "__main__":
    main()
