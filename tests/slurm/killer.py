"""One who wishes a sweep ill: kills its processes, requeues its jobs, cuts its records and fills a cell's folder."""

import contextlib
import errno
import random
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil

from slurm.cluster import Cluster


class Killer(threading.Thread):
    """Does one of its deeds every `pause_s` seconds, from `start` to `stop`; `done` counts them."""

    def __init__(self, cluster: Cluster, out: Path, *, seed: int, pause_s: float) -> None:
        """Choose the victims; `seed` decides in which order they come."""
        super().__init__(daemon=True)
        self.cluster, self.out, self.pause_s = cluster, out, pause_s
        self.done: Counter[str] = Counter()
        self._random = random.Random(seed)
        self._stopped = threading.Event()

    def run(self) -> None:
        """Go on until `stop`."""
        deeds = [self.kill, self.kill, self.requeue, self.cut]
        while not self._stopped.wait(self.pause_s):
            deed = self._random.choice(deeds)
            self.done[deed.__name__] += deed()

    def stop(self) -> None:
        """Let the last deed end."""
        self._stopped.set()
        self.join()

    def kill(self) -> bool:
        """End a process of a random job without a word."""
        victims = list(self._job_processes())
        if not victims:
            return False
        with contextlib.suppress(psutil.Error):
            self._random.choice(victims).kill()
            return True
        return False

    def requeue(self) -> bool:
        """Have SLURM run a random job again."""
        running = [line.split()[0] for line in self.cluster.squeue("--states=running")]
        if not running:
            return False
        command = ("scontrol", "requeue", self._random.choice(running))
        return subprocess.run(command, env=self.cluster.environment, capture_output=True, check=False).returncode == 0

    def cut(self) -> bool:
        """Take the second half of a random record."""
        written = sorted(self.out.glob("cells/*/records/*.json"))
        if not written:
            return False
        path = self._random.choice(written)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        return True

    def _job_processes(self) -> Iterator[psutil.Process]:
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                mine = process.environ()
                ours = mine.get("SLURM_CONF") == self.cluster.environment["SLURM_CONF"]
                if ours and "SLURM_JOB_ID" in mine and "python" in process.name():
                    yield process


def can_mount(folder: Path) -> bool:
    """Whether this process may mount a file system; a container often may not."""
    if subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(folder)], capture_output=True, check=False).returncode:
        return False
    subprocess.run(["umount", str(folder)], check=True)
    return True


@contextlib.contextmanager
def full_folder(folder: Path) -> Iterator[None]:
    """Put a folder on a file system of its own that holds what it held and not a byte more, for the block."""
    held = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], check=True)
    try:
        for name, content in held.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        try:
            with (folder / "filler").open("wb") as filler:
                while True:
                    filler.write(bytes(4096))
                    filler.flush()
        except OSError as error:
            assert error.errno == errno.ENOSPC
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
