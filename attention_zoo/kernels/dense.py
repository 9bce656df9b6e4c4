"""Routed attention without a gather: every token attends to every token, under the routes as a mask.

It wastes products, but copies no key, and its large products suit a processor better than many small ones.
Gain: `biformer_tiny` at 224 px takes 0.66 (0.64 to 0.75) of the plain time at batch 8, and as long at batch 1 (1.01,
0.94 to 1.04; two cores of an AMD EPYC, 8 rounds of `python -m benchmarks.versus`).
"""

import torch.nn.functional as F
from torch import Tensor

from attention_zoo.regions import Partition, coordinates, from_heads, to_heads


def dense_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    routes: Tensor | None,
    cut: Partition,
    num_heads: int,
    scale: float,
    reads_padding: bool,
) -> Tensor:
    """Attend along routes: (B, H, W, C), (B, H, W, C), (B, H, W, Cv) -> (B, H, W, Cv).

    Args:
        q: queries.
        k: keys.
        v: values.
        routes: regions that each region reads, (B, 1 or heads, R, K), or None for all.
        cut: the regions.
        num_heads: heads in C and Cv.
        scale: factor on the logits.
        reads_padding: whether padded tokens are zeros that are read.
    """
    whole = cut.filled() if reads_padding else cut
    if reads_padding:
        q, k, v = cut.pad(q), cut.pad(k), cut.pad(v)
    bias = None
    if routes is not None and routes.shape[3] < cut.count:
        region = whole.locate(*coordinates(whole.height, whole.width, q.device))  # (N,)
        closed = q.new_full((*routes.shape[:3], cut.count), float("-inf")).scatter(3, routes, 0.0)
        bias = closed.index_select(3, region).index_select(2, region)  # (B, 1 or heads, N, N)
    q, k, v = (to_heads(part.flatten(1, 2), num_heads) for part in (q, k, v))
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)
    y = from_heads(y).unflatten(1, (whole.height, whole.width))
    return cut.crop(y) if reads_padding else y
