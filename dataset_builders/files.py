"""Files of a raw dataset, in folders or zip archives; listed without opening them and read in place."""

import io
import os
import re
import unicodedata
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from zipfile import BadZipFile, ZipFile

from hf_segkd.data import heif

SUFFIXES = {".png", ".jpg", ".jpeg", ".jfif", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm"}
SUFFIXES |= set(heif.SUFFIXES) if heif.is_readable() else set()
MASK_SUFFIXES = SUFFIXES | {".npy"}
# Thumbnails and bookkeeping of network disks, archives and systems; what begins with a dot is left out anyway.
SKIPPED = {"@eadir", "__macosx", "#recycle", "thumbs.db", "desktop.ini"}
# Folders that name a split, possibly with a year behind it: train2017.
SPLIT_FOLDERS = {
    "train": ("train", "training"),
    "validation": ("val", "validation", "valid", "dev"),
    "test": ("test", "testing"),
}


@dataclass(frozen=True)
class RawFile:
    """A file on disk, or a member of a zip archive.

    Args:
        path (`pathlib.Path`): The file, or the archive.
        member (`str`, *optional*): Name inside the archive, with forward slashes.
    """

    path: Path
    member: str = ""

    def __str__(self) -> str:
        return f"{self.path}/{self.member}" if self.member else str(self.path)

    @property
    def stem(self) -> str:
        return PurePosixPath(self.member or self.path.name).stem

    def fingerprint(self, root: str | None) -> str:
        """Place, size and time: another text as soon as the file, or the archive it lies in, is replaced."""
        status = os.stat(self.path)
        return f"{below(str(self.path), root)} {self.member} {status.st_size} {status.st_mtime_ns}"


def below(path: str, root: str | None) -> str:
    """A path relative to the folder `root`, or to the working directory."""
    if root is not None and path.startswith(root + os.sep):
        return path[len(root) + 1 :]  # os.path.relpath takes 20 times as long
    return os.path.relpath(path, root)


@dataclass(frozen=True)
class DrawnFile(RawFile):
    """A mask that is no file: it is drawn from shapes each time it is read.

    Args:
        draw (`Callable[[], bytes]`): Draws the encoded mask.
        state (`str`): Text that changes with the annotations.
    """

    draw: Callable[[], bytes] = field(default=bytes, compare=False)
    state: str = ""

    def __str__(self) -> str:
        return f"{self.path} (its shapes)"

    def fingerprint(self, root: str | None) -> str:
        """The picture's fingerprint, and the state of the annotations."""
        return f"{super().fingerprint(root)} {self.state}"


def stored_file(path: str) -> RawFile:
    """The file that `datasets` names: a path, or `zip://MEMBER::ARCHIVE`."""
    member, separator, archive = path.removeprefix("zip://").partition("::")
    return RawFile(Path(archive), member) if separator else RawFile(Path(path))


class FileReader(ExitStack):
    """Reads [`RawFile`]s and keeps their archives open until the `with` block ends. Nothing is ever extracted."""

    def __init__(self):
        super().__init__()
        self._archives: dict[Path, ZipFile] = {}

    def source(self, file: RawFile) -> Path | io.BytesIO:
        """What `PIL.Image.open` takes: the path of a file, the content of a member."""
        return io.BytesIO(self.read(file)) if file.member or isinstance(file, DrawnFile) else file.path

    def read(self, file: RawFile) -> bytes:
        """Content of a file.

        Raises:
            `ValueError`: If it cannot be read or fails the archive's checksum.
        """
        if isinstance(file, DrawnFile):
            return file.draw()
        try:
            if not file.member:
                return file.path.read_bytes()
            return self._archive(file).read(file.member)
        # RuntimeError: an encrypted member; NotImplementedError: a compression that Python does not know.
        except (OSError, BadZipFile, RuntimeError, NotImplementedError) as error:
            raise ValueError(f"Cannot read {file}: {error}. Restore the file.") from error

    def size(self, file: RawFile) -> int:
        """Bytes of a file's content, found without reading it."""
        return self._archive(file).getinfo(file.member).file_size if file.member else file.path.stat().st_size

    def _archive(self, file: RawFile) -> ZipFile:
        if file.path not in self._archives:
            self._archives[file.path] = self.enter_context(ZipFile(file.path))
        return self._archives[file.path]


@dataclass(frozen=True)
class Part:
    """A part of a download: a folder under one of the names it is known by, or the official archive that holds it."""

    folders: tuple[str, ...]
    archive: str = ""

    def __str__(self) -> str:
        folders = " or ".join(f"{folder}/" for folder in self.folders)
        return f"{folders} (or {self.archive})" if self.archive else folders

    def sources(self, root: Path) -> list[Path]:
        """The first folder or archive that exists below `root`; empty if none does."""
        candidates = [root / folder for folder in self.folders]
        found = [path for path in candidates if path.is_dir()]
        if self.archive and (root / self.archive).is_file():
            found.append(root / self.archive)
        return found[:1]


def check_folder(data_dir: str | None, title: str, wanted: str, page: str) -> Path:
    """Absolute path of `data_dir`.

    Raises:
        `ValueError`: If it is not given, or no folder; the message says what it should hold and where to get that.
    """
    if not data_dir:
        raise ValueError(f"{title} needs data_dir, the folder that holds {wanted}. {page}")
    root = Path(os.path.abspath(os.path.expanduser(data_dir)))
    if not root.is_dir():
        raise ValueError(f"data_dir {root} is not a folder. {title} needs one that holds {wanted}. {page}")
    return root


def list_parts(data_dir: str | None, parts: tuple[Part, ...], title: str, page: str) -> dict[str, RawFile]:
    """All files of a dataset by their path below `data_dir`, or inside an archive there.

    Args:
        data_dir (`str`, *optional*): Folder of the raw files.
        parts (`tuple[Part, ...]`): What a complete download consists of.
        title (`str`): Name of the dataset in messages.
        page (`str`): Sentence that says where to get it.

    Raises:
        `ValueError`: If the folder, or a part of the dataset, is missing; the message names every missing part.
    """
    wanted = ", ".join(map(str, parts))
    root = check_folder(data_dir, title, wanted, page)
    missing = [str(part) for part in parts if not part.sources(root)]
    if missing:
        raise ValueError(
            f"{title} in {root} lacks {', '.join(missing)}; looked for {wanted}; found {listing(root)}."
            f"{_deeper(root, parts)} {page}"
        )
    files: dict[str, RawFile] = {}
    for source in dict.fromkeys(source for part in parts for source in part.sources(root)):
        files |= walk(source, root) if source.is_dir() else list_archive(source, page)
    return files


def walk(folder: Path, root: Path) -> dict[str, RawFile]:
    """Files below `folder` by their path relative to `root`, without hidden ones and [`SKIPPED`].

    Links are followed, but not one that leads to a folder that it lies in: that would list all its files again.
    """
    files = {}
    real = Path(folder).resolve()
    # Of each folder, the real paths of itself and of all folders that it was reached through.
    above = {str(folder): {str(real), *map(str, real.parents)}}
    for place, folders, names in os.walk(folder, followlinks=True):
        kept = []
        for name in sorted(name for name in folders if not is_junk(name)):
            path = os.path.join(place, name)
            real = os.path.realpath(path)
            if real not in above[place]:
                above[path] = above[place] | {real}
                kept.append(name)
        folders[:] = kept
        prefix = Path(place).relative_to(root).as_posix()
        for name in sorted(name for name in names if not is_junk(name)):
            files[name if prefix == "." else f"{prefix}/{name}"] = RawFile(Path(place, name))
    return files


def is_junk(name: str) -> bool:
    """Whether a file or folder is hidden, or one of [`SKIPPED`]."""
    return name.startswith(".") or name.lower() in SKIPPED


def split_of_folder(name: str) -> str | None:
    """The split that the name of a folder says, `None` if it says none."""
    word = name.lower().rstrip("0123456789")
    return next((split for split, names in SPLIT_FOLDERS.items() if word in names), None)


def check_heic(paths: Iterable[str]) -> None:
    """Refuse photos that cannot be read here, unless the same photo lies there in another format.

    Raises:
        ValueError: Names some, and what to install.
    """
    if heif.is_readable():
        return
    names = [(path, *os.path.splitext(os.path.basename(path))) for path in paths]
    others = {stem for _, stem, suffix in names if suffix.lower() in SUFFIXES}
    alone = [path for path, stem, suffix in names if suffix.lower() in heif.SUFFIXES and stem not in others]
    if alone:
        raise ValueError(
            f"{len(alone)} photos are HEIC, which needs one more package: {examples(alone)}. {heif.INSTALL}, or "
            "convert them to JPEG or PNG."
        )


def composed(text: str) -> str:
    """Text whose letters with accents are one character each: macOS takes them apart in file names."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def list_archive(archive: Path, page: str) -> dict[str, RawFile]:
    """Members of a zip archive by their name.

    Raises:
        `ValueError`: If it is cut off or no zip, or a name would lead out of a folder it is unpacked to.
    """
    try:
        with ZipFile(archive) as opened:
            names = [info.filename for info in opened.infolist() if not info.is_dir()]
    except (BadZipFile, OSError) as error:
        raise ValueError(f"{archive} is not a complete zip archive ({error}). Download it again. {page}") from error
    for name in names:
        path = PurePosixPath(name.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts:
            raise ValueError(f"{archive} holds the unsafe name '{name}'. This is not the official archive. {page}")
    return {name: RawFile(archive, name) for name in sorted(names) if not name.startswith("__MACOSX/")}


def match(files: dict[str, RawFile], pattern: str) -> dict[str, RawFile]:
    """Files whose path ends in a regular expression, by the text of its group."""
    compiled = re.compile(rf"(?:.*/)?{pattern}")
    found = ((compiled.fullmatch(path), file) for path, file in files.items())
    return {hit.group(1): file for hit, file in found if hit}


def examples(names, count: int = 3) -> str:
    """The first few names, for messages."""
    names = sorted(names)
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")


def listing(folder: Path) -> str:
    """What a folder holds, for messages."""
    found = sorted(os.listdir(folder))
    more = f", ... ({len(found)} entries)" if len(found) > 8 else ""
    return ", ".join(found[:8]) + more if found else "an empty folder"


def _deeper(root: Path, parts: tuple[Part, ...]) -> str:
    """A hint when `data_dir` is one or two folders too high, as after unpacking an archive."""
    for pattern in ("*", "*/*"):
        for folder in sorted(path for path in root.glob(pattern) if path.is_dir()):
            if all(part.sources(folder) for part in parts):
                return f" Did you mean {folder}?"
    return ""


def read_lines(*path: str) -> list[str] | None:
    """Lines of a text file without the empty ones, `None` when it does not exist."""
    file = Path(*path).expanduser()
    if not file.is_file():
        return None
    return [line for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
