from pathlib import Path

import numpy as np
from cohort import SCALE, SHAPE, write_cohort

from unscanned.datasets.pairs import find_pairs
from unscanned.evaluation.cases import load_images
from unscanned.volumes.nifti import read_volume


def test_images_know_the_scale_of_their_files_and_their_place_in_the_world(tmp_path):
    raw, arms = write_cohort(tmp_path, ("01",), {"good": 0.02})
    pair = find_pairs(raw, source="PD", target="T2")[0]
    made = next(Path(arms["good"]).rglob("*.nii.gz"))
    images = load_images(pair, {"good": made})
    assert images.scales["good"] == SCALE
    for name, unit, path in (("source", images.source, pair.source), ("target", images.target, pair.target)):
        volume = read_volume(path)
        assert volume.orientation == "LPS"
        assert np.allclose(unit[::-1, ::-1] * images.scales[name], volume.array, atol=1e-2)
        corner = volume.affine @ [SHAPE[0] - 1, SHAPE[1] - 1, 0, 1]
        assert np.allclose(images.affine @ [0, 0, 0, 1], corner)
