"""From axes to cells: which axis multiplies what, and errors before any work."""

import pytest

from ablations import Axes, load_study
from ablations.study import Cell, cell_key
from attention_zoo import names
from runners.cells.plan import Plan, command_for, make_plan
from runners.cli.options import read_command
from runners.store.names import cell_name
from runners.sweep import make_sweep


def plan(line: str) -> Plan:
    return make_sweep(read_command(line.split())).plan


def test_the_main_command_is_one_cell_per_topk_in_order() -> None:
    cells = plan("--attn bra --topk 1,4,8,16").cells
    assert [dict(cell.settings).get("topk", 4) for cell in cells] == [1, 4, 8, 16]


def test_an_axis_multiplies_only_mechanisms_that_have_it_and_says_so() -> None:
    made = plan("--attn vanilla,bra,swin --topk 1,8 --seeds 0,1")
    assert [cell.attn for cell in made.cells] == ["vanilla"] * 2 + ["bra"] * 4 + ["swin"] * 2
    assert "--topk 1,8 applies to bra; it changes nothing of vanilla, swin" in made.notes


def test_the_class_alone_names_a_mechanism_of_a_module() -> None:
    path = "attention_zoo.mechanisms.swin:Swin"
    (short,) = plan(f"--attn {path} --set Swin.window=4").cells
    (long,) = plan(f"--attn {path} --set {path}.window=4").cells
    assert short == long and dict(short.settings) == {"window": 4}


def test_the_default_spelled_out_is_the_same_cell() -> None:
    assert plan("--attn bra --topk 4").cells == plan("--attn bra").cells
    assert plan("--attn bra --resolution 64x64 --steps 400").cells == plan("").cells


def test_a_cell_keeps_the_defaults_that_its_key_leaves_out() -> None:
    (cell,) = plan("--attn bra --set bra.lepe=off").cells
    assert dict(cell.settings) == {"lepe": False}
    assert {"topk": 4, "clip_topk": False}.items() <= dict(cell.defaults).items() and "lepe" not in dict(cell.defaults)
    assert cell_key(cell) == cell_key(Cell(settings=(("lepe", False),)))
    assert cell_name(cell) == "bra topk=4 lepe=false small 64x64 digit-vote seed 0"


def test_epochs_between_evaluations_need_data_with_epochs() -> None:
    assert plan("--data fashion-mnist --set recipe.eval_every=2").cells[0].training == (("eval_every", 2),)
    with pytest.raises(ValueError, match=r"recipe\.eval_every=2: digit-vote is an endless stream"):
        plan("--set recipe.eval_every=2")
    with pytest.raises(ValueError, match="eval_every must be 0 up, got -1"):
        plan("--data fashion-mnist --set recipe.eval_every=-1")


def test_all_is_every_name_and_a_cell_appears_once() -> None:
    assert {cell.attn for cell in plan("--attn all,bra").cells} == set(names())
    assert len(plan("--attn bra,bra --topk 4,4").cells) == 1


def test_a_layout_brings_its_resolution() -> None:
    (cell,) = plan("--layout stl").cells
    assert (cell.height_px, cell.width_px) == (224, 224)


def test_alternation_that_a_layout_cannot_show_is_said() -> None:
    assert any("Swin alternates" in note and "stage 1" in note for note in plan("--attn swin").notes)
    assert not plan("--attn swin --layout stl").notes


def test_epochs_become_steps() -> None:
    (cell,) = plan("--data fashion-mnist --epochs 2 --batch-size 600").cells
    assert cell.steps == 200


REFUSED = {
    "--attn swn": ["--attn", "unknown mechanism 'swn'", "did you mean 'swin'", "swin, vanilla"],
    "--attn nowhere.at_all:Mine": ["--attn", "nowhere.at_all:Mine", "cannot be imported"],
    "--topk 99": ["topk=99", "16 regions", "16x16 map", "clip_topk"],
    "--topk 4 --regions 1": ["topk=4", "1 regions"],
    "--attn swin --topk 4": ["--topk 4", "(swin)", "bra has it"],
    "--attn bra --set bra.windw=4": ["--set bra.windw=4", "'windw'", "known:"],
    "--attn bra --set bra.region=4": ["'region'", "did you mean 'regions'"],
    "--attn bra --set swin.window=4": ["--set swin.window=4", "not selected"],
    "--attn swin --set swin.window=0": ["window must be at least 1, got 0"],
    "--attn swin --set swin.window=wide": ["--set swin.window", "an integer", "'wide'"],
    "--attn bra --set bra.lepe=maybe": ["--set bra.lepe", "on|off", "'maybe'"],
    "--attn bra --set bra.qk_scale=inf": ["qk_scale", "finite", "inf"],
    "--attn bra --set bra.qk_dim=7": ["qk_dim", "7"],
    "--topk 1-4-8": ["topk", "'1-4-8'", "4, one per stage"],
    "--layout smal": ["--layout", "'smal'", "did you mean 'small'"],
    "--data digit-vot": ["--data", "'digit-vot'", "did you mean 'digit-vote'"],
    "--data digit-vote:jitter=40": ["jitter", "40"],
    "--epochs 3": ["--epochs 3", "endless", "--steps"],
}


@pytest.mark.parametrize("line", REFUSED)
def test_what_does_not_fit_is_one_clear_error(line: str) -> None:
    with pytest.raises(ValueError) as error:
        plan(line)
    assert "\n" not in str(error.value)
    for part in REFUSED[line]:
        assert part in str(error.value)


def test_clipping_is_recorded() -> None:
    from runners.cells.models import describe

    (cell,) = plan("--topk 99 --clip-topk").cells
    assert describe(cell).columns["topk_effective"] == "16-16-16-full"
    assert describe(cell).columns["topk"] == 99


@pytest.mark.parametrize(
    "line",
    [
        "--attn bra --topk 1-4-8-full --seeds 3 --set bra.lepe=off",
        "--attn bra --topk 99 --clip-topk --region-size auto --resolution 96x64",
        "--attn swin --set swin.window=4x2 --layout stl --batch-size 2 --threads 1 --precision bf16 --compile",
        "--attn vanilla --data digit-vote:jitter=3 --steps 7",
        "--attn bra --set bra.qk_scale=1e-3",
    ],
)
def test_the_command_of_a_row_makes_that_row(line: str) -> None:
    (cell,) = plan(line).cells
    command = command_for(cell, ["flops"])
    assert command.startswith("python runners/sweep.py ")
    arguments = command.split()[2:]
    assert make_sweep(read_command(arguments)).plan.cells == (cell,)


def test_a_command_line_overrides_a_study() -> None:
    options = read_command(["--study", "topk", "--seeds", "7", "--steps", "2"])
    cells = make_sweep(options, load_study("topk")).plan.cells
    assert {(cell.seed, cell.steps) for cell in cells} == {(7, 2)}
    assert len(cells) == 5


def test_planning_ten_thousand_cells_is_quick() -> None:
    axes = Axes(settings=(("topk", ("1", "4", "8", "16")),), seeds=tuple(range(2500)))
    assert len(make_plan([axes]).cells) == 10_000
