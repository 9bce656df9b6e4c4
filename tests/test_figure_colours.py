"""Colours of the figures: one for each mechanism, told apart by everybody, in every figure the same."""

import zlib
from itertools import combinations

import matplotlib
import numpy as np
import pytest
from figure_rows import frame, growing, trained
from matplotlib.colors import to_rgb

from runners.figures import draw
from runners.figures.looks import COLOURS, OTHERS, colour_and_marker, ink, looks, luminance, short_names


def test_every_mechanism_has_a_colour_and_a_marker_that_no_other_has():
    colours, markers = zip(*COLOURS.values(), strict=True)
    assert len({*colours, *OTHERS}) == len(COLOURS) + len(OTHERS) >= 16
    assert len({*markers}) == len(COLOURS)


# what protanopes and deuteranopes see of linear RGB: Machado et al., 2009, table 1
SEEN = {
    "normal": np.eye(3),
    "deuteranope": np.array([[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]]),
    "protanope": np.array([[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]]),
}


def lab(colour, seen):
    """OKLab of a colour as it is seen, in which equal distances look equal."""
    rgb = np.array(to_rgb(colour))
    linear = SEEN[seen] @ np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    lms = [[0.4122, 0.5363, 0.0514], [0.2119, 0.6807, 0.1074], [0.0883, 0.2817, 0.6300]] @ linear.clip(0)
    return [[0.2105, 0.7936, -0.0041], [1.9780, -2.4286, 0.4506], [0.0259, 0.7828, -0.8087]] @ np.cbrt(lms)


@pytest.mark.parametrize("seen", SEEN)
def test_colours_are_told_apart_by_colour_blind_readers(seen):
    colours = [lab(colour, seen) for colour in (*(colour for colour, _ in COLOURS.values()), *OTHERS)]
    # 0.02 is just noticeable side by side
    assert min(np.linalg.norm(one - other) for one, other in combinations(colours, 2)) > 0.06


def test_a_name_can_be_read_and_a_mechanism_of_ones_own_keeps_its_colour():
    for colour in (*(colour for colour, _ in COLOURS.values()), *OTHERS):
        assert 1.05 / (luminance(ink(colour)) + 0.05) > 4.5
    mine = "mine.module:Mixer"
    assert colour_and_marker(mine)[0] == OTHERS[zlib.crc32(mine.encode()) % len(OTHERS)]
    assert looks([mine])[mine].colour == looks([mine, "yours:B", "bra", "vanilla"])[mine].colour


def test_strangers_never_share_both_colour_and_marker():
    found = looks([f"stranger{number}:A" for number in range(30)])
    assert len({(look.colour, look.marker) for look in found.values()}) == 30


def test_settings_are_shades_of_their_mechanism_from_light_to_dark():
    found = looks([*(f"bra topk={k}" for k in (16, 1, 4)), "vanilla"])
    assert [*found] == ["vanilla", "bra topk=1", "bra topk=4", "bra topk=16"]
    light = [luminance(found[f"bra topk={k}"].colour) for k in (1, 4, 16)]
    assert light == sorted(light, reverse=True) and len({*light}) == 3
    assert {look.marker for label, look in found.items() if label != "vanilla"} == {COLOURS["bra"][1]}
    assert looks(["bra topk=4", "swin"])["bra topk=4"].colour == COLOURS["bra"][0]


def test_a_legend_lists_numbers_by_their_value():
    settings = ["bra topk=16", "bra topk=4", "bra topk=1", "bra topk=8", "bra topk=4 128x128", "bra topk=4 64x64"]
    ordered = ["topk=1", "topk=4", "topk=4 64x64", "topk=4 128x128", "topk=8", "topk=16"]
    assert [*looks(settings)] == [f"bra {words}" for words in ordered]


def test_short_names_are_values_in_the_order_of_the_fields():
    names, fields = short_names(["bra topk=4", "bra topk=4 regions=2", "bra regions=2 batch 8", "swin batch 8", "swin"])
    assert names == {
        "bra topk=4": "4",
        "bra topk=4 regions=2": "4·2",
        "bra regions=2 batch 8": "-·2 batch 8",
        "swin batch 8": "swin batch 8",
        "swin": "swin",
    }
    assert fields == {"bra": ["topk", "regions"]}


def test_a_mechanism_has_one_colour_in_every_figure():
    """Of growing and trained rows, with one setting of each mechanism."""
    tables = {
        "complexity": growing(),
        "roofline": growing(),
        "pareto": [r for r in trained() if r["topk"] in (None, 4)],
    }
    tables["topk"] = trained()
    for kind, rows in tables.items():
        for ax in draw(kind, frame(rows)).findobj(matplotlib.axes.Axes):
            for line in ax.lines:
                if not line.get_label().startswith("_"):
                    assert line.get_color() == COLOURS[line.get_label().partition(" ")[0]][0], kind
