"""Patterns of paths, in which `*` pairs images with masks and `{split}` stands for a split."""

import re
from functools import lru_cache

from dataset_builders.files import SPLIT_FOLDERS, SUFFIXES, RawFile, composed, split_of_folder


@lru_cache(maxsize=1024)
def _split_of_folders(path: str) -> str | None:
    """The split that the last folder that says one says."""
    named = [split_of_folder(folder) for folder in path.split("/")]
    return next((split for split in reversed(named) if split), None)


class Pattern:
    """A pattern of paths: `*` is any text within a folder, `**/` any folders; what they stand for is the key.

    Paths that end in one of `suffixes` match without it: the key of `images/**/*` is `a/1` for `images/a/1.jpg`.
    `{split}` is a folder's name, or a part of one, that says a split: train, val, valid, test, train2017, ...

    Args:
        text (`str`): For instance `"images/**/*"`, `"masks/*_mask.png"` or `"{split}/*.jpg"`.
        suffixes (`set[str]`, *optional*): Suffixes of pictures.
    """

    def __init__(self, text: str, suffixes: set[str] = SUFFIXES):
        self.text = text
        words = "|".join(word for names in SPLIT_FOLDERS.values() for word in names)
        escaped = re.escape(composed(text)).replace(r"\*\*/", "((?:.*/)?)").replace(r"\*", "([^/]*)")
        escaped = escaped.replace(r"\{split\}", rf"(?P<split>(?:{words})\d*)", 1)
        endings = "|".join(suffix[1:] for suffix in sorted(suffixes))
        self._suffix = "" if re.search(r"\.\w+$", text) else rf"\.(?:{endings})"
        self._compiled = re.compile(escaped + self._suffix, re.IGNORECASE)
        # Most paths fail at the first folder: comparing it is faster than the expression.
        self._start = re.split(r"[*{]", composed(text), maxsplit=1)[0].lower()

    def __str__(self) -> str:
        return self.text

    def match(self, files: dict[str, RawFile]) -> dict[str, str]:
        """Paths by key; a split in the key is spelled `train`, `validation` or `test`.

        Raises:
            `ValueError`: If two files have the same key.
        """
        found: dict[str, str] = {}
        start = self._start
        length = len(start)
        for path in files:
            path_as_typed = composed(path)
            if path_as_typed[:length].lower() != start:
                continue
            hit = self._compiled.fullmatch(path_as_typed)
            if hit is None:
                continue
            key = "".join(self._spelled(hit))
            if key in found:
                raise ValueError(f"Both {files[found[key]]} and {files[path]} match {self.text} as '{key}'. Keep one.")
            found[key] = path
        return found

    def split(self, path: str) -> str | None:
        """The split that `{split}` stands for, else the one that a folder of the path says."""
        hit = self._compiled.fullmatch(composed(path))
        if hit is not None and "split" in self._compiled.groupindex:
            return split_of_folder(hit["split"])
        return _split_of_folders(path.rpartition("/")[0])

    def _spelled(self, hit: re.Match) -> list[str]:
        """What the stars stand for, and the split by its one name."""
        texts = list(hit.groups())
        if "split" in self._compiled.groupindex:
            texts[self._compiled.groupindex["split"] - 1] = f"{split_of_folder(hit['split'])}/"
        return texts
