"""Attention mechanisms of vision transformers in one shared pyramid.

`create` builds a mechanism, `create_model` a pyramid around one, `names` lists what is known.
"""

from attention_zoo.base import Attention, Macs
from attention_zoo.config import AttentionConfig
from attention_zoo.layouts import LAYOUTS, Layout
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
from attention_zoo.models import create_model
from attention_zoo.registry import create, names, register, resolve

__all__ = [
    "LAYOUTS",
    "Attention",
    "AttentionConfig",
    "Layout",
    "Macs",
    "axial",
    "axial_deeplab",
    "bra",
    "create",
    "create_model",
    "crisscross",
    "crossformer",
    "cswin",
    "dat",
    "maxvit",
    "names",
    "pvt",
    "register",
    "resolve",
    "sep",
    "sliding",
    "swin",
    "vanilla",
]
