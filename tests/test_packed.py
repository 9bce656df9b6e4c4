"""Attention of many small regions: orders of tokens, and the hand-written gradients against torch's own."""

import pytest
import torch
import torch.nn.functional as F

from attention_zoo import create
from attention_zoo.kernels.packed import kinds_of, order_of, packed_attention, reorder
from attention_zoo.regions import Partition

CPU = torch.device("cpu")


@pytest.mark.parametrize("shift", [(0, 0), (1, 0), (1, 2)], ids=str)
@pytest.mark.parametrize("step", [(1, 1), (2, 1)], ids=str)
def test_an_order_is_the_regions_by_kind_and_comes_back(shift, step):
    cut = Partition.of_size(12, 9, 3, 3, shift=shift, step=step)
    x = torch.randn(2, 12, 9, 5)
    order, kinds = order_of(cut, 2, CPU), kinds_of(cut, CPU)
    rows = reorder(x.flatten(0, 2), order.rows, order.back)
    regions = cut.split(x)
    expected = [regions[:, kinds.of_region == kind].flatten(0, 2) for kind in range(len(kinds.counts))]
    assert torch.equal(rows, torch.cat(expected))
    assert torch.equal(reorder(rows, order.back, order.rows).reshape(x.shape), x)
    assert len(kinds.counts) == (1 + (shift[0] > 0)) * (1 + (shift[1] > 0))
    assert sum(order.counts) == 2 * cut.count


@pytest.mark.parametrize("counts", [(4,), (1, 2, 1)], ids=str)
@pytest.mark.parametrize("with_bias", [False, True], ids=["plain", "bias"])
def test_gradients_are_those_of_fused_attention(counts, with_bias):
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(4, 6, 3, 2, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(len(counts), 2, 6, 6, generator=generator, dtype=torch.float64)
    bias[-1, :, :3, 3:] = -torch.inf
    bias = bias.requires_grad_() if with_bias else None
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    mask = None if bias is None else bias.repeat_interleave(torch.tensor(counts), 0)
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=0.3).transpose(1, 2)
    found = packed_attention(qkv, 0.3, bias, counts)
    torch.testing.assert_close(found, expected)
    probe, inputs = (
        torch.cos(torch.arange(240.0, dtype=torch.float64)).reshape(found.shape),
        [qkv, bias][: 1 + with_bias],
    )
    pairs = zip(*(torch.autograd.grad((y * probe).sum(), inputs) for y in (found, expected)), strict=True)
    for gradient, right in pairs:
        torch.testing.assert_close(gradient, right)
    with torch.no_grad():
        torch.testing.assert_close(packed_attention(qkv, 0.3, bias, counts), expected)


@pytest.mark.parametrize(
    ("name", "config"),
    [("swin", {"shift": 3}), ("maxvit", {"kind": "grid"}), ("cswin", {"stripe": 2}), ("sep", {"kind": "local"})],
    ids=str,
)
def test_inference_equals_training(name, config):
    attention = create(name, dim=12, num_heads=2, **config).double()
    for parameter in attention.parameters():
        parameter.detach().normal_(0, 0.4)
    x = torch.randn(2, 28, 14, 12, dtype=torch.float64)
    with torch.inference_mode():
        torch.testing.assert_close(attention(x), attention.reference(x))
    torch.testing.assert_close(attention(x), attention.reference(x))
