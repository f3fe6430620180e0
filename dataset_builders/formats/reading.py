"""What readers of exports share: JSON, pictures by name, names of splits."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".tif", ".tiff", ".webp", ".heic", ".heif", ".npy")
# Thumbnails and bookkeeping of network disks, archives and systems.
SKIPPED = ("@eaDir", "__MACOSX", ".thumbnails", ".ipynb_checkpoints", "#recycle")
SPLITS = {
    "train": ("train", "training"),
    "validation": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}


def read_json(file: Path) -> Any:
    """Content of a JSON file.

    Raises:
        ValueError: It is no JSON, or no UTF-8 text.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8-sig"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not valid JSON: {error}.") from None


def split_of(file: Path, root: Path) -> str:
    """Split that a file belongs to by the names of its folders, then by its own name; `"train"` if none says."""
    parts = [*reversed(file.relative_to(root).parent.parts), file.stem]
    for part in parts:
        words = part.lower().replace("-", "_").replace(".", "_").split("_")
        for split, names in SPLITS.items():
            # COCO writes the year behind the split: train2017.
            if any(word.rstrip("0123456789") in names for word in words):
                return split
    return "train"


class ImageIndex:
    """All pictures of a folder, found by any ending of their path.

    Args:
        root (`Path`): Folder that is searched with all its folders.
    """

    def __init__(self, root: Path):
        self.root = root
        self.by_name: dict[str, list[Path]] = {}
        for path in sorted(root.rglob("*")):
            if path.suffix.lower() in SUFFIXES and not set(SKIPPED) & set(path.parts) and path.is_file():
                self.by_name.setdefault(_composed(path.name), []).append(path)

    def find(self, name: str, source: Path, near: Path | None = None, avoid: Path | None = None) -> Path:
        """The picture that an annotation file calls `name`.

        Args:
            name (`str`): A file name, or a path of which the last parts fit.
            source (`Path`): The annotation file: of several fits, the one closest to it is taken.
            near, avoid (`Path`, *optional*): Folder that the picture must, or must not, lie in.

        Raises:
            ValueError: There is no such picture, or more than one.
        """
        wanted = Path(name.replace("\\", "/").split("?")[0])
        found = self.by_name.get(_composed(wanted.name), [])
        if near is not None:
            found = [path for path in found if near in path.parents] or found
        if avoid is not None:
            found = [path for path in found if avoid not in path.parents]
        if not found:
            raise ValueError(
                f"{source.name} names the picture '{name}', which is nowhere under {self.root}. Put the pictures "
                f"beside the annotations. Suffixes looked for: {', '.join(SUFFIXES)}."
            )
        best = max(_agreement(path, wanted, source) for path in found)
        closest = [path for path in found if _agreement(path, wanted, source) == best]
        if len(closest) > 1:
            names = ", ".join(str(path.relative_to(self.root)) for path in closest[:3])
            raise ValueError(f"{source.name} names the picture '{name}', which may be {names}. Give them other names.")
        return closest[0]

    def __iter__(self):
        return iter(sorted(path for paths in self.by_name.values() for path in paths))


def image_index(root: Path) -> ImageIndex:
    """Index of the pictures under a folder."""
    return ImageIndex(root)


def _composed(name: str) -> str:
    """Names that look alike are alike: macOS decomposes letters with accents."""
    return unicodedata.normalize("NFC", name)


def _agreement(path: Path, wanted: Path, source: Path) -> tuple[int, int]:
    """How many last parts of the path fit, and how many first parts are shared with the annotation file."""
    tail = 0
    for part, other in zip(reversed(path.parts), reversed(wanted.parts), strict=False):
        if _composed(part) != _composed(other):
            break
        tail += 1
    head = sum(1 for part, other in zip(path.parts, source.parts, strict=False) if part == other)
    same_split = split_of(path, path.anchor and Path(path.anchor)) == split_of(source, Path(source.anchor))
    return tail, head + same_split
