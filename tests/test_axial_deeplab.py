"""Position-sensitive axial attention (arXiv:2003.07853, eq. 4), line by line and pair by pair."""

import pytest
import torch

from attention_zoo import create, create_model
from attention_zoo.layouts import SMALL
from attention_zoo.mechanisms.axial_deeplab import AxialDeepLabConfig

HEADS, DIM = 2, 12


def with_statistics(attention):
    """Batch norms whose statistics are no 0 and 1."""
    generator = torch.Generator().manual_seed(5)
    for name, buffer in attention.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(0, 0.3, generator=generator)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5, generator=generator)
    return attention


def normalised(value, norm, channel):
    spread = (norm.running_var[channel] + norm.eps).sqrt()
    return (value - norm.running_mean[channel]) / spread * norm.weight[channel] + norm.bias[channel]


def line_by_pair(line, qkv, terms):
    """One line of tokens, (L, C), by eq. 4: each query, head, key and channel by itself."""
    length, half, width = len(line), DIM // HEADS // 2, DIM // HEADS
    bias = 0 if qkv.bias is None else qkv.bias
    projected = normalised(line @ qkv.weight.T + bias, terms.bn_qkv, slice(None))
    y = torch.zeros_like(line)

    def term(first, offset):
        at = max(1 - terms.length, min(offset, terms.length - 1)) + terms.length - 1
        return terms.relative[first : first + (half if first < width else width), at]

    for head in range(HEADS):
        q, k = (projected[:, start + head * half : start + (head + 1) * half] for start in (0, DIM // 2))
        v = projected[:, DIM + head * width : DIM + (head + 1) * width]
        for i in range(length):
            logits = []
            for j in range(length):
                three = (q[i] @ k[j], q[i] @ term(0, i - j), k[j] @ term(half, j - i))
                logits.append(
                    sum(normalised(one, terms.bn_similarity, n * HEADS + head) for n, one in enumerate(three))
                )
            powers = [logit.exp() for logit in logits]
            weights = [power / sum(powers) for power in powers]
            by_value = sum(weights[j] * v[j] for j in range(length))
            by_position = sum(weights[j] * term(width, i - j) for j in range(length))
            for channel in range(width):
                at = 2 * (head * width + channel)
                y[i, at // 2] = normalised(by_value[channel], terms.bn_output, at)
                y[i, at // 2] += normalised(by_position[channel], terms.bn_output, at + 1)
    return y


@pytest.mark.parametrize("config", [{"map_size": 5}, {"map_size": (2, 3), "qkv_bias": True}], ids=str)
@pytest.mark.parametrize("axes", ["both", "height", "width"])
def test_output_by_pair(small, axes, config):
    attention, x = small("axial_deeplab", 4, 5, axes=axes, **config)
    with_statistics(attention)
    expected = x[1]
    with torch.no_grad():
        for axis, qkv, terms in attention.layers():
            lines = expected.transpose(0, 1) if axis == "height" else expected
            mixed = torch.stack([line_by_pair(line, qkv, terms) for line in lines])
            expected = mixed.transpose(0, 1) if axis == "height" else mixed
        torch.testing.assert_close(attention(x)[1], expected)


def test_forward_is_the_reference_in_training_too(small):
    attention, x = small("axial_deeplab", 4, 5, map_size=4)
    with_statistics(attention).train()
    torch.testing.assert_close(attention(x), attention.reference(x))


def test_one_axis_reads_its_lines(small):
    rows, cols = torch.arange(20) // 5, torch.arange(20) % 5
    for axis, line in (("height", cols), ("width", rows)):
        attention, x = small("axial_deeplab", 4, 5, axes=axis)
        assert torch.equal(attention.connectivity(x)[0, 0], line[:, None] == line)


def test_macs_are_the_closed_form(small):
    attention, _ = small("axial_deeplab", 1, 1)
    macs = attention.macs(6, 10)
    assert (macs.projection, macs.core) == (4 * 60 * 144, 1.5 * 60 * 16 * 12)
    assert macs.position == 2 * 60 * 16 * 12
    assert small("axial_deeplab", 1, 1, axes="width")[0].macs(6, 10).total == 60 * (2 * 144 + 3.5 * 10 * 12)


def test_blocks_are_made_for_the_layouts_own_maps():
    assert AxialDeepLabConfig().at(1, 0, SMALL).map_size == SMALL.own_maps[1]
    assert AxialDeepLabConfig(map_size=9).at(1, 0, SMALL).map_size == 9
    model = create_model("small", attn="axial_deeplab", num_classes=3)
    assert [mixers[0].first.length for mixers in model.mixers()[:3]] == [16, 8, 4]
    with pytest.raises(ValueError, match="qk_dim must be a positive multiple of num_heads"):
        create("axial_deeplab", dim=12, num_heads=4)
