"""Exports of labeling tools, written from masks whose regions are rectangles: the truth is known pixel by pixel."""

import base64
import io
import json
import zlib
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

LABELS = ("crack", "rust")
SIZE = (40, 48)
# Class, top, left, bottom, right (both exclusive): the second lies partly on the first.
REGIONS = {"a": [(0, 4, 5, 28, 29), (1, 10, 20, 30, 40)], "b": [(1, 0, 0, 40, 10)], "c": []}


def truth(name: str, fill: int = 255) -> np.ndarray:
    """Mask of a picture: class ids, `fill` where there is no region."""
    mask = np.full(SIZE, fill, dtype=np.uint8)
    for label, top, left, bottom, right in REGIONS[name]:
        mask[top:bottom, left:right] = label
    return mask


def write_picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(list(path.stem.encode())).integers(0, 255, (*SIZE, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def write_json(path: Path, content) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def corners(region) -> list[tuple[int, int]]:
    """Corners on the borders between pixels."""
    _, top, left, bottom, right = region
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def corner_pixels(region) -> list[tuple[int, int]]:
    """Corners that are pixels of the region themselves."""
    _, top, left, bottom, right = region
    return [(left, top), (right - 1, top), (right - 1, bottom - 1), (left, bottom - 1)]


def coco(root: Path) -> None:
    images, annotations = [], []
    for number, (name, regions) in enumerate(REGIONS.items()):
        write_picture(root / "train" / f"{name}.jpg")
        images.append({"id": number, "file_name": f"{name}.jpg", "height": SIZE[0], "width": SIZE[1]})
        for region in regions:
            outline = [number for corner in corners(region) for number in corner]
            entry = {"id": len(annotations), "image_id": number, "category_id": region[0] + 1, "iscrowd": 0}
            annotations.append(entry | {"segmentation": [outline], "bbox": [0, 0, 1, 1], "area": 1})
    categories = [{"id": 0, "name": "defects", "supercategory": "none"}]
    categories += [{"id": i + 1, "name": name, "supercategory": "defects"} for i, name in enumerate(LABELS)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    write_json(root / "train" / "_annotations.coco.json", content)


def coco_run_lengths(root: Path) -> None:
    """Uncompressed run lengths, column by column, as COCO's crowds have them."""
    coco(root)
    file = root / "train" / "_annotations.coco.json"
    content = json.loads(file.read_text())
    regions = [region for name in REGIONS for region in REGIONS[name]]
    for annotation, (_, top, left, bottom, right) in zip(content["annotations"], regions, strict=True):
        mask = np.zeros(SIZE, dtype=np.uint8)
        mask[top:bottom, left:right] = 1
        flat = np.concatenate([[0], mask.T.flatten(), [2]])
        changes = np.flatnonzero(np.diff(flat)) if mask[0, 0] == 0 else np.flatnonzero(np.diff(flat))
        counts = np.diff(np.concatenate([[0], changes])).tolist()
        annotation["segmentation"] = {"size": list(SIZE), "counts": counts}
    write_json(file, content)


def coco_panoptic(root: Path, split: str = "val2017") -> None:
    images, annotations = [], []
    for number, (name, regions) in enumerate(REGIONS.items()):
        write_picture(root / split / f"{name}.jpg")
        images.append({"id": number, "file_name": f"{name}.jpg", "height": SIZE[0], "width": SIZE[1]})
        segments = np.zeros((*SIZE, 3), dtype=np.uint8)
        info = []
        for index, (label, top, left, bottom, right) in enumerate(regions):
            segments[top:bottom, left:right] = (7, 1 + index, 2)
            info.append({"id": 7 + 256 * (1 + index) + 65536 * 2, "category_id": label + 1, "iscrowd": 0})
        folder = root / "annotations" / f"panoptic_{split}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(segments).save(folder / f"{name}.png")
        annotations.append({"image_id": number, "file_name": f"{name}.png", "segments_info": info})
    categories = [{"id": i + 1, "name": name, "supercategory": "x"} for i, name in enumerate(LABELS)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    write_json(root / "annotations" / f"panoptic_{split}.json", content)


def labelme(root: Path) -> None:
    for name, regions in REGIONS.items():
        write_picture(root / f"{name}.jpg")
        shapes = []
        for region in regions:
            shape = {"label": LABELS[region[0]], "points": corner_pixels(region), "shape_type": "polygon"}
            shapes.append(shape)
        content = {"version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": f"{name}.jpg", "imageData": None}
        write_json(root / f"{name}.json", content | {"imageHeight": SIZE[0], "imageWidth": SIZE[1]})


def yolo(root: Path) -> None:
    root.mkdir(parents=True, exist_ok=True)
    (root / "data.yaml").write_text(yaml.safe_dump({"train": "images/train", "names": dict(enumerate(LABELS))}))
    for name, regions in REGIONS.items():
        write_picture(root / "images" / "train" / f"{name}.jpg")
        lines = []
        for region in regions:
            # Half a pixel inside, as converters from masks write the middle of border pixels.
            numbers = [f"{(x + 0.5) / SIZE[1]:.6f} {(y + 0.5) / SIZE[0]:.6f}" for x, y in corner_pixels(region)]
            lines.append(f"{region[0]} " + " ".join(numbers))
        file = root / "labels" / "train" / f"{name}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("\n".join(lines))


def supervisely(root: Path) -> None:
    classes = [{"title": name, "shape": "any", "color": "#FF0000"} for name in LABELS]
    write_json(root / "meta.json", {"classes": classes, "tags": []})
    for name, regions in REGIONS.items():
        write_picture(root / "ds" / "img" / f"{name}.jpg")
        objects = []
        for index, region in enumerate(regions):
            entry = {"classTitle": LABELS[region[0]]}
            if index == 0:
                points = {"exterior": corner_pixels(region), "interior": []}
                objects.append(entry | {"geometryType": "polygon", "points": points})
                continue
            _, top, left, bottom, right = region
            stream = io.BytesIO()
            Image.fromarray(np.full((bottom - top, right - left), 255, dtype=np.uint8)).save(stream, "PNG")
            data = base64.b64encode(zlib.compress(stream.getvalue())).decode()
            objects.append(entry | {"geometryType": "bitmap", "bitmap": {"data": data, "origin": [left, top]}})
        size = {"height": SIZE[0], "width": SIZE[1]}
        write_json(root / "ds" / "ann" / f"{name}.jpg.json", {"size": size, "objects": objects})


def label_studio(root: Path) -> None:
    tasks = []
    for name, regions in REGIONS.items():
        write_picture(root / "images" / f"1234abcd-{name}.jpg")
        result = []
        for index, region in enumerate(regions):
            common = {"original_height": SIZE[0], "original_width": SIZE[1], "from_name": "tag", "to_name": "image"}
            if index == 0:
                points = [[100 * x / SIZE[1], 100 * y / SIZE[0]] for x, y in corners(region)]
                value = {"points": points, "polygonlabels": [LABELS[region[0]]]}
                result.append(common | {"type": "polygonlabels", "value": value})
                continue
            _, top, left, bottom, right = region
            mask = np.zeros(SIZE, dtype=np.uint8)
            mask[top:bottom, left:right] = 255
            value = {"format": "rle", "rle": pack(mask), "brushlabels": [LABELS[region[0]]]}
            result.append(common | {"type": "brushlabels", "value": value})
        data = {"image": f"/data/upload/1/1234abcd-{name}.jpg"}
        tasks.append({"id": len(tasks), "data": data, "annotations": [{"result": result, "was_cancelled": False}]})
    write_json(root / "project-1.json", tasks)


def pack(mask: np.ndarray) -> list[int]:
    """Label Studio's run lengths of a brush: runs of equal bytes, and one run of different bytes."""
    values = np.repeat(mask.flatten(), 4).tolist()
    bits = f"{len(values):032b}{7:05b}" + "".join(f"{width - 1:04b}" for width in (3, 4, 8, 16))
    place = 0
    while place < len(values):
        end = place
        while end < len(values) and values[end] == values[place] and end - place < 65536:
            end += 1
        if place == 0:  # some bytes one by one, to use that form too
            end = min(4, end)
            bits += f"0{0:02b}{end - place - 1:03b}" + "".join(f"{x:08b}" for x in values[place:end])
        else:
            bits += f"1{3:02b}{end - place - 1:016b}{values[place]:08b}"
        place = end
    bits += "0" * (-len(bits) % 8)
    return [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)]


def ade20k_full(root: Path) -> None:
    for name, regions in REGIONS.items():
        folder = root / "images" / "training" / "urban"
        write_picture(folder / f"{name}.jpg")
        segments = np.zeros((*SIZE, 3), dtype=np.uint8)
        objects = []
        for index, (label, top, left, bottom, right) in enumerate(regions):
            number = (300, 2978)[label]
            segments[top:bottom, left:right] = (number // 256 * 10, number % 256, index + 1)
            objects.append({"name": LABELS[label], "name_ndx": number, "parts": {"part_level": 0}})
        Image.fromarray(segments).save(folder / f"{name}_seg.png")
        write_json(folder / f"{name}.json", {"annotation": {"object": objects}})


EXPORTS = {
    "coco": coco,
    "coco with run lengths": coco_run_lengths,
    "coco panoptic": coco_panoptic,
    "labelme": labelme,
    "yolo": yolo,
    "supervisely": supervisely,
    "label_studio": label_studio,
    "ade20k_full": ade20k_full,
}
