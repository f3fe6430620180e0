"""What the stage without labels is worth: students of 8 labeled synthetic scenes, from scratch and pretrained.

    python -m benchmarks.label_free --output_dir runs/label_free --seeds 0 1 2 3 4
    python -m benchmarks.label_free --teacher facebook/dinov2-small --output_dir runs/label_free_dinov2

Without `--teacher` it is a small DINOv3 with random weights, which needs no download and shows what the mere shape of
such features gives. Labels, steps and schedule of the second stage are the same for both students; finished runs are
not repeated. Writes `label_free.md` (mIoU of each seed, mean paired gain and its standard error) and
`label_free.json`, the same unrounded.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import torch
from PIL import Image
from transformers import DINOv3ViTConfig, DINOv3ViTModel

from dataset_builders.street_scenes import draw_scene
from hf_segkd.commands import distill, pretrain
from hf_segkd.reports.files import write_json
from hf_segkd.reports.tables import markdown_table

LABELED = "8"
RECIPES = ["datasets/synthetic", "pairs/synthetic", "methods/baseline", "--dataset_config.num_train", LABELED]
SIZE = (96, 128)


def main(argv: list[str] | None = None) -> list[dict]:
    arguments = parser().parse_args(argv)
    folder = Path(arguments.output_dir)
    scenes = write_scenes(folder / "scenes", arguments.images)
    teacher = arguments.teacher or random_teacher(folder / "teacher")
    rows = []
    for seed in arguments.seeds:
        rows.append(one_seed(seed, folder / f"seed{seed}", scenes, teacher, arguments))
        write_json(rows, folder / "label_free.json")
    text = table(rows)
    (folder / "label_free.md").write_text(text, encoding="utf-8")
    print(text)
    return rows


def table(rows: list[dict]) -> str:
    """Both students of each seed in percent, the mean paired gain and its standard error in points."""
    gains = [100 * (row["pretrained"] - row["from scratch"]) for row in rows]
    cells = [
        [str(row["seed"]), f"{100 * row['from scratch']:.2f}", f"{100 * row['pretrained']:.2f}", f"{gain:+.2f}"]
        for row, gain in zip(rows, gains, strict=True)
    ]
    text = markdown_table(["seed", "from scratch", "pretrained", "gain"], cells) + "\n"
    if len(gains) > 1:
        error = statistics.stdev(gains) / len(gains) ** 0.5
        text += f"\nMean paired gain {statistics.mean(gains):+.2f} points, standard error {error:.2f}.\n"
    return text


def write_scenes(folder: Path, count: int) -> Path:
    """Draw scenes as files without masks; those of the training split behind the labeled ones."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(int(LABELED), int(LABELED) + count):
        file = folder / f"{index:05d}.png"
        if not file.is_file():
            Image.fromarray(draw_scene("train", index, *SIZE, seed=0)[0]).save(file)
    return folder


def random_teacher(folder: Path) -> str:
    """A small DINOv3 with random weights."""
    if not (folder / "config.json").is_file():
        torch.manual_seed(0)
        sizes = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 128}
        DINOv3ViTModel(DINOv3ViTConfig(**sizes, patch_size=8, num_register_tokens=4)).save_pretrained(folder)
    return str(folder)


def one_seed(seed: int, folder: Path, scenes: Path, teacher: str, arguments: argparse.Namespace) -> dict:
    """Mean IoU of both students of one seed."""
    first = folder / "features"
    argv = ["pairs/synthetic", "--teacher", teacher, "--images", str(scenes), "--output_dir", str(first), "--resume"]
    argv += ["--num_labels", "10", "--crop_size", *map(str, SIZE), "--seed", str(seed)]
    pretrain.main([*argv, "--num_train_epochs", str(arguments.epochs)])
    scores = {"seed": seed}
    for name, words in (("from scratch", []), ("pretrained", ["--student", str(first)])):
        output_dir = folder / name.replace(" ", "_")
        if not (output_dir / "metrics.json").is_file():
            if arguments.steps is not None:
                words += ["--max_steps", str(arguments.steps)]
            distill.main([*RECIPES, *words, "--output_dir", str(output_dir), "--seed", str(seed), "--resume"])
        scores[name] = json.loads((output_dir / "metrics.json").read_text(encoding="utf-8"))["mean_iou"]
    return scores


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", required=True, help="folder for scenes, runs and the table")
    parser.add_argument("--teacher", help="vision backbone: folder or Hub id (default: a random DINOv3)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="seeds (default: 0 1 2 3 4)")
    parser.add_argument("--images", type=int, default=392, help="scenes without labels (default: 392)")
    parser.add_argument("--steps", type=int, help="steps of both students with labels (default: the recipe's)")
    parser.add_argument("--epochs", type=float, default=20, help="passes over them (default: 20)")
    return parser


if __name__ == "__main__":
    main()
