"""The figure `costs`: rankings of each cost, with and without the head of a dense task."""

import matplotlib
import pytest
from figure_rows import frame

from runners.figures import draw

SIZES = {"512x2048": (512, 2048), "64x64": (64, 64), "800x1280": (800, 1280)}


def measured(attention, resolution="512x2048", **values):
    height, width = SIZES[resolution]
    key = f"{attention}{resolution}{sorted(values.items())}"
    return {
        "cell_key": key,
        "attention": attention,
        "seed": 0,
        "resolution": resolution,
        "height_px": height,
        "width_px": width,
        **values,
    }


def dense(attention, head, backbone, of_head, **values):
    return measured(
        attention,
        task="segment",
        head=head,
        batch_size=64,
        data="scenes",
        gmacs=backbone + of_head,
        backbone_gmacs=backbone,
        head_gmacs=of_head,
        **values,
    )


ROWS = [
    dense("bra", "semantic_fpn", 216.0, 87.0),
    dense("bra", "upernet", 216.0, 845.0),
    dense("swin", "semantic_fpn", 97.0, 87.0),
    dense("swin", "upernet", 97.0, 845.0),
    measured("bra", gmacs=216.0, infer_latency_ms_p50=900.0, peak_infer_mib=200.0),
    measured("swin", gmacs=97.0, infer_latency_ms_p50=1000.0, peak_infer_mib=150.0),
]


def panels(figure):
    """Names from top to bottom, and what is drawn beside each as {label: x}, by the label and title of a panel."""
    found = {}
    for ax in figure.findobj(matplotlib.axes.Axes):
        names = [text.get_text() for text in ax.get_yticklabels()]
        marks = {name: {} for name in names}
        for line in ax.lines:
            if line.get_label() != "_joined":
                for x, y in zip(*line.get_data(), strict=True):
                    marks[names[round(y)]][line.get_label()] = float(x)
        found[ax.get_xlabel(), ax.get_title(loc="left")] = marks
    return found


def test_macs_are_drawn_with_each_head_and_without():
    macs = panels(draw("costs", frame(ROWS)))["MACs of the network, one image (GMAC)", "512x2048 px"]
    assert [*macs] == ["swin", "bra"]
    assert macs["swin"] == {"_": 97.0, "_semantic_fpn": 184.0, "_upernet": 942.0}
    assert macs["bra"] == {"_": 216.0, "_semantic_fpn": 303.0, "_upernet": 1061.0}


def test_each_panel_is_a_ranking_of_what_has_a_value():
    found = panels(draw("costs", frame(ROWS)))
    latency = found["latency of one image, median (ms)", "512x2048 px"]
    assert [*latency] == ["bra", "swin"] and latency["swin"] == {"_": 1000.0}
    assert [*found["peak memory of inference (MiB)", "512x2048 px"]] == ["swin", "bra"]
    assert len(found) == 3


def test_a_failure_is_a_cross_beside_its_name_and_stands_last():
    lost = measured("vanilla", gmacs=2027.0, status="timeout", latency_status="timeout", flops_status="ok")
    figure = draw("costs", frame([*ROWS, lost]))
    latency = panels(figure)["latency of one image, median (ms)", "512x2048 px"]
    assert [*latency] == ["bra", "swin", "vanilla"] and [*latency["vanilla"]] == ["_failed"]
    assert "timeout" in {text.get_text() for ax in figure.findobj(matplotlib.axes.Axes) for text in ax.texts}


def test_a_disturbed_latency_is_hollow_and_a_count_is_not():
    figure = draw("costs", frame([{**row, "disturbed": row["attention"] == "bra"} for row in ROWS]))
    hollow = {
        ax.get_xlabel(): sum(line.get_label() == "_disturbed" for line in ax.lines)
        for ax in figure.findobj(matplotlib.axes.Axes)
    }
    assert hollow == {
        "MACs of the network, one image (GMAC)": 0,
        "latency of one image, median (ms)": 1,
        "peak memory of inference (MiB)": 0,
    }


def test_two_largest_sizes_are_drawn_and_the_others_named():
    rows = [measured(name, size, gmacs=at) for size in SIZES for name, at in (("bra", 2.0), ("swin", 1.0))]
    figure = draw("costs", frame(rows))
    assert {title for _, title in panels(figure)} == {"800x1280 px", "512x2048 px"}
    assert "Not drawn: images of 64x64 px" in figure.subfigs[0].get_supxlabel()


def test_a_size_of_one_mechanism_hides_no_other():
    rows = [measured(name, "64x64", gmacs=at) for name, at in (("bra", 2.0), ("swin", 1.0))]
    figure = draw("costs", frame([*rows, *(measured("swin", size, gmacs=9.0) for size in SIZES if size != "64x64")]))
    assert [*panels(figure)] == [("MACs of the network, one image (GMAC)", "64x64 px")]
    assert "Not drawn: images of 512x2048, 800x1280 px" in figure.subfigs[0].get_supxlabel()


def test_a_head_is_disturbed_by_itself():
    rows = [
        measured(name, task="segment", head=head, batch_size=batch, disturbed=head == "upernet" and name == "bra",
                 infer_latency_ms_p50=ms)
        for name, head, batch, ms in (("bra", None, 1, 9.0), ("bra", "upernet", 8, 90.0), ("swin", None, 1, 8.0),
                                      ("swin", "upernet", 8, 80.0))
    ]  # fmt: skip
    figure = draw("costs", frame(rows))
    (ax,) = figure.findobj(matplotlib.axes.Axes)
    hollow = [line for line in ax.lines if line.get_label() == "_disturbed"]
    assert [float(line.get_xdata()[0]) for line in hollow] == [90.0]
    assert [text.get_text() for text in ax.get_yticklabels()] == ["swin", "bra"]


def test_other_precisions_are_other_lines_of_a_time_but_not_of_macs():
    rows = [
        measured("swin", precision=precision, gmacs=97.0, infer_latency_ms_p50=ms)
        for precision, ms in (("fp32", 1000.0), ("amp-bf16", 400.0))
    ]
    found = panels(draw("costs", frame([*rows, *ROWS])))
    assert [*found["latency of one image, median (ms)", "512x2048 px"]] == ["swin amp-bf16", "bra fp32", "swin fp32"]
    assert [*found["MACs of the network, one image (GMAC)", "512x2048 px"]] == ["swin", "bra"]


def test_one_mechanism_alone_is_no_ranking():
    with pytest.raises(ValueError, match="no row has a cost beside that of another"):
        draw("costs", frame([measured("swin", size, gmacs=1.0) for size in SIZES]))


def test_a_training_that_no_cost_depends_on_is_not_told():
    figure = draw("costs", frame([measured(name, gmacs=at, steps=400) for name, at in (("bra", 2.0), ("swin", 1.0))]))
    assert "400 steps" not in figure.subfigs[0].get_supxlabel()
