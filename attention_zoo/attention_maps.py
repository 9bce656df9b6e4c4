"""What a query reads: attention weights of any mechanism, computed for a few queries at a time.

`read` asks the oracle, `Attention.weights`, for these queries alone, so that a map of thousands of tokens is no
problem. `mixer_inputs` records what each token mixer of a pyramid is given, `routes` which regions BRA chooses.

    inputs = mixer_inputs(model, images)  # one (B, H, W, C) per stage and block
    reading = read(model.mixers()[2][0], inputs[2][0], torch.tensor([17]))
    reading.tokens  # (B, heads, 1, H, W)

A mechanism of your own works as it is if its `reference` is the inherited one; otherwise write its `weights`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attention_zoo.base import Attention
from attention_zoo.hosts.pyramid import Pyramid
from attention_zoo.mechanisms.bra import BRA
from attention_zoo.mechanisms.dat import DAT
from attention_zoo.routing import map_means


@dataclass(frozen=True)
class Reading:
    """What Q queries of a map read, head by head.

    `weights` are over the mechanism's own K keys, (B, heads, Q, K): tokens, padding that is read, pooled cells or
    sampled points; `values` are what they weigh, (B, heads, Q or 1, K, D). `tokens` are the same weights on the tokens
    of the map, (B, heads, Q, H, W): a pooled key's is spread evenly over its tokens, a sampled point's bilinearly, and
    what falls on padding or beyond the map is missing from the sum. `keys` counts what each query may read, broadcasts
    to (B, heads, Q). BRA has `regions`, the routed ones, (B, 1 or heads, Q, topk), and DAT `points`, which all queries
    share, (B, groups, Ns, 2) as (row, column) in tokens.
    """

    weights: Tensor
    values: Tensor
    tokens: Tensor
    keys: Tensor
    regions: Tensor | None = None
    points: Tensor | None = None

    @property
    def mixed(self) -> Tensor:
        """Weighted values, what `Attention.output` is given but for the value term: (B, heads, Q, D)."""
        return (self.weights[..., None, :] @ self.values)[..., 0, :]


def mixer_inputs(model: Pyramid, images: Tensor) -> list[list[Tensor]]:
    """Run a model and record what each token mixer is given, stage by stage: (B, H, W, C) each.

    The model is run as it is: put it into evaluation mode first.
    """
    found: list[list[Tensor]] = [[] for _ in model.mixers()]
    handles = []
    for stage, mixers in enumerate(model.mixers()):
        for mixer in mixers:

            def record(module: nn.Module, given: tuple[Tensor, ...], stage: int = stage) -> None:
                found[stage].append(given[0].detach())

            handles.append(mixer.register_forward_pre_hook(record))
    try:
        with torch.no_grad():
            model.forward_features(images)
    finally:
        for handle in handles:
            handle.remove()
    return found


def read(attention: Attention, x: Tensor, queries: Tensor) -> Reading:
    """Compute what some queries of a map, (B, H, W, C), read; `queries` are indices of its tokens, (Q,).

    Raises:
        ValueError: the mechanism has a `reference` that its `weights` do not belong to, or does not fit the map.
    """
    for cls in type(attention).__mro__:
        if "weights" in vars(cls):
            break
        if "reference" in vars(cls):
            raise ValueError(
                f"{type(attention).__name__} has a reference of its own, so its weights do not follow from "
                f"connectivity; write its weights(x, queries=None) too"
            )
    weights = attention.weights(x, queries)
    return Reading(
        weights=weights,
        values=attention.values(x)[:, :, None],
        tokens=attention.on_map(x, weights),
        keys=(weights != 0).sum(-1),
        regions=routed_regions(attention, x, queries) if isinstance(attention, BRA) else None,
        points=attention.places(x) if isinstance(attention, DAT) and attention.config.offsets else None,
    )


def routes(attention: BRA, x: Tensor) -> Tensor:
    """Regions that each region of a map reads, best first: (B, H, W, C) -> (B, 1 or heads, R, topk)."""
    x, cut = attention.enter(x)
    q, k, _ = attention.qkv(x).split((attention.qk_dim, attention.qk_dim, attention.dim), dim=-1)
    affinity = attention.affinity(map_means(q, cut), map_means(k, cut), cut.valid(x.device))
    return affinity.topk(attention.topk(cut)).indices


def routed_regions(attention: BRA, x: Tensor, queries: Tensor) -> Tensor:
    """Regions that these queries read: (B, 1 or heads, Q, topk)."""
    cut = attention.partition(x.shape[1], x.shape[2])
    here = cut.locate(queries // cut.width, queries % cut.width)
    return routes(attention, x)[:, :, here]
