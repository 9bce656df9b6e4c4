"""What does the top-k curve look like when tiles no longer fall on region and window borders?

`digit-vote:jitter=3` shifts the tile grid of each image by up to 3 px in y and x, so that a tile straddles regions.
It needs more than the default 400 steps; the recipe is the default one, for six times as many.

Expect: vanilla and top-k 8 learn it, top-k 1 does not; small top-k loses more than on the aligned grid.

python runners/sweep.py --study digit_vote_jitter        (--dry-run prints its cells and an estimate)
"""

from ablations.mechanisms import bra, vanilla
from ablations.study import Study

STUDY = Study(
    "digit_vote_jitter",
    bra(topk=[1, 4, 8, 16]) + vanilla(),
    data="digit-vote:jitter=3",
    steps=2500,
    measures=["accuracy"],
)
