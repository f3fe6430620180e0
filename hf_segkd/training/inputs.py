"""What a run trains and validates on: checked files, augmentation, and optionally decoded images on disk."""

import logging
from typing import NamedTuple

import datasets

from dataset_builders import data_options, open_dataset
from dataset_builders.opened import OpenedDataset
from dataset_builders.unlabeled import unlabeled_images
from hf_segkd.data import BandJitter, DatasetSpec, PhotometricJitter, SegmentationDataset, TrainTransform
from hf_segkd.data.streaming import StreamedSet
from hf_segkd.data.unlabeled import JoinedRows, UnlabeledRows
from hf_segkd.distributed import rank, world_size
from hf_segkd.models import Bands
from hf_segkd.training.checks import check_data
from hf_segkd.training.options import InputArguments

logger = logging.getLogger(__name__)


class TrainingData(NamedTuple):
    """Both datasets, the training images that were left out because they cannot be read, those without
    labels, and the labeled ones whole, unless they are streamed."""

    train: SegmentationDataset | StreamedSet
    validation: SegmentationDataset
    skipped: list[int]
    unlabeled: datasets.Dataset | None
    whole_train: SegmentationDataset | None


def open_training_data(arguments: InputArguments) -> OpenedDataset:
    """Open what the flags name; see [`~dataset_builders.open_dataset`]."""
    streaming = arguments.streaming
    return open_dataset(arguments.dataset, arguments.data_dir, streaming=streaming, **data_options(arguments))


def training_data(arguments: InputArguments, dataset: OpenedDataset, seed: int) -> TrainingData:
    """Check the files, then load both splits.

    Raises:
        `ValueError`: For an unknown option, or anything that is wrong with the data.
    """
    transform = _train_transform(arguments, dataset.spec, dataset.bands)
    if dataset.streamed:
        return _streamed_data(arguments, dataset, transform, seed)
    skipped = check_data(dataset, arguments.check_data, arguments.skip_unreadable)
    options = {"seed": seed, "skip": {dataset.spec.train_split: skipped}, "decoded_dir": arguments.cache_dir}
    train = dataset.training_set(transform, **options)
    unlabeled = None
    if arguments.unlabeled and dataset.bands is not None:
        raise ValueError("unlabeled: of bands, put images without a mask into the dataset's own images/ folder.")
    if arguments.unlabeled:
        unlabeled = unlabeled_images(arguments.unlabeled)
        train.dataset = JoinedRows(train.dataset, UnlabeledRows(unlabeled, dataset.spec.ignore_index))
        logger.info(
            "Training images: %d of the dataset, %d without labels.", len(train) - len(unlabeled), len(unlabeled)
        )
    whole_train = dataset.evaluation_set(dataset.spec.train_split, **options)
    return TrainingData(train, dataset.evaluation_set(**options), skipped, unlabeled, whole_train)


def _streamed_data(
    arguments: InputArguments, dataset: OpenedDataset, transform: TrainTransform, seed: int
) -> TrainingData:
    check_data(dataset, arguments.check_data)
    place = {"process": rank(), "processes": world_size()}
    train = dataset.stream(transform, seed=seed, shuffle_buffer=arguments.shuffle_buffer, **place)
    if rank() == 0:
        logger.info("Training images are streamed, from %d files in each process; none was checked.", train.files)
    return TrainingData(train, dataset.evaluation_set(seed=seed), [], None, None)


def _train_transform(arguments: InputArguments, spec: DatasetSpec, bands: Bands | None) -> TrainTransform:
    if bands is not None and arguments.interpolation == "opencv":
        raise ValueError("interpolation: opencv repeats what the originals do to 8-bit RGB. Leave it out for bands.")
    try:
        jitter = _jitter(arguments.jitter, bands) if arguments.jitter else None
    except TypeError:
        known = "brightness, contrast, saturation, hue"
        raise ValueError(f"jitter takes {known}, got {arguments.jitter!r}.") from None
    return TrainTransform(
        tuple(arguments.crop_size),
        tuple(arguments.scale_range),
        flip=arguments.flip,
        ignore_index=spec.ignore_index,
        cat_max_ratio=arguments.cat_max_ratio,
        jitter=jitter,
        interpolation=arguments.interpolation,
    )


def _jitter(strengths: dict[str, float], bands: Bands | None) -> PhotometricJitter | BandJitter:
    if bands is None:
        return PhotometricJitter(**strengths)
    scale = None if bands.pixel_range is None else bands.pixel_range[1] - bands.pixel_range[0]
    return BandJitter(**strengths, scale=scale)
