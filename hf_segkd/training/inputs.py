"""What a run trains and validates on: checked files, augmentation, and optionally decoded images on disk."""

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from dataset_builders import BUILDERS, DataArguments
from dataset_builders.opened import OpenedDataset
from hf_segkd.data import DatasetSpec, PhotometricJitter, SegmentationDataset, TrainTransform
from hf_segkd.training.checks import check_data


@dataclass(kw_only=True)
class InputArguments(DataArguments):
    """Which data, how its files are checked and its images are augmented."""

    dataset: str = field(metadata={"help": ", ".join(BUILDERS) + "; or a folder or Hub id."})
    data_dir: str | None = field(default=None, metadata={"help": "Folder of the raw dataset."})
    check_data: Literal["sample", "full", "none"] = field(
        default="sample", metadata={"help": "Files to check before training: 1000 of each split, all, or none."}
    )
    skip_unreadable: bool = field(default=False, metadata={"help": "Leave out training images that cannot be read."})
    cache_dir: str | None = field(default=None, metadata={"help": "Folder for decoded images: no decoding per step."})
    crop_size: list[int] = field(default_factory=lambda: [512, 1024], metadata={"help": "Height and width, pixels."})
    scale_range: list[float] = field(default_factory=lambda: [0.5, 2.0], metadata={"help": "Random scale, from, to."})
    flip: float = field(default=0.5, metadata={"help": "Probability of a horizontal flip."})
    interpolation: str = field(
        default="antialias", metadata={"help": "How crops are scaled: antialias, or opencv, as the originals do."}
    )
    cat_max_ratio: float = field(default=1.0, metadata={"help": "Draw crops with more of one class again; 1: never."})
    jitter: dict | str | None = field(
        default=None, metadata={"help": "Random colors: {brightness: , contrast: , saturation: , hue: }, all 0."}
    )


class TrainingData(NamedTuple):
    """Both datasets, and how many training images were left out because they cannot be read."""

    train: SegmentationDataset
    validation: SegmentationDataset
    skipped: int


def training_data(arguments: InputArguments, dataset: OpenedDataset, seed: int) -> TrainingData:
    """Check the files, then load both splits.

    Raises:
        `ValueError`: For an unknown option, or anything that is wrong with the data.
    """
    transform = _train_transform(arguments, dataset.spec)
    skipped = check_data(dataset, arguments.check_data, arguments.skip_unreadable)
    options = {"seed": seed, "skip": {dataset.spec.train_split: skipped}, "decoded_dir": arguments.cache_dir}
    return TrainingData(dataset.training_set(transform, **options), dataset.evaluation_set(**options), len(skipped))


def _train_transform(arguments: InputArguments, spec: DatasetSpec) -> TrainTransform:
    try:
        jitter = PhotometricJitter(**arguments.jitter) if arguments.jitter else None
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
