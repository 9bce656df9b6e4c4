"""Which mechanism, in the host of the paper's comparison (BiFormer, arXiv:2303.08810, section 4.4)?

Expect: MACs within a few percent of each other at 224 px, so that accuracy is what differs. Accuracy here is the
digit probe's, not ImageNet's: this study is about the costs.

python runners/sweep.py --study attention        (--dry-run prints its cells and an estimate)
"""

from ablations.study import Axes, Study

STUDY = Study(
    name="attention",
    question="Which mechanism, in the Swin-T-like host of the paper's comparison?",
    expectation="bra (top-k 1-4-16), swin and vanilla within a few percent of MACs at 224 px, vanilla above",
    axes=(
        Axes(attn=("swin", "vanilla"), layout=("stl",), batch_size=(8,)),
        Axes(settings=(("topk", ("1-4-16-full",)),), layout=("stl",), batch_size=(8,)),
    ),
    measures=("flops", "throughput", "memory"),
)
