"""The README is true: its links lead somewhere, and its commands and code run."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import attention_zoo
from ablations import study_names
from attention_zoo.published.models import PUBLISHED
from runners.table import load

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL) for line in block.strip().splitlines()]
SWEEPS = [part for line in COMMANDS for part in line.split(" && ") if part.startswith("python runners/sweep.py")]
SWEEPS = [command for command in SWEEPS if "--cluster slurm" not in command]  # tests/slurm has those
SHORTENED = ["--steps", "2", "--batch-size", "4", "--threads", "1", "--measure", "flops,accuracy"]


def test_the_two_commands_come_first() -> None:
    assert COMMANDS[:2] == [
        "pip install -e . && python runners/sweep.py --attn bra --topk 1,4,8,16",
        "pip install -e '.[test]' && pytest -n auto",
    ]


@pytest.mark.parametrize("document", sorted(path.name for path in ROOT.glob("*.md")))
def test_links_lead_somewhere(document: str) -> None:
    links = re.findall(r"\]\(([^)#][^)]*)\)", (ROOT / document).read_text())
    local = [link for link in links if not link.startswith("https://")]
    assert not [link for link in local if not (ROOT / link.split("#")[0]).exists()]


@pytest.mark.parametrize("name", attention_zoo.names())
def test_every_mechanism_has_a_row(name: str) -> None:
    assert f"| `{name}` |" in README


def test_layouts_and_studies_that_it_names_are_known() -> None:
    studies = set(re.findall(r"--study (\w+)", README)) - {"list"}
    layouts = set(re.findall(r"--arch (\w+)", README))
    assert studies and studies <= set(study_names())
    assert layouts <= {*attention_zoo.LAYOUTS, *PUBLISHED}


@pytest.mark.slow
@pytest.mark.parametrize("command", SWEEPS)
def test_every_sweep_runs(command: str, tmp_path: Path) -> None:
    arguments = shlex.split(command)[2:]
    if arguments != ["--study", "list"]:
        short = SHORTENED[:-2] if "--measure" in arguments else SHORTENED
        arguments += [*short, "--out", str(tmp_path / "runs")]
    done = subprocess.run(
        [sys.executable, "runners/sweep.py", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    if "--dry-run" not in arguments and "list" not in arguments:
        assert set(load(tmp_path / "runs")["status"]) == {"ok"}


def test_the_code_runs(tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    zoo = next(block for block in blocks if "attention_zoo" in block)
    scope: dict[str, object] = {}
    exec(zoo, scope)
    assert scope["y"].shape == (2, 28, 42, 96)
    assert sum(p.numel() for p in scope["model"].parameters()) == 28_372_552
