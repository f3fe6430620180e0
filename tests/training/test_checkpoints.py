"""Checkpoints: whole or absent, the best one kept, whatever dies on the way."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import TrainerCallback

from helpers.paths import TESTS
from helpers.tiny import LABELS, TINY
from helpers.trainers import equal, trainer_for, weights
from hf_segkd.console import TrainingFault
from hf_segkd.loading.any_model import load_model
from hf_segkd.training.checkpoints import (
    begin,
    checkpoints,
    complete,
    damage,
    last_checkpoint,
    remove_checkpoints,
    remove_old,
)
from hf_segkd.training.checks import check_output_dir

MOMENTS = ["time:0.55", "file:0.74", "final:0.4"]
ONE_PROCESS = [f"time:{share}" for share in (0.15, 0.35, 0.55, 0.75, 0.95)] + ["file:0.2", "file:0.45", "file:0.7"]
FINAL = [f"final:{tenth / 10}" for tenth in range(10)]
NAMES = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1")
SIGNALS = [text for name in NAMES for text in (f"{name}:0.3", f"{name}:0.7:twice")]
# Milliseconds between the signals to two processes; one process alone; twice.
SKEWED = [
    text for skew in (0, 10, 50, 100, 200, 300) for text in (f"SIGTERM:0.4:skew={skew}", f"SIGUSR1:0.5:skew={skew}")
]
SKEWED += ["SIGHUP:0.2:skew=100", "SIGHUP:0.6:skew=300", "SIGINT:0.3:skew=20"]
SKEWED += [text for name in ("SIGTERM", "SIGHUP", "SIGUSR1") for text in (f"{name}:0.3:rank=0", f"{name}:0.5:rank=1")]
SKEWED += [
    "SIGTERM:0.5:skew=0:twice",
    "SIGTERM:0.3:skew=50:twice",
    "SIGUSR1:0.7:rank=1:twice",
    "SIGHUP:0.5:rank=0:twice",
]
KILLED = ["time:0.25", "time:0.45", "time:0.85", "file:0.3", "file:0.6"]
KILLED += ["final:0.05", "final:0.35", "final:0.65", "final:0.95"]
ALL_MOMENTS = [*ONE_PROCESS, *FINAL, *SIGNALS, *(f"2:{text}" for text in (*SKEWED, *KILLED))]


def python(*arguments) -> str:
    """What a Python process prints that sees this checkout."""
    paths = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    run = subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr[-4000:]
    return run.stdout


@pytest.mark.slow
@pytest.mark.parametrize("moments", [MOMENTS, ALL_MOMENTS], ids=["3", "60"])
def test_run_killed_at_any_moment_resumes_to_the_same_bits(tmp_path, moments):
    """A machine that is taken away asks nobody; also not a process that is writing a checkpoint just then."""
    check_interrupted(tmp_path, moments)


@pytest.mark.slow
def test_signal_to_one_of_two_processes_stops_both_and_resumes_to_the_same_bits(tmp_path):
    """One process waited for the other for ever, or was aborted unsaved; 3 of 7 skewed signals lost the run."""
    check_interrupted(tmp_path, ["2:SIGTERM:0.35:rank=1", "2:SIGUSR1:0.5:skew=100:twice"])


def check_interrupted(folder, moments):
    printed = python(TESTS / "helpers" / "killed_runs.py", folder, *moments)
    found = [json.loads(line) for line in printed.splitlines()]
    assert [run["moment"] for run in found] == moments
    for run in found:
        name = next((part for part in run["moment"].split(":") if part.startswith("SIG")), "SIGKILL")
        number = signal.Signals[name]
        # Killed by the signal itself; after the others, all processes save once and end together.
        assert (-9 in run["codes"]) if name == "SIGKILL" else set(run["codes"]) == {128 + number}, run
        assert set(run["resumed"]) == {0} and run["difference"] == 0.0, run


@pytest.mark.slow
def test_two_processes_share_their_statistics_and_resume_to_the_same_bits(tmp_path):
    """Each process counts the statistics of its own images, and draws from a generator of its own."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    python(*launcher, TESTS / "helpers" / "resumed_processes.py", tmp_path)
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2))
    assert equal(first["whole"], second["whole"]) and first["statistics"]
    assert first["rng"] == ["rng_state_0.pth", "rng_state_1.pth"]
    assert equal(first["whole"], first["resumed"]) and equal(second["whole"], second["resumed"])


def save(folder, step, size=10):
    checkpoint = folder / f"checkpoint-{step}"
    begin(checkpoint)
    (checkpoint / "model.safetensors").write_bytes(b"x" * size)
    complete(checkpoint)
    return checkpoint


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_failed_save_leaves_the_earlier_ones_and_the_next_save_cleans_up(tmp_path, caplog):
    """A half written checkpoint would be resumed from, or stay for ever."""
    save(tmp_path, 1)
    begin(tmp_path / "checkpoint-2")
    (tmp_path / "checkpoint-2" / "model.safetensors").write_bytes(b"x")
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-1")
    assert "checkpoint-2 is not complete and is passed over: it was not finished" in caplog.text
    save(tmp_path, 3)
    assert names(tmp_path) == ["checkpoint-1", "checkpoint-3"]


def test_checkpoint_of_the_same_step_is_replaced(tmp_path):
    """Who resumes from an earlier checkpoint by hand comes past a step that was saved before."""
    save(tmp_path, 1)
    (tmp_path / "checkpoint-1" / "rng_state_1.pth").write_bytes(b"of a second process")
    assert (save(tmp_path, 1, size=20) / "model.safetensors").stat().st_size == 20
    assert names(tmp_path) == ["checkpoint-1"] and damage(tmp_path / "checkpoint-1") is None
    assert names(tmp_path / "checkpoint-1") == ["contents.txt", "model.safetensors"]


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


DAMAGES = {
    "cut short": (lambda folder: os.truncate(folder / "model.safetensors", 5), "model.safetensors is damaged"),
    "one bit": (lambda folder: flip(folder / "model.safetensors"), "model.safetensors is damaged"),
    "zeroed": (lambda folder: (folder / "model.safetensors").write_bytes(bytes(10)), "model.safetensors is damaged"),
    "missing": (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors is missing"),
    "no list": (lambda folder: (folder / "contents.txt").unlink(), "it was not finished"),
    "empty list": (lambda folder: (folder / "contents.txt").write_bytes(b""), "it was not finished"),
    "garbled list": (lambda folder: (folder / "contents.txt").write_bytes(b"\xff\x00"), "it cannot be read"),
    "more": (lambda folder: (folder / "weights.safetensors").write_bytes(b"x"), "weights.safetensors does not belong"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_checkpoint_is_passed_over_and_named(tmp_path, name, caplog):
    """A flipped bit resumes to other weights, a zeroed file ends in a traceback beside an older whole checkpoint."""
    save(tmp_path, 1)
    newest = save(tmp_path, 10)
    harm, reason = DAMAGES[name]
    harm(newest)
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-1")
    assert f"checkpoint-10 is not complete and is passed over: {reason}" in caplog.text


def test_run_with_broken_checkpoints_alone_is_not_started_again(tmp_path):
    """--resume that quietly begins from step 0 throws the days before away."""
    (tmp_path / "recipe.yaml").write_text("")
    assert check_output_dir(str(tmp_path), resume=True) is None  # ended before its first checkpoint
    (save(tmp_path, 1) / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="has no complete checkpoint"):
        check_output_dir(str(tmp_path), resume=True)


@pytest.mark.parametrize(
    "limit, best, kept",
    [
        (None, 2, [1, 2, 3, 4, 9]),
        (1, 4, [4]),
        (1, 2, [2, 4]),
        (2, 2, [2, 4]),
        (3, 2, [2, 4, 9]),
        (4, 2, [2, 3, 4, 9]),
        (9, None, [1, 2, 3, 4, 9]),
    ],
)
def test_newest_and_best_are_kept_and_then_the_latest(tmp_path, limit, best, kept):
    """The best student lost to a limit cannot be made again. 9 is left from a run that was resumed at 3."""
    for step in (9, 1, 2, 3, 4):
        save(tmp_path, step)
    remove_old(tmp_path / "checkpoint-4", limit, str(tmp_path / f"checkpoint-{best}") if best else None)
    assert names(tmp_path) == [f"checkpoint-{step}" for step in kept]


def test_removal_that_is_interrupted_leaves_what_can_be_resumed(tmp_path, monkeypatch):
    """A newest checkpoint that names a best one which is gone already would end with the last student instead."""
    for step in (2, 4, 10):
        save(tmp_path, step)
    (tmp_path / "checkpoint-3").mkdir()
    removed = []
    monkeypatch.setattr("hf_segkd.training.checkpoints.remove", lambda checkpoint: removed.append(checkpoint.name))
    remove_checkpoints(tmp_path)
    assert removed == ["checkpoint-10", "checkpoint-4", "checkpoint-3", "checkpoint-2"]
    monkeypatch.undo()
    remove_checkpoints(tmp_path)
    assert names(tmp_path) == []


def scored(trainer, scores):
    trainer.compute_metrics = lambda prediction, compute_result: {"mean_iou": next(scores)} if compute_result else {}


def test_best_checkpoint_stays_and_moves_with_its_run(tmp_path, tiny_student):
    """Trainer looks for it under the old path, and without it returns the last student instead of the best."""
    options = {"eval_steps": 1, "save_steps": 1, "keep_checkpoints": True}
    trainer = trainer_for(tmp_path / "a", tiny_student, max_steps=3, **options)
    scores = iter([0.5, 0.9, 0.7, 0.8, 0.6])
    scored(trainer, scores)
    trainer.train()
    assert [path.name for path in checkpoints(tmp_path / "a")] == ["checkpoint-2", "checkpoint-3"]
    best = weights(load_model(str(tmp_path / "a" / "checkpoint-2"))[0])
    assert equal(weights(tiny_student), best)

    shutil.move(tmp_path / "a", tmp_path / "b")
    torch.manual_seed(5)
    student = load_model(TINY, id2label=LABELS)[0]
    trainer = trainer_for(tmp_path / "b", student, max_steps=5, **options)
    scored(trainer, scores)
    trainer.train(resume_from_checkpoint=last_checkpoint(tmp_path / "b"))
    assert [path.name for path in checkpoints(tmp_path / "b")] == ["checkpoint-2", "checkpoint-5"]
    assert trainer.state.best_metric == 0.9 and equal(weights(student), best)


def test_best_checkpoint_that_is_gone_gives_way_to_the_best_of_the_rest(tmp_path, tiny_student, caplog):
    """With its score kept, no later student would ever be better, and the last one became the result."""
    options = {"eval_steps": 1, "save_steps": 1, "keep_checkpoints": True}
    scores = iter([0.9, 0.5, 0.8, 0.7])
    for steps, resume in ((2, None), (4, str(tmp_path / "checkpoint-2"))):
        trainer = trainer_for(tmp_path, tiny_student, max_steps=steps, **options)
        scored(trainer, scores)
        if resume:
            shutil.rmtree(tmp_path / "checkpoint-1")
        trainer.train(resume_from_checkpoint=resume)
    assert "checkpoint-1, the best so far: it is gone" in caplog.text
    assert trainer.state.best_metric == 0.8
    assert Path(trainer.state.best_model_checkpoint).name == "checkpoint-3"


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("needs the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("room", [0.0, 0.3, 0.6, 0.9])
def test_full_disk_keeps_the_earlier_checkpoint_and_says_what_to_do(small_disk, tiny_student, room):
    """Whichever file meets the end of the disk: safetensors, torch.save and open report it in three ways."""
    options = {"load_best_model_at_end": False, "keep_checkpoints": True, "save_total_limit": None}
    trainer = trainer_for(small_disk / "run", tiny_student, **options)

    class FillAfterFirst(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            if state.global_step == 2:
                disk = shutil.disk_usage(small_disk)
                (small_disk / "filler").write_bytes(b"x" * (disk.free - int(room * disk.used)))

    trainer.add_callback(FillAfterFirst())
    with pytest.raises(TrainingFault) as error:
        trainer.train()
    message = str(error.value)
    assert "checkpoint-2 is complete: free some space" in message and "--resume" in message
    assert names(small_disk / "run") == ["checkpoint-2"] and damage(small_disk / "run" / "checkpoint-2") is None
