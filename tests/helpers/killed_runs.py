"""Kills `scripts/distill.py` at given moments and resumes it: python killed_runs.py FOLDER MOMENT...

A moment is `time:0.3`, a share of the run's duration, or `file:0.3`, a share of all that is opened for writing,
renamed or removed in the output folder. Prints one JSON line for each: whether it was killed, and ended the same.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file

from helpers.commands import distill, recipe
from helpers.tiny import TINY

STEPS = 8
CHANGES = {
    **{"max_steps": STEPS, "eval_steps": 1, "save_steps": 1, "keep_checkpoints": True},
    "losses": {"task": {}, "cwd": {"weight": 3.0}},
}
WRITING = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir")


def events(folder: Path, note: Callable[[], None]) -> None:
    """Call `note` before every change of a file below `folder`."""

    def hook(event, args):
        if event not in WRITING:
            return
        path, reads = args[0], event == "open" and not (args[2] & (os.O_WRONLY | os.O_RDWR))
        # Relative paths are those that shutil.rmtree removes.
        if not reads and isinstance(path, str) and (not os.path.isabs(path) or path.startswith(str(folder))):
            note()

    sys.addaudithook(hook)


def child(work: Callable[[], None]) -> int:
    """Process that does `work`, silently. Forked, for the imports take longer than the run; this one never trains."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        log = os.open(os.devnull, os.O_WRONLY)
        os.dup2(log, 1)
        work()
        code = 0
    finally:
        os._exit(code)


def train(argv: list[str], folder: Path, die_at: int | None = None, counted: Path | None = None) -> None:
    torch.set_num_threads(1)
    count = 0

    def note():
        nonlocal count
        count += 1
        if count == die_at:
            os.kill(os.getpid(), signal.SIGKILL)

    events(folder, note)
    distill.main([*argv, "--output_dir", str(folder), "--resume"])
    if counted:
        counted.write_text(str(count))


def finish(process: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def results(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of the final student and of the last checkpoint: student, losses, optimizer."""
    last = folder / f"checkpoint-{STEPS}"
    files = [folder / "model.safetensors", last / "model.safetensors", last / "losses.safetensors"]
    found = {f"{file}: {key}": x for file in files for key, x in load_file(file).items()}
    optimizer = torch.load(last / "optimizer.pt", weights_only=True)["state"]
    return {key.removeprefix(str(folder)): x for key, x in found.items()} | {
        f"momentum {index}": state["momentum_buffer"] for index, state in optimizer.items()
    }


def main(folder: Path, moments: list[str]) -> None:
    teacher = {**TINY, "hidden_sizes": [4, 10, 15], "use_decoder": True}
    given = recipe(folder, student=teacher, max_steps=1, eval_steps=1, save_steps=1)
    if finish(child(lambda: train([given], folder / "teacher"))):
        raise RuntimeError("The teacher was not trained.")
    argv = [recipe(folder, **CHANGES), "--teacher", str(folder / "teacher")]
    start = time.perf_counter()
    if finish(child(lambda: train(argv, folder / "whole", counted=folder / "count"))):
        raise RuntimeError("The run that is not killed failed.")
    duration, count = time.perf_counter() - start, int((folder / "count").read_text())
    expected = results(folder / "whole")
    for index, moment in enumerate(moments):
        kind, share = moment.split(":")
        run, die_at = folder / f"run{index}", round(float(share) * count) if kind == "file" else None
        process = child(lambda run=run, die_at=die_at: train(argv, run, die_at=die_at))
        if kind == "time":
            time.sleep(float(share) * duration)
            os.kill(process, signal.SIGKILL)
        killed = finish(process) == -signal.SIGKILL
        resumed = finish(child(lambda run=run: train(argv, run)))
        found = results(run) if resumed == 0 else {}
        same = found.keys() == expected.keys() and all(torch.equal(x, found[key]) for key, x in expected.items())
        print(json.dumps({"moment": moment, "killed": killed, "resumed": resumed, "same": same}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
