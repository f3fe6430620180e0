import sys

import numpy as np
import pytest
import torch
from PIL import Image

from hf_segkd.reports.figures import most_confused, plot_class_bars, plot_confusion, plot_curves
from hf_segkd.reports.pictures import colorize, legend, overlay, side_by_side, visible

PALETTE = ((255, 0, 0), (0, 255, 0), (0, 0, 255))


def test_each_class_gets_its_color_and_ignored_pixels_another():
    """An ignored pixel painted like a class would look like an error of the model."""
    picture = np.array(colorize(np.array([[0, 1], [2, 255]]), PALETTE, ignore_color=(9, 9, 9)))
    assert picture.reshape(4, 3).tolist() == [[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 9, 9]]
    assert np.array(colorize(np.array([[-1]]), PALETTE)).tolist() == [[[0, 0, 0]]]


def test_palette_pictures_are_colored_by_index():
    """Annotations arrive as PIL pictures, often with a palette of their own."""
    annotation = Image.fromarray(np.array([[1]], dtype=np.uint8), mode="P")
    annotation.putpalette([7, 7, 7, 8, 8, 8])
    assert colorize(annotation, PALETTE).getpixel((0, 0)) == (0, 255, 0)


def test_logits_are_not_taken_for_class_ids():
    """Floats would be truncated to some class without a word."""
    with pytest.raises(ValueError, match="argmax"):
        colorize(np.zeros((3, 4, 4), dtype=np.float32), PALETTE)


def test_overlay_blends_classes_and_leaves_ignored_pixels():
    """Darkened ignored regions would hide what was not labeled."""
    image = Image.new("RGB", (2, 1), (100, 100, 100))
    blended = np.array(overlay(image, np.array([[0, 255]]), PALETTE, alpha=0.5))[0]
    assert np.abs(blended[0].astype(int) - [177, 50, 50]).max() <= 1
    assert blended[1].tolist() == [100, 100, 100]


def test_overlay_refuses_other_sizes_and_shares():
    """Logits at an eighth of the size would raise a message about broadcasting."""
    with pytest.raises(ValueError, match="2 x 1 pixels, the labels 1 x 1"):
        overlay(Image.new("RGB", (2, 1)), np.array([[0]]), PALETTE)
    with pytest.raises(ValueError, match="alpha"):
        overlay(Image.new("RGB", (1, 1)), np.array([[0]]), PALETTE, alpha=50)


def colors(picture: Image.Image) -> set:
    return {color for _, color in picture.getcolors(maxcolors=2**24)}


@pytest.mark.parametrize("width", [40, 200, 1000])
def test_legend_shows_every_color_at_any_width(width):
    """Classes past the right edge would be cut off."""
    picture = legend(("road", "a rather long class name", "car"), PALETTE, width)
    assert set(PALETTE) <= colors(picture)


def test_side_by_side_keeps_the_palette_and_stacks_rows():
    """Smooth enlargement would invent colors that the legend does not have."""
    row = {"image": Image.new("L", (8, 6), 50), "student": colorize(np.array([[0, 1], [2, 0]]), PALETTE)}
    one, two = side_by_side([row], ("a", "b", "c"), PALETTE), side_by_side([row, row], ("a", "b", "c"), PALETTE)
    assert one.width == two.width and two.height > one.height
    cell = side_by_side([{"x": row["student"]}]).crop((8, 30, 264, 286))
    assert colors(cell) == set(PALETTE)


def test_rows_with_other_titles_are_refused():
    """A picture under the wrong title is worse than none."""
    picture = Image.new("RGB", (4, 4))
    with pytest.raises(ValueError, match="same titles"):
        side_by_side([{"image": picture}, {"student": picture}])
    with pytest.raises(ValueError, match="at least one row"):
        side_by_side([])


def test_curves_are_written_from_log_histories(tmp_path):
    """Histories mix training, evaluation and summary entries, and some runs never evaluate."""
    pytest.importorskip("matplotlib")
    history = {
        "student": [{"step": 1, "loss": 2.0}, {"step": 1, "eval_mean_iou": 0.4}, {"step": 1, "train_runtime": 3.0}],
        "distilled": [{"step": 1, "loss": 1.5}, {"step": 2, "loss": 1.0}],
    }
    plot_curves(history, tmp_path / "curves.png")
    assert Image.open(tmp_path / "curves.png").size == (1500, 600)


def test_curves_without_points_are_refused(tmp_path):
    """An empty figure in a model card looks like a finished one."""
    pytest.importorskip("matplotlib")
    with pytest.raises(ValueError, match="Nothing to draw"):
        plot_curves({"student": [{"step": 1, "train_runtime": 3.0}]}, tmp_path / "curves.png")


def test_missing_matplotlib_names_the_extra(monkeypatch, tmp_path):
    """matplotlib is optional: the message must say how to get it."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install hf-segkd\[figures\]"):
        plot_curves({"student": [{"step": 1, "loss": 1.0}]}, tmp_path / "curves.png")


@pytest.mark.parametrize(
    ("names", "shown"),
    [(("nir", "blue", "green", "red"), (3, 2, 1)), (("a", "b", "c", "d"), (0, 1, 2)), (("thermal",), (0, 0, 0))],
)
def test_bands_are_shown_as_colors_and_stretched(names, shown):
    """Twelve bits that are cut off at 255 make a white picture, and infrared as red a false one."""
    image = np.random.default_rng(0).integers(500, 1500, (20, 30, len(names)), dtype=np.uint16)
    found = np.asarray(visible(image, names))
    for channel, index in enumerate(shown):
        low, high = np.percentile(image[..., index], (2, 98))
        expected = np.clip(255 * (image[..., index] - low) / (high - low), 0, 255)
        assert np.abs(found[..., channel] - expected).max() <= 0.5 + 1e-3
    assert np.array_equal(np.asarray(visible(np.full((2, 2, 3), 7, np.uint8))), np.full((2, 2, 3), 7))


def test_a_confusion_picture_shows_the_classes_with_the_most_wrong_pixels():
    """With 171 classes it was 8858 pixels a side, took a minute, and nobody could find the mistakes in it."""
    matrix = torch.tensor([[9, 0, 0, 1], [0, 9, 2, 0], [0, 3, 9, 0], [0, 0, 0, 9]])
    shown, names = most_confused(matrix, ["a", "b", "c", "d"], limit=2)
    assert names == ["b", "c", "2 others"]
    assert shown.tolist() == [[9, 2, 0], [3, 9, 0], [0, 0, 19]]
    assert most_confused(matrix, ["a", "b", "c", "d"], limit=4)[0] is matrix


def test_pictures_of_many_classes_stay_small(tmp_path):
    """COCO-Stuff has 171 classes, ADE20K has up to 847."""
    pytest.importorskip("matplotlib")
    labels = [f"class {index}" for index in range(200)]
    plot_confusion(torch.eye(200, dtype=torch.int64), labels, tmp_path / "confusion.png")
    iou = {label: None if index == 7 else index / 200 for index, label in enumerate(labels)}
    plot_class_bars({"student": {"per_class_iou": iou, "mean_iou": 0.5}}, tmp_path / "classes.png")
    assert max(Image.open(tmp_path / "confusion.png").size) < 1900
    assert max(Image.open(tmp_path / "classes.png").size) < 2300
