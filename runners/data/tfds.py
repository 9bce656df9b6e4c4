"""Images of TensorFlow Datasets by number, of which timm's own reader is a stream.

Files in the format ArrayRecord are read by index, without TensorFlow: https://www.tensorflow.org/datasets/data_source.
Those in TFRecord, which was the usual format, can only be read from their beginning.
"""

import io
import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from runners.data.decode import decode
from runners.data.image_specs import ImageSpec
from runners.data.listing import shown
from runners.data.python_images import DatasetImages

FORMAT = "array_record"
FEATURES = "features.json"
MAX_FEATURES_BYTES = 1 << 22
NAME = re.compile(r"([a-z][a-z0-9_]*)(/[^/:=]+)?(:[0-9.*]+)?")
"""Of a data set, as its folder is called, its configuration and its version."""


class TfdsImages(DatasetImages):
    """Images of a data source, decoded here; labels are known as they are read."""

    def __init__(self, where: str, source: Any, keys: tuple[str, str], classes: tuple[str, ...], version: str) -> None:
        """Take a source that is open, and the names of image and label in its examples."""
        super().__init__(where, source, classes, None)
        self._keys, self._version = keys, version

    def _item(self, index: int) -> tuple[Any, Any]:
        example = self.dataset[index]
        image, label = (example[key] for key in self._keys)
        return decode(io.BytesIO(image)), label

    def identity(self) -> Iterable[bytes]:
        """Names of the classes, the number of images, name and version of the data set."""
        return *super().identity(), self._version.encode()


def open_tfds(spec: ImageSpec, split: str) -> TfdsImages:
    """Open a split of a data set of TensorFlow Datasets.

    Raises:
        ValueError: the package is not here, the data set cannot be opened, it has no such split, image or label, or its
            description names code of somebody else.
    """
    where = f"split {split!r} of {spec.name}"
    try:
        return _open(spec, split, where)
    except ImportError as error:
        raise ValueError(f"it needs a package that is not here: {error}; pip install tensorflow-datasets") from error
    except Exception as error:
        more = "" if spec.download else "; nothing is downloaded without download=on"
        raise ValueError(f"{where} cannot be opened: {' '.join(str(error).split())}{more}") from error


def _open(spec: ImageSpec, split: str, where: str) -> TfdsImages:
    name, root = spec.name.partition("/")[2], spec.root or None
    parts = NAME.fullmatch(name)
    if parts is None:
        raise ValueError(
            f"{name!r} is not NAME, NAME/CONFIGURATION or one of these with :VERSION, NAME in small letters"
        )
    _check_description(Path(root or os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")).expanduser() / parts[1])

    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=root, **({"file_format": FORMAT} if spec.download else {}))
    except tfds.core.DatasetNotFoundError as error:
        # its message goes on with the names of all data sets
        raise ValueError(str(error).splitlines()[0]) from error
    if spec.download:
        builder.download_and_prepare()
    features = dict(builder.info.features.items())
    keys = spec.input_key or "image", spec.target_key or "label"
    for key, kind in zip(keys, (tfds.features.Image, tfds.features.ClassLabel), strict=True):
        if not isinstance(features.get(key), kind):
            fitting = ", ".join(known for known, feature in features.items() if isinstance(feature, kind))
            option = "input_key" if kind is tfds.features.Image else "target_key"
            raise ValueError(f"it has no {kind.__name__} {key!r}; {option}= may be: {fitting or 'none'}")
    if split not in builder.info.splits:
        raise ValueError(f"it has no such split; it has: {', '.join(builder.info.splits) or 'none'}")
    try:
        source = builder.as_data_source(split=split, decoders={keys[0]: tfds.decode.SkipDecoding()})
    except NotImplementedError as error:
        raise ValueError(
            f"its files are not of the format {FORMAT}, which alone is read by index; write them so: "
            f"tfds build {name} --file_format={FORMAT}"
        ) from error
    return TfdsImages(where, source, keys, tuple(features[keys[1]].names), builder.info.full_name)


def _check_description(folder: Path) -> None:
    """Refuse a description of features whose classes are not the library's own: it would import what they name.

    Raises:
        ValueError: it names others, or cannot be read.
    """
    for path in sorted(folder.glob(f"**/{FEATURES}")):
        try:
            with path.open("rb") as file:
                described = json.loads(file.read(MAX_FEATURES_BYTES))
        except (OSError, ValueError, RecursionError) as error:
            raise ValueError(f"{shown(str(path))} cannot be read") from error
        for named in _classes_named(described):
            if not named.startswith("tensorflow_datasets."):
                raise ValueError(f"{shown(str(path))} names the class {shown(named)}, which is not of this library")


def _classes_named(described: Any) -> Iterator[str]:
    """Every class that a description of features names."""
    waiting = [described]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            # the library takes the older `type` where both are there
            yield from (named for key in ("pythonClassName", "type") if isinstance(named := value.get(key), str))
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
