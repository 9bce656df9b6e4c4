"""How a model is trained: plain data.

A cell names a recipe, and `--set recipe.FIELD=VALUE` changes one of its fields.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from attention_zoo.config import check_fields
from runners.data.augment import Augmentation
from runners.data.dense_augment import DenseAugmentation

FROM_TEACHER = "teacher"
"""Value of `token_labels`: the teacher of the recipe labels the places."""
ALL_STAGES = "all"
STAGES = 4
"""Of every model but timm's."""
DROPS = (8 / 12, 11 / 12)
"""Shares of a training after which `drops` divides the rate by ten: epochs 8 and 11 of a 1x schedule."""


@dataclass(frozen=True, kw_only=True)
class Recipe(Augmentation, DenseAugmentation):
    """Optimiser, learning rate, loss, augmentation and what is kept.

    Fields of `Augmentation`, for images as a whole, and of `DenseAugmentation`, for dense tasks, are part of it.

    Attributes:
        epochs: passes over the training images, where a sweep names neither epochs nor steps; none: the cell's steps.
        steps: the same in steps.
        optimizer: timm's name of it.
        lr: largest learning rate.
        lr_batch: global batch for which it is meant, others scale it linearly; none: it holds for all.
        schedule: `steps` is linear over `warmup_share` of the steps and then a cosine to `final_share` of the rate;
            `epochs` is timm's cosine scheduler, which changes the rate once in an epoch; `cosine`, `poly` (linear to 0)
            and `drops` (to a tenth after 8/12 and 11/12) go over all steps, and are multiplied by a ramp from
            `warmup_factor` over `warmup_share` of them, as mmcv's.
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
    steps: int | None = None
    optimizer: str = "adamw"
    lr: float = 1e-3
    lr_batch: int | None = None
    beta1: float = 0.9
    beta2: float = 0.99
    weight_decay: float = 0.05
    decay_positions: bool = True
    schedule: Literal["steps", "epochs", "cosine", "poly", "drops"] = "steps"
    warmup_share: float = 0.1
    warmup_factor: float = 1e-6
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
        super().__post_init__()
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
        """Learning rate of a step (from 0) of every schedule but `epochs`."""
        warmup, peak = int(self.warmup_share * steps), self.peak_lr(batch_size)
        if self.schedule != "steps":
            ramp = 1 - (1 - step / warmup) * (1 - self.warmup_factor) if step < warmup else 1.0
            return peak * ramp * self._share_at(step / steps)
        if step < warmup:
            return peak * (step + 1) / warmup
        done = (step - warmup) / max(1, steps - 1 - warmup)
        cosine = (1 + math.cos(math.pi * done)) / 2
        return peak * (self.final_share + (1 - self.final_share) * cosine)

    def _share_at(self, done: float) -> float:
        """Share of the peak when a share of the steps is done, of the schedules over all steps."""
        if self.schedule == "poly":
            return 1 - done
        if self.schedule == "drops":
            return math.prod(0.1 for part in DROPS if done >= part)
        return self.final_share + (1 - self.final_share) * (1 + math.cos(math.pi * done)) / 2

    def learning_rate_rule(self) -> str:
        """Say the learning rate of every step, and whether the batch moves it."""
        scaled = "at any batch size" if self.lr_batch is None else f"at a batch of {self.lr_batch}, linear in it"
        if self.schedule == "epochs":
            return (
                f"{self.lr:g} {scaled}, linear warm-up from {self.warmup_lr:g} over {self.warmup_epochs} epochs, "
                f"cosine to {self.min_lr:g} by epochs"
            )
        ends = {
            "poly": "linear to 0",
            "drops": f"a tenth of it after {' and '.join(f'{12 * part:g}/12' for part in DROPS)}",
        }
        return (
            f"{self.lr:g} {scaled}, linear warm-up over {self.warmup_share:g} of the steps, "
            f"{ends.get(self.schedule, f'cosine to {self.final_share:g} of it')}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return all fields."""
        return asdict(self)


RANGES = {
    **dict.fromkeys(("epochs", "steps", "lr_batch", "repeats", "accumulate"), (1, math.inf)),
    **dict.fromkeys(("lr", "warmup_lr", "min_lr", "weight_decay", "warmup_epochs"), (0, math.inf)),
    "eval_every": (0, math.inf),
    **dict.fromkeys(("mixup", "cutmix", "color_jitter", "clip_norm"), (0, math.inf)),
    **dict.fromkeys(("beta1", "beta2", "ema", "drop_path", "smoothing"), (0, 0.999999)),
    **dict.fromkeys(("hflip", "erasing", "warmup_share", "warmup_factor", "final_share", "distillation_alpha"), (0, 1)),
    "distillation_tau": (1e-3, math.inf),
    "token_weight": (0, math.inf),
    **dict.fromkeys(("scale_min", "eval_crop"), (0.01, 1)),
}
"""Smallest and largest value of each field that is a number."""

PROBE = Recipe()
"""Of the default sweep; the learning rate is decisive on the digit probes: 2e-3 makes learning a lottery."""
