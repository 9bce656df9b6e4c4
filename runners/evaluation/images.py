"""The images that a model is evaluated on: `eval_set("imagefolder:PATH")` finds them, and reads one by one.

They are found, numbered and read as in training (runners/data/listing.py), so that a model meets the classes that it
was trained on in the same order.
"""

from collections.abc import Callable
from pathlib import Path

from PIL.Image import Image
from torch import Tensor
from torch.utils.data import Dataset

from runners.data.folders import open_folders
from runners.data.image_specs import FOLDER, is_image_spec, parse_image_spec
from runners.data.listing import Images, Listing

SPLITS = ("val", "validation")

Transform = Callable[[Image], Tensor]


class EvalSet(Dataset[Tensor | None]):
    """Images with `names` and `labels`, numbers of `classes`; an item is a transformed image, None if unreadable."""

    def __init__(self, images: Images, indices: list[int]) -> None:
        """Take some images, whose labels are known without reading them."""
        assert images.labels is not None
        self._images, self._indices = images, indices
        self.classes = list(images.classes)
        self.labels = [int(images.labels[index]) for index in indices]
        self.names = [images.name(index) for index in indices]
        self.transform: Transform | None = None

    def __len__(self) -> int:
        """Count the images."""
        return len(self._indices)

    def __getitem__(self, index: int) -> Tensor | None:
        """Read and transform an image; None if it cannot be read."""
        assert self.transform is not None
        try:
            image, _ = self._images.read(self._indices[index])
        except ValueError:  # it is named and counted as unread
            return None
        return self.transform(image)


def check_spec(spec: str) -> None:
    """Check that a spec names images of files and a place that exists; nothing is searched yet.

    Raises:
        ValueError: it does not.
    """
    if not is_image_spec(spec):
        raise ValueError(f"--data {spec}: give {FOLDER}:PATH, a folder of class folders, or a .tar of such a folder")
    if spec.partition(":")[0] == FOLDER and not _place(spec).exists():
        raise ValueError(f"--data {spec}: {_place(spec)} does not exist")


def eval_set(spec: str) -> EvalSet:
    """Find the images of `imagefolder:PATH`: `val` or `val.tar` in it, else PATH itself; of other data the test images.

    Raises:
        ValueError: other data than images of files, or none are there.
    """
    check_spec(spec)
    try:
        if spec.partition(":")[0] == FOLDER:
            images: Images = Listing(_place(spec))
            return EvalSet(images, list(range(len(images))))
        folders = open_folders(spec)
        if folders.val.labels is None:
            raise ValueError("its labels are known only by reading; give the data set an attribute `targets`")
        return EvalSet(folders.val, folders.val_indices.tolist())
    except ValueError as error:
        raise ValueError(f"--data {spec}: {error}") from error


def _place(spec: str) -> Path:
    named = parse_image_spec(spec)
    if named.split is not None:
        raise ValueError("split is of training; name the folder of the images alone")
    if not named.root:
        return Path(named.val)
    path = Path(named.root)
    inner = [path / name for split in SPLITS for name in (split, f"{split}.tar")]
    return next((found for found in inner if found.exists()), path)
