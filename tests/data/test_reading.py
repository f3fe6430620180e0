"""Reading no more of an image than its crop needs."""

import io

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from helpers.noise import noise, rows
from hf_segkd.data import EvalTransform, SegmentationDataset, TrainTransform
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


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "1", "CMYK"])
@pytest.mark.parametrize("form", ["PNG", "JPEG", "TIFF"])
def test_evaluation_reads_the_bits_that_pillow_converts(mode, form):
    """Images are decoded by us since 16 bits are kept: ordinary pictures, turned ones too, must be what they were."""
    if (form == "JPEG" and mode in ("P", "RGBA", "1")) or (form == "PNG" and mode == "CMYK"):
        pytest.skip("no such file")
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, format=form, exif=exif)
    features = datasets.Features({"image": datasets.Image(mode="RGB"), "annotation": datasets.Image()})
    row = {"image": {"bytes": buffer.getvalue(), "path": None}, "annotation": Image.new("L", (12, 20))}
    table = datasets.Dataset.from_list([row], features=features).add_column("image_id", ["a"])
    expected = np.asarray(table[0]["image"])  # `datasets` with Pillow, as until then
    item = SegmentationDataset(table, EvalTransform(), num_labels=1)[0]
    assert expected.shape == (20, 12, 3) and item["pixel_values"].is_contiguous()
    assert np.array_equal(item["pixel_values"].permute(1, 2, 0).numpy(), expected)
