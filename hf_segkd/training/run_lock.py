"""One run in a folder at a time: a lock file with host, process and heartbeat."""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

logger = logging.getLogger(__name__)

LOCK_FILE = ".run.lock"
HEARTBEAT = 10.0  # seconds
# A run on another machine whose lock has not been touched for so long is dead.
STALE = 60.0


@contextmanager
def run_lock(output_dir: str | Path, heartbeat: float = HEARTBEAT, stale: float = STALE) -> Iterator[None]:
    """Lock a folder for the run of this process.

    The lock of a process that has died is taken over: on this machine at once, on another one after its heartbeat has
    stood still for `stale` seconds by our own clock. The file goes when the block ends.

    Args:
        output_dir (`str` or `Path`): Folder of the run; must exist.
        heartbeat (`float`, *optional*, defaults to `10.0`): Seconds between two signs of life.
        stale (`float`, *optional*, defaults to `60.0`): Seconds without one after which a run counts as dead.

    Raises:
        ValueError: If another run holds the folder.
    """
    lock = Path(output_dir) / LOCK_FILE
    mine = json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "started": _started(os.getpid())})
    while not _create(lock, mine):
        _refuse_or_remove(lock, stale)
    stopped = threading.Event()
    beating = threading.Thread(target=_beat, args=(lock, heartbeat, stopped), daemon=True)
    beating.start()
    try:
        yield
    finally:
        stopped.set()
        beating.join()
        if _read(lock) == mine:
            lock.unlink(missing_ok=True)


def _create(lock: Path, content: str) -> bool:
    """Create the lock and its content atomically; `False` if it exists."""
    temporary = lock.with_name(f"{LOCK_FILE}-{socket.gethostname()}-{os.getpid()}")
    temporary.write_text(content, encoding="utf-8")
    try:
        os.link(temporary, lock)
    except FileExistsError:
        return False
    except OSError:  # a file system without hard links
        return _create_in_place(lock, content)
    finally:
        temporary.unlink()
    return True


def _create_in_place(lock: Path, content: str) -> bool:
    try:
        with lock.open("x", encoding="utf-8") as file:
            file.write(content)
    except FileExistsError:
        return False
    return True


def _refuse_or_remove(lock: Path, stale: float) -> None:
    content = _read(lock)
    if content is None:
        return
    holder = _holder(content)
    here = holder.get("host") == socket.gethostname()
    if holder and (_alive(holder) if here else _beats(lock, stale)):
        raise ValueError(
            f"Another run is writing into {str(lock.parent)!r}: process {holder['pid']} on {holder['host']}, "
            f"last sign of life {_age(lock)}. Stop it, or give another --output_dir. If it is dead, remove {lock}."
        )
    logger.warning("The run that held %s is dead; it is taken over.", lock.parent)
    # Renamed first: of two processes that take over, one finds the other's new lock in its hands and puts it back.
    taken = lock.with_name(f"{LOCK_FILE}-dead-{os.getpid()}")
    try:
        lock.rename(taken)
    except FileNotFoundError:
        return
    if taken.read_text(encoding="utf-8") != content:
        os.link(taken, lock)
    taken.unlink()


def _holder(content: str) -> dict:
    """Who holds a lock; empty for a file that nobody can read, such as one that a full disk cut short."""
    try:
        holder = json.loads(content)
        return {key: holder[key] for key in ("host", "pid", "started")}
    except (ValueError, TypeError, KeyError):
        return {}


def _alive(holder: dict) -> bool:
    # The start tells a process from a later one with the same number, as in a container that is started again.
    started = _started(holder["pid"])
    return started is not None and abs(started - holder["started"]) < 1


def _started(pid: int) -> float | None:
    try:
        return psutil.Process(pid).create_time()
    except psutil.NoSuchProcess:
        return None


def _beats(lock: Path, stale: float) -> bool:
    """Watch a lock of another machine; clocks of two machines are not compared."""
    before = _touched(lock)
    logger.info("%s is held from another machine; waiting up to %.0f s for a sign of life.", lock.parent, stale)
    end = time.monotonic() + stale
    while time.monotonic() < end:
        time.sleep(min(1.0, stale / 10))
        if _touched(lock) != before:
            return _touched(lock) is not None
    return False


def _beat(lock: Path, heartbeat: float, stopped: threading.Event) -> None:
    while not stopped.wait(heartbeat):
        try:
            os.utime(lock)
        except OSError:  # removed by hand, or the file system is away: nobody is to be stopped by that
            continue


def _touched(lock: Path) -> int | None:
    try:
        return lock.stat().st_mtime_ns
    except FileNotFoundError:
        return None


def _age(lock: Path) -> str:
    touched = _touched(lock)
    return "just now" if touched is None else f"{max(0, round(time.time() - touched / 1e9))} s ago"


def _read(lock: Path) -> str | None:
    try:
        return lock.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
