"""Faults that end a running training, found early and explained in one paragraph."""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import datasets
import PIL.Image
import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

from hf_segkd.console import TrainingFault
from hf_segkd.data.pixels import read_pixels
from hf_segkd.data.raw import Unreadable
from hf_segkd.distributed import rank


@dataclass
class _Seen:
    step: int
    names: tuple[str, ...]
    values: Tensor  # on the host, once `ready`
    ready: torch.cuda.Event | None
    batch: dict[str, Tensor]


class FiniteWatch:
    """Stops the run at the first value that is NaN or infinite, and keeps the batch it came from.

    The host does not wait for the device at every step: values are copied to it in the background and looked at when
    they have arrived, on a GPU one or two steps later and at the latest `lag` steps later, on a CPU at once. Before
    every checkpoint the trainer waits for all of them, so that none holds weights from after the fault.

    Args:
        folder (`str`): Where the batch goes, as `not_finite-STEP-RANK.pt`: a dict of `pixel_values`, `labels`, `step`
            and `values`, which `torch.load(weights_only=True)` reads.
        lag (`int`, *optional*, defaults to `4`): Steps whose batches are held at most.
    """

    def __init__(self, folder: str, lag: int = 4):
        self.folder, self.lag = Path(folder), lag
        self._pending: deque[_Seen] = deque()

    def see(self, step: int, values: dict[str, Tensor], batch: dict[str, Tensor]) -> None:
        """Note scalars of step `step` and look at those that have arrived.

        Raises:
            TrainingFault: If one of them is not finite.
        """
        copied, ready = _copy(torch.stack([value.detach().float() for value in values.values()]))
        self._pending.append(_Seen(step, tuple(values), copied, ready, batch))
        while self._pending and (len(self._pending) > self.lag or _arrived(self._pending[0])):
            self._look(self._pending.popleft())

    def wait(self) -> None:
        """Look at all that is still on its way; raises as [`see`]."""
        while self._pending:
            self._look(self._pending.popleft())

    def _look(self, seen: _Seen) -> None:
        if seen.ready is not None:
            seen.ready.synchronize()
        if seen.values.isfinite().all():
            return
        values = dict(zip(seen.names, seen.values.tolist(), strict=True))
        bad = [name for name, finite in zip(seen.names, seen.values.isfinite().tolist(), strict=True) if not finite]
        file = self.folder / f"not_finite-{seen.step}-{rank()}.pt"
        batch = {key: value.cpu() for key, value in seen.batch.items()}
        torch.save({**batch, "step": seen.step, "values": values}, file)
        shown = ", ".join(f"{name} = {values[name]}" for name in bad)
        raise TrainingFault(
            f"Not finite at step {seen.step}: {shown}. The batch is in {str(file)!r}; checkpoints are from before. "
            "Lower the learning rate or that loss's weight, set max_grad_norm, or add warmup_steps; in fp16, try "
            "bf16. If it is always the same image, look at its labels."
        )


def _copy(values: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    """The values copied to the host, and the event that marks the end of the copy (`None` on a CPU)."""
    if not values.is_cuda:
        return values, None
    host = torch.empty(values.shape, pin_memory=True).copy_(values, non_blocking=True)
    ready = torch.cuda.Event()
    ready.record()
    return host, ready


def _arrived(seen: _Seen) -> bool:
    return seen.ready is None or seen.ready.query()


class NamedImages(Dataset):
    """A dataset whose errors name the file: images that are deleted, cut short or replaced while a run reads them.

    Args:
        dataset (`torch.utils.data.Dataset`): Of training or validation.
    """

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int):
        try:
            return self.dataset[index]
        except (OSError, ValueError, SyntaxError, EOFError, PIL.Image.DecompressionBombError) as error:
            if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
                raise
            reason = " ".join(str(error).split())
            raise TrainingFault(
                f"Image {index} cannot be read any more: {_broken_file(self.dataset, index)}{reason}. Was it changed "
                "during the run? Restore it and run the same command with --resume."
            ) from error


def _broken_file(dataset: Dataset, index: int) -> str:
    """The file of an item that cannot be decoded, where the dataset knows its files."""
    rows = getattr(dataset, "dataset", None)
    if not isinstance(rows, datasets.Dataset):
        return ""
    for column in ("image", "annotation"):
        rows = rows.cast_column(column, datasets.Image(decode=False))
    row = rows[index]
    for column in ("image", "annotation"):
        path = row[column] and row[column]["path"]
        if path and not _decodes(path):
            return f"{path}: "
    return f"{row['image_id']}: "


def _decodes(path: str) -> bool:
    try:
        with PIL.Image.open(path) as picture:
            picture.load()
    except PIL.UnidentifiedImageError:
        return _holds_bands(path)
    except (OSError, ValueError, SyntaxError, EOFError, PIL.Image.DecompressionBombError):
        return False
    return True


def _holds_bands(path: str) -> bool:
    try:
        read_pixels(path)
    except (OSError, ValueError, Unreadable):
        return False
    return True


@contextmanager
def explained(args: TrainingArguments, size: tuple[int, int], trainer: Trainer) -> Iterator[None]:
    """Turn what the system does to a training into a [`TrainingFault`]: memory that is used up, workers that die.

    Args:
        args (`TrainingArguments`): What could be changed.
        size (`tuple[int, int]`): Height and width of the training images, pixels.
        trainer (`Trainer`): Tells the step.

    Raises:
        TrainingFault: With the original error as its cause. All other errors pass unchanged.
    """
    try:
        yield
    except TrainingFault as error:
        # From a process that reads images it comes with that process's traceback, the message last.
        text = str(error).rsplit("TrainingFault: ", 1)[-1].strip()
        raise TrainingFault(text) from error
    except (RuntimeError, MemoryError, OSError) as error:
        step = trainer.state.global_step
        text = str(error)
        if isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in text:
            raise TrainingFault(_out_of_memory(args, size, trainer)) from error
        if "DataLoader worker (pid" in text:
            raise TrainingFault(_dead_worker(args, text, step)) from error
        if "Too many open files" in text or "received 0 items of ancdata" in text:
            raise TrainingFault(_too_many_files(args, step)) from error
        raise


def _out_of_memory(args: TrainingArguments, size: tuple[int, int], trainer: Trainer) -> str:
    step = trainer.state.global_step
    batch, accumulation = args.per_device_train_batch_size, args.gradient_accumulation_steps
    ways = []
    if not (args.bf16 or args.fp16):
        ways.append("bf16: true")
    if not args.activation_checkpointing and trainer.student.supports_gradient_checkpointing:
        ways.append("activation_checkpointing: true (slower, the same numbers)")
    if batch > 1:
        ways.append(
            f"per_device_train_batch_size: {batch // 2} with gradient_accumulation_steps: {2 * accumulation} "
            "(the same effective batch; batch norm and losses between images see half)"
        )
    if args.per_device_eval_batch_size > 1:
        ways.append("per_device_eval_batch_size: 1 (if it was an evaluation)")
    ways.append(f"a smaller crop_size than {size[0]} {size[1]}")
    return (
        f"Out of memory after step {step}, with {batch} images of {size[0]}x{size[1]} pixels at a time on "
        f"{args.device}. What needs less, from what changes the result least: {'; '.join(ways)}."
    )


def _dead_worker(args: TrainingArguments, text: str, step: int) -> str:
    return (
        f"A process that reads images died after step {step}: {text.splitlines()[0].strip().rstrip('.')}. If it was "
        f"killed, memory has run out: set dataloader_num_workers below {args.dataloader_num_workers}, or "
        "dataloader_prefetch_factor: 1. A bus error means that /dev/shm is too small (docker run --shm-size=8g). "
        "Then run the same command with --resume."
    )


def _too_many_files(args: TrainingArguments, step: int) -> str:
    return (
        f"Out of file descriptors after step {step}. Raise the limit (ulimit -n 65536), or set dataloader_num_workers "
        f"below {max(args.dataloader_num_workers, 1)}. Then run the same command with --resume."
    )
