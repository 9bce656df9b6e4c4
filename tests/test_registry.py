"""Names of mechanisms, what a user brings, and the errors that answer mistakes."""

import itertools
from importlib.metadata import EntryPoint

import pytest
import torch

import attention_zoo
from attention_zoo import registry
from attention_zoo.config import AttentionConfig, field_names, parse_field, parse_values
from attention_zoo.mechanisms.bra import BRAConfig
from attention_zoo.mechanisms.swin import SwinConfig

GOOD = """
from dataclasses import dataclass, field
import torch
from attention_zoo import Attention, AttentionConfig, Macs

@dataclass(frozen=True, kw_only=True)
class MineConfig(AttentionConfig):
    reach: int = field(default=1, metadata={"help": "rows"})

class Mine(Attention):
    \"\"\"Each token reads those of its own row.\"\"\"
    Config = MineConfig

    def __init__(self, dim, num_heads, config):
        super().__init__(dim, num_heads, config)
        self.config = config

    def forward(self, x):
        q, k, v = (part.unflatten(-1, (self.num_heads, -1)).transpose(2, 3) for part in self.qkv(x).chunk(3, -1))
        y = torch.softmax(q @ k.mT * self.scale, -1) @ v
        return self.proj(y.transpose(2, 3).flatten(3))

    def connectivity(self, x, queries=None):
        row = torch.arange(x.shape[1] * x.shape[2], device=x.device) // x.shape[2]
        return ((row if queries is None else row[queries])[:, None] == row)[None, None]

    def macs(self, height, width):
        return self.shared_macs(height, width) + Macs(core=self.core_macs(height * width, width))
"""

numbers = itertools.count()


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    """Let what a test registers be forgotten after it."""
    monkeypatch.setattr(registry, "_MECHANISMS", dict(registry._MECHANISMS))


@pytest.fixture
def written(tmp_path, monkeypatch):
    """written(source) -> name of a new module with that source, that can be imported."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(source):
        name = f"zoo_test_module_{next(numbers)}"
        (tmp_path / f"{name}.py").write_text(source)
        return name

    return write


def test_names_are_sorted_and_build_what_they_say():
    assert {"bra", "swin", "vanilla"} <= set(attention_zoo.names())
    assert attention_zoo.names() == sorted(attention_zoo.names())
    attention = attention_zoo.create("swin", dim=12, num_heads=2, window=3)
    assert isinstance(attention, attention_zoo.mechanisms.swin.Swin)
    assert attention.window == (3, 3)


def test_a_users_mechanism_by_its_path(written):
    path = f"{written(GOOD)}:Mine"
    attention = attention_zoo.create(path, dim=12, num_heads=2, reach=3)
    assert (type(attention).__name__, attention.config.reach) == ("Mine", 3)
    assert path in attention_zoo.names()
    assert attention_zoo.resolve(path) is type(attention)
    model = attention_zoo.create_model("small", attn=path, num_classes=10)
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 10)
    with pytest.raises(ValueError, match=f"unknown field of {path} 'reech'; did you mean 'reach'"):
        attention_zoo.create(path, dim=12, num_heads=2, reech=3)


BREACHES = {
    "not an Attention": (
        "import torch\nclass Mine(torch.nn.Module): pass",
        "it must be a subclass of attention_zoo.Attention, got <class",
    ),
    "not a class": ("Mine = 3", "it must be a subclass of attention_zoo.Attention, got 3"),
    "Config is an instance": (
        GOOD.replace("Config = MineConfig", "Config = MineConfig()"),
        "its Config must be a frozen dataclass that extends AttentionConfig, got MineConfig",
    ),
    "Config is another class": (
        GOOD.replace("Config = MineConfig", "Config = dict"),
        "its Config must be a frozen dataclass that extends AttentionConfig, got <class 'dict'>",
    ),
    "Config is no dataclass of its own": (
        GOOD.replace("@dataclass(frozen=True, kw_only=True)\n", ""),
        "its Config must be a frozen dataclass that extends AttentionConfig",
    ),
    "no macs": (GOOD.replace("def macs", "def cost"), r"it has no macs\(height, width\)"),
    "no connectivity": (
        GOOD.replace("def connectivity", "def links"),
        r"it has neither connectivity\(x\) nor a reference\(x\) of its own",
    ),
    "macs of another type": (
        GOOD.replace("return self.shared_macs(height, width) + Macs(", "return dict("),
        r"macs\(height, width\) must return attention_zoo.Macs, got dict",
    ),
    "wrong shape": (
        GOOD.replace("flatten(3))", "flatten(3)).flatten(1, 2)"),
        r"forward must return \(2, 5, 6, 24\) torch.float64 as it is given, got \(2, 30, 24\)",
    ),
    "wrong type": (
        GOOD.replace("flatten(3))", "flatten(3)).float()"),
        "forward must return .* torch.float64 as it is given, got .* torch.float32",
    ),
    "no tensor": (GOOD.replace("flatten(3))", "flatten(3)), 1"), "forward must return .*, got tuple"),
    "reference of another shape": (
        GOOD + "\n    def reference(self, x):\n        return self(x).flatten(1, 2)\n",
        r"reference must return .*, got \(2, 30, 24\)",
    ),
    "another result": (
        GOOD.replace("// x.shape[2]\n", "// 7\n"),
        r"forward and reference differ on a 5x6 map: output differs by [\d.]+; .* inherited masked softmax",
    ),
    "constructor raises": (
        GOOD.replace("self.config = config", "raise RuntimeError('no licence')"),
        "on a 5x6 map of 24 channels, 2 heads it raises RuntimeError: no licence",
    ),
    "forward raises": (GOOD.replace("self.scale, -1)", "self.scale, -9)"), "on a 5x6 map .* it raises IndexError"),
}


@pytest.mark.parametrize(("source", "message"), BREACHES.values(), ids=BREACHES)
def test_each_breach_of_the_contract_has_its_error(written, source, message):
    path = f"{written(source)}:Mine"
    with pytest.raises(ValueError, match=f"mechanism '{path}' breaks the contract: {message}"):
        attention_zoo.resolve(path)
    assert path not in attention_zoo.names()


@pytest.mark.parametrize(
    ("source", "attribute", "message"),
    [
        (GOOD, "Yours", "AttributeError: .*no attribute 'Yours'"),
        (GOOD.replace("frozen=True, ", ""), "Mine", "TypeError: cannot inherit non-frozen dataclass from a frozen one"),
        ("import torhc", "Mine", "ModuleNotFoundError: No module named 'torhc'"),
        ("class (", "Mine", "SyntaxError"),
        (None, "Mine", "ModuleNotFoundError: No module named 'zoo_test_nowhere'"),
    ],
    ids=["no such class", "not frozen", "broken import", "syntax", "no such module"],
)
def test_what_cannot_be_imported(written, source, attribute, message):
    path = f"{'zoo_test_nowhere' if source is None else written(source)}:{attribute}"
    with pytest.raises(ValueError, match=f"mechanism '{path}' cannot be imported: {message}"):
        attention_zoo.resolve(path)


def test_a_name_is_given_once():
    with pytest.raises(ValueError, match="mechanism 'bra' is already BRA"):
        attention_zoo.register("bra")(attention_zoo.mechanisms.swin.Swin)
    attention_zoo.register("another")(attention_zoo.mechanisms.swin.Swin)
    assert attention_zoo.resolve("another") is attention_zoo.mechanisms.swin.Swin


def test_an_installed_package_offers_mechanisms(written, monkeypatch):
    offered = [
        EntryPoint("mine", f"{written(GOOD)}:Mine", registry.GROUP),
        EntryPoint("broken", f"{written('Mine = 3')}:Mine", registry.GROUP),
    ]
    asked = []

    def entry_points(*, group):
        asked.append(group)
        return offered

    monkeypatch.setattr(registry, "entry_points", entry_points)
    assert {"mine", "broken", "bra"} <= set(attention_zoo.names())
    assert type(attention_zoo.create("mine", dim=12, num_heads=2)).__name__ == "Mine"
    with pytest.raises(ValueError, match="mechanism 'broken' breaks the contract"):
        attention_zoo.resolve("broken")
    assert set(asked) == {"attention_zoo.mechanisms"}


@pytest.mark.parametrize(("name", "nearest"), [("swn", "swin"), ("Vanila", "vanilla"), ("bar", "bra")])
def test_an_unknown_name_suggests_the_nearest_and_lists_all(name, nearest):
    with pytest.raises(ValueError, match=f"unknown mechanism '{name}'; did you mean '{nearest}'") as error:
        attention_zoo.create(name, dim=12, num_heads=2)
    assert f"known: {', '.join(attention_zoo.names())}, or package.module:Class" in str(error.value)


def test_a_name_that_resembles_none_has_no_suggestion():
    with pytest.raises(ValueError, match="unknown mechanism 'quux'; known: "):
        attention_zoo.resolve("quux")
    with pytest.raises(ValueError, match=r"unknown field of bra 'zzz'; known: .*topk"):
        attention_zoo.create("bra", dim=12, num_heads=2, zzz=1)


@pytest.mark.parametrize(
    ("config", "field", "text", "value"),
    [
        (BRAConfig, "topk", "4", 4),
        (BRAConfig, "lepe", "on", True),
        (BRAConfig, "lepe", "Off", False),
        (BRAConfig, "qk_scale", "0.5", 0.5),
        (BRAConfig, "qk_scale", "none", None),
        (BRAConfig, "region_size", "auto", "auto"),
        (BRAConfig, "region_size", "8", 8),
        (BRAConfig, "region_size", "none", None),
        (SwinConfig, "window", "7", 7),
        (SwinConfig, "window", "4x6", (4, 6)),
    ],
)
def test_fields_are_read_from_text(config, field, text, value):
    found = parse_field(config, field, text)
    assert (found, type(found)) == (value, type(value))
    assert field in field_names(config)


@pytest.mark.parametrize(
    ("config", "field", "text", "message"),
    [
        (BRAConfig, "topk", "four", "topk takes an integer; got 'four'"),
        (BRAConfig, "lepe", "yes", "lepe takes on|off; got 'yes'"),
        (BRAConfig, "region_size", "big", "region_size takes an integer or auto or none; got 'big'"),
        (SwinConfig, "window", "4x", "window takes an integer or HxW or none; got '4x'"),
        (AttentionConfig, "topk", "4", "no field 'topk'; known: qkv_bias, lepe"),
    ],
)
def test_text_that_is_no_value(config, field, text, message):
    with pytest.raises(ValueError) as error:
        parse_field(config, field, text)
    assert str(error.value).startswith(message)


def test_dashes_separate_stages_unless_they_belong_to_a_number():
    assert parse_values(BRAConfig, "topk", "1-4-16-full") == [1, 4, 16, "full"]
    assert parse_values(BRAConfig, "topk", "4") == [4]
    assert parse_values(BRAConfig, "qk_scale", "1e-4") == [1e-4]
    assert parse_values(SwinConfig, "window", "4x6-4-2-full") == [(4, 6), 4, 2, "full"]
    with pytest.raises(ValueError, match="topk takes an integer; got '1-'"):
        parse_values(BRAConfig, "topk", "1-")


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((2, 12, 5, 7), ["(B, H, W, C)", "C=12", "(2, 12, 5, 7)", "permute(0, 2, 3, 1)"]),
        ((2, 35, 12), ["(B, H, W, C)", "C=12", "(2, 35, 12)", "unflatten"]),
        ((35, 12), ["(B, H, W, C)", "(35, 12)"]),
        ((2, 5, 7, 8), ["(B, H, W, C)", "C=12", "(2, 5, 7, 8)"]),
    ],
)
@pytest.mark.parametrize("name", attention_zoo.names())
def test_an_input_in_another_order_is_one_clear_error(name, shape, words):
    attention = attention_zoo.create(name, dim=12, num_heads=2)
    with pytest.raises(ValueError) as raised:
        attention(torch.zeros(shape))
    assert all(word in str(raised.value) for word in words)
