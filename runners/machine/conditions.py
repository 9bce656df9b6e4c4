"""How numbers are computed, whichever they are: precision, attention kernel, layout in memory, determinism.

Every measure computes under the conditions of its cell and nothing else sets them, so that `fp32` is the same on a GPU
whose torch would use TF32 in convolutions. `Conditions.applied` sets what is global in torch and puts it back.
"""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ablations.study import Cell
from ablations.values import PRECISIONS, precision_today
from runners.machine.failures import Unsupported
from runners.machine.hardware import hardware

_AUTOCAST = {"amp-bf16": torch.bfloat16, "amp-fp16": torch.float16}
_WEIGHTS = {"bf16-weights": torch.bfloat16, "fp16-weights": torch.float16}
_KERNELS = {
    "math": SDPBackend.MATH,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
}
_ON_A_CPU = ("auto", "math", "flash")


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """How a cell computes; the fields are those of the cell."""

    precision: str = "fp32"
    sdpa: str = "auto"
    memory_format: str = "contiguous"
    deterministic: bool = False
    cudnn_benchmark: bool = False

    def __post_init__(self) -> None:
        """Refuse a precision that there is not."""
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {self.precision!r}")

    @classmethod
    def of(cls, cell: Cell) -> "Conditions":
        """Return those of a cell."""
        given = {field.name: getattr(cell, field.name) for field in fields(cls)}
        # pickled cells of earlier versions keep the word of their time
        return cls(**{**given, "precision": precision_today(cell.precision)})

    @property
    def dtype(self) -> torch.dtype:
        """Of matrix products."""
        return {**_AUTOCAST, **_WEIGHTS}.get(self.precision, torch.float32)

    def check(self, device: torch.device, training: bool = False) -> None:
        """Check that a device can compute so, and that it can train so.

        Raises:
            Unsupported: it cannot; the message says what can.
        """
        if self.precision == "tf32" and not hardware(device).has_tf32():
            raise Unsupported(f"precision tf32 needs a CUDA device of capability 8.0 or above, got {device}")
        if device.type != "cuda" and self.sdpa not in _ON_A_CPU:
            raise Unsupported(f"sdpa {self.sdpa} needs a CUDA device, got {device}; there are {', '.join(_ON_A_CPU)}")
        if training and not self.can_train:
            raise Unsupported(f"precision {self.precision} cannot be trained, for inference alone; take amp-fp16")

    @contextmanager
    def applied(self, device: torch.device) -> Iterator[None]:
        """Compute so within the block.

        Raises:
            Unsupported: see `check`.
        """
        self.check(device)
        with ExitStack() as undo:
            products = "high" if self.precision == "tf32" else "highest"
            undo.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
            torch.set_float32_matmul_precision(products)
            for name, value in (("allow_tf32", self.precision == "tf32"), ("benchmark", self.cudnn_benchmark)):
                undo.callback(setattr, torch.backends.cudnn, name, getattr(torch.backends.cudnn, name))
                setattr(torch.backends.cudnn, name, value)
            undo.callback(torch.use_deterministic_algorithms, torch.are_deterministic_algorithms_enabled())
            if self.deterministic:
                # without it cuBLAS is not, and torch refuses its products
                undo.callback(_restore, "CUBLAS_WORKSPACE_CONFIG", os.environ.get("CUBLAS_WORKSPACE_CONFIG"))
                os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(self.deterministic)
            if self.sdpa != "auto":
                undo.enter_context(sdpa_kernel(_KERNELS[self.sdpa]))
            yield

    def autocast(self, device: torch.device) -> torch.autocast:
        """Context of a forward pass."""
        dtype = _AUTOCAST.get(self.precision)
        return torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)

    def place(self, model: nn.Module, device: torch.device) -> nn.Module:
        """Move a model to a device, with weights of this precision and in this memory format."""
        # torch's annotations know these arguments only one by one
        placed: nn.Module = model.to(  # type: ignore[call-overload]
            device=device, dtype=_WEIGHTS.get(self.precision), memory_format=self._format()
        )
        return placed

    def place_images(self, images: Tensor, device: torch.device) -> Tensor:
        """Move a batch (B, 3, height_px, width_px) to a device, as its model wants it."""
        return images.to(device=device, dtype=_WEIGHTS.get(self.precision), memory_format=self._format())

    def scaler(self, device: torch.device, init_scale: float = 2.0**16) -> torch.amp.GradScaler:
        """Scaler of the loss, at work for autocast to fp16 alone, whose small gradients would be 0.

        A step whose gradients overflow is left out, so a measurement of a few steps begins with a scale of 1.
        """
        return torch.amp.GradScaler(device.type, init_scale, enabled=self.precision == "amp-fp16")

    @property
    def can_train(self) -> bool:
        """Whether AdamW can: its steps are too small for weights in fp16, and where it divides there may be a 0."""
        return self.precision != "fp16-weights"

    def _format(self) -> torch.memory_format:
        return torch.channels_last if self.memory_format == "channels_last" else torch.preserve_format


def _restore(name: str, value: str | None) -> None:
    """Give a variable of the environment the value that it had before."""
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value


def in_force() -> dict[str, Any]:
    """What of torch's own settings decides how products and convolutions of fp32 are computed, for the row."""
    return {
        "matmul_precision": torch.get_float32_matmul_precision(),
        "cudnn_tf32": torch.backends.cudnn.allow_tf32,
    }
