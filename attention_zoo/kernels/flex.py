"""Routed attention without a gather: FlexAttention reads the routes as a mask of blocks.

Dong et al., "Flex Attention: A Programming Model for Generating Optimized Attention Kernels", arXiv:2412.05496. The
kernel is compiled for each shape (on a CPU by a C++ compiler, seconds each) and not anew when the routes change. On a
CPU it has no backward pass. It stays for CUDA, for which it is made; no gain on a CPU is claimed.
"""

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from attention_zoo.regions import Partition, blank, from_heads, to_heads

MOST_SHAPES = 256
"""Kernels that a process compiles; four stages at a few batch sizes and resolutions are over torch's limit of 8."""


@functools.cache
def _compiled() -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention  # it loads the compiler, seconds

    compiled: Callable[..., Tensor] = torch.compile(  # type: ignore[call-overload]  # its annotations lack the limit
        flex_attention, dynamic=False, fullgraph=True, isolate_recompiles=True, recompile_limit=MOST_SHAPES
    )
    return compiled


def check_runs(x: Tensor) -> None:
    """Do nothing where the kernel runs.

    Raises:
        ValueError: it does not run for such a tensor here.
    """
    if x.device.type not in ("cpu", "cuda"):
        raise ValueError(f"impl=flex runs on cpu and cuda, not on {x.device.type}; choose impl=plain or dense")
    if x.device.type == "cpu" and torch.is_grad_enabled():
        raise ValueError("impl=flex computes no gradients on a CPU: use it in inference, or choose plain or dense")
    if x.dtype == torch.float64:
        raise ValueError("impl=flex computes in 16 or 32 bits, got float64; choose impl=plain or dense")


def flex_attention_along_routes(
    q: Tensor, k: Tensor, v: Tensor, routes: Tensor, cut: Partition, num_heads: int, scale: float, reads_padding: bool
) -> Tensor:
    """Attend along routes: (B, H, W, C), (B, H, W, C), (B, H, W, Cv) -> (B, H, W, Cv).

    Args:
        q: queries.
        k: keys.
        v: values.
        routes: regions that each region reads, (B, 1 or heads, R, K).
        cut: the regions.
        num_heads: heads in C and Cv.
        scale: factor on the logits.
        reads_padding: whether padded tokens are zeros that are read.

    Raises:
        ValueError: the kernel does not run here.
    """
    from torch.nn.attention.flex_attention import BlockMask  # it loads the compiler, seconds

    check_runs(q)
    valid = cut.valid(q.device)
    q, k, v = (blank(cut.split(part), valid) for part in (q, k, v))
    blocks = routes.new_zeros((*routes.shape[:3], cut.count), dtype=torch.int32)
    blocks[..., : routes.shape[3]] = routes
    counts = blocks.new_full(routes.shape[:3], routes.shape[3])
    readable = None if valid is None or reads_padding else valid.flatten()

    def is_readable(image: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        assert readable is not None
        return readable[key]

    mask = BlockMask.from_kv_blocks(
        counts, blocks, BLOCK_SIZE=cut.tokens, mask_mod=None if readable is None else is_readable
    )
    queries, keys, values = (to_heads(part.flatten(1, 2), num_heads) for part in (q, k, v))
    # the kernel takes no view of another tensor's memory for granted
    y = _compiled()(queries.contiguous(), keys.contiguous(), values.contiguous(), block_mask=mask, scale=scale)
    return cut.join(from_heads(y).unflatten(1, (cut.count, cut.tokens)))
