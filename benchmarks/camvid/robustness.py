"""Score finished students of the stage `methods` on CamVid's test images in fog, darkness, noise, blur and JPEG.

    python -m benchmarks.camvid.robustness --data_dir CamVid --output_dir runs/camvid

The pictures are made on the fly: image i is disturbed by a generator seeded with i, so that all students see the same
pixels. Scores go to `robustness.json` of `--results`; what is there already is not measured again.
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch.utils.data import Dataset

from benchmarks.camvid.__main__ import RESULTS
from dataset_builders import open_dataset
from hf_segkd.evaluation.scoring import evaluate
from hf_segkd.evaluation.segmenter import Segmenter
from hf_segkd.loading.any_model import load_model
from hf_segkd.reports.files import write_json

Disturb = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def fog(image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Blend with light gray; how much varies smoothly over the picture, 45 to 75 percent."""
    height, width = image.shape[:2]
    coarse = Image.fromarray(generator.uniform(0.45, 0.75, (4, 5)).astype(np.float32))
    share = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))[..., None]
    return image * (1 - share) + 225 * share


def darkness(image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """A quarter of the light, with the noise of a sensor: standard deviation 4 of 255."""
    return image * 0.25 + generator.normal(0, 4, image.shape)


def noise(image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Gaussian noise of standard deviation 20 of 255."""
    return image + generator.normal(0, 20, image.shape)


def blur(image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Gaussian blur of radius 2 pixels."""
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(2)))


def jpeg(image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """JPEG of quality 15."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=15)
    return np.asarray(Image.open(file))


DISTURBANCES: dict[str, Disturb] = {"fog": fog, "darkness": darkness, "noise": noise, "blur": blur, "jpeg": jpeg}


def disturbed(dataset: Dataset, disturb: Disturb) -> list[dict]:
    """The items of an evaluation set with their pictures disturbed; uint8 RGB (3, H, W) as before."""
    return [one_disturbed(dataset[index], disturb, index) for index in range(len(dataset))]


def one_disturbed(item: dict, disturb: Disturb, seed: int) -> dict:
    image = item["pixel_values"].permute(1, 2, 0).numpy()
    found = disturb(image, np.random.default_rng(seed))
    pixels = np.clip(np.rint(found), 0, 255).astype(np.uint8)
    return {**item, "pixel_values": torch.from_numpy(pixels).permute(2, 0, 1).contiguous()}


def main(argv: list[str] | None = None) -> None:
    arguments = parser().parse_args(argv)
    dataset = open_dataset("camvid", arguments.data_dir)
    folders = sorted((Path(arguments.output_dir) / "methods").glob("*/seed*"))
    students = {f"{folder.parent.name}/{folder.name.removeprefix('seed')}": folder for folder in folders}
    file = Path(arguments.results) / "robustness.json"
    scores = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    for disturbance, disturb in DISTURBANCES.items():
        images = disturbed(dataset.evaluation_set("test"), disturb)
        for name, folder in students.items():
            if disturbance in scores.get(name, {}) or not (folder / "scores.json").is_file():
                continue
            evaluation = evaluate(Segmenter(*load_model(str(folder))), images, ignore_index=dataset.spec.ignore_index)
            scores.setdefault(name, {})[disturbance] = evaluation.scores()["mean_iou"]
            write_json(scores, file)
            print(f"{name}, {disturbance}: {100 * scores[name][disturbance]:.2f}", flush=True)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "benchmarks.camvid.robustness", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data_dir", required=True, help="folder of CamVid")
    add("--output_dir", required=True, help="folder of the runs, as of benchmarks.camvid")
    add("--results", default=str(RESULTS), help="folder of robustness.json (default: the committed one)")
    return parser


if __name__ == "__main__":
    main()
