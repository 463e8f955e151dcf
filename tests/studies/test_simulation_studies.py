"""The programs that measure simulated against real scans find what is known of a simulated one."""

import numpy as np
import pytest
from by_tissue import errors, over_white_matter
from repeatability import move, register
from scipy import ndimage
from simulation_realism import CONTRASTS, FLUID, GREY, WHITE, clusters, measure

from unscanned.evaluation.evaluate import evaluate
from unscanned.settings import Spread
from unscanned.simulation import simulate as module
from unscanned.simulation.heads import draw_built_in
from unscanned.simulation.simulate import simulate
from unscanned.simulation.wide import draw_subject
from unscanned.volumes.intensity import head_mask, head_scale
from unscanned.volumes.nifti import read_volume, write_volume

QUIET = Spread(noise=(0.005, 0.005), receive=(0.0, 0.0), brain=1.0, defaced=0.0, cropped=0.0, volumetric=1.0)


def test_a_lesion_is_as_bright_in_a_copy_of_the_target_as_in_the_target(tmp_path, small_head, monkeypatch):
    monkeypatch.setattr(module, "draw_built_in", lambda name, rng: small_head)  # drawing one takes seconds
    heads = tmp_path / "heads"
    simulate(
        heads,
        subjects=4,
        per_anatomy=4,
        contrasts=("T1", "FLAIR"),
        physics="wide",
        clean=True,
        shape=(64, 76, 64),
        spacing_mm=3.0,
    )
    for path in heads.glob("sub-*/anat/*_FLAIR.nii.gz"):
        volume = read_volume(path)
        write_volume(tmp_path / "copies" / path.name, 0.9 * volume.array + 1, volume.affine)
    arms = {"copies": tmp_path / "copies"}
    found = evaluate(heads, arms, tmp_path / "out", source="T1", target="FLAIR", leave_one_out=True).content
    ratios = over_white_matter(found, "white-matter lesion")
    assert ratios
    assert len(ratios) == found.arms["copies"]["tissue: white-matter lesion"]["psnr"].n
    for source, acquired, synthetic in ratios.values():
        assert synthetic == pytest.approx(acquired, rel=0.03)
        assert acquired > source
    mean, gain, limit = errors(found, "tissue: white-matter lesion")
    assert float(mean.split()[0]) > float(limit)
    assert gain.startswith("+")


@pytest.fixture(scope="module")
def drawn():
    head = draw_built_in("small", np.random.default_rng(3), spacing_mm=2.5)
    return draw_subject(head, (88, 108, 88), (2.0,) * 3, CONTRASTS, target="T1", seed=1, subject=2, spread=QUIET)


def test_registration_finds_a_known_pose(drawn):
    image = drawn.images["T1"]
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = -np.array(image.shape)
    pose = np.array([4.0, -3.0, 2.0, 5.0, -4.0, 3.0])
    fixed = move(image, affine, affine, image.shape, pose)
    found = register(fixed, affine, image, affine)
    again = move(image, affine, affine, image.shape, found)
    inside = ndimage.binary_erosion(head_mask(fixed), iterations=3)
    assert np.corrcoef(again[inside], fixed[inside])[0, 1] > 0.98
    assert np.abs(found - pose).max() < 0.8


def test_clusters_are_the_tissues_of_a_clear_scan(drawn):
    heads = {contrast: head_mask(image) for contrast, image in drawn.images.items()}
    unit = {contrast: image / head_scale(image, heads[contrast]) for contrast, image in drawn.images.items()}
    found = clusters(unit, heads)
    for tissue in (WHITE, GREY, FLUID):
        one, other = found == tissue, (drawn.tissues == tissue) & (found > 0)
        assert 2 * (one & other).sum() / (one.sum() + other.sum()) > 0.7


def test_what_is_measured_by_labels_is_what_was_drawn(drawn):
    told = measure(dict(drawn.images), drawn.tissues)
    for contrast, protocol in drawn.protocols.items():
        signal = protocol.signal(drawn.values)
        assert told[f"{contrast} GM/WM"] == pytest.approx(signal[GREY] / signal[WHITE], rel=0.12)
