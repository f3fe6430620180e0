"""The pages' runnable blocks, and a folder that holds what their reader brings: photos, CamVid, models."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Dinov2Config, Dinov2Model

from dataset_builders import DATASETS
from helpers import golden_models, prompt_models, raw_trees
from helpers.band_images import FOUR, write_set
from helpers.own_photos import NAMES, save, write_photos
from hf_segkd.loading.any_model import load_model

# A line of its own above a block of bash or Python: this block runs on a CPU, without a network, in a short time.
RUNNABLE = re.compile(r"<!-- runnable -->\n```(bash|python)\n(.*?)```", flags=re.DOTALL)
STUDENT = {"model_type": "espnet", "use_decoder": False, "depths": [1, 1]}
# Models that a page takes for granted, with the data whose classes they know.
MODELS = {
    "README.md": {"TEACHER": "photos"},
    "deployment.md": {"runs/student": "camvid", "runs/baseline": "camvid"},
    "performance.md": {"runs/teacher": "camvid", "runs/student": "camvid"},
    "teachers.md": {"runs/espnet": "camvid", "runs/espnet_city": "camvid"},
}
CLASSES = {"photos": NAMES, "camvid": DATASETS["camvid"].labels}
# Shorter runs than the pages', and no environment or installation: the tests' own is there.
PROGRAMS = """
set -e
source() { :; }
pip() { :; }
python() { "$PYTHON" "$@"; }
hf-segkd() {
    case "$*" in
        *--max_steps*) ;;
        "distill "* | "pretrain "*) set -- "$@" --max_steps 2 ;;
    esac
    python -m hf_segkd "$@"
}
"""


def script_of(page: Path) -> str:
    """A script of bash that runs the runnable blocks of a page from top to bottom; empty if there are none."""
    parts = []
    for language, block in RUNNABLE.findall(page.read_text(encoding="utf-8")):
        parts.append(block if language == "bash" else f"python - <<'END'\n{block}END\n")
    return PROGRAMS + "\n".join(parts) if parts else ""


def write_folder(root: Path, page: str) -> Path:
    """All that the runnable blocks of any page name, and the models of this one. Models of the Hub are folders."""
    write_photos(root / "photos")
    for index in range(12, 16):  # pretrain takes 16 in a step
        save(root / "photos" / "images" / f"{index}.jpg", street(index))
    for folder in (root, root / "photos"):
        (folder / "labels.txt").write_text("\n".join(NAMES) + "\n", encoding="utf-8")
    write_set(root / "fields", len(FOUR))
    write_camvid(root / "CamVid")
    raw_trees.write(root / "Cityscapes", raw_trees.cityscapes())
    save(root / "drives" / "monday" / "0.jpg", street(100))
    save(root / "street.png", street(101))
    save(root / "photo.jpg", street(102))
    write_clips(root)
    for name, data in MODELS.get(page, {}).items():
        write_model(root / name, CLASSES[data])
    case = golden_models.read("skd19-espnet-p2q8-11", golden_models.OWN)
    torch.save(golden_models.original_state_dict(case), root / "ESP_SD+KD+CITY_65.1.pth")
    prompt_models.save("clipseg", root / "CIDAS" / "clipseg-rd64-refined")
    vision = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    Dinov2Model(Dinov2Config(**vision)).save_pretrained(root / "facebook" / "dinov2-base")
    return root


def street(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (90, 120, 3), dtype=np.uint8))


def write_clips(root: Path) -> None:
    """Four frames as a GIF and as a video."""
    av = pytest.importorskip("av", reason="needs the extra 'video'")
    frames = [street(index) for index in range(4)]
    frames[0].save(root / "drive.gif", save_all=True, append_images=frames[1:], duration=100)
    with av.open(str(root / "clip.mp4"), mode="w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height = frames[0].size
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode())


def write_camvid(root: Path) -> None:
    """CamVid's layout: eight images to train on, two for each other split, eleven classes in stripes."""
    stripes = np.broadcast_to(np.arange(120) // 10, (90, 120)).astype(np.uint8)
    for start, (split, count) in enumerate((("train", 8), ("val", 2), ("test", 2))):
        for index in range(count):
            save(root / split / f"{index}.png", street(10 * start + index))
            save(root / f"{split}annot" / f"{index}.png", stripes)


def write_model(folder: Path, classes: tuple[str, ...] | list[str]) -> None:
    torch.manual_seed(0)
    model, processor = load_model(STUDENT, id2label=dict(enumerate(classes)))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
