"""One cell's training over several processes, by torch.distributed: NCCL on CUDA, gloo elsewhere.

Step s takes the images that one process would take: each rank draws the whole batch of (seed, s) and keeps its slice.
Losses, gradients and the statistics of BatchNorm are those of the whole batch, whether or not it divides evenly, so
the loss curve is that of one process up to rounding; only dropout draws per rank. The test set is shared out by
batches.

Rank 0 leads: it alone holds the lease and writes records, and tells the others through a small store when to join in.
So the other measures of a cell run with no process group around. A rank that fails says why in that store before it
leaves, and that is what rank 0 reports; one that is killed is noticed by its closed connection, or after `TIMEOUT_S`.
Under torchrun that is torchrun's to notice: it ends all ranks and starts them anew, with a store of their own.
"""

import contextlib
import itertools
import json
import os
import re
import socket
import time
import traceback
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

from runners.machine.failures import ChildFailed, status_of
from runners.train.batch_norm import synchronise_batch_norm

TIMEOUT_S = 600.0
"""How long a rank waits for another, at the start of a training and in any step of it."""
LEAVE_S = 10.0
"""How long rank 0, which hosts the store, waits for the others to have read its last word, or why it failed; and how
long a rank waits for torchrun to end it."""

_FOREVER = timedelta(days=365)
_END = "end"
# how gloo and NCCL say that a peer has gone
_PEER_GONE = re.compile(r"Connection (closed|reset) by peer|Broken pipe|remote process exited", re.IGNORECASE)
# how the store, gloo and NCCL say that a peer does not answer
_NO_ANSWER = re.compile(
    r"wait timeout after|application timeout|timed out waiting \d+ms"
    r"|collective operation timeout|timed out in blocking wait",
    re.IGNORECASE,
)


class Group:
    """The processes that train one cell together; `ALONE`, the usual case, is one that needs no others."""

    def __init__(
        self,
        rank: int = 0,
        world_size: int = 1,
        *,
        store: Store | None = None,
        timeout_s: float = TIMEOUT_S,
        restarts: bool = False,
    ) -> None:
        """Describe one process of the group; `setup` makes the groups that have several.

        With `restarts` a launcher ends and starts all of them again when one is killed.
        """
        self.rank, self.world_size = rank, world_size
        self.timeout_s = timeout_s
        self._store = store
        self._restarts = restarts
        self._device = torch.device("cpu")
        self._orders = itertools.count()
        self._meetings = itertools.count()

    def lead(self, order: str) -> None:
        """Give every other rank an order, which its `orders` yields; rank 0 only."""
        if self._store is not None:
            self._store.set(f"order/{next(self._orders)}", order)

    def orders(self) -> Iterator[str]:
        """Wait for the orders of rank 0, however long it takes, until it has no more.

        Raises:
            RuntimeError: rank 0 is gone.
        """
        assert self._store is not None
        for number in self._orders:
            self._store.wait([f"order/{number}"], _FOREVER)
            order = self._store.get(f"order/{number}").decode()
            if order == _END:
                return
            yield order

    @contextlib.contextmanager
    def joined(self, device: torch.device) -> Iterator[None]:
        """Context in which the ranks compute together; all of them must enter it.

        Raises:
            ChildFailed: on rank 0, in place of an error that another rank's failure led to.
        """
        if self._store is None:
            yield
            return
        meeting = PrefixStore(f"meeting/{next(self._meetings)}", self._store)
        self._device = device
        # NCCL would end the process when a peer is gone for too long; this way it raises, and that becomes a row
        os.environ.setdefault("TORCH_NCCL_BLOCKING_WAIT", "1")
        try:
            distributed.init_process_group(
                "nccl" if device.type == "cuda" else "gloo",
                store=meeting,
                rank=self.rank,
                world_size=self.world_size,
                timeout=timedelta(seconds=self.timeout_s),
            )
            yield
        except Exception as error:
            cause = self._cause(error, meeting)
            if cause is error:
                raise
            raise cause from error
        finally:
            _leave()

    def _cause(self, error: Exception, meeting: Store) -> Exception:
        """The failure to report for an error of this rank: that of the rank that failed first."""
        mine = {"rank": self.rank, "status": status_of(error), "message": f"{type(error).__name__}: {error}"}
        try:
            first = json.loads(meeting.compare_set("failure", "", json.dumps(mine)))
            meeting.set(f"read/{self.rank}", "")
        except RuntimeError:  # rank 0 is gone, and the store with it
            return error
        if self._restarts and _PEER_GONE.search(first["message"]):
            time.sleep(LEAVE_S)  # the launcher is about to end this process, which is to record nothing
        if self.rank == 0 and not _PEER_GONE.search(first["message"]):
            # the others notice at their next collective that the connections are closed, once no frame holds a model
            traceback.clear_frames(error.__traceback__)
            with contextlib.suppress(RuntimeError):
                _leave()
                meeting.wait([f"read/{other}" for other in range(1, self.world_size)], timedelta(seconds=LEAVE_S))
        if first["message"] != mine["message"]:
            return ChildFailed(f"rank {first['rank']} of {self.world_size}: {first['message']}", first["status"])
        if _PEER_GONE.search(str(error)):
            return ChildFailed(f"one of the {self.world_size} ranks ended without a word: {error}", "killed")
        if _NO_ANSWER.search(str(error)):
            return ChildFailed(f"one of the {self.world_size} ranks gave no answer for {self.timeout_s:g} s: {error}")
        return error

    def wrap(self, model: nn.Module, device: torch.device) -> nn.Module:
        """Return the module to call in training: gradients, and in place BatchNorm, become those of the whole batch."""
        if self.world_size == 1:
            return model
        if device.type == "cuda":
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
            return nn.parallel.DistributedDataParallel(model, device_ids=[torch.cuda.current_device()])
        synchronise_batch_norm(model)
        return nn.parallel.DistributedDataParallel(model)

    def shard(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, float]:
        """This rank's slice of a batch, and the factor by which its mean loss counts in the mean over ranks.

        Raises:
            ValueError: fewer images than ranks.
        """
        if len(labels) < self.world_size:
            raise ValueError(
                f"a global batch of {len(labels)} images cannot be shared out to {self.world_size} processes; "
                f"give --batch-size {self.world_size} or more, or fewer processes"
            )
        parts = images.tensor_split(self.world_size), labels.tensor_split(self.world_size)
        mine, share = parts[1][self.rank], len(parts[1][self.rank]) * self.world_size / len(labels)
        return parts[0][self.rank], mine, share

    def mean(self, loss: Tensor, share: float) -> float:
        """Mean over the whole batch of a loss that is a mean over this rank's slice."""
        return loss.item() if self.world_size == 1 else self.total(loss.double() * share).item() / self.world_size

    def total(self, values: Tensor) -> Tensor:
        """Sum over the ranks, on the device where they meet."""
        if self.world_size > 1:
            values = values.to(self._device)
            distributed.all_reduce(values)
        return values

    def broadcast(self, content: bytes | None) -> bytes | None:
        """What rank 0 gives, on every rank."""
        if self.world_size == 1:
            return content
        box = [content]
        distributed.broadcast_object_list(box)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """What each rank gives, on every rank."""
        if self.world_size == 1:
            return [value]
        box = [None] * self.world_size
        distributed.all_gather_object(box, value)
        return box


ALONE = Group()


@contextlib.contextmanager
def setup(
    world_size: int, environment: Mapping[str, str] = os.environ, timeout_s: float = TIMEOUT_S
) -> Iterator[Group]:
    """Meet the other processes of this job, if it has `world_size` > 1; leaving it dismisses them.

    Reads RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT as torchrun and submitit export them, and makes the
    local rank's CUDA device the current one. The store of torchrun's agent outlives an attempt, so each has own keys.

    Raises:
        ValueError: these variables are missing, malformed or of a job of another size.
        RuntimeError: rank 0 cannot be reached.
    """
    if world_size == 1:
        yield ALONE
        return
    try:
        rank, local_rank, port, size = (
            int(environment[n]) for n in ("RANK", "LOCAL_RANK", "MASTER_PORT", "WORLD_SIZE")
        )
        address = _reachable(environment["MASTER_ADDR"], environment)
    except (KeyError, ValueError) as error:
        raise ValueError(f"this job has {world_size} processes and its environment does not place this one") from error
    if size != world_size or not 0 <= rank < size:
        raise ValueError(f"this job has {world_size} processes, its environment says rank {rank} of {size}")
    if torch.cuda.is_available():
        # a scheduler may show each process all GPUs of the node or its own alone
        torch.cuda.set_device(local_rank % torch.cuda.device_count())
    timeout, attempt = timedelta(seconds=timeout_s), environment.get("TORCHELASTIC_RESTART_COUNT")
    store: Store
    if attempt is None:
        store = TCPStore(address, port, world_size, rank == 0, timeout, wait_for_workers=False)
    else:
        # else the ranks would find what those of an earlier attempt told each other
        store = PrefixStore(f"attempt/{attempt}", next(rendezvous("env://", timeout=timeout))[0])
    group = Group(rank, world_size, store=store, timeout_s=timeout_s, restarts=attempt is not None)
    yield group
    # who leaves by an exception says nothing: its connections close with its process, and the others notice
    with contextlib.suppress(RuntimeError):
        if rank:
            store.set(f"left/{rank}", "")
        else:
            group.lead(_END)
            store.wait([f"left/{other}" for other in range(1, world_size)], timedelta(seconds=LEAVE_S))


def _leave() -> None:
    """Close the process group; there is none if it could not be formed, since another rank never came."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


def _reachable(host: str, environment: Mapping[str, str]) -> str:
    """The host, or where SLURM's name for it is known to SLURM alone, the address that srun ran on: rank 0's node."""
    try:
        socket.getaddrinfo(host, None)
    except OSError:
        return environment.get("SLURM_LAUNCH_NODE_IPADDR", host)
    return host
