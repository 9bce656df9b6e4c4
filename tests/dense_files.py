"""Small data of segmentation and detection for tests: COCO, VOC and a folder of labels, of which all is known."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from image_files import picture, tar_of
from PIL import Image

WIDTH, HEIGHT = 40, 36


def rectangle(left: int, top: int, right: int, bottom: int) -> Any:
    """Mask of the pixels of a box."""
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    mask[top:bottom, left:right] = 1
    return mask


def run_lengths(mask: Any) -> list[int]:
    """Run lengths of a mask down its columns, the first of zeros, the slowest way."""
    runs, value = [0], 0
    for pixel in mask.T.reshape(-1).tolist():
        if pixel != value:
            runs.append(0)
            value = pixel
        runs[-1] += 1
    return runs


PACKED = "f44P10RV1"
"""Rows 6 to 9 of columns 4 and 5 as pycocotools packs them."""


def coco_split(split: str) -> dict[str, Any]:
    """Three images: a polygon, a crowd of run lengths and a packed mask; none; a box without area."""
    crowd = run_lengths(rectangle(20, 10, 30, 20))
    images = [{"id": 10 * n, "file_name": f"{split}_{n}.png", "width": WIDTH, "height": HEIGHT} for n in (7, 3, 5)]
    size = [HEIGHT, WIDTH]
    annotations = [
        {"id": 1, "image_id": 70, "category_id": 18, "bbox": [2, 4, 8, 6], "area": 48, "iscrowd": 0,
         "segmentation": [[2, 4, 10, 4, 10, 10, 2, 10]]},
        {"id": 2, "image_id": 70, "category_id": 3, "bbox": [20, 10, 10, 10], "area": 100, "iscrowd": 1,
         "segmentation": {"size": size, "counts": crowd}},
        {"id": 3, "image_id": 70, "category_id": 3, "bbox": [4, 6, 2, 4], "area": 8, "iscrowd": 0,
         "segmentation": {"size": size, "counts": PACKED}},
        {"id": 4, "image_id": 50, "category_id": 18, "bbox": [5, 5, 0, 7], "area": 0, "iscrowd": 0,
         "segmentation": [[5, 5, 5, 12, 5, 8]]},
        {"id": 5, "image_id": 50, "category_id": 90, "bbox": [30, 20, 10, 16], "area": 160, "iscrowd": 0,
         "segmentation": [[30, 20, 40, 20, 40, 36, 30, 36]]},
    ]  # fmt: skip
    categories = [{"id": 90, "name": "toothbrush"}, {"id": 3, "name": "car"}, {"id": 18, "name": "dog"}]
    return {"images": images, "annotations": annotations, "categories": categories}


def write_coco(root: Path, change: Callable[[dict[str, Any]], object] = lambda content: None) -> Path:
    """Write COCO's layout; `change` may spoil the training annotations."""
    (root / "annotations").mkdir(parents=True)
    for seed, split in enumerate(("train2017", "val2017")):
        content = coco_split(split)
        (root / split).mkdir()
        for number, entry in enumerate(content["images"]):
            picture(10 * seed + number, (WIDTH, HEIGHT)).save(root / split / entry["file_name"])
        if split == "train2017":
            change(content)
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return root


OBJECT = (
    "<object><name>{}</name><difficult>{}</difficult>"
    "<bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"
)


def voc_xml(*objects: tuple[object, ...]) -> str:
    """An annotation with objects of (name, difficult, xmin, ymin, xmax, ymax)."""
    size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>"
    path = "<filename>/etc/../passwd</filename>"
    return f"<annotation>{path}{size}{''.join(OBJECT.format(*entry) for entry in objects)}</annotation>"


def write_voc(root: Path, **changed: str) -> Path:
    """Write VOC's layout: images a, b, c to learn from and d for the test; `changed` are other annotations."""
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    annotations = {
        "a": voc_xml(("dog", 0, 1, 1, WIDTH, HEIGHT), ("cat", 1, 11, 12, 20, 22)),
        "b": voc_xml(("emu", 0, 5, 5, 5, 5)),
        "c": voc_xml(),
        "d": voc_xml(("cat", 0, 3, 4, 13, 24)),
        **changed,
    }
    for number, (name, text) in enumerate(annotations.items()):
        picture(number, (WIDTH, HEIGHT)).save(root / "JPEGImages" / f"{name}.png")
        (root / "Annotations" / f"{name}.xml").write_text(text)
    (root / "ImageSets/Main/train.txt").write_text("a\nb\nc\n")
    (root / "ImageSets/Main/val.txt").write_text("d 1\n")
    return root


def labels_of(number: int) -> Any:
    """Labels of an image: stripes of the classes 0, 1, 2 and of 9, which is ignored, moved by its number."""
    row = np.array([0, 1, 2, 9])[(np.arange(WIDTH) // 4 + number) % 4]
    return np.tile(row, (HEIGHT, 1)).astype(np.uint8)


def write_segfolder(root: Path, train: int = 6, val: int = 3) -> Path:
    """Write a folder of labels with three classes."""
    for split, count in (("train", train), ("val", val)):
        for kind in ("images", "annotations"):
            (root / kind / split).mkdir(parents=True)
        for number in range(count):
            seed = number + 100 * (split == "val")
            picture(seed, (WIDTH, HEIGHT)).save(root / "images" / split / f"{split}{number}.png")
            Image.fromarray(labels_of(number)).save(root / "annotations" / split / f"{split}{number}.png")
    (root / "classes.json").write_text(json.dumps({"names": ["sky", "road", "tree"], "ignore_index": 9}))
    return root


def same(left: Any, right: Any) -> bool:
    """Whether two batches hold the same bits."""
    if isinstance(left, torch.Tensor):
        return left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[name], right[name]) for name in left)
    return len(left) == len(right) and all(same(*pair) for pair in zip(left, right, strict=True))


def in_tar(folder: Path) -> Path:
    """The folder as a tar beside it."""
    return tar_of(folder, folder.parent / f"{folder.name}.tar")
