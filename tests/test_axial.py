"""Attention along rows and columns, one after the other (axial) and in one softmax (criss-cross), in plain loops."""

import pytest
import torch

from attention_zoo import create, create_model
from attention_zoo.mechanisms.axial import AxialConfig
from attention_zoo.mechanisms.axial_deeplab import AxialDeepLabConfig
from attention_zoo.mechanisms.crisscross import CrissCrossConfig

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


def layer_by_token(x, qkv, proj, lines, scale):
    """Axial attention with projections of its own, of heads whose widths the projections tell."""
    q, k, v = (x @ qkv.weight.T + (0 if qkv.bias is None else qkv.bias)).chunk(3, dim=-1)
    mixed = torch.zeros_like(v)
    for line in lines:
        for query in line:
            for part in torch.arange(v.shape[1]).chunk(2):
                powers = [((q[query, part] * k[key, part]).sum() * scale).exp() for key in line]
                for key, power in zip(line, powers, strict=True):
                    mixed[query, part] += power / sum(powers) * v[key, part]
    return mixed @ proj.weight.T + proj.bias


@each_size
@pytest.mark.parametrize("config", [{}, {"qkv_bias": False}, {"head_dim": 5, "qk_scale": 0.3}], ids=str)
@pytest.mark.parametrize("layers", ["sum", "sequence"])
def test_a_layer_for_each_axis_by_token(small, size, layers, config):
    height, width = size
    attention, x = small("axial", height, width, layers=layers, **config)
    rows = [[row * width + col for col in range(width)] for row in range(height)]
    cols = [[row * width + col for row in range(height)] for col in range(width)]
    scale = config.get("qk_scale", 6**-0.5)
    tokens = x[1].reshape(-1, 12)
    columns = layer_by_token(tokens, attention.qkv, attention.proj, cols, scale)
    given = columns if layers == "sequence" else tokens
    found = layer_by_token(given, attention.qkv_rows, attention.proj_rows, rows, scale)
    expected = found if layers == "sequence" else found + columns
    torch.testing.assert_close(attention(x)[1].reshape(-1, 12), expected)


def test_macs_of_a_layer_for_each_axis(small):
    attention, _ = small("axial", 1, 1, layers="sum", head_dim=5)
    assert vars(attention.macs(6, 10)) == {
        **dict.fromkeys(("routing", "position", "host"), 0),
        "projection": 8 * 60 * 12 * 10,
        "core": 2 * 60 * 16 * 10,
    }


def test_a_host_starts_the_layers_of_both_axes_alike():
    model = create_model("small", attn="axial", layers="sequence", num_classes=3)
    for mixer in model.mixers()[1]:
        spreads = [qkv.weight[: 2 * mixer.qk_dim].std().item() * mixer.dim**0.5 for qkv, _ in mixer.projections]
        assert len(spreads) == 2 and spreads == pytest.approx([1.05] * 2, rel=0.1)
        assert not mixer.proj_rows.bias.any()


@each_size
@pytest.mark.parametrize("config", [{"qk_scale": 1.0}, {"qk_reduction": 3, "lepe": True}], ids=str)
@pytest.mark.parametrize("residual", [False, True], ids=["projected", "residual"])
def test_passes_of_crisscross_use_the_same_weights(small, output_by_token, size, config, residual):
    attention, x = small("crisscross", *size, recurrence=2, residual=residual, **config)
    scale = config.get("qk_scale", (attention.qk_dim // 2) ** -0.5)
    proj = attention.proj
    if residual:
        # the loops end with a projection
        attention.proj = torch.nn.Linear(12, 12).double()
        attention.proj.load_state_dict({"weight": torch.eye(12), "bias": torch.zeros(12)})
    expected = x[1]
    for _ in range(2):
        y = output_by_token(attention, expected, crosses(*size), scale=scale)
        expected = expected + attention.gamma * y if residual else y
    attention.proj = proj
    torch.testing.assert_close(attention(x)[1], expected)


def test_ccnets_residual_starts_as_the_identity():
    attention = create("crisscross", dim=16, num_heads=1, residual=True, qk_reduction=8)
    x = torch.randn(2, 3, 4, 16)
    assert torch.equal(attention(x), x)
    assert (attention.qk_dim, attention.gamma.shape) == (2, (1,))


def test_macs_of_passes(small):
    attention, _ = small("crisscross", 1, 1, recurrence=3, qk_reduction=3, residual=True)
    macs = attention.macs(6, 10)
    assert (macs.projection, macs.core) == (3 * 60 * 12 * (12 + 2 * 4), 3 * 60 * 16 * (12 + 4))


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


@pytest.mark.parametrize(
    ("config", "values", "message"),
    [
        (AxialConfig, {"head_dim": 4}, "head_dim .* needs layers=sum or sequence; got 4, layers=shared"),
        (AxialConfig, {"head_dim": 0, "layers": "sum"}, "head_dim must be at least 1.* got 0"),
        (AxialConfig, {"lepe": True, "layers": "sum"}, "lepe must be off, got lepe=True: with layers=sum"),
        (CrissCrossConfig, {"recurrence": 0}, "recurrence must be at least 1, got 0"),
        (CrissCrossConfig, {"qk_reduction": 0}, "qk_reduction must be at least 1, got 0"),
        (AxialDeepLabConfig, {"map_size": (3, 0)}, r"map_size must be at least 1, got \(3, 0\)"),
        (AxialDeepLabConfig, {"qk_scale": 0.3}, "qk_scale must be left out.* got 0.3"),
        (AxialDeepLabConfig, {"lepe": True}, "lepe must be off, got lepe=True"),
        (AxialDeepLabConfig, {"axes": "rows"}, "axes takes both[|]height[|]width; got 'rows'"),
    ],
    ids=str,
)
def test_bad_fields(config, values, message):
    with pytest.raises(ValueError, match=message):
        config(**values)
