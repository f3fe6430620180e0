"""Images of any bands, read with the values that are stored; 8-bit pictures that would lose some are refused."""

import io
import re
from importlib.util import find_spec

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from dataset_builders import open_dataset
from helpers.band_images import FOUR, pixels, write_set
from helpers.own_photos import NAMES, save
from hf_segkd.data import BandJitter, TrainTransform
from hf_segkd.data.band_statistics import band_statistics
from hf_segkd.data.pixels import KEPT, misfit, read_pixels, refusal
from hf_segkd.data.raw import Unreadable
from hf_segkd.models import PIXEL_DTYPES, Bands


def tiff(array: np.ndarray, **options) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, array[..., 0] if array.shape[-1] == 1 else array, **options)
    return buffer.getvalue()


def encoded(array: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array) if kind == "npy" else Image.fromarray(array).save(buffer, format=kind)
    return buffer.getvalue()


@pytest.mark.parametrize("dtype", KEPT)
@pytest.mark.parametrize("bands", [1, 4, 13])
def test_tiff_and_npy_keep_every_value(dtype, bands):
    """A value that is rounded, or a band that is dropped, is not seen by anybody later."""
    array = pixels(0, bands, "uint16").astype(dtype)
    array[0, 0] = 30000 if dtype in ("uint16", "int16") else 200
    layout = {"photometric": "minisblack"} | ({"planarconfig": "contig"} if bands > 1 else {})
    for content in (
        tiff(array, **layout),
        tiff(array, **layout, compression="deflate", byteorder=">"),
        tiff(
            np.moveaxis(array, -1, 0), photometric="minisblack", **({"planarconfig": "separate"} if bands > 1 else {})
        ),
        encoded(array, "npy"),
    ):
        read = read_pixels(content)
        assert read.dtype == dtype and np.array_equal(read, array)


def test_sixteen_bit_png_and_float_tiff_are_read_by_their_values():
    """Pillow's own conversion to RGB clips both at 255."""
    ramp = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    assert np.array_equal(read_pixels(encoded(ramp))[..., 0], ramp)
    fractions = (ramp / 4095).astype(np.float32)
    assert np.array_equal(read_pixels(encoded(fractions, "TIFF"))[..., 0], fractions)
    assert np.array_equal(read_pixels(encoded(ramp[None].astype(np.float64)[0], "npy"))[..., 0], ramp)


def test_lzw_is_read_or_its_package_named():
    """What most map programs write; tifffile's own message names a package and not what to do."""
    buffer = io.BytesIO()
    ramp = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    Image.fromarray(ramp).save(buffer, format="TIFF", compression="tiff_lzw")
    if find_spec("imagecodecs") is not None:
        assert np.array_equal(read_pixels(buffer.getvalue())[..., 0], ramp)
        return
    with pytest.raises(Unreadable, match="LZW compression needs one more package: pip install imagecodecs"):
        read_pixels(buffer.getvalue())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (encoded(np.full((8, 8), np.nan, dtype=np.float32), "npy"), "holds NaN or infinite values"),
        (encoded(np.full((8, 8), 2**30), "npy"), "holds int64 values above 16777216"),
        (encoded(np.zeros((2, 8, 8, 4)), "npy"), r"holds float64 of shape \(2, 8, 8, 4\)"),
        (tiff(np.zeros((3, 8, 8, 4), np.uint16), photometric="minisblack"), "no single image"),
        (b"\x93NUMPY and then nothing", "magic|header|EOF|version"),
        (tiff(np.zeros((8, 8), np.uint16))[:60], "."),
    ],
)
def test_what_has_no_pixels_to_keep_is_unreadable(content, message):
    """A file that cannot be read must be named by the check, not end a run with a traceback."""
    with pytest.raises(Unreadable, match=message):
        read_pixels(content)


def test_sixteen_bit_colors_of_a_png_are_refused():
    """Pillow reads them in 8 bits without a word."""
    content = bytearray(encoded(np.zeros((8, 8, 3), np.uint8)))
    content[24] = 16  # the header's bit depth
    with pytest.raises(Unreadable, match="PNG files of 16-bit colors in 8 bits"):
        read_pixels(bytes(content))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (encoded(np.zeros((8, 8), np.uint16)), "16-bit values.*--bands gray"),
        (encoded(np.zeros((8, 8), np.float32), "TIFF"), "float values"),
        (
            tiff(np.zeros((8, 8, 13), np.uint16), photometric="minisblack", planarconfig="contig"),
            "13 bands of uint16: --bands band_1 band_2",
        ),
        (
            tiff(np.zeros((8, 8, 4), np.uint8), photometric="rgb", extrasamples=[0]),
            "4 bands: --bands red green blue nir",
        ),
        (tiff(np.zeros((8, 8, 3), np.uint16), photometric="rgb"), "--bands red green blue"),
        (encoded(np.zeros((8, 8, 3)), "npy"), "3 bands of float32: --bands red green blue"),
        (encoded(np.zeros((8, 8, 3), np.uint8)), None),
        (encoded(np.zeros((8, 8), np.uint8)), None),
        (encoded(np.zeros((8, 8, 4), np.uint8)), None),
        (encoded(np.zeros((8, 8, 3), np.uint8), "TIFF"), None),
        (encoded(np.zeros((8, 8, 4), np.uint8), "TIFF"), None),
        (b"no picture", None),
    ],
)
def test_more_than_eight_bits_need_names_and_pictures_do_not(content, message):
    """The flag in the message is what the next command needs; ordinary photos must not be asked for one."""
    found = refusal(content)
    assert found is None if message is None else re.search(message, found)


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_sixteen_bit_and_float_sets_are_refused_without_names(tmp_path, dtype):
    """They would train on pictures that are white or black, in building, reading and predicting alike."""
    for index in range(4):
        array = (np.random.default_rng(index).random((16, 16)) * 4000).astype(dtype)
        save(tmp_path / "images" / f"{index}.{'png' if dtype == 'uint16' else 'tif'}", Image.fromarray(array))
        save(tmp_path / "masks" / f"{index}.png", Image.fromarray(np.zeros((16, 16), np.uint8)))
    dataset = open_dataset("folder", str(tmp_path), labels=NAMES)
    with pytest.raises(ValueError, match="would cut off: --bands gray"):
        dataset.split("train")


def test_a_set_of_bands_has_one_type_and_one_name_for_each_channel(tmp_path):
    """Names that do not fit would give the teacher the wrong bands."""
    data = write_set(tmp_path, 4)
    with pytest.raises(ValueError, match="have 4 bands of uint16, and 3 names are given.*--bands red green blue nir"):
        _ = open_dataset("folder", str(data), bands=FOUR[:3]).bands
    bands = open_dataset("folder", str(data), bands=FOUR, pixel_range=[0, 4095]).bands
    assert bands == Bands(tuple(FOUR), "uint16", (0.0, 4095.0))
    assert misfit(pixels(0, 4, "uint8"), bands) == "has 4 bands of uint8, expected 4 of uint16"
    (tmp_path / "bands.txt").write_text("\n".join(FOUR))
    assert open_dataset("folder", str(data), bands=[str(tmp_path / "bands.txt")]).bands.names == tuple(FOUR)
    (data / "images" / "val" / "6.tif").write_bytes(tiff(pixels(6, 4, "uint8"), photometric="rgb"))
    images = open_dataset("folder", str(data), bands=FOUR, cache_dir=str(tmp_path / "cache")).evaluation_set()
    with pytest.raises(ValueError, match="'6' has 4 bands of uint8, expected 4 of uint16"):
        images[0]


@pytest.mark.parametrize("suffix", ["tif", "npy"])
@pytest.mark.parametrize("dtype", KEPT)
def test_crops_and_the_decoded_cache_keep_stored_values(tmp_path, suffix, dtype):
    """The cache must not be where 12 bits become 8."""
    data = write_set(tmp_path / "data", 4, dtype, suffix)
    dataset = open_dataset("folder", str(data), bands=FOUR, cache_dir=str(tmp_path / "cache"))
    transform = TrainTransform((32, 32), scale_range=(1, 1), flip=0)
    plain = dataset.training_set(transform)
    kept = dataset.training_set(transform, decoded_dir=str(tmp_path / "decoded"))
    expected = torch.uint8 if dtype == "uint8" else torch.float32
    for index in range(len(plain)):
        crop = plain[index]["pixel_values"]
        assert crop.dtype == expected and torch.equal(crop, kept[index]["pixel_values"])
        stored = pixels(index, 4, dtype)
        assert set(crop[3].flatten().tolist()) <= set(stored[..., 3].flatten().tolist())
    size = (tmp_path / "decoded").glob("*/images.bin").__next__().stat().st_size
    assert size == 6 * 40 * 48 * 4 * np.dtype(dtype).itemsize


def test_statistics_are_those_of_all_pixels(tmp_path):
    """A mean of means over images of unequal size, or float32 sums, would normalize by other numbers."""
    dataset = open_dataset("folder", str(write_set(tmp_path, 4)), bands=FOUR, cache_dir=str(tmp_path / "cache"))
    mean, std = band_statistics(dataset.evaluation_set("train"), tuple(FOUR))
    every = np.stack([pixels(index, 4, "uint16") for index in range(6)]).reshape(-1, 4).astype(np.float64)
    np.testing.assert_allclose(mean, every.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(std, every.std(axis=0), rtol=1e-12)


def test_jitter_of_bands_keeps_the_type_and_refuses_colors():
    """Bytes must stay bytes, 12 bits must not be cut off at 255, and a hue of infrared means nothing."""
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(4, 8, 8) * 4000 + 95
    changed = BandJitter(contrast=0.5)(image, generator)
    assert changed.dtype == torch.float32 and changed.max() > 1000
    torch.testing.assert_close(changed.mean(dim=(1, 2)), image.mean(dim=(1, 2)))
    assert BandJitter(brightness=0.5, scale=255)(image.clamp(0, 255).to(torch.uint8), generator).dtype == torch.uint8
    for options, message in (({"hue": 0.1}, "of RGB colors"), ({"brightness": 0.1}, "Give --pixel_range")):
        with pytest.raises(ValueError, match=message):
            BandJitter(**options)


def test_the_types_that_are_read_are_those_that_models_take():
    """The two lists stand apart because reading must not import the models."""
    assert KEPT == PIXEL_DTYPES
