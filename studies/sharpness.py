"""How sharp the arms of an evaluation are, and whether their detail lies where the target's does, as a Markdown table.

Run: python studies/sharpness.py EVALUATION [--arms gdl gan-gdl] [--no-gain]

HFEN is an error: of two images whose detail is as much in the right place, the blurred one has the lower. Here the
detail of an image is its Laplacian inside the head (six neighbours, no smoothing), after the one gain that fits the
image to the target best. Sharpness is its standard deviation over that of the target's detail, noise included: the root
of the variance of the Laplacian of J. L. Pech-Pacheco et al., ICPR 2000. 1 is as sharp as the target, less is blurred,
more is noisier or sharper. Agreement is the correlation of the two: detail that is invented lowers it.

The gain that fits best is the smaller, the less an image agrees with the target, and makes its detail smaller with it.
--no-gain takes the images as they were scored; then an image that is too bright as a whole has more detail.

Each is the mean (SD) over subjects, and minus the first arm's, paired by subject, with the 95 % t-interval.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy import ndimage

from unscanned.evaluation.cases import BASELINES, evaluated_images
from unscanned.evaluation.statistics import compare, subject_means, summarize
from unscanned.evaluation.tables import mean_interval, mean_sd
from unscanned.formats.evaluation import EvaluationRecord, read_evaluation

DIGITS = 3


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("evaluation", type=Path)
    parser.add_argument(
        "--arms", nargs="+", help="these, the first to compare with; by default those of the evaluation"
    )
    parser.add_argument("--no-gain", action="store_true")
    given = parser.parse_args()
    record = read_evaluation(given.evaluation)
    arms = given.arms or list(record.folders)
    known = [*record.folders, *BASELINES]
    if unknown := [arm for arm in arms if arm not in known]:
        parser.error(f"no such arm: found {', '.join(unknown)}, expected some of {', '.join(known)}")
    sharpness, agreement = measure(record, arms, with_gain=not given.no_gain)
    print(f"| arm | sharpness | minus {arms[0]} | agreement | minus {arms[0]} |")
    print("| --- | --- | --- | --- | --- |")
    for arm in arms:
        cells = [arm]
        for found in (sharpness, agreement):
            cells.append(
                mean_sd(summarize(found[arm].values(), of=len({case.subject for case in record.cases})), DIGITS)
            )
            cells.append("" if arm == arms[0] else mean_interval(compare(found[arms[0]], found[arm]), DIGITS))
        print(f"| {' | '.join(cells)} |")


def measure(
    record: EvaluationRecord, arms: Sequence[str], *, with_gain: bool = True
) -> tuple[dict[str, dict[str, float]], ...]:
    """Return sharpness and agreement of each arm, by subject."""
    rows: dict[str, list[tuple[str, float, float]]] = {arm: [] for arm in arms}
    for case in record.cases:
        images = evaluated_images(case, record)
        target = detail(images.target)[images.head]
        for arm in filter(images.arms.__contains__, arms):
            image, inside = images.arms[arm], images.head
            gain = np.vdot(images.target[inside], image[inside]) / np.vdot(image[inside], image[inside])
            made = detail(gain * image if with_gain else image)[inside]
            agreement = float(np.corrcoef(made, target)[0, 1])
            rows[arm].append((case.subject, float(made.std() / target.std()), agreement))
    return tuple(
        {arm: subject_means((row[0], row[place]) for row in seen) for arm, seen in rows.items()} for place in (1, 2)
    )


def detail(image: np.ndarray) -> np.ndarray:
    """Return the Laplacian of an image, float64 (i, j, k)."""
    return np.asarray(ndimage.laplace(image.astype(np.float64)))


if __name__ == "__main__":
    main()
