"""A sweep from Python: cells and keys of the command line, and errors that name keyword, value and what is allowed."""

import subprocess
import sys
from pathlib import Path

import pytest

from ablations.study import cell_key
from attention_zoo import resolve
from runners import Sweep
from runners.cli.options import read_command
from runners.cli.screen import print_results
from runners.jobs.options import RunOptions, SlurmOptions
from runners.store.store import open_store
from runners.sweep import make_sweep
from runners.table import load

ROOT = Path(__file__).parents[1]

SAME = {
    "--attn bra,swin --topk 1,4 --resolution 64,96x128": {
        "attn": ["bra", "swin"],
        "topk": [1, 4],
        "resolution": [64, (96, 128)],
    },
    "--attn swin --set swin.window=2,4x6 --seeds 0,1": {"attn": "swin", "window": [2, (4, 6)], "seeds": 2},
    "--topk 1-4-8-full --clip-topk --set bra.lepe=off": {"topk": "1-4-8-full", "clip_topk": True, "bra.lepe": False},
    "--data fashion-mnist --epochs 2 --batch-size 600": {"data": "fashion-mnist", "epochs": 2, "batch_size": 600},
    "--compile --precision bf16 --threads 1 --layout stl": {
        "compile": True,
        "precision": "bf16",
        "threads": 1,
        "layout": "stl",
    },
    "--precision fp32,amp-fp16 --sdpa math,auto --deterministic off,on --cudnn-benchmark": {
        "precision": ["fp32", "amp-fp16"],
        "sdpa": ["math", "auto"],
        "deterministic": [False, True],
        "cudnn_benchmark": True,
    },
    "--study topk --seeds 7 --steps 2": {"study": "topk", "seeds": [7], "steps": 2},
    "--set bra.qk_scale=0.001": {"qk_scale": 1e-3},
    "--model swin_tiny,timm:resnet18 --attn bra --topk 1,4": {
        "model": ["swin_tiny", "timm:resnet18"],
        "attn": "bra",
        "topk": [1, 4],
    },
    "--model swin_tiny --baseline timm:resnet18": {"model": "swin_tiny", "baseline": "timm:resnet18"},
}


@pytest.mark.parametrize("line", SAME)
def test_cells_and_keys_are_those_of_the_command_line(line: str) -> None:
    from ablations import load_study

    command = read_command(line.split())
    shell = make_sweep(command, load_study(command.study) if command.study else None)
    python = Sweep(**SAME[line])
    assert [cell_key(cell) for cell in python.plan.cells] == [cell_key(cell) for cell in shell.plan.cells]
    assert python.measures == shell.measures


REFUSED = {
    "a mechanism": ({"attn": "swn"}, ["attn", "'swn'", "did you mean 'swin'"]),
    "a field": ({"attn": "swin", "topk": 4}, ["topk=4", "(swin)", "bra has it"]),
    "a misspelt argument": ({"resolutoin": 64}, ["resolutoin=64", "did you mean 'resolution'"]),
    "a size": ({"resolution": 10}, ["resolution=10", "32 to 16384"]),
    "a number": ({"steps": "many"}, ["steps='many'", "integer"]),
    "a word": ({"precision": "fp8"}, ["precision='fp8'", "fp32, tf32, amp-bf16"]),
    "a measure": ({"measures": ["speed"]}, ["measures=['speed']", "throughput"]),
    "one of a mechanism": ({"swin.window": 4}, ["swin.window=4", "not selected"]),
    "a value that no map has room for": ({"topk": 99}, ["topk=99", "16 regions"]),
    "no end": ({"epochs": 3}, ["epochs=3", "endless", "steps"]),
    "two numbers of epochs": ({"data": "fashion-mnist", "epochs": [1, 2]}, ["epochs=[1, 2]", "one value"]),
    "a study": ({"study": "topkk"}, ["'topkk'", "did you mean 'topk'"]),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_not_allowed_is_one_clear_error_in_the_words_of_python(what: str) -> None:
    values, parts = REFUSED[what]
    with pytest.raises(ValueError) as error:
        Sweep(**values)
    assert "\n" not in str(error.value) and "--" not in str(error.value)
    for part in parts:
        assert part in str(error.value)


BAD_OPTIONS = {
    "an unknown one": ({"forse": True}, ["'forse'", "did you mean 'force'"]),
    "a cluster": ({"cluster": "moon"}, ["cluster='moon'", "local, slurm, debug"]),
    "a device": ({"device": "tpu"}, ["device='tpu'", "cuda:N"]),
    "a time": ({"time": "soon"}, ["time='soon'", "H:MM:SS"]),
    "a status": ({"retry": "ok"}, ["retry='ok'", "oom"]),
    "a switch": ({"force": "yes"}, ["force='yes'", "True"]),
    "an option of jobs": ({"partition": "gpu"}, ["partition", "cluster=slurm"]),
    "none of requeues": ({"max_requeues": 0}, ["max_requeues", "cluster=slurm"]),
    "an option that the sweep sets": ({"cluster": "slurm", "slurm": {"array": "0-3"}}, ["slurm", "array"]),
    "a board of nothing": ({"tensorboard": True}, ["tensorboard=True", "flops", "accuracy"]),
    "weights of nothing": ({"save_weights": True}, ["save_weights=True", "flops", "accuracy"]),
}


@pytest.mark.parametrize("what", BAD_OPTIONS)
def test_an_option_that_is_not_allowed_writes_nothing(what: str, tmp_path: Path) -> None:
    options, parts = BAD_OPTIONS[what]
    with pytest.raises(ValueError) as error:
        Sweep(measures="flops").run(tmp_path / "none", **options)
    assert "\n" not in str(error.value)
    for part in parts:
        assert part in str(error.value)
    assert not list(tmp_path.iterdir())


def test_options_are_typed_and_take_the_spellings_of_the_flags() -> None:
    options = RunOptions(
        cluster="slurm", time="1:30:00", retry=["oom"], gpus_per_node=2, slurm={"reservation": "night"}
    )
    assert (options.time, options.retry, options.gpus_per_node) == (90, ("oom",), 2)
    assert options.slurm == (("reservation", "night"),)
    assert SlurmOptions(slurm=options.slurm, max_requeues=0).max_requeues == 0
    line = ["--cluster", "slurm", "--slurm", "reservation=night", "--slurm", "oversubscribe", "--time", "90"]
    from runners.cli.options import given

    assert RunOptions(**given(read_command(line), RunOptions)) == RunOptions(
        cluster="slurm", time=90, slurm={"reservation": "night", "oversubscribe": ""}
    )


SCRIPT = """
import sys
import runners
assert not {{"torch", "pandas"}} & set(sys.modules), "importing runners must stay cheap"
from runners import Sweep

rows = Sweep(attn=["bra", "swin"], measures=["flops"]).run({out!r})
assert list(rows["attention"]) == ["bra", "swin"] and set(rows["status"]) == {{"ok"}}, rows
assert rows["gmacs"].gt(0).all()
"""


@pytest.mark.slow
def test_a_script_gets_the_rows_of_its_cells(tmp_path: Path) -> None:
    script = SCRIPT.format(out=str(tmp_path))
    done = subprocess.run([sys.executable, "-"], input=script, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[1/2] bra" in done.stdout
    assert Sweep(attn="swin", measures="flops").run(tmp_path)["attempts"].tolist() == [1]
    assert sorted(load(tmp_path)["attention"]) == ["bra", "swin"]


def test_rows_are_those_of_the_sweep_alone(tmp_path: Path) -> None:
    Sweep(attn="vanilla", measures="flops").run(tmp_path, cluster="debug")
    rows = Sweep(attn="swin", measures="flops").run(tmp_path, cluster="debug")
    assert list(rows["attention"]) == ["swin"]
    assert sorted(load(tmp_path)["attention"]) == ["swin", "vanilla"]


def test_the_screen_shows_every_setting_that_was_swept(tmp_path, capsys):
    sweep = Sweep(attn=["bra", "swin"], batch_size=[2, 4], measures=["flops"], **{"bra.lepe": ["on", "off"]})
    store = open_store(tmp_path, create=True)
    for cell in sweep.plan.cells:
        store.add_cell(cell, None, sweep.measures, "cpu")
    print_results(store.out, sweep.rows(store), sweep.plan.cells)
    head, *lines = capsys.readouterr().out.splitlines()[:7]
    at = {name: head.split().index(name) for name in ("attention", "lepe", "batch_size", "status")}
    shown = {tuple(line.split()[at[name]] for name in ("attention", "lepe", "batch_size")) for line in lines}
    lepe = "true" if resolve("swin").Config().lepe else "false"
    both = {("bra", value, batch) for value in ("true", "false") for batch in ("2", "4")}
    assert shown == both | {("swin", lepe, batch) for batch in ("2", "4")}
    assert (tmp_path / "table.csv").exists()
