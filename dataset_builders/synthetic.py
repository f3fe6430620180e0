"""Procedural street scenes: no download, any number of images, each a pure function of (seed, split, index).

Gray is shared by road, pavement, buildings and cars, green by trees and cars, bright colors by signs, billboards and
clothes: shape and context decide, which is what a larger network is better at.
"""

from dataclasses import dataclass

import datasets
import numpy as np
import PIL.Image

from dataset_builders import street_scenes
from dataset_builders.street_scenes import SPEC, SPLITS, draw_scene
from hf_segkd.data.specs import DatasetSpec


@dataclass
class SyntheticConfig(datasets.BuilderConfig):
    """Images per split, how many of the train images have labels, height and width in pixels (at least 32), seed."""

    num_train: int = 400
    num_labeled: int | None = None  # None is all; the others' annotations hold ignore_index alone
    num_validation: int = 80
    num_test: int = 80
    height: int = 96
    width: int = 128
    seed: int = 0

    def __post_init__(self):
        super().__post_init__()
        for name in ("num_train", "num_validation", "num_test", "height", "width", "seed"):
            lowest, value = 32 if name in ("height", "width") else 0, getattr(self, name)
            if value < lowest:
                raise ValueError(f"{name} of the synthetic dataset must be at least {lowest}, got {value}.")


class Synthetic(datasets.GeneratorBasedBuilder):
    """Streets drawn on demand; see [`~dataset_builders.street_scenes.draw_scene`] and [`SyntheticConfig`]."""

    VERSION = datasets.Version("1.0.0")
    BUILDER_CONFIG_CLASS = SyntheticConfig
    CODE = (street_scenes,)
    SPEC = SPEC

    @classmethod
    def spec(cls, data_dir: str | None, config: SyntheticConfig) -> DatasetSpec:
        """Classes and splits, the same under every configuration."""
        return cls.SPEC

    @classmethod
    def counts(cls, config: SyntheticConfig) -> dict[str, int]:
        """Nothing was published that the numbers could differ from."""
        return {}

    @classmethod
    def annotation_key(cls, config: SyntheticConfig) -> str:
        """Annotations are drawn as train ids."""
        return ""

    @classmethod
    def find_pairs(cls, data_dir: str | None, config: SyntheticConfig) -> dict[str, list]:
        """No files: every split is drawn, whatever `data_dir` is."""
        return {split: [] for split in SPLITS}

    def _info(self):
        image, annotation = datasets.Image(mode="RGB"), datasets.Image()
        features = {"image": image, "annotation": annotation, "image_id": datasets.Value("string")}
        return datasets.DatasetInfo(description=__doc__, features=datasets.Features(features))

    def _split_generators(self, dl_manager):
        counts = (self.config.num_train, self.config.num_validation, self.config.num_test)
        generators = []
        for split, count in zip(SPLITS, counts, strict=True):
            generator = datasets.SplitGenerator(name=split, gen_kwargs={"split": split, "indices": list(range(count))})
            generator.split_info.num_examples = count  # the bar shows the time left
            generators.append(generator)
        return generators

    def _generate_examples(self, split, indices):
        for index in indices:
            image, labels = draw_scene(split, index, self.config.height, self.config.width, self.config.seed)
            if split == "train" and self.config.num_labeled is not None and index >= self.config.num_labeled:
                labels = np.full_like(labels, SPEC.ignore_index)
            image, labels = PIL.Image.fromarray(image), PIL.Image.fromarray(labels)
            yield index, {"image": image, "annotation": labels, "image_id": f"{split}_{index:05d}"}
