"""What records a mechanism or a model (torch.compile, torch.jit.trace, ONNX) gets the same function, for any size."""

import contextlib
import io

import pytest
import torch
from ordinary_cases import PADDED, WHOLE, Case, assert_same, cases, first_settings, make, outcome, settings
from test_ordinary_models import images, make_model
from torch import nn

import attention_zoo

each_case = pytest.mark.parametrize("case", cases(), ids=str)
no_jit = pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit:DeprecationWarning")


@pytest.fixture(autouse=True)
def compiled_anew():
    torch.compiler.reset()


def slow_unless(quick, values):
    """Compiling takes from two seconds to a minute; the default tests do it for one."""
    return [pytest.param(value, marks=() if quick(value) else pytest.mark.slow, id=str(value)) for value in values]


@pytest.mark.parametrize("case", slow_unless(lambda case: False, first_settings()))
def test_a_compiled_mechanism_takes_one_size_after_the_other(case):
    # with a dynamic size, compiling one takes up to a minute, so each mechanism has one configuration here
    attention, _ = make(case)
    compiled = torch.compile(attention, backend="aot_eager")
    parameters = dict(attention.named_parameters())
    for size in (WHOLE, (6, 12), PADDED):
        _, x = make(case, size)
        assert_same(outcome(compiled, x, parameters), outcome(attention, x, parameters), f"{case} on {size}")


@pytest.mark.slow
def test_stem_and_position_take_one_size_after_the_other():
    model = make_model("vanilla")

    def start(x):
        y = model.downsamples[0](x)
        return y + model._position(0, y)

    compiled = torch.compile(start, backend="aot_eager")
    with torch.no_grad():
        for size in ((64, 64), (96, 64), (90, 61)):
            torch.testing.assert_close(compiled(images(size=size)), start(images(size=size)))


@pytest.mark.slow
@pytest.mark.exhaustive  # with gradients from two to ten minutes; every mechanism alone is compiled above
@pytest.mark.parametrize("name", ["bra", "vanilla"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
def test_a_compiled_model_takes_one_size_after_the_other(name, training):
    model = make_model(name)
    compiled = torch.compile(model, backend="aot_eager")
    parameters = dict(model.named_parameters())
    for size in ((64, 64), (96, 64), (80, 112)):
        x = images(size=size)
        if training:
            assert_same(outcome(compiled, x, parameters), outcome(model, x, parameters), f"{name} at {size}")
        else:
            with torch.no_grad():
                assert_same({"output": compiled(x)}, {"output": model(x)}, f"{name} at {size}")


def checkpointed(model):
    model.set_grad_checkpointing()
    return model


@pytest.mark.parametrize("name", slow_unless("vanilla".__eq__, attention_zoo.names()))
def test_gradient_checkpointing_can_be_compiled(name):
    model, x = make_model(name).train(), images()
    parameters = dict(model.named_parameters())
    expected = outcome(model, x, parameters)
    assert_same(outcome(checkpointed(model), x, parameters), expected, "checkpointed")
    compiled = torch.compile(model, backend="aot_eager")
    assert_same(outcome(compiled, x, parameters), expected, "checkpointed and compiled")


@pytest.mark.parametrize("place", slow_unless("attn.qkv".__eq__, ["attn.qkv", "mlp.1"]))  # mlp.1 has no weights
@pytest.mark.parametrize("name", slow_unless("pvt".__eq__, attention_zoo.names()))
def test_a_hook_acts_in_a_compiled_block_too(name, place):
    block = make_model(name).stages[0][0]
    x = torch.randn(2, 6, 7, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        before = block(x)
        block.get_submodule(place).register_forward_hook(lambda _, args, y: y / 2)
        expected = block(x)
        assert not torch.allclose(expected, before)
        torch.testing.assert_close(torch.compile(block, backend="aot_eager")(x), expected, rtol=1e-9, atol=1e-10)


@no_jit
@each_case
@pytest.mark.parametrize("size", [WHOLE, PADDED], ids=str)
def test_a_traced_mechanism_takes_any_number_of_images(case, size):
    attention, x = make(case, size)
    with torch.no_grad():
        traced = torch.jit.trace(attention, x, check_trace=False)
        for count in (5, 1):
            several = make(case, size, images=count)[1]
            assert_same({"output": traced(several)}, {"output": attention(several)}, f"{count} images")


@no_jit
@pytest.mark.parametrize("name", slow_unless("bra".__eq__, attention_zoo.names()))
def test_a_traced_model_takes_any_number_of_images(name):
    model = make_model(name)
    with torch.no_grad():
        traced = torch.jit.trace(model, images(), check_trace=False)
        assert_same({"output": traced(images(5))}, {"output": model(images(5))}, name)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of libraries about themselves
@pytest.mark.parametrize("case", settings(), ids=str)
def test_an_onnx_file_computes_the_same(case):
    onnx = pytest.importorskip("onnx", reason="pip install onnx onnxscript")
    pytest.importorskip("onnxscript", reason="pip install onnx onnxscript")
    from onnx.reference import ReferenceEvaluator

    attention, x = make(Case(case.name, case.config))
    attention, x = attention.float(), x.float()
    with contextlib.redirect_stdout(io.StringIO()):
        program = torch.onnx.export(attention, (x,), dynamo=True)
    onnx.checker.check_model(program.model_proto)
    (entry,) = program.model_proto.graph.input
    (y,) = ReferenceEvaluator(program.model_proto).run(None, {entry.name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(y), attention(x).detach(), rtol=1e-3, atol=1e-3)


def test_layers_are_still_layers_in_a_graph():
    """A graph that is exported for another runtime shows each linear layer whole, its bias included."""
    block = make_model("bra").stages[0][0]
    x = torch.randn(2, 6, 7, 24, dtype=torch.float64)
    exported = torch.export.export(block, (x,), strict=False)
    linear = [node for node in exported.graph.nodes if node.target is torch.ops.aten.linear.default]
    assert len(linear) == sum(isinstance(module, nn.Linear) for module in block.modules())
    assert all(len(node.args) == 3 for node in linear)
