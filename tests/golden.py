"""Stored results of the published codes, which are not part of this repository: what there is, and where."""

import os
from pathlib import Path

import pytest

from attention_zoo.published.cases import read_case

ROOT = Path(__file__).parents[1]
FOLDER = Path(os.environ.get("ZOO_GOLDEN") or ROOT.parent / "shared" / "golden")
FILES = sorted(FOLDER.rglob("*.safetensors"))
SKIPPED = f"no stored results in {FOLDER}; set ZOO_GOLDEN to their folder"
needs_golden = pytest.mark.skipif(not FILES, reason=SKIPPED)


def path_of(name: str) -> Path:
    return FOLDER / f"{name}.safetensors"


def name_of(path: Path) -> str:
    return str(path.relative_to(FOLDER).with_suffix(""))


def listed() -> dict[str, list[str]]:
    """Rows of docs/parity.md by the name of their case: the columns after it."""
    lines = (ROOT / "docs" / "parity.md").read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    start = next(index for index, row in enumerate(rows) if row[0] == "case")
    return {row[0]: row[1:] for row in rows[start + 2 :]}


def kinds() -> dict[str, str]:
    """Published class of each case by its name; without the folder those of docs/parity.md, so that each skips."""
    if not FILES:
        return {name: row[0].strip("`") for name, row in listed().items()}
    return {name_of(path): read_case(path, "").kind for path in FILES}


CASES = kinds()
