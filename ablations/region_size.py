"""How many regions should BRA cut a map into?

Expect: few regions make the gathered attention dear, many make the routing dear; `auto` sits at the bottom of the
closed form (arXiv:2303.08810, eq. 9).

python runners/sweep.py --study region_size        (--dry-run prints its cells and an estimate)
"""

from ablations.study import Axes, Study

RESOLUTIONS = ((64, 64), (128, 128))

STUDY = Study(
    name="region_size",
    question="How many regions should BRA cut a map into?",
    expectation="cost has its minimum between few and many regions, and auto is at it",
    axes=(
        Axes(
            settings=(("topk", ("4",)), ("regions", ("2", "4", "8")), ("clip_topk", ("on",))),
            resolution=RESOLUTIONS,
        ),
        Axes(
            settings=(("topk", ("4",)), ("region_size", ("auto",)), ("clip_topk", ("on",))),
            resolution=RESOLUTIONS,
        ),
    ),
    measures=("flops", "throughput", "memory"),
)
