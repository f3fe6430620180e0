"""A teacher's predictions as bytes on disk, and the crop of them that belongs to a crop of the image."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from safetensors.numpy import save
from torch import Tensor

from hf_segkd.data.parallel import in_threads
from hf_segkd.data.pixels import size_and_turn
from hf_segkd.data.resizing import Box

# Log-probability of each byte, in units of the deepest one of its map: squares, so that likely classes are finest.
TABLE = -np.square(np.arange(256, dtype=np.float32) / 255)
DEEPEST = 64.0  # nats; e^-64 is nothing at any temperature in use
ALL_CLASSES = 64  # up to so many classes all are kept, beyond it the likeliest `TOP` and the mass of the rest
TOP = 32
SHARD = "*.safetensors"
NEAR = 1e-6  # of a position: closer ones are the same, up to the rounding of index arithmetic


@dataclass(frozen=True)
class StoredMap:
    """One image's map.

    Args:
        codes (`np.ndarray` of shape `(h, w, K)` or `(h, w, TOP)`): uint8 log-probabilities, see `TABLE`.
        depth (`float`): Log-probability of byte 255, negated, in nats.
        image_size (`tuple[int, int]`): Height and width of the image that the map covers, pixels.
        align_corners (`bool`): Whether the corner positions of the map are the corner pixels of the image.
        num_labels (`int`): Number of classes K.
        log_sum (`np.ndarray` of shape `(h, w)`, *optional*): float16, what the softmax took from the logits; 0 where
            they were log-probabilities already.
        index (`np.ndarray` of shape `(h, w, TOP)`, *optional*): The classes of `codes`, if not all.
        rest (`np.ndarray` of shape `(h, w)`, *optional*): uint8 log-probability of each class not in `index`.
    """

    codes: np.ndarray
    depth: float
    image_size: tuple[int, int]
    align_corners: bool
    num_labels: int
    log_sum: np.ndarray | None = None
    index: np.ndarray | None = None
    rest: np.ndarray | None = None

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in (self.codes, self.log_sum, self.index, self.rest) if array is not None)

    def logits(self) -> Tensor:
        """All logits (K, h, w), float32."""
        height, width = self.codes.shape[:2]
        values = self.at(np.arange(height)[:, None] * width + np.arange(width))
        return torch.from_numpy(values).permute(2, 0, 1)

    def at(self, positions: np.ndarray) -> np.ndarray:
        """Logits (..., K) at some positions, counted row by row: float32."""
        table = TABLE * np.float32(self.depth)
        values = table.take(_at(self.codes, positions))
        if self.index is not None:
            dense = np.repeat(table.take(_at(self.rest, positions))[..., None], self.num_labels, axis=-1)
            np.put_along_axis(dense, _at(self.index, positions).astype(np.int64), values, axis=-1)
            values = dense
        if self.log_sum is not None:
            values += _at(self.log_sum, positions).astype(np.float32)[..., None]
        return values


def _at(array: np.ndarray, positions: np.ndarray) -> np.ndarray:
    return array.reshape(-1, *array.shape[2:]).take(positions, axis=0)


def store(logits: Tensor, image_size: tuple[int, int], align_corners: bool, normalized: bool) -> StoredMap:
    """Turn logits into bytes.

    Args:
        logits (`torch.Tensor` of shape `(K, h, w)`): float32, finite.
        image_size (`tuple[int, int]`): Height and width of the image, pixels.
        align_corners (`bool`): How these logits are upsampled.
        normalized (`bool`): Whether they are log-probabilities, so that there is no log-sum-exp to keep.
    """
    num_labels = len(logits)
    log_sum = logits.logsumexp(dim=0)
    log_probabilities = (logits - log_sum).permute(1, 2, 0).contiguous()
    kept, more = log_probabilities, {}
    if num_labels > ALL_CLASSES:
        kept, index = log_probabilities.topk(TOP, dim=-1)
        mass = (1 - kept.exp().sum(dim=-1)).clamp(min=1e-12) / (num_labels - TOP)
        more["index"] = index.numpy().astype(np.uint8 if num_labels <= 256 else np.uint16)
    depth = min(max(float(-kept.min()), 1e-3), DEEPEST)
    if num_labels > ALL_CLASSES:
        more["rest"] = _encode(mass.log(), depth)
    if not normalized:
        more["log_sum"] = log_sum.numpy().astype(np.float16)
    return StoredMap(_encode(kept, depth), depth, tuple(image_size), align_corners, num_labels, **more)


def _encode(log_probabilities: Tensor, depth: float) -> np.ndarray:
    share = (-log_probabilities / depth).clamp(0, 1)
    return share.sqrt_().mul_(255).round_().to(torch.uint8).numpy()


def crop_of(
    stored: StoredMap, scale: Fraction, box: Box, crop_size: tuple[int, int], size: tuple[int, int] | None = None
) -> Tensor:
    """What a teacher of the same stride would answer for a crop of the scaled image, read out of its whole map.

    Each position of the answer lies at a pixel of the crop; that pixel was at some place in the original image, where
    the map is read, bilinearly. Beyond the image, in padding, the map's border goes on.

    Args:
        stored ([`StoredMap`]): Of the whole image.
        scale (`Fraction`): By which the image was resized.
        box ([`~hf_segkd.data.resizing.Box`]): The crop, in pixels of the resized image.
        crop_size (`tuple[int, int]`): Height and width of the crop with its padding, pixels.
        size (`tuple[int, int]`, *optional*): Height and width of the result; where the teacher's own map would be
            larger, this is what corner-aligned bilinear resizing would make of it. Its own size by default.

    Returns:
        `torch.Tensor` of shape `(K, h, w)`: Logits, float32.
    """
    width = stored.codes.shape[1]
    rows, row_shares = _axis(stored, 0, scale, box.top, crop_size[0], size)
    columns, column_shares = _axis(stored, 1, scale, box.left, crop_size[1], size)
    total = 0
    for row, row_share in zip(rows, row_shares, strict=True):
        for column, column_share in zip(columns, column_shares, strict=True):
            values = stored.at(row[:, None] * width + column)
            if len(rows) * len(columns) > 1:
                values *= (row_share[:, None] * column_share)[..., None]
            total = total + values
    return torch.from_numpy(total).permute(2, 0, 1)


def own_size(stored: StoredMap, crop_size: tuple[int, int]) -> tuple[int, int]:
    """Height and width of the map that the teacher has for an image of that size."""
    sizes = zip(stored.codes.shape[:2], crop_size, stored.image_size, strict=True)
    height, width = (max(1, round(positions * crop / side)) for positions, crop, side in sizes)
    return height, width


def _axis(
    stored: StoredMap, axis: int, scale: Fraction, start: int, crop: int, size: tuple[int, int] | None
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Neighbors in the map, one or two for each position of the result, and their shares."""
    positions, side = stored.codes.shape[axis], stored.image_size[axis]
    own = own_size(stored, (crop, crop))[axis]
    count = own if size is None else size[axis]
    place = np.arange(count) * ((own - 1) / (count - 1)) if count > 1 else np.array([(own - 1) / 2])
    if stored.align_corners:
        pixel = place * ((crop - 1) / (own - 1)) if own > 1 else np.array([(crop - 1) / 2])
    else:
        pixel = (place + 0.5) * (crop / own) - 0.5
    source = (start + pixel + 0.5) / float(scale) - 0.5
    if stored.align_corners:
        where = source * ((positions - 1) / max(side - 1, 1))
    else:
        where = (source + 0.5) * (positions / side) - 0.5
    where = where.clip(0, positions - 1)
    nearest = np.rint(where)
    if np.abs(where - nearest).max() < NEAR:
        return [nearest.astype(np.int64)], [np.ones(count, np.float32)]
    low = np.minimum(np.floor(where).astype(np.int64), positions - 2)
    share = (where - low).astype(np.float32)
    return [low, low + 1], [1 - share, share]


class TeacherMaps(Sequence):
    """The maps of a dataset's images, in its order, out of a folder of shards.

    Files are mapped into memory when they are first needed: only what a crop touches is read, and workers share it.

    Args:
        folder (`str` or `pathlib.Path`): Where [`write_shard`] wrote.
        keys (`list[str]`): Of the images, from [`image_keys`].

    Raises:
        `ValueError`: If an image has no map.
    """

    def __init__(self, folder: str | Path, keys: list[str]):
        self.folder, self.keys = Path(folder), keys
        self.entries = read_index(folder)
        self.size: tuple[int, int] | None = None  # of what a crop's reading returns; see [`crop_of`]
        self._files: dict[str, np.memmap] = {}
        if missing := [key for key in keys if key not in self.entries]:
            raise ValueError(f"The teacher cache '{folder}' lacks the maps of {len(missing)} of {len(keys)} images.")

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> StoredMap:
        file, facts, tensors = self.entries[self.keys[index]]
        if file not in self._files:
            self._files[file] = np.memmap(self.folder / file, np.uint8, mode="r")
        content = self._files[file].view(np.ndarray)
        arrays = {}
        for name, (dtype, shape, start, stop) in tensors.items():
            arrays[name] = content[start:stop].view(dtype).reshape(shape)
        return StoredMap(**arrays, **{**facts, "image_size": tuple(facts["image_size"])})

    def crop(self, index: int, scale: Fraction, box: Box, crop_size: tuple[int, int]) -> Tensor:
        """[`crop_of`] of an image, at `size`, or at the size of the first image's map: batches need one size."""
        if self.size is None:
            self.size = own_size(self[0], crop_size)
        return crop_of(self[index], scale, box, crop_size, self.size)

    def __getstate__(self) -> dict:
        # A spawned worker maps the files itself; pickled, an array would be a copy.
        return {**vars(self), "_files": {}}


DTYPES = {"U8": np.uint8, "U16": np.uint16, "F16": np.float16}


def read_index(folder: str | Path) -> dict[str, tuple[str, dict, dict]]:
    """Of each map in a folder: file, facts, and the place of its arrays; from the headers of the shards alone."""
    entries = {}
    for file in sorted(Path(folder).glob(SHARD)):
        facts, tensors, offset = _read_header(file)
        places: dict[str, dict] = {key: {} for key in facts}
        for name, tensor in tensors.items():
            key, _, field = name.partition(".")
            start, stop = (offset + position for position in tensor["data_offsets"])
            places[key][field] = (DTYPES[tensor["dtype"]], tensor["shape"], start, stop)
        for key, known in facts.items():
            known.pop("error")
            entries.setdefault(key, (file.name, known, places[key]))
    return entries


def read_errors(folder: str | Path, keys: list[str]) -> list[dict[str, float]]:
    """What [`write_shard`] was given as errors of some maps."""
    wanted, found = set(keys), []
    for file in sorted(Path(folder).glob(SHARD)):
        found += [known["error"] for key, known in _read_header(file)[0].items() if key in wanted]
    return found


def _read_header(file: Path) -> tuple[dict[str, dict], dict[str, dict], int]:
    """Facts by key, tensors by name, and where their bytes begin: the layout of safetensors."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(length))
    return json.loads(header.pop("__metadata__")["maps"]), header, 8 + length


def write_shard(file: Path, maps: dict[str, StoredMap], errors: dict[str, dict[str, float]]) -> None:
    """Write maps by key in one step, as a safetensors file; `errors` are kept beside them."""
    arrays, facts = {}, {}
    for key, stored in maps.items():
        values = vars(stored)
        fields = {name: value for name, value in values.items() if isinstance(value, np.ndarray)}
        arrays |= {f"{key}.{name}": np.ascontiguousarray(value) for name, value in fields.items()}
        facts[key] = {name: value for name, value in values.items() if value is not None and name not in fields}
        facts[key]["error"] = errors[key]
    temporary = file.with_name(f".{file.name}-{os.getpid()}")
    with temporary.open("wb") as stream:
        stream.write(save(arrays, {"maps": json.dumps(facts)}))
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, file)


def image_keys(rows: datasets.Dataset) -> tuple[list[str], list[tuple[int, int]]]:
    """A key made of the bytes of each image's file, and each image's height and width.

    The key stays when an image is moved, renamed, labeled or put elsewhere in the order, and changes with a pixel.
    """
    images = rows.with_format(None).select_columns("image").cast_column("image", datasets.Image(decode=False))

    def look(index: int) -> tuple[str, tuple[int, int]]:
        stored: dict[str, Any] = images[index]["image"]
        content = Path(stored["path"]).read_bytes() if stored["bytes"] is None else stored["bytes"]
        size, _ = size_and_turn(content)
        return hashlib.blake2b(content, digest_size=16).hexdigest(), size

    looked = list(in_threads(look, range(len(images)), "reading images"))
    return [key for key, _ in looked], [size for _, size in looked]
