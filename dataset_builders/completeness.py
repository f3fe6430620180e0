"""Whether all of a stored dataset is there: every part, every row, every file that a row names."""

from __future__ import annotations

import json
import os
import re
from collections import defaultdict
from pathlib import Path
from zipfile import ZipFile, is_zipfile

import datasets
import pyarrow

from dataset_builders.files import RawFile, examples, stored_file

COUNT_FILE = "rows.json"  # rows of each split when it was exported
# train-00000-of-00002.parquet, or with a hash behind, as the Hub had it once.
PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})(-[0-9a-f]+)?(\.\w+)")
# 0000.parquet, as the Hub converts datasets: the numbers have no gaps.
NUMBERED = re.compile(r"(\d{4})(\.parquet)")


def check_parts(folder: Path) -> None:
    """Check that a local folder holds all parts that the names of its files promise, each to its end.

    Raises:
        ValueError: A part is missing or cut off; it is named.
    """
    paths = [path for path in folder.rglob("*") if path.suffix in (".parquet", ".arrow", ".zip")]
    missing = sorted(str(path.relative_to(folder)) for path in _promised(paths) if not path.is_file())
    if missing:
        number = f"{len(missing)} of {len(missing) + len(paths)} parts"
        raise ValueError(f"{folder} lacks {number}: {examples(missing)}. Copy it again.")
    cut = sorted(str(path.relative_to(folder)) for path in paths if _is_cut(path))
    if cut:
        raise ValueError(f"{folder} holds {len(cut)} parts that are cut off: {examples(cut)}. Copy them again.")


def check_counts(folder: Path, found: dict[str, int]) -> None:
    """Check the splits against what was written when the folder was exported.

    Raises:
        ValueError: A split, or rows of one, are missing.
    """
    if not (folder / COUNT_FILE).is_file():
        return
    written = json.loads((folder / COUNT_FILE).read_text(encoding="utf-8"))
    if written != found:
        raise ValueError(f"{folder} was exported with the rows {written}, and holds {found}. Copy it again.")


def check_files(name: str, splits: datasets.DatasetDict) -> None:
    """Check that the files, and the members of zip archives, that rows name are there.

    Raises:
        ValueError: Some are missing; they are named.
    """
    wanted: dict[Path, set[str]] = defaultdict(set)
    for rows in splits.values():
        for file in _named_files(rows):
            wanted[file.path].add(file.member)
    missing = []
    for path, members in wanted.items():
        if not path.is_file():
            missing.append(str(path))
        elif members != {""}:
            with ZipFile(path) as archive:
                missing += [f"{path.name}/{member}" for member in members - set(archive.namelist())]
    if missing:
        total = sum(map(len, wanted.values()))
        raise ValueError(f"The dataset '{name}' names {total} files and lacks {len(missing)}: {examples(missing)}.")


def _promised(paths: list[Path]) -> set[Path]:
    """Parts that the names of others say there are; where names end in a hash, one that is missing has `*` there."""
    promised = set()
    numbers: dict[tuple[Path, str, str, str], set[int]] = defaultdict(set)
    for path in paths:
        hit = PART.fullmatch(path.name)
        if hit:
            place = path.with_name(f"{hit[1]}-{{:05d}}-of-{hit[3]}{'-*' if hit[4] else ''}{hit[5]}")
            numbers[place, hit[3]].add(int(hit[2]))
        elif hit := NUMBERED.fullmatch(path.name):
            numbers[path.with_name("{:04d}" + hit[2]), ""].add(int(hit[1]))
    for (place, total), found in numbers.items():
        count = int(total) if total else max(found) + 1
        promised |= {place.with_name(place.name.format(number)) for number in set(range(count)) - found}
    return promised


def _is_cut(path: Path) -> bool:
    """Whether a Parquet file or an archive lacks its end, where the table of its contents lies."""
    if path.suffix == ".zip":
        return not is_zipfile(path)
    if path.suffix != ".parquet":
        return False
    with open(path, "rb") as file:
        if file.seek(0, os.SEEK_END) < 12:
            return True
        file.seek(-4, os.SEEK_END)
        return file.read() != b"PAR1"


def _named_files(rows: datasets.Dataset) -> set[RawFile]:
    """Files outside the table that hold pictures of its rows."""
    columns = [name for name, feature in rows.features.items() if isinstance(feature, datasets.Image)]
    found = set()
    for batch in rows.select_columns(columns).with_format("arrow").iter(batch_size=1000) if columns else ():
        for column in batch.columns:
            pictures = column.combine_chunks() if isinstance(column, pyarrow.ChunkedArray) else column
            outside = pictures.field("path").filter(pictures.field("bytes").is_null())
            paths = outside.drop_null().to_pylist()
            found |= {stored_file(path) for path in paths if "://" not in path.removeprefix("zip://")}
    return found
