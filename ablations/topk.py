"""How do accuracy and cost of BRA move with top-k?

Expect: the core's MACs are linear in k, accuracy saturates at about half of the regions, and k = all costs what
vanilla attention costs.

python runners/sweep.py --study topk        (--dry-run prints its cells and an estimate)
"""

from ablations.study import Axes, Study

STUDY = Study(
    name="topk",
    question="How do accuracy and cost of BRA move with top-k?",
    expectation="core MACs linear in k; accuracy saturates at about half of the regions",
    axes=(
        Axes(settings=(("topk", ("1", "4", "8", "16")),), seeds=(0, 1, 2)),
        Axes(attn=("vanilla",), seeds=(0, 1, 2)),
    ),
)
