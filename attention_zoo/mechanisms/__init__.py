"""The token mixers, one paper each. A new one is a file here and its name in the import below."""

from attention_zoo.mechanisms import (
    axial,
    axial_deeplab,
    bra,
    crisscross,
    crossformer,
    cswin,
    dat,
    maxvit,
    pvt,
    sep,
    sliding,
    swin,
    vanilla,
)

__all__ = [
    "axial",
    "axial_deeplab",
    "bra",
    "crisscross",
    "crossformer",
    "cswin",
    "dat",
    "maxvit",
    "pvt",
    "sep",
    "sliding",
    "swin",
    "vanilla",
]
