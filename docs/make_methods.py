"""Write docs/methods.md: every loss in one table, from its class, its docstring and one measured step.

    python docs/make_methods.py [--teacher FOLDER]

Without a teacher the values of the page are kept, and those of new methods are left empty. The teacher is an
ESPNet trained on the synthetic scenes; values are those of the first step: a narrow untrained ESPNet, seed 0, the
first 8 synthetic training scenes as crops of 96x128 pixels.
"""

from __future__ import annotations

import argparse
import inspect
from pathlib import Path

import torch
from transformers import PreTrainedModel

import dataset_builders
from dataset_builders import DATASETS
from hf_segkd.data import SegmentationDataset, TrainTransform, collate
from hf_segkd.loading.any_model import load_model
from hf_segkd.loading.pretrained import processor_of
from hf_segkd.losses import LOSSES, DistillationLoss, LossSetup
from hf_segkd.models import InputNormalization
from hf_segkd.training.distiller import loss_setup

TEACHER = {"model_type": "espnet", "depths": [2, 4]}
STUDENT = {"model_type": "espnet", "hidden_sizes": [8, 20, 40], "depths": [1, 2]}
# Where the loss reads more than the one output it is built from.
READS = {"task": "logits, aux_logits", "dsd": "aux_logits, features, logits"}
HEADER = """# Methods

Written by `python docs/make_methods.py --teacher FOLDER`. `reads` is the output that is compared by
default, and whether `layer:` changes it; `labels`: whether a term is zero on images without labels; `adapter`: what is
trained beside the student and dropped afterwards; `state`: what a checkpoint keeps. Time and memory are orders of
growth (B images, N = h·w positions, C channels, K classes, M keys, P positions of a patch); no loss keeps N·N numbers.
`value` is measured: the first step of a pair of ESPNets (teacher trained on the synthetic scenes, untrained student,
seed 0, 8 crops of 96x128), before weighting; its order of magnitude helps to choose a weight. Every option, formula
and difference from the original code is in [the docstrings](api/losses.md). Structured KD's object detection and depth
estimation are out of scope: this library does semantic segmentation.

| name | idea | reads | labels | adapter | state | time | memory | value | paper |
|---|---|---|---|---|---|---|---|---|---|
"""


def row(name: str, setup: LossSetup, value: str, labels: str) -> str:
    """One line of the table."""
    method = LOSSES[name]
    idea = " ".join(inspect.getdoc(method).split("\n\n")[0].split()).split(": ", 1)[-1].rstrip(".")
    loss = method(setup)
    layer = f"{loss.layer} (`layer:`)" if "layer" in inspect.signature(method).parameters else loss.layer
    layer = READS.get(name, layer)
    paper = f"[{citation_name(method)}]({method.paper})" if method.paper else ""
    cells = [f"`{name}`", idea, layer, labels, adapter(method, setup), state(loss)]
    cells += [method.time_growth, method.memory_growth, value, paper]
    return "| " + " | ".join(cells) + " |"


def adapter(method: type[DistillationLoss], setup: LossSetup) -> str:
    """When the loss brings trainable parameters: found by building it on equal and on unequal channels."""
    equal = LossSetup(setup.student, setup.num_labels, setup.student)
    always, unequal = (any(x.requires_grad for x in method(kind).parameters()) for kind in (equal, setup))
    return "yes" if always else "if channels differ" if unequal else ""


def state(loss: DistillationLoss) -> str:
    """Buffers that a checkpoint keeps, adapters' own aside."""
    buffers = {name.split(".")[-1] for name, _ in loss.named_buffers()}
    kinds = {"draws": "drawn" in buffers, "queues": any("memory" in name or "queue" in name for name in buffers)}
    return ", ".join(kind for kind, present in kinds.items() if present)


def citation_name(method: type[DistillationLoss]) -> str:
    """First author and year, from the BibTeX entry."""
    fields = dict(line.strip().rstrip(",").split("=", 1) for line in method.citation.splitlines() if "=" in line)
    author = fields["author"].strip("{}").split(" and ")[0].split(",")[0]
    return f"{author} et al., {fields['year'].strip('{}')}"


def first_step(teacher: PreTrainedModel) -> tuple[LossSetup, dict[str, tuple[str, str]]]:
    """The setup of the quickstart's pair, and of each loss its first value and whether it reads the labels."""
    torch.manual_seed(0)
    spec = DATASETS["synthetic"]
    student = load_model(STUDENT, id2label=spec.id2label)[0]
    rows = dataset_builders.open_dataset("synthetic", num_train=8, num_validation=1, num_test=1).split("train")
    dataset = SegmentationDataset(rows, TrainTransform((96, 128), (0.75, 1.5)), spec.num_labels)
    batch = collate([dataset[index] for index in range(8)])
    setup, outputs = loss_setup(student, teacher, (96, 128)), []
    for model in (student.train(), teacher):
        normalization = InputNormalization.from_processor(processor_of(model))
        with torch.no_grad():
            outputs.append(model(pixel_values=normalization(batch["pixel_values"]), output_hidden_states=True))
    found = {}
    for name in LOSSES:
        labeled, unlabeled = (
            terms(name, setup, outputs, labels) for labels in (batch["labels"], batch["labels"] * 0 + 255)
        )
        value = ", ".join(f"{term} {number:.2g}".strip() for term, number in labeled.items())
        found[name] = value, "" if labeled == unlabeled else "yes"
    return setup, found


def terms(name: str, setup: LossSetup, outputs: list, labels: torch.Tensor) -> dict[str, float]:
    torch.manual_seed(0)
    value = LOSSES[name](setup)(*outputs, labels)
    return {term: x.item() for term, x in (value if isinstance(value, dict) else {"": value}).items()}


def known_values(page: Path) -> dict[str, str]:
    """Values by loss, as the page has them."""
    rows = [line.split(" | ") for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    return {cells[0].strip("| `"): cells[-2].strip() for cells in rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", help="folder of an ESPNet trained on the synthetic scenes (default: keep values)")
    folder = parser.parse_args().teacher
    page = Path(__file__).with_name("methods.md")
    torch.manual_seed(0)
    options = {} if folder else {"id2label": DATASETS["synthetic"].id2label}
    setup, found = first_step(load_model(folder or TEACHER, **options)[0])
    if not folder:
        known = known_values(page)
        found = {name: (known.get(name, ""), labels) for name, (_, labels) in found.items()}
    table = "\n".join(row(name, setup, *found[name]) for name in LOSSES)
    page.write_text(f"{HEADER}{table}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
