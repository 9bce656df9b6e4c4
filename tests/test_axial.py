"""Attention along rows and columns, one after the other (axial) and in one softmax (criss-cross), in plain loops."""

import pytest
import torch

from attention_zoo import create

SIZES = [(4, 6), (5, 3), (1, 4), (3, 1), (1, 1)]
each_size = pytest.mark.parametrize("size", SIZES, ids=lambda s: f"{s[0]}x{s[1]}")
each_name = pytest.mark.parametrize("name", ["axial", "crisscross"])


def crosses(height, width):
    """Keys of each query: its row, and what its column has beyond it."""
    return [
        sorted({row * width + x for x in range(width)} | {y * width + col for y in range(height)})
        for row in range(height)
        for col in range(width)
    ]


def mix_along(lines, q, k, values, scale):
    """One softmax per query over the tokens of its line; 6 channels a head."""
    mixed = torch.zeros_like(values)
    for line in lines:
        for query in line:
            for part in (slice(0, 6), slice(6, 12)):
                powers = [((q[query, part] * k[key, part]).sum() * scale).exp() for key in line]
                for key, power in zip(line, powers, strict=True):
                    mixed[query, part] += power / sum(powers) * values[key, part]
    return mixed


@each_size
@pytest.mark.parametrize("lepe", [False, True], ids=["plain", "lepe"])
def test_axial_by_token(small, lepe_by_token, size, lepe):
    height, width = size
    attention, x = small("axial", height, width, lepe=lepe)
    tokens = x[1].reshape(-1, 12)
    q, k, v = (tokens @ attention.qkv.weight.T + attention.qkv.bias).split(12, dim=-1)
    rows = [[row * width + col for col in range(width)] for row in range(height)]
    cols = [[row * width + col for row in range(height)] for col in range(width)]
    y = mix_along(cols, q, k, mix_along(rows, q, k, v, 6**-0.5), 6**-0.5)
    if lepe:
        y = y + lepe_by_token(attention, v.reshape(height, width, 12)).reshape(-1, 12)
    expected = (y @ attention.proj.weight.T + attention.proj.bias).reshape(height, width, 12)
    torch.testing.assert_close(attention(x)[1], expected)


@each_size
@pytest.mark.parametrize("lepe", [False, True], ids=["plain", "lepe"])
def test_crisscross_by_token(small, output_by_token, size, lepe):
    attention, x = small("crisscross", *size, lepe=lepe)
    expected = output_by_token(attention, x[1], crosses(*size), scale=6**-0.5)
    torch.testing.assert_close(attention(x)[1], expected)


@each_size
@each_name
def test_connectivity_is_a_cross(small, name, size):
    attention, x = small(name, *size)
    found = attention.connectivity(x)[0, 0]
    assert [row.nonzero().flatten().tolist() for row in found] == crosses(*size)
    assert (found.sum(1) == size[0] + size[1] - 1).all()


def moved_by(attention, x, row, col):
    """Tokens of the output that change with one token of the input."""
    changed = x.clone()
    changed[:, row, col] += 1
    return (attention(changed) - attention(x)).abs().amax((0, 3)) > 1e-9


def test_axial_reaches_the_whole_map_and_crisscross_its_cross(small):
    attention, x = small("axial", 4, 5)
    assert moved_by(attention, x, 1, 3).all()
    attention, x = small("crisscross", 4, 5)
    cross = torch.zeros(4, 5, dtype=torch.bool)
    cross[1], cross[:, 3] = True, True
    assert torch.equal(moved_by(attention, x, 1, 3), cross)


@pytest.mark.parametrize("size", [(1, 6), (6, 1)], ids=["row", "column"])
@each_name
def test_one_line_is_dense_attention(small, name, size):
    attention, x = small(name, *size)
    dense, _ = small("vanilla", *size, qkv_bias=True)
    dense.load_state_dict(attention.state_dict())
    torch.testing.assert_close(attention(x), dense(x))


@pytest.mark.parametrize("part", [0, 1, 2], ids=["query", "key", "value"])
def test_axials_reference_notices_a_rolled_vector(small, monkeypatch, part):
    attention, x = small("axial", 4, 5)
    project = attention.project

    def mutated(x):
        parts = [tensor.clone() for tensor in project(x)]
        parts[part][0, 1, 7] = parts[part][0, 1, 7].roll(1)
        return parts

    expected = attention(x)
    monkeypatch.setattr(attention, "project", mutated)
    assert not torch.allclose(expected, attention.reference(x), rtol=1e-9, atol=1e-10)


@each_name
def test_macs_are_the_closed_form(small, name):
    attention, _ = small(name, 1, 1)
    macs = attention.macs(6, 10)
    assert (macs.projection, macs.core) == (4 * 60 * 12 * 12, 2 * 60 * (6 + 10) * 12)
    assert macs.total == macs.projection + macs.core
    assert attention.geometry(6, 10) == {"pad_ratio": 0.0}


@each_name
def test_bad_values(name):
    with pytest.raises(ValueError, match="dim must be a positive multiple of num_heads, got dim=10"):
        create(name, dim=10, num_heads=4)
    with pytest.raises(ValueError, match=f"unknown field of {name} 'window'"):
        create(name, dim=12, num_heads=2, window=3)
