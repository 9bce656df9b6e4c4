"""Can small backbones find blood cells in ten minutes on a laptop, and does the mechanism matter?

Expect: AP50 above 50 % for each, AP above 30 %; white and red cells are easy, platelets, 20 px of 320, are not. The
mechanisms differ by less than what the start does, a classifier that was trained on CIFAR-10.

BCCD: 205 images to learn from, 87 for the test, three classes. RetinaNet, 64 channels wide, on images of 240 x 320 px.
1,000 steps are twenty epochs. Gradients are clipped, since the loss jumps now and then at this rate without it. Vanilla
attention is left out: on maps of this size it would take several times as long.

The start is another cell for each mechanism, so that each has a command of its own. The cell of CIFAR-10 must have been
trained with --save-weights into the same results folder:

python runners/sweep.py --study bccd --attn bra --data voc:PATH --init-from KEY
"""

from typing import Any

from ablations.mechanisms import mechanism
from ablations.study import Study

FIELDS: dict[str, Any] = {"head.width": 64, "recipe.clip_norm": 1.0}

STUDY = Study(
    "bccd",
    mechanism("bra", "swin", "cswin"),
    task="detect",
    data="voc:bccd",
    resolution=(240, 320),
    batch_size=4,
    steps=1000,
    threads=1,
    measures=["flops", "accuracy"],
    **FIELDS,
)
