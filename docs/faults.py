"""The faults of docs/troubleshooting.md: how each is provoked, why it happens, what helps.

`TYPED` are command lines in a folder that [`write_folder`] has written. `CALLED` are what a training says while it
runs, for which nothing needs to be trained.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image

from hf_segkd.console import TrainingFault
from hf_segkd.loading.any_model import load_model
from hf_segkd.training.advice import OneClass, Warnings
from hf_segkd.training.faults import FiniteWatch, explained

LABELS = ["background", "crack", "rust"]
TINY = {"model_type": "espnet", "use_decoder": False, "hidden_sizes": [4, 10, 10], "depths": [1, 1]}
# A run that would take seconds, were it not refused.
RUN = "hf-segkd distill --student espnet-c --max_steps 4 --crop_size 64 64 --per_device_train_batch_size 2 --use_cpu "


@dataclass(frozen=True)
class Fault:
    """One entry of the page.

    Args:
        title (`str`): What the user sees or wants, a few words.
        provoke (`str` or `Callable[[], str]`): A command line, or a function that returns the message.
        cause (`str`): Why it happens.
        cure (`str`): What helps, beyond what the message says.
    """

    title: str
    provoke: str | Callable[[], str]
    cause: str
    cure: str


TYPED = (
    Fault(
        "A recipe that does not exist",
        "hf-segkd distill camvd espnet_espnet-c kd_cwd --data_dir CamVid --output_dir runs/a",
        "The first words are recipes, by name or as `.yaml` files. One of them is misspelled.",
        "`hf-segkd recipes` lists the names, `hf-segkd recipes camvid` those that mention a word.",
    ),
    Fault(
        "An option that does not exist",
        RUN + "--data photos --learning_rat 0.01 --output_dir runs/a",
        "A misspelled option would train with the default, so it is refused.",
        "[Options](options.md) lists them all.",
    ),
    Fault(
        "The dataset is not where it was looked for",
        "hf-segkd distill camvid espnet_espnet-c baseline --data_dir photos --output_dir runs/a",
        "`--data_dir` is the folder above, or beside, the one that is meant; or only a part was unpacked.",
        "The message names what is missing and what was found. Give the folder that directly holds the named ones.",
    ),
    Fault(
        "Class names are missing",
        RUN + "--data nameless --output_dir runs/a",
        "Masks hold numbers. Neither a flag nor a file in the folder says what they mean.",
        "Put `labels.txt` beside `images` and `masks`, one name in each line, the first for 0: "
        "[class names](your_own_data.md#1-what-there-is-and-the-flags-for-it).",
    ),
    Fault(
        "Masks of 0 and 255",
        RUN + "--data binary --labels background crack --output_dir runs/a",
        "Many tools write the object as 255, and others write 255 for pixels that nobody labeled.",
        "Say which it is. For an object: `--labels background crack --value_255 object`.",
    ),
    Fault(
        "Masks hold more than the classes",
        RUN + "--data photos --labels background crack --output_dir runs/a",
        "A class is missing in `--labels`, or the masks hold raw values of a tool.",
        "Name all classes in the order of their numbers, or write a `--label_map`.",
    ),
    Fault(
        "A mask of another size than its photo",
        RUN + "--data sizes --output_dir runs/a",
        "The mask belongs to another photo, was drawn on a smaller copy, or EXIF turns the photo and not the mask.",
        "Pair them again. If the masks were drawn on photos as they are stored, give `--turn_masks`.",
    ),
    Fault(
        "Masks saved as JPEG",
        RUN + "--data lossy --output_dir runs/a",
        "JPEG keeps what looks alike, and class numbers are changed by it.",
        "Export the labels again as PNG. Converting the JPEG to PNG does not bring them back.",
    ),
    Fault(
        "The same photo in two splits",
        RUN + "--data leaks --output_dir runs/a",
        "Photos were copied, or a video was cut into frames before it was split.",
        "Keep a photo in one split. Split videos and places, not frames.",
    ),
    Fault(
        "Images of 16 bits or more than three bands",
        RUN + "--data deep --output_dir runs/a",
        "Without being told, nothing here cuts values off at 255.",
        "Name the bands: [images that are not 8-bit RGB](your_own_data.md#images-that-are-not-8-bit-rgb).",
    ),
    Fault(
        "A distillation without a teacher",
        RUN + "--dataset folder --data_dir photos --losses.kd.weight 1 --output_dir runs/a",
        "The method reads a teacher, and none was given.",
        "Give `--teacher`, or train the baseline.",
    ),
    Fault(
        "The teacher's classes have other names",
        RUN + "--data photos --teacher teacher_of_others --output_dir runs/a",
        "Teacher and data are matched by the names of their classes, and some have no counterpart.",
        "`--teacher_classes`, as in [the teacher](your_own_data.md#the-teacher).",
    ),
    Fault(
        "A model that is neither a folder nor on the Hub",
        "hf-segkd predict runs/stduent photos/images --output_dir runs/maps",
        "The folder is misspelled, or the run that should have written it has not finished.",
        "A finished run has `config.json` and `model.safetensors` in its folder.",
    ),
    Fault(
        "Fewer photos than one step needs",
        RUN + "--data photos --per_device_train_batch_size 64 --output_dir runs/a",
        "Every step takes a full batch, and the training split is smaller.",
        "A smaller batch.",
    ),
    Fault(
        "Crops that a loss cannot take",
        RUN + "--data photos --teacher teacher --losses.adversarial.weight 0.1 --output_dir runs/a",
        "The discriminator of Structured KD halves its map until little is left. With a student at 1/8 it needs crops "
        "of 512.",
        "Larger crops, or `--losses.adversarial null`.",
    ),
    Fault(
        "The output folder is in use",
        RUN + "--data photos --output_dir teacher",
        "A folder holds one run, so that scores, recipe and weights belong together.",
        "Another `--output_dir`; `--resume` to continue, `--overwrite` to start again.",
    ),
    Fault(
        "Values of another kind",
        RUN + "--data photos --learning_rate fast --output_dir runs/a",
        "Every value is checked by its type before anything is loaded.",
        "[Options](options.md) has the kind of each.",
    ),
)


def not_finite() -> str:
    value = {"loss_kd": torch.tensor(float("nan"))}
    return said(lambda: FiniteWatch("runs").see(120, value, {"labels": torch.zeros(1)}))


def out_of_memory() -> str:
    return interrupted(torch.OutOfMemoryError("CUDA out of memory"))


def dead_worker() -> str:
    return interrupted(RuntimeError("DataLoader worker (pid 4242) is killed by signal: Killed."))


def few_images() -> str:
    student = load_model(TINY, id2label=dict(enumerate(LABELS)))[0]
    args = SimpleNamespace(
        per_device_train_batch_size=2, gradient_accumulation_steps=4, world_size=1, total_batch_size=None
    )
    with logged() as lines:
        Warnings({"task": 1.0}).on_train_begin(args, None, None, model=SimpleNamespace(student=student))
    return lines[0]


def one_class() -> str:
    matrix = torch.zeros(3, 3, dtype=torch.int64)
    matrix[:, 0] = 100
    config = SimpleNamespace(id2label=dict(enumerate(LABELS)))
    trainer = SimpleNamespace(last_matrix=matrix, student=SimpleNamespace(config=config))
    with logged() as lines:
        OneClass(trainer, Warnings({"task": 1.0})).on_evaluate(None, SimpleNamespace(global_step=200), None)
    return lines[0]


CALLED = (
    Fault(
        "The loss is not finite",
        not_finite,
        "The learning rate is too high for the sum of the losses, a weight is too large, or fp16 has overflowed.",
        "Look at `training_log.json`: the term that grew before this step is the one to lower.",
    ),
    Fault(
        "Out of memory",
        out_of_memory,
        "Batch times crop is too large for the device, with the teacher and the losses beside the student.",
        "The message names what this run can still do. [Out of memory](performance.md#out-of-memory)",
    ),
    Fault(
        "A process that reads images died",
        dead_worker,
        "The system ended it, mostly for want of memory.",
        "Fewer workers, or smaller images on disk.",
    ),
    Fault(
        "Small batches (a warning)",
        few_images,
        "Batch norm takes mean and deviation from the images of one device, and two say little.",
        "[Batch norm and small batches](performance.md#batch-norm-and-small-batches)",
    ),
    Fault(
        "The student predicts one class everywhere (a warning)",
        one_class,
        "Early in a training this is normal. It lasts where one class covers most pixels and the student starts from "
        "nothing.",
        "Wait for the second evaluation; then what the message says. [Rare classes](your_own_data.md#the-teacher)",
    ),
)


def said(call: Callable[[], object]) -> str:
    """The message of the [`TrainingFault`] that a call ends with."""
    try:
        call()
    except TrainingFault as fault:
        return str(fault)
    raise AssertionError("nothing was said")


def interrupted(error: Exception) -> str:
    """What a training says that is ended by an error of the system."""
    args = SimpleNamespace(
        per_device_train_batch_size=8,
        gradient_accumulation_steps=1,
        per_device_eval_batch_size=1,
        dataloader_num_workers=4,
        activation_checkpointing=None,
        bf16=False,
        fp16=False,
        device="cuda:0",
    )
    student = SimpleNamespace(supports_gradient_checkpointing=True)
    trainer = SimpleNamespace(state=SimpleNamespace(global_step=120), student=student)

    def train() -> None:
        with explained(args, (512, 1024), trainer):
            raise error

    return said(train)


@contextmanager
def logged():
    """Lines that the library logs in the `with` block."""
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logger = logging.getLogger("hf_segkd")
    logger.addHandler(handler)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)


def write_folder(root: Path) -> None:
    """What the command lines of [`TYPED`] name: folders of photos, each with one thing wrong, and two teachers."""
    for name in ("photos", "nameless", "binary", "sizes", "lossy", "leaks", "deep"):
        write_photos(root / name, name)
    (root / "runs").mkdir()
    for name, labels in (("teacher", LABELS), ("teacher_of_others", ["background", "fissure", "oxide"])):
        model, processor = load_model(TINY, id2label=dict(enumerate(labels)))
        model.save_pretrained(root / name)
        processor.save_pretrained(root / name)


def write_photos(folder: Path, fault: str) -> None:
    """Five photos of 80x64 pixels with their masks in the two folders of a user, and what is wrong with them."""
    random = np.random.default_rng(0)
    for index in range(5):
        split = "val" if index > 3 else "train"
        pixels = random.integers(0, 255, (64, 80, 3), dtype=np.uint8)
        mask = np.broadcast_to(np.arange(80) // 8 % 3, (64, 80)).astype(np.uint8)
        if fault == "binary":
            mask = (mask > 0).astype(np.uint8) * 255
        if fault == "sizes" and index == 3:
            mask = mask[:32]
        if fault == "deep":
            pixels = random.integers(0, 4095, (64, 80), dtype=np.uint16)
        if fault == "leaks" and index == 4:
            pixels = Image.open(folder / "images" / "train" / "photo_0.png")
        save(folder / "images" / split / f"photo_{index}.png", pixels)
        suffix = "jpg" if fault == "lossy" else "png"
        save(folder / "masks" / split / f"photo_{index}.{suffix}", mask)
    if fault not in ("nameless", "binary"):
        (folder / "labels.txt").write_text("\n".join(LABELS) + "\n", encoding="utf-8")


def save(path: Path, image: Image.Image | np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path)
