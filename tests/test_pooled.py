"""Spatial reduction (PVT, and the global half of Twins) and Twins' windows, in plain loops."""

import pytest
import torch
import torch.nn.functional as F
from conftest import slow_but

from attention_zoo import create, create_model, pooled
from attention_zoo.layouts import SMALL, STL
from attention_zoo.mechanisms.pvt import PVT, PVTConfig
from attention_zoo.mechanisms.sep import SepConfig

POOLED = [("pvt", {}), ("sep", {"kind": "global"})]
each_pooled = pytest.mark.parametrize(("name", "config"), POOLED, ids=["pvt", "sep"])


def reduced_by_token(attention, image, reduction, whole_patches_only):
    """Keys' map of one image, (M, C): each patch a weighted sum of its tokens, then normalised."""
    height, width, channels = image.shape
    sr, norm = attention.pool.sr, attention.pool.norm
    down, across = (n // reduction if whole_patches_only else -(-n // reduction) for n in (height, width))
    found = []
    for i in range(down):
        for j in range(across):
            total = sr.bias.clone()
            for row in range(height):
                for col in range(width):
                    if (row // reduction, col // reduction) == (i, j):
                        total += sr.weight[:, :, row % reduction, col % reduction] @ image[row, col]
            found.append(F.layer_norm(total, (channels,), norm.weight, norm.bias))
    return torch.stack(found)


def pooled_by_token(attention, image, keys, scale=6**-0.5):
    """Every query reads all the keys of a smaller map."""
    tokens = image.reshape(-1, 12)
    weight, bias = attention.qkv.weight, attention.qkv.bias
    q = tokens @ weight[:12].T + bias[:12]
    k = keys @ weight[12:24].T + bias[12:24]
    v = keys @ weight[24:].T + bias[24:]
    y = torch.zeros_like(tokens)
    for query in range(len(tokens)):
        for part in (slice(0, 6), slice(6, 12)):
            powers = [((q[query, part] * k[key, part]).sum() * scale).exp() for key in range(len(keys))]
            for key, power in enumerate(powers):
                y[query, part] += power / sum(powers) * v[key, part]
    return (y @ attention.proj.weight.T + attention.proj.bias).reshape(image.shape)


@each_pooled
@pytest.mark.parametrize("padding", ["mask", "official"])
@pytest.mark.parametrize(("size", "reduction"), [((4, 6), 2), ((5, 7), 2), ((7, 4), 3), ((3, 8), 3)], ids=str)
def test_output_by_token(small, name, config, size, reduction, padding):
    attention, x = small(name, *size, reduction=reduction, padding=padding, **config)
    keys = reduced_by_token(attention, x[1], reduction, padding == "official")
    torch.testing.assert_close(attention(x)[1], pooled_by_token(attention, x[1], keys))


@each_pooled
def test_whole_patches_are_the_published_convolution(small, name, config):
    attention, x = small(name, 6, 9, reduction=3, **config)
    sr = attention.pool.sr
    convolved = F.conv2d(x.movedim(3, 1), sr.weight, sr.bias, stride=3)
    expected = attention.pool.norm(convolved.movedim(1, 3))
    torch.testing.assert_close(attention.pool(x), expected)
    torch.testing.assert_close(attention.pool.by_patch(x), expected)


@each_pooled
@pytest.mark.parametrize("padding", ["mask", "official", "error"])
def test_without_reduction_it_is_dense_attention(small, name, config, padding):
    attention, x = small(name, 5, 7, reduction=1, padding=padding, **config)
    assert not list(attention.pool.parameters())
    dense, _ = small("vanilla", 5, 7, qkv_bias=True)
    dense.load_state_dict(attention.state_dict())
    torch.testing.assert_close(attention(x), dense(x))


@each_pooled
def test_a_map_smaller_than_a_patch_is_one_key(small, name, config):
    attention, x = small(name, 3, 5, reduction=8, **config)
    value = attention.qkv(attention.pool(x))[..., 24:]
    assert value.shape == (2, 1, 1, 12)
    torch.testing.assert_close(attention(x), attention.proj(value).expand_as(x))


@each_pooled
def test_the_published_code_leaves_a_remainder_out(small, name, config):
    attention, x = small(name, 5, 7, reduction=2, padding="official", **config)
    read = torch.zeros(5, 7, dtype=torch.bool)
    read[:4, :6] = True
    assert torch.equal(attention.connectivity(x)[0, 0], read.flatten().expand(35, -1))
    y, changed = attention(x), x.clone()
    changed[:, 4, 6] += 1
    moved = (attention(changed) - y).abs().amax((0, 3)) > 0
    # as a query alone
    assert moved.nonzero().tolist() == [[4, 6]]
    whole, x = small(name, 5, 7, reduction=2, **config)
    assert whole.connectivity(x).all()
    assert ((whole(changed) - whole(x)).abs().amax((0, 3)) > 0).all()


@each_pooled
def test_the_reference_reduces_by_itself(small, monkeypatch, name, config):
    attention, x = small(name, 5, 7, reduction=2, **config)
    expected = attention(x)

    def unreachable(self, x):
        raise AssertionError("the oracle called what it judges")

    monkeypatch.setattr(pooled.SpatialReduction, "forward", unreachable)
    torch.testing.assert_close(attention.reference(x), expected)


def assert_noticed(attention, x, expected):
    found = attention.reference(x)
    assert not torch.allclose(found, expected, rtol=1e-9, atol=1e-10)


@each_pooled
def test_the_reference_notices_a_dropped_key(small, monkeypatch, name, config):
    attention, x = small(name, 5, 7, reduction=2, **config)
    plain = pooled.softmax_weights

    def without_one_key(q, k, scale, bias, allowed):
        allowed = allowed.clone()
        allowed[0, -1] = False
        return plain(q, k, scale, bias, allowed)

    monkeypatch.setattr(pooled, "softmax_weights", without_one_key)
    assert_noticed(attention, x, attention(x))


@each_pooled
@pytest.mark.parametrize("part", [0, 1, 2], ids=["query", "key", "value"])
def test_the_reference_notices_a_rolled_vector(small, monkeypatch, name, config, part):
    attention, x = small(name, 5, 7, reduction=2, **config)
    project = attention.project

    def mutated(x):
        parts = [tensor.clone() for tensor in project(x)]
        parts[part][0, 1, 5] = parts[part][0, 1, 5].roll(1)
        return parts

    monkeypatch.setattr(attention, "project", mutated)
    assert_noticed(attention, x, attention(x))


@each_pooled
def test_the_reference_notices_one_token_missing_from_a_patch(small, monkeypatch, name, config):
    attention, x = small(name, 5, 7, reduction=2, **config)
    expected, by_patch = attention(x), attention.pool.by_patch

    def without_one_token(x):
        x = x.clone()
        x[0, 4, 6] = 0
        return by_patch(x)

    monkeypatch.setattr(attention.pool, "by_patch", without_one_token)
    assert_noticed(attention, x, expected)


def averaged_by_token(attention, image):
    """Keys' map of one image, (49, C): averages of bins that may overlap, then convolution, norm and GELU."""
    height, width, channels = image.shape
    sr, norm = attention.pool.sr, attention.pool.norm
    found = []
    for i in range(7):
        for j in range(7):
            rows = range(i * height // 7, -(-(i + 1) * height // 7))
            cols = range(j * width // 7, -(-(j + 1) * width // 7))
            mean = sum(image[row, col] for row in rows for col in cols) / (len(rows) * len(cols))
            y = F.layer_norm(sr.weight[:, :, 0, 0] @ mean + sr.bias, (channels,), norm.weight, norm.bias)
            found.append(F.gelu(y))
    return torch.stack(found)


@pytest.mark.parametrize("size", slow_but((7, 7), (3, 8), (1, 1), of=[(7, 7), (14, 21), (3, 8), (9, 16), (1, 1)]))
def test_linear_attention_reads_averages(small, size):
    attention, x = small("pvt", *size, linear=True)
    with torch.no_grad():  # one number after the other, whose graph would take most of the time
        expected = pooled_by_token(attention, x[1], averaged_by_token(attention, x[1]))
        torch.testing.assert_close(attention(x)[1], expected)
    assert attention.connectivity(x).all()


def test_linear_attention_has_as_many_keys_on_every_map(small):
    attention, _ = small("pvt", 1, 1, linear=True)
    for tokens, size in ((96, (8, 12)), (30, (5, 6))):
        macs = attention.macs(*size)
        assert (macs.projection, macs.core) == (2 * tokens * 144 + 3 * 49 * 144, 2 * tokens * 49 * 12)
        assert attention.geometry(*size) == {"pad_ratio": 0.0}
    assert PVTConfig(linear=True).at(0, 0, STL).reduction is None
    assert (PVT.core_exponent(PVTConfig(linear=True)), PVT.core_exponent(PVTConfig())) == (1, 2)


def test_the_weight_of_an_average_lies_evenly_on_its_tokens(small):
    attention, x = small("pvt", 10, 4, linear=True)
    weights = attention.weights(x)
    spread = torch.zeros(2, 2, 40, 10, 4, dtype=torch.float64)
    for i in range(7):
        for j in range(7):
            rows = slice(i * 10 // 7, -(-(i + 1) * 10 // 7))
            cols = slice(j * 4 // 7, -(-(j + 1) * 4 // 7))
            share = weights[..., 7 * i + j, None, None]
            spread[..., rows, cols] += share / (rows.stop - rows.start) / (cols.stop - cols.start)
    torch.testing.assert_close(attention.on_map(x, weights), spread)


@each_pooled
def test_macs_are_the_closed_form(small, name, config):
    attention, _ = small(name, 1, 1, reduction=4, **config)
    macs = attention.macs(8, 12)  # 96 queries, 6 keys
    assert macs.projection == 2 * 96 * 12**2 + 2 * 6 * 12**2 + 6 * 4**2 * 12**2
    assert macs.core == 2 * 96 * 6 * 12
    assert macs.total == macs.projection + macs.core
    assert attention.macs(7, 9).core == 2 * 63 * 6 * 12
    assert attention.geometry(8, 12) == {"pad_ratio": 0.0}
    assert attention.geometry(7, 9) == {"pad_ratio": pytest.approx(96 / 63 - 1)}
    official, _ = small(name, 1, 1, reduction=4, padding="official", **config)
    assert official.macs(7, 9).core == 2 * 63 * 2 * 12
    assert official.geometry(7, 9) == {"pad_ratio": 0.0}


def windows(height, width, rows, cols):
    def members(row, col):
        return [
            y * width + x
            for y in range(height)
            for x in range(width)
            if (y // rows, x // cols) == (row // rows, col // cols)
        ]

    return [members(row, col) for row in range(height) for col in range(width)]


@pytest.mark.parametrize("lepe", [False, True], ids=["plain", "lepe"])
@pytest.mark.parametrize(
    ("size", "window"), [((4, 6), (2, 3)), ((5, 7), (3, 3)), ((2, 3), (7, 7))], ids=["divides", "padded", "clamped"]
)
def test_local_blocks_by_token(small, output_by_token, size, window, lepe):
    attention, x = small("sep", *size, window=window, kind="local", lepe=lepe)
    expected = output_by_token(attention, x[1], windows(*size, *window), scale=6**-0.5)
    torch.testing.assert_close(attention(x)[1], expected)
    assert attention.pool is None


def test_the_published_windows_read_zeros_padded_before_the_projection(small, output_by_token):
    attention, x = small("sep", 5, 7, window=3, kind="local", padding="official")
    padded = F.pad(x[1], (0, 0, 0, 2, 0, 1))
    expected = output_by_token(attention, padded, windows(6, 9, 3, 3), scale=6**-0.5)[:5, :7]
    torch.testing.assert_close(attention(x)[1], expected)
    masked, _ = small("sep", 5, 7, window=3, kind="local")
    assert not torch.allclose(masked(x)[1], expected)


@pytest.mark.parametrize(
    ("size", "masks"), [((5, 7), True), ((6, 7), False), ((5, 6), False), ((6, 6), False)], ids=str
)
def test_twins_segmentation_masks_padding_where_both_sides_are_padded(small, size, masks):
    config = {"window": 3, "kind": "local"}
    attention, x = small("sep", *size, **config, padding="official", variant="segmentation")
    same, _ = small("sep", *size, **config, **({} if masks else {"padding": "official"}))
    other, _ = small("sep", *size, **config, **({"padding": "official"} if masks else {}))
    torch.testing.assert_close(attention(x), same(x))
    assert torch.allclose(attention(x), other(x)) == (size == (6, 6))
    assert attention.macs(*size) == same.macs(*size)


def test_the_output_projection_of_published_windows_leaves_padding_out(small):
    attention, _ = small("sep", 1, 1, window=3, kind="local", padding="official", lepe=True)
    macs = attention.macs(5, 7)
    assert (macs.projection, macs.core) == ((3 * 54 + 35) * 144, 2 * 54 * 9 * 12)
    assert macs.position == 54 * 12 * 25


def test_macs_and_geometry_of_windows(small):
    attention, _ = small("sep", 1, 1, window=(2, 3), kind="local")
    macs = attention.macs(4, 9)
    assert (macs.projection, macs.core) == (4 * 36 * 12**2, 2 * 36 * 6 * 12)
    assert attention.geometry(5, 9) == {"window": "2x3", "pad_ratio": pytest.approx(54 / 45 - 1)}


def test_blocks_take_the_published_reductions_and_turns():
    assert [PVTConfig().at(stage, 0, STL).reduction for stage in range(4)] == [8, 4, 2, 1]
    assert [PVTConfig().at(stage, 0, SMALL).reduction for stage in range(4)] == [2, 1, 1, 1]
    assert PVTConfig(reduction=3).at(0, 0, SMALL).reduction == 3
    assert create("pvt", dim=12, num_heads=2).pool.reduction == 8
    blocks = [SepConfig().at(2, block, STL) for block in range(4)]
    assert [block.kind for block in blocks] == ["local", "global", "local", "global"]
    assert {(block.sides, block.reduction) for block in blocks} == {((7, 7), 2)}
    assert SepConfig().at(0, 0, SMALL).sides == (2, 2)
    assert SepConfig(kind="global", window=5, reduction=3).at(0, 0, SMALL) == SepConfig(
        kind="global", window=5, reduction=3
    )
    assert SepConfig().sides == (7, 7)


def test_a_pyramid_alternates_from_windows_to_the_reduced_map():
    mixers = create_model("small", attn="sep", num_classes=3).mixers()
    assert [[mixer.pool is not None for mixer in stage] for stage in mixers[:3]] == [[False], [False], [False, True]]


@pytest.mark.parametrize(
    ("config", "values", "message"),
    [
        (PVTConfig, {"reduction": 0}, "reduction must be at least 1, got 0"),
        (PVTConfig, {"reduction": 2, "linear": True}, "reduction must be left out with linear=on.* got 2"),
        (PVTConfig, {"lepe": True}, "lepe must be off, got lepe=True: pvt pools the values"),
        (SepConfig, {"reduction": 0}, "reduction must be at least 1, got 0"),
        (SepConfig, {"window": 0}, "window must be at least 1, got 0"),
        (SepConfig, {"window": (3, -1)}, r"window must be at least 1, got \(3, -1\)"),
        (SepConfig, {"lepe": True, "kind": "global"}, "lepe must be off, got lepe=True: kind=global pools the values"),
        (SepConfig, {"pad_moment": "input"}, "pad_moment=input needs padding=official"),
        (SepConfig, {"variant": "segmentation"}, "variant=segmentation needs padding=official.* got padding=mask"),
    ],
    ids=str,
)
def test_bad_values(config, values, message):
    with pytest.raises(ValueError, match=message):
        config(**values)


def test_lepe_in_a_pyramid_that_pools_is_refused():
    with pytest.raises(ValueError, match="kind=global pools the values, so only kind=local has it"):
        create_model("small", attn="sep", lepe=True)
    create_model("small", attn="sep", lepe=True, kind="local")


@each_pooled
def test_maps_that_are_refused(small, name, config):
    strict, x = small(name, 5, 8, reduction=4, padding="error", **config)
    for call in (strict, strict.reference, lambda x: strict.geometry(5, 8), lambda x: strict.macs(5, 8)):
        with pytest.raises(ValueError, match="a 5x8 map does not divide into blocks of 4x4 tokens"):
            call(x)
    assert strict(x[:, :4]).shape == (2, 4, 8, 12)
    official, x = small(name, 3, 9, reduction=4, padding="official", **config)
    for call in (official, official.reference, lambda x: official.geometry(3, 9), lambda x: official.macs(3, 9)):
        with pytest.raises(ValueError, match=r"reduction=4 is above the sides of a 3x9 map.*choose padding=mask"):
            call(x)
