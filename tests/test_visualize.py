"""Pictures of what a query reads: what is drawn is what is read, numbers are those of hand, bad input is refused."""

import io
import os
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.colors import to_rgba
from PIL import Image
from safetensors.torch import save_file

from attention_zoo import create, create_model
from attention_zoo.attention_maps import Reading, mixer_inputs, read, routes
from attention_zoo.published.places import Official
from attention_zoo.published.weights import to_official
from runners.cells.weights import load_model, save_checkpoint
from runners.pictures.draw import OUTLINE, borders, overlay, overview, stage_figure
from runners.pictures.layers import distances, entropies, kept_routes, layer_numbers, spread_queries, summary
from runners.pictures.panels import MEAN, Scene, make_panels
from runners.pictures.photos import open_image
from runners.pictures.request import evenly
from runners.visualize import main

ROOT = Path(__file__).parents[1]
CONFIG = {"topk": "2-2-3-full", "regions": 4}


def small_model(attn="bra", **config):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return create_model("small", attn=attn, num_classes=3, **config).eval()


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


def test_an_image_is_turned_as_its_camera_says_and_cropped_in_the_middle(tmp_path):
    pixels = np.zeros((20, 40, 3), np.uint8)
    pixels[:, 20:] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    shown = open_image(str(tmp_path / "turned.png")).at(32, 32)
    assert shown.pixels.shape == (32, 32, 3)
    assert shown.pixels[:12].max() < 0.1 < 0.9 < shown.pixels[20:].min()
    assert shown.input.shape == (1, 3, 32, 32)
    normal = (shown.pixels[0, 0] - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
    np.testing.assert_allclose(shown.input[0, :, 0, 0].numpy(), normal, rtol=1e-5)


RAMP = np.linspace(0, 1, 32 * 32).reshape(32, 32)
GREYS = {
    "16 bits": (RAMP * 65535).astype(np.uint16),
    "12 bits in 16": (RAMP * 4095).astype(np.uint16),
    "16 bits in 32": (RAMP * 65535).astype(np.int32),
    "32 bits": (RAMP * 2e9).astype(np.int32),
    "8 bits in 32": (RAMP * 255).astype(np.int32),
    "from 0 to 1": RAMP.astype(np.float32),
    "from 0 to 255": (RAMP * 255).astype(np.float32),
    "around 0": (RAMP * 8 - 4).astype(np.float32),
}


@pytest.mark.parametrize("suffix", [".tif", ".png"])
@pytest.mark.parametrize("name", GREYS)
def test_a_grey_ramp_stays_a_ramp(tmp_path, name, suffix):
    if suffix == ".png" and GREYS[name].dtype != np.uint16:
        pytest.skip("PNG has 16 bits at most")
    Image.fromarray(GREYS[name]).save(tmp_path / f"grey{suffix}")
    pixels = open_image(str(tmp_path / f"grey{suffix}")).at(32, 32).pixels
    np.testing.assert_allclose(pixels, np.repeat(RAMP[..., None], 3, axis=2), atol=0.004)


def test_a_grey_without_a_ramp_and_one_without_numbers(tmp_path):
    Image.fromarray(np.full((32, 32), -7.0, np.float32)).save(tmp_path / "flat.tif")
    assert open_image(str(tmp_path / "flat.tif")).at(32, 32).pixels.max() == 0
    Image.fromarray(np.full((32, 32), np.nan, np.float32)).save(tmp_path / "nan.tif")
    with pytest.raises(ValueError, match=r"nan\.tif cannot be read"):
        open_image(str(tmp_path / "nan.tif"))


def test_own_checkpoints_say_what_they_are(tmp_path):
    source = small_model(**CONFIG)
    save_checkpoint(tmp_path / "own.pt", source, "small", attn="bra", **CONFIG)
    model, label = load_model(str(tmp_path / "own.pt"))
    assert label == "small, bra, topk=2-2-3-full, regions=4 (weights of own.pt)"
    assert not model.training
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model(images), source(images))
    torch.save({"state_dict": source.state_dict()}, tmp_path / "plain.pth")
    again, _ = load_model(str(tmp_path / "plain.pth"), arch="small", config=CONFIG)
    with torch.no_grad():
        torch.testing.assert_close(again(images), source(images))


def test_checkpoints_of_published_models_have_the_official_names(tmp_path):
    source = create_model("biformer_tiny", num_classes=2)
    state = to_official(source, Official("models.BiFormer"))
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, tmp_path / "model.safetensors")
    model, label = load_model(str(tmp_path / "model.safetensors"), arch="biformer_tiny")
    assert label == "biformer_tiny (weights of model.safetensors)"
    assert all(torch.equal(tensor, source.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_a_checkpoint_imports_no_module_unless_that_is_asked_for(tmp_path):
    save_checkpoint(tmp_path / "mine.pth", small_model("swin"), "small", attn="attention_zoo.mechanisms.swin:Swin")
    with pytest.raises(ValueError, match=r"attn=attention_zoo\.mechanisms\.swin:Swin"):
        load_model(str(tmp_path / "mine.pth"))
    assert "Swin" in load_model(str(tmp_path / "mine.pth"), attn="attention_zoo.mechanisms.swin:Swin").label


def test_a_field_of_a_mechanism_may_be_called_like_an_argument(tmp_path):
    save_checkpoint(tmp_path / "own.pth", small_model(), "small", attn="bra", path="a", model=1, arch="b")
    assert torch.load(tmp_path / "own.pth", weights_only=True)["attention_zoo"]["config"] == {
        "path": "a",
        "model": 1,
        "arch": "b",
    }


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(tmp_path, monkeypatch):
    path = tmp_path / "own.pth"
    save_checkpoint(path, small_model(), "small", attn="bra")
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"cannot write .*own.pth/other.pth"):
        save_checkpoint(path / "other.pth", small_model(), "small", attn="bra")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(ValueError, match=r"own.pth: No space left"):
        save_checkpoint(path, small_model("swin"), "small", attn="swin")
    assert path.read_bytes() == before and [found.name for found in tmp_path.iterdir()] == ["own.pth"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    save_checkpoint(folder / "bra.pth", small_model(), "small", attn="bra")
    torch.save(small_model("swin").state_dict(), folder / "swin.pth")
    torch.save([1, 2], folder / "list.pth")
    (folder / "text.pth").write_text("no weights")
    (folder / "text.png").write_text("no image")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(folder / "whole.png")
    (folder / "cut.png").write_bytes((folder / "whole.png").read_bytes()[:2000])
    return folder


SMALL = ["--model", "small"]
REFUSED = {
    "no model": ([], "--model"),
    "unknown model": (
        ["--model", "biformer_tini"],
        "--model: unknown model .*did you mean 'biformer_tiny'.*small.*path",
    ),
    "unknown mechanism": ([*SMALL, "--attn", "bro"], "--model: unknown mechanism 'bro'.*did you mean 'bra'"),
    "unknown field": ([*SMALL, "--set", "top=3"], "--model: unknown field of bra 'top'.*topk"),
    "other field": ([*SMALL, "--set", "swin.window=3"], r"--set swin.window=3: the mechanism is bra, not swin"),
    "malformed setting": ([*SMALL, "--set", "topk"], "--set: 'topk' is not FIELD=VALUE"),
    "misfit": ([*SMALL, "--set", "topk=99"], "topk=99 is above the 16 regions"),
    "fixed model": (["--model", "biformer_tiny", "--attn", "swin"], "takes padding and checkpoint, not attn='swin'"),
    "arch of a name": ([*SMALL, "--arch", "stl"], "arch=stl says what a checkpoint file holds"),
    "no checkpoint": (["--model", "{}/none.pth"], "checkpoint .*none.pth cannot be read: No such file"),
    "text": (["--model", "{}/text.pth"], "checkpoint .*text.pth is refused"),
    "list": (["--model", "{}/list.pth"], "checkpoint .*list.pth holds no weights"),
    "anonymous": (["--model", "{}/swin.pth"], "swin.pth does not say what model it holds.*arch: .*biformer_tiny"),
    "other mechanism": (
        ["--model", "{}/swin.pth", "--arch", "small", "--attn", "bra"],
        "swin.pth is no checkpoint of small, bra: unknown: .*bias_table.*missing: .*lepe",
    ),
    "other model": (["--model", "{}/swin.pth", "--arch", "biformer_tiny"], "is no checkpoint of biformer_tiny"),
    "contradiction": (["--model", "{}/bra.pth", "--attn", "swin"], "holds small, bra, not attn=swin"),
    "settings of a file": (["--model", "{}/bra.pth", "--set", "topk=2"], "takes no other settings, got topk=2"),
    "no image": ([*SMALL, "--image", "{}/none.png"], "--image: .*none.png does not exist.*built in: china"),
    "no picture": ([*SMALL, "--image", "{}/text.png"], "--image: .*text.png cannot be read: no image"),
    "cut image": ([*SMALL, "--image", "{}/cut.png"], "--image: .*cut.png cannot be read: .*truncated"),
    "folder": ([*SMALL, "--image", "{}"], "--image: .* cannot be read: Is a directory"),
    "unknown option of a probe": ([*SMALL, "--image", "digit-vote:jitters=1"], "--image: unknown option 'jitters'"),
    "query outside": ([*SMALL, "--query", "10,64"], "--query 10,64 is outside the image.*64x64.*X is 0 to 63"),
    "malformed query": ([*SMALL, "--query", "10"], "--query: '10' is not Y,X"),
    "negative query": ([*SMALL, "--query=-1,3"], "--query: '-1,3' is not Y,X"),
    "stage": ([*SMALL, "--stage", "5"], "--stage 5: there are stages 1 to 4"),
    "no stage": ([*SMALL, "--stage", "0"], "--stage: '0' is no stage"),
    "block": ([*SMALL, "--block", "3"], "--block 3: there are 1 to 1 at stage 1, .*1 to 2 at stage 3"),
    "head": ([*SMALL, "--stage", "1", "--head", "1,3"], "--head 3: there are 1 to 2 at stage 1"),
    "block and head": ([*SMALL, "--block", "2", "--head", "16"], "no stage has both"),
    "resolution": ([*SMALL, "--resolution", "10"], "--resolution: '10' is not PX or HxW"),
    "out": ([*SMALL, "--out", "{}/text.png"], "--out .*text.png is a file"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_refused_in_one_line_before_work_starts(files, tmp_path, capsys, monkeypatch, case):
    arguments, message = REFUSED[case]
    monkeypatch.setattr("attention_zoo.attention_maps.mixer_inputs", None)
    arguments = [argument.replace("{}", str(files)) for argument in arguments]
    try:
        code = main(["--out", str(tmp_path / "out"), *arguments])
    except SystemExit as ended:
        code = ended.code
    said = capsys.readouterr()
    assert code == 2
    assert not said.out
    assert said.err.count("\n") == 1
    assert said.err.startswith("visualize.py: error: ")
    assert pd.Series(said.err).str.contains(message).all(), said.err
    assert not (tmp_path / "out").exists()


def test_the_script_refuses_before_it_imports_torch(tmp_path):
    command = [sys.executable, "-X", "importtime", "runners/visualize.py", "--model", "small", "--out", str(tmp_path)]
    done = subprocess.run([*command, "--image", "none.png"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "--image: none.png does not exist" in done.stderr
    assert "matplotlib" not in done.stderr
    assert " torch\n" not in done.stderr
