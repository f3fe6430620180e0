"""A teacher's predictions for all training images, computed once: resumable, by several processes, and checked."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.utils import WeakFileLock
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers.image_processing_utils import BaseImageProcessor

from hf_segkd.data.sampling import evenly_spread
from hf_segkd.data.teacher_maps import StoredMap, TeacherMaps, read_errors, read_index, store, write_shard
from hf_segkd.distributed import rank, world_size
from hf_segkd.evaluation.progress import progress
from hf_segkd.evaluation.teacher import TeacherDescription
from hf_segkd.hub import pin_revision
from hf_segkd.loading.class_map import read_mapping
from hf_segkd.models import Bands, InputNormalization, upsamples_with_align_corners

logger = logging.getLogger(__name__)

VERSION = 1  # of the files' layout
ABOUT = "teacher.json"
SHARD_IMAGES = 32  # what a killed process loses at most
SAMPLE = 64  # maps whose error is reported
TEMPERATURES = (1.0, 4.0)
TEACHER_FILES = ("*.safetensors", "*.bin", "config.json", "preprocessor_config.json", "processor_config.json")


def describe(
    teacher: TeacherDescription, labels: tuple[str, ...], dtype: str = "float32", bands: Bands | None = None
) -> dict[str, Any]:
    """Everything that determines a teacher's predictions, as stored in `teacher.json`.

    Args:
        teacher (`TeacherDescription`): Models, weights and views.
        labels (`tuple[str, ...]`): The dataset's class names.
        dtype (`str`, *optional*, defaults to `"float32"`): Precision of its weights.
        bands ([`~hf_segkd.models.Bands`], *optional*): What the images hold, if not 8-bit RGB.

    Returns:
        `dict`: Plain values. `weights` of a model is a hash of its files, the commit of a Hub id, or `None` where
        neither is at hand.
    """
    members = []
    for member in teacher.members:
        classes = dict(read_mapping(member.classes)) if member.classes is not None else None
        facts = {**asdict(member), "classes": classes, "weights": files_hash(member.model, member.revision)}
        members.append({name: value for name, value in facts.items() if name != "revision"})
    about = {"version": VERSION, "labels": list(labels), "teachers": members, "stride": teacher.stride}
    about |= {"average": teacher.average, "dtype": dtype}
    return about if bands is None else about | {"images": str(bands)}


def files_hash(model: str, revision: str | None = None) -> str | None:
    """Hash of a checkpoint, or of a folder's weights, config and processor; the commit of a Hub id."""
    path = Path(model)
    if path.is_file():
        return _hash([path])
    if path.is_dir():
        return _hash(sorted(file for pattern in TEACHER_FILES for file in path.glob(pattern)))
    return pin_revision(model, revision) if model.count("/") == 1 and not model.startswith((".", "/")) else None


def _hash(files: list[Path]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for file in files:
        digest.update(file.name.encode() if len(files) > 1 else b"")
        with file.open("rb") as stream:
            while part := stream.read(1 << 20):
                digest.update(part)
    return digest.hexdigest()


class TeacherCache:
    """A folder with the maps of one teacher for any number of images.

    Maps go by the content of the image's file, so that a dataset may be reordered, split or labeled anew.

    Args:
        folder (`str` or `pathlib.Path`): Made when it does not exist.
        about (`dict`): From [`describe`].

    Raises:
        ValueError: If the folder holds something else, or the maps of another teacher; what differs is named.
    """

    def __init__(self, folder: str | Path, about: dict[str, Any]):
        self.folder = Path(folder)
        file = self.folder / ABOUT
        if not file.is_file():
            self._begin(file, about)
        check_same_teacher(self.folder, json.loads(file.read_text(encoding="utf-8")), about)

    def _begin(self, file: Path, about: dict[str, Any]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        # Another process may begin the same cache at this moment, or have been killed while it did.
        others = [path for path in self.folder.iterdir() if not path.name.startswith(f".{ABOUT}-")]
        if file.is_file():
            return
        if others:
            raise ValueError(
                f"The folder '{self.folder}' is no teacher cache: it holds other files and no {ABOUT}. "
                "Give an empty one."
            )
        temporary = self.folder / f".{ABOUT}-{os.getpid()}"
        temporary.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        os.replace(temporary, file)

    def missing(self, keys: list[str]) -> list[int]:
        """Positions of the images that have no map yet."""
        known = read_index(self.folder)
        return [index for index, key in enumerate(keys) if key not in known]

    def maps(self, keys: list[str]) -> TeacherMaps:
        """The maps of these images, all of which must be there."""
        return TeacherMaps(self.folder, keys)

    def fill(
        self,
        model: nn.Module,
        processor: BaseImageProcessor,
        images: Dataset,
        keys: list[str],
        sizes: list[tuple[int, int]],
        normalized: bool = False,
        bands: Bands | None = None,
    ) -> None:
        """Compute the maps that are missing. Other processes, of this run or not, may do the same at the same time.

        Args:
            model (`PreTrainedModel`): The teacher, with the dataset's classes, on its device.
            processor (`BaseImageProcessor`): Its own.
            images (`torch.utils.data.Dataset`): Whole images, `pixel_values` (C, H, W) as they are stored.
            keys (`list[str]`), sizes (`list[tuple[int, int]]`): From [`~hf_segkd.data.teacher_maps.image_keys`].
            normalized (`bool`, *optional*, defaults to `False`): Whether its logits are log-probabilities.
            bands ([`~hf_segkd.models.Bands`], *optional*): What the images hold, if not 8-bit RGB.

        Raises:
            ValueError: If the maps would not fit on the disk, or a map is not finite.
        """
        missing = self.missing(keys)
        if not missing:
            return
        runner = _Runner(model, processor, images, normalized, bands)
        self._check_space(runner(missing[0])[0], [sizes[index] for index in missing])
        chunks = [range(start, min(start + SHARD_IMAGES, len(keys))) for start in range(0, len(keys), SHARD_IMAGES)]
        first = rank() * len(chunks) // world_size()
        waiting = [*chunks[first:], *chunks[:first]]
        bar = progress(self._work(waiting, keys, set(missing), runner), len(missing), "teacher cache")
        for _ in bar:
            pass
        if rank() > 0:
            return
        errors = read_errors(self.folder, [keys[index] for index in evenly_spread(len(keys), SAMPLE)])
        shown = ", ".join(
            f"{sum(x[name] for x in errors) / len(errors):.1e} at temperature {name}" for name in errors[0]
        )
        logger.info("Teacher cache: %d maps; KL to the teacher itself, mean of %d: %s", len(keys), len(errors), shown)

    def _work(self, waiting: list[range], keys: list[str], missing: set[int], runner: _Runner):
        """Compute the chunks that no other process is working on; yields once per map."""
        patience = 0.01
        while waiting:
            busy = []
            for chunk in waiting:
                name = hashlib.blake2b("".join(keys[index] for index in chunk).encode(), digest_size=8).hexdigest()
                file = self.folder / f"{chunk.start:06d}-{name}.safetensors"
                if file.is_file() or missing.isdisjoint(chunk):
                    continue
                try:
                    with WeakFileLock(self.folder / f".{file.stem}.lock", timeout=patience):
                        yield from self._write(file, chunk, keys, missing, runner)
                except TimeoutError:
                    busy.append(chunk)
            waiting, patience = busy, 1.0  # another process is at these; if it dies, its lock is gone

    def _write(self, file: Path, chunk: range, keys: list[str], missing: set[int], runner: _Runner):
        if file.is_file():  # made while we waited for the lock
            return
        maps, errors = {}, {}
        for index in chunk:
            if index in missing and keys[index] not in maps:
                maps[keys[index]], errors[keys[index]] = runner(index)
                yield index
        if maps:
            write_shard(file, maps, errors)

    def _check_space(self, sample: StoredMap, sizes: list[tuple[int, int]]) -> None:
        pixels = sum(height * width for height, width in sizes)
        needed = sample.nbytes * pixels / (sample.image_size[0] * sample.image_size[1])
        free = shutil.disk_usage(self.folder).free
        grid = "{}x{}".format(*sample.codes.shape[:2])
        size = f"{len(sizes)} maps, {grid} for an image of {'{}x{}'.format(*sample.image_size)}"
        text = f"The teacher cache needs about {needed / 2**30:.2f} GiB ({size}); {free / 2**30:.2f} GiB are free"
        if needed > free:
            raise ValueError(f"{text} in '{self.folder}'. Give a folder on a larger disk, or a larger teacher_stride.")
        if rank() == 0:
            logger.info("%s.", text)


class _Runner:
    """One image's map and its error: KL from the teacher's distribution to the stored one, nats, by temperature."""

    def __init__(
        self,
        model: nn.Module,
        processor: BaseImageProcessor,
        images: Dataset,
        normalized: bool,
        bands: Bands | None,
    ):
        self.model, self.images, self.normalized = model.eval(), images, normalized
        parameter = next(model.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype
        self.normalization = InputNormalization.from_processor(processor, bands).to(self.device)
        self.align_corners = upsamples_with_align_corners(model.config)

    @torch.inference_mode()
    def __call__(self, index: int) -> tuple[StoredMap, dict[str, float]]:
        pixel_values = self.images[index]["pixel_values"]
        images = self.normalization(pixel_values[None].to(self.device)).to(self.dtype)
        logits = self.model(pixel_values=images).logits[0].float().cpu()
        if not logits.isfinite().all():
            raise ValueError(f"The teacher's logits of training image {index} are not finite. Check it with evaluate.")
        stored = store(logits, tuple(pixel_values.shape[-2:]), self.align_corners, self.normalized)
        kept = stored.logits()
        return stored, {f"{t:g}": divergence(logits, kept, t) for t in TEMPERATURES}


def divergence(logits: Tensor, stored: Tensor, temperature: float) -> float:
    """Mean over positions of KL(softmax(logits / T) ‖ softmax(stored / T)) of maps (K, h, w)."""
    true, kept = ((x / temperature).log_softmax(dim=0) for x in (logits, stored))
    return float((true.exp() * (true - kept)).sum(dim=0).mean())


def check_same_teacher(folder: Path, was: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuse the maps of another teacher.

    A model may have moved. Where its files are not at hand, its name must be the same.

    Raises:
        ValueError: Names everything that differs.
    """
    changes = _differences("", was, now)
    if changes:
        listed = "\n".join(f"  {line}" for line in changes)
        raise ValueError(
            f"The teacher cache '{folder}' is of another teacher:\n{listed}\n"
            "Give another folder for this one, or delete that one."
        )


def _differences(name: str, was: Any, now: Any) -> list[str]:
    if isinstance(was, dict) and isinstance(now, dict):
        if "weights" in was and "weights" in now:
            ignored = "model" if now["weights"] is not None else "weights"
            was, now = ({key: x for key, x in one.items() if key != ignored} for one in (was, now))
        found = []
        for key in dict.fromkeys([*was, *now]):
            found += _differences(f"{name}.{key}" if name else key, was.get(key), now.get(key))
        return found
    if isinstance(was, list) and isinstance(now, list) and len(was) == len(now):
        return [
            line for i, pair in enumerate(zip(was, now, strict=True)) for line in _differences(f"{name}[{i}]", *pair)
        ]
    return [] if was == now else [f"{name}: was {was}, now {now}"]
