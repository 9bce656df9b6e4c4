"""Neighbourhood attention, against NATTEN's rule in plain loops."""

import pytest
import torch

from attention_zoo import create
from attention_zoo.layouts import SMALL, STL
from attention_zoo.mechanisms.sliding import SlidingConfig


def keys_along(length, kernel, dilation):
    """Keys of each token of a side: the window of its sequence, moved inward at the ends."""
    reads = []
    for token in range(length):
        sequence = list(range(token % dilation, length, dilation))
        n, i = len(sequence), sequence.index(token)
        start = max(0, min(i - kernel // 2, n - kernel))
        reads.append(sequence[start : start + kernel])
    return reads


def keys_on_map(height, width, kernel, dilation):
    rows, cols = keys_along(height, kernel, dilation), keys_along(width, kernel, dilation)
    return [[y * width + x for y in rows[row] for x in cols[col]] for row in range(height) for col in range(width)]


CASES = [  # height, width, kernel, dilation
    (5, 7, 3, 1),
    (6, 8, 5, 1),
    (9, 6, 3, 2),
    (7, 11, 3, 3),
    (5, 8, 5, 2),  # sequences of 3 and 2 down, of 4 across
    (11, 3, 5, 2),
    (4, 2, 7, 1),
    (3, 5, 3, 4),  # a side with fewer tokens than a step has places
    (1, 9, 5, 1),
    (1, 1, 7, 3),
    (4, 4, 1, 2),
]
each_case = pytest.mark.parametrize("case", CASES, ids=lambda c: "-".join(map(str, c)))


@each_case
def test_connectivity_is_the_rule(small, case):
    height, width, kernel, dilation = case
    attention, x = small("sliding", height, width, kernel=kernel, dilation=dilation)
    found = attention.connectivity(x)[0, 0]
    assert [row.nonzero().flatten().tolist() for row in found] == keys_on_map(*case)


@each_case
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "plain"])
def test_output_by_token(small, output_by_token, case, bias):
    height, width, kernel, dilation = case
    attention, x = small("sliding", height, width, kernel=kernel, dilation=dilation, bias=bias, lepe=height == 5)

    def table(head, query, key):
        if not bias:
            return 0.0
        dy, dx = query // width - key // width, query % width - key % width
        return attention.bias_table[
            (dy // dilation + kernel - 1) * (2 * kernel - 1) + dx // dilation + kernel - 1, head
        ]

    y = output_by_token(attention, x[1], keys_on_map(*case), scale=6**-0.5, bias=table)
    torch.testing.assert_close(y, attention(x)[1])


def keys_of_natten(length, kernel, dilation=1, stride=1, causal=False):
    """Keys of each token of a side by NATTEN's rule, whose window has a leader, a left half and a right half."""
    reads = []
    for token in range(length):
        sequence = list(range(token % dilation, length, dilation))
        last, own = len(sequence) - 1, sequence.index(token)
        first = own // stride * stride
        if causal:
            leader = min(first + stride - 1, last)
            keys = [key for key in range(own + 1) if leader - key < kernel]
        else:
            left, right = kernel // 2, (kernel - 1) // 2
            centre = max(left, min(first + stride // 2, last - right))
            keys = range(centre - left, centre + right + 1)
        reads.append([sequence[key] for key in keys if key <= last])
    return reads


GENERALISED = [  # size, kernel, dilation, stride, causal
    ((6, 8), (4, 2), (1, 1), (1, 1), "none"),
    ((7, 9), (3, 5), (1, 1), (2, 3), "none"),
    ((9, 10), (4, 3), (2, 1), (4, 2), "none"),
    ((5, 8), (3, 3), (1, 2), (1, 1), "both"),
    ((7, 6), (5, 4), (1, 1), (3, 1), "height"),
    ((6, 11), (2, 3), (1, 2), (2, 3), "width"),
    ((3, 4), (5, 6), (1, 1), (2, 2), "none"),
    ((2, 5), (4, 7), (1, 1), (3, 3), "both"),
]


@pytest.mark.parametrize("case", GENERALISED, ids=str)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "plain"])
def test_generalised_neighbourhoods_by_token(small, output_by_token, case, bias):
    (height, width), kernel, dilation, stride, causal = case
    config = {"kernel": kernel, "dilation": dilation, "stride": stride, "causal": causal, "bias": bias}
    attention, x = small("sliding", height, width, **config)
    is_causal = causal in ("height", "both"), causal in ("width", "both")
    sides = zip((height, width), kernel, dilation, stride, is_causal, strict=True)
    rows, cols = (keys_of_natten(*side) for side in sides)
    reads = [[y * width + x for y in rows[row] for x in cols[col]] for row in range(height) for col in range(width)]
    found = attention.connectivity(x)[0, 0]
    assert [row.nonzero().flatten().tolist() for row in found] == reads

    def table(head, query, key):
        if not bias:
            return 0.0
        dy, dx = query // width - key // width, query % width - key % width
        row = dy // dilation[0] + kernel[0] - 1
        return attention.bias_table[row * (2 * kernel[1] - 1) + dx // dilation[1] + kernel[1] - 1, head]

    torch.testing.assert_close(output_by_token(attention, x[1], reads, scale=6**-0.5, bias=table), attention(x)[1])


def test_a_stride_as_long_as_the_kernel_cuts_the_map_into_windows(small):
    attention, x = small("sliding", 6, 9, kernel=3, stride=3, bias=False)
    windows, _ = small("swin", 6, 9, window=3)
    windows.load_state_dict({**attention.state_dict(), "bias_table": torch.zeros(25, 2)})
    torch.testing.assert_close(attention(x), windows(x))


def test_an_even_window_has_one_token_more_before_its_query(small):
    attention, x = small("sliding", 1, 9, kernel=(1, 4), bias=False)
    reads = attention.connectivity(x)[0, 0]
    assert reads[4].nonzero().flatten().tolist() == [2, 3, 4, 5]
    assert reads[8].nonzero().flatten().tolist() == [5, 6, 7, 8]


def test_a_causal_query_reads_no_later_token_than_itself(small):
    attention, x = small("sliding", 5, 6, kernel=3, causal="width", bias=False)
    y, changed = attention(x), x.clone()
    changed[:, 2, 3] += 1
    moved = (attention(changed) - y).abs().amax((0, 3)) > 0
    assert moved.any(0).tolist() == [False, False, False, True, True, True]
    assert moved[1:4, 3:].all()


def test_a_map_shorter_than_a_window_is_read_whole_filled_up_or_refused(small):
    attention, x = small("sliding", 4, 9, kernel=3, dilation=(2, 1))
    assert attention.geometry(4, 9) == {"window": "2x3", "pad_ratio": 0.0}
    filled, _ = small("sliding", 4, 9, kernel=3, dilation=(2, 1), padding="official")
    filled.load_state_dict(attention.state_dict())
    assert filled.geometry(4, 9) == {"window": "3x3", "pad_ratio": pytest.approx(0.5)}
    padded = torch.nn.functional.pad(x, (0, 0, 0, 0, 0, 2))
    torch.testing.assert_close(filled(x), attention(padded)[:, :4])
    macs = filled.macs(4, 9)
    assert (macs.projection, macs.core) == ((3 * 54 + 36) * 144, 2 * 54 * 9 * 12)
    refusing, _ = small("sliding", 6, 9, kernel=3, dilation=(2, 1), padding="error")
    torch.testing.assert_close(refusing(padded), attention(padded))
    for call in (refusing, refusing.reference, lambda x: refusing.geometry(4, 9), lambda x: refusing.macs(4, 9)):
        with pytest.raises(ValueError, match="span 6x3 tokens, more than a 4x9 map has, which padding=error"):
            call(x)


def block(rows, cols, width):
    return [y * width + x for y in rows for x in cols]


def test_an_interior_query_is_centred_and_a_corner_query_is_not(small):
    attention, x = small("sliding", 8, 9, kernel=5)
    reads = attention.connectivity(x)[0, 0]

    def seen(row, col):
        return reads[row * 9 + col].nonzero().flatten().tolist()

    assert seen(3, 4) == block(range(1, 6), range(2, 7), 9)
    assert seen(0, 0) == seen(2, 2) == block(range(5), range(5), 9)
    assert seen(7, 8) == seen(6, 7) == block(range(3, 8), range(4, 9), 9)
    assert seen(1, 4) == block(range(5), range(2, 7), 9)
    assert (reads.sum(1) == 25).all()


def test_a_dilated_window_moves_within_its_own_sequence(small):
    attention, x = small("sliding", 8, 9, kernel=3, dilation=2)
    reads = attention.connectivity(x)[0, 0]

    def seen(row, col):
        return reads[row * 9 + col].nonzero().flatten().tolist()

    assert seen(3, 4) == block((1, 3, 5), (2, 4, 6), 9)
    assert seen(0, 0) == seen(2, 2) == block((0, 2, 4), (0, 2, 4), 9)
    assert seen(1, 1) == block((1, 3, 5), (1, 3, 5), 9)
    assert seen(7, 8) == block((3, 5, 7), (4, 6, 8), 9)
    assert seen(7, 7) == block((3, 5, 7), (3, 5, 7), 9)


def test_a_key_that_a_shorter_sequence_lacks_is_not_read(small):
    attention, x = small("sliding", 1, 5, kernel=3, dilation=2)
    y = attention(x)
    changed = x.clone()
    changed[:, :, 4] += 1
    # 0, 2, 4 are one sequence; 1, 3 the other, whose third key would lie beyond the map
    assert [i for i in range(5) if not torch.equal(attention(changed)[:, :, i], y[:, :, i])] == [0, 2, 4]


def test_a_window_as_large_as_the_map_is_dense_attention(small):
    attention, x = small("sliding", 5, 7, kernel=7, bias=False)
    dense, _ = small("vanilla", 5, 7, qkv_bias=True)
    dense.load_state_dict(attention.state_dict())
    torch.testing.assert_close(attention(x), dense(x))


def test_macs_are_the_closed_form(small):
    attention, _ = small("sliding", 1, 1, kernel=3)
    macs = attention.macs(6, 10)
    assert (macs.projection, macs.core) == (4 * 60 * 12 * 12, 2 * 60 * 9 * 12)
    assert macs.total == macs.projection + macs.core
    dilated, _ = small("sliding", 1, 1, kernel=5, dilation=3)
    assert dilated.macs(7, 30).core == 2 * 210 * (3 * 5) * 12  # sequences of 3, 2 and 2 down, of 10 across
    assert dilated.geometry(7, 30) == {"window": "3x5", "pad_ratio": 0.0}


def test_blocks_take_an_odd_kernel_from_the_layout():
    assert SlidingConfig().sides_of("kernel") == (7, 7)
    assert SlidingConfig().at(0, 0, STL).kernel == 7
    assert SlidingConfig().at(2, 1, SMALL).kernel == 3
    assert SlidingConfig(kernel=5, dilation=2).at(1, 0, SMALL) == SlidingConfig(kernel=5, dilation=2)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"kernel": 0}, "kernel must be at least 1, got 0"),
        ({"kernel": (3, -3)}, r"kernel must be at least 1, got \(3, -3\)"),
        ({"dilation": 0}, "dilation must be at least 1, got 0"),
        ({"stride": (0, 1)}, r"stride must be at least 1, got \(0, 1\)"),
        ({"kernel": (5, 2), "stride": 3}, "stride must be at most the kernel along each side, got 3 with kernel=5x2"),
        ({"causal": "rows"}, "causal takes none[|]height[|]width[|]both; got 'rows'"),
        ({"lepe_kernel": 2}, "lepe_kernel must be odd"),
    ],
    ids=str,
)
def test_bad_values(config, message):
    with pytest.raises(ValueError, match=message):
        SlidingConfig(**config)


@pytest.mark.parametrize("size", [(9, 9), (14, 5), (3, 17), (8, 1), (23, 16)], ids=lambda s: f"{s[0]}x{s[1]}")
@pytest.mark.parametrize(
    "config",
    [{"kernel": 3}, {"kernel": 5, "bias": False}, {"kernel": 7, "lepe": True}, {"kernel": (4, 7)}, {"kernel": (5, 2)}],
    ids=str,
)
def test_tiles_are_the_plain_way(small, evaluate, size, config):
    attention, x = small("sliding", *size, **config)
    assert attention.impl_on(*size) == "tiles"
    tiled = evaluate(attention, x)
    attention.impl = "plain"
    for name, value in evaluate(attention, x).items():
        torch.testing.assert_close(tiled[name], value, rtol=1e-9, atol=1e-10)


def test_tiles_need_neighbours_without_a_gap():
    assert create("sliding", dim=12, num_heads=2, dilation=2).impl_on(9, 9) == "plain"
    for name, value in (("dilation", 2), ("stride", (1, 2)), ("causal", "height")):
        with pytest.raises(ValueError, match=rf"impl=tiles.*{name}=\(?{value}|{name}=\(1, 2\)"):
            create("sliding", dim=12, num_heads=2, impl="tiles", **{name: value})
