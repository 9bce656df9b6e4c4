"""Blocks of ours beside the same blocks of timm: none may be slower."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from attention_zoo import LAYOUTS, create, create_model
from benchmarks.claims import Claim
from benchmarks.models import FORWARD_1, FORWARD_8, OUR_SWIN, TIMM_MAXVIT, TIMM_SWIN, TRAIN_8, Work, build
from benchmarks.sections import Run, Task, timed

BATCH = 8
SWIN_WANTED = {FORWARD_8: 1.3, FORWARD_1: 1.0, TRAIN_8: 1.0}
Pair = Callable[[], tuple[nn.Module, nn.Module, Tensor]]
"""Makes a module of ours, timm's twin of it, and an input of both."""


def twins(rounds: int) -> list[Task]:
    """Swin-Tiny as a whole; blocks of Swin and MaxViT with norms and MLP; attention of ViT and PVT v2 alone."""
    tasks = [_whole_swin(work, rounds) for work in SWIN_WANTED]
    for training in (False, True):
        wanted = 1.0 if training else 1.3
        for kind in ("block", "grid"):
            for stage in (0, 1):
                tasks.append(_pair(f"maxvit {kind}", 56 >> stage, rounds, training, _maxvit(kind, stage), wanted))
        for stage, shift in ((0, 0), (0, 3), (1, 3)):
            tasks.append(_pair(f"swin shift {shift}", 56 >> stage, rounds, training, _swin(stage, shift), 1.0))
        tasks.append(_pair("vanilla", 14, rounds, training, _vanilla, 1.0))
        tasks.append(_pair("pvt", 56, rounds, training, _pvt, 1.0))
    return tasks


def _whole_swin(work: Work, rounds: int) -> Task:
    names = (OUR_SWIN, TIMM_SWIN)
    claims = [Claim(OUR_SWIN, TIMM_SWIN, SWIN_WANTED[work])]
    return timed("twins", str(work), rounds, lambda: {name: work.prepare(build(name)) for name in names}, claims)


def _pair(name: str, side: int, rounds: int, training: bool, make: Pair, wanted: float) -> Task:
    work = f"{name} on {side}x{side}, forward{' + backward' if training else ''}"

    def contenders() -> dict[str, Run]:
        ours, theirs, x = make()
        return {"ours": run_module(ours, x, training), "timm's": run_module(theirs, x, training)}

    return timed("twins", work, rounds, contenders, [Claim("ours", "timm's", wanted)])


def run_module(module: nn.Module, x: Tensor, training: bool) -> Run:
    """Make what runs a module forward in inference mode, or forward and backward down to the input."""
    module.train(training)

    def infer() -> object:
        with torch.inference_mode():
            return module(x)

    def step() -> object:
        x.grad = None
        module.zero_grad()
        module(x).sum().backward()
        return x.grad

    x.requires_grad_(training)
    return step if training else infer


def _block(attn: str, stage: int, dim: int, **config: Any) -> nn.Module:
    """A block of a stage whose maps have `dim` channels."""
    dims = tuple(dim << (other - stage) if other >= stage else dim >> (stage - other) for other in range(4))
    layout = replace(LAYOUTS["stl"], dims=dims, depths=(1, 1, 1, 1))
    return create_model(layout, attn=attn, **config).get_submodule(f"stages.{stage}.0")


def _maxvit(kind: str, stage: int) -> Pair:
    def make() -> tuple[nn.Module, nn.Module, Tensor]:
        theirs = getattr(build(TIMM_MAXVIT).get_submodule(f"stages.{stage}.blocks.1"), f"attn_{kind}")
        dim = theirs.norm1.normalized_shape[0]
        ours = _block("maxvit", stage, dim, window=7, kind=kind)
        return ours, theirs, torch.randn(BATCH, 56 >> stage, 56 >> stage, dim)

    return make


def _swin(stage: int, shift: int) -> Pair:
    def make() -> tuple[nn.Module, nn.Module, Tensor]:
        theirs = build(TIMM_SWIN).get_submodule(f"layers.{stage}.blocks.{int(shift > 0)}")
        dim = 96 << stage
        ours = _block("swin", stage, dim, window=7, shift=shift)
        return ours, theirs, torch.randn(BATCH, 56 >> stage, 56 >> stage, dim)

    return make


class _OnTokens(nn.Module):
    """Runs a module of tokens, (B, N, C), on a map."""

    def __init__(self, module: nn.Module, *, takes_size: bool) -> None:
        super().__init__()
        self.module, self.takes_size = module, takes_size

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(1, 2)
        y: Tensor = self.module(tokens, x.shape[1:3]) if self.takes_size else self.module(tokens)
        return y.reshape(x.shape)


def _vanilla() -> tuple[nn.Module, nn.Module, Tensor]:
    from timm.layers.attention import Attention as TimmAttention

    theirs = _OnTokens(TimmAttention(384, num_heads=6), takes_size=False)
    return create("vanilla", dim=384, num_heads=6), theirs, torch.randn(BATCH, 14, 14, 384)


def _pvt() -> tuple[nn.Module, nn.Module, Tensor]:
    from timm.models.pvt_v2 import Attention as PVTAttention

    theirs = _OnTokens(PVTAttention(64, num_heads=1, sr_ratio=8), takes_size=True)
    return create("pvt", dim=64, num_heads=1, reduction=8), theirs, torch.randn(BATCH, 56, 56, 64)
