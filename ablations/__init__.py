"""Declared studies: which cells are run, and why. One file each; its module holds a `STUDY`."""

import difflib
import importlib
import pkgutil

from ablations.study import Axes, Cell, Study, cell_key

__all__ = ["Axes", "Cell", "Study", "cell_key", "load_study", "study_names"]


def study_names() -> list[str]:
    """Names of the studies in this package."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name != "study")


def load_study(name: str) -> Study:
    """Import a study.

    Raises:
        ValueError: no study of that name; the known ones are listed.
    """
    known = study_names()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"unknown study {name!r}; {hint}known: {', '.join(known)}")
    study: Study = importlib.import_module(f"ablations.{name}").STUDY
    return study
