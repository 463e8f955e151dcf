"""A cohort as an array job: tasks are forks of this process here, which start at once; test_slurm has whole ones."""

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from cohorts import statuses, volumes, wait_for, write_scans

from unscanned.cli import main
from unscanned.cluster.summary import CLAIMS, read_summary
from unscanned.errors import DatasetError, ResourceError
from unscanned.files import read_json, write_json
from unscanned.synthesis.array_job import take_scans


def start(*words, deadly=None):
    """Start `unscanned` in a fork; it dies where it opens a file with the deadly word in its path."""
    process = multiprocessing.get_context("fork").Process(target=_alone, args=([str(word) for word in words], deadly))
    process.start()
    return process


def _alone(words, deadly):
    def die(event, arguments):
        if event == "open" and deadly in str(arguments[0]):
            os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does when memory is short

    torch.set_num_threads(1)  # the threads of the process before are not in this one
    if deadly:
        sys.addaudithook(die)
    os._exit(main(words))


def ended(task):
    """The exit code of a task."""
    task.join(240)
    return task.exitcode


@pytest.fixture
def emitted(tiny_run, tiny_dataset, tmp_path, cli):
    """A cohort of six scans whose list is written: (folder of the list, folder of the outputs)."""
    dataset = write_scans(tiny_dataset, tmp_path / "in", 6)
    words = ["synthesize", tiny_run, dataset, "-o", tmp_path / "out", "--force", "--emit", "slurm", tmp_path / "jobs"]
    done = cli(*words)
    assert done.returncode == 0, done.stderr
    return tmp_path / "jobs", tmp_path / "out"


def test_the_script_is_one_that_bash_takes_and_nothing_is_made(emitted, cli):
    jobs, out = emitted
    subprocess.run(["bash", "-n", jobs / "array.sh"], check=True)
    assert "#SBATCH --array=0-0" in (jobs / "array.sh").read_text()
    assert len((jobs / "scans.jsonl").read_text().splitlines()) == 6
    assert not volumes(out)
    assert statuses(out) == {"waiting": 6}
    audit = cli("audit", out)
    assert audit.returncode == 4
    assert "6 of 6 scans have no output that is whole" in audit.stderr
    assert "missing: not taken up yet" in audit.stderr


@pytest.mark.slow
def test_two_tasks_share_the_list_and_a_third_finds_nothing_left(emitted, cli):
    jobs, out = emitted
    both = [start("take", jobs, "--task", number, "--tasks", 2) for number in range(2)]
    assert [ended(task) for task in both] == [0, 0]
    rows = read_summary(out)
    assert {row.status for row in rows.values()} == {"written"}
    assert len({row.worker for row in rows.values()}) == 2
    assert cli("audit", out).returncode == 0
    before = volumes(out)
    third = cli("take", jobs, "--task", 1, "--tasks", 2)
    assert (third.returncode, third.stdout) == (0, "0 written, 0 were there already\n")
    assert volumes(out) == before


@pytest.mark.slow
def test_outputs_that_were_removed_are_made_again_with_their_summary(emitted, cli):
    jobs, out = emitted
    shutil.rmtree(out)
    done = cli("take", jobs)
    assert (done.returncode, done.stdout) == (0, "6 written, 0 were there already\n"), done.stderr
    assert cli("audit", out).returncode == 0


@pytest.mark.slow
def test_the_scan_of_a_killed_task_is_taken_up_and_a_deadly_one_given_up(tiny_run, tiny_dataset, tmp_path, cli):
    dataset, out, jobs = write_scans(tiny_dataset, tmp_path / "in", 4), tmp_path / "out", tmp_path / "jobs"
    words = ["synthesize", tiny_run, dataset, "-o", out, "--force", "--emit", "slurm", jobs]
    assert cli(*words).returncode == 0
    for code in (*3 * [-signal.SIGKILL], 4):
        assert ended(start("take", jobs, "--lost-after-s", 0.5, deadly="sub-001_PDw")) == code
        time.sleep(0.6)  # now the claim of a killed task counts as lost
    assert statuses(out) == {"failed": 1, "written": 3}
    audit = cli("audit", out, "--json", tmp_path / "audit.json")
    assert audit.returncode == 4
    rows = {row["output"]: row for row in read_json(tmp_path / "audit.json")["scans"]}
    assert "given up" in rows["sub-001/anat/sub-001_desc-synthetic_T2w.nii.gz"]["reason"]


@pytest.mark.slow
def test_a_task_that_is_told_to_stop_gives_its_scan_back(emitted):
    jobs, out = emitted
    task = start("take", jobs)
    wait_for(lambda: [*(out / CLAIMS).glob("*.claim")])
    os.kill(task.pid, signal.SIGTERM)
    assert ended(task) == 143
    assert not [*(out / CLAIMS).glob("*.claim")]


def test_what_is_no_list_and_the_list_of_another_version_are_refused(emitted, tmp_path):
    jobs, _ = emitted
    with pytest.raises(DatasetError, match="no list of scans"):
        take_scans(tmp_path)
    write_json(jobs / "cohort.json", {**read_json(jobs / "cohort.json"), "unscanned": "9.9"})
    with pytest.raises(ResourceError, match="another version of unscanned wrote the list"):
        take_scans(jobs)


@pytest.mark.parametrize("words", [("--cluster", "local"), ("--overwrite",)])
def test_what_does_not_go_together_with_a_script_is_refused(words, tiny_run, tiny_dataset, tmp_path, cli):
    done = cli("synthesize", tiny_run, tiny_dataset, "-o", tmp_path / "o", "--emit", "slurm", tmp_path / "j", *words)
    assert done.returncode == 2
    assert "does not go together with --emit" in done.stderr
    assert not os.path.exists(tmp_path / "j")
