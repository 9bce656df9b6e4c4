"""Can small backbones find blood cells in half an hour on a laptop, and does the mechanism matter?

Expect: AP50 above 50 % for each; red and white cells are easy, platelets, 40 px of 640, are not. The mechanisms differ
by less than what the start does, a classifier that was trained on CIFAR-10.

BCCD: 205 images to learn from, 87 for the test, three classes. RetinaNet, 64 channels wide, on images of 384 x 512 px.
1,000 steps are twenty epochs, about half an hour on one thread. At the recipe's 1e-3 the loss jumps now and then.
Vanilla attention is left out: on maps of this size it would take several times as long.

The start is another cell for each mechanism, so that each has a command of its own:

python runners/sweep.py --study bccd --attn bra --data voc:PATH --init-from KEY
"""

from typing import Any

from ablations.mechanisms import mechanism
from ablations.study import Study

FIELDS: dict[str, Any] = {"head.width": 64, "recipe.lr": 3e-4}

STUDY = Study(
    "bccd",
    mechanism("bra", "swin", "cswin"),
    task="detect",
    data="voc:bccd",
    resolution=(384, 512),
    batch_size=4,
    steps=1000,
    threads=1,
    measures=["flops", "accuracy"],
    **FIELDS,
)
