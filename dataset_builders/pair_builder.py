"""What the builders of published datasets share: pairs of files in, rows with train ids out."""

from collections import Counter
from pathlib import PurePosixPath
from types import ModuleType

import datasets

from dataset_builders import files
from dataset_builders.files import FileReader, Part, RawFile, examples, list_parts, match
from dataset_builders.listing import Listing, Pairs
from hf_segkd.data import label_map, pixels, raw
from hf_segkd.data.label_map import LabelMap, encode_train_ids
from hf_segkd.data.specs import DatasetSpec


def unique_names(images: list[RawFile]) -> list[str]:
    """Names of files without folder and suffix; where two would be equal, with as many folders as tell them apart."""
    paths = [PurePosixPath(image.path.as_posix(), image.member).with_suffix("") for image in images]
    depth = 1
    names = [path.name for path in paths]
    while len(set(names)) < len(names) and depth < max(len(path.parts) for path in paths):
        depth += 1
        counts = Counter(names)
        longer = ["/".join(path.parts[-depth:]) for path in paths]
        names = [new if counts[name] > 1 else name for name, new in zip(names, longer, strict=True)]
    return names


class PairBuilder(datasets.GeneratorBasedBuilder):
    """Pairs an image with its annotation by the part of their paths that both share.

    Images in folders stay where they are and as they are; those inside zip archives are copied into the cache.
    Annotations become gray PNGs of train ids, 255 where nothing is labeled.

    A subclass sets:
        SPEC (`DatasetSpec`): Classes, splits and license; `None` where the user names the classes.
        TITLE, PAGE (`str`): The dataset's name, and the sentence that says where to get it, for messages.
        PARTS (`tuple[Part, ...]`): What a complete download consists of.
        LAYOUT (`dict[str, tuple[str, str | None]]`): Per split, how paths of images and of annotations end: regular
            expressions whose group is what both share. No annotations: everything is ignored.
        COUNTS (`dict[str, int]`): Images per split as published.
        CODE (`tuple[ModuleType, ...]`): Modules beside the subclass's own that rows depend on.

    Before it prepares anything, an instance is given `pairs`, what [`find_pairs`] found and is to be used.
    """

    VERSION = datasets.Version("1.0.0")
    SPEC: DatasetSpec | None = None
    TITLE: str
    PAGE: str
    PARTS: tuple[Part, ...]
    LAYOUT: dict[str, tuple[str, str | None]]
    COUNTS: dict[str, int] = {}
    CODE: tuple[ModuleType, ...] = (files, label_map, pixels, raw)
    pairs: dict[str, Pairs]

    @classmethod
    def spec(cls, data_dir: str | None, config: datasets.BuilderConfig) -> DatasetSpec:
        """Classes and splits under a configuration."""
        return cls.SPEC

    @classmethod
    def counts(cls, config: datasets.BuilderConfig) -> dict[str, int]:
        """Published number of images per split under a configuration."""
        return cls.COUNTS

    @classmethod
    def parts(cls, data_dir: str | None) -> tuple[Part, ...]:
        """What the download in `data_dir` should consist of."""
        return cls.PARTS

    @classmethod
    def label_map(cls, config: datasets.BuilderConfig) -> LabelMap:
        """What the raw annotation values mean."""
        raise NotImplementedError

    @classmethod
    def turns_masks(cls, config: datasets.BuilderConfig) -> bool:
        """Whether annotations are turned as EXIF turns their images."""
        return False

    @classmethod
    def has_bands(cls, config: datasets.BuilderConfig) -> bool:
        """Whether images hold named bands, which are kept as they are stored, instead of 8-bit RGB."""
        return False

    @classmethod
    def unused(cls, config: datasets.BuilderConfig) -> list[str]:
        """Pictures that lie in the folder and are in no split."""
        return []

    @classmethod
    def use_listing(cls, config: datasets.BuilderConfig, listing: Listing) -> None:
        """Take what an earlier run listed in place of looking again."""

    @classmethod
    def draws_masks(cls, config: datasets.BuilderConfig) -> bool:
        """Whether annotations are drawn from shapes, so that a list of files does not hold them."""
        return False

    @classmethod
    def annotation_key(cls, config: datasets.BuilderConfig) -> str:
        """Text that changes with the meaning of the raw values, for the cache."""
        return repr((sorted(cls.label_map(config).ids.items()), cls.turns_masks(config), cls.has_bands(config)))

    @classmethod
    def find_pairs(cls, data_dir: str | None, config: datasets.BuilderConfig) -> dict[str, Pairs]:
        """Image and annotation of every item, by split; splits without images are left out.

        Raises:
            `ValueError`: If parts are missing, or images and annotations do not pair up.
        """
        found = list_parts(data_dir, cls.parts(data_dir), cls.TITLE, cls.PAGE)
        pairs = {split: cls.pair(found, split, *patterns) for split, patterns in cls.LAYOUT.items()}
        if not any(pairs.values()):
            wanted = ", ".join(image for image, _ in cls.LAYOUT.values())
            raise ValueError(f"{cls.TITLE} in {data_dir} has no image whose path ends in {wanted}. {cls.PAGE}")
        return {split: items for split, items in pairs.items() if items}

    @classmethod
    def pair(cls, found: dict[str, RawFile], split: str, image: str, annotation: str | None) -> Pairs:
        """Pairs of one split in the order of their shared names; empty when there are no images."""
        images = match(found, image)
        if annotation is None:
            return [(images[key], None) for key in sorted(images)]
        annotations = match(found, annotation)
        if not images:
            return []
        for lacking, what, pattern in (
            (images.keys() - annotations.keys(), "images have no annotation", annotation),
            (annotations.keys() - images.keys(), "annotations have no image", image),
        ):
            if lacking:
                total = len(images) if what.startswith("images") else len(annotations)
                raise ValueError(
                    f"{len(lacking)} of {total} {split} {what} ({pattern}): {examples(lacking)}. "
                    f"The download of {cls.TITLE} is incomplete. {cls.PAGE}"
                )
        return [(images[key], annotations[key]) for key in sorted(images)]

    def _info(self):
        image, annotation = datasets.Image(mode="RGB"), datasets.Image()
        if self.has_bands(self.config):
            image = datasets.Image(decode=False)  # Pillow would cut values off, or open nothing
        features = {"image": image, "annotation": annotation, "image_id": datasets.Value("string")}
        return datasets.DatasetInfo(description=self.__doc__, features=datasets.Features(features))

    def _split_generators(self, dl_manager):
        generators = []
        for split, pairs in self.pairs.items():
            generator = datasets.SplitGenerator(name=split, gen_kwargs={"pairs": pairs})
            generator.split_info.num_examples = len(pairs)  # the bar shows the time left
            generators.append(generator)
        return generators

    def _generate_examples(self, pairs):
        lookup = self.label_map(self.config)
        options = self.turns_masks(self.config), self.has_bands(self.config)
        names = unique_names([image for image, _ in pairs])
        with FileReader() as reader:
            for index, (image, annotation) in enumerate(pairs):
                sources = reader.source(image), reader.source(annotation) if annotation else None
                ids = encode_train_ids(*sources, lookup, (str(image), str(annotation)), *options)
                stored = {"bytes": reader.read(image), "path": None} if image.member else str(image)
                yield index, {"image": stored, "annotation": {"bytes": ids, "path": None}, "image_id": names[index]}
