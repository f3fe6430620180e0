"""Runs whose training images are streamed: what they cannot have, and the part of the trainer that reads them."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset
from transformers import Trainer, TrainingArguments

from hf_segkd.console import TrainingFault
from hf_segkd.data.streaming import StreamedSet
from hf_segkd.training.config import DistillationConfig
from hf_segkd.training.faults import NamedImages
from hf_segkd.training.options import ScriptArguments

# Options that need all training images, or their number, before the first step.
REFUSED = {
    "data": "its rules need the number and sizes of the training images. Give --dataset and the options",
    "teacher_cache": "a cache is filled image by image before training. Leave one of them out",
    "unlabeled": "batches of two kinds need the number of each. Rows without a mask are unlabeled; put them there",
    "cache_dir": "decoded images of a stream would fill the disk. Leave one of them out",
    "skip_unreadable": "all training images would be read first. Leave one of them out",
    "bands": "mean and deviation of bands are measured on the training images. Leave one of them out",
}


def check_streaming(script: ScriptArguments, config: DistillationConfig) -> None:
    """Refuse what cannot go together with streamed training images, before anything is opened.

    Raises:
        ValueError: Names the option, why, and what to do.
    """
    if not script.streaming:
        return
    for name, why in REFUSED.items():
        if getattr(script, name):
            raise ValueError(f"--streaming with --{name}: {why}.")
    if config.max_steps < 1:
        raise ValueError("--streaming: the images are not counted, so that no epoch ends. Give --max_steps.")
    if script.check_data == "full":
        raise ValueError("--streaming with --check_data full: a stream cannot be checked before it is read.")
    if script.shuffle_buffer < 1:
        raise ValueError(f"shuffle_buffer must be at least 1, which does not shuffle, got {script.shuffle_buffer}.")
    for name, options in config.losses.items():
        if isinstance(options.get("class_weights"), str):
            raise ValueError(
                f"--streaming: losses.{name}.class_weights counts the pixels of all training masks. Give one number "
                "for each class; a run without --streaming prints them."
            )


def check_workers(stream: StreamedSet, workers: int) -> None:
    """Check that each reading process has a file of its own.

    Raises:
        ValueError: There are fewer files.
    """
    if workers > stream.files:
        raise ValueError(
            f"--streaming: dataloader_num_workers {workers}, but each training process has {stream.files} files to "
            f"share among them. Give at most {stream.files}, or store the data set in more files."
        )


def first_item(train_dataset: Dataset | StreamedSet) -> dict[str, Tensor]:
    """A training crop as the student will see it; streamed ones are not shuffled for that.

    Raises:
        ValueError: There is none.
    """
    if not isinstance(train_dataset, StreamedSet):
        return train_dataset[0]
    items = train_dataset.head(1)
    if not items:
        raise ValueError("There are no training images.")
    return items[0]


def data_facts(args: TrainingArguments, train_dataset: Dataset | StreamedSet, eval_dataset: Dataset | None) -> dict:
    """What a resumed run must share with the one before, so that it ends with the same bits."""
    images = 0 if eval_dataset is None else len(eval_dataset)
    facts = {"validation images": images, "processes": args.world_size}
    if isinstance(train_dataset, StreamedSet):
        # The order of a stream is that of its readers.
        return {
            "training images": f"streamed {train_dataset.source}",
            "dataloader_num_workers": args.dataloader_num_workers,
            **facts,
        }
    return {"training images": len(train_dataset), **facts}


class ReadsStreams(Trainer):
    """The part of [`~hf_segkd.training.trainer.DistillationTrainer`] that reads a [`StreamedSet`].

    Each process reads its own rows. Accelerate is left out: it would read all rows in one process, or all in each.
    """

    def _get_dataloader(self, dataset, *args, **kwargs):
        if not isinstance(dataset, StreamedSet):
            return super()._get_dataloader(NamedImages(dataset), *args, **kwargs)
        return DataLoader(
            NamedStream(dataset),
            batch_size=self._train_batch_size,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
            prefetch_factor=self.args.dataloader_prefetch_factor,
        )


class NamedStream(IterableDataset):
    """A stream whose errors say what to do, also when the network breaks off."""

    def __init__(self, stream: StreamedSet):
        self.stream = stream

    def __iter__(self) -> Iterator:
        try:
            yield from self.stream
        except (OSError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise TrainingFault(
                f"The stream of training images broke off: {reason} Mend it and run the same command with --resume, "
                "which reads it again from the start to that place."
            ) from error
