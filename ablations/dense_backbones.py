"""How long do the mechanisms take on the large images of segmentation and detection, and how much memory?

Expect: times differ more than MACs do. Windows are read in large blocks, sampled points one by one. Vanilla attention
takes minutes where the others take seconds, but no more memory, since its scores are never stored.

One image of 512 x 2048 px, then one of 800 x 1280 px, through the backbone with a classifier on top, which costs next
to nothing. bra has the published regions there, 8 and 16 per side. Nothing is learnt, and no data are read; memory
takes a few training steps. Latency wants a quiet machine.

python runners/sweep.py --study dense_backbones        (--dry-run prints its cells and an estimate)
"""

from ablations.mechanisms import mechanism
from ablations.study import Study

STUDY = Study(
    "dense_backbones",
    mechanism("all", resolution=(512, 2048), regions=8) + mechanism("all", resolution=(800, 1280), regions=16),
    layout="stl",
    batch_size=1,
    measures=["flops", "latency", "memory"],
)
