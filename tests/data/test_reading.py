"""Reading no more of an image than its crop needs."""

import io

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from helpers.noise import noise, rows
from hf_segkd.data import SegmentationDataset, TrainTransform
from hf_segkd.data.reading import StoredImage


def stored(image: Image.Image, **options) -> dict:
    buffer = io.BytesIO()
    image.save(buffer, **options)
    return {"bytes": buffer.getvalue(), "path": None}


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA"])
@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF"])
def test_the_first_rows_are_those_of_the_whole_image(mode, form):
    """Pillow is told to stop early: what it gives up to there must be the image."""
    image = Image.fromarray(noise(150, 90)["image"].permute(1, 2, 0).numpy()).convert(mode)
    if (mode, form) == ("RGBA", "BMP"):
        pytest.skip("Pillow writes no transparent BMP that every version reads")
    whole = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    for stop in (1, 70, 149, 150):
        read = StoredImage(stored(image, format=form))
        assert read.shape == (3, 150, 90) and torch.equal(read.rows(stop), whole[:, :stop])


def test_rows_of_a_turned_png_are_those_that_are_shown():
    """The first rows of the file are then a column of the picture."""
    turned = Image.Exif()
    turned[0x0112] = 6
    image = Image.fromarray(noise(30, 40)["image"].permute(1, 2, 0).numpy())
    for number in (3, 6):
        turned[0x0112] = number
        content = stored(image, format="PNG", exif=turned)
        shown = datasets.Image().decode_example(content)
        whole = torch.from_numpy(np.array(shown)).permute(2, 0, 1)
        read = StoredImage(content)
        assert read.shape == tuple(whole.shape) and torch.equal(read.rows(12), whole[:, :12])


def test_a_png_is_decoded_no_further_than_asked():
    """It is the whole gain: damage in the last rows does not show in the first."""
    content = stored(Image.fromarray(noise(300, 400)["image"].permute(1, 2, 0).numpy() // 8), format="PNG")
    damaged = bytearray(content["bytes"])
    damaged[len(damaged) * 4 // 5 :: 7] = bytes(len(damaged[len(damaged) * 4 // 5 :: 7]))
    damaged[-12:] = content["bytes"][-12:]  # the end mark
    damaged = content | {"bytes": bytes(damaged)}
    assert torch.equal(StoredImage(damaged).rows(60), StoredImage(content).rows(60))
    with pytest.raises(OSError):
        StoredImage(damaged).rows(300)


def test_training_sees_the_same_pixels_from_encoded_and_decoded_rows():
    """Rows with a transform arrive decoded; they must not be another dataset."""
    transform = TrainTransform((24, 24))
    encoded, whole = (SegmentationDataset(x, transform, 10) for x in (rows(), rows().with_transform(lambda x: x)))
    assert isinstance(encoded.dataset[0]["image"], dict)
    for index in range(6):
        a, b = encoded[index], whole[index]
        assert torch.equal(a["pixel_values"], b["pixel_values"]) and torch.equal(a["labels"], b["labels"])
