"""How a model is trained: plain data.

A cell names a recipe, and `--set recipe.FIELD=VALUE` changes one of its fields.
"""

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from attention_zoo.config import check_fields, field_names, parse_field
from attention_zoo.registry import suggest
from runners.data.augment import Augmentation

FROM_TEACHER = "teacher"
"""Value of `token_labels`: the teacher of the recipe labels the places."""
ALL_STAGES = "all"
STAGES = 4
"""Of every model but timm's."""


@dataclass(frozen=True, kw_only=True)
class Recipe(Augmentation):
    """Optimiser, learning rate, loss, augmentation and what is kept; the fields of `Augmentation` are part of it.

    Attributes:
        epochs: passes over the training images, where a sweep names neither epochs nor steps; none: the cell's steps.
        optimizer: timm's name of it.
        lr: largest learning rate.
        lr_batch: global batch for which it is meant, others scale it linearly; none: it holds for all.
        schedule: `steps` is linear over `warmup_share` of the steps and then a cosine to `final_share` of the rate;
            `epochs` is timm's cosine scheduler, which changes the rate once in an epoch.
        warmup_epochs: epochs of linear warm-up from `warmup_lr`; then a cosine to `min_lr`.
        decay_positions: whether weight decay acts on tables of positions; norms and biases it never changes.
        clip_norm: largest norm of the gradient, none for no limit.
        smoothing: label smoothing.
        drop_path: stochastic depth of the last block, linear from 0 for the first.
        ema: decay of a moving average of the weights that is trained beside them, 0 for none.
        accumulate: parts into which a step divides its batch, one after another, to need less memory.
        checkpointing: recompute the activations of each block in backward instead of keeping them.
        checkpointed_stages: the stages whose blocks are, `all`, or as in `1-2`; timm's models have all or none.
        fused: torch's fused optimiser.
        distillation: what is learned from a teacher beside the labels, its shares of classes (`soft`) or its decision
            (`hard`); see runners/train/distillation.py.
        teacher: name of the model that teaches: `biformer_tiny`, `small/swin` (layout and mechanism), `timm:NAME`.
        teacher_checkpoint: file of its weights, which may say itself what model it holds.
        distillation_alpha: share of the teacher in the loss; DeiT's --distillation-alpha.
        distillation_tau: temperature of soft distillation; DeiT's --distillation-tau.
        token_labels: labels of the places of the last map: none if empty, `teacher`, or a folder of label maps.
        token_weight: factor on their loss; beta of "All Tokens Matter", section 3.
        eval_every: epochs between evaluations on the test images in training; 0 is one after the last step alone.
    """

    epochs: int | None = None
    optimizer: str = "adamw"
    lr: float = 1e-3
    lr_batch: int | None = None
    beta1: float = 0.9
    beta2: float = 0.99
    weight_decay: float = 0.05
    decay_positions: bool = True
    schedule: Literal["steps", "epochs"] = "steps"
    warmup_share: float = 0.1
    final_share: float = 0.02
    warmup_epochs: int = 0
    warmup_lr: float = 1e-6
    min_lr: float = 1e-5
    clip_norm: float | None = 1.0
    smoothing: float = 0.0
    drop_path: float = 0.0
    ema: float = 0.0
    accumulate: int = 1
    checkpointing: bool = False
    checkpointed_stages: str = ALL_STAGES
    fused: bool = False
    distillation: Literal["none", "soft", "hard"] = "none"
    teacher: str = ""
    teacher_checkpoint: str = ""
    distillation_alpha: float = 0.5
    distillation_tau: float = 1.0
    token_labels: str = ""
    token_weight: float = 0.5
    eval_every: int = 0

    def __post_init__(self) -> None:
        """Refuse values that no training could have.

        Raises:
            ValueError: a value of another type than its field's, or outside its range.
        """
        check_fields(self)
        for name, (low, high) in RANGES.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                upper = "up" if high == math.inf else f"to {high:g}"
                raise ValueError(f"{name} must be {low:g} {upper}, got {value:g}")

        recomputed = [
            number.isdecimal() and 1 <= int(number) <= STAGES for number in self.checkpointed_stages.split("-")
        ]
        if self.checkpointed_stages != ALL_STAGES and not all(recomputed):
            raise ValueError(
                f"checkpointed_stages must be {ALL_STAGES}, or stages from 1 to {STAGES} joined by dashes, got "
                f"{self.checkpointed_stages!r}"
            )

    @property
    def recomputed_stages(self) -> list[int] | None:
        """Stages whose blocks are recomputed in backward, counted from 0; None is all of them."""
        if self.checkpointed_stages == ALL_STAGES:
            return None
        return sorted({int(number) - 1 for number in self.checkpointed_stages.split("-")})

    @property
    def has_teacher(self) -> bool:
        """Whether another model says in training what is right."""
        return self.distillation != "none" or self.token_labels == FROM_TEACHER

    @property
    def has_label_maps(self) -> bool:
        """Whether files say what is right of each place."""
        return self.token_labels not in ("", FROM_TEACHER)

    def peak_lr(self, batch_size: int) -> float:
        """Largest learning rate at a global batch size."""
        return self.lr if self.lr_batch is None else self.lr * batch_size / self.lr_batch

    def learning_rate_at(self, step: int, steps: int, batch_size: int = 1) -> float:
        """Learning rate of a step (from 0) of the schedule `steps`: linear to the peak, then a cosine to its end."""
        warmup, peak = int(self.warmup_share * steps), self.peak_lr(batch_size)
        if step < warmup:
            return peak * (step + 1) / warmup
        done = (step - warmup) / max(1, steps - 1 - warmup)
        cosine = (1 + math.cos(math.pi * done)) / 2
        return peak * (self.final_share + (1 - self.final_share) * cosine)

    def learning_rate_rule(self) -> str:
        """Say the learning rate of every step, and whether the batch moves it."""
        scaled = "at any batch size" if self.lr_batch is None else f"at a batch of {self.lr_batch}, linear in it"
        if self.schedule == "epochs":
            return (
                f"{self.lr:g} {scaled}, linear warm-up from {self.warmup_lr:g} over {self.warmup_epochs} epochs, "
                f"cosine to {self.min_lr:g} by epochs"
            )
        return (
            f"{self.lr:g} {scaled}, linear warm-up over {self.warmup_share:g} of the steps, "
            f"cosine to {self.final_share:g} of it"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return all fields."""
        return asdict(self)


RANGES = {
    **dict.fromkeys(("epochs", "lr_batch", "repeats", "accumulate"), (1, math.inf)),
    **dict.fromkeys(("lr", "warmup_lr", "min_lr", "weight_decay", "warmup_epochs"), (0, math.inf)),
    "eval_every": (0, math.inf),
    **dict.fromkeys(("mixup", "cutmix", "color_jitter", "clip_norm"), (0, math.inf)),
    **dict.fromkeys(("beta1", "beta2", "ema", "drop_path", "smoothing"), (0, 0.999999)),
    **dict.fromkeys(("hflip", "erasing", "warmup_share", "final_share", "distillation_alpha"), (0, 1)),
    "distillation_tau": (1e-3, math.inf),
    "token_weight": (0, math.inf),
    **dict.fromkeys(("scale_min", "eval_crop"), (0.01, 1)),
}
"""Smallest and largest value of each field that is a number."""

PROBE = Recipe()
"""Of the default sweep; the learning rate is decisive on the digit probes: 2e-3 makes learning a lottery."""

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

RECIPES = {"probe": PROBE, "deit300": DEIT300, "small300": SMALL300, "short": SHORT}


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
    replace(PROBE, **{name: value})
    return value


def make_recipe(name: str, changes: tuple[tuple[str, Any], ...] = ()) -> Recipe:
    """Return the recipe of a cell.

    Raises:
        ValueError: there is no such recipe or field, or values do not fit.
    """
    return replace(check_recipe(name), **dict(changes))
