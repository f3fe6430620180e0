"""What models cost: parameters, GMACs, latency, throughput and peak memory, teacher and student in one table.

    hf-segkd profile TEACHER STUDENT --size 512 1024 --variants eager bf16 --output_dir OUT

The first model is the one that the ratios refer to. Each measurement runs in its own process, so that none inherits
the memory of another; a model is a folder, a Hub id, an original checkpoint (.pth), or YAML such as
"{model_type: espnet, use_decoder: false}".
"""

from __future__ import annotations

import argparse
import multiprocessing
from pathlib import Path

from hf_segkd.commands.flags import CommandParser
from hf_segkd.console import plain_logs, readable_errors
from hf_segkd.evaluation.settings import VARIANTS
from hf_segkd.reports.files import write_json

COLUMNS = (
    ("parameters", "M parameters", 1e6),
    ("macs", "GMACs", 1e9),
    ("p50_ms", "p50 ms", 1),
    ("p90_ms", "p90 ms", 1),
    ("images_per_second", "images/s", 1),
    ("peak_mib", "peak MiB", 1),
)


def main(argv: list[str] | None = None) -> list[dict]:
    """Measure as the command line says and return one row for each model and variant."""
    arguments = parser().parse_args(argv)
    plain_logs()
    import torch

    from hf_segkd.evaluation.profiling import count_macs, hardware_name, thread_count
    from hf_segkd.evaluation.segmenter import default_device
    from hf_segkd.reports.tables import aligned_table, markdown_table

    arguments.device = arguments.device or default_device()
    arguments.threads = arguments.threads or torch.get_num_threads()
    size, rows = tuple(arguments.size), []
    spawn = multiprocessing.get_context("spawn")
    for spec in arguments.models:
        with readable_errors():
            model = load(spec, arguments.num_labels)
            facts = {"model": spec, "parameters": model.num_parameters(), "macs": count_macs(model, size)}
        for variant in arguments.variants:
            with spawn.Pool(1) as pool:
                rows.append({**facts, "variant": variant, **pool.apply(run, (spec, size, variant, vars(arguments)))})
                print(describe(rows[-1]), flush=True)
    conditions = (
        f"{arguments.batch_size} x 3 x {size[0]} x {size[1]}, {arguments.device}, {hardware_name(arguments.device)}, "
        f"{thread_count(arguments.threads)}, torch {torch.__version__}, {arguments.repeats} passes"
    )
    head, table = cells(rows)
    print(f"\n{aligned_table(head, table)}\n{conditions}\n")
    if arguments.output_dir:
        write_json({"conditions": conditions, "rows": rows}, Path(arguments.output_dir) / "benchmark.json")
        (Path(arguments.output_dir) / "benchmark.md").write_text(
            f"{markdown_table(head, table)}\n{conditions}\n", encoding="utf-8"
        )
    return rows


def run(spec: str, size: tuple[int, int], variant: str, options: dict) -> dict[str, float]:
    """One measurement, in its own process."""
    import torch

    from hf_segkd.evaluation.profiling import measure
    from hf_segkd.models import input_channels

    torch.set_num_threads(options["threads"])
    torch.manual_seed(0)
    model = load(spec, options["num_labels"])
    how = {"repeats": options["repeats"], "channels": input_channels(model.config)}
    return measure(model, size, variant, options["batch_size"], options["device"], **how)


def load(spec: str, num_labels: int):
    """The model that `spec` names, or a new one of `num_labels` classes."""
    from hf_segkd.loading.any_model import load_model

    new = spec.lstrip().startswith("{")
    return load_model(spec, {index: f"LABEL_{index}" for index in range(num_labels)} if new else None)[0]


def describe(row: dict) -> str:
    return f"{row['model']} {row['variant']}: p50 {row['p50_ms']:.1f} ms, peak {row['peak_mib']:.0f} MiB"


def cells(rows: list[dict]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a table with, behind each number, its ratio to the first row's."""
    table = []
    for row in rows:
        numbers = []
        for key, _, unit in COLUMNS:
            ratio = "" if row is rows[0] or not rows[0][key] else f" ({row[key] / rows[0][key]:.2f}x)"
            numbers.append(f"{row[key] / unit:.2f}{ratio}")
        table.append([row["model"], row["variant"], *numbers])
    return ["model", "variant", *(title for _, title, _ in COLUMNS)], table


def parser() -> argparse.ArgumentParser:
    """Command line of this command."""
    parser = CommandParser("profile", __doc__)
    add = parser.add_argument
    add(
        "models",
        nargs="+",
        help="folders, Hub ids, original checkpoints (.pth), or YAML of new models; ratios are to the first",
    )
    add("--size", type=int, nargs=2, default=[512, 1024], metavar=("HEIGHT", "WIDTH"), help="size of images, pixels")
    add("--batch_size", type=int, default=1, help="images at a time (default: 1)")
    add("--variants", nargs="+", default=["eager"], choices=VARIANTS, help="ways to run each model (default: eager)")
    add("--num_labels", type=int, default=19, help="classes of new models (default: 19)")
    add("--repeats", type=int, default=20, help="timed passes (default: 20)")
    add("--threads", type=int, help="CPU threads (default: as many as PyTorch takes)")
    add("--device", choices=["cpu", "cuda"], help="where the models run (default: the GPU where there is one)")
    add("--output_dir", help="folder for benchmark.json and benchmark.md")
    return parser
