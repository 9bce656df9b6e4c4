"""What is timed: models by name, ours and public ones, and the works that they do."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import nn

from attention_zoo import LAYOUTS, create_model
from benchmarks.paper_steps import paper_model
from runners.measure.rounds import STILL
from runners.train.optim import make_optimizer
from runners.train.step import train_step

NUM_CLASSES = 1000
TIMM_SWIN, TIMM_MAXVIT = "timm/swin_tiny_patch4_window7_224", "timm/maxvit_tiny_tf_224"
OUR_SWIN = "zoo/swin_tiny"
SWIN_LAYOUT = replace(
    LAYOUTS["stl"],
    name="swin_tiny",
    merging="concat_norm_linear",
    merging_bias=False,
    norm="layer",
    block_norm_eps=1e-5,
    full_stages=(),
)
OURS, OURS_OFFICIAL, PAPER = "biformer_tiny", "biformer_tiny padded as published", "paper_steps"


def build(name: str) -> nn.Module:
    """Build a model of 1000 classes.

    `biformer_tiny` and the like are ours, `stl/swin` a layout around a mechanism, `zoo/swin_tiny` Swin in a pyramid
    equal to timm's, `timm/NAME` a model of timm at its defaults, `paper_steps` BiFormer-Tiny as the paper writes it.

    Raises:
        ValueError: an unknown name.
    """
    source, _, rest = name.partition("/")
    if source == "timm":
        import timm

        model: nn.Module = timm.create_model(rest, pretrained=False)
        return model
    if name == OUR_SWIN:
        return create_model(SWIN_LAYOUT, attn="swin")
    if name == OURS_OFFICIAL:
        return create_model(OURS, padding="official")
    if name == PAPER:
        return paper_model()
    return create_model(source, attn=rest or None)


@dataclass(frozen=True)
class Work:
    """A forward pass in inference mode, or a training step: forward, cross-entropy, backward, clipping and AdamW."""

    batch: int
    training: bool = False
    side_px: int = 224

    def __str__(self) -> str:
        size = "" if self.side_px == 224 else f" at {self.side_px} px"
        return f"{'training step' if self.training else 'forward'}, batch {self.batch}{size}"

    @property
    def input_shape(self) -> tuple[int, int, int, int]:
        """Shape of the images."""
        return self.batch, 3, self.side_px, self.side_px

    def prepare(self, model: nn.Module) -> Callable[[], object]:
        """Make what runs it once on random images; the learning rate leaves the weights where they are."""
        images = torch.randn(self.input_shape)
        model.train(self.training)
        if self.training:
            labels = torch.randint(NUM_CLASSES, (self.batch,))
            optimizer = make_optimizer(model, STILL)
            return lambda: train_step(model, optimizer, images, labels)

        def infer() -> object:
            with torch.inference_mode():
                return model(images)

        return infer


FORWARD_8, FORWARD_1, TRAIN_8 = Work(8), Work(1), Work(8, training=True)
