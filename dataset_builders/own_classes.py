"""Classes of data that is in no table: names from a list or file, raw values from a map."""

import json
from pathlib import Path

from hf_segkd.data.colors import distinct_colors
from hf_segkd.data.label_map import IGNORE_INDEX, Color, LabelMap
from hf_segkd.data.specs import DatasetSpec

IGNORE = "ignore"


def own_classes(
    labels: list[str] | str | None,
    label_map: dict | str | None,
    ignore_index: int,
    known: tuple[str, ...] = (),
) -> tuple[tuple[str, ...], LabelMap]:
    """Class names, and what raw annotation values mean.

    Args:
        labels (`list[str]` or `str`, *optional*): Names in the order of the train ids, or a file: `.txt` with one name
            per line, or `.json` with a list or with `{"0": "road", ...}`.
        label_map (`dict` or `str`, *optional*): Raw value, or colour as `"#804080"` or `"128,64,128"`, to class name,
            class id, or `null` (ignored); or a `.json` file that holds it. Without it, raw values are class ids.
        ignore_index (`int`): Raw value of pixels without a label.
        known (`tuple[str, ...]`, *optional*): Names to use when `labels` is `None`.

    Raises:
        `ValueError`: If there are no names, or names and map contradict each other.
    """
    entries = _read_map(label_map)
    named = [name for name in entries.values() if isinstance(name, str) and name != IGNORE]
    names = read_labels(labels) if labels else known or tuple(dict.fromkeys(named))
    _check_names(names)
    if label_map is not None:
        ids = {raw: _train_id(raw, value, names) for raw, value in entries.items()}
        void = {} if any(isinstance(raw, tuple) for raw in ids) else {ignore_index: IGNORE_INDEX}
        known_values = f"the {len(entries)} values of the label map"
        return names, LabelMap(void | ids, known_values, "Add them to the label map (null: ignored).")
    if 0 <= ignore_index < len(names):
        raise ValueError(
            f"ignore_index {ignore_index} is also the id of class '{names[ignore_index]}'. "
            "Give a label_map that says which raw value is which class."
        )
    ids = {index: index for index in range(len(names))} | {ignore_index: IGNORE_INDEX}
    advice = "Give a label_map from raw values (or colours) to classes, or all class names in labels."
    return names, LabelMap(ids, f"0 to {len(names) - 1} and {ignore_index} (ignored)", advice)


def _check_names(names: tuple[str, ...]) -> None:
    if not names:
        raise ValueError(
            "The classes have no names. Give --labels labels.txt (one name per line) or --labels NAME NAME ..."
        )
    if len(set(names)) != len(names) or len(names) > IGNORE_INDEX:
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"Give at most 255 different class names; got {len(names)}, repeated: {twice or 'none'}.")


def own_spec(name: str, labels: tuple[str, ...]) -> DatasetSpec:
    """Spec of a dataset of one's own: generated colours, no test split."""
    return DatasetSpec(name, labels, distinct_colors(len(labels)), test_split=None)


def read_labels(labels: list[str] | str) -> tuple[str, ...]:
    """Class names from a list, or from a `.txt` or `.json` file.

    Raises:
        `ValueError`: If the file does not exist, or a JSON mapping does not number the classes 0, 1, 2, ...
    """
    if isinstance(labels, str):
        labels = [labels]
    if len(labels) > 1 or Path(labels[0]).suffix not in (".txt", ".json"):
        return tuple(map(str, labels))
    text = _read(labels[0], "labels")
    if labels[0].endswith(".txt"):
        return tuple(line.strip() for line in text.splitlines() if line.strip())
    content = _parse(labels[0], text)
    if isinstance(content, list):
        return tuple(map(str, content))
    numbers = sorted(map(int, content))
    if numbers != list(range(len(numbers))):
        raise ValueError(f"{labels[0]} numbers the classes {numbers[:5]}..., expected 0, 1, 2, ... without gaps.")
    return tuple(str(content[str(number)]) for number in numbers)


def _read_map(label_map: dict | str | None) -> dict[int | Color, str | int | None]:
    if label_map is None:
        return {}
    content = label_map if isinstance(label_map, dict) else _parse(label_map, _read(label_map, "label_map"))
    if not isinstance(content, dict) or not content:
        raise ValueError(f"A label_map maps raw values to classes, got {content!r}.")
    entries = {_raw(key): value for key, value in content.items()}
    if len({isinstance(key, tuple) for key in entries}) > 1:
        raise ValueError(f"A label_map maps either values or colours, got both: {', '.join(map(str, content))}.")
    return entries


def _raw(key: str | int) -> int | Color:
    """A raw value, or the colour that `#rrggbb` or `r,g,b` names."""
    text = str(key).strip().strip("()")
    try:
        if text.startswith("#") and len(text) == 7:
            return tuple(bytes.fromhex(text[1:]))
        numbers = tuple(int(number) for number in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) == 1:
        return numbers[0]
    if len(numbers) != 3 or not all(0 <= number <= 255 for number in numbers):
        raise ValueError(f"'{key}' in the label_map is neither a value nor a colour like #804080 or 128,64,128.")
    return numbers


def _train_id(raw: int | Color, value: str | int | None, names: tuple[str, ...]) -> int:
    if value is None or value == IGNORE:
        return IGNORE_INDEX
    if isinstance(value, str) and value in names:
        return names.index(value)
    if isinstance(value, int) and (0 <= value < len(names) or value == IGNORE_INDEX):
        return value
    raise ValueError(
        f"The label_map sends {raw} to {value!r}, which is no class name, no id from 0 to {len(names) - 1} and not "
        f"null. Classes: {', '.join(names)}."
    )


def _read(file: str, option: str) -> str:
    if not Path(file).is_file():
        raise ValueError(f"The file '{file}' given as {option} does not exist.")
    return Path(file).read_text(encoding="utf-8-sig")


def _parse(file: str, text: str) -> dict | list:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is not valid JSON: {error}.") from None
