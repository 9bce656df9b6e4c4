"""Weights from which a training starts: those that an earlier cell kept, or a file of anybody's.

`--init-from KEY` names a cell of the same results folder, `--init-from FILE` a checkpoint: ours, timm's, or the
published ones of a published model. Everything but the classifier must fit; with `--reset-classes` that begins anew.
A model of a dense task takes what its backbone has of a classifier, and its head begins anew; from one of a dense task
it takes all, or with `--reset-classes` the backbone alone.
Tables of positions that were learned for maps or windows of another size are resampled.
"""

import functools
import hashlib
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ablations.study import Cell
from attention_zoo.published.models import PUBLISHED, in_our_names
from attention_zoo.published.weights import load_weights
from runners.cells.models import build_model
from runners.cells.task_data import count_classes_of
from runners.cells.weights import State, read_checkpoint
from runners.store.files import list_names
from runners.store.store import Store
from runners.train.freezing import classifier_names

if TYPE_CHECKING:
    from attention_zoo.dense import DenseModel

BACKBONE = "backbone.model."
"""What the names of a backbone's weights begin with in a model of a dense task."""
HEAD = "head."
"""What the names of a head's begin with."""
KEY = re.compile(r"[0-9a-f]{16}")


class Start(NamedTuple):
    """Weights, the file that they are of, and the first 16 hex digits of its SHA-256."""

    state: State
    path: Path
    sha256: str


def find_start(name: str, store: Store | None, device_id: str | None = None) -> Path | None:
    """Return the file that `--init-from` means; None for a cell while no results folder is known.

    Raises:
        ValueError: there is no such file, or the cell has kept no weights.
    """
    if not KEY.fullmatch(name):
        if not Path(name).is_file():
            raise ValueError(f"init_from={name} is neither a file nor the key of a cell, 16 hex digits")
        return Path(name)
    if store is None:
        return None
    kept = [file for file in list_names(str(store.folder(name))) if re.fullmatch(r"weights\..+\.pth", file)]
    kept = [file for file in kept if not (store.folder(name) / file).is_symlink()]  # which may lead anywhere
    if not kept:
        raise ValueError(f"init_from={name}: the cell has no kept weights in {store.out}; train it with --save-weights")
    own = f"weights.{device_id}.pth"
    last = [file for file in kept if not file.endswith(".best.pth")]
    return store.folder(name) / (own if own in kept else [*last, *kept][0])


@functools.lru_cache(maxsize=2)
def read_start(path: Path) -> Start:
    """Read weights; kept, for many cells may start from them.

    Raises:
        ValueError: the file cannot be read or holds no weights.
    """
    state, _ = read_checkpoint(path)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    return Start(state, path, digest.hexdigest()[:16])


def check_start(cell: Cell, store: Store | None = None) -> None:
    """Check that a cell can start from what it names; a cell's weights are looked for where a results folder is given.

    Raises:
        ValueError: it cannot.
    """
    path = find_start(cell.init_from, store)
    if path is None:
        return
    with torch.device("meta"):
        model = build_model(cell, count_classes_of(cell.task, cell.data))
    try:
        start_from(model, read_start(path), reset_classes=cell.reset_classes, published=cell.model)
    except ValueError as error:
        raise ValueError(f"init_from={cell.init_from}: {error}") from error


def start_from(model: nn.Module, start: Start, *, reset_classes: bool = False, published: str = "") -> None:
    """Load the weights of a start into a model; `published` is its name, whose official weights are known.

    Raises:
        ValueError: they are another model's, or of another number of classes.
    """
    if hasattr(model, "head_macs"):  # of a dense task
        _start_dense(cast(Any, model), start, published, reset_head=reset_classes)
        return
    if any(name.startswith(BACKBONE) for name in start.state):
        raise ValueError(f"{start.path} holds weights of a model of a dense task, which a classifier cannot start from")
    own = model.state_dict()
    head = classifier_names(model)
    given = _in_our_names(published, start)
    state = {name: _resampled(name, tensor, own.get(name)) for name, tensor in given.items()}
    if reset_classes:
        state = {name: tensor for name, tensor in state.items() if name not in head} | {
            name: own[name] for name in head
        }
    classes = {len(weights[name]) for name in head for weights in (own, state) if name in weights}
    if len(classes) > 1:
        theirs, ours = (next(len(weights[name]) for name in head if name in weights) for weights in (state, own))
        raise ValueError(
            f"{start.path} holds weights for {theirs} classes and the data have {ours}; give --reset-classes to begin "
            "with a new classifier"
        )
    try:
        with warnings.catch_warnings():
            # planning checks the names and shapes on a model without memory
            warnings.filterwarnings("ignore", "for .*: copying from a non-meta parameter")
            load_weights(model, state)
    except ValueError as error:
        raise ValueError(f"{start.path} holds weights of another model: {error}") from error


def _start_dense(model: "DenseModel", start: Start, published: str, *, reset_head: bool) -> None:
    """Load what an image classifier learned into a backbone, or the weights of a model of a dense task."""
    is_dense = any(name.startswith(BACKBONE) for name in start.state)
    # those of a dense task are our own
    given = start.state if is_dense else model.backbone.in_own_names(_in_our_names(published, start))
    subject: nn.Module = model if is_dense else model.backbone.model
    own = subject.state_dict()
    if is_dense:
        heads = [{n: w.shape for n, w in state.items() if n.startswith(HEAD)} for state in (own, given)]
        if reset_head:
            given = {name: given[name] for name in given if not name.startswith(HEAD)}
            given |= {name: own[name] for name in heads[0]}
        elif heads[0] != heads[1]:
            raise ValueError(
                f"{start.path} holds weights of another head or for other classes; give --reset-classes to take the "
                "backbone alone"
            )
    if lacking := sorted(own.keys() - given.keys()):
        raise ValueError(f"{start.path} holds weights of another model: it lacks {', '.join(lacking[:3])}")
    try:
        with warnings.catch_warnings():
            # planning checks the names and shapes on a model without memory
            warnings.filterwarnings("ignore", "for .*: copying from a non-meta parameter")
            # the classifier and the norm before it are nothing that a backbone has
            load_weights(subject, {name: _resampled(name, given[name], own[name]) for name in own})
    except ValueError as error:
        raise ValueError(f"{start.path} holds weights of another model: {error}") from error


def _in_our_names(published: str, start: Start) -> State:
    if published not in PUBLISHED:
        return start.state
    try:
        return in_our_names(published, start.state)
    except ValueError as error:
        raise ValueError(f"{start.path} holds weights of another model: {error}") from error


def _resampled(name: str, tensor: Tensor, own: Tensor | None) -> Tensor:
    """Fit a table of positions to another size, bicubic as timm and the published codes do."""
    if own is None or own.shape == tensor.shape:
        return tensor
    if name.startswith("positions.") and tensor.ndim == own.ndim == 4 and tensor.shape[1] == own.shape[1]:
        return F.interpolate(tensor, own.shape[2:], mode="bicubic", align_corners=False)
    if name.endswith("bias_table") and tensor.ndim == own.ndim == 2 and tensor.shape[1] == own.shape[1]:
        side = (round(len(own) ** 0.5) + 1) // 2
        if (2 * side - 1) ** 2 == len(own):
            from timm.layers import resize_rel_pos_bias_table_simple  # seconds of import

            resized: Tensor = resize_rel_pos_bias_table_simple(tensor, (side, side), tuple(own.shape))
            return resized
    return tensor
