"""Small images in folders and tars for tests, made from seeds, and the real ones where they are."""

import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

REAL = Path(os.environ.get("ZOO_DATA") or Path(__file__).parents[2] / "shared" / "data")


def real(name: str) -> Path:
    """A file of real images; the test is skipped where it is missing."""
    if not (REAL / name).exists():
        pytest.skip(f"{name} is not in {REAL}; ZOO_DATA names another folder")
    return REAL / name


def picture(number: int, size: tuple[int, int] = (40, 36)) -> Image.Image:
    """An image of noise around a colour of its own, (width, height) px."""
    rng = np.random.default_rng(number)
    values = rng.integers(0, 200, 3) + rng.integers(0, 56, (size[1], size[0], 3))
    return Image.fromarray(values.astype(np.uint8))


def write_folder(root: Path, classes: dict[str, int]) -> Path:
    """Write so many PNG files of each class: root/CLASS/NUMBER.png."""
    number = 0
    for name, count in classes.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            number += 1
            picture(number).save(root / name / f"{index}.png")
    return root


def write_data(root: Path, train: int = 6, val: int = 3, classes: tuple[str, ...] = ("cat", "dog", "emu")) -> Path:
    """Write root/train and root/val with so many images of each class."""
    write_folder(root / "train", dict.fromkeys(classes, train))
    write_folder(root / "val", dict.fromkeys(classes, val))
    return root


def write_classes(root: Path, counts: dict[str, int], mark: Callable[[NDArray[np.uint8], int], None]) -> Path:
    """Write noise of 32 x 32 px in four classes: root/SPLIT/classN/NUMBER.png; `mark` puts its number into each."""
    rng = np.random.default_rng(0)
    for split, count in counts.items():
        for number in range(count):
            place = root / split / f"class{number % 4}" / f"{number}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 128, (32, 32, 3), dtype=np.uint8)
            mark(pixels, number)
            Image.fromarray(pixels).save(place, compress_level=0)
    return root


def write_tar(path: Path, files: dict[str, bytes]) -> Path:
    """Write a tar of files by their names."""
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def tar_of(folder: Path, path: Path) -> Path:
    """Write the files below a folder to a tar."""
    names = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
    return write_tar(path, {name: (folder / name).read_bytes() for name in names})


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    """Content of an image's file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()
