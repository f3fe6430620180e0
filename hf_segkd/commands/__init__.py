"""What `hf-segkd COMMAND`, `python -m hf_segkd COMMAND` and `scripts/COMMAND.py` run."""

from __future__ import annotations

import importlib
import sys

COMMANDS = {
    "distill": "train a student, with a teacher or without",
    "prepare": "check a dataset, map its masks, write it as parquet or push it",
    "evaluate": "score models on a dataset; compare two",
    "predict": "segment images",
    "convert": "turn a research checkpoint into a model folder",
    "export": "write a student as ONNX, fp32, fp16 or int8",
    "push": "upload a finished run to the Hub",
    "demo": "show teacher and student side by side in the browser",
    "profile": "parameters, MACs, latency and memory of models",
    "benchmark": "compare methods over several seeds",
    "features": "draw a t-SNE map of pixel features",
    "quickstart": "teacher, student and distilled student on drawn scenes, in minutes",
}


def main(argv: list[str] | None = None) -> object:
    """Run the command that the first word names."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        width = max(map(len, COMMANDS))
        print("usage: hf-segkd COMMAND ...  (hf-segkd COMMAND --help tells more)\n")
        print("\n".join(f"  {name:<{width}}  {summary}" for name, summary in COMMANDS.items()))
        return None
    if argv[0] not in COMMANDS:
        sys.exit(f"error: unknown command {argv[0]!r}. Commands: {', '.join(COMMANDS)}.")
    return importlib.import_module(f"hf_segkd.commands.{argv[0]}").main(argv[1:])
