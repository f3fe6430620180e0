"""What the originals' `cv2.resize` gives, bit by bit, in the crop alone."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from helpers.noise import noise
from hf_segkd.data import TrainTransform
from hf_segkd.data.resizing import INTERPOLATIONS, Box


def opencv(image, scale):
    """The first row of a picture that is resized as OpenCV does."""
    resize = INTERPOLATIONS["opencv"]
    height, width = resize.size(image.shape[1:], scale)
    return resize.image(image, scale, Box(0, 0, height, width), image.shape[1])[0, 0].tolist()


def test_opencv_takes_two_neighbors_where_an_antialiased_filter_takes_all():
    """At half size both average pairs; below it OpenCV skips pixels, by which its crops are sharper than ours."""
    row = torch.tensor([0, 8, 16, 200, 32, 40, 48, 56, 64], dtype=torch.uint8).expand(3, 9, 9)
    assert opencv(row, Fraction(1, 2)) == [4, 108, 36, 52]
    # A third: each new pixel's center is that of an old one, and its neighbors do not count.
    assert opencv(row, Fraction(1, 3)) == [8, 32, 56]


def test_opencv_weighs_with_eleven_bits():
    """By formula: centers (i + 0.5) / 1.6 - 0.5, weights in 1/2048; the border pixel repeats."""
    row = torch.tensor([10, 250, 40], dtype=torch.uint8).expand(3, 3, 3)
    expected = []
    for index in range(5):
        center = (index + 0.5) / 1.6 - 0.5
        left = min(max(int(np.floor(center)), 0), 2)
        distance = center - left if 0 <= center < 2 else 0.0
        weight = round(distance * 2048)
        low, high = int(row[0, 0, left]), int(row[0, 0, min(left + 1, 2)])
        expected.append((low * (2048 - weight) + high * weight + 1024) >> 11)
    assert opencv(row, Fraction(8, 5)) == expected


def test_opencv_rounds_after_each_direction():
    """By formula, pixel by pixel: rounded once at the end, some would be one gray level off."""
    resize, scale, image = INTERPOLATIONS["opencv"], Fraction(13, 10), noise(17, 12)["image"]
    height, width = resize.size((17, 12), scale)

    def neighbors(index, source):
        center = (index + 0.5) / 1.3 - 0.5
        low = int(np.floor(center))
        weight = round((center - low) * 2048)
        return [(min(max(low, 0), source - 1), 2048 - weight), (min(low + 1, source - 1), weight)]

    def across(channel, row, column):
        return sum(int(image[channel, row, x]) * weight for x, weight in neighbors(column, 12)) >> 4

    expected = torch.empty(3, height, width, dtype=torch.uint8)
    for channel, row, column in np.ndindex(3, height, width):
        total = sum((across(channel, y, column) * weight) >> 16 for y, weight in neighbors(row, 17))
        expected[channel, row, column] = (total + 2) >> 2
    assert torch.equal(resize.image(image, scale, Box(0, 0, height, width), 17), expected)


def test_opencv_takes_labels_at_the_floor_of_their_position():
    """Half a pixel from the image's own grid: centers would give 1, 3, 4 and 6 here."""
    resize = INTERPOLATIONS["opencv"]
    labels = torch.arange(7, dtype=torch.uint8).expand(7, 7)
    assert resize.size((7, 7), Fraction(1, 2)) == (4, 4)  # 3.5 rounds to the even neighbor, as in OpenCV
    assert resize.labels(labels, Fraction(1, 2), Box(0, 0, 1, 4)).tolist() == [[0, 2, 4, 6]]


def test_opencv_scales_are_sums_of_floats_as_in_the_originals():
    """0.7 + 1 / 10 is less than 0.8 in floating point, and labels at multiples of 4 come from one column further."""
    scales = TrainTransform((8, 8), scale_range=(0.7, 2.1), interpolation="opencv").scales
    assert [float(scale) for scale in scales] == [0.7 + index / 10.0 for index in range(15)]


@pytest.mark.parametrize("scale", ["0.5", "0.7", "1.3", "2"])
def test_opencv_crop_first_equals_crop_last(scale):
    """Only the source pixels that a crop needs are resized; a shifted grid would move the image off its labels."""
    resize, scale, example = INTERPOLATIONS["opencv"], Fraction(scale), noise(61, 97)
    whole = Box(0, 0, *resize.size((61, 97), scale))
    box = Box(whole.height // 3, whole.width // 4, 20, 27)
    rows = example["image"][:, : resize.last_row(box, 61, scale)]
    image = resize.image(example["image"], scale, whole, 61)
    labels = resize.labels(example["annotation"], scale, whole)
    part = (slice(box.top, box.top + 20), slice(box.left, box.left + 27))
    assert torch.equal(resize.image(rows, scale, box, 61), image[(slice(None), *part)])
    assert torch.equal(resize.labels(example["annotation"], scale, box), labels[part])


def test_an_unknown_interpolation_is_refused():
    """`cv2` instead of `opencv` would otherwise train with whatever comes first."""
    with pytest.raises(ValueError, match="interpolation must be one of antialias, opencv, got 'cv2'"):
        TrainTransform((8, 8), interpolation="cv2")
