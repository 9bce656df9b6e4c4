"""Cells that name a model instead of a mechanism: published ones, and timm's."""

import pytest
import timm
import torch
from figure_rows import frame
from timm.models import register_model
from torch import nn

from ablations import Study, cell_key
from ablations.mechanisms import bra, model
from ablations.study import Cell
from attention_zoo.hosts.pyramid import Pyramid
from attention_zoo.mechanisms.vanilla import Vanilla
from runners import Sweep
from runners.cells import named
from runners.cells.models import build_baseline, build_counted, build_model, describe
from runners.cells.plan import command_for, make_plan
from runners.cells.source import code_of, code_of_cell
from runners.cells.weights import load_model, read_checkpoint, save_checkpoint
from runners.cli.options import read_command
from runners.figures import draw
from runners.figures.looks import COLOURS, MARKERS, MODEL_MARKERS, looks
from runners.machine.failures import Unsupported
from runners.measure.macs import count
from runners.measures import MEASURES
from runners.reporting.payload import points
from runners.rows import ranking, selection
from runners.store.names import cell_name
from runners.sweep import make_sweep

RIVAL = "timm:test_vit"


def plan(line):
    return make_sweep(read_command(line.split())).plan


def cell(model="biformer_tiny", side_px=32, **fields):
    return Cell(attn="", layout="", model=model, height_px=side_px, width_px=side_px, **fields)


def test_models_alone_or_beside_mechanisms():
    alone = plan(f"--model swin_tiny,{RIVAL}").cells
    assert [(c.model, c.attn, c.layout, c.height_px) for c in alone] == [
        ("swin_tiny", "", "", 224),
        (RIVAL, "", "", 160),
    ]
    both = plan("--model swin_tiny --attn bra,vanilla --topk 1,4 --resolution 64,32").cells
    assert [c.model or c.attn for c in both] == [*["bra", "bra", "vanilla"] * 2, *["swin_tiny"] * 2]
    assert [c.height_px for c in both] == [64] * 3 + [32] * 3 + [64, 32]
    assert plan("").cells == (Cell(),)


def test_the_keys_of_models_stay():
    assert cell_key(cell("swin_tiny", 64)) == "0694330b39e8c666"
    assert cell_key(cell("timm:convnext_tiny", 64)) == "c9d88d3816c3197d"
    assert Cell.from_dict(cell(RIVAL).to_dict()) == cell(RIVAL)


def test_names_and_commands():
    assert cell_name(cell("swin_tiny", 96)) == "swin_tiny 96x96 digit-vote seed 0"
    for line in (
        f"--model {RIVAL} --seeds 3",
        "--model swin_tiny --resolution 64x96",
        "--attn bra --baseline swin_tiny",
    ):
        (made,) = plan(line).cells
        command = command_for(made, ["flops"])
        assert plan(command.partition("sweep.py ")[2]).cells == (made,)
        assert ("--resolution" in command) == ("--resolution" in line)
    assert "--attn" not in command_for(cell(), ["flops"]) and "--layout" not in command_for(cell(), ["flops"])


def test_a_study_takes_models():
    study = Study("rivals", bra(topk=[1, 4]) + model("swin_tiny", RIVAL), resolution=64)
    assert [c.model or c.attn for c in make_plan(study.axes).cells] == ["bra", "bra", "swin_tiny", RIVAL]


REFUSED = {
    "--model swin_tny": ["--model", "'swin_tny'", "did you mean 'swin_tiny'", "timm:NAME"],
    "--model timm:resnet118": ["--model", "'timm:resnet118'", "timm:resnet18"],
    "--model timm:hf-hub:timm/resnet18.a1_in1k": ["--model", "unknown model 'timm:hf-hub:"],
    "--model timm:resnet18.mine": ["--model", "timm:resnet18.mine", "tag"],
    "--model timm:zoo_swin_tiny": ["--model", "write swin_tiny"],
    "--attn bra --baseline swin_tny": ["--baseline", "did you mean 'swin_tiny'"],
    "--model swin_tiny --topk 4": ["--topk 4", "no settings", "--attn"],
    "--model swin_tiny --layout stl": ["--layout stl", "--attn"],
    "--model timm:levit_128s --resolution 232": ["timm:levit_128s", "232x232 px", "224x224 px"],
    "--model swin_tiny --baseline timm:levit_128s --resolution 232": ["timm:levit_128s", "232x232 px"],
}


@pytest.mark.parametrize("line", REFUSED)
def test_what_does_not_fit_is_one_clear_error(line):
    with pytest.raises(ValueError) as error:
        plan(line)
    assert "\n" not in str(error.value)
    for part in REFUSED[line]:
        assert part in str(error.value)
    assert str(error.value).count("timm:levit_128s") <= 1


class Fixed(nn.Module):
    """Takes images of 32 px alone, and reads their numbers, so that it cannot run on meta."""

    def forward(self, x):
        return nn.functional.linear(x.flatten(1), torch.zeros(2, 3 * 32 * 32)) * (1 + x.sum().item())


def reads_its_numbers(pretrained=False, **settings):
    return Fixed()


def test_a_size_that_nothing_could_tell_before_is_unsupported():
    register_model(reads_its_numbers)
    name = "timm:reads_its_numbers"
    assert named.macs_on_meta(name, 64, 64) is None
    with pytest.raises(Unsupported, match="reads_its_numbers: it takes no images of 64x64 px"):
        build_model(cell(name, 64))
    assert isinstance(build_model(cell(name, 32)), Fixed)


def test_a_model_of_timm_is_built_for_the_size():
    built = build_model(cell(RIVAL, 96), num_classes=7)
    assert built(torch.zeros(2, 3, 96, 96)).shape == (2, 7)
    torch.manual_seed(0)
    same = timm.create_model("test_vit", num_classes=7, img_size=(96, 96))
    assert all(torch.equal(a, b) for a, b in zip(built.parameters(), same.parameters(), strict=True))


def test_macs_of_timms_models_are_those_of_the_counters():
    found = count(build_model(cell(RIVAL, 160)), 160, 160)
    # 101 tokens of 64 channels in 6 blocks of 2 heads and MLPs of 3, and the patches
    block = 101 * 64 * 64 * (4 + 6) + 2 * 101 * 101 * 64
    assert found["gmacs"] == found["executed_gmacs"] == (6 * block + 100 * 64 * 3 * 256 + 64 * 10) / 1e9
    assert found["attention_gmacs"] is None
    assert describe(cell(RIVAL, 160)).training_macs > 0


def test_what_runs_is_counted_beside_the_closed_form():
    asked = cell("biformer_tiny", 224)
    with torch.device("meta"):
        counted = build_counted(asked)
    impls = {mixer.impl for mixers in counted.mixers() for mixer in mixers if len(mixer.impls) > 1}
    assert impls == {"plain"}
    assert "dense" in describe(asked).columns["impl"]
    assert build_counted(cell("swin_tiny")) is None


def test_models_are_compared_with_vanilla_in_stl_or_with_a_baseline():
    stl = build_baseline(cell("swin_tiny", 64))
    assert isinstance(stl, Pyramid) and stl.layout.name == "stl"
    assert {type(mixer) for mixers in stl.mixers() for mixer in mixers} == {Vanilla}
    small = build_baseline(Cell())
    assert isinstance(small, Pyramid) and small.layout.name == "small"
    for made in (cell("swin_tiny", 64, baseline=RIVAL), Cell(baseline=RIVAL)):
        assert type(build_baseline(made)) is type(timm.create_model("test_vit"))


def test_the_code_of_a_model(monkeypatch):
    assert code_of_cell(cell("swin_tiny")) == code_of("swin") and code_of("swin").is_built_in
    before = code_of_cell(cell(RIVAL))
    assert not before.is_built_in and before != code_of_cell(cell("timm:test_vit2"))
    monkeypatch.setattr(timm, "__version__", "0.0.1")
    assert code_of_cell(cell(RIVAL)).hash != before.hash


def test_weights_of_a_sweep_say_what_they_are(tmp_path):
    ours, theirs = tmp_path / "ours.pth", tmp_path / "theirs.pth"
    made = build_model(cell("crossformer_tiny"))
    save_checkpoint(ours, made, "crossformer_tiny")
    found, label = load_model(str(ours))
    assert label == "crossformer_tiny (weights of ours.pth)"
    assert all(torch.equal(a, b) for a, b in zip(found.parameters(), made.parameters(), strict=True))
    save_checkpoint(theirs, build_model(cell(RIVAL)), RIVAL)
    assert read_checkpoint(theirs)[1].arch == RIVAL
    for name in (str(theirs), RIVAL):
        with pytest.raises(ValueError, match="timm's test_vit, whose attention nothing here can show"):
            load_model(name)
    state = torch.load(theirs, weights_only=True)["model"]
    timm.create_model("test_vit", num_classes=10, img_size=(32, 32)).load_state_dict(state)


def test_a_row_of_a_model(tmp_path):
    rows = Sweep(model=[RIVAL], attn="vanilla", resolution=32, measures=["flops"]).run(tmp_path, cluster="debug")
    names = ["attention", "layout", "model", "status"]
    found = rows[names].astype("object").where(rows[names].notna(), None).to_dict("list")
    assert found == {
        "attention": ["vanilla", None],
        "layout": ["small", None],
        "model": [None, RIVAL],
        "status": ["ok", "ok"],
    }
    assert list(rows["gmacs"] > 0) == [True, True] and list(rows["keys_per_query"].notna()) == [True, False]
    assert rows["command"][1] == f"python runners/sweep.py --resolution 32x32 --model {RIVAL} --measure flops"


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param("swin_tiny", marks=pytest.mark.exhaustive), RIVAL])
def test_every_measure_takes_a_model(tmp_path, name):
    asked = [measure for measure in MEASURES if measure not in ("max_batch", "energy")]
    sweep = Sweep(model=name, resolution=32, steps=2, batch_size=2, threads=1, measures=asked)
    (row,) = sweep.run(tmp_path, patience=0, save_weights=True).to_dict("records")
    assert {measure: row[f"{measure}_status"] for measure in asked} == dict.fromkeys(asked, "ok")
    assert row["vs_vanilla"] > 0 and row["acc1"] >= 0 and row["peak_train_mib"] > 0 and row["kernel_launches"] > 0
    assert (tmp_path / row["weights"]).is_file()


def rows():
    """A mechanism in `stl`, two models and one against a baseline of its own, under equal conditions else."""
    common = {"resolution": "224x224", "height_px": 224, "width_px": 224, "seed": 0}
    models = {"layout": None, "attention": None}
    return frame(
        [
            {"cell_key": "a", "attention": "swin", "layout": "stl", "acc1": 81.0, "gmacs": 4.5, **common},
            {"cell_key": "b", **models, "model": "swin_tiny", "acc1": 81.2, "gmacs": 4.6, **common},
            {"cell_key": "c", **models, "model": "timm:convnext_tiny", "acc1": 82.1, "gmacs": 4.7, **common},
            {"cell_key": "d", **models, "model": "swin_tiny", "baseline": "timm:resnet18", "gmacs": 4.6, **common},
        ]
    )


def test_models_are_compared_with_the_host_of_their_baseline():
    found = selection.described(rows())
    assert list(found["configuration"]) == ["swin", "swin_tiny", "timm:convnext_tiny", "swin_tiny"]
    conditions = list(found["conditions"])
    assert conditions[0] == conditions[1] == conditions[2] != conditions[3]
    assert "against timm:resnet18" in conditions[3]
    small = selection.described(rows().assign(layout=["small", None, None, None]))
    assert small["conditions"].iloc[0] != small["conditions"].iloc[1]
    assert {*selection.as_read(found)} == {*rows()}


def test_models_look_unlike_mechanisms():
    found = looks(
        ["swin", "swin_tiny", "swin_small", "timm:convnext_tiny"], {"swin_tiny", "swin_small", "timm:convnext_tiny"}
    )
    markers = [look.marker for look in found.values()]
    assert found["swin"].marker in MARKERS and sum(marker in MODEL_MARKERS for marker in markers) == 3
    assert found["swin_tiny"].colour == found["swin_small"].colour == COLOURS["swin"][0]
    assert found["swin_tiny"].marker != found["swin_small"].marker
    many = {f"swin_{number}" for number in range(9)}
    assert len(looks(many, many)) == 9


def test_charts_tell_models_from_mechanisms():
    found = selection.described(rows())
    drawn = points(found, ranking.groups(found))
    assert {look["name"]: look["kind"] for look in drawn["mechanisms"]} == {
        "swin": "mechanisms",
        "swin_tiny": "models",
        "timm:convnext_tiny": "models",
    }
    alone = selection.described(rows().iloc[:1])
    assert [look["kind"] for look in points(alone, ranking.groups(alone))["mechanisms"]] == [""]


def key_of(table):
    figure = draw("pareto", table)
    return [text.get_text() for part in figure.subfigs for key in part.legends for text in key.get_texts()]


def test_a_figure_has_a_key_of_both():
    assert {"mechanisms in a host", "models"} <= {*key_of(rows().iloc[:3])}
    alone = rows().iloc[:2].assign(attention=["swin", "bra"], model=None, layout="stl")
    assert "models" not in key_of(alone)
