"""Cohorts through a real Slurm: two nodes on this machine, by configuration. Skipped where Slurm cannot run."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest
from cohorts import start, statuses, volumes, wait_for, write_scans

from unscanned.cluster.summary import read_summary

HANGS = """
import os, time
names = ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID") if "SLURM_ARRAY_JOB_ID" in os.environ else ("SLURM_JOB_ID",)
_open = os.open
def open(path, *given, **more):
    if "{mark}" in str(path):
        try:
            with os.fdopen(_open("{flag}", os.O_CREAT | os.O_EXCL | os.O_WRONLY), "w") as flag:
                flag.write("_".join(map(os.environ.get, names)))
            time.sleep(3600)  # the first time only, until the time limit
        except FileExistsError:
            pass
    return _open(path, *given, **more)
os.open = open
"""

CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
SlurmctldPort={ports[0]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=10
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
MpiDefault=none
KillWait=5
OverTimeLimit=0
SchedulerParameters=sched_interval=2,bf_interval=2
NodeName=node1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=1 RealMemory=6000 State=UNKNOWN
NodeName=node2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=1 RealMemory=6000 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(os.getuid() != 0, reason="Slurm's daemons run as root in these tests"),
]


class CannotRunError(Exception):
    """Slurm is not installed, or does not come up or run a job here: what was seen."""


@contextlib.contextmanager
def running_slurm(folder):
    """Yield the environment of the users of a Slurm of two nodes of one core each.

    Raises:
        CannotRunError: A job that does nothing does not come to its end. From there on, what fails is our own fault.
    """
    tools = ("munged", "munge", "slurmctld", "slurmd", "sbatch", "sinfo", "scontrol")
    if missing := [tool for tool in tools if not shutil.which(tool)]:
        raise CannotRunError(f"not installed (Debian: slurm-wlm and munge): {', '.join(missing)}")
    (folder / "state").mkdir()
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o600)
    folder.chmod(0o755)
    host = socket.gethostname().partition(".")[0]  # as Slurm shortens it
    configuration = folder / "slurm.conf"
    configuration.write_text(CONFIGURATION.format(host=host, folder=folder, ports=_free_ports(3)))
    # Nothing here uses cgroups, but slurmd looks for them; this plugin alone is content where there are none.
    (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
    environment = {**os.environ, "SLURM_CONF": str(configuration)}
    munge = ["munged", "--foreground", "--force", f"--key-file={key}", f"--socket={folder}/munge.socket"]
    munge += [f"--{name}-file={folder}/munged.{name}" for name in ("pid", "log", "seed")]
    with contextlib.ExitStack() as stack:
        daemons = []

        def begin(*command):
            with open(folder / f"{command[0]}-{len(daemons)}.said", "w") as said:
                daemons.append(subprocess.Popen(command, env=environment, stdout=said, stderr=said))
            stack.callback(daemons[-1].wait, timeout=60)
            stack.callback(daemons[-1].terminate)

        def wait_until(expected, *asked):
            until = time.monotonic() + 60
            while True:
                is_over = time.monotonic() > until or any(daemon.poll() is not None for daemon in daemons)
                said = subprocess.run(asked, env=environment, capture_output=True, text=True)
                if said.returncode == 0 and expected in said.stdout:
                    return
                if is_over:
                    raise CannotRunError(_seen(asked, said.stdout + said.stderr, folder))
                time.sleep(0.3)

        begin(*munge)
        wait_until("", "munge", "-n", "-o", "/dev/null", "-S", folder / "munge.socket")
        begin("slurmctld", "-D", "-c")
        wait_until("is UP", "scontrol", "ping")
        for node in ("node1", "node2"):
            begin("slurmd", "-D", "-N", node)
        wait_until("idle 2", "sinfo", "-h", "-o", "%T %D")
        stack.callback(subprocess.run, ["scancel", "--user=root"], env=environment, capture_output=True)
        for node in ("node1", "node2"):
            wait_until("", "sbatch", "-w", node, "-o", "/dev/null", f"--wrap=touch {folder}/ran-{node}")
        wait_until("", "ls", folder / "ran-node1", folder / "ran-node2")
        yield environment


def _seen(asked, answer, folder):
    """Return what is known of a Slurm that does not come up, with the ends of what its daemons said."""
    files = [*folder.glob("*.said"), *folder.glob("munged.log")]
    said = "; ".join(f"{path.stem}: {path.read_text(errors='replace').strip()[-300:]}" for path in sorted(files))
    return f"`{' '.join(map(str, asked))}` answers {answer.strip()!r}. {said}"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """The environment of the users of a Slurm; where it cannot run, the tests are skipped."""
    with contextlib.ExitStack() as stack:
        try:
            environment = stack.enter_context(running_slurm(tmp_path_factory.mktemp("slurm")))
        except CannotRunError as error:
            pytest.skip(f"Slurm cannot run here: {error}")
        yield environment


@pytest.fixture
def slurm(cluster):
    """The same with an empty queue: a test that fails leaves its jobs to no other."""
    yield cluster
    call(cluster, "scancel", "--user=root")
    wait_for(lambda: not call(cluster, "squeue", "-h"))


def _free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def call(environment, *words):
    done = subprocess.run([*map(str, words)], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def hanging(folder, mark, environment):
    """Return the environment with a scan that hangs the first time it is opened."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(HANGS.format(mark=mark, flag=folder / "hung"))
    paths = [str(folder), *filter(None, [environment.get("PYTHONPATH")])]
    return {**environment, "PYTHONPATH": os.pathsep.join(paths), "HUNG": str(folder / "hung")}


def states(environment, job):
    """Return the states of a job's tasks that Slurm still knows."""
    said = call(environment, "scontrol", "-o", "show", "job", job)
    return [word.split("=")[1] for line in said.splitlines() for word in line.split() if word.startswith("JobState=")]


def hung_job(environment):
    """Return the number of the job that met the scan that hangs; empty before."""
    flag = Path(environment["HUNG"])
    return flag.read_text() if flag.exists() else ""


def bring_to_its_limit(environment, job):
    """Bring a running job's end near: limits are whole minutes, one is too long, and `now` is past when it arrives."""
    call(environment, "scontrol", "update", f"JobId={job}", "EndTime=now+10seconds")


def test_an_array_job_outlives_a_task_put_back_into_the_queue_and_one_killed_by_its_time_limit(
    slurm, tiny_run, tiny_dataset, tmp_path, cli
):
    dataset, out, jobs = write_scans(tiny_dataset, tmp_path / "in", 12), tmp_path / "out", tmp_path / "jobs"
    words = ["synthesize", tiny_run, dataset, "-o", out, "--force", "--emit", "slurm", jobs]
    assert cli(*words).returncode == 0
    environment = hanging(tmp_path / "hangs", "sub-008_PDw", slurm)
    script = ["sbatch", "--parsable", "--array=0-1", "--time=10", "--mem=2000", jobs / "array.sh"]
    job = call(environment, *script).strip()
    wait_for(lambda: [name for name in volumes(out) if "sub-000" in str(name)])  # task 0 begins with it
    call(environment, "scontrol", "requeue", f"{job}_0")
    wait_for(lambda: hung_job(environment), 300)
    bring_to_its_limit(environment, hung_job(environment))
    wait_for(lambda: "TIMEOUT" in states(environment, job), 300)
    wait_for(lambda: not {"RUNNING", "PENDING", "COMPLETING"}.intersection(states(environment, job)), 300)
    audit = cli("audit", out)
    assert audit.returncode == 4
    assert "sub-008_PDw.nii.gz: missing: taken up by" in audit.stderr

    text = (jobs / "array.sh").read_text()
    (jobs / "array.sh").write_text(text.replace(f"take {jobs} ", f"take {jobs} --lost-after-s 1 "))
    before = volumes(out)
    again = call(environment, *script).strip()
    wait_for(lambda: set(states(environment, again)) == {"COMPLETED"}, 300)
    audit = cli("audit", out)
    assert audit.returncode == 0, audit.stderr
    after = volumes(out)
    assert len(after) == 12
    assert {name: after[name] for name in before} == before


def test_workers_that_are_jobs_of_slurm_outlive_a_requeued_job_and_one_killed_by_its_time_limit(
    slurm, tiny_run, tiny_dataset, tmp_path, cli
):
    pytest.importorskip("dask_jobqueue")
    dataset, out = write_scans(tiny_dataset, tmp_path / "in", 16), tmp_path / "out"
    environment = hanging(tmp_path / "hangs", "sub-005_PDw", slurm)
    environment |= {"DASK_JOBQUEUE__SLURM__WALLTIME": "00:10:00", "DASK_JOBQUEUE__SLURM__MEMORY": "2GiB"}
    words = ["synthesize", tiny_run, dataset, "-o", out, "--force", "--cluster", "slurm:2"]
    client = start(*words, environment=environment)
    try:
        wait_for(lambda: hung_job(environment) and len(volumes(out)) >= 2, 300)
        other, *_ = {*call(environment, "squeue", "-h", "-t", "R", "-o", "%A").split()} - {hung_job(environment)}
        call(environment, "scontrol", "requeue", other)
        bring_to_its_limit(environment, hung_job(environment))
        _, complained = client.communicate(timeout=600)
    finally:
        client.send_signal(signal.SIGKILL)
    assert client.returncode == 0, complained
    # A job may be killed between a volume and its word on it: then the next one finds it there.
    assert set(statuses(out)) <= {"written", "skipped"}
    assert len(volumes(out)) == len(read_summary(out)) == 16
    assert all(row.worker.startswith("SLURMCluster") for row in read_summary(out).values())
    assert cli("audit", out).returncode == 0


@pytest.mark.parametrize("daemon", ["munged", "slurmctld", "slurmd"])
def test_a_daemon_that_does_not_start_is_told_with_what_it_said(slurm, daemon, tmp_path, monkeypatch):
    broken = tmp_path / "bin" / daemon
    broken.parent.mkdir()
    broken.write_text("#!/bin/sh\necho no such capability here; exit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", f"{broken.parent}:{os.environ['PATH']}")
    (tmp_path / "slurm").mkdir()
    with pytest.raises(CannotRunError, match="no such capability here"), running_slurm(tmp_path / "slurm"):
        pass


def test_a_tool_that_is_not_installed_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(shutil, "which", lambda tool: None if tool == "slurmd" else tool)
    with pytest.raises(CannotRunError, match=r"not installed .*: slurmd"), running_slurm(tmp_path):
        pass
