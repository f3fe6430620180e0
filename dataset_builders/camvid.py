"""CamVid as published with SegNet: 11 classes, 367 / 101 / 233 images of 480 x 360 pixels.

python dataset_builders/camvid.py --data_dir CamVid --output camvid_prepared
"""

import argparse
import io
import os
import sys
from pathlib import Path

import datasets
import numpy as np
import PIL.Image

from hf_segkd.data.datasets import DATASETS

SPEC = DATASETS["camvid"]
VOID = 11  # raw id of unlabelled pixels
FOLDERS = {"train": ("train", "trainannot"), "validation": ("val", "valannot"), "test": ("test", "testannot")}
COUNTS = {"train": 367, "validation": 101, "test": 233}
SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm"}


class CamVid(datasets.GeneratorBasedBuilder):
    """Reads the folders `train`, `trainannot`, `val`, `valannot`, `test`, `testannot` below `data_dir`.

    The pairs are those of `train.txt`, `val.txt`, `test.txt` where these exist, else files of the same stem. Images
    are kept as they are; annotations become PNG of train ids with void as 255.

    Reference: Brostow et al., Semantic Object Classes in Video: A High-Definition Ground Truth Database, 2009.
    """

    VERSION = datasets.Version("1.0.0")

    @staticmethod
    def find_pairs(data_dir: str | None) -> dict[str, list[tuple[Path, Path]]]:
        """Image and annotation path of every item, by split; splits without folders are left out."""
        root = _check_root(data_dir)
        pairs = {}
        for split, folders in FOLDERS.items():
            missing = [folder for folder in folders if not (root / folder).is_dir()]
            if len(missing) == 1:
                raise ValueError(f"{root} lacks the folder '{missing[0]}' of its {split} split. Add it.")
            if not missing:
                listing = root / f"{folders[0]}.txt"
                pairs[split] = _read_list(root, listing) if listing.is_file() else _match_stems(root, *folders)
        return pairs

    def _info(self):
        image, annotation = datasets.Image(mode="RGB"), datasets.Image()
        features = {"image": image, "annotation": annotation, "image_id": datasets.Value("string")}
        return datasets.DatasetInfo(description=self.__doc__, features=datasets.Features(features))

    def _split_generators(self, dl_manager):
        return [
            datasets.SplitGenerator(name=split, gen_kwargs={"pairs": [tuple(map(str, pair)) for pair in pairs]})
            for split, pairs in self.find_pairs(dl_manager.manual_dir).items()
        ]

    def _generate_examples(self, pairs):
        for index, (image, annotation) in enumerate(pairs):
            train_ids = {"bytes": _train_ids(image, annotation), "path": None}
            stem = os.path.splitext(os.path.basename(image))[0]
            yield index, {"image": image, "annotation": train_ids, "image_id": stem}


def _check_root(data_dir: str | None) -> Path:
    wanted = ", ".join(f"{image}/ + {annotation}/" for image, annotation in FOLDERS.values())
    if not data_dir:
        raise ValueError(f"CamVid needs data_dir, the folder that holds {wanted} (at least one of these pairs).")
    root = Path(os.path.abspath(os.path.expanduser(data_dir)))
    if not root.is_dir():
        raise ValueError(f"data_dir {root} is not a folder. CamVid needs one that holds {wanted}.")
    names = {folder for pair in FOLDERS.values() for folder in pair}
    if not any((root / name).is_dir() for name in names):
        found = sorted(os.listdir(root))
        shown = ", ".join(found[:8]) + (f", ... ({len(found)} entries)" if len(found) > 8 else "")
        inside = [name for name in found if any((root / name / folder).is_dir() for folder in names)]
        hint = f" Did you mean {root / inside[0]}?" if inside else " Point data_dir at the folder of SegNet's CamVid."
        raise ValueError(f"No CamVid in {root}: looked for {wanted}; found {shown or 'an empty folder'}.{hint}")
    return root


def _read_list(root: Path, listing: Path) -> list[tuple[Path, Path]]:
    """Pairs of a list file, whose lines hold an image and an annotation path that end in `folder/name`."""
    pairs = []
    for number, line in enumerate(listing.read_text(encoding="utf-8-sig").splitlines(), start=1):
        fields = line.replace("\\", "/").split()
        if fields and len(fields) != 2:
            raise ValueError(
                f"Line {number} of {listing} holds {len(fields)} paths, expected an image and an annotation: '{line}'."
            )
        if fields:
            pairs.append(tuple(_resolve(root, field, f"line {number} of {listing}") for field in fields))
    if not pairs:
        raise ValueError(f"{listing} lists no image. Remove it to use the content of the folders.")
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
            names = ", ".join(extra[:3]) + (", ..." if len(extra) > 3 else "")
            raise ValueError(
                f"{len(extra)} file(s) of {root / folder} have no counterpart of the same name in {root / other}: "
                f"{names}. Add the missing files, or remove these."
            )
    if not image_files:
        raise ValueError(f"{root / images} holds no image. Looked for files ending in {', '.join(sorted(SUFFIXES))}.")
    return [(image_files[stem], annotation_files[stem]) for stem in sorted(image_files)]


def _by_stem(folder: Path) -> dict[str, Path]:
    files = {}
    for name in sorted(os.listdir(folder)):
        stem, suffix = os.path.splitext(name)
        if suffix.lower() not in SUFFIXES or name.startswith("."):
            continue
        if stem in files:
            raise ValueError(f"{folder} holds both {files[stem].name} and {name}. Keep one file per image.")
        files[stem] = folder / name
    return files


def _train_ids(image: str, annotation: str) -> bytes:
    """PNG of the annotation with void mapped to 255, after checking its values and its size."""
    try:
        with PIL.Image.open(image) as opened:
            size = opened.size
        with PIL.Image.open(annotation) as opened:
            raw = np.array(opened)
    except OSError as error:
        raise ValueError(f"Cannot read the pair {image}, {annotation}: {error}. Restore the files.") from error
    if raw.ndim != 2 or raw.dtype.kind not in "bui":
        raise ValueError(f"{annotation} is a colour picture, expected one class id per pixel. Use SegNet's.")
    if raw.shape != size[::-1]:
        raise ValueError(f"{annotation} has {raw.shape[1]} x {raw.shape[0]} pixels, its image {size[0]} x {size[1]}.")
    wrong = (raw < 0) | (raw > VOID) & (raw != SPEC.ignore_index)
    if wrong.any():
        values = np.unique(raw[wrong])[:10].tolist()
        raise ValueError(
            f"{annotation} holds the values {values}; allowed are 0 to {SPEC.num_labels - 1}, {VOID} (void) and "
            f"{SPEC.ignore_index}. Use the annotations of SegNet's CamVid, not colours or the 32-class ids."
        )
    buffer = io.BytesIO()
    PIL.Image.fromarray(np.where(raw == VOID, SPEC.ignore_index, raw).astype(np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", required=True, help="folder that holds train/, trainannot/, val/, ...")
    parser.add_argument("--output", required=True, help="new folder, for datasets.load_from_disk")
    args = parser.parse_args()
    if os.path.isdir(args.output) and os.listdir(args.output):
        raise SystemExit(f"error: --output {args.output} is not empty. Choose a new folder.")
    # Imported from the package, not from this script: `datasets` names a builder after its module.
    from dataset_builders import load_splits

    try:
        splits = load_splits("camvid", args.data_dir)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None
    splits.save_to_disk(args.output)
    for split, expected in COUNTS.items():
        count = len(splits[split]) if split in splits else 0
        print(f"{split}: {count} images")
        if count != expected:
            print(f"warning: the published {split} split has {expected} images", file=sys.stderr)
    print(f"saved to {args.output}")


if __name__ == "__main__":
    main()
