"""Models of segmentation, detection and instance segmentation around the zoo's backbones and timm's.

`create_features` builds a backbone, `create_dense` puts a head on it, `dense_settings` says how mechanisms are set.
"""

from attention_zoo.dense.features import Features, create_features, features_of, rival_features
from attention_zoo.dense.models import DenseMacs, DenseModel, create_dense, head_fields
from attention_zoo.dense.settings import HEADS, check_head, dense_settings

__all__ = [
    "HEADS",
    "DenseMacs",
    "DenseModel",
    "Features",
    "check_head",
    "create_dense",
    "create_features",
    "dense_settings",
    "features_of",
    "head_fields",
    "rival_features",
]
