"""Pictures of what a query reads: what is drawn is what is read, and numbers are those of hand."""

import io
from contextlib import redirect_stdout

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.colors import to_rgba
from pictured_models import CONFIG, small_model
from PIL import Image

from attention_zoo import create
from attention_zoo.attention_maps import Reading, mixer_inputs, read, routes
from runners.cells.weights import save_checkpoint
from runners.pictures.draw import OUTLINE, borders, overlay, overview, stage_figure
from runners.pictures.layers import distances, entropies, kept_routes, layer_numbers, spread_queries, summary
from runners.pictures.panels import MEAN, Scene, make_panels
from runners.pictures.photos import open_image
from runners.pictures.request import evenly
from runners.visualize import main


def scene(attn="bra", query=(20, 70), **config):
    model, image = small_model(attn, **config), open_image("china").at(64, 96)
    return Scene(model, mixer_inputs(model, image.input), image, query, attn, "versions")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder with a checkpoint, what the command wrote for it, and what it printed."""
    folder = tmp_path_factory.mktemp("a folder")
    save_checkpoint(folder / "own.pth", small_model(**CONFIG), "small", attn="bra", **CONFIG)
    command = ["--model", folder / "own.pth", "--image", "digit-vote", "--query", "40,36", "--stage", "3"]
    with redirect_stdout(io.StringIO()) as said:
        assert main([*map(str, command), "--out", str(folder / "out")]) == 0
    return folder, said.getvalue()


def test_the_command_writes_what_it_says(run):
    folder, said = run
    written = sorted((folder / "out").iterdir())
    assert [path.name for path in written] == ["layers.csv", "overview.png", "stage3.png"]
    assert all(str(path) in said for path in written)
    for path in written[1:]:
        with Image.open(path) as picture:
            assert min(picture.size) > 300
            assert len(picture.convert("RGB").getcolors(1 << 24)) > 100
    assert "random weights" not in said


def test_the_table_has_each_head_and_the_screen_their_means(run):
    folder, said = run
    numbers = pd.read_csv(folder / "out" / "layers.csv")
    assert numbers.groupby(["stage", "block"]).size().tolist() == [2, 4, 8, 8, 16]
    assert numbers["entropy_share"].between(0, 1 + 1e-6).all()
    assert numbers["distance_px"].between(0, 64).all()
    later = numbers["stage"].eq(3) & numbers["block"].eq(2)
    assert numbers["routes_kept"].notna().equals(later)
    assert numbers.loc[later, "routes_by_chance"].tolist() == [pytest.approx(3 / 16)] * 8
    means = summary(numbers)
    assert len(means) == 5
    assert all(f"{value:.3g}" in said for value in means["distance_px"])


def test_numbers_of_each_layer_follow_from_what_its_queries_read():
    model, image = small_model(**CONFIG), open_image("flower").at(64, 64)
    inputs = mixer_inputs(model, image.input)
    numbers = layer_numbers(model, inputs).set_index(["stage", "block", "head"])
    mixer, x = model.mixers()[2][1], inputs[2][1]
    with torch.no_grad():
        reading = read(mixer, x, torch.arange(16))
    place = torch.cartesian_prod(torch.arange(4), torch.arange(4)).double()
    away = torch.cdist(place, place)
    expected = (reading.tokens[0, 2].flatten(1).double() * away).sum(-1).mean() * 16
    assert numbers.loc[(3, 2, 3), "distance_px"] == pytest.approx(expected.item(), rel=1e-5)
    earlier, later = (routes(model.mixers()[2][block], inputs[2][block])[0, 0].tolist() for block in (0, 1))
    kept = np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(earlier, later, strict=True)])
    assert numbers.loc[(3, 2), "routes_kept"].tolist() == [pytest.approx(kept)] * 8


def one_reading(weights, **more):
    weights = torch.tensor(weights, dtype=torch.float64)[None, None]
    tokens = weights.unflatten(-1, (1, -1))
    return Reading(weights, torch.zeros(0), tokens, (weights > 0).sum(-1), **more)


def test_distance_and_entropy_of_known_weights():
    reading = one_reading([[0.5, 0, 0.5], [0, 1.0, 0], [0.2, 0.2, 0.6]])
    assert distances(reading, torch.arange(3))[0, 0].tolist() == pytest.approx([1, 0, 0.6])
    entropy, share = entropies(reading)
    assert entropy[0, 0, :2].tolist() == pytest.approx([np.log(2), 0])
    assert share[0, 0, 0] == pytest.approx(1)
    assert share[0, 0, 1].isnan()  # one key: neither sharp nor indifferent
    assert 0 < share[0, 0, 2] < 1


def test_distance_to_sampled_points_is_that_of_the_points():
    points = torch.tensor([[[[0.0, 3.0], [4.0, 0.0]]]], dtype=torch.float64)
    reading = one_reading([[0.75, 0.25]], points=points)
    assert distances(reading, torch.tensor([0])).item() == pytest.approx(0.75 * 3 + 0.25 * 4)


def test_routes_are_compared_only_where_regions_are_the_same():
    def block(routed, **config):
        attention = create("bra", dim=8, num_heads=2, topk=2, **config)
        return attention, one_reading([[1.0]], regions=torch.tensor(routed)[None, None])

    found = kept_routes(block([[0, 1], [2, 3]], regions=2), block([[1, 0], [3, 0]], regions=2), 4, 4)
    assert found["routes_kept"][0, 0].tolist() == [1, 0.5]
    assert found["routes_by_chance"][0, 0].tolist() == [0.5, 0.5]
    assert kept_routes(block([[0, 1]], regions=2), block([[0, 1]], regions=4), 4, 4)["routes_kept"] is None
    assert kept_routes(None, block([[0, 1]], regions=2), 4, 4)["routes_kept"] is None


def test_queries_are_spread_over_large_maps():
    assert spread_queries(9, torch.device("cpu")).tolist() == list(range(9))
    queries = spread_queries(56 * 56, torch.device("cpu"))
    assert len(set(queries.tolist())) == 256
    assert queries.max() < 56 * 56
    assert queries.diff().max() <= 13


def test_a_stage_figure_shows_response_regions_and_query():
    shown = scene(**CONFIG)
    figure = stage_figure(shown, 3, [1, 2], [MEAN, 5])
    panels = {ax.get_gid(): ax for ax in figure.axes if ax.images}
    assert list(panels) == ["block 1, mean", "block 1, head 5", "block 2, mean", "block 2, head 5"]
    ax = panels["block 2, head 5"]
    assert ax.images[0].get_array().shape == (64, 96, 3)
    # the query lies in the token at row 1, column 4 of 16 px, and its map is 4x6
    with torch.no_grad():
        reading = read(shown.mixer(3, 2), shown.inputs[2][1], torch.tensor([1 * 6 + 4]))
    (panel,) = make_panels(shown, 3, 2, [5])
    assert panel.token == (1, 4)
    np.testing.assert_allclose(panel.response, reading.tokens[0, 4, 0].numpy())
    # regions of 1x2 tokens: three of them are routed
    assert sorted(set(panel.labels[panel.labels >= 0])) == sorted(reading.regions[0, 0, 0].tolist())
    assert (panel.labels >= 0).sum() == 6
    assert not panel.response[panel.labels < 0].any()
    assert (ax.lines[-1].get_ydata()[0], ax.lines[-1].get_xdata()[0]) == (20, 70)
    outlines = [
        c for c in ax.collections if isinstance(c, LineCollection) and tuple(c.get_colors()[0]) == to_rgba(OUTLINE)
    ]
    assert [len(c.get_segments()) for c in outlines] == [len(borders(panel.labels))]
    text = figure.texts[0].get_text().replace("\n", " ")
    assert "blocks 1, 2 of 2, head 5 of 8" in text
    assert "Outlined: routed regions" in text
    assert "Map of 4x6 tokens of 16x16 px" in text


def test_deformable_attention_shows_its_points_by_weight():
    shown = scene("dat", stride=2, kernel=3)
    (ax,) = [ax for ax in stage_figure(shown, 2, [1], [2]).axes if ax.images]
    (points,) = [c for c in ax.collections if isinstance(c, PathCollection)]
    (panel,) = make_panels(shown, 2, 1, [2])
    groups, count = panel.points.shape[:2]
    assert count == 4 * 6
    assert points.get_offsets().shape == (groups * count, 2)
    row, col = panel.points[0, 7]
    # (0, 0) in tokens is the centre of the first one, of 8 px
    assert points.get_offsets()[7].tolist() == pytest.approx([8 * col + 3.5, 8 * row + 3.5])
    sizes = points.get_sizes()[:count]
    assert (np.argsort(sizes, kind="stable") == np.argsort(panel.weights, kind="stable")).all()


def test_heads_of_stripes_have_outlines_of_their_own_and_windows_one():
    def outline(head):
        (panel,) = make_panels(scene("cswin"), 1, 1, [head])
        return panel.labels >= 0

    down, across = outline(1), outline(2)
    assert down[:, 17].all() and down.sum() == 16
    assert across[5].all() and across.sum() == 24
    assert (outline(MEAN) == down | across).all()


def test_nothing_is_outlined_where_everything_is_read():
    shown = scene("vanilla")
    assert make_panels(shown, 1, 1, [1])[0].labels.max() == -1
    assert "Outlined" not in overview(shown, [(1, 1), (4, 1)]).texts[0].get_text()


def test_an_overview_has_the_image_and_a_panel_for_each_stage():
    shown = scene(**CONFIG)
    axes = [ax for ax in overview(shown, [(1, 1), (3, 2)]).axes if ax.images]
    assert [ax.get_title() for ax in axes] == ["image", "stage 1, block 1", "stage 3, block 2"]
    np.testing.assert_allclose(axes[0].images[0].get_array(), shown.image.pixels)


def test_borders_surround_each_label():
    labels = np.array([[-1, 3, 3], [-1, 7, -1]])
    found = borders(labels)
    assert ((1, 0), (1, 1)) in found  # left of the first 3
    assert ((2, 0), (2, 1)) not in found  # between the two
    assert ((1, 1), (2, 1)) in found  # between 3 and 7
    assert ((3, 0), (3, 1)) in found  # the edge of the map
    assert len(found) == 9


def test_more_attention_is_brighter_in_grey_too():
    pixels = np.full((8, 80, 3), 0.9)
    grey = overlay(pixels, np.linspace(0, 1, 10)[None], 8) @ (0.299, 0.587, 0.114)
    steps = grey[0, ::8]
    assert (np.diff(steps) > 0).all()
    assert steps[-1] - steps[0] > 0.4


def test_the_image_may_end_after_the_map():
    assert overlay(np.zeros((9, 10, 3)), np.ones((2, 2)), 4).shape == (9, 10, 3)
    assert overlay(np.zeros((7, 5, 3)), np.ones((2, 2)), 4).shape == (7, 5, 3)


def test_blocks_and_heads_are_chosen_evenly():
    assert evenly(3, 4) == (1, 2, 3)
    assert evenly(18, 4) == (1, 7, 12, 18)
