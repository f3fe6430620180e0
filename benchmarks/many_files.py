"""How long a folder of many images takes to prepare and to open again, and how much memory that needs.

    python -m benchmarks.many_files --pairs 100000 --output runs/benchmarks/many_files

writes many_files.json, after each stage; `--stages` takes some of them. The tree is made of 1000 small PNG pairs,
hard-linked under new names, and removed afterwards. Each stage runs in its own process, as a command would: seconds of
the wall clock and of the processors, imports aside, and the peak of resident memory of the largest process.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.measuring import hardware

ORIGINALS = 1000
LABELS = ["background", "crack", "rust"]
# Stage -> what its process does with the open dataset `dataset`.
STAGES = {
    "list": "dataset.files()",
    "prepare": "dataset.all_splits(num_proc=arguments.processes)",
    "open again": "[dataset.split(name) for name in dataset.splits]",
    "open again, full check": "[dataset.split(name) for name in dataset.splits]",
    "check before training": "check_data(dataset)",
}
CODE = """
import argparse, json, logging, resource, sys, time
from dataset_builders import open_dataset
from hf_segkd.training.checks import check_data
arguments = argparse.Namespace(**json.loads(sys.argv[1]))
start = time.perf_counter()
imported = time.process_time()
dataset = open_dataset(
    "folder", arguments.folder, cache_dir=arguments.cache, labels=arguments.labels, full_check=arguments.full_check
)
{action}
seconds = time.perf_counter() - start
used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
processor = sum(x.ru_utime + x.ru_stime for x in used) - imported
peak = max(x.ru_maxrss for x in used) / 1024
report = {{"seconds": round(seconds, 2), "processor_seconds": round(processor, 2), "peak_mib": round(peak)}}
print("RESULT " + json.dumps(report))
"""


def write_tree(root: Path, pairs: int) -> None:
    """`pairs` images and masks in `train` and `val` (1 in 20), of which 1000 were drawn."""
    random = np.random.default_rng(0)
    for split, count in (("train", pairs - pairs // 20), ("val", pairs // 20)):
        for kind in ("images", "masks"):
            (root / kind / split).mkdir(parents=True)
        for index in range(count):
            names = [root / kind / split / f"{index:06d}.png" for kind in ("images", "masks")]
            if index < ORIGINALS:
                Image.fromarray(random.integers(0, 255, (24, 32, 3), dtype=np.uint8)).save(names[0])
                Image.fromarray(random.integers(0, 3, (24, 32), dtype=np.uint8)).save(names[1])
                continue
            for name in names:
                os.link(name.with_name(f"{index % ORIGINALS:06d}.png"), name)


def measure(stage: str, folder: Path, processes: int) -> dict:
    """Seconds and MiB of one stage."""
    options = {"folder": str(folder / "data"), "cache": str(folder / "cache"), "labels": LABELS}
    options |= {"processes": processes, "full_check": "full" in stage}
    command = [sys.executable, "-c", CODE.format(action=STAGES[stage]), json.dumps(options)]
    done = subprocess.run(command, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not lines:
        raise RuntimeError(f"{stage} failed:\n{done.stderr[-2000:]}")
    return json.loads(lines[0].removeprefix("RESULT "))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=100_000, help="images with a mask")
    parser.add_argument(
        "--stages", nargs="+", choices=STAGES, default=list(STAGES), help="default: all, in this order"
    )
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="processes that prepare (default: all)")
    parser.add_argument("--output", required=True, help="folder for many_files.json")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="many_files_"))
    report = {"pairs": arguments.pairs, "processes": arguments.processes, "hardware": hardware(1), "stages": {}}
    Path(arguments.output).mkdir(parents=True, exist_ok=True)
    try:
        write_tree(folder / "data", arguments.pairs)
        for stage in arguments.stages:
            report["stages"][stage] = measure(stage, folder, arguments.processes)
            print(f"{stage}: {report['stages'][stage]}", flush=True)
            Path(arguments.output, "many_files.json").write_text(json.dumps(report, indent=2) + "\n")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
