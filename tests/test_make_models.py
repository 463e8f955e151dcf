"""The tool that trains the models of the package, with a plan that takes seconds."""

import tomllib
from dataclasses import replace

import make_models
import pytest

from unscanned.datasets.pairs import select_pairs
from unscanned.errors import CheckpointError, SettingsError
from unscanned.files import write_json
from unscanned.formats.shelf import ShelfRecord
from unscanned.settings import resolve
from unscanned.synthesis.model_file import load_model
from unscanned.synthesis.shelf import find_model
from unscanned.volumes.nifti import read_volume

TINY = """
[settings]
preset = "strong"
prepare = { shape = [32, 40, 32], spacing_mm = 5.0, averages = true }
split = { train = 2, validation = 1, test = 0 }
context = { stride = 16 }
simulated = { share = 1.0, pool = 1, every = 8 }
synthesis = { stride = 16 }

[settings.training]
epochs = 1
steps_per_epoch = 2
warmup_steps = 0
patch = 16
batch = 1
validation_stride = 16
device = "cpu"

[heads]
held_out = []
training = { subjects = 3, seed = 11 }
test = { subjects = 2, seed = 12 }
beyond = { noise = [0.1, 0.15] }

[card]
licence = "Apache-2.0"
data = [{ name = "heads of the package", licence = "Apache-2.0" }]

[models.t1w-t2w]
source = "T1"
target = "T2"
purpose = "A T2w image, for a test."

[[models.t1w-t2w.failures]]
what = "Too dark."
scan = "sub-001"
axial = 16

[[models.t1w-t2w.failures]]
what = "Of a scan that is not there."
scan = "sub-9"
axial = 1
"""


@pytest.mark.slow
@pytest.mark.usefixtures("coarse_heads")
@pytest.mark.filterwarnings("ignore:.*cannot be judged")
def test_a_model_is_trained_scored_and_put_on_the_shelf_by_one_call(tmp_path):
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    write_json(shelf / "models.json", ShelfRecord().to_json())
    plan = tomllib.loads(TINY)
    folder = make_models.make_model("t1w-t2w", plan, tmp_path / "out", None, [], shelf)
    found = find_model("t1w-t2w", shelf)
    found.check()
    assert found.folder == folder
    assert found.card.command == make_models.COMMAND.format("t1w-t2w")
    domains = dict.fromkeys(score.domain for score in found.card.scores)
    assert len(domains) == 2
    psnr = [score for score in found.card.scores if score.metric == "psnr"]
    assert all({gain.against for gain in score.gains} >= {"source", "regression"} for score in psnr)
    page = (folder / "README.md").read_text(encoding="utf-8")
    assert page.startswith("# t1w-t2w\n\nA T2w image, for a test.\n")
    [drawn, told] = found.card.failures
    assert (folder / drawn.picture).read_bytes().startswith(b"\xff\xd8")
    assert f"![Too dark.]({drawn.picture})" in page
    assert told.picture is None
    for domain, picture in found.card.pictures.items():
        assert f"![{domain}]({picture})" in page
        assert (folder / picture).read_bytes().startswith(b"\xff\xd8")
    scan = select_pairs(tmp_path / "out" / "t1w-t2w" / "test", source="T1", target="T2").pairs[0].source
    assert load_model(folder, "cpu").synthesize(read_volume(scan)).array.shape == (32, 40, 32)
    made = (tmp_path / "out" / "t1w-t2w" / "run" / "model" / "model.safetensors").stat().st_mtime_ns
    make_models.make_model("t1w-t2w", plan, tmp_path / "out", None, [], shelf)
    assert (tmp_path / "out" / "t1w-t2w" / "run" / "model" / "model.safetensors").stat().st_mtime_ns == made


@pytest.mark.parametrize(
    ("training", "error", "message"),
    [
        ('precision = "tf32"', SettingsError, r"training\.precision.*found tf32 on cpu"),
        ('start = "older/t1w-t2w"', CheckpointError, "older/t1w-t2w: not a model"),
    ],
)
def test_what_cannot_be_trained_here_is_refused_before_any_head_is_simulated(
    training, error, message, tmp_path, monkeypatch
):
    second = f'[models.last]\nsource = "T1"\ntarget = "T2"\nsettings = {{ training = {{ {training} }} }}\n'
    (tmp_path / "models.toml").write_text(TINY + second)
    monkeypatch.setattr(make_models, "FILE", tmp_path / "models.toml")
    monkeypatch.setattr("sys.argv", ["make_models.py", str(tmp_path / "out")])
    with pytest.raises(error, match=message):
        make_models.main()
    assert not (tmp_path / "out").exists()


def test_the_label_maps_that_are_held_out_are_in_no_training(tmp_path):
    labels = tmp_path / "labels"
    labels.mkdir()
    for name in ("a.nii.gz", "b.nii.gz", "c.nii.gz"):
        (labels / name).write_text(name)
    for _ in range(2):
        train, test = make_models.divide(labels, ["b.nii.gz"], tmp_path / "parts")
        assert sorted(path.name for path in train.iterdir()) == ["a.nii.gz", "c.nii.gz"]
        assert [(path.name, path.read_text()) for path in test.iterdir()] == [("b.nii.gz", "b.nii.gz")]
    with pytest.raises(SettingsError, match=r"expected z\.nii\.gz"):
        make_models.divide(labels, ["z.nii.gz"], tmp_path / "other")


def test_a_model_names_its_label_maps_as_from_the_folder_of_all_that_is_made(tmp_path):
    model = load_model("pd-t2", "cpu")
    settings = model.settings.change(simulated={"labels": str(tmp_path / "out" / "labels" / "train")})
    made = make_models.portable(replace(model, settings=settings), tmp_path / "out")
    assert made.settings.simulated.labels == "labels/train"
    without = replace(model, settings=model.settings.change(simulated={"labels": None}))
    assert make_models.portable(without, tmp_path / "out") is without


def test_real_scans_are_scored_as_a_whole_and_by_what_they_show(shared_data, tmp_path, capsys):
    found = make_models.real_domains([shared_data / "ms-t1-t2-flair"], ("T1", "T2"), tmp_path)
    counts = {domain: len(select_pairs(table, source="T1", target="T2").pairs) for domain, table in found.items()}
    assert counts == {"real scans": 6, "real scans, whole heads": 4, "real scans, extracted brains": 2}
    assert make_models.real_domains([shared_data / "ms-t1-t2-flair"], ("PD", "T2"), tmp_path) == {}
    assert "no pair of PD and T2" in capsys.readouterr().err


def test_the_plan_of_the_package_can_be_trained():
    plan = tomllib.loads(make_models.FILE.read_text(encoding="utf-8"))
    assert len(plan["models"]) == 5
    assert plan["models"]["t1w-t2w"]["failures"][0].keys() >= {"what", "scan", "axial"}
    for name in plan["models"]:
        settings = make_models.settings_of(plan, name, None)
        own = {"t1w-t2w": (6, "float32", 1.0), "t2w-t1w": (12, "bfloat16", 1.0)}.get(name, (8, "float32", 0.0))
        assert (settings.training.epochs, settings.training.precision, settings.loss.gdl) == own
        assert settings.training.patch == 48
        assert settings.change() == resolve("strong", overrides=settings.model_dump(exclude={"preset"}))
