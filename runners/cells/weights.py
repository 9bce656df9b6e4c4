"""Models by name or from a file of weights, for whoever looks at one model instead of sweeping over many.

`save_checkpoint` writes the weights together with what the model is, so that `load_model` needs the path alone:

    save_checkpoint("swin.pth", model, "small", attn="swin", window=4)
    model, label = load_model("swin.pth")

Other files hold weights without a name, ours or the published codes': they need `arch`. No file runs code.
"""

import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from attention_zoo import LAYOUTS, create_model
from attention_zoo.hosts.pyramid import Pyramid
from attention_zoo.published.models import PUBLISHED
from attention_zoo.published.places import Official
from attention_zoo.published.weights import classes_in, load_weights, read_weights
from attention_zoo.registry import suggest
from runners.cells.named import TIMM, is_rival
from runners.cells.task_data import CLASSIFY
from runners.store.files import StoreError, write_whole

SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".safetensors")
FORMAT = "attention_zoo"
"""Key of the file under which it says what it holds."""
SEED = 0
"""Of the weights of a model that is given by name."""

NAMES = sorted({*LAYOUTS, *PUBLISHED})
"""Layouts and published models."""

State = dict[str, Tensor]


class Model(NamedTuple):
    """A model in evaluation mode, and what it is in words."""

    model: Pyramid
    label: str


class Identity(NamedTuple):
    """What `create_model` needs: a layout or published model, the mechanism, and fields of its configuration.

    Of a model of a dense task these are the backbone's, and `head` is what reads its maps.
    """

    arch: str
    attn: str | None
    config: dict[str, Any]
    task: str = CLASSIFY
    head: str = ""

    def __str__(self) -> str:
        """Spell it for people: `small, bra, topk=8`."""
        attn = self.attn or ("bra" if self.arch in LAYOUTS else None)
        parts = [self.arch, *([attn] if attn else []), *(f"{k}={v}" for k, v in self.config.items())]
        return ", ".join([*parts, *([f"{self.head} for task {self.task}"] if self.head else [])])


def save_checkpoint(
    path: str | Path,
    model: nn.Module,
    arch: str,
    /,
    *,
    attn: str | None = None,
    dense: tuple[str, str] | None = None,
    **config: int | float | str | bool,
) -> None:
    """Write the weights of a model that `create_model(arch, attn=attn, **config)` made, and those arguments.

    Of one that timm made `arch` is `timm:NAME`; `timm.create_model` reads the weights under `model`.
    Of a model of a dense task the arguments are its backbone's, and `dense` names the task and the head.

    Raises:
        StoreError: the file cannot be written; one that was there before stays.
    """
    content = io.BytesIO()
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror or error}") from error
    told: dict[str, Any] = {"arch": arch, "attn": attn, "config": config}
    if dense is not None:
        told |= dict(zip(("task", "head"), dense, strict=True))
    torch.save({"model": model.state_dict(), FORMAT: told}, content)
    write_whole(Path(path), content.getvalue())


def is_file_name(model: str) -> bool:
    """Whether a `--model` is a path and no name."""
    return model.endswith(SUFFIXES) or os.sep in model or Path(model).is_file()


def load_model(
    model: str, *, arch: str | None = None, attn: str | None = None, config: Mapping[str, Any] | None = None
) -> Model:
    """Build a model by its name, with random weights, or load one from a file.

    `arch`, `attn` and `config` say what an anonymous file holds, and must not contradict one that says so itself; of a
    name, `attn` and `config` choose the mechanism.

    Raises:
        ValueError: an unknown name, values that do not fit, a file that cannot be read or is another model's, or a
            model of timm, whose attention is not the zoo's.
    """
    if is_file_name(model):
        path = Path(model)
        loaded, identity = load_file(path, arch=arch, attn=attn, config=config)
        return Model(loaded, f"{identity} (weights of {path.name})")
    if arch is not None:
        raise ValueError(
            f"arch={arch} says what a checkpoint file holds, and model={model} is no file; give the name alone"
        )
    loaded, identity = random_model(model, attn=attn, config=config)
    return Model(loaded, f"{identity} (random weights)")


def random_model(
    name: str, *, attn: str | None = None, config: Mapping[str, Any] | None = None, num_classes: int = 1000
) -> tuple[Pyramid, Identity]:
    """Build a model by its name in evaluation mode, its weights drawn from `SEED`, and say what it is.

    Raises:
        ValueError: an unknown name, or values that do not fit.
    """
    _check_arch("model", name)
    identity = Identity(name, attn, dict(config or {}))
    return _build(identity, num_classes).eval(), identity


def _refuse_rival(what: str, name: str) -> None:
    if is_rival(name):
        architecture = name.removeprefix(TIMM)
        raise ValueError(
            f"{what} is timm's {architecture}, whose attention nothing here can show; timm.create_model builds it, and "
            "torch.load(FILE, weights_only=True)['model'] has the weights of a sweep"
        )


def _refuse_dense(path: Path, written: Identity) -> None:
    if written.task != CLASSIFY:
        raise ValueError(
            f"{path} holds {written}; models of images as a whole alone are loaded here, and a sweep of a dense task "
            f"starts from it by --init-from"
        )


def _check_arch(what: str, name: str) -> None:
    _refuse_rival(f"{what} {name}", name)
    if name not in NAMES:
        raise ValueError(suggest(what, name, NAMES) + (", or the path of a checkpoint" if what == "model" else ""))


def _build(identity: Identity, num_classes: int = 1000) -> Pyramid:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        return create_model(identity.arch, attn=identity.attn, num_classes=num_classes, **identity.config)


def load_file(
    path: Path,
    *,
    arch: str | None = None,
    attn: str | None = None,
    config: Mapping[str, Any] | None = None,
    ema: bool = False,
    named_by: str = "arch",
) -> tuple[Pyramid, Identity]:
    """Load a checkpoint in evaluation mode, and say what it is of; `ema` takes the moving average of its weights.

    `named_by` is what messages call `arch`.

    Raises:
        ValueError: what `load_model` raises for a file.
    """
    state, written = read_checkpoint(path, ema=ema)
    config = dict(config or {})
    if written is None:
        if arch is None:
            raise ValueError(f"{path} does not say what model it holds; name it by {named_by}: {', '.join(NAMES)}")
        _check_arch(named_by, arch)
        identity = Identity(arch, attn, config)
    else:
        _refuse_dense(path, written)
        _refuse_rival(str(path), written.arch)
        identity = _agreed(path, written, {named_by: arch, "attn": attn}, config)
    model = _build(identity, num_classes=classes_in(state))
    published = PUBLISHED.get(identity.arch)
    try:
        load_weights(model, state, Official(published.official) if published else None)
    except ValueError as error:
        raise ValueError(f"{path} is no checkpoint of {identity}: {error}") from error
    return model.eval(), identity


def _agreed(path: Path, written: Identity, named: dict[str, str | None], config: dict[str, Any]) -> Identity:
    """Refuse what contradicts the file; `named` are layout or model and mechanism, by what messages call them."""
    own_attn = written.attn or "bra"
    for (name, wanted), own in zip(named.items(), (written.arch, own_attn), strict=True):
        if wanted not in (None, own):
            raise ValueError(f"{path} holds {written}, not {name}={wanted}; leave {name} out, the file says what it is")
    if ":" in own_attn and named["attn"] is None:
        raise ValueError(f"{path} holds {written}: to import that module, which can run any code, give attn={own_attn}")
    if config:
        listed = ", ".join(f"{key}={value}" for key, value in config.items())
        raise ValueError(f"{path} holds {written} and takes no other settings, got {listed}")
    return written


def read_checkpoint(path: Path, *, ema: bool = False) -> tuple[State, Identity | None]:
    """Read the weights in a file, or their moving average, and what they are of if it says so; runs no code of it.

    `attention_zoo.published.weights.read_weights` says where the weights may lie.

    Raises:
        ValueError: it cannot be read, or holds no weights.
    """
    try:
        state, rest, _ = read_weights(path, ema=ema)
    except ValueError as error:
        raise ValueError(f"checkpoint {error}") from error
    return state, _identity(path, rest.get(FORMAT))


def _identity(path: Path, written: Any) -> Identity | None:
    if written is None:
        return None
    told = {**Identity._field_defaults, **(written if isinstance(written, dict) else {})}
    arch, attn, config, task, head = map(told.get, Identity._fields)
    if not isinstance(arch, str) or not isinstance(attn, (str, type(None))) or not isinstance(config, dict):
        raise ValueError(f"checkpoint {path} has an entry {FORMAT!r} that save_checkpoint did not write")
    return Identity(arch, attn, config, str(task), str(head))
