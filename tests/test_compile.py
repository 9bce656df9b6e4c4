"""Every mechanism is one graph to torch.compile, on maps that divide and on padded ones."""

import pytest
import torch
from conftest import slow_but

import attention_zoo

CONFIGS = {
    "bra": [{"regions": 3, "topk": 2, "impl": "plain"}, {"regions": 3, "topk": 2, "impl": "dense"}],
    "swin": [{"window": 3, "shift": 1}],
    "maxvit": [{"window": 3, "kind": "block"}, {"window": 3, "kind": "grid"}],
    "crossformer": [{"group": 3, "interval": 2, "kind": "long"}],
    "cswin": [{"stripe": 2}],
    "dat": [{"stride": 2, "map_size": 6}, {"variant": "2023", "stride": 2, "position": "log"}],
    "sliding": [{"kernel": 3}, {"kernel": 3, "impl": "plain"}, {"kernel": 3, "dilation": 2}],
    "pvt": [{"reduction": 2}],
    "sep": [{"window": 3, "kind": "local"}, {"reduction": 2, "kind": "global"}],
}
CASES = [(name, config) for name in attention_zoo.names() for config in CONFIGS.get(name, [{}])]


@pytest.fixture(autouse=True)
def compiled_anew():
    # mechanisms share the forward of their base class, which may be compiled a few times in a process only
    torch.compiler.reset()


@pytest.mark.slow
@pytest.mark.parametrize("size", [(6, 12), (5, 7)], ids=lambda s: f"{s[0]}x{s[1]}")
@pytest.mark.parametrize(("name", "config"), CASES, ids=str)
def test_compiles_to_one_graph(small, name, config, size):
    attention, x = small(name, *size, **config)
    compiled = torch.compile(attention, fullgraph=True, backend="eager")
    for training in (False, True):
        attention.train(training)
        with torch.inference_mode(not training):
            found, expected = compiled(x), attention(x)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)
    x.requires_grad_()
    gradients = [
        torch.autograd.grad(run(x).square().sum(), [x, *attention.parameters()]) for run in (compiled, attention)
    ]
    torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("size", [(6, 12), (5, 7)], ids=lambda s: f"{s[0]}x{s[1]}")
@pytest.mark.parametrize(("name", "config"), CASES, ids=str)
def test_an_exported_graph_takes_any_number_of_images(small, name, config, size):
    attention, x = small(name, *size, **config)
    images = torch.export.Dim("images", min=2)
    exported = torch.export.export(attention.eval(), (x,), dynamic_shapes=({0: images},), strict=False).module()
    several = torch.randn(5, *x.shape[1:], dtype=x.dtype, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(exported(several), attention(several), rtol=1e-9, atol=1e-10)


@pytest.fixture
def block():
    torch.manual_seed(0)
    return attention_zoo.create_model("small", attn="bra", num_classes=10).stages[0][0]


def tokens_of(block, dtype=torch.float32, side=14) -> torch.Tensor:
    return torch.randn(2, side, side, block.attn.dim, dtype=dtype, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("side", [14, 16], ids=["padded", "whole"])
def test_a_compiled_block_computes_the_same(block, side):
    block, x = block.double(), tokens_of(block, torch.float64, side).requires_grad_()
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), block(x), rtol=1e-9, atol=1e-10)
    gradients = [torch.autograd.grad(run(x).square().sum(), [x, *block.parameters()]) for run in (compiled, block)]
    torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-9)
    with torch.inference_mode():
        torch.testing.assert_close(compiled(x.detach()), block(x.detach()), rtol=1e-9, atol=1e-10)


def test_the_residual_stream_stays_wide_when_compiled_under_autocast(block):
    block, x = block.eval(), tokens_of(block)
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    hidden = []
    block.mlp[1].register_forward_hook(lambda _, args, __: hidden.append(args[0].dtype))
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        found, expected = compiled(x), block(x)
    assert found.dtype == expected.dtype == torch.float32
    assert hidden[0] == torch.bfloat16
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("layer", slow_but("mlp.0", "attn.qkv", of=["mlp.0", "mlp.2", "attn.qkv", "attn.proj"]))
@pytest.mark.parametrize(
    "register", slow_but("register_forward_hook", of=["register_forward_hook", "register_forward_pre_hook"])
)
def test_hooks_of_linear_layers_run_when_compiled(block, layer, register):
    block, x = block.eval(), tokens_of(block)
    ran = []
    getattr(block.get_submodule(layer), register)(lambda *_: ran.append(True))
    with torch.inference_mode():
        torch.compile(block, fullgraph=True, backend="aot_eager")(x)
    assert ran


def test_an_export_keeps_linear_layers_whole(block):
    exported = torch.export.export(block.eval(), (tokens_of(block),), strict=False)
    linear = [node for node in exported.graph.nodes if node.target is torch.ops.aten.linear.default]
    assert len(linear) >= 4
    assert all(len(node.args) == 3 for node in linear), "a bias is added apart"
