"""Images too large for one pass: the estimate of memory, and windows that give the label map of the whole image."""

import logging

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from helpers.tiny import LABELS, TINY
from hf_segkd.evaluation import large_images, segmenter
from hf_segkd.evaluation.large_images import MemoryEstimate, _LiveBytes, _spans, in_windows, window_side
from hf_segkd.evaluation.segmenter import Segmenter
from hf_segkd.evaluation.settings import InferenceProtocol
from hf_segkd.loading.any_model import load_model
from hf_segkd.models import default_processor


def noise(*shape):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def mean_of_neighbors(radius):
    """From an image (3, h, w) to ids (h, w) that depend on pixels up to `radius` away."""
    return lambda x: F.avg_pool2d(x.float()[None], 2 * radius + 1, 1, radius, count_include_pad=False)[0, 0].byte()


@pytest.mark.parametrize("height, width", [(40, 50), (16, 90), (33, 16), (17, 18), (5, 64)])
def test_windows_give_what_the_whole_image_gives(height, width):
    """A pixel taken from too near a window's border, or never, would differ from its value in the whole image."""
    image, segment = noise(3, height, width), mean_of_neighbors(radius=4)
    assert torch.equal(in_windows(segment, image, side=16, margin=4), segment(image))


def test_a_margin_below_the_reach_shows():
    """The test above could not fail if windows were larger than they should be."""
    image, segment = noise(3, 40, 50), mean_of_neighbors(radius=4)
    assert not torch.equal(in_windows(segment, image, side=16, margin=3), segment(image))


@pytest.mark.parametrize("length", [1, 15, 16, 17, 24, 100, 8000])
def test_windows_cover_each_row_once(length):
    """Label maps start without content: a row that no window writes is noise."""
    spans = list(_spans(length, side=16, margin=4))
    assert [first for _, _, first, _ in spans] == [0, *(last for *_, last in spans[:-1])] and spans[-1][3] == length
    assert all(0 <= start <= first < last <= end <= length for start, end, first, last in spans)


class Chain(nn.Module):
    """Three maps of the image's size one after the other; two are alive at the same time."""

    def forward(self, x):
        for _ in range(3):
            x = x + 1
        return x


def test_estimate_counts_what_is_alive_at_the_same_time():
    """By hand: the image, which the caller holds, two maps of the chain, and the copy made while normalizing."""
    estimate = MemoryEstimate(Chain(), torch.float32, lambda model, x: model(x))
    image = 3 * 10 * 20 * 4
    assert estimate((10, 20)) == 4 * image


def test_views_are_counted_once():
    """Counted again with every slice and transpose, all images would be run in windows."""
    with _LiveBytes() as live:
        x = torch.empty(8, 8, device="meta")
        y = x[2:].T
        z = torch.empty_like(y[:1])
    assert live.peak == 4 * (64 + z.numel())


def test_estimate_leaves_the_model_as_it_is():
    """On tensors without content, its weights would be gone."""
    model = load_model(TINY, id2label=LABELS)[0]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    Segmenter(model, default_processor(model.config)).memory_estimate((64, 64))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_largest_window_within_half_the_limit_is_taken():
    """Small windows see little around a pixel and cost more; one above the limit is what was to be avoided."""
    assert window_side(lambda size: size[0] * size[1], limit=2 * 1024**2) == 1024
    assert window_side(lambda size: 1, limit=2) == 2048
    assert window_side(lambda size: 10, limit=1) == 512


@pytest.fixture
def small_limits(monkeypatch):
    """As if the tiny images of tests were large."""
    monkeypatch.setattr(segmenter, "ALWAYS_WHOLE", 64 * 64)
    monkeypatch.setattr(segmenter, "MEMORY_LIMIT", 1)
    monkeypatch.setattr(large_images, "_WINDOWS", (264,))


@pytest.fixture
def student():
    torch.manual_seed(0)
    model = load_model(TINY, id2label=LABELS)[0]
    return model, default_processor(model.config)


def test_auto_runs_large_images_in_windows_and_says_so(small_limits, student, caplog):
    """A result that differs without a word near the borders of windows could not be explained."""
    image = noise(280, 300, 3).numpy()
    auto = Segmenter(*student, InferenceProtocol(mode="auto"))
    with caplog.at_level(logging.WARNING):
        labels = auto(image)
        auto(image)
    (message,) = caplog.messages
    assert "280 x 300 pixels would take" in message and "windows of 264 pixels. --mode whole" in message
    expected = in_windows(Segmenter(*student), torch.from_numpy(image).permute(2, 0, 1), side=264)
    assert labels.dtype == np.uint8 and (labels == expected.numpy()).all()
    windows = [auto.window_side((280, 300)), auto.window_side((64, 64))]
    assert windows == [264, None]


def test_whole_insists(small_limits, student, caplog, monkeypatch):
    """Scores are defined on whole images: the protocol of an evaluation must not change with the machine's memory."""
    monkeypatch.setattr(segmenter, "in_windows", lambda *_: pytest.fail("ran in windows"))
    assert Segmenter(*student)(np.zeros((280, 300, 3), np.uint8)).shape == (280, 300)
    assert not caplog.messages and str(InferenceProtocol()) == "whole image, single scale, at label size"
    assert "windows where too large" in str(InferenceProtocol(mode="auto"))


def test_commands_that_score_stay_whole_and_predict_chooses():
    """`hf-segkd evaluate` with another default would silently report other numbers than before."""
    from hf_segkd.commands import evaluate, predict

    assert evaluate.parser().parse_args(["m", "--dataset", "d", "--output_dir", "o"]).mode == "whole"
    assert predict.parser().parse_args(["m", "a.png", "--output_dir", "o"]).mode == "auto"
    assert predict.parser().parse_args(["m", "a.png", "--output_dir", "o", "--mode", "whole"]).mode == "whole"
