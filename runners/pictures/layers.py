"""Numbers of each attention layer of a model on one image: how far it looks, how sharply, how steadily it routes.

For up to `MOST_QUERIES` queries of each map, evenly spaced; a row for each stage, block and head, all counted from 1.

- `distance_px`: mean distance from a query to what it reads, by attention weight, in pixels of the input; of deformable
  attention the distance to its sampled points as they lie between tokens, of pooled keys to their tokens.
- `entropy_nats` of the attention weights over the keys of the mechanism, and `entropy_share`, that over the entropy of
  uniform weights on all keys that the query may read: 1 is indifferent, 0 reads one key.
- `routes_kept` (BRA): share of a query's routed regions that were routed in the block before, in the same stage;
  `routes_by_chance` is what two random choices would share.
"""

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from attention_zoo.attention_maps import Reading, read
from attention_zoo.base import Attention
from attention_zoo.hosts.pyramid import Pyramid
from attention_zoo.mechanisms.bra import BRA

MOST_QUERIES = 256
NUMBERS = ("distance_px", "entropy_nats", "entropy_share", "routes_kept", "routes_by_chance")


@torch.no_grad()
def layer_numbers(model: Pyramid, inputs: Sequence[Sequence[Tensor]]) -> pd.DataFrame:
    """Measure each layer and head; `inputs` are what `mixer_inputs` recorded, (B, H, W, C) for each stage and block.

    Raises:
        ValueError: a mechanism whose weights nobody can tell.
    """
    rows: list[dict[str, Any]] = []
    for stage, (mixers, maps) in enumerate(zip(model.mixers(), inputs, strict=True)):
        token_px = model.layout.stem_px * 2**stage
        before: tuple[Attention, Reading] | None = None
        for block, (mixer, x) in enumerate(zip(mixers, maps, strict=True)):
            _, height, width, _ = x.shape
            queries = spread_queries(height * width, x.device)
            reading = read(mixer, x, queries)
            entropy, share = entropies(reading)
            columns = {
                "distance_px": distances(reading, queries) * token_px,
                "entropy_nats": entropy,
                "entropy_share": share,
                **kept_routes(before, (mixer, reading), height, width),
            }
            for head in range(mixer.num_heads):
                row: dict[str, Any] = {
                    "stage": stage + 1,
                    "block": block + 1,
                    "head": head + 1,
                    "attention": type(mixer).__name__,
                    "map": f"{height}x{width}",
                    "token_px": token_px,
                    "queries": len(queries),
                }
                rows.append(row | {name: _mean(values, head) for name, values in columns.items()})
            before = mixer, reading
    return pd.DataFrame(rows)


def summary(numbers: pd.DataFrame) -> pd.DataFrame:
    """Average over the heads of each layer: a row for each stage and block."""
    groups = numbers.groupby(["stage", "block", "attention", "map", "token_px", "queries"], sort=False)
    heads = groups.size().rename("heads")
    return pd.concat([heads, groups[list(NUMBERS)].mean()], axis=1).reset_index()


def spread_queries(tokens: int, device: torch.device) -> Tensor:
    """Indices of at most `MOST_QUERIES` tokens, evenly spaced over the map: (Q,)."""
    count = min(tokens, MOST_QUERIES)
    return torch.arange(count, device=device) * tokens // count


def distances(reading: Reading, queries: Tensor) -> Tensor:
    """Mean distance from each query to what it reads, in tokens: (B, heads, Q); NaN if it reads nothing of the map."""
    height, width = reading.tokens.shape[-2:]
    row, col = queries // width, queries % width
    if reading.points is not None:
        away = reading.points[:, :, None] - torch.stack((row, col), -1)[:, None]  # (B, groups, Q, Ns, 2)
        by_head: Tensor = (reading.weights * away.norm(dim=-1).mean(1)[:, None]).sum(-1)
        return by_head
    dy = torch.arange(height, device=queries.device) - row[:, None]
    dx = torch.arange(width, device=queries.device) - col[:, None]
    away = (dy[:, :, None] ** 2 + dx[:, None, :] ** 2).to(reading.tokens.dtype).sqrt()  # (Q, H, W)
    return (reading.tokens * away).sum((-2, -1)) / reading.tokens.sum((-2, -1))


def entropies(reading: Reading) -> tuple[Tensor, Tensor]:
    """Entropy of the weights of each query, nats, and over that of uniform ones: (B, heads, Q) each.

    The second is NaN where there is but one key.
    """
    entropy = torch.special.entr(reading.weights).sum(-1)
    most = reading.keys.to(entropy.dtype).log().expand_as(entropy)
    return entropy, (entropy / most).masked_fill(most == 0, math.nan)


def kept_routes(
    before: tuple[Attention, Reading] | None, now: tuple[Attention, Reading], height: int, width: int
) -> dict[str, Tensor | None]:
    """Share of each query's routed regions that the block before routed too, (B, 1 or heads, Q), and that of chance.

    None without a block before, or if the two do not route between the same regions.
    """
    kept = chance = None
    if before is not None and isinstance(before[0], BRA) and isinstance(now[0], BRA):
        cut, earlier, later = now[0].partition(height, width), before[1].regions, now[1].regions
        assert earlier is not None and later is not None
        if before[0].partition(height, width) == cut:
            kept = (later[..., :, None] == earlier[..., None, :]).any(-1).double().mean(-1)
            chance = torch.full_like(kept, earlier.shape[-1] / cut.count)
    return {"routes_kept": kept, "routes_by_chance": chance}


def _mean(values: Tensor | None, head: int) -> float:
    """Mean over images and queries of one head, of all heads if they share."""
    return math.nan if values is None else values[:, head % values.shape[1]].nanmean().item()
