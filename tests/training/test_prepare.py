import os
import shutil
import warnings

import numpy as np
import pytest
from nifti_files import write_nifti

from unscanned.datasets.pairs import find_pairs
from unscanned.errors import DatasetError, ResourceError, SettingsError
from unscanned.files import short_digest
from unscanned.settings import Prepare
from unscanned.training.prepare import Case, _known, normalization, prepare, prepare_pair
from unscanned.volumes.grid import Frame
from unscanned.volumes.intensity import head_mask
from unscanned.volumes.nifti import read_volume, write_volume

SHAPE = (32, 32, 32)


@pytest.fixture(scope="module")
def pairs(tiny_dataset):
    return find_pairs(tiny_dataset)


@pytest.fixture(scope="module")
def cases(pairs, tmp_path_factory):
    prepared, failures = prepare(pairs, tmp_path_factory.mktemp("cache"), Prepare(shape=SHAPE))
    assert not failures
    return prepared


@pytest.fixture
def own(tiny_dataset, tmp_path):
    """A copy of the dataset that a test may change."""
    shutil.copytree(tiny_dataset, tmp_path / "dataset")
    return tmp_path / "dataset"


def files(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_a_prepared_pair_lies_on_the_grid_of_the_model_in_unit_scale(cases):
    for case in cases:
        assert case.source.shape == case.target.shape == case.head.shape == SHAPE
        assert case.source.dtype == case.target.dtype == np.float32
        assert case.head.dtype == bool
        for array in (case.source, case.target):
            assert np.percentile(array[case.head], 99.9) == pytest.approx(1, abs=0.05)


def test_half_precision_halves_the_volumes_and_is_off_by_half_a_unit_in_the_last_digit(pairs, cases, tmp_path):
    half = prepare_pair(pairs[0], tmp_path, Prepare(shape=cases[0].source.shape, precision="float16"))
    for name in ("source", "target"):
        whole, rounded = np.asarray(getattr(cases[0], name)), np.asarray(getattr(half, name))
        assert rounded.dtype == np.float16
        difference = np.abs(rounded.astype(np.float32) - whole)
        assert (difference <= np.maximum(whole, 2.0**-14) / 2048).all()
        assert difference.max() > 0
        (path,) = {half.folder / f"{name}.npy"}
        assert path.stat().st_size < 0.51 * (cases[0].folder / f"{name}.npy").stat().st_size


def test_prepared_volumes_are_mapped_from_disk_and_not_held_in_memory(cases):
    assert isinstance(cases[0].source, np.memmap)
    assert not cases[0].source.flags.writeable


def test_a_case_is_sent_to_another_process_without_its_voxels(cases):
    import pickle

    cases[0].source, cases[0].facts
    sent = pickle.dumps(cases[0])
    assert len(sent) < 1000
    assert np.array_equal(pickle.loads(sent).source, cases[0].source)


def test_each_step_is_undone_exactly_on_the_grid_of_the_scan(pairs, tmp_path):
    case = prepare_pair(pairs[0], tmp_path, Prepare(shape=(48, 48, 48)))
    scan = read_volume(pairs[0].target)
    back = Frame.from_json(case.facts.frame).inverse(np.asarray(case.target)) * case.facts.target_scale
    assert back.shape == scan.shape
    np.testing.assert_allclose(back, scan.array, rtol=1e-6)


def test_source_target_and_head_stay_voxel_by_voxel_aligned(pairs, cases):
    for pair, case in zip(pairs, cases, strict=True):
        source, target = read_volume(pair.source), read_volume(pair.target)
        where = Frame.from_json(case.facts.frame)
        assert np.array_equal(where.forward(head_mask(source.array)), case.head)
        np.testing.assert_allclose(
            where.forward(target.array), np.asarray(case.target) * case.facts.target_scale, rtol=1e-5, atol=1e-4
        )


def test_what_is_there_already_is_not_made_again(pairs, tmp_path):
    prepare(pairs[:2], tmp_path, Prepare(shape=SHAPE))
    before = files(tmp_path)
    cases, _ = prepare(pairs[:2], tmp_path, Prepare(shape=SHAPE))
    assert files(tmp_path) == before
    assert [case.name for case in cases] == [pair.case for pair in pairs[:2]]


@pytest.mark.parametrize(
    "other", [{"shape": (32, 32, 40)}, {"shape": SHAPE, "spacing_mm": 4.0}, {"shape": SHAPE, "percentile": 99.0}]
)
def test_other_settings_make_the_cache_anew(pairs, tmp_path, other):
    first = prepare_pair(pairs[0], tmp_path, Prepare(shape=SHAPE)).facts.key
    again = prepare_pair(pairs[0], tmp_path, Prepare(**other))
    assert again.facts.key != first
    assert again.source.shape == other["shape"]


def test_the_key_of_a_cache_moves_only_with_what_it_holds(pairs, tmp_path):
    pair = pairs[0]
    known = "{'shape': (32, 32, 32), 'spacing_mm': None, 'resample': False, 'percentile': 99.9}"
    stamps = [
        f"{path.resolve()}:{path.stat().st_size}:{path.stat().st_mtime_ns}" for path in (pair.source, pair.target)
    ]
    key = short_digest({"settings": known, "files": stamps, "content": 4})
    assert prepare_pair(pair, tmp_path, Prepare(shape=SHAPE)).facts.key == key


def test_a_setting_that_was_added_later_counts_only_where_it_is_not_at_its_default(monkeypatch):
    monkeypatch.setattr("unscanned.training.prepare._FIRST", ("shape",))
    assert _known(Prepare(shape=SHAPE)) == {"shape": SHAPE}
    assert _known(Prepare(shape=SHAPE, resample=True)) == {"shape": SHAPE, "resample": True}


def test_a_changed_scan_makes_the_cache_anew(own, tmp_path):
    pair = find_pairs(own)[0]
    before = prepare_pair(pair, tmp_path / "cache", Prepare(shape=SHAPE))
    scale, old = before.facts.source_scale, np.array(before.source)
    scan = read_volume(pair.source)
    write_volume(pair.source, scan.array[::-1] * 2, scan.affine)
    after = prepare_pair(pair, tmp_path / "cache", Prepare(shape=SHAPE))
    assert after.facts.source_scale == pytest.approx(2 * scale)
    assert not np.array_equal(after.source, old)


def test_a_cache_that_was_cut_off_halfway_is_never_taken_for_whole(pairs, tmp_path):
    """A kill between two files of a cache that is made with other settings, and then a return to the first settings."""
    case = prepare_pair(pairs[0], tmp_path, Prepare(shape=SHAPE))
    right = np.array(case.source)
    pid = os.fork()
    if pid == 0:
        import unscanned.training.prepare as module

        plain = module._save
        module._save = lambda path, array: (plain(path, array), os._exit(9))
        prepare_pair(pairs[0], tmp_path, Prepare(shape=SHAPE, percentile=50.0))
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
    again = prepare_pair(pairs[0], tmp_path, Prepare(shape=SHAPE))
    assert np.array_equal(again.source, right)


@pytest.mark.parametrize("name", ["source.npy", "target.npy", "head.npy", "case.json"])
def test_a_cache_that_lacks_a_file_is_made_anew(pairs, tmp_path, name):
    case = prepare_pair(pairs[0], tmp_path, Prepare(shape=SHAPE))
    (case.folder / name).unlink()
    again = prepare_pair(pairs[0], tmp_path, Prepare(shape=SHAPE))
    assert again.source.shape == again.target.shape == again.head.shape == SHAPE


@pytest.mark.parametrize("damage", ["cut", "scale"])
def test_a_damaged_cache_is_made_anew(pairs, tmp_path, damage):
    whole = prepare_pair(pairs[0], tmp_path, Prepare(shape=SHAPE))
    before = {path.name: path.read_bytes() for path in whole.folder.iterdir()}
    if damage == "cut":
        path = whole.folder / "target.npy"
        path.write_bytes(path.read_bytes()[:-9])
    else:
        path = whole.folder / "case.json"
        path.write_text(path.read_text().replace('"source_scale": ', '"source_scale": 1'))
    prepare_pair(pairs[0], tmp_path, Prepare(shape=SHAPE))
    assert {path.name: path.read_bytes() for path in whole.folder.iterdir()} == before


def test_one_bad_subject_does_not_stop_the_others(own, tmp_path):
    pairs = find_pairs(own)
    pairs[1].source.write_bytes(pairs[1].source.read_bytes()[:2000])
    zeros = read_volume(pairs[2].target)
    write_nifti(pairs[2].target, np.zeros(zeros.shape, "<f4"), affine=zeros.affine)
    cases, failures = prepare(pairs, tmp_path / "cache", Prepare(shape=SHAPE))
    assert [case.name for case in cases] == [pairs[0].case, pairs[3].case]
    assert sorted(failures) == [pairs[1].case, pairs[2].case]
    assert pairs[1].source.name in str(failures[pairs[1].case])
    assert pairs[2].target.name in str(failures[pairs[2].case])


def test_a_grid_that_leaves_out_part_of_a_head_is_said_with_how_much(pairs, tmp_path):
    with pytest.warns(UserWarning, match=r"16 x 32 x 32 voxels leaves out part of the head in 4 of 4 cases.*: \d\d%"):
        cases, _ = prepare(pairs, tmp_path / "narrow", Prepare(shape=(16, 32, 32)))
    for case, pair in zip(cases, pairs, strict=True):
        head = head_mask(read_volume(pair.source).array)
        assert case.facts.head_left_out == pytest.approx(1 - case.head.sum() / head.sum())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cases, _ = prepare(pairs, tmp_path / "wide", Prepare(shape=(48, 48, 48)))
    assert [case.facts.head_left_out for case in cases] == [0.0] * 4


def test_a_target_on_another_grid_is_refused_or_resampled_onto_that_of_the_source(cli, tmp_path):
    """A target that is linear in space is the same after linear resampling, inside the scan."""
    folder = tmp_path / "raw" / "sub-01" / "anat"
    folder.mkdir(parents=True)

    def write(name, shape, spacing, value):
        affine = np.diag([*(spacing,) * 3, 1.0])
        affine[:3, 3] = -spacing * (np.array(shape) - 1) / 2
        world = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1) * spacing + affine[:3, 3]
        head = np.linalg.norm(world, axis=-1) < 25
        write_volume(folder / f"sub-01_{name}w.nii.gz", np.where(head, value(world), 0).astype(np.float32), affine)

    def ramp(world):
        return 500 + 4 * world[..., 0] + 3 * world[..., 1] - 2 * world[..., 2]

    write("PD", (40, 40, 40), 1.5, lambda world: 400 + 3 * world[..., 2])
    write("T2", (30, 30, 30), 2.0, ramp)
    pairs = find_pairs(tmp_path / "raw")
    _, failures = prepare(pairs, tmp_path / "refused", Prepare(shape=SHAPE))
    assert "resample" in str(failures["sub-01"])
    assert cli("check", tmp_path / "raw").returncode == 3
    assert cli("check", tmp_path / "raw", "--resample").returncode == 0
    (case,), failures = prepare(pairs, tmp_path / "cache", Prepare(shape=SHAPE, resample=True))
    assert not failures
    assert case.facts.settings["resample"] is True
    where = Frame.from_json(case.facts.frame)
    inside = np.stack(np.meshgrid(*[np.arange(8, 24)] * 3, indexing="ij"), -1) + np.array(where.start)
    world = inside @ where.working_affine[:3, :3].T + where.working_affine[:3, 3]
    found = case.target[8:24, 8:24, 8:24] * case.facts.target_scale
    np.testing.assert_allclose(found, ramp(world), rtol=1e-4)


def test_a_scan_without_a_head_is_refused_by_its_file(own, tmp_path):
    pair = find_pairs(own)[0]
    scan = read_volume(pair.source)
    write_volume(pair.source, -np.abs(scan.array) - 1, scan.affine)
    _, failures = prepare([pair], tmp_path, Prepare(shape=SHAPE))
    assert pair.source.name in str(failures[pair.case])


@pytest.mark.parametrize("huge", [{"shape": (10**8, 10**8, 10**8)}, {"shape": SHAPE, "spacing_mm": 1e-3}])
def test_a_grid_beyond_any_memory_is_refused_before_anything_is_made(pairs, tmp_path, huge):
    with pytest.raises(SettingsError, match="more voxels than the budget for one volume"):
        prepare(pairs, tmp_path, Prepare(**huge))
    assert list(tmp_path.iterdir()) == []


def test_a_pair_without_its_target_is_refused_by_its_case(own, tmp_path):
    find_pairs(own)[0].target.unlink()
    pair = find_pairs(own, require_target=False)[0]
    with pytest.raises(DatasetError, match="sub-001: the target is missing"):
        prepare_pair(pair, tmp_path, Prepare(shape=SHAPE))


def test_a_full_disk_stops_all_cases_and_not_one_by_one(pairs, tmp_path):
    (tmp_path / pairs[0].case).write_text("a file where the folder should be")
    with pytest.raises(ResourceError):
        prepare(pairs, tmp_path, Prepare(shape=SHAPE))


@pytest.mark.parametrize("small_disk", ["256k"], indirect=True)
def test_a_disk_that_does_not_hold_a_prepared_volume_is_told_as_full(pairs, small_disk):
    with pytest.raises(ResourceError, match=r"source\.npy: the disk is full"):
        prepare(pairs, small_disk, Prepare(shape=(48, 48, 48)))
    assert not [path for path in small_disk.rglob("*") if path.is_file()]


def test_progress_is_told_case_by_case(pairs, cases):
    told = []
    prepare(pairs, cases[0].folder.parent, Prepare(shape=SHAPE), progress=lambda *now: told.append(now))
    assert told == [(0, 4, "sub-001"), (1, 4, "sub-002"), (2, 4, "sub-003"), (3, 4, "sub-004"), (4, 4, "prepared")]


def test_the_constants_are_those_of_the_voxels_of_the_cases_given(cases):
    constants = normalization(cases[:3], percentile=99.0)
    for name, contrast in (("source", constants.source), ("target", constants.target)):
        voxels = np.concatenate([np.ravel(getattr(case, name)) for case in cases[:3]]).astype(float)
        assert contrast.mean == pytest.approx(voxels.mean())
        assert contrast.std == pytest.approx(voxels.std())
        assert contrast.scale == np.median([getattr(case.facts, f"{name}_scale") for case in cases[:3]])
        z = np.concatenate([np.ravel(contrast.standardize(getattr(case, name))) for case in cases[:3]]).astype(float)
        assert (z.mean(), z.std()) == pytest.approx((0, 1), abs=1e-4)
        assert contrast.minimum == voxels.min()
    assert constants.percentile == 99.0


def test_no_training_case_gives_no_constants():
    with pytest.raises(DatasetError, match="no training case"):
        normalization([])


def test_cases_are_values(cases):
    assert Case(cases[0].name, cases[0].subject, cases[0].folder) == cases[0]
