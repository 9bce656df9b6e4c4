"""Declared studies: which cells are run, and why. One file each; its module holds a `STUDY`."""

import difflib
import importlib
import inspect
import pkgutil

from ablations.study import Axes, Cell, Study, cell_key

__all__ = ["Axes", "Cell", "Study", "cell_key", "load_study", "study_names"]

NO_STUDIES = ("mechanisms", "study", "values")
"""Modules of this package that studies are written with."""


def study_names() -> list[str]:
    """Names of the studies in this package."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name not in NO_STUDIES)


def load_study(name: str) -> Study:
    """Import a study; its question and expectation are paragraphs of its module's docstring unless it says them itself.

    Raises:
        ValueError: no study of that name; the known ones are listed.
    """
    known = study_names()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"unknown study {name!r}; {hint}known: {', '.join(known)}")
    module = importlib.import_module(f"ablations.{name}")
    study: Study = module.STUDY
    paragraphs = [" ".join(text.split()) for text in (inspect.getdoc(module) or "").split("\n\n")]
    expected = next((text for text in paragraphs if text.startswith("Expect:")), "")
    study.question = study.question or paragraphs[0]
    study.expectation = study.expectation or expected.removeprefix("Expect:").strip()
    return study
