"""The attention of single queries against the oracle: the same weights, found another way, give the same output."""

import pytest
import torch
from conftest import mechanisms, reads_padding, reads_tokens, with_marks

import attention_zoo
from attention_zoo import Attention, create_model
from attention_zoo.attention_maps import mixer_inputs, read, routes
from attention_zoo.mechanisms.axial import Axial
from attention_zoo.mechanisms.dat import DAT
from attention_zoo.mechanisms.dat_oracle import bilinear_shares
from attention_zoo.partitioned import PartitionAttention
from attention_zoo.regions import to_heads
from attention_zoo.registry import build

HEIGHT, WIDTH = 7, 8
QUERIES = torch.tensor([0, 13, 30, 55])


def is_extra(setting):
    """Whether it differs from another setting only in how forward computes it."""
    config = setting.config
    return config.get("impl") == "gather" and not config.get("soft_routing") and not config.get("kv_pool")


SETTINGS = [setting for setting in mechanisms() if not is_extra(setting)]
every_mechanism = pytest.mark.parametrize("setting", with_marks(SETTINGS))


def made(small, setting):
    attention, x = small(setting.name, HEIGHT, WIDTH, **setting.config)
    with torch.no_grad():
        return attention, x, read(attention, x, QUERIES)


def as_read(attention, x, queries):
    """The map that the oracle attends on, with zeros around it where padding of the input is read."""
    if getattr(attention, "pad_rule", "mask") == "input" and getattr(attention, "pool", None) is None:
        cut = attention.partition(*x.shape[1:3])
        if isinstance(attention, PartitionAttention) and not attention.pads_input(cut):
            return x, queries
        row, col = queries // x.shape[2] + cut.top, queries % x.shape[2] + cut.left
        x = cut.pad(x)
        queries = row * x.shape[2] + col
    return x, queries


@torch.no_grad()
@every_mechanism
def test_weights_times_values_is_the_reference(small, setting):
    attention, x, reading = made(small, setting)
    whole, queries = as_read(attention, x, QUERIES)
    v = attention.project(whole)[2]
    term = attention.value_term(whole, v)
    y = reading.mixed if term is None else reading.mixed + term[:, :, queries]
    torch.testing.assert_close(attention.output(y), attention.reference(x).flatten(1, 2)[:, QUERIES])


@torch.no_grad()
@every_mechanism
def test_weights_are_a_softmax_and_lie_on_tokens_but_for_padding(small, setting):
    attention, _, reading = made(small, setting)
    assert reading.weights.shape[:3] == reading.tokens.shape[:3] == (2, attention.num_heads, len(QUERIES))
    assert reading.tokens.shape[3:] == (HEIGHT, WIDTH)
    assert reading.tokens.min() >= 0
    if setting.config.get("soft_routing"):
        return  # the factors of soft routes are in its weights
    torch.testing.assert_close(reading.weights.sum(-1), torch.ones_like(reading.weights[..., 0]))
    on_map = reading.tokens.sum((-2, -1))
    if isinstance(attention, DAT) or reads_padding(setting):
        assert on_map.max() <= 1 + 1e-9
    else:
        torch.testing.assert_close(on_map, torch.ones_like(on_map))
    assert ((reading.weights > 0).sum(-1) <= reading.keys).all()


@torch.no_grad()
@every_mechanism
def test_weights_on_tokens_times_the_values_of_tokens_is_the_reference(small, setting):
    attention, x, reading = made(small, setting)
    if setting.config.get("recurrence", 1) > 1:
        pytest.skip("its values are those of what the pass before returned")
    pools_evenly = setting.config.get("kv_pool") == "avg" or setting.config.get("offsets") is False
    if not (reads_tokens(attention, x) or pools_evenly):
        pytest.skip("its values are no weighted sum of those of the tokens")
    if as_read(attention, x, QUERIES)[0] is not x:
        pytest.skip("padding has values too")
    v = to_heads(attention.qkv(x).flatten(1, 2)[..., 2 * attention.qk_dim :], attention.num_heads)
    mixed = reading.tokens.flatten(3) @ v
    torch.testing.assert_close(mixed, reading.mixed)


@torch.no_grad()
@every_mechanism
def test_only_keys_of_connectivity_have_a_weight(small, setting):
    attention, x, reading = made(small, setting)
    if isinstance(attention, Axial):
        pytest.skip("two softmaxes reach what neither reads directly")
    allowed = attention.connectivity(x, QUERIES).expand_as(reading.tokens.flatten(3))
    assert not reading.tokens.flatten(3)[~allowed].any()


@torch.no_grad()
@pytest.mark.parametrize("setting", [s for s in SETTINGS if s.name == "dat" and s.config.get("offsets", True)], ids=str)
def test_points_spread_by_the_shares_of_bilinear_sampling(small, setting):
    attention, x, reading = made(small, setting)
    sampled = attention.sample(x, attention.points(attention.qkv(x)[..., : attention.dim]))
    shares = bilinear_shares(reading.points, HEIGHT, WIDTH).flatten(3)  # (B, groups, Ns, N)
    by_group = x.flatten(1, 2).unflatten(-1, (attention.groups, -1)).transpose(1, 2)
    torch.testing.assert_close((shares @ by_group).transpose(1, 2).flatten(2), sampled)
    expected = torch.einsum("bhqs,bgsn->bhqn", reading.weights, shares) / attention.groups
    torch.testing.assert_close(reading.tokens.flatten(3), expected)


@torch.no_grad()
@pytest.mark.parametrize(("name", "config"), [("pvt", {}), ("sep", {"kind": "global"})])
@pytest.mark.parametrize("padding", ["mask", "official"])
def test_the_weight_of_a_patch_lies_evenly_on_its_tokens(small, name, config, padding):
    attention, x = small(name, HEIGHT, WIDTH, reduction=3, padding=padding, **config)
    reading = read(attention, x, QUERIES)
    cut = attention.pool.cut(HEIGHT, WIDTH)
    weights = reading.weights.unflatten(-1, (cut.down, cut.across))
    for down in range(cut.down):
        for across in range(cut.across):
            patch = reading.tokens[..., 3 * down : 3 * down + 3, 3 * across : 3 * across + 3].flatten(3)
            even = weights[..., down, across, None] / patch.shape[-1]
            torch.testing.assert_close(patch, even.expand_as(patch))
    assert not reading.tokens[..., 3 * cut.down :, :].any()
    assert not reading.tokens[..., 3 * cut.across :].any()


@torch.no_grad()
def test_the_weight_of_a_pooled_key_lies_evenly_on_its_tokens(small):
    attention, x = small("bra", 8, 8, regions=2, topk=1, kv_pool="max", kv_ratio=2)
    reading = read(attention, x, torch.tensor([0]))
    down, across = divmod(int(reading.regions[0, 0, 0, 0]), 2)
    region = reading.tokens[0, 0, 0, 4 * down : 4 * down + 4, 4 * across : 4 * across + 4]
    cells = region.unflatten(0, (2, 2)).unflatten(-1, (2, 2)).transpose(1, 2).flatten(2).flatten(0, 1)
    torch.testing.assert_close(cells, cells[:, :1].expand_as(cells))
    weights = reading.weights[0, 0, 0].unflatten(0, (4, 4))[2 * down + across]  # cells of that region
    torch.testing.assert_close(cells.sum(-1), weights)


@torch.no_grad()
@pytest.mark.parametrize("setting", [setting for setting in SETTINGS if setting.name == "bra"], ids=str)
def test_the_routed_regions_hold_all_weight(small, setting):
    attention, x, reading = made(small, setting)
    cut = attention.partition(HEIGHT, WIDTH)
    token = torch.arange(HEIGHT * WIDTH)
    region = cut.locate(token // WIDTH, token % WIDTH)
    routed = (reading.regions[..., None] == region).any(-2)
    assert not reading.tokens.flatten(3)[~routed.expand_as(reading.tokens.flatten(3))].any()
    assert reading.regions.shape[1:] == (
        attention.num_heads if setting.config.get("head_routing") else 1,
        len(QUERIES),
        attention.topk(cut),
    )
    assert torch.equal(reading.regions, routes(attention, x)[:, :, region[QUERIES]])


@torch.no_grad()
@pytest.mark.parametrize("name", attention_zoo.names())
def test_one_query_asks_for_no_table_of_all_pairs(small, monkeypatch, name):
    attention, x = small(name, 40, 41, **({"stride": 4} if name == "dat" else {}))
    connectivity, asked = attention.connectivity, []
    monkeypatch.setattr(attention, "connectivity", lambda x, queries: asked.append(queries) or connectivity(x, queries))
    if type(attention).logit_bias is not Attention.logit_bias:
        monkeypatch.setattr(attention, "logit_bias", None)
    query = torch.tensor([20 * 41 + 20])
    assert read(attention, x, query).tokens.shape == (2, attention.num_heads, 1, 40, 41)
    assert all(queries is query for queries in asked)


@torch.no_grad()
def test_what_mixers_are_given_is_recorded_and_the_hooks_are_gone():
    model = create_model("small", attn="swin", num_classes=3).eval()
    images = torch.randn(2, 3, 64, 96)
    given, returned = mixer_inputs(model, images), []
    assert [[tuple(x.shape) for x in stage] for stage in given] == [
        [(2, 16, 24, 24)],
        [(2, 8, 12, 48)],
        [(2, 4, 6, 96)] * 2,
        [(2, 2, 3, 192)],
    ]
    block = model.blocks()[2][1]
    block.attn.register_forward_hook(lambda module, args, output: returned.append(output))
    model(images)
    torch.testing.assert_close(block.attn(given[2][1]), returned[0])
    assert not any(mixer._forward_pre_hooks for mixers in model.mixers() for mixer in mixers)


class Halved(attention_zoo.resolve("vanilla")):
    """Not one softmax."""

    def reference(self, x):
        return super().reference(x) / 2


class Renamed(attention_zoo.resolve("swin")):
    """Inherits the reference, so nobody needs to teach anything."""


class Taught(Halved):
    """Says what it weighs."""

    def weights(self, x, queries=None):
        return super().weights(x, queries) / 2


def test_a_mechanism_with_a_reference_of_its_own_needs_weights():
    x, query = torch.randn(1, 4, 4, 8), torch.tensor([3])
    with pytest.raises(ValueError, match=r"Halved .*weights"):
        read(build(Halved, 8, 2, Halved.Config()), x, query)
    torch.testing.assert_close(read(build(Taught, 8, 2, Taught.Config()), x, query).weights.sum(), torch.tensor(1.0))
    assert read(build(Renamed, 8, 2, Renamed.Config(window=2)), x, query).keys.tolist() == [[[4], [4]]]
