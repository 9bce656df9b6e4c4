"""Pascal VOC: images in JPEGImages/, an XML for each in Annotations/, names of a split in ImageSets/Main/SPLIT.txt.

A box of VOC counts pixels from 1 and includes its last: (xmin - 1, ymin - 1, xmax, ymax) here, as in detectron2. A
difficult object is a crowd: nothing is learnt from it, and finding it counts neither for nor against. The classes are
those that the training images name, sorted, or the names in a classes.json beside the folders.
"""

import xml.etree.ElementTree as ElementTree
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any

from runners.data.listing import shown
from runners.dense.data.objects import ObjectImages, Record, check_image_size
from runners.dense.data.segfolder import read_names
from runners.dense.data.sources import Tree, listed
from runners.dense.data.specs import check_name, nearest

FOLDERS = ("JPEGImages", "Annotations", "ImageSets/Main")
FLAGS = ("-1", "0", "1")
"""Whether an image has an object of a class: no, a difficult one, yes."""
CORNERS = ("xmin", "ymin", "xmax", "ymax")


def open_voc(path: Path, splits: Sequence[str], images: int) -> list[ObjectImages]:
    """Open splits of a folder or a tar, the first `images` of each.

    Raises:
        ValueError: it is not there, not VOC's layout, or an annotation is missing or wrong.
    """
    tree = Tree(path, FOLDERS, (".xml", ".txt"))
    parsed = [_split(tree, split, images) for split in splits]
    classes = _classes(tree, parsed[0])
    numbers = {name: number for number, name in enumerate(classes, 1)}
    origin = "" if "classes.json" in tree.members else "; without a classes.json, classes are those of training"
    for name, record in parsed[1]:
        for row in record.rows:
            if row[4] not in numbers:
                raise ValueError(_unknown(name, row[4], classes) + origin)
    for _, record in (*parsed[0], *parsed[1]):
        for row in record.rows:
            row[4] = numbers[row[4]]
    return [ObjectImages(path, classes, [record for _, record in part], masks=False) for part in parsed]


def _classes(tree: Tree, train: list[tuple[str, Record]]) -> tuple[str, ...]:
    found = {row[4]: name for name, record in train for row in record.rows}
    if "classes.json" not in tree.members:
        return tuple(sorted(found))
    classes = read_names(tree.json("classes.json"))
    for unknown in found.keys() - set(classes):
        raise ValueError(_unknown(found[unknown], unknown, classes))
    return classes


def _unknown(name: str, unknown: str, classes: tuple[str, ...]) -> str:
    known = f"known: {', '.join(map(shown, classes[:20]))}{', ...' if len(classes) > 20 else ''}"
    return f"{name}: class {shown(unknown)[:80]!r} is not known; {nearest(unknown, classes)}{known}"


def _split(tree: Tree, split: str, images: int) -> list[tuple[str, Record]]:
    """Records of a split, with names of classes, and the files that they are from."""
    listing = f"ImageSets/Main/{split}.txt"
    pictures = tree.images("JPEGImages")
    lines = tree.read(listing).decode("utf-8-sig", errors="replace").splitlines()
    names = [check_name(_name(line.strip(), pictures), f"{listing}: image") for line in lines if line.strip()]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"{listing} names {'an image twice' if names else 'no images'}")
    for folder, missing in (
        ("JPEGImages", [name for name in names if name not in pictures]),
        ("Annotations", [name for name in names if f"Annotations/{name}.xml" not in tree.members]),
    ):
        if missing:
            raise ValueError(
                f"{len(missing)} of {len(names)} images of {listing} are not in {folder}/ ({listed(missing)})"
            )
    found = []
    for number, name in enumerate(names[: images or None]):
        xml = f"Annotations/{name}.xml"
        try:
            height, width, rows = parse_annotation(tree.read(xml))
        except ValueError as error:
            raise ValueError(f"{shown(xml)}: {error}") from error
        found.append((shown(xml), Record(pictures[name], number, height, width, rows)))
    return found


def _name(line: str, pictures: Container[str]) -> str:
    """Image that a line names, which may have spaces; behind it may be a flag, as in lists of one class, and more."""
    if line in pictures:
        return line
    *parts, last = line.rsplit(None, 1)
    if parts and last in FLAGS:
        return parts[0]
    first = line.split()[0]
    return first if first in pictures else line


def parse_annotation(content: bytes) -> tuple[int, int, list[list[Any]]]:
    """Height and width of an image and rows of its objects, of an XML.

    Raises:
        ValueError: it is no XML or has a DOCTYPE, or says no size, or a box outside of the image.
    """
    root = _parse(content)
    sizes = [_number(root.findtext(f"size/{side}")) for side in ("height", "width")]
    height, width = check_image_size(*(int(size) if size == size // 1 else None for size in sizes))
    return height, width, [_row(entry, height, width) for entry in root.iter("object")]


def _parse(content: bytes) -> ElementTree.Element:
    try:
        text = content.decode("utf-8-sig")
        # entities, which may grow without bounds or name files, are declared in a DOCTYPE and nowhere else
        if "<!DOCTYPE" in text:
            raise ValueError("an annotation has no DOCTYPE")
        return ElementTree.fromstring(text)
    except (ElementTree.ParseError, UnicodeDecodeError) as error:
        raise ValueError(f"it is no XML in UTF-8: {error}") from error


def _row(entry: ElementTree.Element, height: int, width: int) -> list[Any]:
    name = (entry.findtext("name") or "").strip()
    left, top, right, bottom = (_number(entry.findtext(f"bndbox/{corner}")) for corner in CORNERS)
    box = f"box {left:g}, {top:g}, {right:g}, {bottom:g}"
    if not name:
        raise ValueError("an object has no name")
    # not a number compares as false; some tools count from 0
    if not (0 <= left <= right <= width and 0 <= top <= bottom <= height):
        raise ValueError(
            f"{box} of {shown(name)[:40]!r} lies outside of the image of {width} x {height} px, or is none"
        )
    left, top = max(0.0, left - 1), max(0.0, top - 1)
    difficult = int((entry.findtext("difficult") or "0").strip() == "1")
    return [left, top, right, bottom, name, difficult, (right - left) * (bottom - top), None]


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return float("nan")
