"""Block and grid attention, against timm's and token by token."""

import pytest
import torch
from timm.models.maxxvit import MaxxVitTransformerCfg, PartitionAttentionCl

from attention_zoo import create
from attention_zoo.layouts import SMALL, STL
from attention_zoo.mechanisms.maxvit import MaxViTConfig


@pytest.mark.parametrize("kind", ["block", "grid"])
@pytest.mark.parametrize(("size", "window"), [((6, 9), (3, 3)), ((8, 6), (2, 3)), ((3, 3), (3, 3))], ids=str)
def test_maps_that_divide_are_timms(small, kind, size, window):
    attention, x = small("maxvit", *size, window=window, kind=kind)
    cfg = MaxxVitTransformerCfg(dim_head=6, window_size=window, grid_size=window, rel_pos_type="bias", head_first=False)
    official = PartitionAttentionCl(12, partition_type=kind, cfg=cfg).double().eval()
    official.attn.qkv.load_state_dict(attention.qkv.state_dict())
    official.attn.proj.load_state_dict(attention.proj.state_dict())
    official.attn.rel_pos.relative_position_bias_table.data = attention.bias_table.data
    x.requires_grad_()
    found, expected = attention(x), official._partition_attn(x)
    torch.testing.assert_close(found, expected)
    (gradient,) = torch.autograd.grad(found.square().sum(), x)
    (expected_gradient,) = torch.autograd.grad(expected.square().sum(), x)
    torch.testing.assert_close(gradient, expected_gradient)


@pytest.mark.parametrize("kind", ["block", "grid"])
@pytest.mark.parametrize("size", [(5, 7), (2, 8)], ids=str)
def test_output_by_token(small, output_by_token, kind, size):
    attention, x = small("maxvit", *size, window=3, kind=kind)
    rows, cols = (min(3, side) for side in size)
    steps = [-(-side // places) for side, places in zip(size, (rows, cols), strict=True)] if kind == "grid" else (1, 1)

    def place(token):
        return divmod(token, size[1])

    def group(token):
        y, x = place(token)
        return (y % steps[0], x % steps[1]) if kind == "grid" else (y // rows, x // cols)

    def bias(head, query, key):
        (y, x), (to_y, to_x) = place(query), place(key)
        dy, dx = (y - to_y) // steps[0], (x - to_x) // steps[1]
        return attention.bias_table[(dy + 2) * 5 + dx + 2, head]

    tokens = range(size[0] * size[1])
    reads = [[key for key in tokens if group(key) == group(query)] for query in tokens]
    y = output_by_token(attention, x[1], reads, scale=6**-0.5, bias=bias)
    torch.testing.assert_close(y, attention(x)[1])


def test_a_grid_spans_the_map():
    attention = create("maxvit", dim=12, num_heads=2, window=7, kind="grid")
    reads = attention.connectivity(torch.zeros(1, 14, 28, 12), torch.tensor([0]))[0, 0, 0].reshape(14, 28)
    assert reads.any(1).nonzero().flatten().tolist() == list(range(0, 14, 2))
    assert reads.any(0).nonzero().flatten().tolist() == list(range(0, 28, 4))


def test_blocks_alternate_and_take_the_layouts_window():
    assert [MaxViTConfig().at(0, block, STL).kind for block in range(4)] == ["block", "grid", "block", "grid"]
    assert (MaxViTConfig().at(0, 1, STL).sides, MaxViTConfig().at(0, 1, SMALL).sides) == ((7, 7), (2, 2))
    assert MaxViTConfig(kind="grid", window=(2, 3)).at(0, 0, STL) == MaxViTConfig(kind="grid", window=(2, 3))


def test_macs_written_out():
    attention = create("maxvit", dim=48, num_heads=3, window=7, kind="grid")
    macs = attention.macs(14, 28)
    assert macs.projection + macs.core == 4 * 392 * 48**2 + 2 * 7**2 * 392 * 48
    assert attention.macs(15, 20).core == 2 * 7**2 * (21 * 21) * 48
    read = create("maxvit", dim=48, num_heads=3, window=7, kind="grid", padding="official")
    assert read.macs(15, 20) == read.macs(21, 21)


@pytest.mark.parametrize("window", [0, (4, 0)])
def test_bad_arguments(window):
    with pytest.raises(ValueError, match="window must be at least 1, got"):
        create("maxvit", dim=12, num_heads=2, window=window)
