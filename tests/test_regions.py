"""The cut of a map and its inverse, and that nothing depends on what padding holds."""

import dataclasses

import pytest
import torch
from conftest import reads_padding
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from attention_zoo import create
from attention_zoo.check.oracle import Junk
from attention_zoo.regions import Partition, blank, coordinates, from_heads, to_heads

CPU = torch.device("cpu")
sides = st.integers(1, 9)


@st.composite
def partitions(draw):
    height, width, rows, cols = (draw(sides) for _ in range(4))
    shift = draw(st.integers(0, rows - 1)), draw(st.integers(0, cols - 1))
    step = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    return Partition.of_size(height, width, rows, cols, shift=shift, step=step, centred=draw(st.booleans()))


@given(partitions())
def test_join_inverts_split(cut):
    x = torch.randn(2, cut.height, cut.width, 3)
    regions = cut.split(x)
    assert regions.shape == (2, cut.count, cut.tokens, 3)
    assert torch.equal(cut.join(regions), x)


@given(partitions())
def test_split_puts_each_token_where_its_coordinates_say(cut):
    regions = cut.split((torch.arange(cut.height * cut.width) + 1).reshape(1, cut.height, cut.width, 1))[0, :, :, 0]
    valid = cut.valid(CPU)
    expected = torch.zeros_like(regions)
    tall, wide = cut.padded_size
    for y in range(cut.height):
        for x in range(cut.width):
            rolled_y, rolled_x = (y + cut.top - cut.shift_y) % tall, (x + cut.left - cut.shift_x) % wide
            block_y, block_x = rolled_y // (cut.rows * cut.step_y), rolled_x // (cut.cols * cut.step_x)
            region_y = block_y * cut.step_y + rolled_y % cut.step_y
            region_x = block_x * cut.step_x + rolled_x % cut.step_x
            region = region_y * cut.across * cut.step_x + region_x
            place = rolled_y // cut.step_y % cut.rows * cut.cols + rolled_x // cut.step_x % cut.cols
            expected[region, place] = y * cut.width + x + 1
            assert cut.locate(torch.tensor(y), torch.tensor(x)) == region
    assert torch.equal(regions, expected)
    assert torch.equal(expected > 0, torch.ones_like(expected, dtype=torch.bool) if valid is None else valid)
    assert (valid is not None) == cut.is_padded


@given(sides, sides, sides, sides)
def test_regions_of_a_size_are_as_few_as_cover_the_map(height, width, rows, cols):
    cut = Partition.of_size(height, width, rows, cols)
    assert (cut.rows, cut.cols, cut.tokens) == (rows, cols, rows * cols)
    assert cut.down * rows >= height > (cut.down - 1) * rows
    assert cut.across * cols >= width > (cut.across - 1) * cols
    assert cut.count == cut.down * cut.across
    assert cut.is_padded == bool(height % rows or width % cols)


@given(partitions())
def test_padding_is_shared_out_and_taken_off_again(cut):
    x = torch.randn(2, cut.height, cut.width, 3)
    padded, (height, width) = cut.pad(x), cut.padded_size
    assert padded.shape == (2, height, width, 3)
    assert torch.equal(cut.crop(padded), x)
    assert padded.count_nonzero() == x.count_nonzero()
    assert cut.filled().padded_size == (height, width)
    assert not cut.filled().is_padded
    assert torch.equal(cut.filled().split(padded), cut.split(x))
    assert cut.pad_ratio == height * width / (cut.height * cut.width) - 1
    if cut.top or cut.left:
        assert (cut.top, cut.left) == ((height - cut.height) // 2, (width - cut.width) // 2)


@given(sides, sides, st.integers(1, 12))
def test_regions_per_side_leave_out_those_without_a_token(height, width, per_side):
    cut = Partition.of_count(height, width, per_side)
    for length, side, count in ((height, cut.rows, cut.down), (width, cut.cols, cut.across)):
        assert side == -(-length // per_side)
        assert count <= per_side
        assert count == per_side or length % per_side
        assert (count - 1) * side < length <= count * side
    valid = cut.valid(CPU)
    assert valid is None or valid.any(1).all()


def test_a_map_of_ten_in_seven_regions_has_five_of_two():
    cut = Partition.of_count(10, 14, 7)
    assert (cut.rows, cut.cols, cut.down, cut.across, cut.is_padded) == (2, 2, 5, 7, False)


def test_blank_keeps_the_map_and_stops_nan_forward_and_backward():
    valid = torch.tensor([[True, False], [True, True]])
    regions = torch.tensor([[[1.0], [torch.nan]], [[2.0], [3.0]]])[None].requires_grad_()
    blanked = blank(regions, valid)
    assert blanked.flatten().tolist() == [1, 0, 2, 3]
    blanked.sum().backward()
    assert regions.grad.flatten().tolist() == [1, 0, 1, 1]
    assert blank(regions, None) is regions


def test_heads_take_adjacent_channels_and_come_back():
    x = torch.randn(2, 5, 6)
    heads = to_heads(x, 3)
    assert heads.shape == (2, 3, 5, 2)
    assert torch.equal(heads[1, 2, 4], x[1, 4, 4:6])
    assert torch.equal(from_heads(heads), x)


def test_coordinates_are_row_major():
    row, col = coordinates(2, 3, CPU)
    assert (row.tolist(), col.tolist()) == ([0, 0, 0, 1, 1, 1], [0, 1, 2, 0, 1, 2])


@settings(max_examples=5)
@given(height=sides, width=sides, junk=st.sampled_from([torch.nan, torch.inf, 1e4, -1e4]))
def test_padding_of_any_map_may_hold_anything(small, evaluate, mechanism, height, width, junk):
    if reads_padding(mechanism):
        pytest.skip("the published code reads its padding")
    attention, x = small(mechanism.name, height, width, **mechanism.config)
    try:
        clean = evaluate(attention, x)
    except ValueError:
        assume(False)  # more top-k than regions
    with Junk(junk):
        dirty = evaluate(attention, x)
    for name, value in clean.items():
        assert value.isfinite().all(), name
        assert torch.equal(dirty[name], value), name


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("swin", {"window": 3}),
        ("swin", {"window": (2, 3), "lepe": True}),
        ("bra", {"regions": 3, "topk": 2}),
        ("bra", {"regions": 3, "topk": 2, "impl": "gather"}),
        ("bra", {"regions": 3, "topk": 9, "impl": "gather"}),
        ("maxvit", {"window": 2, "kind": "block"}),
        ("crossformer", {"group": 2, "interval": 2, "kind": "long"}),
        ("bra", {"regions": 3, "topk": 99, "clip_topk": True, "impl": "gather"}),  # more than there are real ones
        ("bra", {"region_size": 2, "topk": 1, "lepe": False}),
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [(5, 7), (6, 9)], ids=lambda s: f"{s[0]}x{s[1]}")
@pytest.mark.parametrize("junk", [0.0, torch.nan, 1e4], ids=str)
def test_whole_regions_of_padding_change_nothing(small, evaluate, name, config, size, junk):
    attention, x = small(name, *size, **config)
    clean = evaluate(attention, x)
    cut = attention.partition(*size)
    wider = dataclasses.replace(cut, down=cut.down + 1, across=cut.across + 2)
    attention.partition = lambda height, width: wider
    with Junk(junk) as junk_put:
        found = evaluate(attention, x)
    assert junk_put.tokens >= (wider.count - cut.count) * cut.tokens
    for key, value in clean.items():
        torch.testing.assert_close(found[key], value, rtol=0, atol=1e-10, msg=f"{key} changed")


@pytest.mark.parametrize("name", ["bra", "swin"])
def test_a_mechanism_refuses_a_size_each_time(name):
    strict = create(name, dim=32, num_heads=2, padding="error")
    for _ in range(2):
        with pytest.raises(ValueError, match="a 9x9 map does not divide into blocks"):
            strict.partition(9, 9)
