"""Published token mixers that stand alone, without a model: what they cost, what they refuse, and their weights."""

import pytest
import torch

from attention_zoo.published.classes import counterpart
from attention_zoo.published.weights import load_official, to_official


def mixer(official, size, **ctor):
    return counterpart(official, {"ctor": ctor, "H": size[0], "W": size[1]})


@pytest.mark.parametrize(
    ("official", "ctor", "size", "macs"),
    [
        ("pvt.v1", {"dim": 64, "num_heads": 2, "sr_ratio": 2}, (28, 28), 30_908_416),
        ("pvt.v1", {"dim": 64, "num_heads": 2, "sr_ratio": 4}, (28, 28), 14_952_448),
        ("pvt.v2", {"dim": 64, "num_heads": 2, "linear": True}, (28, 28), 11_941_888),
        ("sep.gsa", {"dim": 64, "num_heads": 2, "sr_ratio": 2}, (28, 28), 30_908_416),
        ("sep.lsa", {"dim": 64, "num_heads": 2, "ws": 7}, (28, 28), 17_762_304),
        ("crisscross.CrissCrossAttention", {"in_dim": 32}, (9, 16), 313_920),
        ("axial.AxialAttention", {"dim": 64, "heads": 8}, (9, 14), 4_499_712),
        ("axial.deeplab.AxialAttention", {"in_planes": 32, "out_planes": 32, "groups": 4}, (12, 9), 366_336),
        ("sliding.rpb.NeighborhoodAttention2D", {"dim": 64, "num_heads": 2, "kernel_size": 7}, (14, 14), 4_440_576),
    ],
    ids=str,
)
def test_a_mixer_costs_what_fvcore_counts_in_the_published_code(official, ctor, size, macs):
    attention, _ = mixer(official, size, **ctor)
    assert attention.macs(*size).total == macs


def test_padded_windows_cost_what_twins_detection_code_does():
    attention, _ = mixer("sep.det_lsa", (13, 16), dim=32, num_heads=4, ws=6)
    padded, tokens = 18 * 18, 13 * 16
    assert attention.macs(13, 16).total == tokens * 32**2 + padded * (3 * 32**2 + 2 * 36 * 32)


@pytest.mark.parametrize(
    ("official", "size", "ctor", "message"),
    [
        ("sep.lsa", (8, 8), {"dim": 8, "ws": 1}, "sep.lsa refuses ws=1"),
        ("pvt.v1", (8, 8), {"dim": 8, "linear": True}, "no counterpart of linear=True"),
        ("axial.AxialAttention", (8, 8), {"dim": 8, "num_dimensions": 3}, "num_dimensions=3 has no counterpart"),
        ("sliding.NeighborhoodAttention2D", (8, 8), {"embed_dim": 8, "num_heads": 2}, "cannot be read: KeyError"),
        (
            "sliding.NeighborhoodAttention2D",
            (8, 8),
            {"embed_dim": 8, "num_heads": 2, "kernel_size": 3, "stride": 4},
            "stride",
        ),
    ],
    ids=str,
)
def test_arguments_that_a_published_mixer_refuses(official, size, ctor, message):
    with pytest.raises(ValueError, match=message):
        mixer(official, size, **ctor)


def test_weights_go_to_the_published_names_and_back():
    for official, size, ctor in (
        ("pvt.v1", (5, 6), {"dim": 8, "num_heads": 2, "sr_ratio": 2}),
        ("crisscross.CrissCrossAttention", (5, 6), {"in_dim": 24}),
        ("axial.AxialAttention", (5, 6), {"dim": 8, "heads": 2, "dim_heads": 3}),
        ("axial.deeplab.AxialAttention", (5, 6), {"in_planes": 8, "out_planes": 8, "groups": 2, "width": True}),
        ("sliding.rpb.NeighborhoodAttention2D", (7, 6), {"dim": 8, "num_heads": 2, "kernel_size": 3}),
    ):
        attention, about = mixer(official, size, **ctor)
        state, before = (
            {name: tensor.clone() for name, tensor in tensors.items()}
            for tensors in (to_official(attention, about), attention.state_dict())
        )
        with torch.no_grad():
            for parameter in attention.parameters():
                parameter.zero_()
        load_official(attention, about, state)
        assert all(torch.equal(t, before[name]) for name, t in attention.state_dict().items())
