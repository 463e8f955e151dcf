"""Cohorts through a real Slurm: two nodes on this machine, by configuration. Skipped where Slurm cannot run.

Debian has it: apt-get install slurm-wlm munge.
"""

import os
import shutil
import signal
import socket
import subprocess
import time

import pytest
from cohorts import start, statuses, volumes, wait_for, write_scans

from unscanned.cluster.summary import read_summary

HANGS = """
import os, time
_open = os.open
def open(path, *given, **more):
    if "{mark}" in str(path):
        try:
            os.close(_open("{flag}", os.O_CREAT | os.O_EXCL))
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
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,bf_interval=1
ReturnToService=2
KillWait=5
OverTimeLimit=0
NodeName=node1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=1 RealMemory=3000 State=UNKNOWN
NodeName=node2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=1 RealMemory=3000 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """A Slurm of two nodes of one core each: the environment of its users."""
    if missing := [program for program in PROGRAMS if shutil.which(program) is None]:
        pytest.skip(f"Slurm is not installed (Debian: slurm-wlm and munge): no {', '.join(missing)}")
    if os.getuid() != 0:
        pytest.skip("Slurm's daemons need root")
    folder = tmp_path_factory.mktemp("slurm")
    (folder / "state").mkdir()
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o600)
    folder.chmod(0o755)
    configuration = folder / "slurm.conf"
    configuration.write_text(CONFIGURATION.format(host=socket.gethostname(), folder=folder, ports=_free_ports(3)))
    environment = {**os.environ, "SLURM_CONF": str(configuration)}
    munge = ["munged", "--foreground", "--force", f"--key-file={key}", f"--socket={folder}/munge.socket"]
    munge += [f"--{name}-file={folder}/munged.{name}" for name in ("pid", "log", "seed")]
    commands = [munge, ["slurmctld", "-D", "-c"], ["slurmd", "-D", "-N", "node1"], ["slurmd", "-D", "-N", "node2"]]
    daemons = []
    try:
        for command in commands:
            with open(folder / f"{len(daemons)}.txt", "w") as said:
                daemons.append(subprocess.Popen(command, env=environment, stdout=said, stderr=said))
            time.sleep(1)
        if fault := _fault(environment, folder, daemons):
            pytest.skip(f"Slurm does not run here: {fault}")
        yield environment
    finally:
        subprocess.run(["scancel", "--user=root"], env=environment, capture_output=True, timeout=60)
        for daemon in reversed(daemons):
            daemon.terminate()
            daemon.wait(timeout=60)


def _fault(environment, folder, daemons):
    """Return what keeps Slurm itself from running a job, such as a container's limits; None where it runs one."""

    def run(*command):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        return done.returncode, f"{done.stdout}{done.stderr}".strip()

    def said(number):
        return f"{daemons[number].args[0]} said: {(folder / f'{number}.txt').read_text().strip()[-500:]}"

    try:
        socket.getaddrinfo(socket.gethostname(), None)
    except OSError as error:
        return f"the machine's own name {socket.gethostname()} leads nowhere: {error}"
    for _ in range(60):
        for number, daemon in enumerate(daemons):
            if daemon.poll() is not None:
                return f"{daemon.args[0]} ended with {daemon.returncode}; {said(number)}"
        code, nodes = run("sinfo", "-h", "-o", "%T %D")
        if (code, nodes) == (0, "idle 2"):
            break
        time.sleep(1)
    else:
        return f"after a minute its nodes are: {nodes}; {said(1)}; {said(2)}"
    command = ["sbatch", "--wait", "--time=1", "--mem=100", "--output=/dev/null", "--wrap=true"]
    try:
        code, told = run(*command)
    except subprocess.TimeoutExpired:
        code, told = None, "it does not end"
    return None if code == 0 else f"a job that does nothing fails: {told}; {said(2)}; {said(3)}"


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
    return {**environment, "PYTHONPATH": os.pathsep.join(paths)}


def states(environment, job):
    """Return the states of a job's tasks that Slurm still knows."""
    said = call(environment, "scontrol", "-o", "show", "job", job)
    return [word.split("=")[1] for line in said.splitlines() for word in line.split() if word.startswith("JobState=")]


def test_an_array_job_outlives_a_task_put_back_into_the_queue_and_one_killed_by_its_time_limit(
    slurm, tiny_run, tiny_dataset, tmp_path, cli
):
    dataset, out, jobs = write_scans(tiny_dataset, tmp_path / "in", 12), tmp_path / "out", tmp_path / "jobs"
    words = ["synthesize", tiny_run, dataset, "-o", out, "--force", "--emit", "slurm", jobs]
    assert cli(*words).returncode == 0
    environment = hanging(tmp_path / "hangs", "sub-008_PDw", slurm)
    script = ["sbatch", "--parsable", "--array=0-1", "--time=1", "--mem=2000", jobs / "array.sh"]
    job = call(environment, *script).strip()
    wait_for(lambda: len(volumes(out)) >= 2)
    call(environment, "scontrol", "requeue", f"{job}_0")
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
    environment |= {"DASK_JOBQUEUE__SLURM__WALLTIME": "00:01:00", "DASK_JOBQUEUE__SLURM__MEMORY": "2GiB"}
    words = ["synthesize", tiny_run, dataset, "-o", out, "--force", "--cluster", "slurm:2"]
    client = start(*words, environment=environment)
    try:
        wait_for(lambda: len(volumes(out)) >= 2, 300)
        running = call(environment, "squeue", "-h", "-t", "R", "-o", "%A").split()
        call(environment, "scontrol", "requeue", running[0])
        _, complained = client.communicate(timeout=600)
    finally:
        client.send_signal(signal.SIGKILL)
    assert client.returncode == 0, complained
    # A job may be killed between a volume and its word on it: then the next one finds it there.
    assert set(statuses(out)) <= {"written", "skipped"}
    assert len(volumes(out)) == len(read_summary(out)) == 16
    assert (tmp_path / "hangs" / "hung").exists()
    assert all(row.worker.startswith("SLURMCluster") for row in read_summary(out).values())
    assert cli("audit", out).returncode == 0
