"""The models that come with the package, each on a head that it has never seen."""

import re

import numpy as np
import pytest

from unscanned.evaluation.baselines import source_as_target
from unscanned.evaluation.cases import read_intensity
from unscanned.evaluation.metrics import METRICS
from unscanned.settings import Spread
from unscanned.simulation.simulate import simulate
from unscanned.synthesis.shelf import SHIPPED, find_model, list_models
from unscanned.synthesis.verify import verify
from unscanned.volumes.intensity import head_mask, head_scale
from unscanned.volumes.nifti import read_volume

NAMES = [model.name for model in list_models(SHIPPED)]
WHOLE = Spread(brain=0, defaced=0, cropped=0, ghosts=0, noise=(0.012, 0.03))


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    """Built-in heads, which no model has seen, in all contrasts at 2 mm; the T2w of the first two look unusual."""
    return simulate(
        tmp_path_factory.mktemp("shipped") / "heads",
        subjects=3,
        contrasts=("PD", "T1", "FLAIR", "T2"),
        physics="wide",
        spread=WHOLE,
        shape=(96, 112, 96),
        spacing_mm=2.0,
        seed=4,
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_model_of_the_package_names_no_place_on_the_machine_that_trained_it(name):
    text = (find_model(name).folder / "model.json").read_text(encoding="utf-8")
    assert not re.findall(r'"[^"]*": "(/[^"]*)"', text)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_model_of_the_package_makes_its_contrast_by_one_command(name, head, tmp_path, cli):
    record = find_model(name).record
    suffix = {"PD": "PDw", "T1": "T1w", "T2": "T2w", "FLAIR": "FLAIR"}
    source, target = suffix[record.source], suffix[record.target]
    scan = head / "sub-003" / "anat" / f"sub-003_{source}.nii.gz"
    done = cli("synthesize", scan, "--to", target, "-o", tmp_path / "out", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert f"model {name}" in done.stderr
    [path] = (tmp_path / "out").rglob(f"*_{target}.nii.gz")
    made, acquired = read_volume(path), read_volume(scan.with_name(f"sub-003_{target}.nii.gz"))
    assert np.array_equal(made.affine, acquired.affine)
    if name == NAMES[0]:  # the way back is one for all models, and takes as long as the way there
        assert verify(path, device="cpu").verdict == "identical"

    mask = head_mask(acquired.array, acquired.affine)
    unit = acquired.array / np.float32(head_scale(acquired.array, mask, 99.9))
    given = read_volume(scan).array
    nothing = source_as_target(given / np.float32(head_scale(given, mask, 99.9)), unit, mask)
    result = made.array / np.float32(read_intensity(path).scale)
    for metric in ("psnr_one_gain", "ssim"):
        assert METRICS[metric](unit, result, mask) > METRICS[metric](unit, nothing, mask), metric
