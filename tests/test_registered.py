"""A mechanism that a notebook or a script registers: swept by child processes, never written, refused to SLURM."""

import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from attention_zoo import names, register, registry
from attention_zoo.mechanisms.vanilla import Vanilla
from runners.cells.registered import code_hash, is_registered_here, offered, pack, take, unpack

ROOT = Path(__file__).parents[1]

SCRIPT = """
from dataclasses import dataclass
from pathlib import Path

import torch

from attention_zoo import register
from attention_zoo.mechanisms.vanilla import Vanilla, VanillaConfig
from runners import Sweep
from runners.cells.registered import pack

OUT = Path({out!r})
SOURCE = '''
GAIN = 1.5

@dataclass(frozen=True, kw_only=True)
class MineConfig(VanillaConfig):
    gains: int = 1

@register("mine")
class Mine(Vanilla):
    Config = MineConfig

    def __init__(self, dim, num_heads, config):
        super().__init__(dim, num_heads, config)
        self.gain_of_mine = torch.nn.Parameter(torch.full((config.gains * dim,), GAIN))
'''
SMALL = dict(attn=["mine"], gains=[2], resolution=32, batch_size=2, threads=1)

exec(SOURCE)
assert b"gain_of_mine" in pack("mine")
first = Sweep(**SMALL, measures=["flops", "memory"]).run(OUT)
assert set(first["status"]) == {{"ok"}}, first["error_message"][0]
assert first["peak_train_mib"].gt(first["peak_infer_mib"]).all()
vanilla = Sweep(attn="vanilla", resolution=32, batch_size=2, threads=1, measures="flops").run(OUT, cluster="debug")
# the last stage is full attention
assert round(1e6 * (first["params_m"][0] - vanilla["params_m"][0])) == 2 * EXPECTED

same = Sweep(**SMALL, measures=["flops", "memory"]).run(OUT)
assert list(same["attempts"]) == [1], "the same class again measures nothing"

exec(SOURCE.replace("1.5", "2.5"))
changed = Sweep(**SMALL, measures="flops").run(OUT)
assert list(changed["attempts"]) == [2], "another class is measured anew"
assert changed["attention_hash"][0] != first["attention_hash"][0]
assert len(changed) == 1

files = [path for path in OUT.rglob("*") if path.is_file()]
assert files and not [path for path in files if b"gain_of_mine" in path.read_bytes()], "the class was written"
try:
    Sweep(**SMALL).run(OUT, cluster="slurm")
except ValueError as error:
    print("REFUSED", error)
"""


@pytest.mark.slow
def test_a_class_of_a_script_is_swept_through_a_pipe_and_refused_to_slurm(tmp_path: Path) -> None:
    from attention_zoo import create_model

    dims = [mixer.dim for stage in create_model("small", num_classes=1).mixers()[:3] for mixer in stage]
    script = SCRIPT.format(out=str(tmp_path)).replace("EXPECTED", str(sum(dims)))
    done = subprocess.run([sys.executable, "-"], input=script, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    refused = done.stdout[done.stdout.index("REFUSED") :]
    assert refused.count("\n") == 1 and "attn=mine" in refused and "--attn module:Class" in refused


@pytest.fixture
def mine(monkeypatch: pytest.MonkeyPatch) -> type:
    """A class of `__main__` that is registered as `mine`."""
    monkeypatch.setattr(registry, "_MECHANISMS", dict(registry._MECHANISMS))
    scope: dict[str, Any] = {"__name__": "__main__", "Vanilla": Vanilla, "register": register}
    exec("@register('mine')\nclass Mine(Vanilla):\n    pass\n", scope)
    made: type = scope["Mine"]
    return made


def test_the_command_line_refuses_it_to_slurm(mine: type, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from runners.sweep import main

    assert main(["--attn", "mine", "--cluster", "slurm", "--out", str(tmp_path / "none")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "--attn mine" in said and "--attn module:Class" in said
    assert not list(tmp_path.iterdir())


def test_only_what_other_processes_cannot_find_is_offered(mine: type) -> None:
    assert is_registered_here("mine")
    assert not is_registered_here("bra")
    with offered("bra") as path:
        assert path is None
    take(None)


def test_a_pipe_gives_the_class_once_and_leaves_nothing(mine: type) -> None:
    with offered("mine") as path:
        assert path is not None and path.is_fifo() and path.parent.stat().st_mode & 0o077 == 0
        content = path.read_bytes()
    assert not path.parent.exists()
    del registry._MECHANISMS["mine"]
    unpack(content)
    assert issubclass(registry.resolve("mine"), Vanilla) and code_hash(registry.resolve("mine")) == code_hash(mine)
    unpack(content)  # known by now
    assert "mine" in names()


def test_a_child_that_dies_before_it_reads_keeps_nobody_waiting(mine: type) -> None:
    started, threads = time.monotonic(), threading.active_count()
    with offered("mine") as path:
        assert path is not None
    assert time.monotonic() - started < 30 and threading.active_count() == threads


def test_a_mechanism_that_is_imported_elsewhere_registers_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_MECHANISMS", dict(registry._MECHANISMS))
    register("importable")(Vanilla)
    unpack(pack("importable"))
    assert registry.resolve("importable") is Vanilla


def test_a_cell_of_a_notebook_that_runs_again_takes_its_name_again(mine: type) -> None:
    again = type("Mine", (Vanilla,), {"__module__": "__main__"})
    assert register("mine")(again) is registry.resolve("mine") is again
    with pytest.raises(ValueError, match="'mine' is already Mine"):
        register("mine")(type("Other", (Vanilla,), {"__module__": "__main__"}))


CLASS = """
SCALE = 2
def helper(x):
    return x + 1
class Base:
    def half(self, x):
        return x / 2
class Mine(Base):
    depth = 3
    def forward(self, x):
        return helper(self.half(x)) * SCALE if x in {"a", "b", "c"} else [x + 1 for x in (1, 2)]
    @property
    def width(self):
        return 7
    @staticmethod
    def plus(x, by=1):
        return x + by
"""


def hash_of(source: str) -> str:
    scope: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(source, "<cell>", "exec"), scope)
    return code_hash(scope["Mine"])


@pytest.mark.parametrize(
    "change",
    [
        ("SCALE = 2", "SCALE = 3"),
        ("x + 1\nclass", "x + 2\nclass"),
        ("x / 2", "x / 3"),
        ("depth = 3", "depth = 4"),
        ("return 7", "return 8"),
        ("by=1", "by=2"),
        ('"c"', '"d"'),
        ("(1, 2)", "(1, 3)"),
        ("def width", "def height"),
    ],
)
def test_the_hash_follows_what_a_class_does(change: tuple[str, str]) -> None:
    assert change[0] in CLASS
    assert hash_of(CLASS.replace(*change)) != hash_of(CLASS)


def test_the_hash_follows_neither_lines_nor_processes() -> None:
    assert hash_of("\n\n# moved\n" + CLASS) == hash_of(CLASS)
    program = "import test_registered as t; print(t.hash_of(t.CLASS))"
    environment = {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "PYTHONHASHSEED": "7"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=100)
    assert done.stdout.strip() == hash_of(CLASS), done.stderr
