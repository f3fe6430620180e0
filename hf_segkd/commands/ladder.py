"""Find the largest student that takes an image within a budget of milliseconds, on this machine.

    hf-segkd ladder --size 512 1024 --budget_ms 30
    hf-segkd ladder --size 512 1024 --budget_ms 30 --families espnet espnetv2 --runtime openvino --threads 2
    hf-segkd ladder --budget_ms 100 --students espnet-c pspnet-mbv3-s segformer-b0 --json

New students, from the fewest multiply-accumulates (MACs) up: each is written as an ONNX file, bytes of an image in and
class ids out, and timed in the runtime. Their weights are random, which changes no time. Proposed is the student with
the most MACs that fits the budget. After the six smallest, measuring ends with the first that would take over five
budgets even at the best speed measured so far. The mIoU is what its authors report, on their data: a dash where
docs/models.md has none.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hf_segkd.commands.flags import CommandParser
from hf_segkd.console import plain_logs, readable_errors
from hf_segkd.deployment.runtimes import RUNTIMES, median_ms, open_runtime
from hf_segkd.loading.student_names import STUDENTS
from hf_segkd.values import check_positive

logger = logging.getLogger("hf_segkd.ladder")

FAMILIES = ("espnet", "espnetv2", "deeplabv3", "pspnet", "upernet", "segformer")
# Budgets: dense networks do up to some five times as many MACs in a millisecond as depthwise ones.
FAR = 5
# Students that are measured in any case: those with the fewest MACs are depthwise, and say little about dense ones.
SMALLEST = 6


def main(argv: list[str] | None = None) -> list[dict]:
    """Measure as the command line says and return one row for each student, from the fewest MACs up."""
    arguments = parser().parse_args(argv)
    plain_logs()
    import torch

    from hf_segkd.evaluation.profiling import hardware_name, thread_count

    arguments.threads = arguments.threads or torch.get_num_threads()
    with readable_errors(ValueError, OSError, ImportError):
        check_positive("budget_ms", arguments.budget_ms)
        rows = counted(candidates(arguments.students, arguments.families), arguments.num_labels, arguments.size)
        busy = other_work()
        measure(rows, arguments.budget_ms, lambda row: milliseconds(row["fields"], arguments))
    proposed = largest(rows)
    height, width = arguments.size
    conditions = (
        f"one image of {height} x {width} pixels, {arguments.num_labels} classes, {arguments.runtime}, fp32, "
        f"{thread_count(arguments.threads)}, {hardware_name('cpu')}, "
        f"median of {arguments.repeats} passes{busy}"
    )
    if arguments.json:
        name = proposed and proposed["student"]
        report = {"conditions": conditions, "budget_ms": arguments.budget_ms, "proposed": name, "rows": rows}
        print(json.dumps(report, indent=2))
    else:
        print(f"\n{table(rows)}\n{conditions}\n\n{advice(rows, proposed, arguments.budget_ms)}")
    return rows


def candidates(names: list[str] | None, families: list[str]) -> dict[str, dict[str, Any]]:
    """Fields of the students to be measured, by name; each network once, under the first of its names.

    Raises:
        ValueError: An unknown name.
    """
    from hf_segkd.loading.students import resolve_student

    if names:
        return {name: resolve_student({"name": name}) for name in names}
    found: dict[str, dict[str, Any]] = {}
    for name, fields in STUDENTS.items():
        if fields["model_type"] in families and fields not in found.values():
            found[name] = fields
    return found


def counted(students: dict[str, dict[str, Any]], num_labels: int, size: tuple[int, int]) -> list[dict[str, Any]]:
    """A row for each student with its parameters and MACs, from the fewest MACs up; no weights are made."""
    import torch

    from hf_segkd.evaluation.profiling import count_macs
    from hf_segkd.loading.any_model import load_model
    from hf_segkd.reports.published_scores import PUBLISHED_SCORES

    rows = []
    for name, fields in students.items():
        with torch.device("meta"):
            model = load_model(fields, class_names(num_labels))[0]
        row = {"student": name, "fields": fields, "parameters": model.num_parameters()}
        row["macs"] = count_macs(model, tuple(size))
        row["published_miou"], row["source"] = PUBLISHED_SCORES.get(name, (None, None))
        rows.append(row)
    logger.info("%d students counted", len(rows))
    return sorted(rows, key=lambda row: row["macs"])


def measure(rows: list[dict[str, Any]], budget_ms: float, time_of: Callable[[dict[str, Any]], float]) -> None:
    """Add to each row `p50_ms`, its time or `None` where it was not measured, and `fits`.

    Args:
        rows (`list[dict]`): Of [`counted`], from the fewest MACs up.
        budget_ms (`float`): Milliseconds that an image may take.
        time_of (`Callable`): Milliseconds of a row's student.
    """
    macs_per_ms = 0.0
    for row in rows:
        row["p50_ms"], row["fits"] = None, False
    for index, row in enumerate(rows, start=1):
        if index > SMALLEST and row["macs"] / macs_per_ms > FAR * budget_ms:
            break
        row["p50_ms"] = time_of(row)
        row["fits"] = row["p50_ms"] <= budget_ms
        macs_per_ms = max(macs_per_ms, row["macs"] / row["p50_ms"])
        logger.info("%d of %d: %s %.1f ms", index, len(rows), row["student"], row["p50_ms"])


def milliseconds(fields: dict[str, Any], arguments: argparse.Namespace) -> float:
    """Median time of one image in the runtime, from bytes to class ids."""
    import numpy as np
    import torch

    from hf_segkd.deployment.onnx_export import export_onnx
    from hf_segkd.loading.any_model import load_model

    torch.manual_seed(0)
    model, processor = load_model(fields, class_names(arguments.num_labels))
    images = np.random.default_rng(0).integers(0, 256, (1, *arguments.size, 3), dtype=np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        path = export_onnx(model, processor, Path(folder) / "student.onnx", size=tuple(arguments.size))
        run = open_runtime(path, arguments.runtime, arguments.threads)
        return median_ms(run, images, arguments.repeats)


def other_work() -> str:
    """A note if more processes want to run than there are processors, else nothing."""
    if not hasattr(os, "getloadavg"):  # Windows
        return ""
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    return f"; a busy machine (load {load:.0f} on {cores} cores): times are too long" if load > cores else ""


def class_names(count: int) -> dict[int, str]:
    return {index: f"class_{index}" for index in range(count)}


def largest(rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The row with the most MACs of those that fit, or `None`."""
    return max((row for row in rows if row["fits"]), key=lambda row: row["macs"], default=None)


def table(rows: list[dict[str, Any]]) -> str:
    """The rows that were measured as text for a terminal, and how many others there are."""
    from hf_segkd.reports.tables import aligned_table

    lines = []
    others = [row["student"] for row in rows if row["p50_ms"] is None]
    for row in rows[: len(rows) - len(others)]:
        counts = f"{row['parameters'] / 1e6:.2f}", f"{row['macs'] / 1e9:.2f}"
        scores = row["published_miou"] or "-", row["source"] or ""
        lines.append([row["student"], *counts, f"{row['p50_ms']:.1f}", "yes" if row["fits"] else "", *scores])
    head = ("student", "M parameters", "GMACs", "p50 ms", "fits", "published mIoU %", "of")
    rest = f"\n{len(others)} larger ones, from {others[0]} up, are far beyond the budget.\n" if others else ""
    return f"{aligned_table(head, lines)}\n{rest}"


def advice(rows: list[dict[str, Any]], proposed: dict[str, Any] | None, budget_ms: float) -> str:
    """The proposal and how it is used, or what is nearest to the budget."""
    if proposed is None:
        fastest = min((row for row in rows if row["p50_ms"]), key=lambda row: row["p50_ms"])
        return (
            f"None fits {budget_ms:g} ms; {fastest['student']} is nearest with {fastest['p50_ms']:.1f} ms. "
            "Try a smaller --size, more --threads or another --runtime."
        )
    return (
        f"{proposed['student']} has the most MACs of those that fit {budget_ms:g} ms. "
        f"Train it: hf-segkd distill ... --student {proposed['student']}"
    )


def parser() -> argparse.ArgumentParser:
    """Command line of this command."""
    parser = CommandParser("ladder", __doc__)
    add = parser.add_argument
    add("--budget_ms", type=float, required=True, help="milliseconds that an image may take")
    add("--size", type=int, nargs=2, default=[512, 1024], metavar=("HEIGHT", "WIDTH"), help="size of images, pixels")
    add("--families", nargs="+", default=FAMILIES, choices=FAMILIES, help="networks to try (default: all)")
    add("--students", nargs="+", help="only these, by the names that `hf-segkd recipes` lists")
    add("--runtime", default="onnxruntime", choices=RUNTIMES, help="what runs them (default: onnxruntime)")
    add("--threads", type=int, help="CPU threads (default: as many as PyTorch takes)")
    add("--num_labels", type=int, default=19, help="classes (default: 19)")
    add("--repeats", type=int, default=10, help="timed passes (default: 10)")
    add("--json", action="store_true", help="print the rows as JSON, with progress on stderr")
    return parser
