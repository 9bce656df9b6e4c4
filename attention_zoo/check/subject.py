"""What is checked: a mechanism in one configuration, with weights and maps that show its mistakes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from attention_zoo.base import Attention
from attention_zoo.config import AttentionConfig

Size = tuple[int, int]
Values = dict[str, Tensor]

SIZES: tuple[Size, ...] = ((6, 12), (5, 7), (7, 4))
"""Height and width of the maps, tokens: the first divides into most regions, the others do not."""

MORE_SIZES: tuple[Size, ...] = ((1, 1), (1, 9), (8, 1), (2, 3), (13, 6), (12, 12), (9, 18), (6, 42))
"""Further maps, where a configuration fits them."""


class Failed(AssertionError):
    """A check failed; the message says what to change, to whoever wrote the mechanism."""


class NotApplicable(Exception):
    """A check has nothing to say about a mechanism; the message says why."""


@dataclass(frozen=True)
class Subject:
    """A mechanism's class, its configuration, channels and heads, and the maps that it is tried on."""

    cls: type[Attention]
    config: AttentionConfig
    dim: int = 12
    num_heads: int = 2
    sizes: Sequence[Size] = SIZES

    def build(self, **changes: Any) -> Attention:
        """Build it in float64; `changes` are fields of its configuration.

        All weights are drawn anew: with initial ones the softmax is flat and tables of biases are all but 0.
        """
        make: Callable[..., Attention] = self.cls
        # whoever resolves a name may be building a model on the meta device, which has no numbers to compare
        with torch.device("cpu"), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            attention = make(self.dim, self.num_heads, self.config.replace(**changes)).double().eval()
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in attention.parameters():
                parameter.normal_(0, 0.4 * (12 / self.dim) ** 0.5, generator=generator)
        return attention

    def images(self, size: Size, batch: int = 2) -> Tensor:
        """Feature maps of `batch` images, (batch, H, W, C) in float64, the same at each call."""
        generator = torch.Generator().manual_seed(1)
        return torch.randn(batch, *size, self.dim, generator=generator, dtype=torch.float64, device="cpu")

    def fits(self, size: Size) -> bool:
        """Whether the configuration fits a map."""
        try:
            self.build().geometry(*size)
        except ValueError:
            return False
        return True

    @property
    def reads_padding(self) -> bool:
        """Whether padded tokens are read like others, as some published code does."""
        return getattr(self.config, "pad_rule", "mask") in ("input", "projected")

    def unpadded_size(self) -> Size:
        """Return a map that needs no padding.

        Raises:
            NotApplicable: there is none among those that are tried.
        """
        attention = self.build()
        for size in (*self.sizes, *MORE_SIZES):
            if min(size) > 1 and self.fits(size) and attention.geometry(*size)["pad_ratio"] == 0:
                return size
        raise NotApplicable("every map of the check is padded, and padding is read")


def evaluate(attention: Attention, x: Tensor, run: Callable[[Tensor], Tensor]) -> Values:
    """Output of `run`, and the gradients of a fixed sum of it with respect to x and every parameter.

    Raises:
        Failed: a parameter gets no gradient.
    """
    x = x.detach().requires_grad_()
    y = run(x)
    probe = torch.cos(torch.arange(y.numel(), dtype=torch.float64)).reshape(y.shape).to(y.dtype)
    leaves = {"gradient of x": x, **dict(attention.named_parameters())}
    gradients = torch.autograd.grad((y * probe).sum(), [*leaves.values()], allow_unused=True)
    values = {"output": y.detach()}
    for name, gradient in zip(leaves, gradients, strict=True):
        if gradient is None:
            raise Failed(f"{getattr(run, '__name__', 'forward')} does not use {name}: no gradient reaches it")
        values[name] = gradient
    return values


def require_close(
    found: Values, expected: Values, what: str, hint: str = "", *, rtol: float = 1e-9, atol: float = 1e-10
) -> None:
    """Compare values name by name.

    Raises:
        Failed: shape, type or numbers of one differ; the message begins with `what` and ends with `hint`.
    """
    for name, value in expected.items():
        if (found[name].shape, found[name].dtype) != (value.shape, value.dtype):
            raise Failed(f"{what}: {name} is {describe(found[name])}, expected {describe(value)}")
        if not torch.allclose(found[name], value, rtol=rtol, atol=atol):
            raise Failed(f"{what}: {name} differs by {(found[name] - value).abs().max():.2g}{hint}")


def require_connectivity(subject: Subject) -> None:
    """Leave out a check that asks `connectivity`, of a mechanism with a reference of its own that has none.

    Raises:
        NotApplicable: it has none.
    """
    if subject.cls.connectivity is Attention.connectivity:
        raise NotApplicable("it has no connectivity(x, queries), and a reference of its own")


def describe(value: Any) -> str:
    """Shape and type of a tensor, the class of anything else."""
    return f"{tuple(value.shape)} {value.dtype}" if isinstance(value, Tensor) else type(value).__name__


def on(size: Size) -> str:
    """Name a map in a message."""
    return f"on a {size[0]}x{size[1]} map"
