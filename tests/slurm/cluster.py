"""A real SLURM on this machine: munged, slurmctld and two slurmd; for accounting also mariadbd and slurmdbd.

Everything lies in one folder, on free ports, with a configuration of its own; `SLURM_CONF` in `environment` is what
makes a process use it. Both nodes are this machine, and each has four processors whatever the machine has.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "sacct")
ACCOUNTING_PROGRAMS = ("slurmdbd", "mariadbd", "mariadb-install-db")
NODES = ("n1", "n2")
MAX_ARRAY_SIZE = 4  # tasks; small, so that a sweep of a dozen cells takes two arrays

CONFIGURATION = """
ClusterName=zoo
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser=root
AuthType=auth/munge
CryptoType=crypto/munge
# cred_expire is also how long a requeued job waits; 120 s unless said, 5 s at least
AuthInfo=socket={folder}/munge.socket,cred_expire=8
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0,sched_min_interval=0
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
KillWait=3
CompleteWait=0
MinJobAge={min_job_age_s}
MaxArraySize={max_array_size}
ReturnToService=2
SlurmdTimeout=30
SlurmctldTimeout=10
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
SlurmdParameters=config_overrides
{accounting}
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={first_port} CPUs=4 RealMemory=8000
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={second_port} CPUs=4 RealMemory=8000
PartitionName=cpu Nodes=n[1-2] Default=YES DefMemPerCPU=2000 MaxTime=60 PriorityTier=1
PartitionName=urgent Nodes=n[1-2] DefMemPerCPU=2000 MaxTime=60 PriorityTier=10
"""

ACCOUNTING = """AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={port}
# the munge socket, despite its name
AccountingStoragePass={folder}/munge.socket"""

DATABASE_DAEMON = """
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
DbdHost={host}
DbdAddr=127.0.0.1
DbdPort={port}
SlurmUser=root
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=slurm
LogFile={folder}/slurmdbd.log
PidFile={folder}/slurmdbd.pid
"""


def missing() -> str | None:
    """Why no cluster can be started here, None if one can."""
    if os.geteuid() != 0:
        return "a SLURM cluster is started by root alone"
    lacking = [name for name in PROGRAMS + ACCOUNTING_PROGRAMS if shutil.which(name) is None]
    if lacking:
        packages = "slurmctld slurmd slurmdbd slurm-client munge mariadb-server"
        return f"{', '.join(lacking)} not installed; apt-get install {packages}"
    return None


@dataclass
class Cluster:
    """A running cluster; `environment` is what a process needs to talk to it."""

    folder: Path
    accounting: bool
    environment: dict[str, str]
    daemons: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)

    def run(self, *command: str, check: bool = True) -> str:
        """Run a SLURM command and return what it printed."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60, check=False)
        assert not check or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def squeue(self, *arguments: str) -> list[str]:
        """Lines of the queue as `JOB STATE`, one per array task."""
        return self.run("squeue", "--noheader", "--array", "--format", "%i %T", *arguments).splitlines()

    def node_state(self, name: str) -> str:
        """State of a node as sinfo abbreviates it."""
        return self.run("sinfo", "--noheader", "--nodes", name, "--partition", "cpu", "--format", "%t").strip()

    def is_idle(self) -> bool:
        """Whether no job is pending or running."""
        return not self.squeue()

    def cancel_all(self) -> None:
        """Empty the queue and bring every node back."""
        self.run("scancel", "--user", "root", check=False)
        self.restore_nodes()
        wait_until(self.is_idle)

    def fail_node(self, name: str) -> None:
        """End a node as a power cut would, with all its jobs, and let the controller know without waiting for it."""
        doomed = [self.daemons[f"slurmd-{name}"].pid]
        for process in _processes():
            with contextlib.suppress(psutil.Error, OSError):
                mine = process.environ()
                if (mine.get("SLURM_CONF"), mine.get("SLURMD_NODENAME")) == (self.environment["SLURM_CONF"], name):
                    steps = [parent.pid for parent in process.parents() if parent.name().startswith("slurmstepd")]
                    doomed += [process.pid, *steps]
        for pid in set(doomed):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.daemons[f"slurmd-{name}"].wait(timeout=10)
        self.run("scontrol", "update", f"NodeName={name}", "State=DOWN", "Reason=test")

    def restore_nodes(self) -> None:
        """Start the nodes that failed."""
        for name in NODES:
            if self.daemons[f"slurmd-{name}"].poll() is not None:
                self._start_node(name)
                self.run("scontrol", "update", f"NodeName={name}", "State=RESUME", check=False)
        for name in NODES:
            wait_until(lambda name=name: self.node_state(name) in ("idle", "mix", "alloc"))

    def _start_node(self, name: str) -> None:
        self._start(f"slurmd-{name}", "slurmd", "-D", "-N", name)

    def _start(self, name: str, *command: str) -> None:
        with (self.folder / f"{name}.out").open("wb") as log:
            # a test run that is killed leaves no daemons behind
            self.daemons[name] = subprocess.Popen(
                ("setpriv", "--pdeathsig", "TERM", *command),
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def _wait_for(self, name: str, question: Callable[[], Any]) -> None:
        """Wait until a daemon answers; if it does not, say what it wrote."""

        def ask() -> bool:
            assert self.daemons[name].poll() is None, f"{name} ended"
            return bool(question())

        try:
            wait_until(ask)
        except AssertionError as error:
            error.add_note(self._log(name))
            raise

    def _log(self, name: str) -> str:
        texts = [path.read_text(errors="replace") for path in self.folder.glob(f"{name}.[ol]*")]
        return "\n".join(texts)[-3000:]

    def _start_munge(self) -> None:
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        files = {"key-file": key, "socket": "munge.socket", "pid-file": "munge.pid", "log-file": "munge.log"}
        files["seed-file"] = "munge.seed"
        arguments = [f"--{option}={self.folder / file}" for option, file in files.items()]
        self._start("munged", "munged", "--foreground", "--force", *arguments)
        self._wait_for("munged", (self.folder / "munge.socket").exists)

    def _start_database(self, port: int) -> None:
        data = self.folder / "mariadb"
        install = ["mariadb-install-db", "--no-defaults", "--user=root", f"--datadir={data}", "--skip-test-db"]
        install.append("--auth-root-authentication-method=normal")
        subprocess.run(install, check=True, capture_output=True, timeout=120)
        database_socket = self.environment["MYSQL_UNIX_PORT"]
        options = ["--no-defaults", "--user=root", f"--datadir={data}", f"--socket={database_socket}"]
        options += ["--skip-networking", "--skip-log-bin", f"--pid-file={self.folder}/mariadbd.pid"]
        # nothing here outlives the test
        options += ["--innodb-flush-log-at-trx-commit=0", "--innodb-buffer-pool-size=64M"]
        self._start("mariadbd", "mariadbd", *options)
        self._wait_for("mariadbd", Path(database_socket).exists)
        configuration = self.folder / "slurmdbd.conf"
        configuration.write_text(DATABASE_DAEMON.format(folder=self.folder, host=socket.gethostname(), port=port))
        configuration.chmod(0o600)
        self._start("slurmdbd", "slurmdbd", "-D")
        self._wait_for("slurmdbd", lambda: _accepts(port))

    def _start_controller(self) -> None:
        self._start("slurmctld", "slurmctld", "-D", "-i")
        self._wait_for("slurmctld", lambda: "is UP" in self.run("scontrol", "ping", check=False))

    def stop(self) -> None:
        """End every daemon and every job step, then remove the folder."""
        with contextlib.suppress(Exception):
            self.run("scancel", "--user", "root", check=False)
        ours = [process for process in _processes() if _belongs(process, self.folder)]
        for process in ours:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.terminate()
        _, alive = psutil.wait_procs(ours, timeout=10)
        for process in alive:
            process.kill()
        for daemon in self.daemons.values():
            daemon.wait(timeout=10)
        shutil.rmtree(self.folder, ignore_errors=True)


@contextlib.contextmanager
def running_cluster(folder: Path, *, accounting: bool, min_job_age_s: int = 300) -> Iterator[Cluster]:
    """A cluster within the block; `folder`, which must be short, is made and removed."""
    folder.mkdir(mode=0o755)
    (folder / "state").mkdir()
    ports = _free_ports(4)
    environment = {name: text for name, text in os.environ.items() if not name.startswith(("SLURM", "SUBMITIT"))}
    environment |= {
        "SLURM_CONF": str(folder / "slurm.conf"),
        "MYSQL_UNIX_PORT": str(folder / "mariadb.socket"),
        # two hours of another time zone would make `sacct --starttime` miss every job
        "TZ": "UTC",
    }
    cluster = Cluster(folder, accounting, environment)
    settings: dict[str, Any] = {
        "folder": folder,
        "host": socket.gethostname(),
        "controller_port": ports[0],
        "first_port": ports[1],
        "second_port": ports[2],
        "min_job_age_s": min_job_age_s,
        "max_array_size": MAX_ARRAY_SIZE,
        "accounting": ACCOUNTING.format(folder=folder, port=ports[3]) if accounting else "",
    }
    (folder / "slurm.conf").write_text(CONFIGURATION.format(**settings))
    try:
        cluster._start_munge()
        if accounting:
            cluster._start_database(ports[3])
            cluster.run("sacctmgr", "--immediate", "add", "cluster", "zoo")
        cluster._start_controller()
        for node in NODES:
            (folder / f"spool-{node}").mkdir()
            cluster._start_node(node)
        for node in NODES:
            cluster._wait_for(f"slurmd-{node}", lambda node=node: cluster.node_state(node) == "idle")
        yield cluster
    finally:
        cluster.stop()


def wait_until(question: Callable[[], Any], timeout: float = 60) -> Any:
    """Ask until the answer is true and return it."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if answer := question():
            return answer
        time.sleep(0.1)
    raise AssertionError(f"it did not come to pass within {timeout} s")


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for listener in sockets:
            listener.bind(("127.0.0.1", 0))
        return [listener.getsockname()[1] for listener in sockets]


def _accepts(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def _processes() -> list[psutil.Process]:
    return [process for process in psutil.process_iter() if process.pid != os.getpid()]


def _belongs(process: psutil.Process, folder: Path) -> bool:
    """Whether a process is a daemon of this cluster or a job step that outlived it."""
    try:
        environment = process.environ()
    except (psutil.Error, OSError):
        return False
    return environment.get("SLURM_CONF") == str(folder / "slurm.conf")
