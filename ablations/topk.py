"""How do accuracy and cost of BRA move with top-k?

Expect: the core's MACs are linear in k, accuracy saturates at about half of the regions, and k = all costs what
vanilla attention costs.

python runners/sweep.py --study topk        (--dry-run prints its cells and an estimate)
"""

from ablations.mechanisms import bra, vanilla
from ablations.study import Study

STUDY = Study("topk", bra(topk=[1, 4, 8, 16]) + vanilla(), seeds=3)
