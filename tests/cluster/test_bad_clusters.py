"""What a cohort refuses, and how: clear errors in seconds, and what is finished stays."""

import dataclasses
import importlib.metadata
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
from cohorts import statuses, volumes, wait_for, write_scans

from unscanned.cluster.workers import open_cluster
from unscanned.errors import BusyError, CheckpointError, ResourceError, SettingsError
from unscanned.files import lock
from unscanned.synthesis.model_file import load_model
from unscanned.synthesis.synthesize import list_inputs, synthesize

pytest.importorskip("distributed")


@pytest.fixture
def scheduler(tmp_path):
    """A scheduler of Dask as a process of its own: its address."""
    file = tmp_path / "scheduler.json"
    words = ["--host", "127.0.0.1", "--port", "0", "--dashboard-address", "127.0.0.1:0", "--scheduler-file", str(file)]
    with subprocess.Popen([sys.executable, "-m", "distributed.cli.dask_scheduler", *words]) as process:
        try:
            yield _address(file)
        finally:
            process.terminate()


def _address(file):
    until = time.monotonic() + 60
    while not file.exists():
        assert time.monotonic() < until
        time.sleep(0.1)
    return json.loads(file.read_text())["address"]


@pytest.fixture
def worker(scheduler, tmp_path):
    """Start workers of that scheduler, each with an environment of its own."""
    started = []

    def start(**environment):
        words = ["--nthreads", "1", "--no-dashboard", "--no-nanny", "--local-directory", str(tmp_path / "scratch")]
        command = [sys.executable, "-m", "distributed.cli.dask_worker", scheduler, *words]
        started.append(subprocess.Popen(command, env={**os.environ, **environment}))

    yield start
    for process in started:
        process.terminate()
        process.wait()


@pytest.fixture
def scans(tiny_dataset):
    return list_inputs([tiny_dataset], source="PD", target="T2")[0]


@pytest.mark.parametrize("place", ["locl", "local:0", "local:two", "slurm:-1", "host", "http:/x"])
def test_a_place_that_is_no_cluster_is_refused(place):
    with pytest.raises(SettingsError, match="cluster"), open_cluster(place):
        pass


def test_a_scheduler_that_cannot_be_reached_is_told_in_seconds(tiny_run, tiny_dataset, tmp_path, cli, monkeypatch):
    monkeypatch.setattr("unscanned.cluster.workers._CONNECT_S", 2)
    began = time.monotonic()
    done = cli("synthesize", tiny_run, tiny_dataset, "-o", tmp_path / "out", "--cluster", "tcp://127.0.0.1:9")
    assert done.returncode == 7
    assert "tcp://127.0.0.1:9: the scheduler cannot be reached" in done.stderr
    assert time.monotonic() - began < 45  # the limit is 2 s; the rest is the load of this machine
    assert not volumes(tmp_path / "out")


def test_a_cohort_that_waits_for_its_first_worker_ends_at_a_signal(scheduler, tiny_run, tiny_dataset, tmp_path):
    words = ["synthesize", tiny_run, tiny_dataset, "-o", tmp_path / "out", "--cluster", scheduler]
    command = [sys.executable, "-m", "unscanned", *map(str, words)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        told = ""
        while "no worker yet" not in told:
            told += process.stderr.readline()
        wait_for(lambda: _catches(process.pid, signal.SIGTERM))
        process.terminate()
        assert process.wait(timeout=50) == 143  # without the signal it would give up after 60 s, with another code


def _catches(pid, number):
    """Whether a process has a handler of its own for a signal."""
    with open(f"/proc/{pid}/status", encoding="utf-8") as status:
        [caught] = (line.split()[1] for line in status if line.startswith("SigCgt"))
    return bool(int(caught, 16) >> (number - 1) & 1)


def test_a_slurm_that_does_not_answer_is_told_and_not_waited_for(monkeypatch, tmp_path):
    pytest.importorskip("dask_jobqueue")
    command = tmp_path / "sinfo"
    command.write_text("#!/bin/sh\necho 'Unable to contact slurm controller' >&2\nexit 1\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(ResourceError, match="slurm:1: Slurm cannot be reached; found Unable to contact"):  # noqa: SIM117
        with open_cluster("slurm:1", shared=tmp_path):
            pass


def test_without_the_software_the_line_for_pip_is_told(monkeypatch, tiny_run, tiny_dataset, tmp_path, cli):
    monkeypatch.setitem(sys.modules, "distributed", None)
    done = cli("synthesize", tiny_run, tiny_dataset, "-o", tmp_path / "out", "--cluster", "local:1")
    assert done.returncode == 7
    assert "pip install 'unscanned[cluster]'" in done.stderr


def test_a_second_cohort_on_one_output_is_refused(tiny_run, scans, tmp_path):
    with lock(tmp_path / "out"), pytest.raises(BusyError, match="in use by another run"):
        synthesize(tiny_run, scans, tmp_path / "out", cluster="local:1")


def test_a_model_that_has_no_folder_cannot_go_to_workers(tiny_run, scans, tmp_path):
    model = dataclasses.replace(load_model(tiny_run), path=None)
    with pytest.raises(SettingsError, match="it has no folder"), open_cluster("local:1") as cluster:
        synthesize(model, scans, tmp_path / "out", cluster=cluster)


@pytest.mark.slow
def test_a_worker_of_another_version_or_without_the_model_is_refused_before_any_scan(
    tiny_run, scans, scheduler, worker, tmp_path
):
    model = load_model(tiny_run)
    out = tmp_path / "out"
    metadata = importlib.metadata.distribution("unscanned")._path
    other = tmp_path / "other" / metadata.name
    shutil.copytree(metadata, other)
    text = (other / "METADATA").read_text()
    (other / "METADATA").write_text(re.sub(r"(?m)^Version: .*$", "Version: 9.9", text, count=1))
    paths = os.pathsep.join(filter(None, [str(tmp_path / "other"), os.environ.get("PYTHONPATH")]))
    worker(PYTHONPATH=paths)
    with open_cluster(scheduler) as cluster:
        with pytest.raises(ResourceError, match=r"worker .*another version of unscanned; found 9\.9"):
            synthesize(model, scans, out, cluster=cluster, force=True)
        assert not volumes(out)


@pytest.mark.slow
def test_another_model_in_the_folder_of_a_worker_is_refused_before_any_scan(tiny_run, scans, tmp_path):
    model = dataclasses.replace(load_model(tiny_run), sha256="0" * 64)
    gone = dataclasses.replace(model, path=tmp_path / "gone")
    with open_cluster("local:1") as cluster:
        with pytest.raises(CheckpointError, match=r"worker 0.*another model is in the folder"):
            synthesize(model, scans, tmp_path / "out", cluster=cluster, force=True)
        with pytest.raises(CheckpointError, match=r"worker 0.*not a model"):
            synthesize(gone, scans, tmp_path / "out", cluster=cluster, force=True)
    assert not volumes(tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize("small_disk", ["700k"], indirect=True)
def test_a_full_disk_ends_the_cohort_and_what_is_finished_stays(tiny_run, tiny_dataset, small_disk, tmp_path, cli):
    dataset = write_scans(tiny_dataset, tmp_path / "in", 12)
    out = small_disk / "out"
    done = cli("synthesize", tiny_run, dataset, "-o", out, "--cluster", "local:1", "--force")
    assert done.returncode == 7, done.stderr
    assert "worker 0@" in done.stderr
    assert "the disk is full" in done.stderr
    assert volumes(out)
    subprocess.run(["mount", "-o", "remount,size=20m", str(small_disk)], check=True)
    before = volumes(out)
    again = cli("synthesize", tiny_run, dataset, "-o", out, "--force", "--cluster", "local:1")
    assert again.returncode == 0, again.stderr
    assert {name: volumes(out)[name] for name in before} == before
    assert statuses(out)["written"] == 12
