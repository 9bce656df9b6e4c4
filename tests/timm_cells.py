"""The zoo's models as timm makes them, for tests: always the same weights and images."""

import timm
import torch

from attention_zoo import timm_models  # noqa: F401  (timm knows the zoo's names once this is imported)

SMALL = "zoo_stl_vanilla"


def build(name=SMALL, create=timm.create_model, **settings):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return create(name, **settings).eval()


def images(height_px=32, width_px=32, count=1):
    return torch.randn(count, 3, height_px, width_px, generator=torch.Generator().manual_seed(0))


def same_weights(first, second):
    first, second = first.state_dict(), second.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
