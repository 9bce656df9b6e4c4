"""A sweep as Python sees it: which cells, which measures, and a run of what is missing; the command line makes one.

from runners import Sweep

rows = Sweep(attn=["bra", "swin"], topk=[1, 4], resolution=[64, 128], measures=["flops"]).run("results/runs")
"""

from collections.abc import Iterable
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd

from ablations import Axes, Study, cell_key, load_study
from ablations.values import HEADS, choice, read_values
from attention_zoo.registry import suggest
from runners.cells.plan import as_keyword, make_plan
from runners.cells.plan_training import Spelling
from runners.cells.registered import is_registered_here
from runners.cells.shares import check_shares
from runners.cells.starting import KEY, check_start
from runners.cells.task_data import CLASSIFY
from runners.jobs.executors import PLACEHOLDERS
from runners.jobs.launch import Order, Outcome, check_plain, launch
from runners.jobs.local import LocalRun
from runners.jobs.options import RunOptions
from runners.jobs.progress import print_submission
from runners.jobs.request import make_request, study_name
from runners.machine.environment import check_local_ranks, pick_device
from runners.measures import DEFAULT_MEASURES, MEASURES
from runners.store.store import Store, open_store
from runners.table import load


class Sweep:
    """Cells and the measures that are wanted of them; `run` measures what is missing and returns the rows."""

    def __init__(
        self,
        *,
        study: str | Study | None = None,
        measures: str | Iterable[str] | None = None,
        spell: Spelling = as_keyword,
        **values: Any,
    ) -> None:
        """Plan the cells: every combination of `values`, of which a list makes an axis.

        They have the names of the flags: `attn`, `model`, `baseline`, `layout`, `resolution`, `seeds`, `data`, `steps`,
        `epochs`, `recipe`, `init_from`, `reset_classes`, `freeze`, `tune_lr`, `strict_data`, `target_acc`,
        `batch_size`, `precision`, `compile`, `sdpa`, `memory_format`, `deterministic`, `cudnn_benchmark`, `threads`.
        Any other name is a field of the mechanisms that have it, such as `topk` or `window`; one of swin alone is
        `**{"swin.window": [2, 4]}`, and one of the recipes `**{"recipe.lr": [1e-3, 3e-3]}`. A pair (height, width) is
        one value, `seeds=3` stands for the seeds 0, 1 and 2. A study brings its cells, and the values take the place of
        its own.

        Raises:
            ValueError: a value is unknown or does not fit; the message names argument, value and what is allowed.
        """
        self.study = load_study(study) if isinstance(study, str) else study
        asked = measures or (self.study and self.study.measures) or DEFAULT_MEASURES
        chosen = read_values("measures", asked, choice(*MEASURES))
        self.measures = tuple(measure for measure in MEASURES if measure in chosen)
        self.spell = spell
        self.plan = make_plan([axes.changed(values) for axes in (self.study.axes if self.study else (Axes(),))], spell)

    def run(self, out: str | Path = "results/runs", **options: Any) -> pd.DataFrame:
        """Measure what is missing, one cell after another with a progress bar, and return the rows of these cells.

        `options` are the fields of `runners.jobs.options.RunOptions`, which have the names of the flags. With
        `cluster="slurm"` the jobs are submitted, and the rows are those of now.

        Raises:
            ValueError: an option is unknown or not allowed, or the results folder cannot be used.
            KeyboardInterrupt: the running job is ended, what it recorded stays.
        """
        known = [field.name for field in fields(RunOptions)]
        for name in options:
            if name not in known:
                raise ValueError(suggest("option", name, known))
        checked = RunOptions(**options)
        store = self.open(Path(out), checked)
        if checked.cluster == "slurm":
            outcome, name = self.submit(store, checked)
            print_submission(outcome, name, store.out)
        else:
            self.local(store, checked).run()
        return self.rows(store)

    def open(self, out: Path, options: RunOptions) -> Store:
        """Check that these cells can be run so, and open the results folder.

        Raises:
            ValueError: they cannot.
        """
        self.check(options)
        if options.cluster == "local":
            check_plain(out, PLACEHOLDERS)
        elif options.cluster == "slurm":
            check_plain(out)
        store = open_store(out, create=True)
        for cell in self.plan.cells:
            if KEY.fullmatch(cell.init_from):  # files were checked when the cells were planned
                check_start(cell, store)
        return store

    def check(self, options: RunOptions) -> None:
        """Check that these cells can be run so.

        Raises:
            ValueError: they cannot, or the device is not here.
        """
        for name in ("save_weights", "tensorboard", "save_predictions"):
            if (value := getattr(options, name)) and "accuracy" not in self.measures:
                given = self.spell(name, ["on" if value is True else str(value)])
                measures = ", ".join(self.measures)
                raise ValueError(f"{given}: nothing is trained to measure {measures}; add the measure accuracy")
        if options.save_predictions:
            self._check_pictures(self.spell("save_predictions", [str(options.save_predictions)]))
        if options.tensorboard and find_spec("tensorboard") is None:
            given = self.spell("tensorboard", ["on"])
            raise ValueError(f"{given}: tensorboard is not installed: pip install 'attention-zoo[watch]'")
        if options.cluster != "slurm":  # there the nodes decide
            pick_device(options.device)
        elif local := [cell.attn for cell in self.plan.cells if is_registered_here(cell.attn)]:
            raise ValueError(
                f"{self.spell('attn', local[:1])}: a job of SLURM cannot import what this process has registered; "
                "put the class into a file and give --attn module:Class"
            )
        for name in options.without_slurm():
            needed, given = self.spell("cluster", ["slurm"]), self.spell("cluster", [options.cluster])
            raise ValueError(f"{self.spell(name, [])} needs {needed}, got {given}")
        if options.cluster != "slurm" and options.processes > 1:
            self._check_processes(options)
        elif options.cluster != "slurm" and "accuracy" in self.measures:
            check_shares(self.plan.cells, 1, self.spell)

    def _check_pictures(self, given: str) -> None:
        """Check that there is something to draw of each cell.

        Raises:
            ValueError: a cell is of a task whose predictions are no pictures.
        """
        if any(cell.task == CLASSIFY for cell in self.plan.cells):
            dense = ", ".join(name for name in HEADS if name != CLASSIFY)
            raise ValueError(f"{given}: cells of task {CLASSIFY} have nothing to draw; allowed: {dense}")

    def _check_processes(self, options: RunOptions) -> None:
        """Check that several processes of this machine can train these cells.

        Raises:
            ValueError: they cannot.
        """
        count = options.processes
        given = self.spell("procs_per_node" if options.procs_per_node else "gpus_per_node", [str(count)])
        if options.cluster == "debug":
            raise ValueError(
                f"{given}: {self.spell('cluster', ['debug'])} runs in one process; allowed: local and slurm"
            )
        if "accuracy" not in self.measures:
            raise ValueError(
                f"{given}: nothing is trained to measure {', '.join(self.measures)}; add the measure accuracy"
            )
        check_local_ranks(options.device, count, given)
        check_shares(self.plan.cells, count, self.spell)

    def local(self, store: Store, options: RunOptions) -> LocalRun:
        """Return the run of what is missing on this machine."""
        study = options.name or (self.study.name if self.study else None)
        return LocalRun(self.plan, store, self.measures, study, options, self.spell)

    def submit(self, store: Store, options: RunOptions) -> tuple[Outcome, str]:
        """Hand what is missing to SLURM; return what came of it and the name of the study.

        Raises:
            ValueError: anything for which nothing was submitted.
        """
        cells = {cell_key(cell): (cell, self.measures) for cell in self.plan.cells}
        declared = self.study
        request = make_request(options, options.time, defaults=declared.slurm if declared else ())
        if "accuracy" in self.measures:
            check_shares(self.plan.cells, request.world_size, self.spell)
        order = Order(
            study=study_name(options.name or (declared.name if declared else None), cells, self.measures),
            cells=cells,
            request=request,
            device=options.device,
            memory_limit_mib=options.memory_limit,
            patience_s=options.patience,
            workers=options.workers,
            checkpoint_every_s=options.checkpoint_every,
            save_weights=options.save_weights,
            tensorboard=options.tensorboard,
            save_predictions=options.save_predictions,
            retry=options.retry,
            force=options.force,
        )
        return launch(store, order, print), order.study

    def rows(self, store: Store) -> pd.DataFrame:
        """Rows of these cells in a results folder, in the order in which they run."""
        table = load(store.out)
        order = {cell_key(cell): position for position, cell in enumerate(self.plan.cells)}
        rows = table[table["cell_key"].isin(list(order))]
        return rows.sort_values("cell_key", key=lambda keys: keys.map(order), kind="stable").reset_index(drop=True)
