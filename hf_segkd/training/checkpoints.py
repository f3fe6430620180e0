"""Checkpoints that are whole or absent, whatever happens while they are written or removed."""

from __future__ import annotations

import errno
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from transformers import Trainer
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import ExportableState, TrainerState

from hf_segkd.console import TrainingFault

logger = logging.getLogger(__name__)

PREFIX = "checkpoint-"
# Hidden: neither Trainer nor a glob for checkpoints takes what is being written or removed for a checkpoint.
UNFINISHED = ".unfinished-"
# Names and sizes of all files of a checkpoint: a copy that was cut short does not agree with it.
CONTENTS_FILE = "contents.txt"
FULL = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the quota is used up", errno.EFBIG: "a file is too large"}


@contextmanager
def written_whole(folder: Path, is_main: bool, wait: Callable[[], None]) -> Iterator[Path]:
    """Give a folder to write a checkpoint into, which takes the name `folder` only when all of it is on the disk.

    A process that dies on the way leaves the earlier checkpoints as they were, and a hidden folder that the next save
    removes.

    Args:
        folder (`Path`): The checkpoint, `OUTPUT_DIR/checkpoint-STEP`. If there is one already, it is replaced.
        is_main (`bool`): Whether this process makes, completes and renames the folder; all may write into it.
        wait (`Callable`): Returns when all processes have called it.

    Raises:
        TrainingFault: If the disk cannot take it.
    """
    unfinished = folder.with_name(UNFINISHED + folder.name)
    if is_main:
        remove_unfinished(folder.parent)
        unfinished.mkdir(parents=True)
    wait()
    try:
        yield unfinished
        wait()
        if is_main:
            _complete(unfinished, folder)
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = _full_disk(error)
        if reason is None:
            raise
        if is_main:
            shutil.rmtree(unfinished)
        raise TrainingFault(_advice(reason, folder)) from error
    wait()


class WholeCheckpoints(Trainer):
    """Trainer whose checkpoints are whole or absent; what is in them stays as it was.

    Against `Trainer`, the folder is written under a hidden name; older ones are ordered by their step, not by the
    file system's clock; and the best one is looked for beside the checkpoint that is resumed, so that a run may be
    moved.
    """

    def _save_checkpoint(self, model, trial):
        folder = Path(self.args.output_dir) / f"{PREFIX}{self.state.global_step}"
        if self.state.best_global_step == self.state.global_step:
            self.state.best_model_checkpoint = str(folder)
        self.store_flos()
        with written_whole(folder, self.args.should_save, self.accelerator.wait_for_everyone) as unfinished:
            self.save_model(str(unfinished), _internal_call=True)
            if not self.args.save_only_model:
                self._save_optimizer_and_scheduler(str(unfinished))
                self._save_scaler(str(unfinished))
                self._save_rng_state(str(unfinished))
            if self.args.should_save:
                self._note_callbacks()
                self.state.save_to_json(str(unfinished / TRAINER_STATE_NAME))
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(folder))
        if self.args.should_save:
            remove_old(folder, self.args.save_total_limit, self.state.best_model_checkpoint)

    def _note_callbacks(self) -> None:
        stateful = [x for x in [*self.callback_handler.callbacks, self.control] if isinstance(x, ExportableState)]
        self.state.stateful_callbacks |= {type(callback).__name__: callback.state() for callback in stateful}

    def _init_training_state(self, max_steps, steps_per_epoch, epochs, resume_from_checkpoint, trial):
        trained = super()._init_training_state(max_steps, steps_per_epoch, epochs, resume_from_checkpoint, trial)
        if resume_from_checkpoint is not None:
            self._find_best(TrainerState.load_from_json(str(Path(resume_from_checkpoint) / TRAINER_STATE_NAME)))
        return trained

    def _find_best(self, saved: TrainerState) -> None:
        if saved.best_model_checkpoint is None:
            return
        best = Path(self.args.output_dir) / Path(saved.best_model_checkpoint).name
        self.state.best_model_checkpoint = str(best)
        if not best.is_dir():
            logger.warning("%s, the best so far, is gone; the best of what follows will be the result.", best.name)
            self.state.best_metric = self.state.best_global_step = self.state.best_model_checkpoint = None


def is_whole(checkpoint: Path) -> bool:
    """Whether every file that was saved is there, in its full size."""
    contents = checkpoint / CONTENTS_FILE
    return contents.is_file() and contents.read_text(encoding="utf-8") == _contents(checkpoint)


def checkpoints(output_dir: str | Path) -> list[Path]:
    """The whole checkpoints in `output_dir`, oldest first; none when there is no such folder."""
    return [checkpoint for checkpoint in _named(output_dir) if is_whole(checkpoint)]


def last_checkpoint(output_dir: str | Path) -> str | None:
    """Path of the newest whole checkpoint in `output_dir`, or `None`; newer ones that are not whole are named."""
    for checkpoint in reversed(_named(output_dir)):
        if is_whole(checkpoint):
            return str(checkpoint)
        logger.warning("%s is not whole (files are missing or cut short) and is passed over.", checkpoint)
    return None


def remove(checkpoint: Path) -> None:
    """Remove a checkpoint; at no moment is there a half removed one under its name."""
    unfinished = checkpoint.with_name(UNFINISHED + checkpoint.name)
    checkpoint.rename(unfinished)
    shutil.rmtree(unfinished)


def remove_checkpoints(output_dir: str | Path) -> None:
    """Remove all checkpoints, newest first: none needs a later one, so what an interruption leaves can be resumed."""
    for checkpoint in reversed(checkpoints(output_dir)):
        remove(checkpoint)
    for broken in _named(output_dir):
        shutil.rmtree(broken)
    remove_unfinished(Path(output_dir))


def remove_unfinished(output_dir: Path) -> None:
    """Remove what a process left that died while it wrote or removed a checkpoint."""
    for folder in output_dir.glob(f"{UNFINISHED}*"):
        shutil.rmtree(folder)


def remove_old(newest: Path, limit: int | None, best: str | None) -> None:
    """Keep `limit` checkpoints: `newest`, `best` in any case, and then the latest others. `None` keeps all."""
    if not limit:
        return
    kept = {newest.name, Path(best).name if best else newest.name}
    others = [checkpoint for checkpoint in checkpoints(newest.parent) if checkpoint.name not in kept]
    for checkpoint in others[: max(0, len(others) + len(kept) - max(limit, len(kept)))]:
        remove(checkpoint)


def _complete(unfinished: Path, folder: Path) -> None:
    (unfinished / CONTENTS_FILE).write_text(_contents(unfinished), encoding="utf-8")
    # Without these, a power cut after the rename could leave the name and lose the contents.
    for path in (*unfinished.rglob("*"), unfinished):
        _sync(path)
    if folder.exists():
        replaced = folder.with_name(f"{UNFINISHED}replaced-{folder.name}")
        folder.rename(replaced)
        unfinished.rename(folder)
        shutil.rmtree(replaced)
    else:
        unfinished.rename(folder)
    _sync(folder.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _contents(folder: Path) -> str:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != CONTENTS_FILE)
    return "".join(f"{path.relative_to(folder).as_posix()}: {path.stat().st_size} bytes\n" for path in files)


def _named(output_dir: str | Path) -> list[Path]:
    found = [path for path in Path(output_dir).glob(f"{PREFIX}*") if path.name.removeprefix(PREFIX).isdigit()]
    return sorted(found, key=_step)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix(PREFIX))


def _full_disk(error: Exception) -> str | None:
    """Why nothing more can be written, if that is what `error` says."""
    if isinstance(error, OSError):
        return FULL.get(error.errno)
    text = str(error)
    # safetensors reports what the system said as text; torch.save that its own writer failed, without a reason.
    for number, reason in FULL.items():
        if os.strerror(number) in text or f"os error {number}" in text:
            return reason
    writer_failed = any(name in text for name in ("PytorchStreamWriter", "iostream error", "inline_container"))
    return "the disk is full, or refuses what is written" if writer_failed else None


def _advice(reason: str, folder: Path) -> str:
    last = last_checkpoint(folder.parent)
    state = f"{Path(last).name} is whole: free some space" if last else "There is no earlier one: free some space"
    return (
        f"Saving {folder.name} in {str(folder.parent)!r} failed: {reason}. {state} and run the same command with "
        "--resume. A smaller save_total_limit, or a larger save_steps, needs less room or writes less often."
    )
