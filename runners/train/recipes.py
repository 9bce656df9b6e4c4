"""The recipes by name, each field with its source."""

from dataclasses import replace
from typing import Any

from attention_zoo.config import field_names, parse_field
from attention_zoo.registry import suggest
from runners.train.recipe import PROBE, Recipe

DEIT300 = Recipe(
    epochs=300,  # main.py --epochs
    lr=5e-4,  # --lr, at a global batch of 512
    lr_batch=512,
    beta2=0.999,  # AdamW's own, --opt-betas is not set
    weight_decay=0.05,  # --weight-decay; timm leaves out norms and biases, DeiT's models their position tables
    decay_positions=False,
    schedule="epochs",
    warmup_epochs=5,  # --warmup-epochs
    warmup_lr=1e-6,  # --warmup-lr
    min_lr=1e-5,  # --min-lr; --cooldown-epochs 10 would come after epoch 300, and the training ends there
    clip_norm=None,  # --clip-grad
    smoothing=0.1,  # --smoothing
    crop="resized",
    hflip=0.5,
    color_jitter=0.4,  # --color-jitter
    auto_augment="rand-m9-mstd0.5-inc1",  # --aa
    erasing=0.25,  # --reprob, --remode pixel
    mixup=0.8,  # --mixup, --mixup-prob 1, --mixup-switch-prob 0.5
    cutmix=1.0,  # --cutmix
    repeats=3,  # --repeated-aug, of RASampler
    interpolation="bicubic",  # --train-interpolation
    eval_crop=0.875,  # resize to int(256 / 224 * size)
    drop_path=0.1,  # --drop-path; 0.15 for biformer_small
    ema=0.99996,  # --model-ema-decay; trained beside, the raw weights are what is reported
    eval_every=1,  # main.py evaluates after each epoch
)
"""As BiFormer trains on ImageNet-1K: main.py and configs/train_args.yaml of rayleizhu/BiFormer, which are DeiT's."""

SMALL300 = replace(
    DEIT300,
    lr=1e-3,
    lr_batch=None,
    warmup_epochs=10,
    crop="padded",
    eval_crop=1.0,
    repeats=1,
    clip_norm=1.0,
    ema=0.0,
)
"""For images of 32 to 64 px, such as CIFAR: DeiT's, with whole images padded and cut, a rate of 1e-3 at any batch, ten
epochs of warm-up, and clipped gradients; our choice, no paper's."""

SHORT = Recipe(
    epochs=3, lr=1e-3, beta2=0.999, decay_positions=False, smoothing=0.1, crop="padded", hflip=0.5, clip_norm=1.0
)
"""For a few epochs on small images, where strong augmentation would cost accuracy: crop and flip; our choice."""

FPN80K = Recipe(
    steps=80_000,  # runner.max_iters // gpu_multiples
    lr=2e-4,  # optimizer, at 8 x 4 images
    beta2=0.999,
    weight_decay=1e-4,
    decay_positions=False,
    schedule="cosine",  # lr_config
    warmup_share=1_000 / 80_000,  # warmup_iters
    warmup_factor=0.1,  # warmup_ratio
    final_share=1e-8,  # min_lr_ratio
    clip_norm=None,
    zoom_min=0.5,  # ade20k_sfpn.py: ratio_range, at crops of 512 px
    zoom_max=2.0,
    cat_max_ratio=0.75,
    hflip=0.5,
    photometric=True,
    eval_labels="original",
    drop_path=0.1,  # 0.15 for biformer_small
)
"""Semantic FPN on ADE20K: semantic_segmentation/configs/ade20k/sfpn.biformer_small.py of rayleizhu/BiFormer, batch 32.

There norms and biases decay too; here they do not, in any recipe.
"""

UPERNET160K = replace(
    FPN80K,
    steps=160_000,  # schedule_160k.py
    lr=6e-5,  # at 8 x 2 images
    weight_decay=0.01,
    schedule="poly",  # power 1, min_lr 0
    warmup_share=1_500 / 160_000,
    warmup_factor=1e-6,
    eval_multiple=1,  # ade20k_upernet.py: Resize, where Semantic FPN has AlignResize
    drop_path=0.3,
)
"""UPerNet on ADE20K: semantic_segmentation/configs/ade20k/upernet.biformer_small.py of rayleizhu/BiFormer, batch 16."""

RETINANET1X = Recipe(
    epochs=12,
    lr=1e-4,  # optimizer, at 8 x 2 images
    beta2=0.999,
    weight_decay=1e-4,
    decay_positions=False,
    schedule="drops",  # schedule_1x.py: step=[8, 11]
    warmup_share=500 / 87_960,  # warmup_iters of 12 epochs of 117,266 images in batches of 16
    warmup_factor=0.001,
    clip_norm=None,
    hflip=0.5,
    drop_path=0.1,  # 0.2 for biformer_small
)
"""RetinaNet 1x on COCO, batch 16: configs/coco/retinanet.1x.biformer_small.py of BiFormer's object_detection."""

MASKRCNN1X = replace(RETINANET1X, weight_decay=0.05)
"""Mask R-CNN 1x on COCO, batch 16: configs/coco/maskrcnn.1x.biformer_small.py of BiFormer's object_detection."""

DENSE_SHORT = Recipe(
    lr=1e-3,
    beta2=0.999,
    decay_positions=False,
    schedule="poly",
    warmup_share=0.05,
    warmup_factor=0.01,
    zoom_min=0.75,
    zoom_max=1.5,
    hflip=0.5,
)
"""For dense tasks in minutes, from random weights or from a small classifier; our choice, no paper's."""

CLASSIFICATION = {"probe": PROBE, "deit300": DEIT300, "small300": SMALL300, "short": SHORT}
DENSE = {
    "dense_short": DENSE_SHORT,
    "fpn80k": FPN80K,
    "upernet160k": UPERNET160K,
    "retinanet1x": RETINANET1X,
    "maskrcnn1x": MASKRCNN1X,
}
RECIPES = {**CLASSIFICATION, **DENSE}
"""By name: of images as a whole, and of the dense tasks."""


OTHER_ENDS: dict[str, dict[str, Any]] = {"zoom_min": {"zoom_max": 16.0}, "zoom_max": {"zoom_min": 1e-9}}
"""Values under which any value of a field that is part of a range can be judged alone."""


def check_recipe(name: str) -> Recipe:
    """Return a recipe by its name.

    Raises:
        ValueError: there is none of that name; the message lists them.
    """
    if name not in RECIPES:
        raise ValueError(suggest("recipe", name, list(RECIPES)))
    return RECIPES[name]


def read_field(name: str, text: str) -> Any:
    """Read a value of a field of recipes from text.

    Raises:
        ValueError: there is no such field, or the text is not of its type or range.
    """
    if name not in field_names(Recipe):
        raise ValueError(suggest("field of a recipe", name, sorted(field_names(Recipe))))
    value = parse_field(Recipe, name, text)
    replace(PROBE, **{**OTHER_ENDS.get(name, {}), name: value})
    return value


def make_recipe(name: str, changes: tuple[tuple[str, Any], ...] = ()) -> Recipe:
    """Return the recipe of a cell.

    Raises:
        ValueError: there is no such recipe or field, or values do not fit.
    """
    return replace(check_recipe(name), **dict(changes))
