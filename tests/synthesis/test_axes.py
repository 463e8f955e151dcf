"""What a model makes and what is prepared do not depend on how a file stores its axes."""

import numpy as np
import pytest
from stored import ORDERS, back, head, stored

from unscanned.datasets.pairs import Pair
from unscanned.settings import Prepare
from unscanned.synthesis.model_file import load_model
from unscanned.training.prepare import prepare_pair
from unscanned.volumes.nifti import Volume, write_volume

CHOSEN = ORDERS[1::5]  # of all 48; tests/volumes/test_orientation.py tries all of them


@pytest.mark.parametrize(("mode", "crop"), [(m, c) for m in ("patches", "volume") for c in ("auto", "always", "never")])
@pytest.mark.parametrize("shape", [(33, 40, 37), (36, 35, 44)])
def test_a_scan_is_synthesized_alike_however_its_axes_are_stored(tiny_run, mode, crop, shape):
    model = load_model(tiny_run)
    first = head(shape, (3.0, 3.0, 3.0), (4.0, 0.0, 45.0))
    options = {"mode": mode, "crop": crop}
    made = model.synthesize(first, **options).array
    largest = np.abs(made).max()
    for order in CHOSEN:
        other = model.synthesize(stored(first, order), **options).array
        np.testing.assert_allclose(back(other, order), made, atol=1e-5 * largest)


def test_a_large_scan_is_synthesized_alike_too(tiny_run):
    """From 96 voxels on the head is looked for on every second voxel."""
    model = load_model(tiny_run)
    first = head((97, 99, 96), (1.5, 1.5, 1.5), (0.0, 0.0, 0.0))
    made = model.synthesize(first, crop="always").array
    for order in CHOSEN[:4]:
        other = model.synthesize(stored(first, order), crop="always").array
        np.testing.assert_allclose(back(other, order), made, atol=1e-5 * np.abs(made).max())


@pytest.mark.parametrize("shape", [(33, 40, 37), (97, 64, 40)])
def test_a_pair_is_prepared_alike_however_its_axes_are_stored(tmp_path, shape):
    source = head(shape, (2.0, 2.5, 3.0), (4.0, 0.0, 45.0))
    target = Volume(np.sqrt(source.array), source.affine)
    prepared = []
    for number, order in enumerate((ORDERS[0], *CHOSEN)):
        paths = [tmp_path / f"{number}-{name}.nii" for name in ("PD", "T2")]
        for path, scan in zip(paths, (stored(source, order), stored(target, ORDERS[number])), strict=True):
            write_volume(path, scan.array, scan.affine)
        prepared.append(prepare_pair(Pair(str(number), None, *paths), tmp_path, Prepare(shape=(24, 33, 30))))
    for case in prepared[1:]:
        for name in ("source", "target", "head"):
            assert np.array_equal(getattr(case, name), getattr(prepared[0], name))
        assert case.facts.head_left_out == pytest.approx(prepared[0].facts.head_left_out)
