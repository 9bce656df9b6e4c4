"""What is measured, which quantities are compared, and how a measurement can end: each described once, here.

Plain data that imports nothing of the project, so that a command line, a job, a report and a figure read one list.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A part of a cell that is measured as a whole and gets a record of its own.

    Attributes:
        name: its name on the command line, in records and in the columns `<name>_status` and `<name>_protocol`.
        protocol: version of how it is measured; numbers of two versions are not compared.
        shown: columns that the screen shows as soon as they are recorded.
        depends_on_device: False if its numbers are the same on every device.
        is_timing: its numbers need a node without other jobs, see `--exclusive`.
        can_resume: it saves its state, and a further job goes on from there.
        limits_memory: `--memory-limit` is set in the process that measures; otherwise nothing large is allocated in it.
        seconds: what it takes beside training steps; a guess.
        training_steps: how many it takes; None: those of the cell.
    """

    name: str
    protocol: int
    shown: tuple[str, ...]
    depends_on_device: bool = True
    is_timing: bool = False
    can_resume: bool = False
    limits_memory: bool = False
    seconds: float
    training_steps: int | None = 0


MEASURES = {
    measure.name: measure
    for measure in (
        Measure(
            name="flops",
            protocol=1,
            shown=("gmacs", "attention_gmacs", "params_m"),
            depends_on_device=False,
            seconds=5.0,
        ),
        Measure(
            name="throughput",
            protocol=1,
            shown=("infer_samples_per_sec", "infer_latency_ms", "train_step_ms", "vs_vanilla"),
            is_timing=True,
            limits_memory=True,
            seconds=7.0,
        ),
        Measure(name="memory", protocol=1, shown=("peak_infer_mib", "peak_train_mib"), seconds=8.0, training_steps=3),
        Measure(
            name="accuracy",
            protocol=1,
            shown=("acc1", "val_loss", "train_seconds"),
            can_resume=True,
            limits_memory=True,
            seconds=3.0,
            training_steps=None,
        ),
    )
}
"""Every measure in the order in which a cell runs them: the costs first, they are on screen in seconds."""


def depends_on_device(measure: str) -> bool:
    """Whether numbers of a measure, also of a user's own, belong to the device that they were measured on."""
    return measure not in MEASURES or MEASURES[measure].depends_on_device


@dataclass(frozen=True, kw_only=True)
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
    """

    column: str
    measure: str
    name: str
    title: str
    unit: str = ""
    higher_is_better: bool = False
    is_exact: bool = False
    interval: tuple[str, str] | None = None
    samples: tuple[str, ...] = ()

    @property
    def heading(self) -> str:
        """Heading of its column in a table, with the unit if it has one."""
        return f"{self.name} ({self.unit})" if self.unit else self.name

    @property
    def axis(self) -> str:
        """Label of its axis in a figure, with the unit."""
        return f"{self.title} ({self.unit})"


ACCURACY = Quantity(
    column="acc1", measure="accuracy", name="acc1", title="accuracy, acc1", unit="%", higher_is_better=True
)
MACS = Quantity(
    column="gmacs", measure="flops", name="MACs", title="MACs of the network, one image", unit="GMAC", is_exact=True
)
FIRST_CORE_MACS = Quantity(
    column="first_core_gmacs",
    measure="flops",
    name="MACs of the first stage's attention cores",
    title="MACs of the first stage's attention cores, one image",
    unit="GMAC",
    is_exact=True,
)
PARAMETERS = Quantity(
    column="params_m", measure="flops", name="parameters", title="parameters", unit="millions", is_exact=True
)
LATENCY = Quantity(
    column="infer_latency_ms",
    measure="throughput",
    name="latency",
    title="latency of a batch",
    unit="ms",
    samples=("infer_ms",),
)
TRAINING_STEP = Quantity(
    column="train_step_ms",
    measure="throughput",
    name="training step",
    title="training step of a batch",
    unit="ms",
    samples=("train_forward_ms", "train_backward_ms", "train_optimizer_ms"),
)
SPEED_UP = Quantity(
    column="vs_vanilla",
    measure="throughput",
    name="speed-up over vanilla",
    title="speed-up over vanilla",
    higher_is_better=True,
    interval=("vs_vanilla_low", "vs_vanilla_high"),
)
TRAINING_SPEED_UP = Quantity(
    column="train_vs_vanilla",
    measure="throughput",
    name="speed-up over vanilla in training",
    title="speed-up over vanilla in training",
    higher_is_better=True,
    interval=("train_vs_vanilla_low", "train_vs_vanilla_high"),
)
MEMORY = Quantity(
    column="peak_infer_mib", measure="memory", name="peak memory", title="peak memory of inference", unit="MiB"
)
TRAINING_MEMORY = Quantity(
    column="peak_train_mib",
    measure="memory",
    name="peak memory in training",
    title="peak memory of training",
    unit="MiB",
)

COSTS = (MACS, LATENCY, TRAINING_STEP, MEMORY, TRAINING_MEMORY)
"""What accuracy is weighed against."""

QUANTITIES = (ACCURACY, *COSTS, PARAMETERS)
"""What a table of results shows, in this order."""


@dataclass(frozen=True, kw_only=True)
class Status:
    """How a measure, or a cell, stands.

    Attributes:
        name: its name in records, tables and on the command line.
        meaning: what it says, for readers.
        is_failure: reports list it and figures draw a cross.
        is_done: nothing is left to measure, and nothing to retry.
        is_recorded: a measure ends with it; the others follow from what lies on disk.
        may_pass: another attempt under the same settings may end otherwise, so `retry` takes it unless told not to.
    """

    name: str
    meaning: str
    is_failure: bool = False
    is_done: bool = False
    is_recorded: bool = False
    may_pass: bool = False


STATUSES = {
    status.name: status
    for status in (
        Status(
            name="error",
            meaning="any other exception, see `error_type`, `error_message` and `log_path`",
            is_failure=True,
            is_recorded=True,
            may_pass=True,
        ),
        Status(
            name="killed",
            meaning="the process was killed for another reason",
            is_failure=True,
            is_recorded=True,
            may_pass=True,
        ),
        Status(name="oom", meaning="the memory was exhausted", is_failure=True, is_recorded=True, may_pass=True),
        Status(name="timeout", meaning="the time limit was reached", is_failure=True, is_recorded=True, may_pass=True),
        Status(name="diverged", meaning="the loss became NaN or infinite", is_failure=True, is_recorded=True),
        Status(
            name="unsupported",
            meaning="the mechanism or the device cannot do it",
            is_failure=True,
            is_done=True,
            is_recorded=True,
        ),
        Status(name="running", meaning="not recorded yet; a live process holds the lease"),
        Status(
            name="lost",
            meaning="the process died before it recorded anything, or a file is damaged, see `error_message`",
            is_failure=True,
            may_pass=True,
        ),
        Status(name="pending", meaning="not started"),
        Status(name="ok", meaning="every measure that was asked for is there", is_done=True, is_recorded=True),
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
