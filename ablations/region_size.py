"""How many regions should BRA cut a map into?

Expect: few regions make the gathered attention dear, many make the routing dear; `auto` sits at the bottom of the
closed form (arXiv:2303.08810, eq. 9).

python runners/sweep.py --study region_size        (--dry-run prints its cells and an estimate)
"""

from ablations.mechanisms import bra
from ablations.study import Study

STUDY = Study(
    "region_size",
    bra(regions=[2, 4, 8]) + bra(region_size="auto"),
    topk=4,
    clip_topk=True,
    resolution=[64, 128],
    measures=["flops", "throughput", "memory"],
)
