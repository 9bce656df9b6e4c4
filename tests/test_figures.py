"""The gallery holds what it claims to draw, read back from its axes."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.collections import LineCollection
from PIL import Image

import attention_zoo
from attention_zoo import registry
from runners.figures import gallery as pictures
from runners.figures.__main__ import main
from runners.figures.gallery import HEIGHT, QUERY, WIDTH, connectivity_gallery, gallery_panels

ROOT = Path(__file__).parents[1]
ROW, COL = np.arange(HEIGHT)[:, None], np.arange(WIDTH)[None, :]
DOWN, ACROSS = QUERY
WINDOW = (ROW // 4 == DOWN // 4) & (COL // 4 == ACROSS // 4)
CROSS = (ROW == DOWN) | (COL == ACROSS)
PANELS = gallery_panels()
EVERYTHING = np.ones((HEIGHT, WIDTH))

# what the papers say of the panels that do not depend on content
EXPECTED = {
    "vanilla": EVERYTHING,
    "swin (1)": WINDOW,
    "swin (2)": ((ROW + 2) // 4 == (DOWN + 2) // 4) & ((COL + 2) // 4 == (ACROSS + 2) // 4),
    "axial": CROSS,
    "crisscross": CROSS,
    "maxvit (1)": WINDOW,
    "maxvit (2)": (ROW % 3 == DOWN % 3) & (COL % 4 == ACROSS % 4),
    "crossformer (1)": WINDOW,
    "crossformer (2)": (ROW % 3 == DOWN % 3) & (COL % 3 == ACROSS % 3) & (COL < 12),
    "cswin": ((COL // 2 == ACROSS // 2).astype(float) + (ROW // 2 == DOWN // 2)) / 2,
    "sliding": (abs(ROW - DOWN) <= 2) & (abs(COL - ACROSS) <= 2),
    "pvt": EVERYTHING,
    "sep (1)": WINDOW,
    "sep (2)": EVERYTHING,
}


def drawn(figure):
    """The axes of a gallery's panels by title, the photograph's included."""
    return {ax.get_title(loc="left"): ax for ax in figure.axes if ax.images}


def cells(ax):
    return np.asarray(ax.images[0].get_array())


def line(ax, label):
    """Columns and rows of the one line of that label."""
    (found,) = (line for line in ax.lines if line.get_label() == label)
    return np.asarray(found.get_xdata()), np.asarray(found.get_ydata())


@pytest.fixture(scope="module")
def gallery():
    return drawn(connectivity_gallery())


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel.title(panel.name))
def test_a_panel_shows_the_connectivity_of_its_query(gallery, panel):
    attention = pictures.untrained(panel)
    x = pictures.features(pictures.photograph())
    tokens = HEIGHT * WIDTH
    whole = attention.connectivity(x).broadcast_to(1, attention.num_heads, tokens, tokens)
    reads = whole[0, :, DOWN * WIDTH + ACROSS].double().mean(0).reshape(HEIGHT, WIDTH)
    assert np.array_equal(cells(gallery[panel.title(panel.name)]), reads.numpy())
    assert gallery[panel.title(panel.name)].get_title(loc="right") == f"{reads.mean().item():.0%}"


@pytest.mark.parametrize("title", EXPECTED)
def test_a_panel_shows_the_pattern_of_its_paper(gallery, title):
    assert np.array_equal(cells(gallery[title]), EXPECTED[title].astype(float))


def test_deformable_attention_reads_the_neighbours_of_its_points(gallery):
    across, down = line(gallery["dat"], "points")
    near = (abs(ROW[..., None] - down) < 1) & (abs(COL[..., None] - across) < 1)
    assert len(down) == 12
    assert np.array_equal(cells(gallery["dat"]), near.any(-1).astype(float))
    grid = torch.cartesian_prod(torch.arange(3), torch.arange(4)).numpy() * 4
    assert (abs(np.stack([down, across], 1) - grid - 1.5) > 0.2).any(1).all(), "the points have not moved"


def test_bi_level_routing_reads_four_whole_regions_and_others_for_another_query(gallery):
    regions = cells(gallery["bra"]).reshape(4, 3, 4, 4).transpose(0, 2, 1, 3).reshape(16, 12)
    assert np.isin(regions.mean(1), (0, 1)).all()
    assert regions.mean(1).sum() == 4
    (panel,) = (panel for panel in PANELS if panel.name == "bra")
    elsewhere = pictures.keys_read(pictures.untrained(panel), pictures.features(pictures.photograph()), (1, 14))
    assert not np.array_equal(elsewhere.numpy(), cells(gallery["bra"]))


def test_every_registered_mechanism_has_a_panel(gallery):
    assert {title.partition(" (")[0] for title in gallery} == {*attention_zoo.names(), "photograph"}
    assert len(gallery) == len(PANELS) + 1


def test_a_further_mechanism_gets_a_panel_of_its_own(monkeypatch):
    monkeypatch.setattr(registry, "_MECHANISMS", {name: attention_zoo.resolve(name) for name in ("axial", "vanilla")})
    monkeypatch.setitem(registry._MECHANISMS, "further", attention_zoo.resolve("axial"))
    panels = drawn(connectivity_gallery())
    assert np.array_equal(cells(panels["further"]), CROSS.astype(float))
    assert panels.keys() == {*attention_zoo.names(), "photograph"}


@pytest.mark.parametrize("query", [QUERY, (11, 0)], ids=lambda query: "{}x{}".format(*query))
def test_the_query_is_marked_where_it_is(gallery, query):
    panels = gallery if query == QUERY else drawn(connectivity_gallery(query))
    for ax in panels.values():
        across, down = line(ax, "query")
        assert (down.item(), across.item()) == query
        # pixels of an image lie between its limits, row 0 on top
        assert ax.get_xlim() == (-0.5, WIDTH - 0.5)
        assert ax.get_ylim() == (HEIGHT - 0.5, -0.5)


@pytest.mark.parametrize(
    "title, rows, columns",
    [
        ("swin (1)", [3.5, 7.5], [3.5, 7.5, 11.5]),
        ("swin (2)", [1.5, 5.5, 9.5], [1.5, 5.5, 9.5, 13.5]),
        ("crossformer (2)", [], [11.5]),
        ("maxvit (2)", [], []),
        ("cswin", [1.5, 3.5, 5.5, 7.5, 9.5], [1.5, 3.5, 5.5, 7.5, 9.5, 11.5, 13.5]),
        ("bra", [2.5, 5.5, 8.5], [3.5, 7.5, 11.5]),
        ("pvt", [3.5, 7.5], [3.5, 7.5, 11.5]),
        ("sep (2)", [3.5, 7.5], [3.5, 7.5, 11.5]),
        ("axial", [], []),
    ],
)
def test_lines_are_the_borders_of_regions(gallery, title, rows, columns):
    segments = [
        segment
        for collection in gallery[title].collections
        if isinstance(collection, LineCollection)
        for segment in np.asarray(collection.get_segments())
    ]
    assert sorted({y for (x, y), (to_x, to_y) in segments if y == to_y}) == rows
    assert sorted({x for (x, y), (to_x, to_y) in segments if x == to_x}) == columns


def test_the_gallery_is_the_same_twice_and_leaves_the_generator_alone(gallery):
    torch.manual_seed(7)
    before = torch.get_rng_state()
    again = drawn(connectivity_gallery())
    assert torch.equal(torch.get_rng_state(), before)
    assert again.keys() == gallery.keys()
    for title, ax in again.items():
        assert cells(ax).tobytes() == cells(gallery[title]).tobytes()
    assert np.array_equal(line(again["dat"], "points"), line(gallery["dat"], "points"))


def test_no_text_overlaps_another_or_leaves_the_picture():
    figure = connectivity_gallery()
    figure.canvas.draw()
    texts = [text for ax in figure.axes for text in (ax.title, ax._left_title, ax._right_title, *ax.texts)]
    boxes = [text.get_window_extent() for text in (*texts, *figure.texts) if text.get_text()]
    assert all(figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 for box in boxes)
    assert all(figure.bbox.y0 <= box.y0 and box.y1 <= figure.bbox.y1 for box in boxes)
    overlaps = [(a, b) for i, a in enumerate(boxes) for b in boxes[:i] if a.shrunk(0.9, 0.7).overlaps(b)]
    assert not overlaps


def test_the_command_writes_the_picture(tmp_path, capsys):
    out = tmp_path / "picture.png"
    assert main(["connectivity", "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    with Image.open(out) as image:
        assert image.width >= 900
    assert out.stat().st_size < 300_000


@pytest.mark.parametrize("name", ["connectivity", "pareto"])
def test_the_committed_pictures_are_small(name):
    assert (ROOT / "results" / f"{name}.png").stat().st_size < 300_000


@pytest.mark.parametrize(
    "arguments, reason",
    [
        (["circles"], "invalid choice: 'circles'"),
        ([], "required: KIND"),
        (["connectivity", "--out", "picture.xyz"], "must end in .png, .svg, .pdf"),
        (["connectivity", "--out", ""], "must end in"),
        (["connectivity", "--output", "picture.png"], "unrecognized arguments"),
        (["pareto", "--results", "nowhere", "--out", "picture.png"], "no results in nowhere: it does not exist"),
        (["pareto", "--results", "folder.png", "--out", "picture.png"], "folder.png"),
        (["connectivity", "--out", "nowhere/picture.png"], "cannot write nowhere/picture.png: No such file"),
        (["connectivity", "--out", "folder.png"], "cannot write folder.png: Is a directory"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_arguments_are_one_line(arguments, reason, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.png").mkdir()
    try:
        code = main(arguments)
    except SystemExit as exit:
        code = exit.code
    captured = capsys.readouterr()
    assert code == 2
    assert captured.out == ""
    assert captured.err.startswith("figures: error: ")
    assert captured.err.count("\n") == 1
    assert reason in captured.err
    assert [path.name for path in tmp_path.iterdir()] == ["folder.png"]


def test_the_command_line_is_read_without_heavy_imports():
    heavy = "{'torch', 'matplotlib', 'pandas', 'sklearn'}"
    program = f"import sys, runners.figures.__main__; sys.exit(bool({heavy} & {{*sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr or "a heavy import"
