"""Images that are not 8-bit RGB: bands of any number, read with the values that are stored."""

from __future__ import annotations

import io
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image
import PIL.ImageOps

from hf_segkd.data.raw import Unreadable, decode, orientation, upright_size

if TYPE_CHECKING:
    from hf_segkd.models.bands import Bands

NUMPY, TIFF = b"\x93NUMPY", (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
BITS, SAMPLES, EXTRA_SAMPLES = 258, 277, 338  # tags of TIFF
TRANSPARENCY = (1, 2)  # values of the last one
KEPT = ("uint8", "uint16", "int16", "float32")  # types that stay; `Bands` takes the same
_EXACT = 2**24  # whole numbers beyond it are not all float32
# Modes in which Pillow keeps every value; what it would round to 8 bits is refused.
_WHOLE_MODES = ("L", "LA", "RGB", "RGBA", "I", "I;16", "I;16L", "I;16B", "I;16N", "F")


def read_pixels(source: bytes | str | Path) -> np.ndarray:
    """Stored values of an image (H, W, C): uint8, uint16, int16, or float32 for all other numbers.

    `.npy` files hold (H, W) or (H, W, C). TIFF files are read by tifffile, their first image at its full size; PNG and
    others by Pillow, turned as EXIF says.

    Args:
        source (`bytes`, `str` or `Path`): Content of a file, or its path.

    Raises:
        `Unreadable`: If it is damaged or no image, has another shape, holds numbers that float32 does not, NaN or
            infinity, or would lose bits.
        `ValueError`: If tifffile is not installed.
    """
    content = source if isinstance(source, bytes) else Path(source).read_bytes()
    try:
        if content.startswith(NUMPY):
            array = np.load(io.BytesIO(content), allow_pickle=False)
        elif content.startswith(TIFF):
            array = _read_tiff(content)
        else:
            array = _read_picture(content)
    except (OSError, EOFError, ValueError, KeyError, IndexError, TypeError) as error:
        raise Unreadable(str(error).partition("\n")[0] or type(error).__name__) from None
    array = array[..., None] if array.ndim == 2 else array
    if array.ndim != 3 or array.dtype.kind not in "biuf":
        raise Unreadable(f"holds {array.dtype} of shape {array.shape}, expected numbers (H, W) or (H, W, bands)")
    return _kept(array)


def stored_pixels(stored: dict[str, Any], bands: Bands, name: str) -> np.ndarray:
    """Values (H, W, C) of a `datasets.Image(decode=False)` column.

    Raises:
        `ValueError`: Names the image: it cannot be read, or holds something else than `bands` say.
    """
    try:
        array = read_pixels(stored["path"] if stored["bytes"] is None else stored["bytes"])
    except (OSError, Unreadable) as error:
        raise ValueError(f"Cannot read image '{name}': {error}.") from None
    if wrong := misfit(array, bands):
        raise ValueError(f"Image '{name}' {wrong}.")
    return array


def misfit(array: np.ndarray, bands: Bands) -> str | None:
    """What is wrong with values (H, W, C) that should be of `bands`; `None` if nothing is."""
    count = array.shape[-1]
    if count == len(bands.names) and array.dtype == bands.dtype:
        return None
    expected = f"{len(bands.names)} of {bands.dtype}"
    return f"has {count} band{'s' if count > 1 else ''} of {array.dtype}, expected {expected}"


def size_and_turn(content: bytes) -> tuple[tuple[int, int], int]:
    """Height and width of an image in any of these forms, after its EXIF rotation, and its EXIF orientation.

    Raises:
        `Unreadable`: As [`read_pixels`].
    """
    try:
        with PIL.Image.open(io.BytesIO(content)) as picture:
            return upright_size(picture), orientation(picture)
    except PIL.UnidentifiedImageError:  # an array, or TIFF of many bands
        return read_pixels(content).shape[:2], 1


def advice(count: int) -> str:
    """The flag that names so many bands, to be copied and mended."""
    usual = {1: ["gray"], 3: ["red", "green", "blue"], 4: ["red", "green", "blue", "nir"]}
    return f"--bands {' '.join(usual.get(count, [f'band_{index}' for index in range(1, count + 1)]))}"


def refusal(content: bytes) -> str | None:
    """Why a file cannot be read as an 8-bit picture, with the flag that helps; `None` for one that can, or is damaged.

    Pillow opens no TIFF file of many bands.
    """
    try:
        with PIL.Image.open(io.BytesIO(content)) as picture:
            return needs_bands(picture)
    except (OSError, ValueError, SyntaxError, EOFError, PIL.Image.DecompressionBombError):
        if not content.startswith((NUMPY, *TIFF)):
            return None
    try:
        array = read_pixels(content)
    except Unreadable as error:
        return str(error)
    return f"has {array.shape[-1]} bands of {array.dtype}: {advice(array.shape[-1])}"


def needs_bands(picture: PIL.Image.Image) -> str | None:
    """Why a picture is no 8-bit one, with the flag that helps; `None` for one that is. Only its header is read."""
    if picture.mode.startswith(("I", "F")):
        kind = {"I": "32-bit", "F": "float"}.get(picture.mode, "16-bit")
        return f"holds {kind} values (mode {picture.mode}), which 8 bits would cut off: {advice(1)}"
    if picture.format == "TIFF":
        samples = picture.tag_v2.get(SAMPLES, 1)
        # What a file calls transparency is no band.
        bands = samples - (picture.tag_v2.get(EXTRA_SAMPLES, (0,))[0] in TRANSPARENCY)
        if bands > 3 and picture.mode != "CMYK":
            return f"has {bands} bands: {advice(bands)}"
        if max(picture.tag_v2.get(BITS, (8,))) > 8:
            return f"holds {max(picture.tag_v2[BITS])}-bit values: {advice(samples)}"
    return None


def _read_tiff(content: bytes) -> np.ndarray:
    try:
        import tifffile
    except ImportError:
        raise ValueError("TIFF files need tifffile: pip install 'hf-segkd[bands]'") from None
    try:
        array, page, axes, turn = _tiff_values(tifffile, content)
    except tifffile.TiffFileError as error:  # a ValueError in newer releases only
        raise ValueError(str(error)) from None
    if page.photometric == tifffile.PHOTOMETRIC.PALETTE:
        raise ValueError("a TIFF file of palette indices is no measurement; save it as RGB")
    if turn != 1:
        raise ValueError(f"a TIFF file that is turned by its tag (orientation {turn}); save it upright")
    # Axes of length 1 say nothing.
    kept = [(axis, length) for axis, length in zip(axes, array.shape, strict=True) if axis in "YX" or length > 1]
    others = [index for index, (axis, _) in enumerate(kept) if axis not in "YX"]
    if len(others) > 1:
        raise ValueError(f"a TIFF file with the axes {axes} and shape {array.shape} is no single image")
    array = array.reshape([length for _, length in kept])
    return np.moveaxis(array, others[0], -1) if others else array


def _tiff_values(tifffile: ModuleType, content: bytes) -> tuple[np.ndarray, Any, str, int]:
    """Values, first page, names of the axes and orientation of a TIFF file."""
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        series = file.series[0]
        page = file.pages[0]
        try:
            array = series.asarray()
        except ValueError as error:
            if "imagecodecs" not in str(error):
                raise
            name = page.compression.name
            raise ValueError(f"{name} compression needs one more package: pip install imagecodecs") from None
        axes = series.axes
        turn = page.tags.valueof("Orientation", 1)
    return array, page, axes, turn


def _read_picture(content: bytes) -> np.ndarray:
    if content.startswith(b"\x89PNG") and content[24] == 16 and content[25] != 0:
        raise ValueError("Pillow reads PNG files of 16-bit colors in 8 bits; save it as TIFF or .npy")
    picture = PIL.ImageOps.exif_transpose(decode(content))
    if picture.mode not in _WHOLE_MODES:
        raise ValueError(f"a picture of mode {picture.mode} has no bands to read; save it as TIFF, .npy or 8-bit RGB")
    return np.asarray(picture)


def _kept(array: np.ndarray) -> np.ndarray:
    """Values in one of the kept types; whoever stored another one gets float32, if that holds them exactly enough."""
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise Unreadable("holds NaN or infinite values; fill them before training")
    if str(array.dtype) in KEPT:
        return array
    if array.dtype == bool:
        return array.astype(np.uint8)
    if array.dtype.kind in "iu" and np.abs(array.astype(np.float64)).max(initial=0) > _EXACT:
        raise Unreadable(f"holds {array.dtype} values above {_EXACT}, which float32 cannot tell apart")
    return array.astype(np.float32)
