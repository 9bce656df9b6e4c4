"""What is measured, which quantities are compared, and how a measurement can end: each described once, here.

Plain data that imports nothing of the project, so that a command line, a job, a report and a figure read one list.
"""

from collections.abc import Container
from dataclasses import KW_ONLY, dataclass
from functools import partial


@dataclass(frozen=True)
class Measure:
    """A part of a cell that is measured as a whole and gets a record of its own.

    Attributes:
        name: its name on the command line, in records and in the columns `<name>_status` and `<name>_protocol`.
        protocol: version of how it is measured; numbers of two versions are not compared.
        shown: columns that the screen shows as soon as they are recorded.
        seconds: what it takes beside training steps; a guess.
        training_steps: how many it takes; None: those of the cell.
        forwards: of one image that it takes, however slow they are.
        depends_on_device: False if its numbers are the same on every device.
        is_timing: its numbers need a node without other jobs, see `--exclusive`.
        can_resume: it saves its state, and a further job goes on from there.
        limits_memory: `--memory-limit` is set in the process that measures; otherwise nothing large is allocated in it.
        is_default: a sweep that names no measures asks for it.
    """

    name: str
    protocol: int
    shown: tuple[str, ...]
    seconds: float
    training_steps: int | None = 0
    forwards: int = 0
    depends_on_device: bool = True
    is_timing: bool = False
    can_resume: bool = False
    limits_memory: bool = False
    is_default: bool = True


_more = partial(Measure, is_default=False)

MEASURES = {
    measure.name: measure
    for measure in (
        Measure("flops", 1, ("gmacs", "attention_gmacs", "params_m"), 5.0, depends_on_device=False),
        Measure(
            "throughput",
            2,
            ("infer_samples_per_sec", "infer_latency_ms", "train_step_ms", "vs_vanilla", "disturbed"),
            25.0,
            is_timing=True,
        ),
        Measure("memory", 2, ("peak_infer_mib", "peak_train_mib"), 8.0, training_steps=3),
        Measure(
            "accuracy",
            1,
            ("acc1", "miou", "ap", "ap_mask", "val_loss", "train_seconds"),
            3.0,
            training_steps=None,
            can_resume=True,
            limits_memory=True,
        ),
        _more("launches", 1, ("kernel_launches",), 1.0),
        _more("latency", 1, ("infer_latency_ms_p50", "infer_latency_ms_p99"), 30.0, forwards=7, is_timing=True),
        _more("max_batch", 1, ("max_batch", "max_infer_samples_per_sec"), 60.0, is_timing=True),
        _more("energy", 1, ("energy_mj_per_image", "train_energy_j_per_step"), 25.0, is_timing=True),
    )
}
"""Every measure in the order in which a cell runs them: the costs first, they are on screen in seconds."""

DEFAULT_MEASURES = tuple(name for name, measure in MEASURES.items() if measure.is_default)
"""What a sweep measures that names none."""


def depends_on_device(measure: str) -> bool:
    """Whether numbers of a measure, also of a user's own, belong to the device that they were measured on."""
    return measure not in MEASURES or MEASURES[measure].depends_on_device


@dataclass(frozen=True)
class Quantity:
    """A measured column by which configurations are compared.

    Attributes:
        column: its name in the table.
        measure: the measure that finds it, whose status says why it is missing.
        name: what sentences and headings of tables call it.
        title: what a figure calls it.
        unit: empty for a ratio.
        higher_is_better: False for a cost.
        is_exact: it is counted, and repeats do not vary.
        interval: columns with the ends of its own interval, if it has one.
        samples: raw samples behind a time; where there are several, the time is their sum.
        processes: raw samples that tell of each of these which process took it.
    """

    column: str
    measure: str
    name: str
    title: str
    unit: str
    _: KW_ONLY
    higher_is_better: bool = False
    is_exact: bool = False
    interval: tuple[str, str] | None = None
    samples: tuple[str, ...] = ()
    processes: str = ""

    @property
    def heading(self) -> str:
        """Heading of its column in a table, with the unit if it has one."""
        return f"{self.name} ({self.unit})" if self.unit else self.name

    @property
    def axis(self) -> str:
        """Label of its axis in a figure, with the unit."""
        return f"{self.title} ({self.unit})"


ACCURACY = Quantity("acc1", "accuracy", "acc1", "accuracy, acc1", "%", higher_is_better=True)
MIOU = Quantity("miou", "accuracy", "mIoU", "mean IoU, miou", "%", higher_is_better=True)
AP = Quantity("ap", "accuracy", "AP", "box AP, ap", "%", higher_is_better=True)
AP_MASK = Quantity("ap_mask", "accuracy", "mask AP", "mask AP, ap_mask", "%", higher_is_better=True)
MACS = Quantity("gmacs", "flops", "MACs", "MACs of the network, one image", "GMAC", is_exact=True)
FIRST_CORE_MACS = Quantity(
    *("first_core_gmacs", "flops", "MACs of the first cores"),
    *("MACs of first-stage attention cores, one image", "GMAC"),
    is_exact=True,
)
PARAMETERS = Quantity("params_m", "flops", "parameters", "parameters", "millions", is_exact=True)
LATENCY = Quantity(
    *("infer_latency_ms", "throughput", "latency", "latency of a batch", "ms"),
    samples=("infer_ms",),
    processes="infer_process",
)
ONE_IMAGE_LATENCY = Quantity(
    *("infer_latency_ms_p50", "latency", "latency of one image", "latency of one image, median", "ms"),
    samples=("latency_ms",),
)
THROUGHPUT = Quantity(
    *("infer_samples_per_sec", "throughput", "throughput", "throughput of inference", "img/s"),
    higher_is_better=True,
)
TRAINING_STEP = Quantity(
    *("train_step_ms", "throughput", "training step", "training step of a batch", "ms"),
    samples=("train_forward_ms", "train_backward_ms", "train_optimizer_ms"),
    processes="train_process",
)
SPEED_UP = Quantity(
    *("vs_vanilla", "throughput", "speed-up over vanilla", "speed-up over vanilla", ""),
    higher_is_better=True,
    interval=("vs_vanilla_low", "vs_vanilla_high"),
)
TRAINING_SPEED_UP = Quantity(
    *("train_vs_vanilla", "throughput", "speed-up over vanilla in training", "speed-up over vanilla in training", ""),
    higher_is_better=True,
    interval=("train_vs_vanilla_low", "train_vs_vanilla_high"),
)
MEMORY = Quantity("peak_infer_mib", "memory", "peak memory", "peak memory of inference", "MiB")
TRAINING_MEMORY = Quantity("peak_train_mib", "memory", "peak memory in training", "peak memory of training", "MiB")

QUALITY_OF = {"classify": ACCURACY, "segment": MIOU, "detect": AP, "instance": AP_MASK}
"""By task: what says how good a model is."""
QUALITIES = tuple(QUALITY_OF.values())


def quality_of(task: object) -> Quantity:
    """Return what says how good a model of a task is; of an unknown one, or of an earlier table, acc1."""
    return QUALITY_OF.get(str(task), ACCURACY)


def quality_among(columns: Container[object]) -> Quantity | None:
    """Return what says how good models with these columns are, None if none does; of masks before that of boxes."""
    return next((quality for quality in reversed(QUALITIES) if quality.column in columns), None)


COSTS = (MACS, LATENCY, TRAINING_STEP, MEMORY, TRAINING_MEMORY)
"""What accuracy is weighed against."""

MARGIN = 1.0
"""Accuracies, or what a task has in their place, are called equal if the 95 % interval of their gap lies within this,
percentage points."""

QUANTITIES = (*QUALITIES, *COSTS, PARAMETERS)
"""What a table of results shows, in this order."""


@dataclass(frozen=True)
class Status:
    """How a measure, or a cell, stands.

    Attributes:
        name: its name in records, tables and on the command line.
        meaning: what it says, for readers.
        is_failure: reports list it and figures draw a cross.
        is_recorded: a measure ends with it; the others follow from what lies on disk.
        is_done: nothing is left to measure, and nothing to retry.
        may_pass: another attempt under the same settings may end otherwise, so `retry` takes it unless told not to.
    """

    name: str
    meaning: str
    _: KW_ONLY
    is_failure: bool = False
    is_recorded: bool = False
    is_done: bool = False
    may_pass: bool = False


_failure = partial(Status, is_failure=True, is_recorded=True, may_pass=True)

STATUSES = {
    status.name: status
    for status in (
        _failure("error", "any other exception, see `error_type`, `error_message` and `log_path`"),
        _failure("killed", "the process was killed for another reason"),
        _failure("oom", "the memory was exhausted"),
        _failure("timeout", "the time limit was reached"),
        _failure("diverged", "the loss became NaN or infinite", may_pass=False),
        _failure("unsupported", "the mechanism or the device cannot do it", may_pass=False, is_done=True),
        Status("running", "not recorded yet; a live process holds the lease"),
        _failure(
            "lost",
            "the process died before it recorded anything, or a file is damaged, see `error_message`",
            is_recorded=False,
        ),
        Status("pending", "not started"),
        Status("ok", "every measure that was asked for is there", is_recorded=True, is_done=True),
    )
}
"""Every status, the gravest first: a row shows the first of these that one of its measures has."""

RECORDED = tuple(name for name, status in STATUSES.items() if status.is_recorded)
DONE = tuple(name for name, status in STATUSES.items() if status.is_done)
NOT_FAILED = tuple(name for name, status in STATUSES.items() if not status.is_failure)
"""Any other status, one of a newer version too, is a failure."""

CAN_RETRY = tuple(name for name, status in STATUSES.items() if status.is_failure and not status.is_done)


def severity(status: str) -> int:
    """Sort key of a status, the lowest the gravest; one of a newer version comes before all that are known."""
    return list(STATUSES).index(status) if status in STATUSES else -1
