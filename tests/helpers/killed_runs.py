"""Interrupts `hf-segkd distill` at given moments and resumes it: python killed_runs.py FOLDER MOMENT...

A moment is `[PROCESSES:]WHAT:SHARE[:rank=R | :skew=MS][:twice]`; PROCESSES is 1 or 2. WHAT is

- `time`: killed when a share of the steps has begun;
- `file`, `final`: killed before a share of all that is opened for writing, renamed or removed in the output folder, of
  the whole run or after its training;
- a signal such as `SIGTERM`: sent when a share of the steps has begun; to both processes, the second `skew`
  milliseconds later, or to one of them; `twice`: again 5 milliseconds later.

Steps are no whole number of epochs. Prints one JSON line for each moment: exit codes of the interrupted and of the
resumed processes, at which step it stopped, and the largest difference to the run that is not interrupted.
"""

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

from helpers.commands import distill, recipe
from helpers.tiny import RECIPE, TINY
from hf_segkd.reports import run_folder
from hf_segkd.training.callbacks import SetProgress

STEPS = 10
CHANGES = {
    **{"max_steps": STEPS, "eval_steps": 2, "save_steps": 2, "keep_checkpoints": True, "ema_decay": 0.5},
    # 6 steps an epoch, with two processes 3.
    "dataset_config": {**RECIPE["dataset_config"], "num_train": 12},
    "losses": {
        **{"task": {}, "cwd": {"weight": 3.0}},
        "cirkd_memory": {"pixel_memory": 40, "region_memory": 12},
    },
}
WRITING = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir")
PAUSE = 0.05  # seconds before each step, so that signals that are apart hit different steps
PATIENCE = 120.0  # seconds after which a process counts as hanging


@dataclass(frozen=True)
class Moment:
    """See the module."""

    processes: int
    what: str
    share: float
    ranks: tuple[int, ...]
    skew: float
    twice: bool

    @classmethod
    def parse(cls, text: str) -> "Moment":
        parts = text.split(":")
        processes = int(parts.pop(0)) if parts[0].isdigit() else 1
        what, share, *options = parts
        named = dict(option.split("=") for option in options if "=" in option)
        ranks = (int(named["rank"]),) if "rank" in named else tuple(range(processes))
        return cls(processes, what, float(share), ranks, float(named.get("skew", 0)) / 1000, "twice" in options)


@dataclass(frozen=True)
class Whole:
    """A run that was not interrupted: changes of files in all, and before the end of training."""

    changes: int
    training: int
    results: dict[str, torch.Tensor]


def watch(folder: Path, note: Callable[[], None]) -> None:
    """Call `note` before every change of a file below `folder`."""

    def hook(event, args):
        if event not in WRITING:
            return
        path, reads = args[0], event == "open" and not (args[2] & (os.O_WRONLY | os.O_RDWR))
        # Relative paths are those that shutil.rmtree removes.
        if not reads and isinstance(path, str) and (not os.path.isabs(path) or path.startswith(str(folder))):
            note()

    sys.addaudithook(hook)


def child(work: Callable[[], None], log: Path, environment: dict[str, str]) -> int:
    """Process that does `work`. Forked, for the imports take longer than the run; this one never trains."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.environ.update(environment)
        work()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
        print(stop.code, file=sys.stderr)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def start(argv: list[str], folder: Path, processes: int, **options) -> list[int]:
    """The processes of one run, which write their output beside its folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    found = []
    for rank in range(processes):
        several = {"WORLD_SIZE": str(processes), "RANK": str(rank), "LOCAL_RANK": str(rank)}
        several |= {"LOCAL_WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        log = folder.with_name(f"{folder.name}-{rank}.log")
        environment = several if processes > 1 else {}
        found.append(child(lambda rank=rank: train(argv, folder, rank, **options), log, environment))
    return found


def train(argv: list[str], folder: Path, rank: int, pause: float = 0.0, die_at: int | None = None) -> None:
    torch.set_num_threads(1)
    marks = folder.with_name(f"{folder.name}-marks")
    marks.mkdir(exist_ok=True)
    count = 0

    def note():
        nonlocal count
        count += 1
        if count == die_at and rank == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def mark(name: str) -> None:
        (marks / f"{name}-{rank}").write_text(str(count))

    begin, finish = SetProgress.on_step_begin, run_folder.finish_run

    def on_step_begin(self, args, state, control, **kwargs):
        mark(f"step{state.global_step}")
        time.sleep(pause)
        begin(self, args, state, control, **kwargs)

    def finish_run(*args):
        mark("trained")
        finish(*args)

    SetProgress.on_step_begin, run_folder.finish_run = on_step_begin, finish_run
    watch(folder, note)
    distill.main([*argv, "--output_dir", str(folder), "--resume"])
    mark("ended")


def wait(processes: list[int], killed: bool = False) -> list[int | str]:
    """Exit codes; a process that hangs is killed. When one was `killed`, so are the others, as launchers do."""
    end = time.monotonic() + PATIENCE
    codes: dict[int, int | str] = {}
    while len(codes) < len(processes):
        for process in (process for process in processes if process not in codes):
            done, status = os.waitpid(process, os.WNOHANG)
            if done:
                codes[process] = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > end or (killed and codes):
                os.kill(process, signal.SIGKILL)
                os.waitpid(process, 0)
                codes[process] = "ended with the other" if killed else "hangs"
        time.sleep(0.01)
    return [codes[process] for process in processes]


def results(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of the final student and of the last checkpoint: student, average, losses, statistics, optimizer."""
    last = folder / f"checkpoint-{STEPS}"
    files = [folder / "model.safetensors", *sorted(last.glob("*.safetensors"))]
    found = {f"{file.relative_to(folder)}: {key}": x for file in files for key, x in load_file(file).items()}
    optimizer = torch.load(last / "optimizer.pt", weights_only=True)["state"]
    found |= {f"momentum {index}": state["momentum_buffer"] for index, state in optimizer.items()}
    metrics = json.loads((folder / "metrics.json").read_text())
    return found | {"mean IoU": torch.tensor(metrics["mean_iou"]), "steps": torch.tensor(metrics["steps"])}


def difference(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float | str:
    """The largest one; 0 is bit for bit."""
    if found.keys() != expected.keys():
        return f"other tensors: {sorted(found.keys() ^ expected.keys())[:3]}"
    if all(torch.equal(x, found[key]) for key, x in expected.items()):
        return 0.0
    return max((x.double() - found[key].double()).abs().max().item() for key, x in expected.items()) or "not equal"


def interrupt(moment: Moment, processes: list[int], marks: Path) -> None:
    """Send what the moment says; kills before a change of a file come from the process itself."""
    if moment.what in ("file", "final"):
        return
    step = int(moment.share * STEPS)
    while not any((marks / f"step{step}-{rank}").is_file() for rank in range(moment.processes)):
        time.sleep(0.002)
    number = signal.SIGKILL if moment.what == "time" else signal.Signals[moment.what]
    for repeat in range(1 + moment.twice):
        for index, rank in enumerate(moment.ranks):
            time.sleep(moment.skew * (index > 0) + 0.005 * (repeat > 0))
            os.kill(processes[rank], number)


def last_step(folder: Path) -> int | None:
    """Step of the newest checkpoint."""
    return max((int(path.name.split("-")[1]) for path in folder.glob("checkpoint-*")), default=None)


def main(folder: Path, moments: list[str]) -> None:
    teacher = {**TINY, "hidden_sizes": [4, 10, 15], "use_decoder": True}
    given = recipe(folder, student=teacher, max_steps=1, eval_steps=1, save_steps=1)
    if wait(start([given], folder / "teacher", 1)) != [0]:
        raise RuntimeError((folder / "teacher-0.log").read_text())
    argv = [recipe(folder, **CHANGES), "--teacher", str(folder / "teacher")]
    wholes: dict[int, Whole] = {}
    for index, text in enumerate(moments):
        moment = Moment.parse(text)
        if moment.processes not in wholes:
            wholes[moment.processes] = whole_run(argv, folder / f"whole{moment.processes}", moment.processes)
        whole = wholes[moment.processes]
        run = folder / f"run{index}"
        die_at = None
        if moment.what == "file":
            die_at = round(moment.share * whole.changes)
        elif moment.what == "final":
            die_at = whole.training + 1 + round(moment.share * (whole.changes - whole.training - 1))
        processes = start(argv, run, moment.processes, pause=PAUSE, die_at=die_at)
        interrupt(moment, processes, folder / f"run{index}-marks")
        codes = wait(processes, killed=moment.what in ("time", "file", "final"))
        stopped = last_step(run)
        resumed = wait(start(argv, run, moment.processes))
        found = results(run) if set(resumed) == {0} else {}
        differs = difference(found, whole.results) if found else "not resumed"
        line = {"moment": text, "codes": codes, "stopped": stopped, "resumed": resumed, "difference": differs}
        print(json.dumps(line), flush=True)


def whole_run(argv: list[str], folder: Path, processes: int) -> Whole:
    codes = wait(start(argv, folder, processes, pause=PAUSE))
    if set(codes) != {0}:
        raise RuntimeError(f"{codes}: " + folder.with_name(f"{folder.name}-0.log").read_text())
    marks = folder.with_name(f"{folder.name}-marks")
    trained, ended = (int((marks / f"{name}-0").read_text()) for name in ("trained", "ended"))
    return Whole(ended, trained, results(folder))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
