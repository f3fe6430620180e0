"""How the losses' cost grows: with the crop, the batch, the classes and the number of processes.

    python -m benchmarks.scale --output runs/benchmarks/scale

writes scale.json, scale.md and scale.png (a few minutes). Time and memory are counted as in `benchmarks/losses.py`.
Other processes are played by one: whatever is gathered comes back as often as there are processes, so that each loss
does the work of one of them, and the bytes are counted that it would send to each of the others.
"""

import argparse
import json
from dataclasses import dataclass, replace
from math import ceil, floor, log10
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.cases import CASES, Case, forward_backward
from benchmarks.measuring import hardware, measure
from hf_segkd.losses import LOSSES
from hf_segkd.reports.figures import new_figure
from hf_segkd.reports.tables import markdown_table

LIMIT = 20.0  # seconds; a case stops repeating beyond it
PASSES = 3
CROPS = ((128, 256), (256, 512), (384, 768), (512, 1024))
RELATIONS, CLASSWISE = (128, 256), ("task with upsampling", "KD", "IFVD", "DIST", "BPKD")


@dataclass
class Messages:
    """Plays `processes` of them and counts what one sends to each of the others."""

    processes: int
    bytes: int = 0

    def all_gather(self, parts: list[Tensor], x: Tensor) -> None:
        self.bytes += x.nbytes
        for part in parts:
            part.copy_(x)

    def all_reduce(self, x: Tensor) -> None:
        self.bytes += x.nbytes  # A ring sends each number twice, in parts of 1/processes.


def relations() -> dict[str, Case]:
    """The losses that relate pixels, on a student's 128 and a teacher's 256 channels."""
    names = {"cirkd_minibatch": "CIRKD mini-batch 512/512", "cirkd_memory": "CIRKD memory 512/512"}
    names |= {"skd_pairwise": "SKD pair-wise 512/512", "ifvd": "IFVD 512/512, K=19", "af_dcd": "Af-DCD 128/256"}
    return {name: replace(CASES[case], channels={"features": RELATIONS}) for name, case in names.items()}


def classwise(classes: int) -> dict[str, Case]:
    """The losses whose cost depends on the number of classes, at 256×512."""
    cases = {name: CASES[f"{name}, K=19"] for name in CLASSWISE if name != "IFVD"}
    logits = {"logits": (classes, classes)}
    cases = {name: replace(case, channels=logits, num_labels=classes) for name, case in cases.items()}
    return {**cases, "IFVD": replace(relations()["ifvd"], num_labels=classes)}


def gathered() -> dict[str, Case]:
    """The losses that exchange something, with and without `gather`, at 256×512."""
    features = {"features": RELATIONS}
    cases = {
        "cirkd_minibatch": relations()["cirkd_minibatch"],
        "cirkd_minibatch, gather": replace(relations()["cirkd_minibatch"], options={"gather": True}),
        "cirkd_memory": relations()["cirkd_memory"],
        "cirkdv2": replace(CASES["CIRKDv2 512/512"], channels=features),
        "cskd, gather": Case(LOSSES["cskd"], None, features, options={"gather": True}, batch=4),
    }
    return {name: replace(case, crop=(256, 512)) for name, case in cases.items()}


def cost(case: Case, processes: int = 1) -> dict:
    """Seconds, peak of bytes and bytes sent by one forward and backward of ours."""
    loss, inputs = case.build()
    sent = Messages(processes)
    with (
        patch("hf_segkd.distributed.world_size", lambda: processes),
        patch("torch.distributed.all_gather", sent.all_gather),
        patch("torch.distributed.all_reduce", sent.all_reduce),
    ):
        forward_backward(case, "ours", loss, inputs)
        once = sent.bytes
        found = measure(lambda: forward_backward(case, "ours", loss, inputs), PASSES, LIMIT)
    return {"seconds": min(found["seconds"]), "bytes": found["bytes"], "sent": once}


def curves() -> dict[str, dict[str, dict[str, dict]]]:
    """Axis -> loss -> value on the axis -> cost."""
    found = {"crop": {}, "batch": {}, "classes": {}, "processes": {}}
    for name, case in relations().items():
        found["crop"][name] = {f"{h}x{w}": cost(replace(case, crop=(h, w))) for h, w in CROPS}
        found["batch"][name] = {str(b): cost(replace(case, crop=(256, 512), batch=b)) for b in (1, 2, 4, 8)}
        print(name, flush=True)
    for classes in (19, 60, 150):
        for name, case in classwise(classes).items():
            costs = found["classes"].setdefault(name, {})
            costs[str(classes)] = cost(replace(case, crop=(256, 512)))
    for name, case in gathered().items():
        found["processes"][name] = {str(count): cost(case, count) for count in (1, 2, 4)}
        print(name, flush=True)
    return found


def table(found: dict) -> str:
    """Markdown: seconds, MiB and, between processes, KiB sent to each other process."""
    tables = []
    for axis, losses in found.items():
        steps = list(next(iter(losses.values())))
        rows = []
        for name, costs in losses.items():
            cells = [f"{x['seconds']:.3f} s, {x['bytes'] / 2**20:.0f} MiB" for x in costs.values()]
            if axis == "processes":
                cells = [f"{cell}, {x['sent'] / 2**10:.0f} KiB" for cell, x in zip(cells, costs.values(), strict=True)]
            rows.append([name, *cells])
        tables.append(markdown_table([axis, *steps], rows))
    return "\n\n".join(tables) + "\n"


def plot(found: dict, path: Path) -> None:
    """Seconds and MiB against each axis, both logarithmic over whole decades."""
    figure = new_figure((11, 6.5))
    panels = figure.subplots(2, len(found))
    for column, (axis, losses) in enumerate(found.items()):
        for row, (quantity, unit) in enumerate((("seconds", 1), ("bytes", 2**20))):
            axes = panels[row, column]
            for name, costs in losses.items():
                axes.plot(list(costs), [x[quantity] / unit for x in costs.values()], marker="o", ms=3, label=name)
            values = [x[quantity] / unit for costs in losses.values() for x in costs.values()]
            axes.set_yscale("log")
            axes.set_ylim(10 ** floor(log10(min(values))), 10 ** ceil(log10(max(values))))
            axes.grid(alpha=0.3)
            axes.tick_params(labelsize=7)
        panels[1, column].set_xlabel(axis)
        panels[0, column].legend(fontsize=7, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
    panels[0, 0].set_ylabel("processor seconds")
    panels[1, 0].set_ylabel("peak MiB")
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks/scale"), help="path without suffix")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    found = curves()
    report = {"hardware": hardware(args.threads), "curves": found}
    args.output.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    args.output.with_suffix(".md").write_text(f"{table(found)}\n{report['hardware']}\n")
    plot(found, args.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
