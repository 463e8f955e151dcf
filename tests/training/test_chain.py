"""What the stages of a run see and are scored on, where no two strides and modes are the same."""

import json
import shutil

import numpy as np
import pytest
import torch

from unscanned.errors import DatasetError
from unscanned.evaluation.metrics import mae, psnr
from unscanned.models import generators
from unscanned.settings import Training, to_dict
from unscanned.synthesis.context import PatchChain
from unscanned.synthesis.model_file import load_model
from unscanned.synthesis.reconstruct import reconstruct
from unscanned.synthesis.whole_volume import map_volume
from unscanned.training.batches import PatchBatches
from unscanned.training.log import read_log
from unscanned.training.prepare import Case
from unscanned.training.run import train
from unscanned.training.start import resolve_run
from unscanned.volumes.grid import frame
from unscanned.volumes.intensity import head_mask, head_scale
from unscanned.volumes.nifti import read_volume


@pytest.fixture(scope="module")
def brief(tiny_settings):
    """One epoch of two steps, two training and two validation subjects, and a stride of its own for each purpose."""
    return tiny_settings.change(
        split={"train": 2, "validation": 2, "test": 0},
        training={"epochs": 1, "steps_per_epoch": 2, "validation_stride": 16},
        context={"stages": 2, "stride": 12},
        synthesis={"stride": 8},
    )


@pytest.fixture(scope="module")
def run(train_tiny, brief, tmp_path_factory):
    folder = tmp_path_factory.mktemp("chain") / "run"
    train_tiny(folder, brief)
    return folder


@pytest.fixture
def cases_of(tiny_prepared):
    """The prepared cases of a part of a run's split."""

    def read(run, part):
        split = json.loads((run / "split.json").read_text())
        return [Case(f"sub-{subject}", subject, tiny_prepared / f"sub-{subject}") for subject in split[part]]

    return read


def standardized(run, case):
    return load_model(run).normalization.source.standardize(case.source)


def context_of(run, case):
    (path,) = (run / "stage-1" / "context").glob(f"{case.name}_*.npy")
    return np.load(path)


def logged(folder, event):
    return [record for record in read_log(folder / "log.jsonl") if record["event"] == event]


def assert_scored_on(folder, run, cases, volumes):
    """The last validation of a stage has the means over its cases of what is given for each."""
    target = load_model(run).normalization.target
    (found,) = logged(folder, "validation")
    pairs = list(zip(cases, volumes, strict=True))
    scores = [psnr(np.asarray(case.target), target.unit(made), data_range=1.0) for case, made in pairs]
    errors = [mae(target.standardize(case.target), made) for case, made in pairs]
    assert len(set(scores)) == len(scores)
    assert found["psnr"] == pytest.approx(np.mean(scores), abs=1e-4)
    assert found["mae"] == pytest.approx(np.mean(errors), rel=1e-4)


def test_the_score_of_an_epoch_is_the_mean_over_the_validation_volumes_at_their_stride(cases_of, run):
    first, second = load_model(run).generators
    cases = cases_of(run, "validation")
    sources = [standardized(run, case) for case in cases]
    contexts = [context_of(run, case) for case in cases]
    made = [reconstruct(source[None], first, patch=16, stride=16) for source in sources]
    assert_scored_on(run / "stage-1", run, cases, made)
    made = [reconstruct(np.stack(both), second, patch=16, stride=16) for both in zip(sources, contexts, strict=True)]
    assert_scored_on(run / "stage-2", run, cases, made)


def test_the_context_of_a_volume_is_made_at_a_stride_of_its_own(cases_of, run):
    first = load_model(run).generators[0]
    for case in cases_of(run, "validation"):
        expected, other = (reconstruct(standardized(run, case)[None], first, patch=16, stride=n) for n in (12, 16))
        np.testing.assert_allclose(context_of(run, case), expected, atol=1e-5)
        assert np.abs(context_of(run, case) - other).max() > 1e-3


def test_a_model_synthesizes_at_the_stride_of_its_settings(run, tiny_dataset):
    model = load_model(run)
    scan = read_volume(next(tiny_dataset.rglob("*_PDw.nii.gz")))
    made = model.synthesize(scan).array
    assert np.array_equal(made, model.synthesize(scan, stride=8).array)
    assert not np.array_equal(made, model.synthesize(scan, stride=16).array)


def test_the_second_stage_learns_from_the_context_of_the_same_patch_of_the_same_subject(cases_of, run, brief):
    cases = cases_of(run, "train")
    seed = 1000 * brief.training.seed + 2
    batches = PatchBatches(
        cases,
        load_model(run).normalization,
        Training(patch=16, batch=2, seed=seed, min_head=0.1),
        {case.name: context_of(run, case) for case in cases},
    )
    torch.manual_seed(seed)
    generator = generators.build("small", in_channels=2, residual=True)
    source, target = batches(0)
    l1 = (generator(source) - target).abs().mean().item()
    assert logged(run / "stage-2", "step")[0]["l1"] == pytest.approx(l1, rel=1e-4)


def test_a_third_stage_sees_what_the_second_makes_also_out_of_fold(cases_of, brief, train_tiny, tmp_path):
    longer = tmp_path / "run"
    train_tiny(longer, brief.change(context={"stages": 3}))
    model = load_model(longer)
    assert [network.generator.convolutions[0].in_channels for network in model.generators] == [1, 2, 2]
    case = cases_of(longer, "validation")[0]
    (path,) = (longer / "stage-2" / "context").glob(f"{case.name}_*.npy")
    channels = np.stack([standardized(longer, case), context_of(longer, case)])
    expected = reconstruct(channels, model.generators[1], patch=16, stride=12)
    np.testing.assert_allclose(np.load(path), expected, atol=1e-5)
    trained = {case.name for case in cases_of(longer, "train")}
    for fold in (1, 2):
        facts = json.loads(max((longer / "stage-2" / f"fold-{fold}" / "best").glob("*.json")).read_text())
        assert len(trained - set(facts["identity"]["training subjects"]["cases"])) == 1


@pytest.mark.parametrize("context", [{"stages": 1}, {"stages": 2, "input": "patch", "training_input": "in_sample"}])
def test_in_mode_volume_epochs_are_scored_on_whole_volumes(cases_of, context, brief, train_tiny, tmp_path):
    settings = brief.change(context=context, synthesis={"mode": "volume"})
    train_tiny(tmp_path / "run", settings)
    networks = load_model(tmp_path / "run").generators
    network = networks[0] if len(networks) == 1 else PatchChain(networks).eval()
    cases, made = cases_of(tmp_path / "run", "validation"), []
    for case in cases:
        source = torch.from_numpy(standardized(tmp_path / "run", case))[None, None]
        with torch.no_grad():
            made.append(network(source)[0, 0].numpy())  # the volume as one large patch
    stage = tmp_path / "run" / ("stage-2" if len(networks) > 1 else ".")
    assert_scored_on(stage, tmp_path / "run", cases, made)


def test_what_lies_around_a_patch_reaches_the_generator_of_a_run(cases_of, brief, train_tiny, tmp_path):
    settings = brief.change(context={"stages": 1}, training={"margin": 3})
    train_tiny(tmp_path / "run", settings)
    seed = 1000 * brief.training.seed + 1
    normalization = load_model(tmp_path / "run").normalization
    patches = Training(patch=16, batch=2, seed=seed, min_head=0.1, margin=3)
    batches = PatchBatches(cases_of(tmp_path / "run", "train"), normalization, patches)
    torch.manual_seed(seed)
    generator = generators.build("small", residual=True)
    source, target = batches(0)
    l1 = (generator(source)[..., 3:-3, 3:-3, 3:-3] - target).abs().mean().item()
    assert logged(tmp_path / "run", "step")[0]["l1"] == pytest.approx(l1, rel=1e-4)


def test_a_model_maps_a_scan_whole_as_its_networks_map_its_voxels(run, tiny_dataset):
    model = load_model(run)
    scan = read_volume(next(tiny_dataset.rglob("*_PDw.nii.gz")))
    whole = model.synthesize(scan, mode="volume", crop="never", clip="none").array
    first, second = model.generators
    source, target = model.normalization.source, model.normalization.target
    where = frame(scan)
    z = source.standardize(where.forward(scan.array) / np.float32(head_scale(scan.array, head_mask(scan.array), 99.9)))
    made = map_volume(np.stack([z, map_volume(z[None], first)]), second)
    expected = where.inverse(target.unit(made) * target.scale)
    np.testing.assert_allclose(whole, expected, rtol=1e-5, atol=1e-5 * target.scale)


def test_two_sessions_of_a_subject_stay_on_one_side_of_a_fold(brief, tiny_dataset, tmp_path):
    dataset = tmp_path / "dataset"
    for number, (subject, session) in enumerate([("a", 1), ("a", 2), ("b", 1), ("b", 2)], 1):
        for contrast in ("PDw", "T2w"):
            scan = tiny_dataset / f"sub-00{number}" / "anat" / f"sub-00{number}_{contrast}.nii.gz"
            name = f"sub-{subject}_ses-{session}"
            path = dataset / f"sub-{subject}" / f"ses-{session}" / "anat" / f"{name}_{contrast}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(scan, path)
    settings = brief.change(split={"train": 2, "validation": 0})
    train(dataset, tmp_path / "run", settings)
    for fold in (1, 2):
        folder = tmp_path / "run" / "stage-1" / f"fold-{fold}" / "best"
        cases = json.loads(max(folder.glob("*.json")).read_text())["identity"]["training subjects"]["cases"]
        assert len(cases) == 2
        assert len({case.split("_")[0] for case in cases}) == 1


def test_more_folds_than_training_subjects_are_refused_before_the_first_stage_is_trained(brief, train_tiny, tmp_path):
    with pytest.raises(DatasetError, match=r"fewer training subjects than folds.* found 2 subjects"):
        train_tiny(tmp_path / "run", brief.change(context={"stages": 2, "folds": 3}))
    assert not (tmp_path / "run" / "stage-1").exists()


def test_a_chain_that_starts_from_a_model_of_its_own_subjects_says_that_no_fold_is_left_out(
    cases_of, brief, train_tiny, run, tmp_path
):
    settings = resolve_run(
        "demo", None, {**to_dict(brief), "training": {**to_dict(brief)["training"], "start": str(run)}}
    )
    names = ", ".join(case.name for case in cases_of(run, "train"))
    with pytest.warns(UserWarning, match=f"given a context out of fold here, so that it is too good: {names}"):
        train_tiny(tmp_path / "run", settings)
