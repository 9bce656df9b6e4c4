"""Pictures of predictions and figures of scores: what they show, that it can be read, and how they are written."""

import itertools

import numpy as np
import pytest
import torch
from PIL import Image
from test_dense_detection import Oracle, Photos, ellipses, objects
from test_dense_segmentation import Pictures, Pixelwise

from runners.dense.losses import IGNORE
from runners.dense.pictures.board import ink_on
from runners.dense.pictures.colours import (
    _VISIONS,
    FIRST,
    _oklab,
    class_colours,
    occurring,
    paint_classes,
    paint_masks,
    rgb,
)
from runners.dense.pictures.predictions import (
    MOST_BOXES,
    BoxPicture,
    MapPicture,
    Objects,
    _map_picture,
    draw_boxes,
    draw_maps,
    save_predictions,
)
from runners.dense.pictures.score_figures import MOST_CLASSES, OTHERS, draw_confusion, draw_curves

CPU = torch.device("cpu")
GREY = np.full((60, 90, 3), 0.5)
NAMES = ["cat", "dog", "a name that is far too long for a label", "$x^2$"]


def texts(ax):
    return [text.get_text() for text in ax.texts]


def overlapping(boxes):
    return [pair for pair in itertools.combinations(boxes, 2) if pair[0].overlaps(pair[1])]


def labels_of(ax):
    """Names at boxes: texts that have a ground of their own."""
    return [text for text in ax.texts if text.get_bbox_patch() is not None]


@pytest.mark.parametrize(("count", "apart"), [(11, 0.07), (21, 0.05), (150, 0.01)])
def test_every_vision_tells_classes_apart(count, apart):
    """Distances in Oklab; two greys that are just told apart have about 0.02."""
    colours = np.stack([rgb(colour) for colour in class_colours(count)])
    for vision in _VISIONS:
        seen = _oklab(colours, vision)
        distance = np.linalg.norm(seen[:, None] - seen, axis=-1) + np.eye(count)
        assert distance.min() > apart
    assert class_colours(count)[: len(FIRST)] == FIRST
    assert class_colours(5) == class_colours(count)[:5]


def test_colours_never_run_out():
    many = class_colours(2000)
    assert len(many) == 2000 and len({*many}) > 300


def test_black_and_white_in_oklab():
    """Ottosson's own examples: white is (1, 0, 0), red (0.628, 0.225, 0.126)."""
    np.testing.assert_allclose(
        _oklab(np.array([[1.0, 1, 1], [1, 0, 0]])), [[1, 0, 0], [0.628, 0.225, 0.126]], atol=1e-3
    )


def test_what_is_ignored_has_no_colour_of_a_class():
    labels = np.array([[0, 1, IGNORE]] * 2)
    painted = paint_classes(np.full((2, 3, 3), 0.5), labels, 2)
    np.testing.assert_allclose(painted[0, 0], 0.38 * 0.5 + 0.62 * rgb(FIRST[0]), atol=1e-4)
    np.testing.assert_allclose(painted[0, 1], 0.38 * 0.5 + 0.62 * rgb(FIRST[1]), atol=1e-4)
    assert np.ptp(painted[0, 2]) < 1e-9 and occurring(labels) == [0, 1]


def test_the_first_mask_is_on_top():
    masks = np.array([[[1, 0, 0]], [[1, 1, 0]]], dtype=bool)
    painted = paint_masks(np.zeros((1, 3, 3)), masks, ["#FF0000", "#0000FF"])
    assert painted[0, 0].tolist() == [0.45, 0, 0] and painted[0, 1].tolist() == [0, 0, 0.45] and not painted[0, 2].any()


def test_a_map_has_the_pixels_of_its_labels():
    """Published figures count in the pixels of the file, while the model sees a resized image."""
    logits, labels = torch.zeros(3, 60, 90), torch.ones(30, 45, dtype=torch.int64)
    logits[1, :, :45] = logits[2, :, 45:] = 1
    half = _map_picture("street.png", GREY, labels, logits)
    assert half.pixels.shape == (30, 45, 3) and half.predicted.shape == (30, 45) and np.ptp(half.pixels) < 1e-6
    assert (half.predicted[:, :22] == 1).all() and (half.predicted[:, 23:] == 2).all()
    whole = _map_picture("street.png", GREY, labels.new_ones(60, 90), logits)
    assert (whole.pixels == GREY).all() and (whole.predicted[:, 45:] == 2).all()


def test_maps_have_a_key_of_what_occurs_and_say_how_much_is_right():
    truth = np.zeros((60, 90), int)
    truth[:30] = 1
    truth[:, :9] = IGNORE
    predicted = np.where(truth == 1, 1, 3)
    picture = MapPicture("street.png", GREY, truth, predicted)
    figure = draw_maps([picture, picture], NAMES, "A caption.")
    key = [text.get_text() for text in figure.legends[0].get_texts()]
    assert key == ["cat", "dog", "$x^2$", "no label"]
    assert [ax.get_title(loc="left") for ax in figure.axes[:3]] == ["image", "truth", "prediction"]
    assert texts(figure.axes[0]) == ["street.png"]
    # classes 0, 1 and 3 occur; 1 is found
    assert texts(figure.axes[2]) == ["50.0 % of pixels right, mIoU 33.3 %"]
    figure.draw_without_rendering()
    extents = [figure.legends[0].get_window_extent(), *(ax.get_window_extent() for ax in figure.axes)]
    extents += [text.get_window_extent() for ax in figure.axes for text in ax.texts] + [
        figure.texts[0].get_window_extent()
    ]
    assert not overlapping(extents)
    assert min(box.y0 for box in extents) >= 0 and min(box.x0 for box in extents) >= -1


def test_an_image_without_labels_says_so():
    nothing = np.full((60, 90), IGNORE)
    figure = draw_maps([MapPicture("dark", GREY, nothing, np.zeros((60, 90), int))], NAMES)
    assert texts(figure.axes[2]) == ["no pixel has a label"]


def crowd_of(count, seed=0):
    """Boxes on top of each other, as detectors give them."""
    generator = np.random.default_rng(seed)
    corner = generator.uniform(0, 60, (count, 2)) * (1, 0.6)
    boxes = np.concatenate((corner, corner + generator.uniform(4, 25, (count, 2))), 1).clip(0, [90, 60, 90, 60])
    return boxes, generator.integers(1, 4, count)


@pytest.mark.parametrize("count", [1, 12, 60])
def test_names_cover_no_other_name_and_stay_in_their_panel(count):
    boxes, labels = crowd_of(count)
    scores = np.linspace(0.99, 0.31, count)
    picture = BoxPicture("many", GREY, Objects(boxes, labels), Objects(boxes, labels, scores=scores))
    figure = draw_boxes([picture], NAMES)
    figure.draw_without_rendering()
    for ax in figure.axes:
        names = labels_of(ax)
        extents = [name.get_bbox_patch().get_window_extent() for name in names]
        assert extents and not overlapping(extents)
        panel = ax.get_window_extent()
        assert all(
            panel.x0 <= box.x0 and box.x1 <= panel.x1 and panel.y0 <= box.y0 and box.y1 <= panel.y1 for box in extents
        )
        drawn, note = len(ax.patches) // 2, texts(ax)[-1]
        assert drawn == (count if ax is figure.axes[0] else min(count, MOST_BOXES))
        without = drawn - len(names)
        assert (f"; {without} without a name" in note) == (without > 0)


def test_boxes_say_class_score_and_crowd():
    boxes = np.array([[5.0, 20, 40, 50], [50.0, 20, 80, 50]])
    truth = Objects(boxes, np.array([1, 2]), crowds=np.array([False, True]))
    predicted = Objects(boxes, np.array([3, 4]), scores=np.array([0.876, 0.2]))
    left, right = draw_boxes([BoxPicture("two", GREY, truth, predicted)], NAMES).axes
    assert sorted(text.get_text() for text in labels_of(left)) == ["cat", "dog (crowd)"]
    assert [text.get_text() for text in labels_of(right)] == ["a name that is far ..."]
    assert texts(left)[-1] == "two" and texts(right)[-1] == "1 object"


def test_an_image_where_nothing_is_found():
    nothing = np.zeros((0, 4)), np.zeros(0, int)
    figure = draw_boxes([BoxPicture("empty", GREY, Objects(*nothing), Objects(*nothing, scores=np.zeros(0)))], NAMES)
    assert [texts(ax) for ax in figure.axes] == [["empty"], ["0 objects"]]


def test_names_are_read_on_their_ground():
    assert [ink_on(colour) for colour in ("#FFFFFF", "#000000", "#F0E442", "#0072B2")] == [
        *("#000000", "#FFFFFF", "#000000", "#FFFFFF"),
    ]


def test_confusion_is_in_shares_of_the_true_class():
    figure = draw_confusion(np.array([[3, 1, 0], [0, 0, 0], [0, 1000, 1]]), ["a", "b", "c"], "Caption.")
    ax = figure.axes[0]
    assert np.ma.filled(ax.images[0].get_array(), -1)[:2].tolist() == [[0.75, 0.25, 0], [-1, -1, -1]]
    assert [(text.get_position(), text.get_text()) for text in ax.texts] == [
        *[((0, 0), "75"), ((1, 0), "25"), ((1, 1), "-"), ((1, 2), "100")],
    ]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a", "b", "c"]


def test_many_classes_become_the_most_frequent_and_all_others():
    counts = np.diag(np.arange(1, 151))
    counts[149, 0] = 150
    ax = draw_confusion(counts, [f"class {number}" for number in range(150)]).axes[0]
    shown = [label.get_text() for label in ax.get_yticklabels()]
    assert len(shown) == MOST_CLASSES and shown[0] == "class 121" and shown[-2:] == ["class 149", OTHERS]
    shares = ax.images[0].get_array()
    assert shares[-2, -2] == shares[-2, -1] == 0.5 and not ax.texts
    np.testing.assert_allclose(shares.sum(1), 1)


def test_curves_are_named_with_their_average_precision():
    curves = np.stack((np.ones(101), np.where(np.arange(101) < 51, 1.0, 0), np.full(101, np.nan)))
    figure = draw_curves(curves, ["a", "b", "c"])
    mean = (100 + 5100 / 101) / 2
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [f"{mean:5.1f}  mean", "100.0  a", " 50.5  b"]
    assert len(figure.axes[0].lines) == 3


def test_of_many_curves_the_best_and_the_worst_are_named():
    curves = np.linspace(0.1, 0.9, 80)[:, None] * np.ones(101)
    figure = draw_curves(curves, [f"class {number}" for number in range(80)])
    named = [text.get_text().split("  ")[-1] for text in figure.legends[0].get_texts()]
    assert named == ["mean", *(f"class {number}" for number in (79, 78, 77, 76, 75, 74, 5, 4, 3, 2, 1, 0))]
    assert len(figure.axes[0].lines) == 81


@pytest.mark.parametrize(
    ("draw", "values", "message"),
    [
        (draw_confusion, np.zeros((3, 3)), "confusion must be of 2 x 2 classes, got \\(3, 3\\)"),
        (draw_confusion, np.zeros((2, 2)), "confusion has no pixel"),
        (draw_curves, np.zeros((3, 101)), "curves must be 2 classes x 101 recalls, got \\(3, 101\\)"),
        (draw_curves, np.full((2, 101), np.nan), "curves have no class that truth has"),
    ],
)
def test_what_cannot_be_drawn_is_refused(draw, values, message):
    with pytest.raises(ValueError, match=message):
        draw(values, ["a", "b"])


def kind_and_size(path):
    with Image.open(path) as image:
        return image.format, image.size


def saved(model, data, path, task, names, **settings):
    normalised = {"mean": (0.5, 0.5, 0.5), "std": (0.2, 0.2, 0.2)}
    return save_predictions(model, data, path, task=task, class_names=names, device=CPU, **normalised, **settings)


def test_predictions_of_pixels_are_written(tmp_path):
    data = Pictures(torch.randn(5, 3, 40, 60), torch.randint(4, (5, 40, 60)))
    torch.manual_seed(0)
    path = saved(Pixelwise().train(), data, tmp_path / "predictions.png", "segment", NAMES, count=3, every=2)
    assert [file.name for file in tmp_path.iterdir()] == ["predictions.png"]
    assert kind_and_size(path)[0] == "PNG" and kind_and_size(path)[1][0] == 1380
    torch.manual_seed(0)
    again = saved(Pixelwise(), data, tmp_path / "again.png", "segment", NAMES, count=3, every=2)
    # nothing in the file follows from when it was written
    assert again.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("task", ["detect", "instance"])
def test_predictions_of_objects_are_written(task, tmp_path):
    boxes = [[0, 0, 60, 60], [30, 30, 90, 140]]
    target, output = objects(boxes, size=torch.tensor([2, 2])), objects(boxes, scores=[0.9, 0.5])
    if task == "instance":
        target["masks"], output["masks"] = ellipses(np.array(boxes)), ellipses(np.array(boxes))[:, None]
    path = saved(Oracle([output] * 2), Photos([target] * 2), tmp_path / "predictions.png", task, NAMES)
    assert kind_and_size(path)[0] == "PNG"


@pytest.mark.parametrize(("count", "every"), [(0, 1), (1, 0)])
def test_no_picture_is_refused(count, every, tmp_path):
    data = Pictures(torch.randn(5, 3, 4, 6), torch.randint(4, (5, 4, 6)))
    with pytest.raises(ValueError, match=f"count and every must be at least 1, got {count} and {every}"):
        saved(Pixelwise(), data, tmp_path / "p.png", "segment", NAMES, count=count, every=every)
    with pytest.raises(ValueError, match="there is no validation image to draw"):
        saved(Pixelwise(), Pictures(data.images[:0], data.labels[:0]), tmp_path / "p.png", "segment", NAMES)
    assert not [*tmp_path.iterdir()]
