"""COCO: images in train2017/ and val2017/, objects in annotations/instances_train2017.json.

The classes are numbered from 1 in the order of the categories' ids, which need not follow one another. Crowds, boxes
without area, images without boxes, and both kinds of masks are as in https://cocodataset.org/#format-data.
"""

import importlib.util
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from runners.data.listing import shown
from runners.dense.data.masks import check_segmentation
from runners.dense.data.objects import WITHOUT_MASK, ObjectImages, Record, check_image_size
from runners.dense.data.sources import Tree, listed
from runners.dense.data.specs import check_name

MAX_JSON_BYTES = 1 << 31
"""Annotations of all images; COCO's have 470 MB."""
ID_LIMIT = 1 << 62


def open_coco(path: Path, splits: Sequence[str], images: int, *, masks: bool) -> list[ObjectImages]:
    """Open splits of a folder or a tar, the first `images` of each.

    Raises:
        ValueError: it is not there, not COCO's layout, of another split, or of other categories.
    """
    if masks and importlib.util.find_spec("faster_coco_eval") is None:
        raise ValueError("masks of COCO need faster-coco-eval; pip install 'attention-zoo[dense]'")
    tree = Tree(path, ["annotations", *splits], (".json",))
    opened, known = [], None
    for split in splits:
        name = f"annotations/instances_{split}.json"
        content = tree.json(name, MAX_JSON_BYTES)
        try:
            categories = _categories(content)
            if known is not None and categories != known:
                raise ValueError("its categories are others than those of the training images")
            known = categories
            numbers = {number: place for place, number in enumerate(categories, 1)}
            records = _records(content, numbers, tree, split, images, masks)
            opened.append(ObjectImages(path, tuple(categories.values()), records, masks=masks))
            if len(opened) > 1 and (count := opened[-1].left_out[WITHOUT_MASK]):
                raise ValueError(f"{count} objects of the test have an empty segmentation; --task detect needs none")
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    return opened


def _list(content: Any, name: str, entries: str) -> list[dict[str, Any]]:
    value = content.get(name) if isinstance(content, dict) else None
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise ValueError(f"it is not COCO: {name!r} must be a list of objects with {entries}")
    return value


def _identifier(entry: dict[str, Any], name: str, what: str) -> int:
    value = entry.get(name)
    if type(value) is not int or abs(value) > ID_LIMIT:
        raise ValueError(f"{name} of {what} must be an integer, got {value!r:.40}")
    return value


def _categories(content: Any) -> dict[int, str]:
    """Names of the categories by their ids, which ascend."""
    entries = _list(content, "categories", "id and name")
    found = {_identifier(entry, "id", "a category"): entry.get("name") for entry in entries}
    names = {number: str(found[number]) for number in sorted(found)}
    if not names or len(names) < len(entries) or not all(isinstance(name, str) and name for name in found.values()):
        raise ValueError("categories must have names, and ids that are all different")
    return names


def _records(content: Any, numbers: dict[int, int], tree: Tree, split: str, images: int, masks: bool) -> list[Record]:
    entries = _list(content, "images", "id, file_name, width and height")
    sizes, names = {}, {}
    for entry in entries:
        number = _identifier(entry, "id", "an image")
        name = check_name(entry.get("file_name"), f"file_name of image {number}")
        if number in names:
            raise ValueError(f"two images have the id {number}")
        try:
            sizes[number] = check_image_size(entry.get("height"), entry.get("width"))
        except ValueError as error:
            raise ValueError(f"image {number}: {error}") from error
        names[number] = f"{split}/{name}"
    if len({*names.values()}) < len(names):
        twice = Counter(names.values()).most_common(1)[0][0]
        raise ValueError(f"two images have the file_name of {shown(twice)}")
    missing = [name for name in names.values() if name not in tree.members]
    if missing:
        raise ValueError(
            f"{len(missing)} of its {len(names)} images are not in {split}/ ({listed(missing)}); is it another split's?"
        )
    rows: dict[int, list[list[Any]]] = {number: [] for number in names}
    for place, entry in enumerate(_list(content, "annotations", "image_id, category_id and bbox")):
        try:
            _add(rows, entry, sizes, numbers, masks)
        except ValueError as error:
            raise ValueError(f"annotation {entry.get('id', place)!r:.40}: {error}") from error
    if _are_shares(rows.values()):
        raise ValueError(
            "all boxes end within the first pixel; they are wanted in px, and look like shares of the image"
        )
    taken = list(names)[: images or None]
    return [Record(tree.members[names[number]], number, *sizes[number], rows[number]) for number in taken]


def _are_shares(rows: Iterable[list[list[Any]]]) -> bool:
    """Whether boxes reach from 0 to 1, and so are no pixels; looks no further than the first proper box."""
    furthest = 0.0
    for own in rows:
        for row in own:
            furthest = max(furthest, row[2], row[3])
            if furthest > 1:
                return False
    return furthest > 0


def _add(
    rows: dict[int, list[list[Any]]],
    entry: dict[str, Any],
    sizes: dict[int, tuple[int, int]],
    numbers: dict[int, int],
    masks: bool,
) -> None:
    image, category = _identifier(entry, "image_id", "it"), _identifier(entry, "category_id", "it")
    if image not in rows:
        raise ValueError(f"image_id {image} is none of the images")
    if category not in numbers:
        raise ValueError(f"category_id {category} is none of the categories")
    box = entry.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)) or min(box[2:]) < 0:
        raise ValueError(f"bbox must be four numbers, left, top, width and height, got {str(box)[:80]}")
    left, top, width, height = box
    area, crowd = entry.get("area", width * height), entry.get("iscrowd", 0)
    if not _is_number(area) or area < 0 or crowd not in (0, 1):
        raise ValueError(f"area must be a number from 0 up and iscrowd 0 or 1, got {area!r:.40} and {crowd!r:.40}")
    segmentation = None
    if masks:
        segmentation = entry.get("segmentation")
        check_segmentation(segmentation, *sizes[image])
    rows[image].append([left, top, left + width, top + height, numbers[category], int(crowd), area, segmentation])


def _is_number(value: object) -> bool:
    # larger numbers are not exact in what they are turned to; NaN is not below anything
    return type(value) in (int, float) and abs(value) < 1e6**2  # type: ignore[arg-type]
