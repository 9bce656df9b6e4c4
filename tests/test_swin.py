"""Shifted windows, against a brute-force drawing of them, plain loops over tokens, and timm's modules."""

import pytest
import torch
from timm.models.swin_transformer import SwinTransformerBlock, WindowAttention

from attention_zoo import create
from attention_zoo.layouts import SMALL, STL
from attention_zoo.mechanisms.swin import SwinConfig


def drawn_windows(height, width, rows, cols, shift_y, shift_x):
    """Figure 4 of the paper: pad, roll, label the areas, cut into windows. -> keys that each token reads."""
    full_height, full_width = -(-height // rows) * rows, -(-width // cols) * cols
    canvas = [[(y, x) if y < height and x < width else None for x in range(full_width)] for y in range(full_height)]
    rolled = [row[shift_x:] + row[:shift_x] for row in canvas[shift_y:] + canvas[:shift_y]]

    def area(position, length, side, shift):
        """0: whole windows; 1 and 2: the two parts of the last window, which the roll brought together."""
        return (position >= length - side) + (shift > 0 and position >= length - shift)

    windows = {}
    for y, row in enumerate(rolled):
        for x, token in enumerate(row):
            label = (area(y, full_height, rows, shift_y), area(x, full_width, cols, shift_x))
            windows.setdefault((y // rows, x // cols, label), []).append(token)
    reads = {}
    for members in windows.values():
        keys = sorted(y * width + x for y, x in filter(None, members))
        reads.update(dict.fromkeys(keys, keys))
    return [reads[token] for token in range(height * width)]


CUTS = [  # height, width, window, shift -> rows, cols, shift_y, shift_x as clamped to the map
    ((6, 9, (3, 3), 0), (3, 3, 0, 0)),
    ((6, 9, (3, 3), 1), (3, 3, 1, 1)),
    ((8, 4, (4, 2), 1), (4, 2, 1, 1)),
    ((5, 7, (3, 3), 2), (3, 3, 2, 2)),
    ((7, 10, (2, 4), 1), (2, 4, 1, 1)),
    ((4, 10, (4, 4), 2), (4, 4, 0, 2)),
    ((3, 10, (4, 4), 2), (3, 4, 0, 2)),
    ((3, 4, (7, 7), 3), (3, 4, 0, 0)),
]
each_cut = pytest.mark.parametrize(("case", "clamped"), CUTS, ids=lambda c: "-".join(map(str, c)))


@each_cut
def test_connectivity_is_what_the_paper_draws(small, case, clamped):
    height, width, window, shift = case
    attention, x = small("swin", height, width, window=window, shift=shift)
    found = attention.connectivity(x)[0, 0]
    drawn = drawn_windows(height, width, *clamped)
    assert [row.nonzero().flatten().tolist() for row in found] == drawn


@pytest.mark.parametrize("lepe", [False, True], ids=["plain", "lepe"])
@pytest.mark.parametrize(("case", "clamped"), [CUTS[2], CUTS[3]], ids=["4x2", "padded"])
def test_output_by_token(small, output_by_token, case, clamped, lepe):
    height, width, window, shift = case
    attention, x = small("swin", height, width, window=window, shift=shift, lepe=lepe)
    rows, cols = window

    def bias(head, query, key):
        dy, dx = query // width - key // width, query % width - key % width
        return attention.bias_table[(dy + rows - 1) * (2 * cols - 1) + dx + cols - 1, head]

    y = output_by_token(attention, x[1], drawn_windows(height, width, *clamped), scale=6**-0.5, bias=bias)
    torch.testing.assert_close(y, attention(x)[1])


def test_bias_depends_on_the_offset_alone_and_vanishes_beyond_a_window(small):
    attention, _ = small("swin", 5, 6, window=(2, 3))
    bias = attention.logit_bias(5, 6)
    for query in range(30):
        for key in range(30):
            dy, dx = query // 6 - key // 6, query % 6 - key % 6
            inside = abs(dy) < 2 and abs(dx) < 3
            expected = attention.bias_table[(dy + 1) * 5 + dx + 2] if inside else torch.zeros(2)
            assert torch.equal(bias[:, query, key], expected.to(bias))


def with_the_weights_of(attention, official):
    """Copy timm's weights; of our table of biases, the middle belongs to the smaller window that timm clamps to."""
    (rows, cols), (height, width) = attention.window, official.window_size
    table = attention.bias_table.detach().zero_().reshape(2 * rows - 1, 2 * cols - 1, -1)
    table[rows - height : rows + height - 1, cols - width : cols + width - 1] = (
        official.relative_position_bias_table.reshape(2 * height - 1, 2 * width - 1, -1)
    )
    attention.qkv.load_state_dict(official.qkv.state_dict())
    attention.proj.load_state_dict(official.proj.state_dict())
    return attention


def randomise(module):
    generator = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        parameter.detach().normal_(0, 0.4, generator=generator)
    return module.double().eval()


@pytest.mark.parametrize("window", [(4, 4), (3, 5)], ids=["4x4", "3x5"])
def test_one_window_is_timms_window_attention(small, window):
    attention, x = small("swin", *window, window=window)
    official = randomise(WindowAttention(12, 2, window_size=window))
    y = with_the_weights_of(attention, official)(x)
    torch.testing.assert_close(y.flatten(1, 2), official(x.flatten(1, 2)))


@pytest.mark.parametrize(
    ("size", "window", "shift"),
    [((8, 12), 4, 0), ((8, 12), 4, 2), ((9, 6), 3, 1), ((4, 12), 4, 2), ((5, 14), 7, 3), ((5, 6), 7, 3)],
    ids=lambda value: "x".join(map(str, value)) if isinstance(value, tuple) else str(value),
)
def test_maps_that_divide_are_timms_block(small, size, window, shift):
    attention, x = small("swin", *size, window=window, shift=shift)
    official = randomise(SwinTransformerBlock(12, size, num_heads=2, window_size=window, shift_size=shift))
    with_the_weights_of(attention, official.attn)
    x.requires_grad_()
    found, expected = attention(x), official._attn(x)
    torch.testing.assert_close(found, expected)
    (gradient,) = torch.autograd.grad(found.square().sum(), x)
    (expected_gradient,) = torch.autograd.grad(expected.square().sum(), x)
    torch.testing.assert_close(gradient, expected_gradient)


@pytest.mark.parametrize("shift", [0, 1])
def test_on_padded_maps_timm_agrees_in_the_windows_without_padding(small, shift):
    """timm pads the rolled map, before the projection and unmasked: its padded windows read keys that we mask."""
    attention, x = small("swin", 8, 10, window=3, shift=shift)
    official = randomise(SwinTransformerBlock(12, (8, 10), num_heads=2, window_size=3, shift_size=shift))
    with_the_weights_of(attention, official.attn)
    same = (attention(x) - official._attn(x)).abs().amax((0, 3)) < 1e-9
    whole = torch.zeros(8, 10, dtype=torch.bool)
    whole[shift : shift + 6, shift : shift + 9] = True
    assert same[whole].all()
    assert not same.all()


def test_blocks_alternate_and_take_the_layouts_window():
    assert [SwinConfig().at(2, block, STL).shift for block in range(4)] == [0, 3, 0, 3]
    assert SwinConfig().at(0, 1, STL).sides == (7, 7)
    assert (SwinConfig().at(2, 1, SMALL).sides, SwinConfig().at(2, 1, SMALL).shift) == ((2, 2), 1)
    assert SwinConfig(window=(4, 6)).at(0, 1, STL).shift == 2
    fixed = SwinConfig(window=5, shift=1)
    assert [fixed.at(0, block, STL) for block in range(2)] == [fixed, fixed]


def test_macs_written_out():
    attention = create("swin", dim=48, num_heads=3, window=7)
    macs = attention.macs(14, 28)
    assert macs.projection + macs.core == 4 * 392 * 48**2 + 2 * 7**2 * 392 * 48  # eq. 2
    assert attention.macs(15, 20).core == 2 * 7**2 * (21 * 21) * 48  # the core runs on the padded map
    assert attention.macs(15, 20).projection == 4 * 300 * 48**2  # the projections do not
    assert attention.geometry(15, 20) == {"window": "7x7", "pad_ratio": 21 * 21 / 300 - 1}
    assert attention.geometry(5, 20)["window"] == "5x7"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"window": 0}, "window must be at least 1, got 0"),
        ({"window": (4, 0)}, r"window must be at least 1, got \(4, 0\)"),
        ({"window": 4, "shift": 4}, "shift must be at least 0 and below the window 4, got 4"),
        ({"window": (7, 2), "shift": 2}, "below the window 2, got 2"),
        ({"shift": -1}, "got -1"),
    ],
    ids=str,
)
def test_bad_arguments(config, message):
    with pytest.raises(ValueError, match=message):
        create("swin", dim=12, num_heads=2, **config)


@pytest.mark.parametrize("size", [(6, 6), (6, 12), (9, 18), (6, 42), (12, 36)], ids=lambda s: f"{s[0]}x{s[1]}")
def test_shifted_windows_cost_what_windows_cost_though_the_seam_is_masked(small, size):
    shifted, x = small("swin", *size, window=3, shift=1)
    height, width = size
    # along a side the window with the seam holds one token of one border and two of the other: 1 + 4 pairs, not 9
    assert int(shifted.connectivity(x[:1]).sum()) == (3 * height - 4) * (3 * width - 4)
    assert shifted.macs(*size).core == 3 * height * 3 * width * 2 * 12
    assert shifted.macs(*size) == small("swin", *size, window=3)[0].macs(*size)
