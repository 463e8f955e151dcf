"""The contrast check: profiles of few scans, what names and JSON files say, and who is refused in which words."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydantic import TypeAdapter

from unscanned.contrast.appearance import Appearance, measure_appearance
from unscanned.contrast.check import THRESHOLD, ContrastCheck, ContrastProfile, check_contrast, named_contrasts
from unscanned.errors import VolumeError
from unscanned.simulation.simulate import simulate
from unscanned.volumes.nifti import Volume, read_volume

CONTRASTS = ("PD", "T2", "T1")
PD = Appearance(balance=0.15, order=0.24, strength=-1.35)


@pytest.fixture(scope="module")
def heads(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Volume]]:
    """Three scans of each contrast, without a path, so that only their appearance speaks."""
    root = simulate(
        tmp_path_factory.mktemp("contrast") / "heads",
        subjects=3,
        per_anatomy=3,
        contrasts=CONTRASTS,
        spacing_mm=3.5,
        shading=(0.1, 0.25),
        seed=6,
    )
    volumes = {c: [read_volume(path) for path in sorted(root.glob(f"*/anat/*_{c}w.nii.gz"))] for c in CONTRASTS}
    return {c: [Volume(v.array, v.affine) for v in scans] for c, scans in volumes.items()}


@pytest.fixture(scope="module")
def profiles(heads: dict[str, list[Volume]]) -> dict[str, ContrastProfile]:
    return {contrast: profile_of(scans) for contrast, scans in heads.items()}


def profile_of(volumes: list[Volume]) -> ContrastProfile:
    return ContrastProfile.of([measure_appearance(volume.array, volume.affine) for volume in volumes])


def refusal(volume: Volume, profile: ContrastProfile | None, contrast: str) -> str:
    with pytest.raises(VolumeError) as caught:
        check_contrast(volume, profile, contrast)
    assert caught.value.exit_code == 3
    return str(caught.value)


@pytest.mark.parametrize("spacing_mm", [(4.0, 4.0, 4.0), (3.0, 3.0, 5.5), (3.6, 3.6, 3.6)])
def test_below_the_resolution_that_was_measured_the_check_says_that_it_cannot_judge(heads, profiles, spacing_mm):
    scan = heads["T1"][0]  # its appearance is wrong, and would be refused
    coarse = Volume(scan.array, np.diag([*spacing_mm, 1.0]))
    with pytest.warns(UserWarning, match="its contrast cannot be judged: voxels of"):
        checked = check_contrast(coarse, profiles["PD"], "PD")
    assert checked.verified is None
    assert "up to 3.5 mm" in checked.reason
    fine = Volume(scan.array, np.diag([3.5, 3.5, 3.5, 1.0]))
    assert check_contrast(fine, profiles["PD"], "PD", force=True).verified is False


def test_a_name_speaks_at_any_resolution(heads, profiles):
    coarse = Volume(heads["PD"][0].array, np.diag([4.0, 4.0, 4.0, 1.0]), Path("sub-01_T1w.nii.gz"))
    assert "its name says T1w" in refusal(coarse, profiles["PD"], "PD")


@pytest.mark.parametrize("contrast", CONTRASTS)
def test_a_held_out_scan_of_the_right_contrast_is_accepted(heads, contrast):
    for index, held_out in enumerate(heads[contrast]):
        others = heads[contrast][:index] + heads[contrast][index + 1 :]
        checked = check_contrast(held_out, profile_of(others), contrast)
        assert checked.verified is True
        assert checked.reason == ""
        assert 0 < checked.score <= THRESHOLD


@pytest.mark.parametrize(
    ("trained", "given", "words"),
    [
        ("PD", "T1", "looks like T1w"),
        ("PD", "T2", "looks like T2w"),
        ("T1", "PD", "looks like PDw"),
        ("T1", "T2", "looks like T2w"),
        ("T2", "PD", "looks like PDw"),
        ("T2", "T1", "looks like T1w"),
    ],
)
def test_a_scan_of_another_contrast_is_refused_with_score_and_words(heads, profiles, trained, given, words):
    message = refusal(heads[given][0], profiles[trained], trained)
    assert words in message
    assert f"expected {trained}w as in the 3 training scans, a score of at most {THRESHOLD}" in message
    assert "score " in message
    assert "--force" in message


def test_a_forced_scan_goes_on_and_is_marked(heads, profiles):
    checked = check_contrast(heads["T1"][0], profiles["PD"], "PD", force=True)
    stamp = checked.to_json()
    assert stamp["InputContrastVerified"] is False
    assert stamp["InputContrast"]["Score"] > THRESHOLD == stamp["InputContrast"]["Threshold"]
    assert "T1w" in stamp["InputContrast"]["Reason"]


def test_a_model_without_a_profile_knows_nothing_and_says_so(heads):
    checked = check_contrast(heads["T1"][0], None, "PD")
    assert checked == ContrastCheck(None, None, "the model has no profile of its training scans")
    assert checked.to_json()["InputContrastVerified"] is None


def test_a_scan_without_a_measurable_head_is_refused(heads, profiles):
    noise = np.random.default_rng(0).random((12, 12, 12), np.float32)
    message = refusal(Volume(noise, np.eye(4)), profiles["PD"], "PD")
    assert "no head in which a contrast can be measured" in message


def test_a_name_of_another_contrast_is_refused_whatever_the_scan_looks_like(heads, profiles):
    right = heads["PD"][0]
    named = Volume(right.array, right.affine, Path("sub-01_T2w.nii.gz"))
    assert "its name says T2w" in refusal(named, profiles["PD"], "PD")
    assert "its name says T2w" in refusal(named, None, "PDw")
    assert check_contrast(named, profiles["PD"], "PD", force=True).verified is False


def test_a_name_says_nothing_to_a_model_of_a_contrast_of_its_own(heads):
    named = Volume(heads["PD"][0].array, heads["PD"][0].affine, Path("sub-01_T2w.nii.gz"))
    assert check_contrast(named, None, "MTsat").verified is None


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("sub-01_T2w.nii.gz", "t2"),
        ("sub-01_space-T1w_PDw.nii", "pd"),
        ("IXI012-HH-1211-PD.nii.gz", "pd"),
        ("patient 7 t2_flair ax.nii.gz", "flair"),
        ("scan-T1.NII.GZ", "t1"),
        ("t2_to_t1.nii.gz", None),
        ("sub-01_bold.nii.gz", None),
        ("PDT2.nii.gz", None),
        ("12.nii.gz", None),
    ],
)
def test_only_a_name_that_holds_one_known_contrast_speaks(tmp_path, name, key):
    assert named_contrasts(tmp_path / name) == ([("its name", key)] if key else [])


@pytest.mark.parametrize(
    ("facts", "key"),
    [
        ({"SeriesDescription": "AX T2 TSE"}, "t2"),
        ({"ProtocolName": "t2_tirm_tra_dark-fluid_FLAIR"}, "flair"),
        ({"Synthetic": True, "Contrast": "T2"}, "t2"),
        ({"ScanningSequence": "SE", "RepetitionTime": 6.5, "EchoTime": 0.008}, "pd"),
        ({"ScanningSequence": "SE", "RepetitionTime": 6.5, "EchoTime": 0.1}, "t2"),
        ({"ScanningSequence": "SE", "RepetitionTime": 0.5, "EchoTime": 0.012}, "t1"),
        ({"ScanningSequence": ["SE", "IR"], "RepetitionTime": 9, "EchoTime": 0.12, "InversionTime": 2.5}, "flair"),
        ({"ScanningSequence": "GR", "RepetitionTime": 2.3, "EchoTime": 0.003}, None),
        ({"ScanningSequence": "SE", "RepetitionTime": 3, "EchoTime": 0.045}, None),
        ({"ScanningSequence": "SE", "RepetitionTime": "long"}, None),
        (["not", "a", "table"], None),
    ],
)
def test_the_json_file_beside_a_scan_speaks_by_description_or_by_timing(tmp_path, facts, key):
    (tmp_path / "12.json").write_text(json.dumps(facts))
    assert named_contrasts(tmp_path / "12.nii.gz") == ([("its JSON file", key)] if key else [])


def test_a_damaged_json_file_says_nothing(tmp_path):
    (tmp_path / "12.json").write_bytes(b"\xff{")
    assert named_contrasts(tmp_path / "12.nii.gz") == []


def test_a_json_file_that_says_another_contrast_is_refused(heads, profiles, tmp_path):
    (tmp_path / "12.json").write_text(json.dumps({"SeriesDescription": "T2 TSE"}))
    named = Volume(heads["PD"][0].array, heads["PD"][0].affine, tmp_path / "12.nii.gz")
    assert "its JSON file says T2w" in refusal(named, profiles["PD"], "PD")


def test_the_centre_is_the_median_so_that_one_mislabelled_scan_does_not_move_it():
    right = [Appearance(0.15 + d, 0.24 - d, -1.35 + d) for d in (-0.02, -0.01, 0.0, 0.01, 0.02)]
    spoiled = ContrastProfile.of([*right, Appearance(-0.7, -0.4, -0.2)])
    assert spoiled.score(PD) < 0.2
    assert spoiled.score(Appearance(-0.7, -0.4, -0.2)) > THRESHOLD


def varied(count):
    """Appearances of one contrast that vary as those of wide physics do: most alike, some far off."""
    far = [Appearance(0.15 - 0.03 * n, 0.24, -1.35) for n in (20, 22, 24, 26)]
    near = [Appearance(0.15 + 0.01 * (n % 5), 0.24, -1.35) for n in range(count - len(far))]
    return near + far


def test_of_twenty_training_scans_the_limit_accepts_all_but_one():
    assert ContrastProfile.of(varied(19)).limit == THRESHOLD
    seen = varied(20)
    profile = ContrastProfile.of(seen)
    scores = sorted(map(profile.score, seen))
    assert profile.limit == pytest.approx(scores[-2], abs=0.01)
    assert profile.limit > THRESHOLD
    spoiled = ContrastProfile.of([*varied(19), Appearance(5.0, 5.0, 5.0)])
    assert spoiled.limit == pytest.approx(max(map(spoiled.score, varied(19))), abs=0.01)


def test_a_scan_that_is_named_as_the_contrast_may_look_as_the_training_scans_do(heads, profiles):
    scan = heads["T1"][0]
    score = profiles["PD"].score(measure_appearance(scan.array, scan.affine))
    assert score > THRESHOLD
    wider = replace(profiles["PD"], limit=score + 0.1)
    named = Volume(scan.array, scan.affine, Path("sub-1_PDw.nii.gz"))
    with pytest.warns(UserWarning, match="unlike most of the training scans .* as its name says PDw"):
        checked = check_contrast(named, wider, "PD")
    assert checked.verified is True
    assert checked.hangs_on_its_name
    assert checked.to_json()["InputContrast"]["Threshold"] == wider.limit
    assert "a score of at most 3.6" in refusal(Volume(scan.array, scan.affine), wider, "PD")
    closer = replace(wider, limit=score - 0.1)
    assert f"a score of at most {score - 0.1:g}" in refusal(named, closer, "PD")


def test_a_scan_that_nothing_speaks_for_must_not_look_like_the_targets_of_the_training(heads):
    """A model of many scanners takes a wide spread, and that may hold its targets too."""
    seen = {c: [measure_appearance(scan.array, scan.affine) for scan in heads[c]] for c in CONTRASTS}
    spread = Appearance(balance=0.6, order=0.3, strength=0.9)
    alone = replace(ContrastProfile.of(seen["PD"]), spread=spread)
    both = replace(alone, made=ContrastProfile.of(seen["T2"]))
    scan = heads["T2"][0]
    assert check_contrast(scan, alone, "PD").verified is True
    message = refusal(scan, both, "PD")
    assert "neither its name nor a JSON file says PDw, and it looks more like the training's targets" in message
    assert not both.fits(seen["T2"][0])
    assert alone.fits(seen["T2"][0])
    for right, looks in zip(heads["PD"], seen["PD"], strict=True):
        assert check_contrast(right, both, "PD").verified is True
        assert both.fits(looks)
    named = Volume(scan.array, scan.affine, Path("sub-1_PDw.nii.gz"))
    assert check_contrast(named, both, "PD").verified is True
    assert check_contrast(scan, both, "PD", force=True).verified is False


def test_one_training_scan_still_leaves_room_for_other_scanners():
    # One scan: the least spreads times the square root of 2. Offsets of one such spread each make sqrt(3).
    single = ContrastProfile.of([PD])
    other = Appearance(PD.balance + 0.16 * 2**0.5, PD.order - 0.085 * 2**0.5, PD.strength + 0.31 * 2**0.5)
    assert single.score(other) == pytest.approx(3**0.5)


def test_scans_that_could_not_be_measured_are_left_out():
    assert ContrastProfile.of([None, PD, None]) == ContrastProfile.of([PD])
    assert ContrastProfile.of([None]) is None


def test_a_profile_survives_json():
    targets = [Appearance(0.5, 0.3, 0.1), None]
    profile = ContrastProfile.of([PD, Appearance(0.1, 0.3, -1.2), Appearance(0.3, 0.2, -1.1)], targets)
    assert profile.made == ContrastProfile.of(targets)
    written = TypeAdapter(ContrastProfile)
    assert written.validate_json(written.dump_json(profile)) == profile


@pytest.mark.slow
def test_real_scans_of_one_scanner_tell_t1_t2_and_flair_apart(shared_data):
    root = shared_data / "ms-t1-t2-flair"
    scans = {
        contrast: [read_volume(path) for path in sorted(root.glob(f"sub-mslong*/ses-*/anat/*_{contrast}.nii.gz"))]
        for contrast in ("T1w", "T2w", "FLAIR")
    }
    seen = {c: [measure_appearance(v.array, v.affine) for v in volumes] for c, volumes in scans.items()}
    assert [len(appearances) for appearances in seen.values()] == [4, 4, 4]
    for trained, appearances in seen.items():
        # sub-mslong01 has the first two; the other two subjects judge it, and the other contrasts.
        profile = ContrastProfile.of(appearances[2:])
        assert max(map(profile.score, appearances[:2])) <= THRESHOLD
        for given in set(seen) - {trained}:
            assert min(map(profile.score, seen[given])) > THRESHOLD
