"""What a query reads: attention weights of any mechanism, computed for a few queries at a time.

`read` follows `Attention.reference`, but only for the queries that are asked for, so that a map of thousands of tokens
is no problem. `mixer_inputs` records what each token mixer of a pyramid is given, `routes` which regions BRA chooses.

    inputs = mixer_inputs(model, images)  # one (B, H, W, C) per stage and block
    reading = read(model.mixers()[2][0], inputs[2][0], torch.tensor([17]))
    reading.tokens  # (B, heads, 1, H, W)

A mechanism of your own works as it is if its `reference` is the inherited one; otherwise write it a `@reader`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attention_zoo.base import Attention
from attention_zoo.hosts.pyramid import Pyramid
from attention_zoo.kernels.routing import pool_regions, region_means
from attention_zoo.mechanisms.axial import Axial
from attention_zoo.mechanisms.bra import BRA
from attention_zoo.mechanisms.cswin import CSWin
from attention_zoo.mechanisms.dat import DAT
from attention_zoo.mechanisms.sliding import Sliding
from attention_zoo.partitioned import PartitionAttention, Places, padded_places, same_region, table_bias
from attention_zoo.pooled import PooledAttention
from attention_zoo.regions import Partition, blank, coordinates, from_heads, to_heads


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


Reader = Callable[[Any, Tensor, Tensor], Reading]
"""Reads for one class of mechanisms: attention, map and queries as `read` is given them."""

_READERS: dict[type[Attention], Reader] = {}
_R = TypeVar("_R", bound=Reader)


def reader(cls: type[Attention]) -> Callable[[_R], _R]:
    """Enter the function that reads for a class of mechanisms and for what inherits its `reference`."""

    def enter(function: _R) -> _R:
        _READERS[cls] = function
        return function

    return enter


def read(attention: Attention, x: Tensor, queries: Tensor) -> Reading:
    """Compute what some queries of a map, (B, H, W, C), read; `queries` are indices of its tokens, (Q,).

    Raises:
        ValueError: the mechanism has a `reference` of its own and no reader, or does not fit the map.
    """
    for cls in type(attention).__mro__:
        if cls in _READERS:
            return _READERS[cls](attention, x, queries)
        if "reference" in vars(cls):
            break
    raise ValueError(
        f"{type(attention).__name__} has a reference of its own, so its weights do not follow from connectivity; "
        f"enter a function that computes them by @attention_zoo.attention_maps.reader"
    )


def routes(attention: BRA, x: Tensor) -> Tensor:
    """Regions that each region of a map reads, best first: (B, H, W, C) -> (B, 1 or heads, R, topk)."""
    cut = attention.partition(x.shape[1], x.shape[2])
    if attention.pad_rule == "input" and cut.is_padded:
        return routes(attention, cut.pad(x))
    valid = cut.valid(x.device)
    q, k, _ = blank(cut.split(attention.qkv(x)), valid).split(_widths(attention), dim=-1)
    mean_q, mean_k = (region_means(part, valid) for part in (q, k))
    return attention.affinity(mean_q, mean_k, valid).topk(attention.topk(cut)).indices


def _widths(attention: Attention) -> list[int]:
    return [attention.qk_dim, attention.qk_dim, attention.dim]


def _softmax(logits: Tensor, allowed: Tensor) -> Tensor:
    """Weights of the allowed keys; a row without any is 0."""
    return logits.masked_fill(~allowed, torch.finfo(logits.dtype).min).softmax(-1) * allowed


def _one_softmax(attention: Attention, x: Tensor, queries: Tensor, bias: Tensor | None) -> Reading:
    """Softmax over all tokens under `connectivity`; `bias` is that of the queries, (heads, Q, N)."""
    q, k, v = attention.project(x)
    logits = q[:, :, queries] @ k.mT * attention.scale
    allowed = attention.connectivity(x, queries)
    weights = _softmax(logits if bias is None else logits + bias, allowed)
    return Reading(weights, v[:, :, None], weights.unflatten(-1, x.shape[1:3]), allowed.sum(-1))


@reader(Attention)
def _read_plain(attention: Attention, x: Tensor, queries: Tensor) -> Reading:
    bias = attention.logit_bias(x.shape[1], x.shape[2])
    return _one_softmax(attention, x, queries, None if bias is None else bias[:, queries])


@reader(Sliding)
def _read_sliding(attention: Sliding, x: Tensor, queries: Tensor) -> Reading:
    if attention.bias_table is None:
        return _one_softmax(attention, x, queries, None)
    # logit_bias tells of all pairs, which are too many on a large map
    far, sides = attention.kernel - 1, (attention.kernel, attention.kernel)
    places = coordinates(x.shape[1], x.shape[2], x.device)
    dy, dx = (((at[queries, None] - at) // attention.dilation).clamp(-far, far) for at in places)
    return _one_softmax(attention, x, queries, table_bias(attention.bias_table, sides, dy, dx))


@reader(PartitionAttention)
def _read_partition(attention: PartitionAttention, x: Tensor, queries: Tensor) -> Reading:
    cut = attention.partition(x.shape[1], x.shape[2])
    if attention.pad_rule == "input" and cut.is_padded:
        return _crop(read(attention, cut.pad(x), _in_padded(cut, queries)), cut)
    if attention.pad_rule != "projected" or not cut.is_padded:
        places = coordinates(cut.height, cut.width, x.device)
        bias = _pair_bias(attention, cut, (places[0][queries], places[1][queries]), places)
        return _one_softmax(attention, x, queries, bias)
    places, asked = padded_places(cut, x.device), _in_padded(cut, queries)
    from_here = places[0][asked], places[1][asked]
    bias = _pair_bias(attention, cut, from_here, places)
    allowed = attention.pairs(x, cut, from_here, places)
    return _among_zeros(*attention.project(x), cut, asked, attention.scale, bias, allowed)


def _pair_bias(attention: PartitionAttention, cut: Partition, queries: Places, keys: Places) -> Tensor | None:
    """Bias of these pairs, (heads, Q, K), or None; of pairs that cannot share a region, any."""
    dy, dx = (q[:, None] - k for q, k in zip(queries, keys, strict=True))
    near = (dy % cut.step_y == 0) & (dy.abs() < cut.rows * cut.step_y)
    near &= (dx % cut.step_x == 0) & (dx.abs() < cut.cols * cut.step_x)
    return attention.offset_bias(cut, dy.where(near, 0) // cut.step_y, dx.where(near, 0) // cut.step_x)


def _in_padded(cut: Partition, queries: Tensor) -> Tensor:
    """Indices of tokens of the map in the padded map."""
    row, col = queries // cut.width + cut.top, queries % cut.width + cut.left
    return row * cut.padded_size[1] + col


def _crop(reading: Reading, cut: Partition) -> Reading:
    """Take the tokens of the map out of those of the padded one."""
    rows, cols = slice(cut.top, cut.top + cut.height), slice(cut.left, cut.left + cut.width)
    return replace(reading, tokens=reading.tokens[..., rows, cols])


def _among_zeros(
    q: Tensor, k: Tensor, v: Tensor, cut: Partition, asked: Tensor, scale: float, bias: Tensor | None, allowed: Tensor
) -> Reading:
    """Softmax on the padded map, q, k, v being zeros in the padding, of which `asked` are the queries."""

    def surrounded(part: Tensor) -> Tensor:
        padded = cut.pad(from_heads(part).unflatten(1, (cut.height, cut.width)))
        return to_heads(padded.flatten(1, 2), part.shape[1])

    q, k, v = surrounded(q)[:, :, asked], surrounded(k), surrounded(v)
    logits = q @ k.mT * scale
    weights = _softmax(logits if bias is None else logits + bias, allowed)
    whole = Reading(weights, v[:, :, None], weights.unflatten(-1, cut.padded_size), allowed.sum(-1))
    return _crop(whole, cut)


@reader(CSWin)
def _read_cswin(attention: CSWin, x: Tensor, queries: Tensor) -> Reading:
    branches = list(attention.branches(x.shape[1], x.shape[2]))
    if attention.config.pad_rule != "projected" or not any(branch.cut.is_padded for branch in branches):
        return _one_softmax(attention, x, queries, None)
    parts, found = attention.project(x), []
    for branch in branches:
        q, k, v = (part[:, branch.heads] for part in parts)
        places, asked = padded_places(branch.cut, x.device), _in_padded(branch.cut, queries)
        allowed = same_region(branch.cut, (places[0][asked], places[1][asked]), places)
        one = _among_zeros(q, k, v, branch.cut, asked, attention.scale, None, allowed[None, None])
        found.append(replace(one, keys=one.keys.expand(1, q.shape[1], -1)))
    # the branches pad to different sizes: keys that one lacks weigh nothing
    most = max(one.weights.shape[-1] for one in found)
    lacks = [most - one.weights.shape[-1] for one in found]
    return Reading(
        weights=torch.cat([F.pad(one.weights, (0, lack)) for one, lack in zip(found, lacks, strict=True)], 1),
        values=torch.cat([F.pad(one.values, (0, 0, 0, lack)) for one, lack in zip(found, lacks, strict=True)], 1),
        tokens=torch.cat([one.tokens for one in found], 1),
        keys=torch.cat([one.keys for one in found], 1),
    )


@reader(BRA)
def _read_bra(attention: BRA, x: Tensor, queries: Tensor) -> Reading:
    cut = attention.partition(x.shape[1], x.shape[2])
    here = cut.locate(queries // cut.width, queries % cut.width)
    regions = routes(attention, x)[:, :, here]
    if attention.config.is_plain:
        reading = _read_partition(attention, x, queries)
    elif attention.pad_rule == "input" and cut.is_padded:
        reading = _crop(_read_pooled_regions(attention, cut.pad(x), _in_padded(cut, queries), regions), cut)
    else:
        reading = _read_pooled_regions(attention, x, queries, regions)
    return replace(reading, regions=regions)


def _read_pooled_regions(attention: BRA, x: Tensor, queries: Tensor, regions: Tensor) -> Reading:
    """Softmax over the keys of the routed `regions`, (B, 1 or heads, Q, topk), soft routes and pooled keys included."""
    batch, heads, config = len(x), attention.num_heads, attention.config
    cut = attention.partition(x.shape[1], x.shape[2])
    valid, qkv = cut.valid(x.device), attention.qkv(x)
    q, k, v = blank(cut.split(qkv), valid).split(_widths(attention), dim=-1)  # (B, R, T, C)
    here = cut.locate(queries // cut.width, queries % cut.width)
    mean_q, mean_k = (region_means(part, valid) for part in (q, k))
    affinity = attention.affinity(mean_q, mean_k, valid)[:, :, here].gather(3, regions)
    share = (affinity * attention.scale).softmax(-1) if config.soft_routing else torch.ones_like(affinity)
    regions, share = (part.expand(-1, heads, -1, -1) for part in (regions, share))

    def pool(tokens: Tensor, maximum: bool) -> tuple[Tensor, Tensor | None]:
        return pool_regions(tokens, cut, valid, maximum=maximum, per_side=config.kv_per_side, ratio=config.kv_ratio)

    readable, cells = valid, None
    if config.kv_pool is not None:
        both, readable = pool(torch.cat((k, v), -1), config.kv_pool == "max")
        k, v = both.split(_widths(attention)[1:], dim=-1)
        own = torch.eye(cut.tokens, dtype=x.dtype, device=x.device).expand(1, cut.count, -1, -1)
        cells = pool(blank(own, valid), False)[0][0]  # (R, T', T): the mean over its tokens makes each cell
    image = torch.arange(batch, device=x.device)[:, None, None, None]
    head = torch.arange(heads, device=x.device)[:, None, None]

    def gather(part: Tensor) -> Tensor:
        """(B, R, T', C) -> routed regions of each query, (B, heads, Q, topk, T', D)."""
        routed: Tensor = part.unflatten(-1, (heads, -1)).movedim(3, 1)[image, head, regions]
        return routed * share[..., None, None]

    asked = to_heads(qkv[..., : attention.qk_dim].flatten(1, 2)[:, queries], heads)  # (B, heads, Q, D)
    logits = torch.einsum("bhqd,bhqktd->bhqkt", asked, gather(k)) * attention.scale
    allowed = torch.ones_like(logits, dtype=torch.bool) if readable is None else readable[regions]
    weights = _softmax(logits.flatten(3), allowed.flatten(3))
    of_regions = weights.unflatten(3, logits.shape[3:])
    if cells is not None:
        of_regions = torch.einsum("bhqkc,bhqkct->bhqkt", of_regions, cells[regions])
    spread = weights.new_zeros(*logits.shape[:3], cut.count, cut.tokens)
    spread = spread.scatter(3, regions[..., None].expand(of_regions.shape), of_regions)
    tokens = cut.join(spread.flatten(0, 2)[..., None])[..., 0].unflatten(0, spread.shape[:3])
    return Reading(weights, gather(v).flatten(3, 4), tokens, allowed.flatten(3).sum(-1))


@reader(Axial)
def _read_axial(attention: Axial, x: Tensor, queries: Tensor) -> Reading:
    sides = x.shape[1:3]
    row, col = queries // sides[1], queries % sides[1]
    q, k, v = (part.unflatten(2, sides) for part in attention.project(x))  # (B, heads, H, W, D)
    # what the column of the query reads in its rows, and what the query reads in its column
    by_row = (q[:, :, :, col] @ k.mT * attention.scale).softmax(-1).transpose(2, 3)  # (B, heads, Q, H, W)
    at_query, in_column = q[:, :, row, col], k[:, :, :, col].transpose(2, 3)  # (B, heads, Q, D), (B, heads, Q, H, D)
    by_column = ((in_column @ at_query[..., None])[..., 0] * attention.scale).softmax(-1)
    tokens = by_column[..., None] * by_row
    keys = torch.full((1, 1, len(queries)), sides.numel(), device=x.device)
    return Reading(tokens.flatten(3), v.flatten(2, 3)[:, :, None], tokens, keys)


@reader(PooledAttention)
def _read_pooled(attention: PooledAttention, x: Tensor, queries: Tensor) -> Reading:
    if attention.pool is None:
        # like everything of such a block, reading is left to the next class in line
        cls = PartitionAttention if isinstance(attention, PartitionAttention) else Attention
        return _READERS[cls](attention, x, queries)
    q, _, _ = attention.project(x)
    _, k, v = attention.project(attention.pool(x))
    cut = attention.pool.cut(x.shape[1], x.shape[2])
    weights = (q[:, :, queries] @ k.mT * attention.scale).softmax(-1)
    tokens = _over_patches(weights, attention.pool.reduction, (cut.down, cut.across), (x.shape[1], x.shape[2]))
    return Reading(weights, v[:, :, None], tokens, torch.full((1, 1, len(queries)), k.shape[2], device=x.device))


def _over_patches(weights: Tensor, side: int, patches: tuple[int, int], sides: tuple[int, int]) -> Tensor:
    """Spread the weight of each patch evenly over its tokens: (B, heads, Q, M) -> (B, heads, Q, H, W)."""
    (down, across), (height, width) = patches, sides
    row, col = coordinates(height, width, weights.device)
    # a remainder that is left out belongs to no patch
    inside = (row < down * side) & (col < across * side)
    patch = (row // side * across + col // side).where(inside, 0)
    held = patch[inside].bincount(minlength=down * across)[patch]
    spread: Tensor = (weights[..., patch] * inside / held).unflatten(-1, sides)
    return spread


@reader(DAT)
def _read_dat(attention: DAT, x: Tensor, queries: Tensor) -> Reading:
    _, height, width, _ = x.shape
    q, points, bias = attention.qkv(x)[..., : attention.dim], None, None
    if attention.config.offsets:
        points = attention.points(q)
        sampled = attention.sample(x, points)
        bias = attention.bias(points, height, width)
    else:
        cuts = attention.samples(height, width)
        pooled = F.avg_pool2d(x.permute(0, 3, 1, 2), attention.stride, ceil_mode=not attention.drops_remainder)
        sampled = pooled.flatten(2).mT
    _, k, v = (to_heads(part, attention.num_heads) for part in attention.qkv(sampled).chunk(3, dim=-1))
    logits = to_heads(q.flatten(1, 2)[:, queries], attention.num_heads) @ k.mT * attention.scale
    weights = (logits if bias is None else logits + bias[:, :, queries].to(logits.dtype)).softmax(-1)
    keys = torch.full((1, 1, len(queries)), k.shape[2], device=x.device)
    if points is None:
        return Reading(weights, v[:, :, None], _over_patches(weights, attention.stride, cuts, (height, width)), keys)
    place = (points.flatten(2, 3) + 1) / 2 * (points.new_tensor([height, width]) - 1)
    shares = bilinear_shares(place, height, width).mean(1, keepdim=True).to(weights.dtype)  # (B, 1, Ns, H, W)
    tokens = (weights @ shares.flatten(3)).unflatten(-1, (height, width))
    return Reading(weights, v[:, :, None], tokens, keys, points=place)


def bilinear_shares(points: Tensor, height: int, width: int) -> Tensor:
    """Share that each token of a map has in a sample: (..., 2) as (row, column) in tokens -> (..., H, W)."""
    rows, cols = (
        (1 - (points[..., axis, None] - torch.arange(side, device=points.device)).abs()).clamp(min=0)
        for axis, side in enumerate((height, width))
    )
    return rows[..., :, None] * cols[..., None, :]
