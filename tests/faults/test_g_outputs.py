"""Section G, outputs: what a call would not itself have made is refused, with what it is. Each test names its row."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from nifti_files import write_nifti

from unscanned.benchmark import show
from unscanned.cli import main
from unscanned.datasets.ixi import fetch_ixi
from unscanned.demo import demo
from unscanned.errors import DatasetError, SettingsError
from unscanned.experiment import reproduce
from unscanned.files import sha256
from unscanned.settings import to_dict
from unscanned.synthesis.model_file import load_model
from unscanned.synthesis.synthesize import synthesize

THERE = "something else is there already"
FOREIGN = {
    "text": b"my notes\n",
    "json": b'{"a": 1}\n',
    "list": b"[]\n",
    "picture": b"\x89PNG\r\n\x1a\n" + bytes(64),
}


def content(folder):
    """Return every file of a folder with its bytes, but for locks, which are empty when nobody holds them."""
    return {path: path.read_bytes() for path in Path(folder).rglob("*") if path.is_file() and path.name != ".lock"}


@pytest.fixture(scope="module")
def made(tiny_run, tiny_dataset, tmp_path_factory):
    """Synthetic volumes of the tiny dataset, and their evaluation; tests must not change them."""
    from unscanned.evaluation.evaluate import evaluate

    folder = tmp_path_factory.mktemp("made")
    scans = [(tiny_dataset / f"sub-00{n}" / "anat" / f"sub-00{n}_PDw.nii.gz", f"sub-00{n}") for n in (1, 2)]
    synthesize(load_model(tiny_run), scans, folder / "arm", force=True)
    evaluate(tiny_dataset, {"arm": folder / "arm"}, folder / "evaluation")
    return folder


@pytest.fixture(scope="module")
def overrides(tiny_settings):
    tables = to_dict(tiny_settings)
    return {name: tables[name] for name in ("prepare", "split", "training", "context", "synthesis")}


@pytest.fixture(scope="module")
def experiment(tiny_dataset, overrides, tmp_path_factory):
    out = tmp_path_factory.mktemp("experiment") / "out"
    reproduce(tiny_dataset, out, arms=["demo"], overrides=overrides)
    return out


# Files: --json, --plot, report -o


@pytest.mark.parametrize("kind", FOREIGN)
@pytest.mark.parametrize(
    "verb", ["check", "evaluate", "reproduce", "benchmark json", "benchmark plot", "report", "view"]
)
def test_g05_a_file_that_is_not_of_the_output_s_kind_is_refused_before_the_work(
    cli, tiny_dataset, made, settings_file, tmp_path, kind, verb
):
    taken = tmp_path / ("taken.png" if verb == "benchmark plot" else "taken.json")
    taken.write_bytes(FOREIGN[kind])
    out = tmp_path / "out"
    command = {
        "check": ["check", tiny_dataset, "--json", taken],
        "evaluate": ["evaluate", tiny_dataset, made / "arm", "-o", out, "--json", taken],
        "reproduce": ["reproduce", tiny_dataset, "-o", out, "--settings", settings_file, "--json", taken],
        "benchmark json": ["benchmark", "--json", taken],
        "benchmark plot": ["benchmark", "--plot", taken],
        "report": ["report", made / "evaluation", "-o", taken],
        "view": ["view", next(tiny_dataset.rglob("*.nii.gz")), "-o", taken],
    }[verb]
    done = cli(*command)
    assert done.returncode == 2, done.stderr
    assert f"{taken}: {THERE}; found " in done.stderr
    assert f"{len(FOREIGN[kind])} bytes" in done.stderr
    assert ("with the keys a" in done.stderr) == (kind == "json")
    assert content(tmp_path) == {taken: FOREIGN[kind]}


def test_g05_results_of_one_verb_are_not_replaced_by_those_of_another(cli, tiny_dataset, made, tmp_path):
    results = tmp_path / "results.json"
    assert cli("check", tiny_dataset, "--measure-s", 0, "--json", results).returncode == 0
    before = results.read_bytes()
    for command in (
        ["evaluate", tiny_dataset, made / "arm", "-o", tmp_path / "out", "--json", results],
        ["benchmark", "--json", results],
        ["report", made / "evaluation", "-o", results],
        ["view", next(tiny_dataset.rglob("*.nii.gz")), "-o", results],
    ):
        assert cli(*command).returncode == 2
        assert results.read_bytes() == before


def test_g05_what_the_same_verb_made_is_replaced(cli, tiny_dataset, made, tmp_path):
    check, scores, page = tmp_path / "check.json", tmp_path / "scores.json", tmp_path / "report.html"
    for path in (check, scores, page):
        path.touch()  # an empty file, as mktemp makes it, holds nothing that could be lost
    for _ in range(2):
        assert cli("check", tiny_dataset, "--measure-s", 0, "--json", check).returncode == 0
        evaluated = ["evaluate", tiny_dataset, made / "arm", "-o", tmp_path / "out", "--json", scores]
        assert cli(*evaluated).returncode == 0
        assert cli("report", tmp_path / "out", "-o", page).returncode == 0
        assert cli("view", next(tiny_dataset.rglob("*.nii.gz")), "-o", tmp_path / "view.html").returncode == 0
    assert json.loads(check.read_text())["unusable"] == []
    assert "Unscanned · report" in page.read_text()
    refused = cli("view", next(tiny_dataset.rglob("*.nii.gz")), "-o", page)
    assert (refused.returncode, "an earlier page of unscanned view" in refused.stderr) == (2, True)


@pytest.mark.parametrize("kind", show.FORMATS)
def test_g05_a_plot_is_known_again_and_another_picture_is_not(tmp_path, kind):
    row = {"seconds": 1.0, "seconds_ratio": 1.0}
    layer = {"kernel": 3, "channels": 1, "edge": 4, "patches": 1, "batch": 1, "grid": 4}
    size = {
        "patches": [{"patches": 1, **row}, {"patches": 8, **row}],
        "volumes": [{"edge": 32, **row}],
        "layers": [{**layer, "layer": "a", "forward": row, "forward_backward": row}],
    }
    path = tmp_path / f"plot.{kind}"
    import unscanned.benchmark.show as module

    module_named = module._named
    module._named = lambda _: "a layer"
    try:
        show.plot({"size": size}, path)
        show.check_plot(path)
        show.plot({"size": size}, path)
    finally:
        module._named = module_named
    from matplotlib.figure import Figure

    Figure().savefig(path)
    with pytest.raises(SettingsError, match=THERE):
        show.check_plot(path)


@pytest.mark.parametrize("there", [True, False])
def test_g05_a_report_with_curves_of_a_run_that_is_not_there_is_refused(cli, made, tmp_path, there):
    run = tmp_path / "run"
    if there:
        run.mkdir()
    done = cli("report", made / "evaluation", "-o", tmp_path / "report.html", "--runs", f"x={run}")
    assert done.returncode == 2
    assert f"run x: {run}: no training has begun in this folder" in done.stderr
    assert not (tmp_path / "report.html").exists()


def test_g05_no_verb_writes_a_folder_among_the_scans_of_a_dataset(cli, tiny_dataset, tiny_run, settings_file, tmp_path):
    raw = shutil.copytree(tiny_dataset, tmp_path / "raw")
    scan = raw / "sub-001" / "anat" / "sub-001_PDw.nii.gz"
    before = content(raw)
    for plain in (False, True):
        if plain:  # a dataset is known by its folders too
            before = {path: value for path, value in before.items() if path.parent != raw}
            for path in list(raw.iterdir()):
                if path.is_file():
                    path.unlink()
        for command in (
            ["synthesize", tiny_run, raw],
            ["train", raw, "--preset", "demo", "--settings", settings_file],
            ["prepare", raw],
            ["reproduce", raw, "--arms", "demo", "--settings", settings_file],
            ["evaluate", raw, tiny_run],
            *([] if plain else [["synthesize", tiny_run, scan]]),
        ):
            for inside in ("sub-001", "sub-001/anat", "sub-009"):
                done = cli(*command, "-o", raw / inside)
                assert done.returncode == 2, command
                assert "the output folder lies among the scans of a dataset" in done.stderr
    assert content(raw) == before


# Folders: evaluate, mend, dicom, simulate, prepare, train, fetch


@pytest.mark.parametrize("name", ["scores.csv", "slices.csv", "evaluation.json"])
def test_g06_an_evaluation_replaces_an_evaluation_and_nothing_else(cli, tiny_dataset, made, tmp_path, name):
    out = tmp_path / "out"
    shutil.copytree(made / "evaluation", out)
    command = ["evaluate", tiny_dataset, made / "arm", "-o", out]
    assert cli(*command).returncode == 0
    for foreign in FOREIGN.values():
        (out / name).write_bytes(foreign)
        before = content(out)
        done = cli(*command)
        assert done.returncode == 2
        assert f"{out / name}: {THERE}" in done.stderr
        assert content(out) == before
    (out / "evaluation.json").unlink()  # as a kill leaves it
    for left in ("scores.csv", "slices.csv"):
        shutil.copy(made / "evaluation" / left, out / left)
    assert cli(*command).returncode == 0


def test_g06_mend_replaces_neither_a_file_nor_the_json_file_of_its_name(cli, tmp_path):
    scan = write_nifti(tmp_path / "scan.nii.gz")
    (tmp_path / "mended.json").write_text('{"EchoTime": 0.1}')
    done = cli("mend", scan, "-o", tmp_path / "mended.nii.gz")
    assert done.returncode == 2
    assert f"{tmp_path / 'mended.json'}: {THERE}; found a JSON file of 17 bytes with the keys EchoTime" in done.stderr
    assert not (tmp_path / "mended.nii.gz").exists()
    (tmp_path / "mended.json").unlink()
    (tmp_path / "mended.nii.gz").write_bytes(b"")
    assert cli("mend", scan, "-o", tmp_path / "mended.nii.gz").returncode == 2


def test_g06_a_derived_series_goes_into_a_new_folder_only(tmp_path, tiny_run, tiny_dataset, made):
    from unscanned.files import new_folder

    (tmp_path / "series").mkdir()
    (tmp_path / "series" / "IM0001.dcm").write_bytes(b"acquired")
    with pytest.raises(DatasetError, match="is there already"), new_folder(tmp_path / "series"):
        pass
    assert (tmp_path / "series" / "IM0001.dcm").read_bytes() == b"acquired"


@pytest.mark.parametrize("name", ["README", "participants.tsv", "participants.json", "dataset_description.json"])
def test_g06_a_simulation_replaces_no_other_dataset_s_files(cli, tmp_path, name):
    (tmp_path / name).write_text('{"Name": "ours"}')
    command = ["simulate", "-o", tmp_path, "--subjects", 1, "--shape", 16, 16, 16]
    done = cli(*command)
    assert done.returncode == 2
    assert f"{tmp_path / name}: {THERE}" in done.stderr
    assert set(content(tmp_path)) == {tmp_path / name}


def simulation(folder, subjects):
    return ["simulate", "-o", str(folder), "--shape", "16", "16", "16", "--subjects", str(subjects)]


@pytest.fixture(scope="module")
def grown(tmp_path_factory):
    """A simulation of one subject that became one of two, and what was there before."""
    folder = tmp_path_factory.mktemp("grown") / "heads"
    assert main(simulation(folder, 1)) == 0
    before = content(folder)
    for _ in range(2):
        assert main(simulation(folder, 2)) == 0
    return folder, before


@pytest.mark.parametrize("other", [["--seed", 1], ["--spacing-mm", 9], []])
def test_g06_a_simulation_replaces_only_what_the_same_one_made(cli, grown, tmp_path, other):
    folder, first = grown
    assert {path: content(folder)[path] for path in first if "participants" not in path.name} == {
        path: value for path, value in first.items() if "participants" not in path.name
    }
    heads = shutil.copytree(folder, tmp_path / "heads")
    if not other:  # an acquired scan under the name of a simulated one
        scan = heads / "sub-001" / "anat" / "sub-001_PDw"
        (scan.parent / f"{scan.name}.json").write_text('{"EchoTime": 0.1}')
    before = content(heads)
    done = cli(*simulation(heads, 2), *other)
    assert done.returncode == 2, done.stderr
    assert THERE in done.stderr
    assert content(heads) == before


def test_g06_a_cache_with_the_cases_of_another_dataset_is_not_replaced(
    cli, tiny_dataset, other_dataset, settings_file, tmp_path
):
    command = ["-o", tmp_path / "prepared", "--preset", "demo", "--settings", settings_file]
    assert cli("prepare", tiny_dataset, *command).returncode == 0
    before = content(tmp_path)
    done = cli("prepare", other_dataset, *command)
    assert done.returncode == 2
    assert "case.json: something else is there already; found a JSON file" in done.stderr
    assert "expected a case that was prepared from the same scans, or nothing" in done.stderr
    assert content(tmp_path) == before
    moved = shutil.copytree(tiny_dataset, tmp_path / "moved")
    assert cli("prepare", moved, *command).returncode == 0
    assert cli("prepare", moved, *command, "--prepare.shape", 24, 24, 24).returncode == 0


def test_g06_a_file_that_has_the_name_of_a_prepared_volume_among_others_is_not_replaced(
    cli, tiny_dataset, settings_file, tmp_path
):
    folder = tmp_path / "prepared" / "sub-001"
    folder.mkdir(parents=True)
    np.save(folder / "source.npy", np.zeros(3))
    (folder / "notes.txt").write_text("mine")
    before = content(tmp_path)
    done = cli("prepare", tiny_dataset, "-o", tmp_path / "prepared", "--preset", "demo", "--settings", settings_file)
    assert done.returncode == 2
    assert f"{folder / 'source.npy'}: {THERE}" in done.stderr
    assert content(tmp_path) == before


@pytest.mark.parametrize("name", ["settings.toml", "split.json", "model", "log.jsonl", "best", "stage-1"])
def test_g06_a_new_run_replaces_nothing_that_stands_in_its_folder(cli, tiny_dataset, settings_file, tmp_path, name):
    if "." in name:
        (tmp_path / name).write_text("# mine\n")
    else:
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.json").write_text("{}")
    before = content(tmp_path)
    done = cli("train", tiny_dataset, "-o", tmp_path, "--preset", "demo", "--settings", settings_file)
    assert done.returncode == 2
    assert f"{tmp_path / name}: {THERE}" in done.stderr
    assert content(tmp_path) == before


def test_g06_a_run_on_other_scans_under_the_same_names_is_refused_and_keeps_its_cases(
    cli, tiny_run, other_dataset, settings_file, tmp_path
):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    before = content(run)
    done = cli("train", other_dataset, "-o", run, "--preset", "demo", "--settings", settings_file)
    assert done.returncode == 2
    assert THERE in done.stderr
    assert {path: value for path, value in content(run).items() if path.name != "settings.toml"} == {
        path: value for path, value in before.items() if path.name != "settings.toml"
    }


def test_g06_a_download_replaces_no_folder_of_its_name(tmp_path):
    folder = tmp_path / "IXI-PD"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(DatasetError, match="a folder of this name is there already"):
        fetch_ixi(tmp_path, contrasts=("PD",), base_url="http://127.0.0.1:9", tries=1)
    assert content(folder) == {folder / "notes.txt": b"mine"}


# synthesize


def output(folder):
    return folder / "sub-001" / "anat" / "sub-001_desc-synthetic_T2w.nii.gz"


@pytest.mark.parametrize("sidecar", [None, '{"EchoTime": 0.1}', "[]", "null", '"text"'])
def test_g07_a_scan_under_the_name_of_an_output_is_replaced_only_on_request(
    cli, tiny_run, tiny_dataset, tmp_path, sidecar
):
    scan = tiny_dataset / "sub-001" / "anat" / "sub-001_PDw.nii.gz"
    path = output(tmp_path)
    path.parent.mkdir(parents=True)
    shutil.copy(scan, path)
    beside = path.with_name(path.name.replace(".nii.gz", ".json"))
    if sidecar is not None:
        beside.write_text(sidecar)
    done = cli("synthesize", tiny_run, scan, "-o", tmp_path, "--force")
    assert done.returncode == 2, done.stderr
    assert f"{path}: {THERE}; found a scan or volume of " in done.stderr
    assert "--overwrite" in done.stderr
    assert sha256(path) == sha256(scan)
    path.unlink()
    if sidecar is not None:
        done = cli("synthesize", tiny_run, scan, "-o", tmp_path, "--force")
        assert done.returncode == 2
        assert f"{beside}: {THERE}" in done.stderr
        assert beside.read_text() == sidecar
        shutil.copy(scan, path)
    assert cli("synthesize", tiny_run, scan, "-o", tmp_path, "--force", "--overwrite").returncode == 0
    assert sha256(path) != sha256(scan)


def test_g07_a_volume_that_another_model_made_is_replaced_only_on_request(
    cli, tiny_run, tiny_dataset, experiment, tmp_path
):
    scan = tiny_dataset / "sub-001" / "anat" / "sub-001_PDw.nii.gz"
    assert cli("synthesize", tiny_run, scan, "-o", tmp_path, "--force").returncode == 0
    before = output(tmp_path).read_bytes()
    model = load_model(tiny_run)
    other = type(model)(
        model.generators,
        model.settings,
        model.normalization,
        model.provenance,
        "0" * 64,
        model.path,
        model.profile,
        model.weights_sha256,
    )
    result = synthesize(other, [(scan, None)], tmp_path, force=True)
    assert THERE in str(result.failures[str(scan)])
    assert output(tmp_path).read_bytes() == before
    assert synthesize(other, [(scan, None)], tmp_path, force=True, overwrite=True).written == [output(tmp_path)]


# reproduce and demo


def test_g08_an_experiment_on_another_dataset_is_refused_and_replaces_nothing(
    other_dataset, tiny_dataset, experiment, overrides, tmp_path
):
    out = shutil.copytree(experiment, tmp_path / "out")
    before = content(out)
    other_split = {**overrides, "split": {**overrides["split"], "seed": 5}}
    for dataset, changes in ((other_dataset, overrides), (tiny_dataset, other_split), (other_dataset, other_split)):
        for arms in (["demo"], ["unet"]):
            with pytest.raises(SettingsError, match=THERE):
                reproduce(dataset, out, arms=arms, overrides=changes)
            assert content(out) == before
    reproduce(tiny_dataset, out, arms=["demo"], overrides=overrides)
    assert output_names(out) == output_names(experiment)


def output_names(folder):
    return {path.relative_to(folder) for path in content(folder) if "tfevents" not in path.name}


@pytest.mark.parametrize("name", ["report.html", "split.json", "reproduce.json", "evaluation/scores.csv"])
def test_g08_an_experiment_replaces_no_file_of_another_kind(tiny_dataset, overrides, tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(SettingsError, match=THERE):
        reproduce(tiny_dataset, tmp_path, arms=["demo"], overrides=overrides)
    assert content(tmp_path) == {tmp_path / name: b"mine"}


def test_g08_neither_demo_nor_experiment_begins_in_the_folder_of_a_run(tiny_run, tiny_dataset, overrides, tmp_path):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    before = content(run)
    with pytest.raises(SettingsError, match=r"settings\.json: something else is there already.*no run of"):
        demo(run, subjects=7)
    with pytest.raises(SettingsError, match=THERE):
        reproduce(tiny_dataset, run, arms=["demo"], overrides=overrides)
    assert content(run) == before


def test_g08_a_demo_does_not_begin_in_another_experiment_s_folder(experiment, tmp_path):
    out = shutil.copytree(experiment, tmp_path / "out")
    before = content(out)
    with pytest.raises(SettingsError, match="expected an earlier demo"):
        demo(out, subjects=7)
    assert content(out) == before


def test_g07_a_model_that_makes_no_numbers_is_told_with_the_name_of_the_output(tiny_run, tiny_dataset, tmp_path):
    model = load_model(tiny_run)
    for tensor in model.generators[0].parameters():
        tensor.data.fill_(float("nan"))
    scan = tiny_dataset / "sub-001" / "anat" / "sub-001_PDw.nii.gz"
    (error,) = synthesize(model, [(scan, None)], tmp_path, force=True).failures.values()
    assert "not finite" in str(error)
    assert ".partial" not in str(error)
    assert str(output(tmp_path)) in str(error)


def test_g05_a_dataset_is_no_output_of_a_table_of_its_scans(cli, tmp_path, tiny_dataset):
    raw = shutil.copytree(tiny_dataset, tmp_path / "raw")
    scan = "sub-001/anat/sub-001_{}w.nii.gz"
    table = tmp_path / "table.csv"
    table.write_text(f"subject,PD,T2\n001,{raw / scan.format('PD')},{raw / scan.format('T2')}\n")
    before = sorted(raw.rglob("*"))
    done = cli("prepare", table, "-o", raw)
    assert done.returncode == 2
    assert "the output folder lies among the scans of a dataset" in done.stderr
    assert sorted(raw.rglob("*")) == before
