"""What do the mechanisms cost on the large images of segmentation and detection?

Expect: vanilla attention costs a multiple of everything else, for its core grows with the square of the tokens; of the
others the head costs more than the backbone, and upernet most.

Images of 512 x 2048 px are those of the papers' tables of segmentation, 800 x 1280 px those of detection; bra has the
published regions there, 8 and 16 per side. Nothing is trained, and no data are read.

python runners/sweep.py --study dense_costs        (--dry-run prints its cells and an estimate)
"""

from ablations.mechanisms import mechanism
from ablations.study import Study

STUDY = Study(
    "dense_costs",
    mechanism("all", task="segment", head=["semantic_fpn", "upernet"], resolution=(512, 2048))
    + mechanism("all", task=["detect", "instance"], resolution=(800, 1280)),
    layout="stl",
    measures=["flops"],
)
