"""Whether the batches of trainings can be shared out to processes, and taken in parts."""

from collections.abc import Iterable

from ablations.study import Cell
from ablations.values import HEADS
from runners.cells.named import is_rival
from runners.cells.plan import as_keyword
from runners.cells.plan_training import Spelling
from runners.cells.task_data import CLASSIFY
from runners.data.image_specs import is_image_spec
from runners.train.recipes import make_recipe

NORMED = HEADS["segment"]
"""Heads with BatchNorm."""
POOLED = "upernet"
"""Head that norms what it has pooled to one place of an image."""
STRIDE_PX = 32
"""Of the last map."""


def check_shares(cells: Iterable[Cell], processes: int, spell: Spelling = as_keyword) -> None:
    """Check that each process gets images of every batch, one maybe more than another, and BatchNorm several values.

    Raises:
        ValueError: a batch is too small.
    """
    for cell in cells:
        # images of files stay in the pairs that Mixup joins
        pairs = cell.task == CLASSIFY and is_image_spec(cell.data)
        least = processes * (2 if pairs else 1)
        if processes > 1 and cell.batch_size < least:
            raise ValueError(
                f"{spell('batch_size', [str(cell.batch_size)])}: a batch cannot be shared out {'in pairs ' * pairs}to "
                f"{processes} processes; allowed: {least} or more, or fewer processes"
            )
        if cell.head in NORMED:
            _check_norms(cell, processes, spell)


def _check_norms(cell: Cell, processes: int, spell: Spelling) -> None:
    """BatchNorm of several processes is over the images of all, which so must have as many parts each."""
    batch_size, parts = cell.batch_size, make_recipe(cell.recipe, cell.training).accumulate
    given = spell("batch_size", [str(batch_size)])
    if processes > 1:
        if batch_size % processes and parts > batch_size // processes:
            raise ValueError(
                f"{given}: {processes} processes have not as many of the {parts} parts of recipe.accumulate each; "
                f"allowed: {processes * parts} or more"
            )
        return
    least = least_images(cell)
    if batch_size // parts < least:
        raise ValueError(
            f"{given}: BatchNorm of {cell.head} must have two images to learn from in each of the {parts} parts of a "
            f"step; allowed: {least * parts} or more"
        )


def least_images(cell: Cell) -> int:
    """Images that one process must learn from at a time: two where BatchNorm has one value of each, else one."""
    # some models of timm round the sides of their maps down
    two_places_px = 2 * STRIDE_PX if is_rival(cell.model) else STRIDE_PX + 1
    is_one_place = cell.head == POOLED or max(cell.height_px, cell.width_px) < two_places_px
    return 2 if cell.head in NORMED and is_one_place else 1
