"""Images to look at a model with: a file, a photograph that scikit-learn ships, or a test image of a digit probe."""

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from runners.data.datasets import parse_data
from runners.data.decode import decode

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image
    from torch import Tensor

PHOTOGRAPHS = {
    "china": "china.jpg: danielbuechele, CC BY 2.0, from scikit-learn",
    "flower": "flower.jpg: vultilion, CC BY 2.0, from scikit-learn",
}
PROBES = ("digit-vote", "digit-recall")
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Shown(NamedTuple):
    """An image as people see it, (H, W, 3) in 0..1, as the model does, (1, 3, H, W), and its name with its credit."""

    pixels: "NDArray[np.float64]"
    input: "Tensor"
    name: str


class Source(NamedTuple):
    """A photograph that was read, or (None) the name of a probe, to be made at a resolution."""

    photograph: "Image | None"
    name: str

    def at(self, height_px: int, width_px: int) -> Shown:
        """Scale and crop to a resolution, the middle kept, and normalise as on ImageNet; draw a probe as it is trained.

        Raises:
            ValueError: a probe that does not fit the resolution.
        """
        import numpy as np
        import torch

        if self.photograph is None:
            # imports torch, which a wrong --image need not wait for
            from runners.data.loading import make_data

            images, _ = next(make_data(self.name, height_px, width_px, batch_size=1).eval_batches())
            # undoes the normalisation of the probes
            pixels = (images[0].permute(1, 2, 0) / 2 + 0.4).clamp(0, 1).double().numpy()
            return Shown(pixels, images, f"first test image of {self.name}")
        from PIL import ImageOps

        fitted = ImageOps.fit(self.photograph, (width_px, height_px))
        pixels = np.asarray(fitted, dtype=np.float64) / 255
        normal = (pixels - IMAGENET_MEAN) / IMAGENET_STD
        return Shown(pixels, torch.tensor(normal, dtype=torch.float32).permute(2, 0, 1)[None], self.name)


def open_image(name: str) -> Source:
    """Read an image file, or what is built in by name: china, flower, digit-vote, digit-recall.

    Raises:
        ValueError: no such file, or one that is no image or damaged.
    """
    if name.partition(":")[0] in PROBES:
        parse_data(name)
        return Source(None, name)
    if name in PHOTOGRAPHS:
        from PIL import Image
        from sklearn.datasets import load_sample_image

        return Source(Image.fromarray(load_sample_image(f"{name}.jpg")), PHOTOGRAPHS[name])
    try:
        photograph = decode(name)
    except FileNotFoundError as error:
        built_in = ", ".join((*PHOTOGRAPHS, *PROBES))
        raise ValueError(f"{name} does not exist; give an image file, or one built in: {built_in}") from error
    except ValueError as error:
        raise ValueError(f"{name} cannot be read: {error}") from error
    return Source(photograph, Path(name).name)
