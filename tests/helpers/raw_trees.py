"""Small copies of the published datasets in their official layout, as folders and as official archives."""

import io
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from hf_segkd.data.colors import bit_color

SIZE = (6, 4)  # width, height


def picture(seed: int, suffix: str) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (*SIZE[::-1], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG" if suffix == ".png" else "JPEG")
    return buffer.getvalue()


def mask(*values: int, palette: bool = False) -> bytes:
    """PNG whose first pixels hold `values`, the others the last of them; gray, or with VOC's palette."""
    raw = np.full(SIZE[::-1], values[-1], dtype=np.uint8)
    raw.flat[: len(values)] = values
    image = Image.fromarray(raw)
    if palette:
        image.putpalette([channel for index in range(256) for channel in bit_color(index)])
        assert image.mode == "P"
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def cityscapes() -> dict[str, bytes]:
    files = {"leftImg8bit/README": b"text", "gtFine/license.txt": b"text"}
    places = ("train", "aachen"), ("train", "ulm"), ("val", "lindau"), ("test", "berlin")
    for index, (split, city) in enumerate(places):
        name = f"{city}_000000_00001{index}"
        files[f"leftImg8bit/{split}/{city}/{name}_leftImg8bit.png"] = picture(index, ".png")
        for kind, content in (("labelIds", mask(0, 7, 8, 33, 29, 255, 11)), ("color", picture(9, ".png"))):
            files[f"gtFine/{split}/{city}/{name}_gtFine_{kind}.png"] = content
        files[f"gtFine/{split}/{city}/{name}_gtFine_polygons.json"] = b"{}"
    return files


def voc_aug() -> dict[str, bytes]:
    files = {f"JPEGImages/2007_00000{index}.jpg": picture(index, ".jpg") for index in range(5)}
    for index in range(4):
        files[f"SegmentationClassAug/2007_00000{index}.png"] = mask(0, 15, 20, 255)
    for index in (0, 3):
        files[f"SegmentationClass/2007_00000{index}.png"] = mask(255, 1, 2, 20, 0, palette=True)
    files["ImageSets/Segmentation/train.txt"] = b"2007_000000\n"
    files["ImageSets/Segmentation/val.txt"] = b"2007_000003\n"
    files["ImageSets/Segmentation/trainaug.txt"] = b"2007_000002\n2007_000000\n2007_000001\n"
    return files


def ade20k() -> dict[str, bytes]:
    files = {"objectInfo150.txt": b"table"}
    for split, stem in (("training", "ADE_train_0000000"), ("validation", "ADE_val_0000000")):
        for index in range(2 if split == "training" else 1):
            files[f"images/{split}/{stem}{index}.jpg"] = picture(index, ".jpg")
            files[f"annotations/{split}/{stem}{index}.png"] = mask(0, 1, 7, 150)
    return files


def coco_stuff_164k() -> dict[str, bytes]:
    files = {}
    for split, count in (("train2017", 2), ("val2017", 1)):
        for index in range(count):
            files[f"{split}/00000000000{index}.jpg"] = picture(index, ".jpg")
            files[f"stuffthingmaps/{split}/00000000000{index}.png"] = mask(0, 10, 12, 181, 255)
    return files


TREES = {"cityscapes": cityscapes, "voc_aug": voc_aug, "ade20k": ade20k, "coco_stuff_164k": coco_stuff_164k}
COUNTS = {
    "cityscapes": {"train": 2, "validation": 1, "test": 1},
    "voc_aug": {"train": 3, "validation": 1},
    "ade20k": {"train": 2, "validation": 1},
    "coco_stuff_164k": {"train": 2, "validation": 1},
}
IDS = {  # of the first pixels of a train annotation
    "cityscapes": [255, 0, 1, 18, 255, 255, 2],
    "voc_aug": [0, 15, 20, 255],
    "ade20k": [255, 0, 6, 149],
    "coco_stuff_164k": [0, 10, 12, 181, 255],
}
ARCHIVES = {  # official archive: the folders it holds, and what they are called inside it
    "cityscapes": {
        "leftImg8bit_trainvaltest.zip": {"leftImg8bit": "leftImg8bit"},
        "gtFine_trainvaltest.zip": {"gtFine": "gtFine"},
    },
    "voc_aug": {"SegmentationClassAug.zip": {"SegmentationClassAug": "SegmentationClassAug"}},
    "ade20k": {
        "ADEChallengeData2016.zip": {
            "images": "ADEChallengeData2016/images",
            "annotations": "ADEChallengeData2016/annotations",
        }
    },
    "coco_stuff_164k": {
        "train2017.zip": {"train2017": "train2017"},
        "val2017.zip": {"val2017": "val2017"},
        "stuffthingmaps_trainval2017.zip": {
            "stuffthingmaps/train2017": "train2017",
            "stuffthingmaps/val2017": "val2017",
        },
    },
}


def write(root: Path, files: dict[str, bytes]) -> Path:
    for path, content in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
    return root


def write_archives(root: Path, name: str, files: dict[str, bytes]) -> Path:
    """The same tree, with the folders that have an official archive inside that archive."""
    rest = dict(files)
    root.mkdir()
    for archive, folders in ARCHIVES[name].items():
        with zipfile.ZipFile(root / archive, "w") as opened:
            for folder, inside in folders.items():
                for path in [path for path in rest if path.startswith(f"{folder}/")]:
                    opened.writestr(inside + path.removeprefix(folder), rest.pop(path))
            opened.writestr("__MACOSX/._x.png", b"junk")
    return write(root, rest)
