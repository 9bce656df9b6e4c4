"""Leases, with real processes: each one can be killed, and none is a mock."""

import errno
import fcntl
import json
import multiprocessing
import os
import signal
import time
import warnings
from multiprocessing.synchronize import Barrier
from pathlib import Path

import psutil
import pytest

from runners.store import lease as leases
from runners.store.files import StoreError
from runners.store.lease import GRACE_S, STALE_S, Held, Lease, acquire, holder

SPAWN = multiprocessing.get_context("spawn")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "lease.json"


def write_owner(path: Path, **changes: object) -> None:
    """A lease of this very process, changed in a field or two."""
    lease = acquire(path)
    assert isinstance(lease, Lease)
    owner = json.loads(path.read_text())
    lease.release()
    path.write_text(json.dumps({**owner, **changes}))


def let_age(path: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


def hold(path: Path, held: "multiprocessing.synchronize.Event") -> None:
    assert isinstance(acquire(path), Lease)
    held.set()
    time.sleep(60)


def no_locks(descriptor: int, operation: int) -> None:
    raise OSError(errno.ENOSYS, "Function not implemented")


def compete(
    path: Path, barrier: Barrier, won: "multiprocessing.SimpleQueue[int]", rounds: int, locks: bool = True
) -> None:
    if not locks:
        fcntl.flock = no_locks
    for round_ in range(rounds):
        barrier.wait(60)
        lease = acquire(path)
        if isinstance(lease, Lease):
            won.put(round_)
        barrier.wait(60)
        # every second round leaves a dead lease for the next, the other a free one
        if isinstance(lease, Lease):
            lease.release()
            if round_ % 2:
                write_owner(path, started=0.0)


def take_over_and_die(path: Path, log: Path) -> None:
    while not isinstance(acquire(path), Lease):
        time.sleep(0.001)
    with log.open("a") as file:
        file.write(f"{os.getpid()}\n")
    time.sleep(0.02)
    with log.open("a") as file:
        file.write(f"{os.getpid()}\n")
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_held_lease_names_its_owner(path):
    with acquire(path) as lease:
        assert lease.is_mine()
        current = acquire(path)
        assert isinstance(current, Held)
        assert (current.state, current.pid) == ("live", os.getpid())
    assert holder(path) is None
    assert not lease.is_mine()


def test_release_twice_is_once(path):
    lease = acquire(path)
    lease.release()
    second = acquire(path)
    lease.release()
    assert second.is_mine()
    second.release()


@pytest.mark.parametrize("reaped", [False, True])
def test_kill_9_leaves_a_dead_lease_that_is_taken_over(path, reaped):
    held = SPAWN.Event()
    process = SPAWN.Process(target=hold, args=(path, held))
    process.start()
    assert held.wait(30)
    assert holder(path).state == "live"
    assert holder(path).pid == process.pid
    os.kill(process.pid, signal.SIGKILL)
    if reaped:
        process.join()
    else:  # a zombie still has its pid and its start time
        while psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)
    assert holder(path).state == "dead"
    with acquire(path) as lease:
        assert lease.is_mine()
        assert holder(path).pid == os.getpid()
    process.join()


def test_a_reused_pid_does_not_hold_the_lease(path):
    write_owner(path, started=psutil.Process().create_time() - 60)
    assert holder(path).state == "dead"


def test_a_small_clock_correction_does_not_free_the_lease(path):
    write_owner(path, started=psutil.Process().create_time() - 0.5)
    assert holder(path).state == "live"


@pytest.mark.parametrize("field", ["host", "boot_id", "pid_namespace"])
def test_on_another_machine_the_heartbeat_decides(path, field):
    write_owner(path, **{field: "elsewhere"}, pid=2**22 + 1)
    assert holder(path).state == "live"
    let_age(path, STALE_S - 10)
    assert isinstance(acquire(path), Held)
    let_age(path, STALE_S + 10)
    assert holder(path).state == "dead"
    with acquire(path) as lease:
        assert lease.is_mine()


def test_the_owner_keeps_its_heartbeat_young(path, monkeypatch):
    monkeypatch.setattr(leases, "HEARTBEAT_S", 0.05)
    with acquire(path):
        let_age(path, 1000)
        deadline = time.monotonic() + 10
        while holder(path).heartbeat_age_s > 500:
            assert time.monotonic() < deadline
            time.sleep(0.02)


@pytest.mark.parametrize("content", ["", '{"host": "n1", "bo', "[]", '{"host": "n1"}', '"\udcff"'])
def test_a_half_written_lease_is_dead_after_a_grace(path, content):
    path.write_bytes(content.encode(errors="surrogateescape"))
    assert holder(path).state == "unknown"
    assert isinstance(acquire(path), Held)
    let_age(path, GRACE_S + 1)
    assert holder(path).state == "dead"
    with acquire(path) as lease:
        assert lease.is_mine()


@pytest.mark.parametrize("pid", [-1, 2**80])
def test_an_impossible_pid_is_dead(path, pid):
    write_owner(path, pid=pid)
    assert holder(path).state == "dead"


def test_release_leaves_a_successor_alone(path):
    first = acquire(path)
    # judged dead by another machine, say after a long pause
    successor = json.dumps({"host": "n9", "boot_id": "b", "pid_namespace": "p", "pid": 1, "started": 1.0})
    path.unlink()
    path.write_text(successor)
    assert not first.is_mine()
    first.release()
    assert path.read_text() == successor


def test_a_forked_child_does_not_release_its_parents_lease(path):
    with acquire(path) as lease:
        with warnings.catch_warnings():
            # newer Pythons warn of a fork beside a thread (the heartbeat's); this is what the test is about
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            lease.release()
            os._exit(0)
        os.waitpid(pid, 0)
        assert lease.is_mine()


def test_release_after_the_folder_is_gone(path):
    lease = acquire(path)
    for file in path.parent.iterdir():
        file.unlink()
    path.parent.rmdir()
    lease.release()
    assert not lease.is_mine() and not path.exists()


def test_a_full_disk_leaves_no_lease(path, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match=r"cannot write .*lease.json: No space left"):
        acquire(path)
    assert holder(path) is None


def test_without_file_locks_o_excl_still_guards(path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", no_locks)
    with acquire(path) as lease:
        assert isinstance(acquire(path), Held)
        # created by another node between the look and the attempt
        monkeypatch.setattr(leases, "holder", lambda path: None)
        assert acquire(path).state == "unknown"
        assert lease.is_mine()


@pytest.mark.parametrize(("locks", "rounds"), [(True, 60), (False, 30)], ids=["with locks", "without locks"])
def test_eight_contenders_give_one_owner_in_every_round(path, locks, rounds):
    contenders = 8
    write_owner(path, started=0.0)
    barrier, won = SPAWN.Barrier(contenders), SPAWN.SimpleQueue()
    processes = [SPAWN.Process(target=compete, args=(path, barrier, won, rounds, locks)) for _ in range(contenders)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * contenders
    winners = []
    while not won.empty():
        winners.append(won.get())
    assert winners == list(range(rounds))


def test_owners_that_are_killed_are_succeeded_one_by_one(path, tmp_path):
    log = tmp_path / "log"
    processes = [SPAWN.Process(target=take_over_and_die, args=(path, log)) for _ in range(8)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [-signal.SIGKILL] * 8
    pids = log.read_text().split()
    assert pids[::2] == pids[1::2]
    assert sorted(pids[::2]) == sorted(str(process.pid) for process in processes)


@pytest.mark.parametrize("owner", ["nobody", "another machine"])
def test_a_time_in_the_future_is_no_heartbeat(path, owner):
    write_owner(path, host="n7", boot_id="elsewhere")
    if owner == "nobody":
        path.write_text("")
    let_age(path, -86400 * 365)
    assert holder(path).state == "dead"
    with acquire(path) as lease:
        assert lease.is_mine()


def test_a_clock_that_is_a_little_ahead_is_a_heartbeat(path):
    write_owner(path, host="n7", boot_id="elsewhere")
    let_age(path, -STALE_S / 2)
    assert holder(path).state == "live"


def test_a_claim_of_the_future_gives_way(path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", no_locks)
    write_owner(path, started=0.0)
    found = path.stat()
    claim = path.with_name(f"{path.name}.{found.st_ino:x}-{found.st_mtime_ns:x}.claim")
    claim.touch()
    let_age(claim, -86400)
    assert isinstance(acquire(path), Held)  # which removes the claim
    with acquire(path) as lease:
        assert lease.is_mine()


def test_a_lock_that_is_not_given_back_is_not_waited_for_for_ever(path, monkeypatch):
    monkeypatch.setattr(leases, "LOCK_S", 0.1)
    with path.with_name("lease.json.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(StoreError, match=r"lease\.json: another process"):
            acquire(path)
    acquire(path).release()


@pytest.mark.parametrize("kind", ["folder", "link", "pipe", "deep", "infinite"])
def test_a_lease_that_nobody_can_have_written_is_dead(path, tmp_path, kind):
    if kind == "folder":
        path.mkdir()
        (path / "mine").write_text("kept")
    elif kind == "link":
        path.symlink_to(tmp_path / "nowhere")
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        owner = '{"host": "h", "boot_id": "b", "pid_namespace": "p", "pid": Infinity, "started": 1}'
        path.write_text("[" * 200_000 if kind == "deep" else owner)
    os.utime(path, (0, 0), follow_symlinks=False)
    assert holder(path).state == "dead"
    with acquire(path) as lease:
        assert lease.is_mine()
    kept = [file.read_text() for file in tmp_path.rglob("mine")]
    assert kept == (["kept"] if kind == "folder" else [])
