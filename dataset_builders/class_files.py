"""Files of class names, as labeling tools write them: names in order, or raw values and colors with their names."""

from __future__ import annotations

import csv
import json
import re
import unicodedata
from pathlib import Path
from typing import NamedTuple

import yaml

from hf_segkd.data.label_map import Color

# In the order in which they are looked for in a data folder.
KNOWN_FILES = (
    *("_classes.csv", "class_dict.csv", "labelmap.txt", "labels.txt", "classes.txt", "class_names.txt"),
    *("id2label.json", "labels.json", "classes.json", "labels.csv", "classes.csv", "data.yaml", "data.yml"),
)
SUFFIXES = (".txt", ".csv", ".json", ".yaml", ".yml")
# labelme's own name of what is not labeled: it stands before the class with id 0.
IGNORED = "__ignore__"
NAME_COLUMNS = ("name", "class", "label", "classname", "class_name", "label_name", "category")
VALUE_COLUMNS = ("pixel value", "id", "value", "index", "class_id", "label_id", "pixel_value")
HEADERS = {*NAME_COLUMNS, *VALUE_COLUMNS, "classes", "labels", "names", "categories"}


class ClassFile(NamedTuple):
    """What a file of class names says.

    Args:
        names (`tuple[str, ...]`): Names in the order of the class ids.
        values (`dict`, *optional*): Raw value, or RGB color, to class name; `None` where raw values are class ids.
    """

    names: tuple[str, ...]
    values: dict[int, str] | dict[Color, str] | None = None


def read_class_file(file: str | Path, first: int = 0) -> ClassFile:
    """Read names from a text, CSV, JSON or YAML file.

    Args:
        file (`str` or `Path`): One name per line; labelme's `labels.txt`; CVAT's `labelmap.txt`; Kaggle's
            `class_dict.csv`; Roboflow's `_classes.csv`; a JSON list or mapping; `names` of YOLO's `data.yaml`.
        first (`int`, *optional*, defaults to `0`): Number of the first class; 1 where 0 means unlabeled.

    Raises:
        ValueError: The file does not exist, or its content is none of these.
    """
    file = Path(file)
    if not file.is_file():
        raise ValueError(f"The file '{file}' given as labels does not exist.")
    readers = {".txt": _text, ".csv": _table, ".json": _json, ".yaml": _yaml, ".yml": _yaml}
    if file.suffix.lower() not in readers:
        raise ValueError(f"{file} is no file of class names: expected {', '.join(readers)}.")
    try:
        text = unicodedata.normalize("NFC", file.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not a text file in UTF-8: {error}.") from None
    if not text.strip():
        raise ValueError(f"{file} is empty. Write one class name per line.")
    return readers[file.suffix.lower()](file, text, first)


def find_class_file(folder: Path, first: int = 0) -> tuple[Path, ClassFile] | None:
    """The file of class names that lies in a data folder, or in one of its folders, and what it says.

    Raises:
        ValueError: Several files say different things, or one cannot be read.
    """
    places = [folder, *sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))]
    files = [place / name for place in places for name in KNOWN_FILES if (place / name).is_file()]
    found = {file: read_class_file(file, first) for file in files}
    if len({repr(content) for content in found.values()}) > 1:
        names = ", ".join(str(file.relative_to(folder)) for file in found)
        raise ValueError(f"{folder} holds several files of class names that disagree: {names}. Say which: --labels.")
    return next(iter(found.items()), None)


def _text(file: Path, text: str, first: int) -> ClassFile:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if lines[0].startswith("#") and "color_rgb" in lines[0] or all(_cvat(line) for line in lines):
        return _cvat_lines(file, [line for line in lines if not line.startswith("#")])
    numbered = [re.fullmatch(r"(\d+)(?:\s*[:;,=]\s*|\s+)(\S.*)", line) for line in lines]
    if all(numbered):
        return _numbered(file, {int(hit[1]): hit[2] for hit in numbered}, first, len(lines))
    if lines[0] == IGNORED:
        lines = lines[1:]
    for line in lines:
        if line == IGNORED or line.startswith("#"):
            raise ValueError(f"{file}: '{line}' is no class name. Write one name per line, the first is id {first}.")
    _refuse_header(file, lines[0] if lines else "")
    return ClassFile(tuple(lines))


def _cvat(line: str) -> re.Match | None:
    return re.fullmatch(r"([^:]+):(\d+),(\d+),(\d+):[^:]*:[^:]*", line)


def _cvat_lines(file: Path, lines: list[str]) -> ClassFile:
    colors: dict[Color, str] = {}
    for line in lines:
        hit = _cvat(line)
        if hit is None:
            raise ValueError(f"{file}: '{line}' is not name:r,g,b:parts:actions, which its first line promises.")
        _add(colors, tuple(int(hit[place]) for place in (2, 3, 4)), hit[1].strip(), file)
    return ClassFile(tuple(dict.fromkeys(colors.values())), colors)


def _table(file: Path, text: str, first: int) -> ClassFile:
    rows = [[cell.strip() for cell in row] for row in csv.reader(text.splitlines()) if any(map(str.strip, row))]
    header = [cell.lower() for cell in rows[0]]
    if len(header) == 1:
        return _text(file, text, first)
    name = next((header.index(column) for column in NAME_COLUMNS if column in header), None)
    value = next((header.index(column) for column in VALUE_COLUMNS if column in header), None)
    ragged = [row for row in rows if len(row) != len(header)]
    if name is None or ragged or (value is None and not {"r", "g", "b"} <= set(header)):
        raise ValueError(
            f"{file} begins with '{','.join(rows[0])}': neither name,r,g,b nor Pixel Value,Class, with as many cells "
            "in each row. Write one of these headers, or one class name per line."
        )
    values: dict = {}
    for row in rows[1:]:
        cells = [row[value]] if value is not None else [row[header.index(channel)] for channel in "rgb"]
        if not all(cell.isdigit() for cell in cells):
            raise ValueError(f"{file}: '{','.join(row)}' has no whole number where the header says so.")
        numbers = tuple(map(int, cells))
        _add(values, numbers[0] if value is not None else numbers, row[name], file)
    if value is None:
        return ClassFile(tuple(dict.fromkeys(values.values())), values)
    if first:
        values.pop(0, None)
    values = dict(sorted(values.items()))
    names = tuple(dict.fromkeys(values.values()))
    in_order = list(values) == list(range(first, first + len(values))) and len(names) == len(values)
    return ClassFile(names, None if in_order else values)


def _json(file: Path, text: str, first: int) -> ClassFile:
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is not valid JSON: {error}.") from None
    return _names(file, content, first)


def _yaml(file: Path, text: str, first: int) -> ClassFile:
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{file} is not valid YAML: {' '.join(str(error).split())}.") from None
    if isinstance(content, dict) and "names" in content:
        content = content["names"]
    return _names(file, content, first)


def _names(file: Path, content: object, first: int) -> ClassFile:
    """Names of a list, of `{0: name}` or of `{name: 0}`."""
    if isinstance(content, list) and all(isinstance(name, str) for name in content):
        return ClassFile(tuple(content))
    if isinstance(content, dict) and content:
        keys, values = map(str, content), content.values()
        if all(key.isdigit() for key in keys) and all(isinstance(name, str) for name in values):
            return _numbered(file, {int(key): name for key, name in content.items()}, first, len(content))
        if all(isinstance(number, int) and not isinstance(number, bool) for number in values):
            return _numbered(file, {number: str(name) for name, number in content.items()}, first, len(content))
    raise ValueError(f'{file} is neither a list of class names nor a mapping such as {{"0": "background", ...}}.')


def _numbered(file: Path, names: dict[int, str], first: int, count: int) -> ClassFile:
    """Names by number.

    Raises:
        ValueError: A number is missing or given twice.
    """
    if first:
        names = {number: name for number, name in names.items() if number >= first}
    numbers = sorted(names)
    wanted = list(range(first, first + len(numbers)))
    if len(names) < count - bool(first) or numbers != wanted:
        gap = next((number for number in wanted if number not in names), None)
        reason = "a number is given twice" if gap is None else f"{gap} has no name"
        raise ValueError(
            f"{file} numbers the classes {numbers[:5]}..., expected {first}, {first + 1}, {first + 2}, ... without "
            f"gaps: {reason}. Name it, or give the file as --label_map: it then says which mask value is which class, "
            'and a value that is unlabeled is "0": null there. --zero_is_unlabeled makes 1 the first class.'
        )
    return ClassFile(tuple(names[number] for number in numbers))


def _add(values: dict, key: int | Color, name: str, file: Path) -> None:
    if key in values:
        raise ValueError(f"{file} gives {key} twice: to '{values[key]}' and to '{name}'.")
    values[key] = name


def _refuse_header(file: Path, line: str) -> None:
    if line.lower() in HEADERS:
        raise ValueError(
            f"{file} begins with '{line}', which reads like a header and would shift every class by one. Remove the "
            "line; a class of that name is given as --labels NAME NAME ..."
        )
