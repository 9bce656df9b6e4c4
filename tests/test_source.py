"""Numbers of a mechanism whose code has changed since are measured again; nothing else is."""

import subprocess
import sys
from pathlib import Path

import pytest

from runners.cells import source
from runners.cells.source import Code, code_of
from runners.store.record import Record
from runners.table import load

ROOT = Path(__file__).parents[1]

MINE = """
from dataclasses import dataclass
from attention_zoo import AttentionConfig
from attention_zoo.mechanisms.vanilla import Vanilla
{extra}
class Mine(Vanilla):
    pass
"""
FILES = {
    "__init__.py": "",
    "mechanism.py": MINE.format(extra="from .parts import half\nimport mine_pack.deep.inner\nimport torch"),
    "parts.py": "half = 0.5\n",
    "deep/__init__.py": "from mine_pack import loose\n",
    "deep/inner.py": "inner = 1\n",
    "loose.py": "loose = 1\n",
    "unrelated.py": "unrelated = 1\n",
}


@pytest.fixture
def package(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        path = tmp_path / "mine_pack" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def files_of(folder: Path, monkeypatch: pytest.MonkeyPatch, module: str) -> dict[str, Path]:
    monkeypatch.syspath_prepend(str(folder))
    loaded = __import__(module.partition(".")[0])
    try:
        return dict(source._files(module))
    finally:
        sys.modules.pop(loaded.__name__)


def test_the_hash_is_of_what_a_module_imports_from_its_own_package(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert set(files_of(package, monkeypatch, "mine_pack.mechanism")) == {
        *("mine_pack", "mine_pack.mechanism", "mine_pack.parts"),
        *("mine_pack.deep", "mine_pack.deep.inner", "mine_pack.loose"),
    }


def test_a_lone_file_counts_with_the_files_beside_it_that_it_imports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lone_4711.py").write_text("def f():\n    import beside_4711, json, attention_zoo\n")
    (tmp_path / "beside_4711.py").write_text("import torch\n")
    (tmp_path / "other_4711.py").write_text("")
    assert set(files_of(tmp_path, monkeypatch, "lone_4711")) == {"lone_4711", "beside_4711"}


@pytest.mark.parametrize(("name", "changes"), [("parts.py", True), ("unrelated.py", False)])
def test_the_hash_changes_with_the_code_and_with_no_other(
    package: Path, monkeypatch: pytest.MonkeyPatch, name: str, changes: bool
) -> None:
    def code() -> str:
        return source._hash(sorted(files_of(package, monkeypatch, "mine_pack.mechanism").items()))

    before = code()
    (package / "mine_pack" / name).write_text("half = 1.0\n")
    assert (code() != before) == changes


def record(code: str | None, dirty: bool = False) -> Record:
    values = {} if code is None else {"attention_hash": code}
    return Record(
        measure="flops", device_id="cpu", protocol=1, status="ok", values=values, environment={"git_dirty": dirty}
    )


@pytest.mark.parametrize(
    ("code", "found", "dirty_now", "differs"),
    [
        (Code("a"), record("a"), False, False),
        (Code("a"), record("b"), False, True),
        (Code("a"), record(None), False, False),
        (Code("a", is_registered=True), record(None), False, True),
        # a commit names the code of a clean checkout, and its numbers stay
        (Code("a", is_built_in=True), record("b"), False, False),
        (Code("a", is_built_in=True), record("b", dirty=True), False, True),
        (Code("a", is_built_in=True), record("b"), True, True),
        (Code("a", is_built_in=True), record("a", dirty=True), True, False),
        (Code("a", is_built_in=True), record(None), True, False),
    ],
)
def test_which_records_are_of_other_code(
    monkeypatch: pytest.MonkeyPatch, code: Code, found: Record, dirty_now: bool, differs: bool
) -> None:
    monkeypatch.setattr(source, "commit", lambda: {"git_sha": "abc", "git_dirty": dirty_now})
    assert code.differs(found) == differs


def test_built_in_mechanisms_share_the_hash_of_the_zoo() -> None:
    assert code_of("bra") == code_of("swin") and code_of("bra").is_built_in


@pytest.mark.slow
def test_an_edited_mechanism_is_measured_again_and_the_row_says_so(package: Path) -> None:
    flags = ["--attn", "mine_pack.mechanism:Mine", "--measure", "flops", "--results", "runs", "--cluster", "debug"]

    def sweep() -> str:
        done = subprocess.run(
            [sys.executable, str(ROOT / "runners" / "sweep.py"), *flags],
            cwd=package,
            env={"PYTHONPATH": f"{package}:{ROOT}", "PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    sweep()
    (before,) = load(package / "runs")["attention_hash"]
    assert "skipped 1 of 1 cells" in sweep()
    (package / "mine_pack" / "parts.py").write_text("half = 0.25\n")
    assert "1 cell measured before the code" in sweep()
    (row,) = load(package / "runs").to_dict("records")
    assert row["attempts"] == 2 and row["attention_hash"] not in (None, before)
    assert "skipped 1 of 1 cells" in sweep()
