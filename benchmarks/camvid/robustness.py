"""Score finished students of the stage `methods` on CamVid's test images in fog, darkness, noise, blur and JPEG.

    python -m benchmarks.camvid.robustness --data_dir CamVid --output_dir runs/camvid

The pictures are made on the fly: image i is disturbed by a generator seeded with i, so that all students see the same
pixels. What is scored once is kept in `robustness` of `--output_dir` and not measured again; results of a disturbance
go to its folder in `robustness` of `--results`.
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
from safetensors.torch import load_file, save_file
from torch.utils.data import Dataset

from benchmarks.camvid.__main__ import RESULTS
from dataset_builders import open_dataset
from hf_segkd.commands.benchmark import COUNTS, SCORES
from hf_segkd.evaluation.scoring import evaluate
from hf_segkd.evaluation.segmenter import Segmenter
from hf_segkd.loading.any_model import load_model
from hf_segkd.reports.files import write_json
from hf_segkd.reports.method_benchmark import write_results

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
    runs = Path(arguments.output_dir)
    students = sorted(path.parent for path in (runs / "methods").glob(f"*/seed*/{SCORES}"))
    for disturbance in arguments.disturbances:
        images = disturbed(dataset.evaluation_set("test"), DISTURBANCES[disturbance])
        folders = []
        for student in students:
            folder = runs / "robustness" / disturbance / student.parent.name / student.name
            if not is_scored(student, folder):
                score(student, images, dataset.spec.ignore_index, folder)
            folders.append(folder)
        collect(folders, Path(arguments.results) / "robustness" / disturbance)


def is_scored(student: Path, folder: Path) -> bool:
    """Whether the folder has the scores of the student as it is now."""
    kept, clean = folder / SCORES, student / SCORES
    if not kept.is_file():
        return False
    hashes = [json.loads(file.read_text(encoding="utf-8"))["student"] for file in (kept, clean)]
    return hashes[0] == hashes[1]


def score(student: Path, images: list[dict], ignore_index: int, folder: Path) -> None:
    """Score a finished student and keep what was counted on each image."""
    evaluation = evaluate(Segmenter(*load_model(str(student))), images, ignore_index=ignore_index)
    clean = json.loads((student / SCORES).read_text(encoding="utf-8"))
    scores = clean | {"mean_iou": evaluation.scores()["mean_iou"]}
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"counts": evaluation.per_image.int()}, folder / COUNTS)
    write_json(scores, folder / SCORES)  # last: it says that all is there
    print(f"{folder}: {100 * scores['mean_iou']:.2f}", flush=True)


def collect(folders: list[Path], target: Path) -> None:
    """Put the scores of all students under one disturbance into one folder of results."""
    scores = [json.loads((folder / SCORES).read_text(encoding="utf-8")) for folder in folders]
    counts = [load_file(folder / COUNTS)["counts"] for folder in folders]
    target.mkdir(parents=True, exist_ok=True)
    write_results(scores, counts, "baseline", target)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "benchmarks.camvid.robustness", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data_dir", required=True, help="folder of CamVid")
    add("--output_dir", required=True, help="folder of the runs, as of benchmarks.camvid")
    add("--results", default=str(RESULTS), help="folder of the results (default: the committed one)")
    add("--disturbances", nargs="+", choices=DISTURBANCES, default=list(DISTURBANCES), help="which (default: all)")
    return parser


if __name__ == "__main__":
    main()
