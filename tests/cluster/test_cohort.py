"""A cohort on the workers of one machine: nothing is lost, nothing is made twice, and everything is said."""

import itertools
import json
import logging
import os
import shutil
import signal
import statistics
import time

import pytest
from cohorts import Halves, deadly, halves, resident_mib, start, statuses, volumes, wait_for, workers_of, write_scans
from psutil import Process

from unscanned.cluster.cases import in_order, map_cases
from unscanned.cluster.summary import read_summary
from unscanned.cluster.workers import open_cluster
from unscanned.errors import WorkerLost
from unscanned.files import sha256
from unscanned.synthesis.array_job import emit_slurm
from unscanned.synthesis.model_file import load_model
from unscanned.synthesis.synthesize import list_inputs, synthesize

distributed = pytest.importorskip("distributed")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_cohort_outlives_a_corrupt_scan_a_deadly_one_a_killed_worker_and_a_killed_client(
    tiny_run, tiny_dataset, tmp_path, cli
):
    dataset = write_scans(tiny_dataset, tmp_path / "in", 12)
    corrupt = dataset / "sub-003" / "anat" / "sub-003_PDw.nii.gz"
    corrupt.write_bytes(corrupt.read_bytes()[:2000])
    environment = deadly(tmp_path / "deadly", "sub-005_PDw")
    out = tmp_path / "out"
    call = ["synthesize", tiny_run, dataset, "-o", out, "--cluster", "local:2", "--force"]

    first = start(*call, environment=environment)
    wait_for(lambda: len(volumes(out)) >= 2)
    os.kill(workers_of(first)[0].pid, signal.SIGKILL)
    wait_for(lambda: len(volumes(out)) >= 5)
    workers = workers_of(first)
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    wait_for(lambda: not any(worker.is_running() for worker in workers))
    before = volumes(out)

    second = start(*call, environment=environment)
    _, complained = second.communicate(timeout=300)

    assert second.returncode == 4, complained
    after = volumes(out)
    assert len(after) == 10
    assert {name: after[name] for name in before} == before
    assert "2 of 12 cases failed" in complained
    assert "dashboard http://127.0.0.1:" in complained
    rows = {row.scan.split("/")[-1]: row for row in read_summary(out).values()}
    assert statuses(out)["failed"] == 2
    assert rows["sub-003_PDw.nii.gz"].status == "failed"
    assert "the worker died with it, 3 times" in rows["sub-005_PDw.nii.gz"].reason
    audit = cli("audit", out)
    assert audit.returncode == 4
    assert "2 of 12 scans have no output that is whole" in audit.stderr
    assert not [*out.rglob(".partial-*")]

    mended = write_scans(tiny_dataset, tmp_path / "again", 12)
    corrupt.write_bytes((mended / "sub-003" / "anat" / corrupt.name).read_bytes())
    third = cli(*call[:-3], "--force")  # in this process
    assert third.returncode == 0, third.stderr
    assert len(third.stdout.splitlines()) == 3  # two were missing, the others are counted
    assert cli("audit", out).returncode == 0


@pytest.mark.slow
def test_a_cluster_makes_the_same_bits_as_this_process(tiny_run, tiny_dataset, tmp_path, cli):
    for out, words in (("here", ()), ("there", ("--cluster", "local:2"))):
        done = cli("synthesize", tiny_run, tiny_dataset, "-o", tmp_path / out, "--force", *words)
        assert done.returncode == 0, done.stderr
    here, there = (sorted((tmp_path / out).glob("sub-*/anat/*.nii.gz")) for out in ("here", "there"))
    assert [sha256(path) for path in here] == [sha256(path) for path in there]
    assert len(here) == 4


@pytest.fixture
def address():
    """The address of a scheduler of this process that has two workers, which three commands need not start anew."""
    options = {"n_workers": 2, "threads_per_worker": 1, "env": {"OMP_NUM_THREADS": "1"}}
    with distributed.LocalCluster(**options, dashboard_address=None, silence_logs=logging.CRITICAL) as running:
        yield running.scheduler_address


def test_check_prepare_and_evaluate_find_on_a_cluster_what_one_process_finds(
    tiny_run, tiny_dataset, tmp_path, cli, address
):
    """A corrupt scan is among them: its row and the exit code are the same too."""
    dataset = tmp_path / "in"
    shutil.copytree(tiny_dataset, dataset)
    corrupt = dataset / "sub-003" / "anat" / "sub-003_T2w.nii.gz"
    corrupt.write_bytes(corrupt.read_bytes()[:2000])
    synthetic = tmp_path / "synthetic"
    assert cli("synthesize", tiny_run, dataset, "-o", synthetic, "--force").returncode == 0
    codes, files = {}, {}
    for where, words in (("here", ()), ("there", ("--cluster", address))):
        out = tmp_path / where
        codes[where] = [
            cli(*call, *words).returncode
            for call in (
                ("check", dataset, "--measure-s", 0, "--json", out / "check.json"),
                ("prepare", dataset, "-o", out / "prepared", "--prepare.shape", 32, 32, 32),
                ("evaluate", dataset, f"tiny={synthetic}", "-o", out / "evaluation"),
            )
        ]
        found = json.loads((out / "check.json").read_text())
        arrays = sorted((out / "prepared").glob("*/*.npy"))
        files[where] = (
            found["usable"],
            found["unusable"],
            found["findings"],
            [(path.relative_to(out), sha256(path)) for path in arrays],
            (out / "evaluation" / "scores.csv").read_text(),
        )
    assert codes["here"] == codes["there"] == [3, 4, 4]
    assert files["here"] == files["there"]
    assert len(files["here"][3]) == 9  # source, target and head of three cases


@pytest.mark.slow
def test_the_memory_of_a_worker_does_not_grow_with_the_scans(tiny_run, tiny_dataset, tmp_path):
    resident, limit = resident_mib(tiny_dataset, tiny_run, tmp_path, 30)
    assert statistics.median(resident[20:]) < 1.05 * statistics.median(resident[10:20])
    assert max(resident) < limit / 2**20


def test_a_cohort_is_planned_without_a_read_of_its_scans(tiny_run, tmp_path):
    (tmp_path / "scan.nii.gz").touch()  # reading it would be refused
    lines = [f"s{number},scan.nii.gz\n" for number in range(5000)]
    (tmp_path / "scans.csv").write_text("subject,PD\n" + "".join(lines))
    began, opened = time.process_time(), Process().num_fds()
    scans, failures = list_inputs([tmp_path / "scans.csv"], source="PD", target="T2")
    emit_slurm(load_model(tiny_run), scans, tmp_path / "out", tmp_path / "jobs")
    assert len(read_summary(tmp_path / "out")) == 5000
    assert not failures
    assert Process().num_fds() <= opened
    assert sum(1 for _ in (tmp_path / "out").rglob("*")) + sum(1 for _ in (tmp_path / "jobs").rglob("*")) < 12
    assert time.process_time() - began < 10  # 0.5 s on a free core


@pytest.fixture(scope="module")
def ahead():
    """A worker of this machine that reads ahead, for the tests that end the file."""
    with open_cluster("local:1", device="cpu", threads=1, reads_ahead=True) as cluster:
        yield cluster


@pytest.mark.slow
def test_a_worker_that_reads_ahead_makes_the_same_bits_and_refuses_the_same_scan(
    ahead, tiny_run, tiny_dataset, tmp_path
):
    dataset, model = write_scans(tiny_dataset, tmp_path / "in", 5), load_model(tiny_run)
    corrupt = dataset / "sub-003" / "anat" / "sub-003_PDw.nii.gz"
    corrupt.write_bytes(corrupt.read_bytes()[:2000])
    scans = list_inputs([dataset], source="PD", target="T2")[0]
    here = synthesize(model, scans, tmp_path / "here", force=True)
    there = synthesize(model, scans, tmp_path / "there", force=True, cluster=ahead)
    assert [sha256(path) for path in here.written] == [sha256(path) for path in there.written]
    assert [path.name for path in here.written] == [path.name for path in there.written]
    assert len(here.written) == 4
    assert [str(error) for error in here.failures.values()] == [str(error) for error in there.failures.values()]


@pytest.mark.slow
def test_a_worker_that_reads_ahead_reads_one_case_beside_the_one_that_it_computes(ahead):
    _, moments = halves(4, ahead)
    for (_, _, _, end), (read, _, begin, _) in itertools.pairwise(moments):
        assert end <= begin  # one computes at a time
        assert read < end  # and the next is read before
    assert all(before[2] <= after[0] for before, after in zip(moments, moments[2:], strict=False))  # no more than one
    with open_cluster("local:1", device="cpu", threads=1) as cluster:
        _, moments = halves(2, cluster)
    assert moments[0][3] <= moments[1][0]


@pytest.mark.slow
def test_a_case_beside_a_deadly_one_is_not_given_up_with_it(ahead):
    found = [*in_order(map_cases(Halves(), ["one", "deadly"], names=["one", "deadly"], cluster=ahead))]
    assert found[0].error is None
    assert isinstance(found[1].error, WorkerLost)


@pytest.mark.slow
def test_a_worker_that_dies_again_15_seconds_after_a_death_comes_back():
    with open_cluster("local:1", device="cpu", threads=1) as cluster:
        for seconds in (14.6, 2.0):  # Dask looks 15 s after a death whether the worker is there: it is on its way then
            (pid,) = cluster.client.run(os.getpid).values()
            os.kill(pid, signal.SIGKILL)
            time.sleep(seconds)
        wait_for(lambda: cluster.workers, seconds=60)
        assert halves(1, cluster)[1]
