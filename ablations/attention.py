"""Which mechanism, in the Swin-T-like host of the comparison of BiFormer (arXiv:2303.08810, section 4.4)?

Expect: bra (top-k 1-4-16), swin and vanilla within a few percent of MACs at 224 px, vanilla above, so that accuracy is
what differs.

Accuracy here is the digit probe's, not ImageNet's: this study is about the costs.

python runners/sweep.py --study attention        (--dry-run prints its cells and an estimate)
"""

from ablations.mechanisms import bra, swin, vanilla
from ablations.study import Study

STUDY = Study(
    "attention",
    swin() + vanilla() + bra(topk="1-4-16-full"),
    layout="stl",
    batch_size=8,
    measures=["flops", "throughput", "memory"],
)
