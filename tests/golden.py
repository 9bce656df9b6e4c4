"""Stored results of the published codes, which are not part of this repository: what there is, and where."""

import os
from pathlib import Path

import pytest

from attention_zoo.parity import cases_below
from attention_zoo.published.cases import FUNCTION, Case, read_case
from attention_zoo.published.classes import MODELS

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"
FOLDERS = [Path(folder) for folder in os.environ.get("ZOO_GOLDEN", "").split(os.pathsep) if folder] or [
    SHARED / "golden",
    SHARED / "golden2026",
]
FOLDER = FOLDERS[0]
WITHOUT_A_MECHANISM = {"agent", "dbra", "focused", "linear", "mlla", "rmt", "slide", "ss2d", "transnext"}
"""Families that the zoo has no mechanism of, so that parity names their cases and ends with 2."""

PATHS = {
    name: path
    for folder in FOLDERS
    for name, path in cases_below(folder).items()
    if name.partition("/")[0] not in WITHOUT_A_MECHANISM
}
FILES = list(PATHS.values())
HOLDING = sorted({path.parent for path in FILES})
"""Folders that the files lie in."""

SKIPPED = f"no stored results in {FOLDER}; set ZOO_GOLDEN to their folders"
needs_golden = pytest.mark.skipif(not FILES, reason=SKIPPED)


def path_of(name: str) -> Path:
    return PATHS[name]


def changes_the_map(case: Case) -> bool:
    """Whether a token mixer of the published code gives another map than it takes, or other channels."""
    is_mixer = case.kind not in {*MODELS, FUNCTION}
    return is_mixer and case.tensors["input"].shape != case.tensors["output"].shape


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
    return {name: read_case(path, "").kind for name, path in PATHS.items()}


CASES = kinds()
