"""Bi-level routing attention, against plain loops over regions and tokens, and against dense attention."""

import dataclasses

import pytest
import torch

from attention_zoo import create
from attention_zoo.layouts import SMALL
from attention_zoo.mechanisms.bra import BRA, BRAConfig
from attention_zoo.mechanisms.bra_options import RoutingOptions
from attention_zoo.regions import blank
from attention_zoo.routing import region_affinity, region_means, routed_attention

CASES = [  # size, config -> rows and cols of a region
    ((6, 9), {"regions": 3, "topk": 2}, (2, 3)),
    ((5, 7), {"regions": 3, "topk": 2}, (2, 3)),
    ((7, 4), {"regions": 7, "topk": 5, "qk_dim": 8}, (1, 1)),
    ((5, 7), {"region_size": 3, "topk": 1, "lepe_kernel": 3}, (3, 3)),
    ((3, 8), {"region_size": 4, "topk": 1, "lepe": False}, (3, 4)),
]
each_case = pytest.mark.parametrize(("size", "config", "region"), CASES, ids=str)


def regions_of(height, width, rows, cols):
    """Tokens of each region in the order of the map, padding left out."""
    members = {}
    for y in range(height):
        for x in range(width):
            members.setdefault((y // rows, x // cols), []).append(y * width + x)
    return [members[place] for place in sorted(members)]


def routed_by_loop(attention, image, regions):
    """Algorithm 1 up to I^r: for each region the k regions whose mean key suits its mean query best."""
    tokens = image.reshape(-1, image.shape[-1])
    qkv = tokens @ attention.qkv.weight.T + (0 if attention.qkv.bias is None else attention.qkv.bias)
    q, k = qkv[:, : attention.qk_dim], qkv[:, attention.qk_dim : 2 * attention.qk_dim]
    mean_q = [sum(q[token] for token in members) / len(members) for members in regions]
    mean_k = [sum(k[token] for token in members) / len(members) for members in regions]
    chosen = []
    for query in mean_q:
        affinity = [float((query @ key).detach()) for key in mean_k]
        chosen.append(sorted(range(len(regions)), key=affinity.__getitem__)[-attention.config.topk :])
    return chosen


def keys_by_loop(attention, image, regions):
    """For each token of the map the sorted keys that routing lets it read."""
    reads = {}
    for members, chosen in zip(regions, routed_by_loop(attention, image, regions), strict=True):
        reads.update(dict.fromkeys(members, sorted(token for region in chosen for token in regions[region])))
    return [reads[token] for token in range(len(reads))]


@each_case
def test_connectivity_is_routing_by_loop(small, size, config, region):
    attention, x = small("bra", *size, **config)
    regions = regions_of(*size, *region)
    for image, allowed in zip(x, attention.connectivity(x)[:, 0], strict=True):
        assert [row.nonzero().flatten().tolist() for row in allowed] == keys_by_loop(attention, image, regions)


@each_case
def test_output_by_token(small, output_by_token, size, config, region):
    attention, x = small("bra", *size, **config)
    reads = keys_by_loop(attention, x[1], regions_of(*size, *region))
    # the whole width of q and k, not a head's
    y = output_by_token(attention, x[1], reads, scale=config.get("qk_dim", 12) ** -0.5)
    torch.testing.assert_close(y, attention(x)[1])


@pytest.mark.parametrize("size", [(6, 9), (5, 7)], ids=lambda s: f"{s[0]}x{s[1]}")
@pytest.mark.parametrize("lepe", [True, False], ids=["lepe", "plain"])
def test_all_regions_is_vanilla(small, evaluate, size, lepe):
    attention, x = small("bra", *size, regions=3, topk=9, lepe=lepe)
    dense, _ = small("vanilla", *size, qkv_bias=True, qk_scale=12**-0.5, lepe=lepe)
    dense.load_state_dict(attention.state_dict())
    expected = evaluate(dense, x)
    for name, value in evaluate(attention, x).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("impl", ["plain", "dense"])
def test_no_gradient_flows_through_routing(small, evaluate, monkeypatch, impl):
    attention, x = small("bra", 5, 7, regions=3, topk=2, impl=impl)
    found = evaluate(attention, x)
    valid = attention.partition(5, 7).valid(x.device)
    q, k, _ = blank(attention.partition(5, 7).split(attention.qkv(x)), valid).split(12, dim=-1)
    fixed = attention.affinity(region_means(q, valid), region_means(k, valid), valid).detach()
    monkeypatch.setattr(attention, "affinity", lambda *_: fixed)
    for name, value in evaluate(attention, x).items():
        assert torch.equal(value, found[name]), name


def test_an_empty_region_is_never_chosen_while_others_exist():
    torch.manual_seed(0)
    q, k = torch.randn(2, 2, 6, 3, 4, dtype=torch.float64)
    valid = torch.ones(6, 3, dtype=torch.bool)
    valid[[1, 4]] = False
    valid[2, 1:] = False
    # affinities with real regions are all negative, so that a mean of 0 would win
    q, k = (region_means(blank(part, valid), valid)[:, None] for part in (q.abs(), -k.abs()))
    for topk in range(1, 5):
        assert not torch.isin(region_affinity(q, k, valid).topk(topk).indices, torch.tensor([1, 4])).any()
    real = {0, 2, 3, 5}
    assert all(real < set(row.tolist()) for row in region_affinity(q, k, valid).topk(5).indices.flatten(0, 2))


def test_a_mean_counts_the_regions_own_tokens_alone():
    q = torch.ones(1, 2, 4, 1)
    k = torch.tensor([[2.0, 2, 2, 2], [3, 0, 0, 0]]).reshape(1, 2, 4, 1)
    valid = torch.tensor([[True] * 4, [True, False, False, False]])
    for own, best in ((valid, 1), (None, 0)):
        means = [region_means(part, own)[:, None] for part in (q, k)]
        assert region_affinity(*means, own).argmax(-1).flatten().tolist() == [best, best]


def test_queries_read_the_routed_regions_alone():
    q = torch.zeros(1, 3, 2, 4)
    v = torch.arange(24.0).reshape(1, 3, 2, 4)
    routes = torch.tensor([[[[2], [0], [1]]]])
    y = routed_attention(q, q, v, routes, num_heads=2, scale=1.0)
    means = v.mean(2)
    assert torch.equal(y, means[:, [2, 0, 1], None].expand(1, 3, 2, 4))
    per_head = torch.cat((routes, routes.flip(2)), 1)
    y = routed_attention(q, q, v, per_head, num_heads=2, scale=1.0)
    assert torch.equal(y[..., :2], means[:, [2, 0, 1], None, :2].expand(1, 3, 2, 2))
    assert torch.equal(y[..., 2:], means[:, [1, 0, 2], None, 2:].expand(1, 3, 2, 2))


def cheapest_by_loop(height, width, topk, dim):
    """Closed form of the paper, its output projection added: 4 N C^2 + R^2 C + 2 N k (N / R) C over every S."""
    best = None
    for per_side in range(1, max(height, width) + 1):
        rows, cols = -(-height // per_side), -(-width // per_side)
        count = -(-height // rows) * -(-width // cols)
        if count < topk:
            continue
        cost = 4 * height * width * dim**2 + count**2 * dim + 2 * (count * rows * cols) * topk * (rows * cols) * dim
        if best is None or cost < best[0]:
            best = cost, rows, cols
    return best


@pytest.mark.parametrize("topk", [1, 4, 8])
@pytest.mark.parametrize("size", [(8, 8), (16, 24), (13, 9), (56, 40)], ids=lambda s: f"{s[0]}x{s[1]}")
def test_auto_is_the_cheapest_number_of_regions(size, topk):
    attention = create("bra", dim=32, num_heads=4, topk=topk, region_size="auto", lepe=False)
    cut = attention.partition(*size)
    cost, rows, cols = cheapest_by_loop(*size, topk, 32)
    assert attention.macs(*size).total == cost
    assert (cut.rows, cut.cols) == (rows, cols)


@pytest.mark.parametrize("topk", [1, 4, 16])
@pytest.mark.parametrize("side", [128, 256, 512])
def test_auto_is_near_the_optimum_of_the_paper_on_large_maps(side, topk):
    optimum = (topk / 2 * side**4) ** (1 / 6)
    found = create("bra", dim=32, num_heads=4, topk=topk, region_size="auto").partition(side, side).down
    # the paper counts the routing twice as dear, and few S divide the map
    assert 0.8 * optimum < found < 1.45 * optimum


def test_macs_written_out():
    attention = create("bra", dim=48, num_heads=3, topk=4, regions=7)
    macs, tokens = attention.macs(14, 28), 14 * 28
    assert macs.projection == 4 * tokens * 48**2
    assert macs.routing == 49**2 * 48
    assert macs.core == 2 * tokens * 4 * (tokens // 49) * 48
    assert macs.position == tokens * 48 * 25
    padded = attention.macs(13, 27)
    assert (padded.routing, padded.core) == (macs.routing, macs.core)
    assert padded.projection == 4 * 13 * 27 * 48**2
    narrow = create("bra", dim=48, num_heads=3, qk_dim=12, topk=4, regions=7).macs(14, 28)
    assert narrow.projection == tokens * 48 * (2 * 12 + 2 * 48)
    assert narrow.routing == 49**2 * 12
    assert narrow.core == tokens * 4 * (tokens // 49) * (12 + 48)


def drop_first(cells):
    return cells[0][1:], cells[1][1:]


def roll_channels(pooled):
    return pooled.roll(1, -1)


def swap_routes(routes):
    return routes[0], routes[1].flip(2)


@pytest.mark.parametrize(
    ("config", "cls", "name", "mutate"),
    [
        ({"soft_routing": True}, BRA, "slow_routes", swap_routes),
        ({"kv_pool": "avg", "kv_per_side": 2}, BRA, "slow_routes", swap_routes),
        ({"kv_pool": "avg", "kv_per_side": 2}, RoutingOptions, "cells", drop_first),
        ({"kv_pool": "max", "kv_ratio": 2}, RoutingOptions, "pooled", roll_channels),
    ],
    ids=lambda part: getattr(part, "__name__", str(part)),
)
def test_a_mutated_oracle_is_noticed(small, monkeypatch, config, cls, name, mutate):
    attention, x = small("bra", 5, 7, regions=2, topk=2, **config)
    torch.testing.assert_close(attention(x), attention.reference(x))
    original = getattr(cls, name)
    monkeypatch.setattr(cls, name, lambda *args: mutate(original(*args)))
    assert not torch.allclose(attention(x), attention.reference(x))


def test_heads_route_on_their_own(small):
    attention, x = small("bra", 6, 9, regions=3, topk=2, head_routing=True)
    reads = attention.connectivity(x)
    assert reads.shape[1] == 2
    assert not torch.equal(reads[:, 0], reads[:, 1])


def test_the_published_codes_differ_off_size():
    legacy = create("bra", dim=12, num_heads=2, regions=7, padding="official").geometry(30, 37)
    nchw = create("bra", dim=12, num_heads=2, regions=7, padding="official", variant="nchw").geometry(30, 37)
    assert (legacy["regions"], legacy["region_size"], legacy["pad_ratio"]) == ("7x7", "5x6", 35 * 42 / 30 / 37 - 1)
    assert (nchw["regions"], nchw["region_size"], nchw["pad_ratio"]) == ("8x8", "4x5", 32 * 40 / 30 / 37 - 1)


@pytest.mark.parametrize(
    ("config", "size", "message"),
    [
        (
            {"padding": "official", "variant": "nchw"},
            (6, 9),
            "regions=7 per side leave no token to a region of a 6x9 map",
        ),
        ({"regions": 3, "topk": 1, "kv_pool": "max", "kv_ratio": 3}, (6, 9), "kv_ratio=3 leaves no key .* 2x3 tokens"),
        ({"padding": "error"}, (16, 14), "a 16x14 map does not divide into blocks of 3x2 tokens"),
    ],
    ids=str,
)
def test_maps_that_do_not_fit(config, size, message):
    attention = create("bra", dim=12, num_heads=2, **config)
    with pytest.raises(ValueError, match=message):
        attention(torch.zeros(1, *size, 12))


@pytest.mark.parametrize(
    ("side", "topk", "impl"),
    [(8, 1, "dense"), (14, 4, "plain"), (14, 16, "dense"), (28, 15, "dense"), (28, 14, "plain"), (56, 49, "plain")],
)
def test_dense_where_it_wastes_little(side, topk, impl):
    attention = create("bra", dim=12, num_heads=2, topk=topk, regions=7, clip_topk=True)
    assert attention.impl_on(side, side) == impl
    for other in ("plain", "dense"):
        fixed = create("bra", dim=12, num_heads=2, topk=topk, regions=7, clip_topk=True, impl=other)
        assert fixed.impl_on(side, side) == other


def test_geometry_names_what_was_chosen():
    attention = create("bra", dim=12, num_heads=2, topk=40, regions=7, clip_topk=True)
    assert attention.geometry(10, 13) == {
        "regions": "5x7",
        "region_size": "2x2",
        "topk_effective": 35,
        "pad_ratio": 10 * 14 / 130 - 1,
    }
    assert create("bra", dim=12, num_heads=2).geometry(28, 28)["regions"] == "7x7"


def test_topk_above_the_regions_of_the_map_names_both(small):
    attention, x = small("bra", 4, 5, regions=7, topk=21)
    message = r"topk=21 is above the 20 regions \(4 x 5 of 1x1 tokens\) of a 4x5 map; .*clip_topk"
    for call in (attention.macs, attention.geometry):
        with pytest.raises(ValueError, match=message):
            call(4, 5)
    with pytest.raises(ValueError, match=message):
        attention(x)


def test_at_takes_the_layouts_regions_unless_a_partition_is_set():
    assert BRAConfig().at(0, 0, SMALL).regions == 4
    assert BRAConfig(regions=3).at(0, 0, SMALL).regions == 3
    assert BRAConfig(region_size="auto").at(0, 0, SMALL) == BRAConfig(region_size="auto")
    with pytest.raises(dataclasses.FrozenInstanceError):
        BRAConfig().topk = 3


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"topk": "4"}, "topk takes an integer; got '4'"),
        ({"topk": 1.5}, "topk takes an integer; got 1.5"),
        ({"topk": True}, "topk takes an integer; got True"),
        ({"lepe": 1}, "lepe takes on[|]off; got 1"),
        ({"qk_scale": "1"}, "qk_scale takes a number or none; got '1'"),
        ({"impl": "fast"}, "impl takes auto[|]reference[|]plain[|]tiles[|]gather[|]dense[|]flex; got 'fast'"),
        ({"region_size": (2, 3)}, r"region_size takes an integer or auto or none; got \(2, 3\)"),
        ({"topk": 0}, "topk must be at least 1, got 0; for dense attention use vanilla"),
        ({"regions": 0}, "regions must be at least 1, got 0"),
        ({"region_size": 0}, "region_size must be at least 1, got 0"),
        ({"regions": 7, "region_size": 8}, "give one of regions=7 and region_size=8"),
        ({"regions": 7, "region_size": "auto"}, "two spellings of one thing"),
        ({"qk_dim": 9}, "qk_dim must be a positive multiple of num_heads, got qk_dim=9, num_heads=2"),
        ({"qk_dim": 0}, "qk_dim=0"),
        ({"kv_pool": "avg"}, "takes one of kv_per_side and kv_ratio, got kv_pool=avg, kv_per_side=None"),
        ({"kv_ratio": 2}, "got kv_pool=None, kv_per_side=None, kv_ratio=2"),
        ({"kv_pool": "max", "kv_ratio": 2, "kv_per_side": 2}, "takes one of kv_per_side and kv_ratio"),
        ({"kv_pool": "max", "kv_ratio": 0}, "kv_ratio must be at least 1, got 0"),
        ({"diff_routing": True}, "diff_routing=True needs soft_routing=True"),
        ({"soft_routing": True, "impl": "dense"}, "no impl=dense.*got impl=dense"),
        ({"soft_routing": True, "padding": "official", "variant": "nchw"}, "got .*padding=official, variant=nchw"),
        ({"region_size": "auto", "padding": "official"}, "region_size=auto needs padding=mask or error"),
    ],
    ids=str,
)
def test_bad_arguments(config, message):
    with pytest.raises(ValueError, match=message):
        create("bra", dim=12, num_heads=2, **config)
