"""What models cost: parameters, GMACs, latency, throughput and peak memory, teacher and student in one table.

    python scripts/profile_model.py TEACHER STUDENT --size 512 1024 --variants eager bf16 --output_dir OUT

The first model is the one that the ratios refer to. Each measurement runs in a fresh process, so that none inherits
the memory of another; a model is a folder, a Hub id, or YAML such as "{model_type: espnet, use_decoder: false}".
"""

from __future__ import annotations

import argparse
import multiprocessing
from pathlib import Path

import torch

from hf_segkd.console import plain_logs, readable_errors
from hf_segkd.evaluation.profiling import VARIANTS, count_macs, hardware_name, measure
from hf_segkd.loading.any_model import load_with_processor
from hf_segkd.loading.pretrained import load_segmenter
from hf_segkd.recipe import load_yaml
from hf_segkd.reports.files import write_json
from hf_segkd.reports.tables import markdown_table

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
        f"{arguments.threads} threads, torch {torch.__version__}, {arguments.repeats} passes"
    )
    text = f"{markdown(rows)}\n{conditions}\n"
    print(f"\n{text}")
    if arguments.output_dir:
        write_json({"conditions": conditions, "rows": rows}, Path(arguments.output_dir) / "benchmark.json")
        (Path(arguments.output_dir) / "benchmark.md").write_text(text, encoding="utf-8")
    return rows


def run(spec: str, size: tuple[int, int], variant: str, options: dict) -> dict[str, float]:
    """One measurement, in a process of its own."""
    torch.set_num_threads(options["threads"])
    torch.manual_seed(0)
    model = load(spec, options["num_labels"])
    return measure(model, size, variant, options["batch_size"], options["device"], options["repeats"])


def load(spec: str, num_labels: int):
    if not spec.lstrip().startswith("{"):
        return load_with_processor(spec)[0]
    return load_segmenter(load_yaml(spec), id2label={index: f"LABEL_{index}" for index in range(num_labels)})


def describe(row: dict) -> str:
    return f"{row['model']} {row['variant']}: p50 {row['p50_ms']:.1f} ms, peak {row['peak_mib']:.0f} MiB"


def markdown(rows: list[dict]) -> str:
    """Table with, behind each number, its ratio to the first row's."""
    table = []
    for row in rows:
        cells = []
        for key, _, unit in COLUMNS:
            ratio = "" if row is rows[0] or not rows[0][key] else f" ({row[key] / rows[0][key]:.2f}x)"
            cells.append(f"{row[key] / unit:.2f}{ratio}")
        table.append([row["model"], row["variant"], *cells])
    return markdown_table(["model", "variant", *(title for _, title, _ in COLUMNS)], table)


def parser() -> argparse.ArgumentParser:
    """Command line of this script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("models", nargs="+", help="folders, Hub ids, or YAML of new models; the first one is the reference")
    add("--size", type=int, nargs=2, default=[512, 1024], metavar=("HEIGHT", "WIDTH"), help="pixels")
    add("--batch_size", type=int, default=1)
    add("--variants", nargs="+", default=["eager"], choices=VARIANTS)
    add("--num_labels", type=int, default=19, help="classes of new models")
    add("--repeats", type=int, default=20, help="timed passes")
    add("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    add("--output_dir", help="folder for benchmark.json and benchmark.md")
    return parser
