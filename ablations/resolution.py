"""How does the cost of each mechanism grow with the image?

Expect: vanilla attention quadratic in tokens, windows linear, BRA with automatic regions in between (4/3).

python runners/sweep.py --study resolution        (--dry-run prints its cells and an estimate)
"""

from ablations.study import Axes, Study

RESOLUTIONS = ((64, 64), (128, 128), (192, 192), (256, 256))

STUDY = Study(
    name="resolution",
    question="How does the cost of each mechanism grow with the image?",
    expectation="core MACs grow with tokens to the power 2 (vanilla), 1 (swin) and 4/3 (bra, automatic regions)",
    axes=(
        Axes(attn=("vanilla", "swin"), resolution=RESOLUTIONS, batch_size=(8,)),
        Axes(settings=(("topk", ("4",)), ("region_size", ("auto",))), resolution=RESOLUTIONS, batch_size=(8,)),
        Axes(settings=(("topk", ("4",)),), resolution=RESOLUTIONS, batch_size=(8,)),
    ),
    measures=("flops", "throughput", "memory"),
)
