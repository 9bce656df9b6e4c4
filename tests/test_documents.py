"""The documents are true: links lead somewhere, commands and code run, tables say what the code says."""

import functools
import importlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from dense_files import write_coco, write_segfolder, write_voc
from image_files import write_data

import attention_zoo
from ablations import study_names
from attention_zoo.__main__ import main as print_table
from attention_zoo.dense import HEADS, head_fields
from runners import sweep
from runners.data.loading import make_data
from runners.figures import FIGURES
from runners.store.columns import COLUMNS
from runners.table import load
from runners.train.recipes import DENSE, RECIPES

ROOT = Path(__file__).parents[1]
PATHS = [*ROOT.glob("*.md"), ROOT / "results" / "README.md", *(ROOT / "docs").glob("*.md")]
DOCUMENTS = {str(path.relative_to(ROOT)): path.read_text() for path in sorted(PATHS)}


def blocks(language: str, document: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", DOCUMENTS[document], re.DOTALL)


COMMANDS = {name: [line for block in blocks("sh", name) for line in block.strip().splitlines()] for name in DOCUMENTS}


def programs(*documents: str) -> list[str]:
    parts = [part for name in documents for line in COMMANDS[name] for part in line.split(" && ")]
    return sorted({part for part in parts if part.startswith("python ")})


SWEEPS = [
    command
    # those of results/README.md take hours; tests/slurm has those on a cluster; a class or images are the reader's
    for command in programs(*(name for name in DOCUMENTS if name != "results/README.md"))
    if re.match(r"python runners/sweep\.py (?!.*(--cluster slurm|--attn \S*:|--data (imagefolder|timm):))", command)
]
LONG = ("--attn all", "--topk 1,4,8,16", "--region-size auto", "--precision fp32,amp-bf16", "--tune-lr")
"""Of sweeps over many cells; `.ci/run` runs the main command as it is."""
SHORTENED = {"--steps": "2", "--batch-size": "4", "--threads": "1", "--seeds": "0"}


def cells(document: str, first: str) -> dict[str, list[str]]:
    """Rows of the table of a document whose head begins with `first`: first cell -> the others."""
    _, _, rest = DOCUMENTS[document].partition(f"\n| {first} |")
    rows = [line for line in rest.splitlines()[2:] if line.startswith("|") or not line]
    table = rows[: rows.index("")] if "" in rows else rows
    split = [[cell.strip() for cell in row.strip("|").split("|")] for row in table]
    return {name.strip("`"): others for name, *others in split}


def anchors(text: str) -> set[str]:
    """The anchors of a document's headings, made as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    links = re.findall(r"\]\(([^)]+)\)", DOCUMENTS[document])
    for link in links:
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / document).parent / path if path else ROOT / document
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target.read_text()), link


def test_every_page_is_linked_from_the_readme() -> None:
    pages = {name for name in DOCUMENTS if name.startswith("docs/")}
    assert pages == set(re.findall(r"\((docs/[^)#]+)\)", DOCUMENTS["README.md"]))


def test_the_two_commands_come_first() -> None:
    assert COMMANDS["README.md"][:2] == [
        "pip install -e '.[sweeps]' && python runners/sweep.py --attn bra --topk 1,4,8,16",
        "pip install -e '.[test]' && pytest -n auto",
    ]


def test_the_output_that_is_shown_has_columns_of_the_table() -> None:
    head, *rows = blocks("text", "README.md")[0].splitlines()
    assert {len(row.split()) for row in rows[:4]} == {len(head.split())}
    assert set(head.split()) <= set(COLUMNS)


@functools.cache
def help_of(*program: str) -> str:
    done = subprocess.run([sys.executable, *program, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("command", programs(*DOCUMENTS))
def test_every_command_has_the_flags_that_it_is_shown_with(command: str) -> None:
    words = shlex.split(command)[1:]
    program = words[:2] if words[0] == "-m" else words[:1]
    known = re.findall(r"(?<![\w-])-{1,2}[a-z][\w-]*", help_of(*program))
    assert {word for word in words[len(program) :] if word.startswith("-")} <= set(known)


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        pytest.param(sweep, marks=pytest.mark.exhaustive if any(words in sweep for words in LONG) else ())
        for sweep in SWEEPS
    ],
)
def test_every_sweep_runs(command: str, tmp_path: Path) -> None:
    arguments = shlex.split(command)[2:]
    if arguments != ["--study", "list"]:
        # one command that trains is enough, and timing is others' to test
        measures = {None: "flops,accuracy", "flops,accuracy": "flops", "flops,throughput": "flops"}
        asked = arguments[arguments.index("--measure") + 1] if "--measure" in arguments else None
        changes = {**SHORTENED, "--measure": measures.get(asked, asked), "--results": str(tmp_path / "runs")}
        for flag, value in changes.items():
            if flag in arguments:
                arguments[arguments.index(flag) + 1] = value
            else:
                arguments += [flag, value]
    done = subprocess.run(
        [sys.executable, "runners/sweep.py", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    if "--dry-run" not in arguments and "list" not in arguments:
        assert set(load(tmp_path / "runs")["status"]) == {"ok"}


TRAINED = [command for command in programs("docs/training.md") if "--data imagefolder:" in command]


@pytest.mark.parametrize("command", TRAINED)
def test_every_sweep_of_images_can_be_planned(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_data(tmp_path, train=6, val=6)
    arguments = shlex.split(re.sub(r"imagefolder:[^\s,]+", f"imagefolder:{root}", command))[2:]
    assert sweep.main([*arguments, "--batch-size", "4", "--dry-run"]) == 0
    assert f"imagefolder:{root}" in capsys.readouterr().out


FILES = {"segfolder": write_segfolder, "coco": write_coco, "voc": write_voc}
"""Writers of small data of each layout; ADE20K's needs its 150 classes."""
OF_FILES = {
    command: kind
    for block in blocks("text", "docs/dense.md")
    for command in block.replace("\\\n", "").splitlines()
    for kind in FILES
    if f"--data {kind}:" in command
}


@pytest.mark.parametrize("command", OF_FILES)
def test_every_sweep_of_annotated_files_can_be_planned(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = FILES[OF_FILES[command]](tmp_path / "data")
    arguments = shlex.split(re.sub(rf"({OF_FILES[command]}):[^\s,]+", rf"\1:{root}", command))[2:]
    for flag in {"--init-from", "--batch-size"} & set(arguments):  # a cell of the reader's, and more than a few images
        place = arguments.index(flag)
        del arguments[place : place + 2]
    assert sweep.main([*arguments, "--batch-size", "1", "--dry-run"]) == 0
    assert f":{root}" in capsys.readouterr().out


def test_the_code_about_dense_tasks_runs() -> None:
    (code,) = blocks("python", "docs/dense.md")
    scope: dict[str, Any] = {}
    exec(code, scope)
    assert [tuple(one.shape) for one in scope["maps"]] == [
        (2, 24, 32, 48),
        (2, 48, 16, 24),
        (2, 96, 8, 12),
        (2, 192, 4, 6),
    ]
    assert all(one.shape[1] == 64 for one in scope["levels"].values())
    assert sorted(scope["losses"]) == ["bbox_regression", "classification"]
    assert scope["backbone"].model.mixers()[0][0].config.regions == 16
    assert [set(one) for one in scope["found"]] == [{"boxes", "labels", "scores"}] * 2
    assert scope["macs"].backbone.total > 0 < scope["macs"].head


def test_the_table_of_heads_is_that_of_their_fields() -> None:
    table = {name: row[0] for name, row in cells("docs/dense.md", "field").items() if "." in name}
    fields = {(head, field): value for head in sum(HEADS.values(), ()) for field, value in head_fields(head).items()}
    assert table == {f"{head}.{field}": str(value).strip("()") for (head, field), value in fields.items()}


def test_the_tables_of_recipes_are_complete() -> None:
    assert {name for row in cells("docs/training.md", "recipe") for name in row.split("`, `")} == set(RECIPES)
    assert set(cells("docs/dense.md", "`--recipe`")) == set(DENSE)


def test_the_class_of_the_page_on_training_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = blocks("python", "docs/training.md")
    (tmp_path / "module_of_the_page.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    data = make_data("module_of_the_page:Mine", 32, 32, 8, workers=0)
    images, labels = data.batch(0, 0)
    assert ((images[:, 0, 0, 0] < images[:, 0, 0, 31]).long() == labels).all()


def test_the_code_of_the_readme_runs() -> None:
    (code,) = blocks("python", "README.md")
    scope: dict[str, object] = {}
    exec(code, scope)
    assert scope["y"].shape == (2, 28, 42, 96)
    assert sum(p.numel() for p in scope["model"].parameters()) == 28_372_552


def test_the_code_about_timm_runs() -> None:
    code = "\n".join(blocks("python", "docs/timm.md"))
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_code_about_sweeps_runs(tmp_path: Path) -> None:
    code = "\n".join([*blocks("python", "docs/sweeps.md"), "assert list(rows['status']) == ['ok'] * 3"])
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr


def test_the_table_of_mechanisms_is_the_generated_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert print_table([]) == 0
    table = capsys.readouterr().out
    assert f"\n\n{table}\n" in DOCUMENTS["README.md"]
    assert all(f"| `{name}` |" in table for name in attention_zoo.names())


def test_a_mechanism_that_cannot_be_imported_is_left_out_of_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert print_table(["axial", "nowhere:Missing"]) == 1
    captured = capsys.readouterr()
    assert captured.out.splitlines()[2:] == [row for row in DOCUMENTS["README.md"].splitlines() if "| `axial` |" in row]
    assert captured.err.count("\n") == 1
    assert "nowhere:Missing" in captured.err


def test_the_table_of_hosts_is_that_of_the_layouts() -> None:
    head = "| | `stl`, the Swin-T-like host of BiFormer's ablation | `small`, the default of a sweep |"
    assert head in DOCUMENTS["docs/mechanisms.md"]
    table = {
        row.split("|")[1].strip(): [cell.strip() for cell in row.split("|")[2:4]]
        for row in DOCUMENTS["docs/mechanisms.md"].partition(head)[2].partition("\n\n")[0].splitlines()[2:]
    }
    for at, layout in enumerate((attention_zoo.LAYOUTS["stl"], attention_zoo.LAYOUTS["small"])):
        assert table["blocks per stage"][at] == "-".join(map(str, layout.depths))
        assert table["channels per stage"][at] == "-".join(map(str, layout.dims))
        assert table["head dim, MLP ratio"][at] == f"{layout.head_dim}, {layout.mlp_ratio}"
        sizes = f"{layout.resolution_px} px, {layout.regions}, {layout.window}"
        assert table["resolution, regions per side, window"][at] == sizes


def test_the_table_of_what_comes_with_a_mechanism_is_that_of_its_defaults() -> None:
    table = cells("docs/mechanisms.md", "comes with")
    assert sorted(table) == attention_zoo.names()
    for name, (bias, lepe, *_) in table.items():
        config = attention_zoo.resolve(name).Config()
        assert bias == ("on" if config.qkv_bias else "off")
        size = f"{config.lepe_kernel}×{config.lepe_kernel}"  # noqa: RUF001 -- as printed in the table
        assert lepe.startswith((size,) if config.lepe else ("off", "cannot"))


def test_the_table_of_published_models_is_that_of_the_models() -> None:
    table = cells("docs/timm.md", "model")
    for names, (parameters, gmacs) in table.items():
        for name in names.replace("`", "").split(", "):
            with torch.device("meta"):
                model = attention_zoo.create_model(name)
            assert sum(p.numel() for p in model.parameters()) == int(parameters.replace(",", ""))
            assert f"{model.macs(224, 224).total / 1e9:.2f}" == gmacs


def test_the_tables_of_studies_and_figures_are_complete() -> None:
    assert sorted(cells("docs/sweeps.md", "study")) == study_names()
    assert set(cells("docs/figures.md", "figure")) == set(FIGURES)


def test_the_tree_of_the_repository_is_that_on_disk() -> None:
    tree = next(block for block in blocks("text", "CONTRIBUTING.md") if block.startswith("attention_zoo/"))
    listed, parent = [], ""
    for line in tree.splitlines():
        folder = line.split()[0]
        parent = parent if line.startswith(" ") else folder
        listed.append(folder if folder == parent else parent + folder)
        assert len(line.split()) > 1, f"{folder} without a word"
    tops = [name.rstrip("/") for name in listed if name.count("/") == 1]
    code = {path.parent for top in tops for path in (ROOT / top).rglob("*.py")}
    expected = {f"{folder.relative_to(ROOT)}/" for folder in code} | {"docs/", "results/"}
    assert len(listed) == len(set(listed))
    assert set(listed) == expected
    assert {f"{path.parent.name}/" for path in ROOT.glob("*/*.py")} <= set(listed)


def test_every_module_that_moved_is_where_the_changelog_says() -> None:
    moves = cells("CHANGELOG.md", "old import")
    assert "attention_zoo.blocks" in moves
    for old, (new,) in moves.items():
        if new.startswith("`"):  # else a sentence: what a module that is gone was split into
            importlib.import_module(new.strip("`"))
        path = ROOT / old.replace(".", "/")
        if old != "runners.slurm_job":  # it stays for the pickles of earlier submissions
            assert not path.with_suffix(".py").exists(), f"{old} is listed as moved"
