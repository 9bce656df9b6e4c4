"""Saved states of trainings in a results folder: the newest, the one before it, and what a kill left of one."""

from pathlib import Path

from runners.store.files import list_names, remove
from runners.store.store import Store


def states(store: Store, key: str, device_id: str | None = None) -> list[Path]:
    """Saved states of a cell, of one device or of all, and what a killed process has left of one."""
    stem, folder = f"training.{device_id}" if device_id else "training", store.folder(key)
    names = list_names(str(folder), hidden=True)
    return [folder / name for name in sorted(names) if f"{name.removeprefix('.')}.".startswith(f"{stem}.")]


def forget_states(store: Store, key: str, device_id: str | None = None) -> None:
    """Remove them, so that the next training of the cell starts anew.

    Raises:
        StoreError: one cannot be removed, or the results folder is gone.
    """
    for path in states(store, key, device_id):
        remove(path, root=store.out)
