"""How does the cost of each mechanism grow with the image?

Expect: core MACs grow with tokens to the power 2 (vanilla), 1 (swin) and 4/3 (bra with automatic regions).

python runners/sweep.py --study resolution        (--dry-run prints its cells and an estimate)
"""

from ablations.mechanisms import bra, mechanism
from ablations.study import Study

STUDY = Study(
    "resolution",
    mechanism("vanilla", "swin") + bra(topk=4, region_size="auto") + bra(topk=4),
    resolution=[64, 128, 192, 256],
    batch_size=8,
    measures=["flops", "throughput", "memory"],
)
