"""Images with a label for each pixel: images/SPLIT/NAME.jpg, annotations/SPLIT/NAME.png and classes.json.

classes.json says `{"names": ["sky", ...], "ignore_index": 11}`: label i of a pixel is the class names[i], and pixels
of `ignore_index`, 255 if it is not given, count nowhere. ADE20K (ADEChallengeData2016 as it is unpacked) has the same
folders; its label 0 is ignored and i is the class i - 1, whose names are in objectInfo150.txt.
"""

import io
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from runners.data.decode import check_size, upright_size
from runners.data.listing import Files, Ints
from runners.dense.data.checking import check_some
from runners.dense.data.sources import IGNORE, AnnotationError, Bytes, Tree, listed

if TYPE_CHECKING:
    from PIL.Image import Image

ADE_CLASSES = 150
FORMATS = ("PNG", "BMP", "TIFF", "GIF")
"""Of annotations: what keeps each value as it is."""
SPREAD = {"L;2": 85, "L;4": 17}
"""What Pillow multiplies greys of fewer than 8 bits by, so that the largest becomes 255."""


class Classes(NamedTuple):
    """Names of the classes, and the class of each label: IGNORE for none, -1 for a label that may not be."""

    names: tuple[str, ...]
    of_label: Ints  # (256,)


class SegFolder:
    """Images of one split with their labels."""

    counts = True

    def __init__(self, tree: Tree, split: str, classes: Classes, images: int = 0) -> None:
        """List a split, the first `images` of it, and check some of its annotations.

        Raises:
            ValueError: an image has no annotation, or an annotation does not fit its image or the classes.
        """
        self.classes, self._of_label = classes.names, classes.of_label
        pictures, annotations = tree.images(f"images/{split}"), tree.images(f"annotations/{split}")
        missing = pictures.keys() - annotations.keys()
        if not pictures or missing:
            raise ValueError(
                f"{len(missing)} of {len(pictures)} images of images/{split}/ have no annotation of the same name in "
                f"annotations/{split}/ ({listed(missing)})"
                if pictures
                else f"images/{split}/ holds no images"
            )
        alone = annotations.keys() - pictures.keys()
        self._note = (
            f"{len(alone)} annotations have no image of their name ({listed(alone)}); left out" if alone else ""
        )
        names = sorted(pictures)[: images or None]
        self.files = Files(tree.path, [pictures[name] for name in names])
        self._annotations = Files(tree.path, [annotations[name] for name in names])
        check_some(len(self), self._check, self.name, self._annotations.name)
        if not any(map(self._classified, range(len(self)))):  # the first one nearly always is
            raise ValueError(f"no pixel of the {len(self)} annotations of annotations/{split}/ has a class")

    def __len__(self) -> int:
        """Number of images."""
        return len(self.files)

    def name(self, index: int) -> str:
        """Name of an image below the path."""
        return self.files.name(index)

    def size(self, index: int) -> tuple[int, int] | None:
        """Only reading tells."""
        return None

    def is_empty(self, index: int) -> bool:
        """Every image has labels."""
        return False

    def read(self, index: int) -> "tuple[Image, Bytes]":
        """Read an image, and the class of each pixel (H, W).

        Raises:
            ValueError: one of them cannot be read, or they do not fit together.
        """
        image = self.files.decode(index)
        return image, self._labels(index, image.size)

    def notes(self, *, learnt: bool, keep_empty: bool = False) -> list[str]:
        """Annotations without an image, which are left out."""
        return [self._note] if self._note else []

    def identity(self) -> Iterable[bytes]:
        """Names of files and classes, and how labels are read."""
        return (
            *self.files.identity(),
            *self._annotations.identity(),
            "\0".join(self.classes).encode(errors="replace"),
            self._of_label.tobytes(),
        )

    def _check(self, index: int) -> None:
        with self.files.open(index) as file:
            size = upright_size(file)
        self._labels(index, size)

    def _classified(self, index: int) -> bool:
        """Whether a pixel of an image has a class; of one that cannot be read none has."""
        try:
            return bool((self.read(index)[1] != IGNORE).any())
        except ValueError:
            return False

    def _labels(self, index: int, size: tuple[int, int]) -> Bytes:
        """Class of each pixel of an image of (width, height)."""
        try:
            with self._annotations.open(index) as file:
                values = read_values(file.read())
        except OSError as error:
            raise ValueError(f"{self._annotations.name(index)} cannot be read: {error.strerror or error}") from error
        if values.shape != size[::-1]:
            raise AnnotationError(
                f"the annotation has {values.shape[1]} x {values.shape[0]} pixels and its image {size[0]} x {size[1]}"
            )
        # a negative number would count from the end
        fits = values.min() >= 0 and values.max() < len(self._of_label)
        found = self._of_label[values] if fits else np.full(1, -1)
        if found.min() < 0:
            allowed = np.flatnonzero(self._of_label >= 0)
            wrong = np.setdiff1d(np.unique(values), allowed)
            raise AnnotationError(
                f"label {wrong[0]} in the annotation; the labels of {len(self.classes)} classes are {_range(allowed)}"
            )
        return found.astype(np.uint8)


def read_values(content: bytes) -> Any:
    """Values of the pixels of an annotation, (H, W); of a palette its indices.

    Raises:
        ValueError: it cannot be read, or has more than one channel.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with (
            warnings.catch_warnings(action="ignore"),
            Image.open(io.BytesIO(content), formats=FORMATS) as image,
        ):
            check_size(image.width, image.height)
            if image.mode not in ("L", "P", "1") and not image.mode.startswith("I"):
                raise AnnotationError(f"the annotation has colours ({image.mode}), and numbers of classes are wanted")
            factor = SPREAD.get(_stored_as(image), 1)
            # those of one byte stay as they are, which is faster
            values = np.asarray(image)
            if factor > 1:
                return values // factor
            return values.astype(np.uint8) if image.mode == "1" else values
    except AnnotationError:
        raise
    except UnidentifiedImageError as error:
        raise ValueError("its annotation cannot be read: it is no PNG, BMP, TIFF or GIF") from error
    except Exception as error:  # decoders raise whatever they stumble over
        raise ValueError(f"its annotation cannot be read: {str(error) or type(error).__name__}") from error


def _stored_as(image: Any) -> str:
    """How the pixels of an image that was opened, and not yet read, lie in its file: L;2 for greys of two bits."""
    how = image.tile[0].args if image.tile else ""
    return str(how[0] if isinstance(how, tuple) else how)[: len("L;2")]


def _range(labels: Ints) -> str:
    """Write numbers as ranges: 0 to 11 and 255."""
    runs = np.split(labels, np.flatnonzero(np.diff(labels) != 1) + 1)
    return " and ".join(f"{run[0]} to {run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def open_segfolder(path: Path, splits: Sequence[str], images: int, *, ade20k: bool) -> list[SegFolder]:
    """Open splits of a folder or a tar.

    Raises:
        ValueError: it is not there, not of this layout, or its annotations do not fit.
    """
    tree = Tree(path, [f"{kind}/{split}" for kind in ("images", "annotations") for split in splits])
    classes = _of_ade(tree) if ade20k else _of_json(tree.json("classes.json"))
    return [SegFolder(tree, split, classes, images) for split in splits]


def read_names(content: Any) -> tuple[str, ...]:
    """Names of the classes that a classes.json holds.

    Raises:
        ValueError: they are none.
    """
    names = content.get("names") if isinstance(content, dict) else None
    if (
        not isinstance(names, list)
        or not 0 < len(names) <= IGNORE
        or not all(isinstance(name, str) and name for name in names)
        or len(set(names)) < len(names)
    ):
        raise ValueError(
            'classes.json must be an object {"names": [...], "ignore_index": N} with 1 to 255 names, all different; '
            f"got {str(content)[:60]}"
        )
    return tuple(names)


def _of_json(content: Any) -> Classes:
    names = read_names(content)
    ignored = content.get("ignore_index", IGNORE)
    if type(ignored) is not int or not len(names) <= ignored <= IGNORE:
        raise ValueError(
            f"classes.json: ignore_index must be an integer from {len(names)}, behind the classes, to {IGNORE}, "
            f"got {str(ignored)[:60]!r}"
        )
    if unknown := content.keys() - {"names", "ignore_index"}:
        raise ValueError(f"classes.json: unknown entries {listed(unknown)}; known: names, ignore_index")
    of_label = np.full(IGNORE + 1, -1)
    of_label[: len(names)] = np.arange(len(names))
    of_label[ignored] = IGNORE
    return Classes(names, of_label)


def _of_ade(tree: Tree) -> Classes:
    names = tuple(f"class {number}" for number in range(1, ADE_CLASSES + 1))
    if "objectInfo150.txt" in tree.members:
        # Idx Ratio Train Val Stuff Name, behind tabs
        rows = tree.read("objectInfo150.txt").decode(errors="replace").splitlines()[1:]
        found = tuple(row.split("\t")[-1].strip() for row in rows if row.strip())
        names = found if len(found) == ADE_CLASSES else names
    of_label = np.full(IGNORE + 1, -1)
    of_label[0] = IGNORE
    of_label[1 : ADE_CLASSES + 1] = np.arange(ADE_CLASSES)
    return Classes(names, of_label)
