"""Small models for the tests of pictures and of checkpoints."""

import torch

from attention_zoo import create_model

CONFIG = {"topk": "2-2-3-full", "regions": 4}


def small_model(attn="bra", **config):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return create_model("small", attn=attn, num_classes=3, **config).eval()
