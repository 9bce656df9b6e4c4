"""Which mechanism labels the pixels of street scenes best, and how many regions does bra need, in the same few minutes?

Expect: what reads far (vanilla, dat, cswin, bra with top-k 8) is ahead of what reads windows (swin, and bra with top-k
1), by a few points of mIoU; seeds differ by about one, so that neighbours cannot be told apart.

CamVid as SegNet uses it: 367 images to learn from, 101 for the test, 11 classes. Crops of 240 x 320 px of images whose
short side is 240 px times 0.75 to 1.5. A head 64 channels wide: with the default 256 it would cost 13 times what the
backbone with bra costs, and the attention is what is compared. 360 steps are eight epochs, about eight minutes on one
thread; dat takes several times as long.

python runners/sweep.py --study camvid --data segfolder:PATH        (--dry-run prints its cells and an estimate)
"""

from typing import Any

from ablations.mechanisms import bra, mechanism
from ablations.study import Study

FIELDS: dict[str, Any] = {"head.fpn_width": 64, "head.width": 64}

STUDY = Study(
    "camvid",
    bra(topk=[1, 4, 8]) + mechanism("swin", "vanilla", "cswin", "maxvit", "dat"),
    task="segment",
    head="semantic_fpn",
    data="segfolder:camvid",
    resolution=(240, 320),
    batch_size=8,
    steps=360,
    threads=1,
    measures=["flops", "accuracy"],
    **FIELDS,
)
