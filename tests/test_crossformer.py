"""Short- and long-distance attention with a dynamic position bias, token by token."""

import pytest
import torch

from attention_zoo import create
from attention_zoo.layouts import SMALL, STL
from attention_zoo.mechanisms.crossformer import CrossFormerConfig


def bias_by_hand(pos, dy, dx):
    """Equation 3's network on one offset: three times LayerNorm, ReLU, Linear."""
    y = pos.pos_proj.weight @ torch.tensor([dy, dx], dtype=torch.float64) + pos.pos_proj.bias
    for norm, _, linear in (pos.pos1, pos.pos2, pos.pos3):
        y = (y - y.mean()) / (y.var(correction=0) + 1e-5).sqrt() * norm.weight + norm.bias
        y = linear.weight @ y.clamp(min=0) + linear.bias
    return y


@pytest.mark.parametrize(
    ("size", "group", "interval", "kind"),
    [
        ((6, 9), 3, 2, "short"),
        ((5, 7), 3, 2, "short"),
        ((8, 4), 2, 2, "long"),  # two blocks of (G I)^2
        ((5, 7), 2, 3, "long"),
        ((2, 7), 2, 3, "long"),  # a side no longer than a group has no interval
        ((3, 3), 7, 2, "long"),
    ],
    ids=str,
)
def test_output_by_token(output_by_token, size, group, interval, kind):
    torch.manual_seed(0)
    attention = create("crossformer", dim=12, num_heads=2, group=group, interval=interval, kind=kind).double()
    attention.pos.__init__(48, 2)  # wide enough for its norms to do something
    attention.double()
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    image = torch.randn(*size, 12, dtype=torch.float64)
    steps = [interval if kind == "long" and side > group else 1 for side in size]

    def group_of(token):
        found = []
        for at, side, step in zip(divmod(token, size[1]), size, steps, strict=True):
            places = min(group, side)
            found += [at // (places * step), at % step]
        return found

    def bias(head, query, key):
        (y, x), (to_y, to_x) = divmod(query, size[1]), divmod(key, size[1])
        return bias_by_hand(attention.pos, (y - to_y) // steps[0], (x - to_x) // steps[1])[head]

    tokens = range(size[0] * size[1])
    reads = [[key for key in tokens if group_of(key) == group_of(query)] for query in tokens]
    y = output_by_token(attention, image, reads, scale=6**-0.5, bias=bias)
    torch.testing.assert_close(y, attention(image[None])[0])


def test_centred_padding_moves_the_groups():
    attention = create("crossformer", dim=12, num_heads=2, group=4, kind="short", pad_side="center")
    reads = attention.connectivity(torch.zeros(1, 6, 4, 12), torch.tensor([0]))[0, 0, 0].reshape(6, 4)
    assert reads.any(1).nonzero().flatten().tolist() == [0, 1, 2]  # 6 rows in 8, one row of padding above


def test_blocks_alternate_with_the_published_intervals():
    assert [CrossFormerConfig().at(stage, 1, STL).interval for stage in range(4)] == [8, 4, 2, 1]
    assert [CrossFormerConfig().at(stage, 1, SMALL).interval for stage in range(4)] == [8, 4, 2, 1]
    assert [CrossFormerConfig().at(0, block, STL).kind for block in range(3)] == ["short", "long", "short"]
    fixed = CrossFormerConfig(group=5, interval=3, kind="long")
    assert fixed.at(1, 0, STL) == fixed


def test_macs_written_out():
    attention = create("crossformer", dim=48, num_heads=3, group=7, interval=2, kind="long")
    macs = attention.macs(14, 28)
    assert macs.projection + macs.core == 4 * 392 * 48**2 + 2 * 7**2 * 392 * 48
    assert macs.position == 13 * 13 * (2 * 3 + 2 * 3 * 3 + 3 * 3)  # 48 / 16 = 3 wide
    assert attention.macs(15, 20).core == 2 * 7**2 * (28 * 28) * 48


@pytest.mark.parametrize("name", ["group", "interval"])
def test_bad_arguments(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        create("crossformer", dim=12, num_heads=2, **{name: 0})
