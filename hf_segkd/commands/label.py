"""Label photos with a model or with words, for a person to correct: masks, an overview page, a folder to train on.

    hf-segkd label "{model: CIDAS/clipseg-rd64-refined, prompts: {road: [road, street], car: car}, background: sky}" \\
        photos --output_dir labeled
    hf-segkd label MODEL photos/*.jpg --output_dir labeled --min_confidence 0.6 --probabilities

MODEL is a folder, a Hub id or an original checkpoint (.pth), or CLIPSeg or SAM 3 with a prompt or several for each
class. OUT gets `images/`, `masks/` (palette PNG, to be corrected in any tool that keeps palettes), `labels.txt` and
`overview.html`, least certain images first. After the correction it is data: `hf-segkd distill --data labeled ...`.
Masks that are there already are kept: a corrected one is never overwritten.
"""

from __future__ import annotations

import argparse
import html
import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from hf_segkd.commands.flags import CommandParser
from hf_segkd.console import plain_logs, readable_errors
from hf_segkd.deployment.label_files import find_images, palette_of, upright, write_label_file
from hf_segkd.reports.files import write_json
from hf_segkd.reports.pictures import Palette, overlay

if TYPE_CHECKING:
    from hf_segkd.evaluation.segmenter import Segmenter

UNLABELED = 255
THUMBNAIL = (480, 360)  # pixels
FACTS_FILE = "labeling.json"
PREVIEWS = ".previews"  # with a dot, since they are no pictures to train on


def main(argv: list[str] | None = None) -> list[Path]:
    """Label as the command line says and return the masks written or found."""
    arguments = parser().parse_args(argv)
    plain_logs()
    from hf_segkd.evaluation.progress import progress
    from hf_segkd.evaluation.segmenter import Segmenter, default_device
    from hf_segkd.loading.any_model import load_model

    folder = Path(arguments.output_dir)
    with readable_errors():
        if not 0 <= arguments.min_confidence < 1:
            raise ValueError(f"min_confidence must be at least 0 and below 1, got {arguments.min_confidence}.")
        images = find_images(arguments.files)
        model, processor = load_model(arguments.model, trust_remote_code=arguments.trust_remote_code)
        if model.config.num_labels > UNLABELED:
            raise ValueError(f"Masks hold up to {UNLABELED} classes, the model has {model.config.num_labels}.")
        segmenter = Segmenter(model, processor, device=arguments.device or default_device())
        names = [segmenter.id2label[index] for index in sorted(segmenter.id2label)]
        check_classes(folder, names)
    palette = palette_of(segmenter.id2label)
    paths = {name: folder / "masks" / f"{name}.png" for name in images}
    pending = [name for name, path in paths.items() if not path.is_file()]
    facts = read_facts(folder)
    failed = []
    for name in progress(pending, len(pending), "labeling"):
        try:
            facts[name] = label_image(segmenter, images[name], folder, palette, arguments)
        except OSError as error:
            failed.append(f"{name}: {error}")
    (folder / "labels.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
    write_json({"model": arguments.model, "images": facts}, folder / FACTS_FILE)
    (folder / "overview.html").write_text(overview(facts, names, palette, arguments.model), encoding="utf-8")
    print(
        f"{len(pending) - len(failed)} masks written, {len(paths) - len(pending)} kept. Look at {folder}/overview.html"
    )
    if failed:
        sys.exit("Unreadable, and left out:\n  " + "\n  ".join(failed))
    return list(paths.values())


def check_classes(folder: Path, names: list[str]) -> None:
    """Refuse a folder of other classes: its masks are kept, and would mean something else.

    Raises:
        ValueError: Names both.
    """
    file = folder / "labels.txt"
    if file.is_file() and file.read_text(encoding="utf-8").split("\n")[:-1] != names:
        found = ", ".join(file.read_text(encoding="utf-8").split())
        raise ValueError(
            f"{folder} holds masks of other classes ({found}), now {', '.join(names)}. Give another folder."
        )


def read_facts(folder: Path) -> dict[str, dict[str, Any]]:
    """What an earlier call noted about the images in the folder."""
    file = folder / FACTS_FILE
    return json.loads(file.read_text(encoding="utf-8"))["images"] if file.is_file() else {}


def label_image(
    segmenter: Segmenter, path: Path, folder: Path, palette: Palette, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Write mask, copy and preview of one image; the mask last, so that what has one is complete.

    Returns:
        `dict`: Its mean confidence and the fraction of its pixels for each class and without one.
    """
    with Image.open(path) as picture:
        image = upright(picture)
    shares = probabilities(segmenter, image)
    confidence = shares.max(axis=0)
    labels = shares.argmax(axis=0).astype(np.uint8)
    labels[confidence < arguments.min_confidence] = UNLABELED
    for part in ("images", PREVIEWS, *(["probabilities"] if arguments.probabilities else [])):
        (folder / part).mkdir(parents=True, exist_ok=True)
    copy = folder / "images" / path.name
    if path.resolve() != copy.resolve():
        shutil.copyfile(path, copy)
    if arguments.probabilities:
        whole = np.rint(255 * shares).astype(np.uint8)  # in 255ths
        np.savez_compressed(folder / "probabilities" / f"{path.stem}.npz", probabilities=whole)
    preview = overlay(image, labels, palette)
    preview.thumbnail(THUMBNAIL)
    preview.save(folder / PREVIEWS / f"{path.stem}.jpg")
    mask = Image.fromarray(labels)
    # All 256 colors: with a shorter palette Pillow stores fewer bits, and 255 would come back as another value.
    colors = [channel for color in palette for channel in color]
    mask.putpalette(colors + [0] * (768 - len(colors)))
    write_label_file(mask, folder / "masks" / f"{path.stem}.png")
    counts = np.bincount(labels.ravel(), minlength=256) / labels.size
    return {
        "confidence": round(float(confidence.mean()), 4),
        "classes": [round(float(count), 4) for count in counts[: len(shares)]],
        "unlabeled": round(float(counts[UNLABELED]), 4),
    }


def probabilities(segmenter: Segmenter, image: Image.Image) -> np.ndarray:
    """Probabilities (K, H, W) of the classes at the image's size, float32."""
    import torch
    import torch.nn.functional as F

    with torch.inference_mode():
        pixels = torch.from_numpy(np.array(image)).movedim(-1, -3)[None]
        logits = segmenter.model(pixel_values=segmenter.normalize(pixels)).logits.float()
        size = image.size[::-1]
        logits = F.interpolate(logits, size=size, mode="bilinear", align_corners=segmenter.align_corners or None)
        return logits.softmax(dim=1)[0].cpu().numpy()


def overview(facts: dict[str, dict[str, Any]], names: list[str], palette: Palette, model: str) -> str:
    """A page with every preview, the least certain first; it needs no server."""
    legend = " ".join(
        f'<span style="border-left:1em solid rgb{tuple(color)};padding:0 .5em">{html.escape(name)}</span>'
        for name, color in zip(names, palette, strict=False)
    )
    figures = []
    for image, fact in sorted(facts.items(), key=lambda item: item[1]["confidence"]):
        found = [
            f"{html.escape(name)} {share:.0%}" for name, share in zip(names, fact["classes"], strict=True) if share
        ]
        found += [f"unlabeled {fact['unlabeled']:.0%}"] if fact["unlabeled"] else []
        figures.append(
            f'<figure><img loading="lazy" src="{PREVIEWS}/{html.escape(image)}.jpg"><figcaption>{html.escape(image)}: '
            f"confidence {fact['confidence']:.0%}; {', '.join(found)}</figcaption></figure>"
        )
    return (
        '<!doctype html><meta charset="utf-8"><title>Labels to look through</title>'
        "<style>body{font:14px sans-serif}figure{display:inline-block;margin:8px;max-width:480px}</style>"
        f"<h1>{len(facts)} images labeled by a model</h1><p>{html.escape(model)}</p><p>{legend}</p>"
        "<p>Least certain first. Correct the files in masks/; the next call keeps them.</p>" + "\n".join(figures)
    )


def parser() -> argparse.ArgumentParser:
    """Command line of this command."""
    parser = CommandParser("label", __doc__)
    add = parser.add_argument
    add(
        "model", help="folder, Hub id, checkpoint (.pth), or '{model: ..., prompts: {class: prompt}, background: ...}'"
    )
    add("files", nargs="+", help="image files, folders (searched through) or quoted globs")
    add("--output_dir", required=True, help="folder for images, masks and the overview page")
    add("--min_confidence", type=float, default=0.0, help="pixels below it are left unlabeled, 0 to 1 (default: 0)")
    add("--probabilities", action="store_true", help="write the probabilities of all classes too (.npz, in 255ths)")
    add("--trust_remote_code", action="store_true", help="run the Python code that a model from the Hub brings")
    add("--device", help="cpu, cuda, ... (default: the GPU where there is one)")
    return parser
