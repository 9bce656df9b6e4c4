"""How a sweep is run: each option has the name of its flag and is described once, for Python and the command line."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from ablations.values import Argument, argument_field, choice, integer
from runners.machine.environment import check_device
from runners.measures import CAN_RETRY, RECORDED
from runners.store.pictures import MOST_IMAGES

RETRIED = tuple(status for status in CAN_RETRY if status in RECORDED)
"""Statuses that `retry` can name: what is lost runs again by itself."""


def minutes(text: str) -> float:
    """Read a time limit: minutes, or H:MM:SS as SLURM writes it.

    Raises:
        ValueError: it is neither.
    """
    clock = re.fullmatch(r"(\d+):(\d\d):(\d\d)", text)
    if clock:
        limit = int(clock[1]) * 60 + int(clock[2]) + int(clock[3]) / 60
    else:
        limit = float(text) if re.fullmatch(r"\d{1,7}(\.\d+)?", text) else 0
    if not limit > 0:
        raise ValueError(f"{text!r} is not a time: minutes above 0, or H:MM:SS")
    return limit


def _name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}", text):
        raise ValueError(f"{text!r} is not a name: up to 64 letters, digits and _ . + -")
    return text


def _word(text: str) -> str:
    if not re.fullmatch(r"[^\s'\"]+", text):
        raise ValueError(f"{text!r} is not a name: it has spaces or quotes, or is empty")
    return text


def _memory(text: str) -> str:
    if not re.fullmatch(r"\d{1,9}[KMGT]?", text):
        raise ValueError(f"{text!r} is not a size: a number, in MB or with K, M, G or T behind it")
    return text


def _images(text: str) -> int:
    if not re.fullmatch(r"\d{1,3}", text) or int(text) > MOST_IMAGES:
        raise ValueError(f"{text!r} is not a number of images, 0 to {MOST_IMAGES}")
    return int(text)


def sbatch_option(text: str) -> tuple[str, str]:
    """Read an option of sbatch by its long name, `reservation=night` or `oversubscribe`, into name and value.

    Raises:
        ValueError: it is no such thing, or one that the sweep sets itself.
    """
    name, equals, value = text.partition("=")
    name = name.replace("_", "-")
    if not re.fullmatch(r"[a-z][a-z0-9-]*", name) or "\n" in value or (equals and not value):
        raise ValueError(f"{text!r} is not OPTION or OPTION=VALUE with a long name, such as comment=mine")
    if name in RESERVED:
        raise ValueError(f"{text!r}: {name} {RESERVED[name]}")
    return name, value


def _option(default: Any, name: str, parse: Any, metavar: str, text: str, *, several: bool = False) -> Any:
    return argument_field(default, Argument(name, parse, metavar, text, several))


def _switch(name: str, text: str) -> Any:
    return argument_field(False, Argument(name, help=text))


def _count(name: str, what: str, text: str, low: int = 1) -> Any:
    return argument_field(None, Argument(name, integer(low, what), "N", text))


@dataclass(frozen=True, kw_only=True)
class SlurmOptions:
    """What jobs ask of SLURM; what is not given is as in an earlier submission, the study, or `Request`.

    The first eight are options of sbatch under the same name; `slurm` holds any other one, name and value.
    """

    partition: str | None = _option(None, "partition", _word, "P", "as in sbatch, like the seven below")
    account: str | None = _option(None, "account", _word, "A", "who pays")
    qos: str | None = _option(None, "qos", _word, "Q", "quality of service")
    constraint: str | None = _option(None, "constraint", _word, "C", "features that a node must have")
    mem: str | None = _option(None, "mem", _memory, "SIZE", "memory per node, such as 16G")
    nodes: int | None = _count("nodes", "a number of nodes", "nodes that train one cell (default: 1)")
    gpus_per_node: int | None = _count(
        "gpus_per_node", "a number of GPUs", "GPUs, with a process each; without slurm the same as --procs-per-node"
    )
    cpus_per_task: int | None = _count(
        "cpus_per_task", "a number of processors", "processors of each process (default: --threads)"
    )
    slurm: Mapping[str, str] | tuple[tuple[str, str], ...] = argument_field(
        (), Argument("slurm", sbatch_option, "K[=V]", "any other option of sbatch, such as comment=mine", several=True)
    )
    procs_per_node: int | None = _count(
        "procs_per_node", "a number of processes", "processes that train one cell, also without slurm (default: 1)"
    )
    exclusive: bool = _switch("exclusive", "measure throughput in jobs of its own, alone on their node")
    max_parallel: int | None = _count("max_parallel", "a number of jobs", "jobs at the same time")
    cells_per_job: int | None = _count("cells_per_job", "a number of cells", "cells one after another (default: 1)")
    max_requeues: int | None = _count(
        "max_requeues",
        "a number of times",
        "time limits after which a training goes on in a further run of its job (default: while it gets further)",
        low=0,
    )

    def __post_init__(self) -> None:
        """Check every value that is given.

        Raises:
            ValueError: one is not allowed; the message names argument, value and what is allowed.
        """
        for field in fields(self):
            value, argument = getattr(self, field.name), field.metadata["argument"]
            if field.name == "slurm" and not isinstance(value, str):
                value = [f"{name}={text}" if text != "" else name for name, text in dict(value).items()]
            if value not in (None, (), []):
                object.__setattr__(self, field.name, argument.read(value))
        check_processes(self.procs_per_node, self.gpus_per_node)


def check_processes(procs_per_node: int | None, gpus_per_node: int | None) -> None:
    """Check that the processes of a node, where both are given, are one per GPU.

    Raises:
        ValueError: they are not.
    """
    if procs_per_node and gpus_per_node and procs_per_node != gpus_per_node:
        raise ValueError(
            f"--procs-per-node {procs_per_node} and --gpus-per-node {gpus_per_node}: each GPU has one process; "
            "give one of the two"
        )


@dataclass(frozen=True, kw_only=True)
class RunOptions(SlurmOptions):
    """How the missing cells of a sweep are run, and which count as missing."""

    device: str = _option("auto", "device", check_device, "D", "auto, cpu, cuda, cuda:N or mps (default: auto)")
    cluster: str = _option(
        "local",
        "cluster",
        choice("local", "slurm", "debug"),
        "C",
        "local: a process per cell; slurm: job arrays, returns at once; debug: in this process (default: local)",
    )
    time: float | None = _option(
        None,
        "time",
        minutes,
        "MIN",
        "limit per cell, with slurm per job: minutes or H:MM:SS (default: none; slurm: 60)",
    )
    memory_limit: int | None = argument_field(
        None, Argument("memory_limit", integer(64, "a limit in MiB"), "MIB", "data memory of a measured process")
    )
    patience: int = _option(
        60,
        "patience",
        integer(0, "a number of seconds"),
        "S",
        "seconds that a cell may take to time itself again where other work disturbed it (default: 60; 0: never)",
    )
    workers: int | None = _count(
        "workers",
        "a number of processes",
        "processes that read images of files (default: processors to spare; 0: the training's own)",
        low=0,
    )
    checkpoint_every: int = _option(
        30,
        "checkpoint_every",
        integer(0, "a number of seconds"),
        "S",
        "seconds between two saved states of a training (default: 30; 0: one after each step)",
    )
    save_weights: bool = _switch("save_weights", "keep the trained weights beside the records, for visualize.py")
    tensorboard: bool = _switch("tensorboard", "write the training of each cell for TensorBoard too")
    save_predictions: int = _option(
        0,
        "save_predictions",
        _images,
        "N",
        "draw predictions beside truth on N validation images of each cell of a dense task (default: 0)",
    )
    retry: tuple[str, ...] = _option(
        (), "retry", choice(*RETRIED), "STATUS", f"run again what ended as {', '.join(RETRIED)}", several=True
    )
    force: bool = _switch("force", "run everything again as a further attempt; older ones stay on disk")
    name: str | None = _option(
        None,
        "name",
        _name,
        "N",
        "name of the study in status, cancel, ... (default: of --study, or of the cells)",
    )

    @property
    def processes(self) -> int:
        """Processes that train one cell on this machine."""
        return self.procs_per_node or self.gpus_per_node or 1

    def without_slurm(self) -> list[str]:
        """Options that are given although they mean something to `cluster="slurm"` alone."""
        names = {field.name for field in fields(SlurmOptions)} - {"procs_per_node", "gpus_per_node"}
        values = {name: getattr(self, name) for name in names if self.cluster != "slurm"}
        return [name for name, value in values.items() if not (value is None or value is False or value == ())]


RESERVED = {
    **dict.fromkeys(("time",), "has a flag of its own"),
    **{field.name.replace("_", "-"): "has a flag of its own" for field in fields(SlurmOptions)},
    **dict.fromkeys(("array", "job-name", "output", "error", "signal", "open-mode", "requeue"), "is set by the sweep"),
    **dict.fromkeys(("wait", "test-only", "wrap", "no-requeue", "ntasks-per-node", "ntasks"), "is set by the sweep"),
}
"""Options of sbatch that `slurm` does not take, and why."""
