"""The images that a model is evaluated on: `eval_set("imagenet/folder")` finds them, and reads one by one.

A set has `names` (of the files, in order), `classes` (names of the class folders, in timm's order), `labels` (of each
image, an index into `classes`) and a `transform`; an item is the transformed image, or None where it cannot be read.
"""

import os
import tarfile
from collections.abc import Callable
from pathlib import Path

from PIL import Image
from timm.data.readers.reader_image_folder import ReaderImageFolder
from timm.data.readers.reader_image_in_tar import ReaderImageInTar
from torch import Tensor
from torch.utils.data import Dataset

PREFIX = "imagefolder:"
SPLITS = ("val", "validation")

Transform = Callable[[Image.Image], Tensor]


def check_spec(spec: str) -> Path:
    """Return the folder or tar of images that `imagefolder:PATH` names: `val` or `val.tar` in it, else PATH itself.

    Raises:
        ValueError: another kind of data, or no such folder or tar.
    """
    if not spec.startswith(PREFIX):
        raise ValueError(f"--data {spec}: give {PREFIX}PATH, a folder of class folders, or a .tar of such a folder")
    path = Path(spec.removeprefix(PREFIX))
    if not path.exists():
        raise ValueError(f"--data {spec}: no such folder or file")
    if path.is_file() and path.suffix != ".tar":
        raise ValueError(f"--data {spec}: the file is no .tar")
    inner = [path / name for split in SPLITS for name in (split, f"{split}.tar")]
    return next((found for found in inner if found.exists()), path)


class EvalSet(Dataset[Tensor | None]):
    """Images in class folders, or in a tar of such folders, found and ordered as timm does."""

    def __init__(self, reader: ReaderImageFolder | ReaderImageInTar) -> None:
        self._reader = reader
        if isinstance(reader, ReaderImageInTar):
            index, labels = reader.class_name_to_idx, reader.targets
        else:
            index, labels = reader.class_to_idx, [label for _, label in reader.samples]
        self.classes = sorted(index, key=lambda name: index[name])
        self.labels = [int(label) for label in labels]
        self.names: list[str] = reader.filenames()  # type: ignore[no-untyped-call]
        self.transform: Transform | None = None

    def __len__(self) -> int:
        """Count the images."""
        return len(self.names)

    def __getitem__(self, index: int) -> Tensor | None:
        """Read and transform an image; None if it cannot be read."""
        assert self.transform is not None
        try:
            file, _ = self._reader[index]
            with file, Image.open(file) as image:
                pixels = image.convert("RGB")
        # decoders answer a damaged file by errors of every kind, and the image is named and counted as unread
        except Exception:
            return None
        return self.transform(pixels)

    def close(self) -> None:
        """Close the tar, which timm's reader keeps open."""
        if isinstance(self._reader, ReaderImageInTar) and self._reader.tar_state.tf is not None:
            self._reader.tar_state.tf.close()
            self._reader.tar_state.reset()


def eval_set(spec: str) -> EvalSet:
    """Find the images of `imagefolder:PATH`; see `check_spec`.

    Raises:
        ValueError: there are none, the tar is damaged, or they lie in no class folders.
    """
    root = check_spec(spec)
    try:
        reader = _open(root)
    except tarfile.TarError as error:
        raise ValueError(f"--data {spec}: {root} is no whole tar: {error}") from error
    except OSError as error:
        raise ValueError(f"--data {spec}: {root} cannot be read: {error.strerror or error}") from error
    # of a folder without images, and of a tar without
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"--data {spec}: there are no images in {root} and the folders in it") from error
    found = EvalSet(reader)
    if "" in found.classes:
        first = found.names[found.labels.index(found.classes.index(""))]
        raise ValueError(f"--data {spec}: {first} lies in no class folder; a class is a folder of its images")
    return found


def _open(root: Path) -> ReaderImageFolder | ReaderImageInTar:
    path = os.fspath(root)
    if root.is_file():
        # timm's cache of a large tar's contents would be a pickle beside it
        return ReaderImageInTar(path, cache_tarinfo=False)
    return ReaderImageFolder(path)
