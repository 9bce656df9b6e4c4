"""Token labelling: every place of the last map has a label too ("All Tokens Matter", arXiv:2104.10858, section 3).

Paper -> here, of one image: class logits X_cls and label y_cls, logits X_i of its N places and their labels y_i, which
are shares of classes that a strong model gives; cross-entropy H.
    eq. 3:  L_tl = 1/N sum_i H(X_i, y_i)
    eq. 4:  L = H(X_cls, y_cls) + beta L_tl,  beta = token_weight = 0.5

The labels come from a teacher that sees the same images, or from files (`runners.data.token_labels`).

Departures from the official code (zihangJiang/TokenLabeling). Its models classify patches by a second classifier, and
in evaluation add half of the largest of these logits; here the model's own classifier is applied to each place of the
last map, so the trained model is the one that was asked for, with no parameter more. Its MixToken mixes tokens after
the patch embedding; here CutMix and Mixup act on images and labels. It teaches X_cls with labels from the same files;
here, as in the paper, y_cls is the image's label. It smooths dense labels; here they are as they are.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Dense(nn.Module):
    """A model that classifies the places of its last map too: images to logits (B, C) and (B, H, W, C)."""

    def __init__(self, model: nn.Module) -> None:
        """Wrap a model, which stays as it is; any of timm's with a last map will do."""
        super().__init__()
        self.model: Any = model

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Classify images and places.

        Raises:
            ValueError: the model has no last map.
        """
        if not hasattr(self.model, "forward_features") or not hasattr(self.model, "forward_head"):
            raise ValueError(f"{type(self.model).__name__} has no forward_features and forward_head")
        features = self.model.forward_features(images)
        if not isinstance(features, Tensor) or features.dim() != 4:
            raise ValueError(f"{type(self.model).__name__} has no last map to classify place by place")
        is_nhwc = getattr(self.model, "output_fmt", "NCHW") == "NHWC"
        last = features if is_nhwc else features.permute(0, 2, 3, 1)
        batch, height, width, channels = last.shape
        # a place is a map of its own, of one token: the mean over it changes nothing
        alone = last.reshape(-1, 1, 1, channels) if is_nhwc else last.reshape(-1, channels, 1, 1)
        places = self.model.forward_head(alone).view(batch, height, width, -1)
        if isinstance(getattr(self.model, "norm", None), nn.modules.batchnorm._BatchNorm):
            # its statistics would count twice; what it gives is linear, and so is the mean over the map
            return places.mean((1, 2)), places
        return self.model.forward_head(features), places


def map_size(model: nn.Module, height_px: int, width_px: int) -> tuple[int, int]:
    """Height and width of a model's last map, for images in pixels.

    Raises:
        ValueError: it has none.
    """
    parameter = next(model.parameters())
    is_training = model.training
    with torch.no_grad():
        places = Dense(model.eval())(parameter.new_zeros(1, 3, height_px, width_px))[1]
    model.train(is_training)
    return places.shape[1], places.shape[2]


def token_loss(places: Tensor, labels: Tensor) -> Tensor:
    """Eq. 3, mean over images: logits and shares of classes of each place, (B, H, W, C)."""
    return -(labels * F.log_softmax(places, dim=-1)).sum(-1).mean()


def labels_of(taught: Tensor, height: int, width: int) -> Tensor:
    """Shares of classes for a map of another size, from a teacher's logits of its places: (B, h, w, C) -> (B, H, W, C).

    Logits are resized and then normalised, as the official code does with its files.
    """
    if taught.shape[1:3] != (height, width):
        maps = taught.permute(0, 3, 1, 2)
        resized = F.interpolate(maps, (height, width), mode="bilinear", align_corners=False, antialias=True)
        taught = resized.permute(0, 2, 3, 1)
    return torch.softmax(taught, dim=-1)
