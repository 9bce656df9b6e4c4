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
    assert (SlidingConfig().side, SlidingConfig().at(0, 0, STL).kernel) == (7, 7)
    assert SlidingConfig().at(2, 1, SMALL).kernel == 3
    assert SlidingConfig(kernel=5, dilation=2).at(1, 0, SMALL) == SlidingConfig(kernel=5, dilation=2)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"kernel": 4}, "kernel must be odd and at least 1, got 4"),
        ({"kernel": 0}, "kernel must be odd and at least 1, got 0"),
        ({"kernel": -3}, "kernel must be odd and at least 1, got -3"),
        ({"dilation": 0}, "dilation must be at least 1, got 0"),
        ({"lepe_kernel": 2}, "lepe_kernel must be odd"),
    ],
    ids=str,
)
def test_bad_values(config, message):
    with pytest.raises(ValueError, match=message):
        SlidingConfig(**config)


@pytest.mark.parametrize("size", [(9, 9), (14, 5), (3, 17), (8, 1), (23, 16)], ids=lambda s: f"{s[0]}x{s[1]}")
@pytest.mark.parametrize("config", [{"kernel": 3}, {"kernel": 5, "bias": False}, {"kernel": 7, "lepe": True}], ids=str)
def test_tiles_are_the_plain_way(small, evaluate, size, config):
    attention, x = small("sliding", *size, **config)
    assert attention.impl_on(*size) == "tiles"
    tiled = evaluate(attention, x)
    attention.impl = "plain"
    for name, value in evaluate(attention, x).items():
        torch.testing.assert_close(tiled[name], value, rtol=1e-9, atol=1e-10)


def test_tiles_need_neighbours_without_a_gap():
    assert create("sliding", dim=12, num_heads=2, dilation=2).impl_on(9, 9) == "plain"
    with pytest.raises(ValueError, match=r"impl=tiles.*dilation=2"):
        create("sliding", dim=12, num_heads=2, dilation=2, impl="tiles")
