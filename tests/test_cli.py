import ast
import contextlib
import json
import os
import pty
import re
import shutil
import subprocess
import sys
import threading
import tomllib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nifti_files import write_nifti
from tool import ENVIRONMENT, run

from unscanned.cli import app, terminal
from unscanned.cli.settings import named_folders, overrides
from unscanned.errors import Interrupted
from unscanned.models.discriminators import DISCRIMINATORS
from unscanned.models.generators import GENERATORS
from unscanned.progress import Now, Pace, interruptible
from unscanned.synthesis.model_file import load_model
from unscanned.synthesis.synthesize import list_inputs, synthesize

VERBS = [
    "demo",
    "fetch",
    "models",
    "simulate",
    "check",
    "prepare",
    "train",
    "synthesize",
    "evaluate",
    "report",
    "view",
    "reproduce",
]


@pytest.fixture
def own(tiny_dataset, tmp_path):
    """A copy of the dataset that a test may change."""
    shutil.copytree(tiny_dataset, tmp_path / "dataset")
    return tmp_path / "dataset"


def scan(dataset, number, contrast="PD"):
    return dataset / f"sub-{number:03d}" / "anat" / f"sub-{number:03d}_{contrast}w.nii.gz"


def cut_short(path):
    path.write_bytes(path.read_bytes()[:4000])
    return path


def test_the_help_lists_every_verb():
    done = run("--help")
    assert done.returncode == 0
    for verb in VERBS:
        assert f" {verb} " in done.stdout
    assert "Not for clinical use" in done.stdout


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_of_a_verb_teaches_with_an_example(verb):
    done = run(verb, "--help")
    assert done.returncode == 0
    assert f"Example: unscanned {verb}" in done.stdout


def test_a_terminal_that_claims_no_width_still_gets_messages_and_tables(tiny_dataset, cli, monkeypatch):
    monkeypatch.setenv("COLUMNS", "0")
    refused = cli("check")
    assert refused.returncode == 2
    assert "dataset" in (refused.stdout + refused.stderr).lower()
    monkeypatch.setenv("COLUMNS", "0")
    assert "sub-001" in cli("check", tiny_dataset, "--layout", "bids", "--target", "T9").stdout


@pytest.mark.parametrize("columns", ["1", "2", "19"])
def test_a_terminal_of_a_few_columns_gets_the_help_at_once(columns):
    command = [sys.executable, "-m", "unscanned", "view", "--help"]
    environment = {**ENVIRONMENT, "COLUMNS": columns}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=15)
    assert done.returncode == 0
    assert max(map(len, done.stdout.splitlines())) > 15


def test_the_version_is_printed():
    done = run("--version")
    assert done.returncode == 0
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert done.stdout.strip() == project["version"]


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"]])
def test_it_starts_without_the_libraries_that_take_seconds_to_load(arguments):
    program = f"import sys; from unscanned.cli import main; main({arguments}); print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=ENVIRONMENT)
    loaded = ast.literal_eval(done.stdout.splitlines()[-1])
    assert "unscanned.settings" in loaded
    assert not {"torch", "scipy", "nibabel", "matplotlib", "skimage", "monai"} & set(loaded)


def test_a_bug_ends_with_1_and_a_file_that_holds_what_happened(cli, tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise ZeroDivisionError("of the test")

    monkeypatch.setattr("unscanned.datasets.mend.mend", fail)
    monkeypatch.chdir(tmp_path)
    done = cli("mend", "scan.nii", "-o", "out.nii")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    path = Path(re.search(r"what happened is in (.+)\. Please report", line)[1])
    assert "ZeroDivisionError: of the test" in path.read_text()
    path.unlink()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "data", "-o", "out", "--training.epoch", "3"], "--training.epochs"),
        (["train", "data", "-o", "out", "--training.epochs", "many"], "many"),
        (["train", "data"], "--out"),
        (["trian", "data"], "train"),
        (["train", "data", "-o", "out", "--preset", "resgn"], "resgan"),
        (["train", "data", "-o", "out", "--settings", "nothing.toml"], "nothing.toml"),
        (["train", "data", "-o", "out", "--training.batch", "0"], "training.batch"),
        (["reproduce", "data", "-o", "out", "--arms", "adv", "adv"], "each arm"),
        (["fetch", "oasis", "-o", "out"], "ixi"),
    ],
)
def test_wrong_usage_ends_with_2_names_the_near_option_and_writes_nothing(cli, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    done = cli(*arguments)
    assert done.returncode == 2
    assert words in done.stderr + done.stdout
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_prints_the_resolved_settings_with_their_cost_and_writes_nothing(
    cli, tmp_path, tiny_dataset, settings_file
):
    command = ["train", tiny_dataset, "-o", tmp_path / "out", "--preset", "demo", "--settings", settings_file]
    done = cli(*command, "--training.epochs", 7, "--prepare.shape", 40, 48, 40, "--dry-run")
    assert done.returncode == 0
    assert "# steps     21 in all" in done.stdout
    assert re.search(r"^# time +1 min on this machine \(cpu\)", done.stdout, re.MULTILINE)
    content = tomllib.loads(done.stdout)
    assert (content["preset"], content["training"]["epochs"], content["training"]["batch"]) == ("demo", 7, 2)
    assert content["prepare"]["shape"] == [40, 48, 40]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("verb", ["train", "reproduce"])
def test_a_dry_run_refuses_a_dataset_that_is_not_there_or_too_small(cli, tmp_path, tiny_dataset, settings_file, verb):
    arms = ["--arms", "demo"] if verb == "reproduce" else ["--preset", "demo"]
    options = [*arms, "--settings", settings_file, "-o", tmp_path / "out", "--dry-run"]
    done = cli(verb, tmp_path / "missing", *options)
    assert done.returncode == 3
    assert "the dataset is not there" in done.stderr
    done = cli(verb, tiny_dataset, *options, "--split.train", 20)
    assert done.returncode == 3
    assert "too few subjects" in done.stderr


def test_a_dataset_without_fault_is_checked_with_0(cli, tiny_dataset, tmp_path):
    done = cli("check", tiny_dataset, "--measure-s", 0, "--json", tmp_path / "check.json")
    assert done.returncode == 0, done.stderr
    assert "4 usable pairs PD -> T2 of 4 subjects, 0 unusable cases" in done.stdout
    assert json.loads((tmp_path / "check.json").read_text())["unusable"] == []


def test_a_dataset_of_other_contrasts_is_told_what_to_type(cli, tmp_path, tiny_dataset, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")  # no finding is broken over lines
    done = cli("check", tiny_dataset, "--source", "FLAIR", "--target", "T2w", "--measure-s", 0)
    assert done.returncode == 3
    assert "no FLAIR scan; there are PDw, T2w" in done.stdout
    assert "Try --source PDw --target T2w" in done.stderr
    assert "Mend" not in done.stderr
    typed = cli("check", tiny_dataset, "--source", "PDw", "--target", "T2w", "--measure-s", 0)
    assert typed.returncode == 0
    done = cli("train", tiny_dataset, "-o", tmp_path / "out", "--data.source", "FLAIR")
    assert done.returncode == 3
    assert "Try --source PDw --target T2w" in done.stderr


def test_the_rows_of_check_name_their_file(cli, own):
    cut_short(scan(own, 2, "T2"))
    done = cli("check", own, "--measure-s", 0)
    (row,) = [line for line in done.stdout.splitlines() if "sub-002_T2w.nii.gz" in line and "unreadable" in line]
    assert "sub-002 " in row


def test_dicom_folders_come_with_the_line_to_type(cli, tmp_path, tiny_dataset):
    series = tmp_path / "dicom" / "series 1"
    series.mkdir(parents=True)
    (series / "IM0001").write_bytes(bytes(128) + b"DICM" + bytes(100))
    done = cli("check", tmp_path / "dicom", "--source", "T1w")
    assert done.returncode == 3
    assert f"-f sub-01_T1w -o my-bids/sub-01/anat '{series}'" in done.stderr
    both = shutil.copytree(tiny_dataset, tmp_path / "both")
    shutil.copytree(series, both / "sub-001" / "dicom")
    done = cli("check", both, "--measure-s", 0, "--json", tmp_path / "check.json")
    assert done.returncode == 0
    (finding,) = json.loads((tmp_path / "check.json").read_text())["findings"]
    assert (finding["severity"], finding["fault"]) == ("warning", "dicom")
    assert "dcm2niix -b y -z y" in finding["message"]


def test_check_says_what_there_is_what_fits_and_what_it_costs(cli, tmp_path, tiny_dataset):
    file, record = tmp_path / "mine.toml", tmp_path / "check.json"
    done = cli("check", tiny_dataset, "--preset", "demo", "--propose", file, "--json", record, "--measure-s", 2)
    assert done.returncode == 0, done.stderr
    assert "contrasts  PDw in 4 cases, T2w in 4 cases" in done.stdout
    assert "8 scans of 32 x 40 x 32 voxels" in done.stdout
    assert "4 cannot be judged" in done.stdout  # voxels of 6 mm
    assert "s a step" in done.stdout
    assert f"-o OUT --preset demo --settings {file}" in done.stdout
    content = json.loads(record.read_text())
    assert tomllib.loads(file.read_text())["split"] == {"train": 2, "validation": 1, "test": 1}
    assert content["proposal"]["settings"] == tomllib.loads(file.read_text())
    assert content["cost"]["steps"] > 0
    assert content["contrasts"] == {"PDw": 4, "T2w": 4}
    before = file.read_bytes()
    assert cli("check", tiny_dataset, "--propose", file, "--measure-s", 0).returncode == 0  # its own may be replaced
    file.write_text("mine = 1\n")
    assert cli("check", tiny_dataset, "--propose", file, "--measure-s", 0).returncode == 2
    assert file.read_text() == "mine = 1\n" != before


def test_a_broken_dataset_is_checked_with_3_and_all_its_problems_named(cli, own, tmp_path):
    cut_short(scan(own, 1))
    scan(own, 2, "T2").unlink()
    shutil.copy(scan(own, 3), scan(own, 4))
    done = cli("check", own, "--measure-s", 0, "--json", tmp_path / "check.json")
    assert done.returncode == 3
    content = json.loads((tmp_path / "check.json").read_text())
    assert {"sub-001", "sub-002"} <= set(content["unusable"])
    assert {"missing-partner", "duplicate"} <= {finding["fault"] for finding in content["findings"]}
    for case in content["unusable"]:
        assert case in done.stdout
    assert "[split]" not in done.stdout  # numbers would draw from all subjects
    assert "a split that names the subjects without a fault, which --propose FILE writes" in done.stdout


@pytest.mark.slow
def test_the_real_scans_are_checked_with_0(cli, shared_data):
    done = cli("check", shared_data / "ms-t1-t2-flair", "--source", "T1w", "--target", "T2w", "--measure-s", 0)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "of 5 subjects, 0 unusable cases" in done.stdout


@pytest.mark.parametrize("name", ["nothing", "empty"])
def test_a_folder_that_is_no_dataset_ends_with_3(cli, tmp_path, name):
    (tmp_path / "empty").mkdir()
    done = cli("check", tmp_path / name)
    assert done.returncode == 3
    assert str(tmp_path / name) in done.stderr


def test_scans_are_synthesized_with_0_and_a_broken_one_among_them_with_4(cli, tiny_run, own, tmp_path):
    cut_short(scan(own, 2))
    done = cli("synthesize", tiny_run / "model", own, "-o", tmp_path / "out", "--threads", 1)
    assert done.returncode == 4
    assert scan(own, 2).name in done.stderr
    assert "1 of 4 cases failed" in done.stderr
    assert len(list((tmp_path / "out").rglob("*.nii.gz"))) == 3
    assert str(tmp_path / "out" / "sub-001") in done.stdout
    again = cli("synthesize", tiny_run / "model", scan(own, 1), "-o", tmp_path / "out")
    assert again.returncode == 0
    assert "1 were there already" in again.stdout


def test_a_single_broken_scan_ends_with_3_and_nothing_written(cli, tiny_run, own, tmp_path):
    bad = cut_short(scan(own, 2))
    done = cli("synthesize", tiny_run / "model", bad, "-o", tmp_path / "out")
    assert done.returncode == 3
    assert str(bad) in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "out").rglob("*.nii.gz"))


def test_scans_that_are_all_broken_end_with_3(cli, tiny_run, tmp_path):
    dark = [write_nifti(tmp_path / f"{name}.nii", np.zeros((9, 9, 9), "<f4")) for name in "ab"]
    done = cli("synthesize", tiny_run / "model", *dark, "-o", tmp_path / "out")
    assert done.returncode == 3
    assert "a.nii" in done.stderr
    assert "b.nii" in done.stderr


def test_a_model_that_is_none_ends_with_5(cli, tiny_dataset, tmp_path):
    done = cli("synthesize", tmp_path, scan(tiny_dataset, 1), "-o", tmp_path / "out")
    assert done.returncode == 5
    assert "model.json" in done.stderr


@pytest.mark.parametrize("option", [("--stride", 99), ("--threads", 0)])
def test_an_option_that_leaves_voxels_out_ends_with_2(cli, tiny_run, tiny_dataset, tmp_path, option):
    done = cli("synthesize", tiny_run, scan(tiny_dataset, 1), "-o", tmp_path / "out", *option)
    assert done.returncode == 2, done.stderr
    assert not list(tmp_path.rglob("*.nii.gz"))


def test_an_output_that_cannot_be_written_ends_with_7(cli, tiny_dataset, settings_file, tmp_path):
    (tmp_path / "file").write_text("a file, not a folder")
    done = cli("train", tiny_dataset, "-o", tmp_path / "file" / "run", "--preset", "demo", "--settings", settings_file)
    assert done.returncode == 7
    assert "cannot be written" in done.stderr


def copies(dataset, subject, *names):
    """Add a subject with these files, each a copy of a scan of its contrast."""
    for name in names:
        path = dataset / f"sub-{subject}" / "anat" / f"sub-{subject}_{name}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(scan(dataset, 1, name[-3:-1]), path)


@pytest.fixture
def incomplete(own):
    """The dataset, and behind its four pairs cases that no pair can be made of."""
    copies(own, "twoPD", "run-1_PDw", "run-2_PDw", "T2w")
    copies(own, "twoT2", "PDw", "run-1_T2w", "run-2_T2w")
    copies(own, "onlyT2", "T2w")
    for number in range(12):
        copies(own, f"onlyPD{number:02d}", "PDw")
    return own


def assert_every_case_that_is_left_out_is_named(err):
    assert "sub-twoPD: several PD files" in err
    assert "sub-twoPD_run-1_PDw.nii.gz, sub-twoPD_run-2_PDw.nii.gz" in err
    assert "sub-twoT2: several T2 files" in err
    assert "1 case has no PD scan and is left out: sub-onlyT2\n" in err
    lines = [line for line in err.splitlines() if "onlyPD" in line]
    names = ", ".join(f"sub-onlyPD{number:02d}" for number in range(10))
    assert lines == [f"unscanned: 12 cases have no T2 scan and are left out: {names} and 2 more"]


def test_prepare_names_what_it_leaves_out_and_ends_with_4_for_ambiguous_cases(cli, incomplete, tmp_path):
    done = cli("prepare", incomplete, "-o", tmp_path / "out", "--prepare.shape", 32, 32, 32)
    assert done.returncode == 4
    assert_every_case_that_is_left_out_is_named(done.stderr)
    assert "2 of 6 cases failed" in done.stderr
    assert "4 cases are prepared" in done.stdout


def test_train_names_what_it_leaves_out_on_the_screen_and_in_the_model(cli, incomplete, settings_file, tmp_path):
    command = ["train", incomplete, "-o", tmp_path / "run", "--preset", "demo", "--settings", settings_file]
    done = cli(*command, "--training.epochs", 1, "--training.steps_per_epoch", 1)
    assert done.returncode == 4
    assert_every_case_that_is_left_out_is_named(done.stderr)
    provenance = json.loads((tmp_path / "run" / "model" / "model.json").read_text())["provenance"]
    assert set(provenance["left_out"]) == {"sub-twoPD", "sub-twoT2"}
    assert "several T2 files" in provenance["left_out"]["sub-twoT2"]
    assert provenance["incomplete"]["sub-onlyT2"] == "no PD scan"
    assert len(provenance["incomplete"]) == 13


def test_a_case_that_lacks_a_contrast_is_named_and_changes_no_exit_code(cli, own, tmp_path):
    copies(own, "onlyPD", "PDw")
    done = cli("prepare", own, "-o", tmp_path / "out", "--prepare.shape", 32, 32, 32)
    assert done.returncode == 0
    assert done.stderr.strip() == "unscanned: 1 case has no T2 scan and is left out: sub-onlyPD"


def test_synthesis_needs_no_target_so_that_several_targets_keep_no_scan_from_it(cli, tiny_run, incomplete, tmp_path):
    for path in (*incomplete.glob("sub-00[2-4]"), *incomplete.glob("sub-onlyPD*")):
        shutil.rmtree(path)
    done = cli("synthesize", tiny_run / "model", incomplete, "-o", tmp_path / "out")
    assert done.returncode == 4
    assert {path.name.partition("_")[0] for path in (tmp_path / "out").rglob("*.nii.gz")} == {"sub-001", "sub-twoT2"}
    assert f"{incomplete}: sub-twoPD: several PD files" in done.stderr
    assert "1 of 3 cases failed" in done.stderr
    assert "onlyT2" not in done.stderr


def test_the_verbs_lead_one_after_another_from_simulated_heads_to_a_report(cli, settings_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    chosen = ("--preset", "demo", "--settings", settings_file, "--prepare.percentile", 99)
    for command in (
        ("simulate", "-o", "heads", "--subjects", 4, "--shape", 32, 40, 32, "--seed", 1),
        ("prepare", "heads", "-o", "prepared", *chosen),
        ("train", "heads", "-o", "run", *chosen, "--training.epochs", 1),
        ("synthesize", "run/model", "heads", "-o", "synthetic/tiny"),
        ("evaluate", "heads", "synthetic/tiny", "-o", "scores", "--split", "run/split.json", "--json", "scores.json"),
        ("report", "scores", "-o", "report.html", "--runs", "tiny=run"),
    ):
        done = cli(*command)
        assert done.returncode == 0, f"{command}: {done.stderr}"
    cases = [f"sub-{number:03d}" for number in range(1, 5)]
    assert sorted(path.name for path in Path("prepared").iterdir()) == cases
    assert {path.name for path in Path("run/model").iterdir()} == {"model.json", "model.safetensors"}
    for case in cases:
        made = nib.load(f"synthetic/tiny/{case}/anat/{case}_desc-synthetic_T2w.nii.gz")
        scanned = nib.load(f"heads/{case}/anat/{case}_PDw.nii.gz")
        assert made.shape == scanned.shape
        assert np.array_equal(made.affine, scanned.affine)
        assert np.isfinite(made.get_fdata()).all()
    content = json.loads(Path("scores.json").read_text())
    assert content == json.loads(Path("scores/evaluation.json").read_text())
    test = json.loads(Path("run/split.json").read_text())["test"]
    assert {row["subject"] for row in content["scores"]} == set(test)
    assert list(content["arms"]) == ["source", "regression", "tiny"]
    assert content["arms"]["tiny"]["head"]["mae"]["n"] == 1
    assert content["percentile"] == 99
    assert {"scores.csv", "slices.csv"} <= {path.name for path in Path("scores").iterdir()}
    page = Path("report.html").read_text(encoding="utf-8")
    assert f"sub-{test[0]}" in page
    assert "data:image/" in page
    assert "Settings of tiny" in page


def test_a_loop_of_links_is_refused_by_its_name(cli, tmp_path):
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    done = cli("check", tmp_path / "a")
    assert done.returncode == 3
    assert str(tmp_path / "a") in done.stderr


def test_a_thread_that_finds_the_disk_full_is_a_warning_in_one_line(capfd, monkeypatch):
    monkeypatch.setattr(threading, "excepthook", terminal.complain_of_thread)
    for path in ("/dev/full", "/dev/null"):
        thread = threading.Thread(target=lambda path=path: Path(path).write_text("x"))
        thread.start()
        thread.join()
    assert capfd.readouterr().err == "unscanned: warning: No space left on device\n"


def test_brackets_in_names_and_findings_are_shown_as_they_are(cli, tmp_path):
    folder = tmp_path / "study [old]"
    write_nifti(folder / "pd.nii.gz", affine=np.full((4, 4), np.nan))
    write_nifti(folder / "t2.nii.gz")
    (tmp_path / "pairs.csv").write_text("subject,PD,T2\n01,study [old]/pd.nii.gz,study [old]/t2.nii.gz\n")
    done = cli("check", tmp_path / "pairs.csv")
    assert done.returncode == 3
    assert "[old]" in done.stdout
    assert "[nan" in done.stdout


@pytest.mark.parametrize("verb", ["check", "prepare", "train", "reproduce", "evaluate"])
def test_every_verb_that_takes_contrasts_understands_both_of_their_names(cli, tiny_dataset, tmp_path, verb):
    more = {
        "check": [],
        "prepare": ["-o", tmp_path / "out", "--preset", "demo", "--dry-run"],
        "train": ["-o", tmp_path / "out", "--preset", "demo", "--dry-run"],
        "reproduce": ["-o", tmp_path / "out", "--arms", "demo", "--dry-run"],
        "evaluate": [tiny_dataset, "-o", tmp_path / "out"],
    }[verb]
    told = []
    for source, target in (("--source", "--target"), ("--data.source", "--data.target")):
        done = cli(verb, tiny_dataset, *more, source, "T9", target, "T8")
        assert "unknown option" not in done.stderr
        told.append((done.returncode, done.stdout, done.stderr))
    assert told[0] == told[1]
    assert "T9" in "".join(told[0][1:])
    assert "T8" in "".join(told[0][1:])


@pytest.mark.parametrize("verb", [*VERBS, "mend", "verify", "dicom", "benchmark"])
def test_the_help_shows_what_can_be_typed_and_nothing_of_python(cli, verb):
    text = cli(verb, "--help").stdout
    for word in ("--empty-", "default: ]", "default: (", "default: False", "default: None", "NoneType"):
        assert word not in text
    assert "default: '" not in text


def test_the_help_of_a_setting_has_its_default_in_every_preset_and_its_choices():
    command = [sys.executable, "-m", "unscanned", "reproduce", "--help"]
    text = subprocess.run(command, env={**ENVIRONMENT, "COLUMNS": "1000"}, capture_output=True, text=True).stdout
    lines = {line.split()[1]: line for line in text.splitlines() if "--" in line}
    assert "[default: 42; adv-gdl: 80; demo: 10]" in lines["--training.epochs"]
    off = "adv: off; adv-gdl: off; strong: off; strong-gan: off; unet: off"
    assert f"[default: on; {off}]" in lines["--generator.residual"]
    assert "[choices: sum, mean] [default: sum; strong: mean; strong-gan: mean]" in lines["--loss.reduction"]
    assert "[default: unset]" in lines["--prepare.spacing-mm"]
    assert "[default: 224 224 128; demo: 96 112 96]" in lines["--prepare.shape"]
    assert "adv, adv-gdl, demo, resgan, resgan-acm, strong, strong-gan, unet" in lines["--arms"]
    assert "[default: adv adv-gdl resgan resgan-acm]" in lines["--arms"]
    for name in (*GENERATORS, *DISCRIMINATORS):
        assert name in lines["--generator.name"] + lines["--discriminator.name"]


def test_a_verb_lists_only_the_settings_that_it_reads(cli):
    listed = set(re.findall(r"--([a-z]+)\.", cli("prepare", "--help").stdout))
    assert listed == {"data", "prepare"}
    refused = cli("prepare", "data", "-o", "out", "--training.epochs", "3")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr == "unscanned: --training.epochs: unknown option. See unscanned prepare --help.\n"


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("1", 1),
        ("0", 0),
        ("1.5", 1.5),
        ("true", True),
        ("[1, 1, 2]", [1, 1, 2]),
        ("batch", "batch"),
        ("1.2.3", "1.2.3"),
    ],
)
def test_options_of_an_architecture_are_typed_as_in_json(word, value):
    command, bound, _ = app.parse_args(["train", "data", "-o", "out", "--generator.options.width", word])
    assert command.__name__ == "train"
    options = overrides(bound.arguments["given"])["generator"]["options"]
    assert options == {"width": value}
    assert type(options["width"]) is type(value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("trian data", r"trian: no such verb; expected one of audit, benchmark, .*\. Did you mean train\?"),
        ("--nothing", r"--nothing: unknown option\. See unscanned --help\."),
        ("train", r"DATASET: must be given\. See unscanned train --help\."),
        ("train data", r"--out: must be given\. See unscanned train --help\."),
        ("train data -o", r"-o: a value is missing\. See unscanned train --help\."),
        ("train data -o a -o b", r"-o: given more than once\. .*"),
        ("train data other -o a", r"more words than the verb takes; found other\. .*"),
        (
            "train data -o a --training.epoch 3",
            r"--training\.epoch: unknown option\. Did you mean --training\.epochs\? .*",
        ),
        ("train data -o a --training.epochs many", r"--training\.epochs: a .* kind; found 'many', expected integer"),
        ("train data -o a --training.epochs 1.5", r"--training\.epochs: a .* kind; found '1.5', expected integer"),
        ("train data -o a --prepare.shape 8 8.4 8", r"--prepare\.shape: a .* kind; found '8.4', expected integer"),
        ("reproduce data -o a --seeds 0 inf", r"--seeds: a .* kind; found 'inf', expected integer"),
        ("train data -o a --training.beta1 x", r"--training\.beta1: a value .* kind; found 'x', expected number"),
        ("train data -o a --prepare.shape 3 4", r"--prepare\.shape: values are missing; found 2, expected 3\. .*"),
        ("check data --layout bidz", r"--layout: a .* kind; found 'bidz', expected one of auto, .*Did you mean bids\?"),
        ("train data -o a --generator.residual=maybe", r"--generator\.residual: .*'maybe', expected true or false"),
    ],
)
def test_wrong_words_are_refused_as_anything_else_is(cli, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    done = cli(*words.split())
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(f"unscanned: {message}\n", done.stderr), done.stderr


def test_no_message_has_the_name_of_an_exception_or_a_bare_number_of_the_system(cli, tmp_path, tiny_dataset, tiny_run):
    odd = tmp_path / "odd"
    (odd / "model").mkdir(parents=True)
    for name, content in {
        "empty": b"",
        "bytes": b"\xff\xfe\x00",
        "list.json": b"[1, 2]",
        "lacks.json": b'{"train": ["1"]}',
        "none.json": b'{"train": null, "validation": 3, "test": []}',
        "bad.toml": b"[training\n",
        "typed.toml": b"[training]\nepochs = true\nworkers = []\n[prepare]\nshape = {}\n",
        "text.csv": b"\xff,PD,T2\n",
        "model/model.json": b"[]",
    }.items():
        (odd / name).write_bytes(content)
    shutil.copytree(tiny_run / "model", odd / "lacks")
    (odd / "lacks" / "model.safetensors").unlink()
    scan_ = scan(tiny_dataset, 1)
    shutil.copy(scan_, odd / "scan_desc-synthetic_T2w.nii.gz")
    (odd / "scan_desc-synthetic_T2w.json").write_text('{"Intensity": 3, "Synthesis": null}')
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "dataset_description.json").write_text('{"GeneratedBy": 3}')
    out, locked = tmp_path / "out", odd / "empty"
    calls = [
        ("check", odd / "missing.csv"),
        ("check", odd / "text.csv"),
        ("check", odd / "empty"),
        *(("train", tiny_dataset, "-o", out, "--settings", odd / name) for name in ("missing.toml", "model", "bytes")),
        *(("train", tiny_dataset, "-o", out, "--settings", odd / name) for name in ("bad.toml", "typed.toml")),
        *(
            ("train", tiny_dataset, "-o", out, "--preset", "demo", "--split.file", odd / name)
            for name in ("missing.json", "bytes", "list.json", "lacks.json", "none.json", "model")
        ),
        ("train", tiny_dataset, "-o", locked, "--preset", "demo"),
        *(("synthesize", odd / name, scan_, "-o", out) for name in ("missing", "model", "lacks", "bytes")),
        ("synthesize", tiny_run, scan_, "-o", foreign),
        ("synthesize", tiny_run, odd / "missing.nii", odd / "empty", "-o", out),
        ("verify", odd / "missing.nii.gz"),
        ("verify", odd / "scan_desc-synthetic_T2w.nii.gz"),
        ("evaluate", tiny_dataset, odd, "-o", out),
        ("evaluate", tiny_dataset, odd / "missing", "-o", out, "--split", odd / "none.json"),
        ("report", odd / "missing"),
        ("report", odd),
        ("mend", odd / "missing.nii", "-o", out / "a.nii"),
        ("dicom", odd / "scan_desc-synthetic_T2w.nii.gz", odd, "-o", out),
        ("simulate", "-o", out, "--labels", odd / "missing"),
    ]
    for words in calls:
        done = cli(*words)
        told = done.stdout + done.stderr
        assert done.returncode not in (0, 1), (words, told)
        assert not re.search(
            r"\[Errno|\b[A-Z]\w*(Error|Exception)\b|NoneType|\bNone\b|\bdict\b|'int'|Traceback", told
        ), told


@pytest.fixture
def told_at_once(monkeypatch):
    """Lines about progress come each time in place of each minute."""
    monkeypatch.setattr("unscanned.cli.running.LINE_EVERY_S", 0.0)


def lines(done):
    found = [line for line in done.stderr.splitlines() if re.search(r": \d+%", line)]
    shares = [int(re.search(r": (\d+)%", line)[1]) for line in found]
    assert shares == sorted(shares)
    assert max(shares) < 100
    return "\n".join(found)


def test_without_a_terminal_training_says_now_and_then_how_far_it_is(
    cli, told_at_once, tiny_dataset, settings_file, tmp_path
):
    done = cli("train", tiny_dataset, "-o", tmp_path / "run", "--preset", "demo", "--settings", settings_file)
    assert done.returncode == 0
    told = lines(done)
    for stage in (
        "prepare: sub-001",
        "epoch 1 of 2, L1",
        "epoch 1 of 2, validation",
        "epoch 2 of 2, validation",
        "profile of the training scans",
    ):
        assert f"unscanned: {stage}" in told


def test_the_experiment_says_which_arm_of_how_many_and_what_stage(
    cli, told_at_once, tiny_dataset, settings_file, tmp_path
):
    text = re.sub(r"(?m)^(preset|residual|stages|training_input|folds) = .*$", "", settings_file.read_text())
    (tmp_path / "mine.toml").write_text(text)
    command = ["reproduce", tiny_dataset, "-o", tmp_path / "out", "--settings", tmp_path / "mine.toml"]
    done = cli(*command, "--arms", "resgan", "resgan-acm")
    assert done.returncode == 0, done.stderr
    told = lines(done)
    for stage in (
        "arm 1 of 2, resgan: training, epoch 1 of 2, L1",
        "arm 2 of 2, resgan-acm: training, stage 1 of 2, fold 2 of 2, epoch 2 of 2, validation",
        "arm 2 of 2, resgan-acm: training, context of stage 2, sub-0",
        "arm 2 of 2, resgan-acm: training, stage 2 of 2, epoch 2 of 2, L1",
        "arm 2 of 2, resgan-acm: synthesis, scan 1 of 1, sub-00",
        "scores, sub-00",
        "report, sub-00",
    ):
        assert f"unscanned: {stage}" in told


def test_short_work_without_a_terminal_says_nothing_but_its_results(cli, tiny_dataset):
    done = cli("check", tiny_dataset, "--measure-s", 0)
    assert done.stderr == ""


def test_a_bar_never_shows_that_all_is_done_while_work_goes_on(tiny_dataset, tmp_path):
    shown = in_a_terminal("simulate", "-o", tmp_path / "heads", "--subjects", 3, "--shape", 16, 16, 16)
    assert "99%" in shown
    assert "100%" not in shown


def in_a_terminal(*arguments):
    """What a verb writes into a terminal of 100 columns."""
    process, terminal_ = pty.fork()
    if process == 0:
        environment = {**ENVIRONMENT, "COLUMNS": "100", "TERM": "xterm"}
        os.execve(sys.executable, [sys.executable, "-m", "unscanned", *map(str, arguments)], environment)
    shown = b""
    with contextlib.suppress(OSError):  # how Linux says that the other side has gone
        while data := os.read(terminal_, 65536):
            shown += data
    os.close(terminal_)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0
    return shown.decode()


def test_the_time_left_follows_the_pace_of_the_last_minutes():
    now = [0.0]
    pace = Pace(lambda: now[0])
    assert pace(0, 100) == Now(0.0, "0%", "")
    for second in range(1, 11):
        now[0] = second
        last = pace(second, 100)
    assert last == Now(0.1, "10%", "2 min left")
    now[0] = 10.1
    assert pace(60, 100).left == ""  # what was there already says nothing about the pace
    for second in range(11, 31):
        now[0] = second
        last = pace(60 + (second - 10) / 2, 100)
    assert last == Now(0.7, "70%", "60 s left")
    assert pace(100, 100).percent == "99%"
    assert pace(0, 0) == Now(0.0, "0%", "")


def test_an_interrupted_synthesis_counts_scans(tiny_run, tiny_dataset, tmp_path):
    def stop():
        return any((tmp_path / "out").rglob("sub-001*.nii.gz"))

    scans = list_inputs([tiny_dataset], source="PD", target="T2")[0]
    with pytest.raises(Interrupted, match=r"found 1 of 4 scans done\. "):
        synthesize(load_model(tiny_run), scans, tmp_path / "out", progress=interruptible(None, stop, "out"))


def test_files_with_odd_names_are_named_where_a_folder_is_synthesized(cli, own, tiny_run, tmp_path):
    for name in ("notes_of_me.nii.gz", "copy.nii"):
        shutil.copy(scan(own, 1), own / name)
    done = cli("synthesize", tiny_run, own, "-o", tmp_path / "out")
    assert done.returncode == 0
    assert f"{own}: passed over copy.nii, notes_of_me.nii.gz: this file's name does not fit the layout" in done.stderr


def test_a_spacing_that_both_scans_of_a_pair_have_is_told_once(cli, tmp_path):
    for contrast in ("PD", "T2"):
        rng = np.random.default_rng(len(contrast))
        array = rng.uniform(0, 100, (24, 24, 24))
        array[6:18, 6:18, 6:18] += 900
        write_nifti(tmp_path / f"sub-1_{contrast}w.nii.gz", array + ord(contrast[0]), affine=np.diag([8.0, 8, 8, 1]))
    assert cli("check", tmp_path, "--measure-s", 0).stdout.count("│ spacing │") == 1


def test_an_arm_without_a_name_has_that_of_its_folder_or_link(cli, tmp_path, monkeypatch):
    for made in ("first", "second"):
        (tmp_path / made / "synthetic").mkdir(parents=True)
        (tmp_path / f"{made}-arm").symlink_to(tmp_path / made / "synthetic")
    links = [str(tmp_path / "first-arm"), str(tmp_path / "second-arm")]
    assert [*named_folders(links)] == ["first-arm", "second-arm"]
    assert [*named_folders([f"a={links[0]}", links[1]])] == ["a", "second-arm"]
    assert named_folders(["runs/lr=1e-4/synthetic"]) == {"synthetic": Path("runs/lr=1e-4/synthetic")}
    monkeypatch.chdir(tmp_path / "first")
    assert [*named_folders([".", "synthetic/"])] == ["first", "synthetic"]
    done = cli("evaluate", tmp_path, *(tmp_path / made / "synthetic" for made in ("first", "second")), "-o", "out")
    assert done.returncode == 2
    assert "two folders have one name" in done.stderr
