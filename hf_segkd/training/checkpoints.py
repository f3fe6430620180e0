"""Atomic checkpoints: complete or ignored, even if writing or removing them is interrupted."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from transformers import TrainerCallback

from hf_segkd.console import TrainingFault

logger = logging.getLogger(__name__)

PREFIX = "checkpoint-"
# Hash, size and name of every other file of a checkpoint. It is written last: a checkpoint without it is not complete.
CONTENTS_FILE = "contents.txt"
UNFINISHED = "unfinished\n"  # what it holds until then
# Hidden: neither Trainer nor a glob for checkpoints finds what is being removed.
REMOVED = ".removed-"
FULL = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the quota is used up", errno.EFBIG: "a file is too large"}
WRITER_FAILED = "the disk is full, or refuses what is written"


class AtomicCheckpoints(TrainerCallback):
    """Completes each checkpoint after Trainer has written its files, and only then removes older ones.

    Args:
        limit (`int`, *optional*): How many are kept, see [`remove_old`]. In place of Trainer's own `save_total_limit`,
            which removes older checkpoints while the new one is not complete.
        wait (`Callable`): Returns when all processes have called it.
    """

    def __init__(self, limit: int | None, wait: Callable[[], None]):
        self.limit = limit
        self.wait = wait

    def on_save(self, args, state, control, **kwargs):
        folder = Path(args.output_dir) / f"{PREFIX}{state.global_step}"
        self.wait()  # until every process has written its files
        if args.should_save:
            with saving(folder):
                complete(folder)
            remove_old(folder, self.limit, state.best_model_checkpoint)
        self.wait()


def begin(folder: Path) -> None:
    """Make an empty, unfinished checkpoint; what an earlier attempt left there or beside it is removed."""
    remove_unfinished(folder.parent)
    if folder.exists():
        remove(folder)
    folder.mkdir(parents=True)
    (folder / CONTENTS_FILE).write_text(UNFINISHED, encoding="utf-8")


def complete(folder: Path) -> None:
    """Write the contents of a checkpoint whose files are all written. Until the last step it counts as unfinished."""
    text = "".join(f"{_line(path, folder)}\n" for path in _files(folder))
    # Without these, a power cut could leave the list and lose the files.
    for path in (*_files(folder), folder):
        _sync(path)
    temporary = folder / f".{CONTENTS_FILE}"
    temporary.write_text(text, encoding="utf-8")
    _sync(temporary)
    temporary.replace(folder / CONTENTS_FILE)
    _sync(folder)
    _sync(folder.parent)


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint: not finished, or a file that is missing, new or holds other bytes.

    Every file is read and its hash compared.

    Returns:
        `str | None`: The first thing found, `None` for a complete checkpoint.
    """
    try:
        if not is_finished(checkpoint):
            return "it was not finished"
        lines = (checkpoint / CONTENTS_FILE).read_text(encoding="utf-8").splitlines()
        listed = {line.rsplit("  ", 1)[-1]: line for line in lines}
        found = {path.relative_to(checkpoint).as_posix(): path for path in _files(checkpoint)}
        for name in sorted(listed.keys() | found.keys()):
            if name not in found:
                return f"{name} is missing"
            if name not in listed:
                return f"{name} does not belong to it"
            if listed[name] != _line(found[name], checkpoint):
                return f"{name} is damaged: its hash is not the one in {CONTENTS_FILE}"
    except (OSError, UnicodeDecodeError) as error:
        return f"it cannot be read ({error})"
    return None


def is_finished(checkpoint: Path) -> bool:
    """Whether all files of a checkpoint have been written; what has happened to them since is not looked at."""
    contents = checkpoint / CONTENTS_FILE
    return contents.is_file() and contents.read_bytes() not in (b"", UNFINISHED.encode())


def checkpoints(output_dir: str | Path) -> list[Path]:
    """The finished checkpoints in `output_dir`, oldest first; none when there is no such folder."""
    return [checkpoint for checkpoint in _named(output_dir) if is_finished(checkpoint)]


def last_checkpoint(output_dir: str | Path) -> str | None:
    """Path of the newest complete checkpoint in `output_dir`, or `None`; newer ones are named with their damage."""
    for checkpoint in reversed(_named(output_dir)):
        reason = damage(checkpoint)
        if reason is None:
            return str(checkpoint)
        logger.warning("%s is not complete and is passed over: %s.", checkpoint, reason)
    return None


def remove(checkpoint: Path) -> None:
    """Remove a checkpoint atomically."""
    removed = checkpoint.with_name(REMOVED + checkpoint.name)
    checkpoint.rename(removed)
    shutil.rmtree(removed)


def remove_checkpoints(output_dir: str | Path) -> None:
    """Remove all checkpoints, newest first: none needs a later one, so what an interruption leaves can be resumed."""
    for checkpoint in reversed(_named(output_dir)):
        remove(checkpoint)
    remove_unfinished(Path(output_dir))


def remove_unfinished(output_dir: Path) -> None:
    """Remove the leftovers of a process that died while writing or removing a checkpoint."""
    for folder in output_dir.glob(f"{REMOVED}*"):
        shutil.rmtree(folder)
    for checkpoint in _named(output_dir):
        contents = checkpoint / CONTENTS_FILE
        if contents.is_file() and contents.read_bytes() == UNFINISHED.encode():
            remove(checkpoint)


def remove_old(newest: Path, limit: int | None, best: str | None) -> None:
    """Keep `limit` checkpoints: `newest`, `best` in any case, and then the latest others. `None` keeps all."""
    if not limit:
        return
    kept = {newest.name, Path(best).name if best else newest.name}
    others = [checkpoint for checkpoint in checkpoints(newest.parent) if checkpoint.name not in kept]
    for checkpoint in others[: max(0, len(others) + len(kept) - max(limit, len(kept)))]:
        remove(checkpoint)


@contextmanager
def saving(folder: Path, is_main: bool = True) -> Iterator[None]:
    """Say in one paragraph why a checkpoint cannot be written, and remove what there is of it.

    Raises:
        TrainingFault: For what the system says: disk full, quota, folder gone. All other errors pass unchanged.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = write_failure(error)
        if reason is None:
            raise
        if is_main:
            shutil.rmtree(folder, ignore_errors=True)
        raise TrainingFault(_advice(reason, folder)) from error


def write_failure(error: Exception) -> str | None:
    """Why a file could not be written, if that is what `error` says."""
    if isinstance(error, OSError):
        return FULL.get(error.errno, str(error))
    text = str(error)
    # safetensors reports what the system said as text; torch.save that its own writer failed, without a reason.
    for number, reason in FULL.items():
        if os.strerror(number) in text or f"os error {number}" in text:
            return reason
    if isinstance(error, SafetensorError):
        return text
    if "Parent directory" in text and "does not exist" in text:
        return "the folder is gone"
    writer_failed = any(name in text for name in ("PytorchStreamWriter", "iostream error", "inline_container"))
    return WRITER_FAILED if writer_failed else None


def _advice(reason: str, folder: Path) -> str:
    last = last_checkpoint(folder.parent)
    state = f"{Path(last).name} is complete" if last else "There is no earlier one"
    remedy = "free some space" if reason in (*FULL.values(), WRITER_FAILED) else "mend that"
    return (
        f"Saving {folder.name} in {str(folder.parent)!r} failed: {reason}. {state}: {remedy} and run the same "
        "command with --resume. A smaller save_total_limit needs less room, a larger save_steps writes less often."
    )


def _line(path: Path, folder: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return f"{digest}  {path.stat().st_size}  {path.relative_to(folder).as_posix()}"


def _files(folder: Path) -> list[Path]:
    """All files that belong to a checkpoint; hidden ones are the system's, such as .DS_Store."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return [path for path in paths if path.name != CONTENTS_FILE and not path.name.startswith(".")]


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _named(output_dir: str | Path) -> list[Path]:
    found = [path for path in Path(output_dir).glob(f"{PREFIX}*") if path.name.removeprefix(PREFIX).isdigit()]
    return sorted(found, key=lambda checkpoint: int(checkpoint.name.removeprefix(PREFIX)))
