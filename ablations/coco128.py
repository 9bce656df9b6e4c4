"""Do loss, targets and metric of instance segmentation agree, so that four images can be learnt by heart?

Expect: box AP50 above 90 % and mask AP50 above 80 % on the very images that were learnt. Another value is a mistake in
one of the three, or too few steps.

The first four images of COCO at 256 px, never flipped, 64 regions an image, no weight decay. This says
nothing of how a model does on images that it has not seen.

python runners/sweep.py --study coco128 --data coco:PATH,images=4,val_split=train2017
"""

from typing import Any

from ablations.mechanisms import bra
from ablations.study import Study

FIELDS: dict[str, Any] = {
    "head.width": 64,
    "head.box_width": 256,
    "head.rois_per_image": 64,
    "head.proposals": 200,
    "recipe.hflip": 0,
    "recipe.weight_decay": 0,
}

STUDY = Study(
    "coco128",
    bra(),
    task="instance",
    data="coco:coco128,images=4,val_split=train2017",
    resolution=256,
    batch_size=4,
    steps=300,
    threads=1,
    measures=["accuracy"],
    **FIELDS,
)
