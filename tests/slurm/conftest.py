"""A real Slurm of two virtual nodes here: brought up in a folder of its own, without systemd, and taken down.

Needs root and Debian's slurm-wlm (built so that several slurmd run on one host):
apt-get install --no-install-recommends slurm-wlm. Elsewhere these tests are skipped.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest

from vesselgan.formats.shards import Record

from ..conftest import write_shards

DAEMONS = ("munged", "slurmctld", "slurmd")
# Virtual nodes share one host, so everything that is usually a node's has a name of its own (%n). cred_expire: else a
# requeued job waits two minutes. A character device is all that Slurm asks of a GPU.
CONFIGURATION = """\
ClusterName=vesselgan
SlurmctldHost={host}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={home}/munge.socket,cred_expire=5
SlurmctldPort={ports[0]}
SlurmctldPidFile={home}/slurmctld.pid
SlurmctldLogFile={home}/slurmctld.log
SlurmdPidFile={home}/slurmd-%n.pid
SlurmdLogFile={home}/slurmd-%n.log
SlurmdSpoolDir={home}/spool-%n
StateSaveLocation={home}/state
PlugStackConfig={home}/plugstack.conf
SlurmctldParameters=preempt_send_user_signal
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,batch_sched_delay=0,bf_interval=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobCompType=jobcomp/filetxt
JobCompLoc={home}/finished.txt
MpiDefault=none
ReturnToService=2
KillWait=5
GresTypes=gpu
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=4 RealMemory=8000 Gres=gpu:2
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=4 RealMemory=8000 Gres=gpu:2
PartitionName=low Nodes=n1,n2 Default=YES PriorityTier=1 GraceTime=120
PartitionName=high Nodes=n1,n2 PriorityTier=9 PreemptMode=OFF
"""
DEVICES = "NodeName=n[1-2] Name=gpu File=/dev/null\nNodeName=n[1-2] Name=gpu File=/dev/zero\n"
PATCH_SHAPE = (16, 16, 16)
SECONDS_UP, SECONDS_DOWN, SECONDS_TO_END = 60, 30, 10


PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])


def missing_parts() -> str:
    """Why there can be no Slurm here; empty when there can."""
    lacking = [name for name in (*DAEMONS, "sbatch", "srun") if shutil.which(name, path=PATH) is None]
    if lacking:
        return f"no Slurm here ({', '.join(lacking)}): apt-get install --no-install-recommends slurm-wlm"
    return "" if os.geteuid() == 0 else "Slurm's daemons need root"


class Slurm:
    """A cluster with the nodes n1 and n2, the partition low and, preempting it, high."""

    def __init__(self) -> None:
        # Short: the name of a socket has at most 107 characters.
        self.home = Path(tempfile.mkdtemp(prefix="vg-slurm-", dir="/tmp"))
        self.environment = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM", "SBATCH"))}
        self.environment |= {"SLURM_CONF": str(self.home / "slurm.conf"), "PATH": PATH, "OMP_NUM_THREADS": "1"}
        self._daemons: list[subprocess.Popen] = []

    def start(self) -> None:
        host = socket.gethostname().split(".")[0]
        text = CONFIGURATION.format(home=self.home, host=host, ports=free_ports(3))
        (self.home / "slurm.conf").write_text(text)
        (self.home / "gres.conf").write_text(DEVICES)
        (self.home / "plugstack.conf").write_text("")
        (self.home / "state").mkdir()
        (self.home / "munge.key").write_bytes(os.urandom(128))
        (self.home / "munge.key").chmod(0o400)
        munge = [f"--{what}-file={self.home}/munge.{what}" for what in ("key", "pid", "log", "seed")]
        socket_word = f"--socket={self.home}/munge.socket"
        self._daemon("munged", "--foreground", "--force", "--num-threads=2", socket_word, *munge)
        self.wait_until((self.home / "munge.socket").exists, "munged's socket", seconds=SECONDS_UP)
        self._daemon("slurmctld", "-D", "-i")
        for node in ("n1", "n2"):
            (self.home / f"spool-{node}").mkdir()
            self._daemon("slurmd", "-D", "-N", node)
        nodes = ("sinfo", "-h", "-N", "-p", "low", "-o", "%t")
        self.wait_until(lambda: self.call(*nodes).split() == ["idle"] * 2, "nodes", seconds=SECONDS_UP)

    def stop(self) -> list[str]:
        """Take everything down; what had to be killed or was left behind, in words."""
        subprocess.run(["scancel", "--user=root"], env=self.environment, timeout=60, check=False, capture_output=True)
        until = time.monotonic() + SECONDS_DOWN
        while self.queue() and time.monotonic() < until:
            time.sleep(0.2)
        left = [f"job {job}" for job in self.queue()]
        for daemon in reversed(self._daemons):
            daemon.send_signal(signal.SIGTERM)
            try:
                daemon.wait(SECONDS_DOWN)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
                left.append(f"{daemon.args[0]} had to be killed")
        # What a killed script was waiting for, such as its last `sleep 1`, ends by itself.
        until = time.monotonic() + SECONDS_TO_END
        while processes_of(self.home) and time.monotonic() < until:
            time.sleep(0.2)
        left += [f"process {process}: {words}" for process, words in processes_of(self.home).items()]
        shutil.rmtree(self.home)
        return left

    def call(self, *words: str, cwd: Path | None = None, **settings: str) -> str:
        """A Slurm command's output; AssertionError with what it said when it fails."""
        done = subprocess.run(
            words, env=self.environment | settings, cwd=cwd, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def submit(self, *words: str, cwd: Path, **settings: str) -> str:
        """sbatch; the job's number."""
        return self.call("sbatch", "--parsable", *words, cwd=cwd, **settings).strip()

    def queue(self) -> list[str]:
        return subprocess.run(
            ["squeue", "-h", "-o", "%i %j %T %r"], env=self.environment, capture_output=True, text=True, check=False
        ).stdout.splitlines()

    def facts(self, job: str) -> dict[str, str]:
        """What scontrol knows of a job: JobState, ExitCode, Restarts and so on."""
        words = self.call("scontrol", "show", "job", "--oneliner", job).split()
        return dict(word.partition("=")[::2] for word in words if "=" in word)

    def seconds_run(self, job: str) -> float:
        """How long the job has been running since its last start."""
        started = datetime.fromisoformat(self.facts(job)["StartTime"])
        return (datetime.now() - started).total_seconds()

    def wait(self, job: str, *states: str, seconds: float = 240.0) -> dict[str, str]:
        """The job's facts once it is in one of `states` (default: ended)."""
        wanted = states or ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY")
        self.wait_until(lambda: self.facts(job)["JobState"] in wanted, f"job {job} to be {wanted}", seconds=seconds)
        return self.facts(job)

    def wait_until(self, holds: Callable[[], bool], what: str, *, seconds: float = 240.0) -> None:
        until = time.monotonic() + seconds
        while True:
            try:
                if holds():
                    return
            except AssertionError:
                if time.monotonic() > until:
                    raise
            logs = "\n".join(f"{log.name}: {log.read_text()[-1500:]}" for log in sorted(self.home.glob("*.log")))
            assert time.monotonic() < until, f"waited {seconds:g} s for {what}\n{self.queue()}\n{logs}"
            time.sleep(0.2)

    def _daemon(self, name: str, *words: str) -> None:
        with (self.home / "daemons.txt").open("a") as output:
            command = [shutil.which(name, path=self.environment["PATH"]), *words]
            self._daemons.append(
                subprocess.Popen(command, env=self.environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
            )


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, all different."""
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def processes_of(home: Path) -> dict[int, str]:
    """Processes whose command or environment names the folder: the daemons, their steps, the jobs' own."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes()
            names = words + (process / "environ").read_bytes()
        except OSError:
            continue
        if str(home).encode() in names and int(process.name) != os.getpid():
            found[int(process.name)] = words.replace(b"\0", b" ").decode(errors="replace").strip()
    return found


@pytest.fixture(scope="session")
def slurm() -> Iterator[Slurm]:
    """The cluster; the last test fails when it leaves a process behind."""
    if why := missing_parts():
        pytest.skip(why)
    cluster = Slurm()
    try:
        cluster.start()
        yield cluster
    finally:
        left = cluster.stop()
    assert left == []


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Variables for sbatch that name a site: this Python, and the one address that both nodes have."""
    path = tmp_path_factory.mktemp("site") / "site.sh"
    path.write_text(f"PYTHON=('{sys.executable}')\nMPI=pmi2\nexport OMP_NUM_THREADS=1 MASTER_ADDR=127.0.0.1\n")
    return {"VESSELGAN_SITE": str(path)}


@pytest.fixture(scope="session")
def slurm_work_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """work/phantom/shards/gan/train: 24 patches of noise, in a folder whose name a shell would take for more."""
    work = tmp_path_factory.mktemp("slurm") / "it's $(touch x) work"
    folder = work / "phantom/shards/gan/train"
    source = np.random.default_rng(7)
    records = [
        Record(
            source.uniform(0, 255, PATCH_SHAPE).astype(np.float32),
            (source.random(PATCH_SHAPE) > 0.9).astype(np.uint8),
            *(f"sub-{i % 3} $(touch x); echo", (0, 0, 0), "grid", (0.0, 1000.0), 0),
        )
        for i in range(24)
    ]
    write_shards(folder, records, spacing_mm=(1.0, 1.0, 1.5))
    return work
