"""Models of one operator each, whose products are counted by hand, for the tests of counters."""

from types import SimpleNamespace

import torch
from torch import nn
from torch.nn import functional as F

HEIGHT, WIDTH = 4, 6
DEVICES: list[str] = []


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(weight)
        return x @ weight

    @staticmethod
    def backward(ctx, grad):
        return grad @ ctx.saved_tensors[0].mT, None


class Model(nn.Module):
    """A model of one function of the image (1, 3, 4, 6), and a closed form made by hand."""

    def __init__(self, function, macs, **parts):
        super().__init__()
        self.function, self.closed_form = function, macs
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        DEVICES.append(x.device.type)
        return self.function(self, x)

    def macs(self, height_px, width_px):
        return SimpleNamespace(total=self.closed_form)

    def attention_macs(self, height_px, width_px):
        return self.closed_form


def attend(queries, keys, **options):
    return F.scaled_dot_product_attention(queries, keys, keys, **options)


def heads(x, num):
    return x[:, :1].expand(-1, num, -1, -1)


OPERATORS = {
    "linear": (lambda m, x: m.f(x), 3 * 4 * 6 * 5, {"f": nn.Linear(6, 5)}),
    "linear without bias": (lambda m, x: m.f(x), 3 * 4 * 6 * 5, {"f": nn.Linear(6, 5, bias=False)}),
    "convolution": (lambda m, x: m.f(x), (2 * 3) * 8 * 3 * 9, {"f": nn.Conv2d(3, 8, 3, stride=2, padding=1)}),
    "depthwise": (lambda m, x: m.f(x), (4 * 6) * 3 * 25, {"f": nn.Conv2d(3, 3, 5, padding=2, groups=3)}),
    "grouped": (lambda m, x: m.f(x), (4 * 6) * 6 * 1 * 9, {"f": nn.Conv2d(3, 6, 3, padding=1, groups=3, bias=False)}),
    "padding by name": (lambda m, x: m.f(x), (4 * 6) * 8 * 3 * 9, {"f": nn.Conv2d(3, 8, 3, padding="same")}),
    "function with keywords": (
        lambda m, x: F.conv2d(input=x, weight=m.w, padding=(0, 1)),
        (2 * 6) * 2 * 3 * 9,
        {"w": nn.Parameter(torch.ones(2, 3, 3, 3))},
    ),
    "transposed convolution": (lambda m, x: m.f(x), (4 * 6) * 3 * 8 * 4, {"f": nn.ConvTranspose2d(3, 8, 2, 2)}),
    "matmul": (lambda m, x: x @ x.mT, 3 * 4 * 6 * 4, {}),
    "matmul, left broadcast": (lambda m, x: x[:, :1] @ x.mT, 3 * 4 * 6 * 4, {}),
    "matmul, right broadcast": (lambda m, x: x @ x[:, :1].mT, 3 * 4 * 6 * 4, {}),
    "matmul, right without batch": (lambda m, x: x @ x[0, 0].mT, 3 * 4 * 6 * 4, {}),
    "matmul with a vector": (lambda m, x: x @ x[0, 0, 0], 3 * 4 * 6, {}),
    "vector with matmul": (lambda m, x: x[0, 0, 0] @ x.mT, 3 * 4 * 6, {}),
    "dot": (lambda m, x: x.flatten() @ x.flatten(), 3 * 4 * 6, {}),
    "bmm": (lambda m, x: torch.bmm(x[0], x[0].mT), 3 * 4 * 6 * 4, {}),
    "baddbmm": (lambda m, x: torch.baddbmm(x.new_zeros(1, 4, 4), x[0], x[0].mT), 3 * 4 * 6 * 4, {}),
    "addmm": (lambda m, x: torch.addmm(x.new_zeros(4), x[0, 0], x[0, 1].mT), 4 * 6 * 4, {}),
    "einsum": (lambda m, x: torch.einsum("bchw, bcvw -> bchv", x, x), 3 * 4 * 6 * 4, {}),
    "einsum, ellipsis": (lambda m, x: torch.einsum("...hw,vw->...hv", x, x[0, 0]), 3 * 4 * 6 * 4, {}),
    "einsum, broadcast": (lambda m, x: torch.einsum("bchw,bcvw->bchv", x[:, :1], x), 3 * 4 * 6 * 4, {}),
    "einsum, broadcast the other way": (
        lambda m, x: torch.einsum("bchw,bcvw->bchv", x, x[:, :1]),
        3 * 4 * 6 * 4,
        {},
    ),
    "einsum without a sum": (lambda m, x: torch.einsum("bchw,bcvw->bchvw", x, x), 0, {}),
    "einsum that sums one operand": (lambda m, x: torch.einsum("bchw,vw->bcw", x, x[0, 0]), 0, {}),
    "einsum that also sums one": (lambda m, x: torch.einsum("bchw,vw->bch", x, x[0, 0]), 3 * 4 * 6, {}),
    "fused attention": (lambda m, x: attend(x, x[:, :, :3]), 3 * 4 * 3 * (6 + 6), {}),
    "fused attention, three axes": (lambda m, x: attend(x[0], x[0]), 3 * 4 * 4 * (6 + 6), {}),
    "fused attention, six axes": (
        lambda m, x: attend(x[None, None], x[None, None]),
        3 * 4 * 4 * (6 + 6),
        {},
    ),
    "fused attention, values of another size": (
        lambda m, x: F.scaled_dot_product_attention(x, x, x[..., :2]),
        3 * 4 * 4 * (6 + 2),
        {},
    ),
    "fused attention, bias": (
        lambda m, x: attend(x, x, attn_mask=m.b),
        3 * 4 * 4 * 12,
        {"b": nn.Parameter(torch.ones(3, 4, 4))},
    ),
    "fused attention, mask": (lambda m, x: attend(x, x, attn_mask=x[..., :4] > 0), 3 * 4 * 4 * 12, {}),
    "fused attention, keys broadcast": (lambda m, x: attend(x, x[:, :1]), 3 * 4 * 4 * 12, {}),
    "fused attention, queries broadcast": (lambda m, x: attend(x[:, :1], x), 3 * 4 * 4 * 12, {}),
    "fused attention, grouped queries": (
        lambda m, x: attend(heads(x, 4), heads(x, 2), enable_gqa=True),
        4 * 4 * 4 * 12,
        {},
    ),
    "nn.MultiheadAttention": (
        lambda m, x: m.f(x[0], x[0], x[0], need_weights=False)[0],
        3 * (4 * 4 * 6 * 6 + 4 * 4 * 12),
        {"f": nn.MultiheadAttention(6, 2, batch_first=True)},
    ),
    "fused attention on the CPU": (lambda m, x: attend(x + x.sum().item(), x), 3 * 4 * 4 * 12, {}),
    "nn.MultiheadAttention on the CPU": (
        lambda m, x: m.f(x[0] + x.sum().item(), x[0], x[0], need_weights=False)[0],
        3 * (4 * 4 * 6 * 6 + 4 * 4 * 12),
        {"f": nn.MultiheadAttention(6, 2, batch_first=True)},
    ),
    "custom autograd function": (
        lambda m, x: Doubled.apply(x, m.w),
        3 * 4 * 6 * 2,
        {"w": nn.Parameter(torch.ones(6, 2))},
    ),
    "selection": (
        lambda m, x: x.gather(-1, x.topk(2).indices).index_select(1, torch.tensor([0, 2], device=x.device)),
        0,
        {},
    ),
    "choice by data": (lambda m, x: m.f(x[x <= 0]), 3 * 4 * 6 * 2, {"f": nn.Linear(72, 2)}),
    "norms and pooling": (lambda m, x: F.avg_pool2d(m.f(x), 2).mean((2, 3)), 0, {"f": nn.BatchNorm2d(3)}),
}
