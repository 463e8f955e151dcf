"""Simulated scans: the signal equation, the noise, the deformation, the heads, and the dataset they are written as."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest

from unscanned.errors import BusyError, DatasetError, SettingsError
from unscanned.files import lock
from unscanned.simulation import scanner
from unscanned.simulation.anatomy import Fractions, LabelMap, Warp, draw_warp
from unscanned.simulation.phantom import draw_head
from unscanned.simulation.scanner import Grid, add_rician_noise, scan
from unscanned.simulation.simulate import simulate
from unscanned.simulation.tissues import LABELS, TISSUES, SpinEcho, Tissue, draw_tissues, spin_echo
from unscanned.volumes.intensity import head_mask, head_scale
from unscanned.volumes.nifti import read_volume, write_volume

COARSE = {"shape": (24, 28, 24)}


@pytest.fixture(scope="module")
def head() -> Fractions:
    return draw_head(np.random.default_rng(3), spacing_mm=3.0)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("simulated") / "heads"
    return simulate(out, subjects=3, per_anatomy=2, contrasts=("PD", "T2", "T1"), seed=5, **COARSE)


def still_scan(anatomy, grid, *, noise=(0.0, 0.0), contrasts=("PD", "T2"), subject=0):
    return scan(anatomy, grid, contrasts, seed=1, subject=subject, noise=noise, shading=(0.0, 0.0), deformation_mm=0.0)


def test_the_signal_equation_gives_the_numbers_worked_out_by_hand():
    tissue = Tissue(proton_density=0.8, t1_ms=1000.0, t2_ms=50.0)
    # 1 - exp(-2) = 0.864665, exp(-1) = 0.367879, so 0.8 * 0.864665 * 0.367879 = 0.254473
    assert spin_echo(tissue, SpinEcho(tr_ms=2000.0, te_ms=50.0)) == pytest.approx(0.254473, abs=1e-6)
    # exp(-0.5) = 0.606531, so the recovery is 0.393469; with TE = 0 nothing decays: 0.314776
    assert spin_echo(tissue, SpinEcho(tr_ms=500.0, te_ms=0.0)) == pytest.approx(0.314776, abs=1e-6)
    assert spin_echo(TISSUES["air"], SpinEcho(tr_ms=6000.0, te_ms=8.0)) == 0.0


def test_the_contrasts_order_the_tissues_as_radiology_does():
    timings = {"PD": SpinEcho(6500, 8), "T2": SpinEcho(6500, 100), "T1": SpinEcho(500, 12)}
    for seed in range(20):
        drawn = draw_tissues(np.random.default_rng(seed))
        signal = {c: {name: spin_echo(tissue, t) for name, tissue in drawn.items()} for c, t in timings.items()}
        assert signal["PD"]["white matter"] < signal["PD"]["grey matter"] < 1.45 * signal["PD"]["white matter"]
        assert signal["T2"]["white matter"] < signal["T2"]["grey matter"] < 0.6 * signal["T2"]["cerebrospinal fluid"]
        assert signal["T2"]["muscle"] < signal["T2"]["fat"] < signal["T2"]["cerebrospinal fluid"]
        assert signal["T1"]["cerebrospinal fluid"] < signal["T1"]["grey matter"] < signal["T1"]["white matter"]


def test_the_two_echoes_share_a_repetition_time_in_ixis_range(dataset):
    for subject in ("sub-001", "sub-002", "sub-003"):
        first, second = (
            json.loads((dataset / subject / "anat" / f"{subject}_{name}.json").read_text()) for name in ("PDw", "T2w")
        )
        assert first["RepetitionTime"] == second["RepetitionTime"]
        assert 5.725 <= first["RepetitionTime"] <= 8.178
        assert (first["EchoTime"], second["EchoTime"]) == (0.008, 0.1)
        assert first["Simulated"] is True


def test_noise_without_signal_is_rayleigh_and_with_much_signal_is_gaussian():
    rng = np.random.default_rng(0)
    sigma = 12.0
    background = add_rician_noise(np.zeros(200_000, np.float32), sigma, rng)
    assert background.mean() == pytest.approx(sigma * math.sqrt(math.pi / 2), rel=0.01)
    assert background.std() == pytest.approx(sigma * math.sqrt(2 - math.pi / 2), rel=0.01)
    bright = add_rician_noise(np.full(200_000, 100 * sigma, np.float32), sigma, rng)
    assert bright.std() == pytest.approx(sigma, rel=0.01)
    assert bright.mean() == pytest.approx(100 * sigma + sigma / 200, rel=1e-4)


def test_the_background_of_a_scan_holds_the_noise_that_the_sidecar_tells(dataset):
    volume = read_volume(dataset / "sub-001" / "anat" / "sub-001_T2w.nii.gz")
    sidecar = json.loads((dataset / "sub-001" / "anat" / "sub-001_T2w.json").read_text())
    corners = np.concatenate([volume.array[i : i + 2, j : j + 3, -8:].ravel() for i in (0, -2) for j in (0, -3)])
    assert corners.mean() == pytest.approx(sidecar["Simulation"]["NoiseSigma"] * math.sqrt(math.pi / 2), rel=0.2)


def test_the_fractions_of_a_built_in_head_sum_to_one_and_hold_every_tissue(head):
    total = sum(head.parts.values())
    np.testing.assert_allclose(total, 1.0, atol=1e-5)
    voxel_ml = 3.0**3 / 1000
    volumes_ml = {name: float(part.sum()) * voxel_ml for name, part in head.parts.items()}
    assert set(volumes_ml) == set(TISSUES)
    assert all(part.min() >= 0 for part in head.parts.values())
    assert 350 < volumes_ml["white matter"] < 750
    assert 450 < volumes_ml["grey matter"] < 900
    assert 8 < volumes_ml["eye fluid"] < 20
    assert min(volumes_ml.values()) > 1


def test_mixing_a_constant_gives_the_constant(head):
    np.testing.assert_allclose(head.mix(dict.fromkeys(TISSUES, 3.5)), 3.5, rtol=1e-5)


def test_two_anatomies_differ_and_share_a_head_shape():
    first, second = (draw_head(np.random.default_rng(seed), spacing_mm=4.0) for seed in (0, 1))
    grey = [anatomy.parts["grey matter"] for anatomy in (first, second)]
    assert np.abs(grey[0] - grey[1]).mean() > 0.01
    inside = [anatomy.parts["air"] < 0.5 for anatomy in (first, second)]
    assert 2 * (inside[0] & inside[1]).sum() / (inside[0].sum() + inside[1].sum()) > 0.9


def test_a_voxel_across_two_tissues_has_the_mixture_of_their_signals():
    names = list(TISSUES)
    tissues = np.full((40, 40, 120), names.index("white matter"), np.uint8)
    tissues[20:] = names.index("cerebrospinal fluid")
    affine = np.eye(4)
    result = still_scan(LabelMap(tissues, affine), Grid((9, 8, 30), (3.0, 3.0, 3.0)))
    low, high = (spin_echo(result.tissues[n], result.sequences["T2"]) for n in ("white matter", "cerebrospinal fluid"))
    fractions = (result.images["T2"] / result.gain - low) / (high - low)
    inner = fractions[:, 2:-2, 5:18]
    assert np.any((inner > 0.15) & (inner < 0.85))
    assert inner.min() > -0.1
    assert inner.max() < 1.25


def test_the_mean_over_patients_from_shares_of_tissues_is_that_of_each_one_painted(head):
    grid = Grid((24, 28, 24), (8.0, 8.0, 8.0))
    warp = draw_warp(np.random.default_rng(1), grid.extent_mm, deformation_mm=2.0)
    sequences = {"PD": SpinEcho(2500.0, 8.0), "T2": SpinEcho(2500.0, 100.0)}
    receive = np.linspace(0.9, 1.1, 24)[:, None, None] * np.ones(grid.shape)
    painted = []
    for patient in range(3):
        rng = np.random.default_rng(patient)
        tissues, vary = draw_tissues(rng), scanner._draw_variation(rng, grid)
        images, _ = scanner._sample(scanner._paint(head, grid, tissues, [*sequences.values()]), head, warp, grid)
        images = [image * receive * vary(own) for image, own in zip(images, sequences.values(), strict=True)]
        painted.append([(image, scanner.add_rician_noise(image, 0.01, rng)) for image in images])
    heads = {contrast: head_mask(image) for contrast, (image, _) in zip(sequences, painted[0], strict=True)}
    shares = [scanner._blur(head.mix({name: name == own for name in TISSUES}), head, grid) for own in TISSUES]
    sampled, _ = scanner._sample(shares, head, warp, grid)
    rngs = [np.random.default_rng(patient) for patient in range(3)]
    found = scanner._mean_over_patients(sampled, sequences, receive, 0.01, heads, grid, rngs)
    for place, contrast in enumerate(sequences):
        both = [of[place] for of in painted]
        plain = np.mean([image / head_scale(noisy, heads[contrast]) for image, noisy in both], axis=0)
        np.testing.assert_allclose(found[contrast], plain, atol=2e-6)


def test_the_label_of_a_voxel_is_the_tissue_whose_signal_it_has():
    names = list(TISSUES)
    tissues = np.full((40, 40, 120), names.index("white matter"), np.uint8)
    tissues[20:] = names.index("cerebrospinal fluid")
    result = still_scan(LabelMap(tissues, np.eye(4)), Grid((9, 8, 30), (3.0, 3.0, 3.0)))
    low, high = (spin_echo(result.tissues[n], result.sequences["T2"]) for n in ("white matter", "cerebrospinal fluid"))
    fractions = ((result.images["T2"] / result.gain - low) / (high - low))[:, 2:-2, 5:18]
    labels = result.labels[:, 2:-2, 5:18]
    assert (labels[fractions < 0.3] == names.index("white matter")).all()
    assert (labels[fractions > 0.7] == names.index("cerebrospinal fluid")).all()
    assert set(np.unique(labels)) == {names.index("white matter"), names.index("cerebrospinal fluid")}
    assert (result.labels[:, :, -1] == 0).all()  # above the head


def test_a_voxel_of_a_built_in_head_is_called_by_the_tissue_that_has_most_of_it(head):
    parts = np.stack([head.parts[name] for name in TISSUES])
    assert head.tissues.dtype == np.uint8
    called = np.take_along_axis(parts, head.tissues[None].astype(int), axis=0)[0]
    np.testing.assert_array_equal(called, parts.max(axis=0))


def test_labels_lie_beside_the_scans_and_where_they_say_fluid_t2_is_bright(dataset):
    anat, truth = (dataset / root / "sub-001" / "anat" for root in ("", "derivatives/truth"))
    scan, labels = read_volume(anat / "sub-001_T2w.nii.gz"), read_volume(truth / "sub-001_dseg.nii.gz")
    np.testing.assert_array_equal(labels.affine, scan.affine)
    assert labels.shape == scan.shape
    rows = [line.split("\t") for line in (dataset / "derivatives/truth/dseg.tsv").read_text().splitlines()[1:]]
    number = {name: int(index) for index, name in rows}
    assert set(np.unique(labels.array)) <= {*number.values()} - {number["white-matter lesion"]}
    fluid, white, air = (
        np.median(scan.array[labels.array == number[name]]) for name in ("cerebrospinal fluid", "white matter", "air")
    )
    assert fluid > 1.5 * white > 10 * air


def test_a_dataset_of_before_gets_its_labels_and_keeps_its_scans(dataset, tmp_path):
    earlier = tmp_path / "earlier"
    shutil.copytree(dataset, earlier, ignore=shutil.ignore_patterns("derivatives"))
    scans = {path: path.read_bytes() for path in earlier.glob("sub-*/anat/*.nii.gz")}
    simulate(earlier, subjects=3, per_anatomy=2, contrasts=("PD", "T2", "T1"), seed=5, **COARSE)
    assert len(scans) == 9
    assert {path: path.read_bytes() for path in scans} == scans
    made = Path("derivatives") / "truth" / "sub-003" / "anat" / "sub-003_dseg.nii.gz"
    assert (earlier / made).read_bytes() == (dataset / made).read_bytes()


def test_a_seed_gives_the_scans_that_it_always_gave(dataset):
    pd, t2 = (read_volume(dataset / "sub-001" / "anat" / f"sub-001_{name}.nii.gz").array for name in ("PDw", "T2w"))
    # within two of the whole numbers that are written, as other processors and versions of SciPy round otherwise
    expected = [25, 579, 980, 996, 1047, 1087, 1084, 1151, 1146, 252]
    np.testing.assert_allclose(pd[12, ::3, 14], expected, atol=2)
    np.testing.assert_allclose(t2[12, ::3, 14], [30, 157, 450, 548, 580, 770, 537, 647, 675, 53], atol=2)


def test_a_deformation_is_invertible_and_moves_tissue_by_a_few_mm():
    axes = [np.linspace(-96, 96, 49)] * 3
    identity = np.stack(np.meshgrid(*axes, indexing="ij"))
    for seed in range(4):
        warp = draw_warp(np.random.default_rng(seed), np.full(3, 192.0), deformation_mm=8.0)
        points = warp(axes)
        jacobian = np.stack([np.stack(np.gradient(points[row], 4.0), -1) for row in range(3)], -2)
        assert np.linalg.det(jacobian.astype(np.float64)).min() > 0
        alone = Warp(np.eye(3), np.zeros(3), warp.coefficients_mm, warp.origin_mm, warp.knot_mm)
        assert np.abs(alone(axes) - identity).max() <= 0.4 * warp.knot_mm
    gentle = draw_warp(np.random.default_rng(0), np.full(3, 192.0), deformation_mm=2.0)
    displacement = (
        Warp(np.eye(3), np.zeros(3), gentle.coefficients_mm, gentle.origin_mm, gentle.knot_mm)(axes) - identity
    )
    assert 1.0 < displacement.std() < 3.5
    assert np.abs(displacement).max() < 12


def test_heads_are_tilted_by_a_few_degrees_or_by_as_many_as_asked_for():
    def about_x(seed, **tilt):
        matrix = draw_warp(np.random.default_rng(seed), np.full(3, 192.0), deformation_mm=0.0, **tilt).matrix
        return np.rad2deg(
            np.arctan2(matrix[2, 1] / np.linalg.norm(matrix[:, 1]), matrix[2, 2] / np.linalg.norm(matrix[:, 2]))
        )

    usual = np.array([about_x(seed) for seed in range(60)])
    oblique = np.array([about_x(seed, tilt_deg=10.0) for seed in range(60)])
    np.testing.assert_allclose(oblique, usual * 10 / 3)
    assert 5 < np.abs(usual).max() <= 7 + 1e-9


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(dataset, tmp_path):
    again = simulate(tmp_path / "again", subjects=1, per_anatomy=2, contrasts=("T2",), seed=5, **COARSE)
    other = simulate(tmp_path / "other", subjects=1, per_anatomy=2, contrasts=("T2",), seed=6, **COARSE)
    name = Path("sub-001") / "anat" / "sub-001_T2w.nii.gz"
    assert (dataset / name).read_bytes() == (again / name).read_bytes()
    assert (dataset / name).read_bytes() != (other / name).read_bytes()
    assert (dataset / name).with_name("sub-001_T2w.json").read_bytes() == (again / name).with_name(
        "sub-001_T2w.json"
    ).read_bytes()


def test_participants_tell_which_subjects_share_an_anatomy(dataset):
    rows = [line.split("\t") for line in (dataset / "participants.tsv").read_text().splitlines()]
    assert rows == [
        ["participant_id", "anatomy"],
        ["sub-001", "built-in-001"],
        ["sub-002", "built-in-001"],
        ["sub-003", "built-in-002"],
    ]
    first, second, third = (
        read_volume(dataset / s / "anat" / f"{s}_PDw.nii.gz").array for s in ("sub-001", "sub-002", "sub-003")
    )
    assert not np.array_equal(first, second)
    assert not np.array_equal(second, third)


def test_the_contrasts_of_a_subject_lie_on_one_axial_grid(dataset):
    volumes = [read_volume(dataset / "sub-002" / "anat" / f"sub-002_{name}.nii.gz") for name in ("PDw", "T2w", "T1w")]
    for volume in volumes:
        assert volume.shape == (24, 28, 24)
        assert volume.orientation == "LPS"
        np.testing.assert_array_equal(volume.affine, volumes[0].affine)
        assert np.array_equal(volume.array, np.round(volume.array))
    assert volumes[0].spacing_mm == pytest.approx((8.0, 8.0, 8.0), abs=1e-4)


def test_the_official_validator_finds_no_error(dataset, bids_errors):
    assert bids_errors(dataset) == []


def test_a_label_map_with_an_unknown_number_is_refused_before_anything_is_written(tmp_path):
    labels = np.zeros((12, 12, 12), np.float32)
    labels[3:9, 3:9, 3:9] = 2
    labels[5, 5, 5], labels[6, 6, 6] = 999, 77
    write_volume(tmp_path / "maps" / "a_dseg.nii.gz", labels, np.eye(4))
    with pytest.raises(DatasetError, match=r"a_dseg.nii.gz.*77, 999"):
        simulate(tmp_path / "out", labels=tmp_path / "maps", subjects=1)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["missing", "empty"])
def test_a_folder_without_label_maps_is_refused(tmp_path, kind):
    folder = tmp_path / kind
    if kind == "empty":
        folder.mkdir()
        (folder / "notes.txt").write_text("nothing here")
    with pytest.raises(DatasetError, match="no label maps"):
        simulate(tmp_path / "out", labels=folder, subjects=1)


def test_more_subjects_than_the_label_maps_allow_is_refused_with_what_to_ask_for(tmp_path):
    labels = np.zeros((12, 12, 12), np.float32)
    labels[3:9, 3:9, 3:9], labels[5, 5, 5] = 2, 3
    write_volume(tmp_path / "maps" / "a_dseg.nii.gz", labels, np.eye(4))
    with pytest.raises(SettingsError, match="per_anatomy = 4"):
        simulate(tmp_path / "out", labels=tmp_path / "maps", subjects=4)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("contrasts", ("FLAIR",)),
        ("subjects", 0),
        ("seed", -1),
        ("noise", (0.2, 0.1)),
        ("spacing_mm", -1.0),
        ("spacing_mm", float("nan")),
        ("spacing_mm", float("inf")),
        ("spacing_mm", 1e-3),
        ("spacing_mm", 5e-324),
        ("shape", (10**8, 10**8, 10**8)),
        ("shape", (0, 8, 8)),
        ("subjects", 10**9),
        ("seed", 2**64),
        ("deformation_mm", float("nan")),
        ("deformation_mm", -1.0),
        ("patients", -1),
        ("patients", 4),  # needs clean
        ("noise", (float("nan"), 0.1)),
    ],
)
def test_an_argument_out_of_range_is_refused_by_name(tmp_path, setting, value):
    with pytest.raises(SettingsError, match=setting):
        simulate(tmp_path / "out", **{setting: value})


def test_a_folder_with_subjects_of_another_dataset_is_left_alone(tmp_path):
    (tmp_path / "sub-ms07").mkdir()
    with pytest.raises(DatasetError, match="sub-ms07"):
        simulate(tmp_path, subjects=1, **COARSE)


def test_what_a_killed_simulation_left_unfinished_does_not_stop_the_next_one(tmp_path):
    anat = simulate(tmp_path, subjects=1, **COARSE) / "sub-001" / "anat"
    (anat / "sub-001_T2w.nii.gz").unlink()
    unfinished = anat / ".partial-4194305-abcdefgh.nii.gz"  # of a process whose number no system gives
    unfinished.write_bytes(b"half")
    simulate(tmp_path, subjects=1, **COARSE)
    assert (anat / "sub-001_T2w.nii.gz").exists()
    assert not unfinished.exists()


def test_a_contrast_left_by_another_simulation_is_not_mixed_in(tmp_path):
    stale = tmp_path / "sub-001" / "anat" / "sub-001_T1w.nii.gz"
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"earlier")
    with pytest.raises(DatasetError, match=r"sub-001_T1w\.nii\.gz"):
        simulate(tmp_path, subjects=1, **COARSE)
    assert stale.read_bytes() == b"earlier"


def test_a_head_from_a_label_map_has_its_csf_bright_in_t2_and_its_vertex_below_the_top(shared_data, tmp_path):
    out = simulate(tmp_path / "out", labels=shared_data / "head-labels", subjects=1, spacing_mm=(4.0, 4.0, 4.0))
    volume = read_volume(out / "sub-001" / "anat" / "sub-001_T2w.nii.gz")
    assert volume.shape == (60, 60, 41)
    simulation = json.loads((out / "sub-001" / "anat" / "sub-001_T2w.json").read_text())["Simulation"]
    assert simulation["Anatomy"] == "head-01"
    head = volume.array > 8 * simulation["NoiseSigma"]
    rows = np.flatnonzero(head.any(axis=(0, 1)))
    assert 4 <= (volume.shape[2] - 1 - rows[-1]) * 4.0 < 28
    fluid = spin_echo(Tissue(**simulation["Tissues"]["cerebrospinal fluid"]), SpinEcho(7000, 100))
    assert 0.6 < np.percentile(volume.array[head], 99) / simulation["Gain"] / fluid < 1.5


def test_every_label_stands_for_a_tissue_of_the_table():
    assert set(LABELS.values()) == set(TISSUES)


def test_of_two_simulations_into_one_folder_the_second_is_refused(tmp_path):
    with lock(tmp_path), pytest.raises(BusyError, match="in use by another run"):
        simulate(tmp_path, subjects=1)
    assert not list(tmp_path.glob("sub-*"))


def test_scans_of_other_label_maps_are_not_replaced(tmp_path):
    labels = np.zeros((12, 12, 12), np.float32)
    labels[3:9, 3:9, 3:9], labels[5, 5, 5] = 2, 3
    for name in ("anna", "berta"):
        write_volume(tmp_path / name / f"{name}.01_dseg.nii.gz", labels, np.eye(4))
    simulate(tmp_path / "out", labels=tmp_path / "anna", subjects=1, **COARSE)
    assert "anna.01" in (tmp_path / "out" / "participants.tsv").read_text()
    simulate(tmp_path / "out", labels=tmp_path / "anna", subjects=1, **COARSE)
    with pytest.raises(SettingsError, match="label maps"):
        simulate(tmp_path / "out", labels=tmp_path / "berta", subjects=1, **COARSE)


def test_a_contrast_may_be_spelled_in_letters_of_either_case(tmp_path):
    out = simulate(tmp_path / "out", subjects=1, contrasts=("PDW", "t2w"), shape=(8, 8, 8))
    assert sorted(path.name for path in out.rglob("*w.nii.gz")) == ["sub-001_PDw.nii.gz", "sub-001_T2w.nii.gz"]
    with pytest.raises(SettingsError, match="FLAIR needs wide physics"):
        simulate(tmp_path / "other", subjects=1, contrasts=("PD", "FLAIR"))
