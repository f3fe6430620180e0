"""Classes of data that is in no table: names from a list or file, raw values from a map."""

import json
from dataclasses import dataclass
from pathlib import Path

from dataset_builders.class_files import SUFFIXES, ClassFile, read_class_file
from hf_segkd.data.colors import distinct_colors
from hf_segkd.data.label_map import IGNORE_INDEX, Color, LabelMap
from hf_segkd.data.specs import DatasetSpec
from hf_segkd.recipe import load_yaml
from hf_segkd.values import check_choice

IGNORE = "ignore"


@dataclass(frozen=True)
class Meaning:
    """What a person says about the raw values of the masks.

    Args:
        label_map (`dict` or `str`, *optional*): Raw value, or color as `"#804080"` or `"128,64,128"`, to class name,
            class id, or `null` (ignored); or a `.json` or `.yaml` file of it. Without it, raw
            values are class ids.
        ignore_index (`int`, *optional*, defaults to `255`): Raw value of pixels without a label, any whole number.
        zero_is_unlabeled (`bool`, *optional*, defaults to `False`): Whether 0 means "not labeled", so that 1 is the
            first class; `do_reduce_labels` of transformers.
        value_255 (`str`, *optional*): Of masks that hold 0 and 255 alone: `"object"`, 255 is the second of two
            classes, or `"unlabeled"`.
    """

    label_map: dict | str | None = None
    ignore_index: int = IGNORE_INDEX
    zero_is_unlabeled: bool = False
    value_255: str | None = None

    def __post_init__(self):
        if self.value_255 is not None:
            check_choice("value_255", self.value_255, ("object", "unlabeled"))


def own_classes(
    labels: list[str] | str | None, meaning: Meaning, known: ClassFile | None = None
) -> tuple[tuple[str, ...], LabelMap]:
    """Class names, and what raw annotation values mean.

    Args:
        labels (`list[str]` or `str`, *optional*): Names in the order of the train ids, or a file that
            [`~dataset_builders.class_files.read_class_file`] reads.
        meaning ([`Meaning`]): What is known about the values.
        known ([`~dataset_builders.class_files.ClassFile`], *optional*): Names to use when `labels` is `None`.

    Raises:
        `ValueError`: If there are no names, or names and map contradict each other.
    """
    entries = _read_map(meaning.label_map)
    named = [name for name in entries.values() if isinstance(name, str) and name != IGNORE]
    if labels:
        known = read_labels(labels, int(meaning.zero_is_unlabeled))
    elif known is None or (meaning.label_map is not None and known.values is not None):
        known = ClassFile(tuple(dict.fromkeys(named)))
    names = known.names
    _check_names(names)
    if meaning.label_map is None and known.values is not None:
        entries = dict(known.values)
    if entries:
        return names, _mapped(entries, names, meaning)
    return names, _counted(names, meaning)


def _mapped(entries: dict[int | Color, str | int | None], names: tuple[str, ...], meaning: Meaning) -> LabelMap:
    if meaning.value_255 == "object":
        raise ValueError("value_255 and a map of values both say what 255 means. Give one of them.")
    ids = {raw: _train_id(raw, value, names) for raw, value in entries.items()}
    if any(isinstance(raw, tuple) for raw in ids):
        advice = "Add them to the label map (null: ignored). Masks of class ids need --labels NAME NAME ... instead."
        return LabelMap(ids, f"the {len(entries)} colors of the label map", advice)
    void = {meaning.ignore_index: IGNORE_INDEX}
    if meaning.zero_is_unlabeled:
        if ids.get(0, IGNORE_INDEX) != IGNORE_INDEX:
            raise ValueError(f"zero_is_unlabeled, but the label map sends 0 to {entries[0]!r}. Give one of them.")
        void[0] = IGNORE_INDEX
    advice = "Add them to the label map (null: ignored)."
    known = f"the {len(entries)} values of the label map"
    return LabelMap(void | ids, known, advice, asks_about_255=meaning.value_255 is None)


def _counted(names: tuple[str, ...], meaning: Meaning) -> LabelMap:
    """Raw values are class ids, or one more where 0 is unlabeled, or 0 and 255 of two classes."""
    if meaning.value_255 == "object":
        if len(names) != 2 or meaning.zero_is_unlabeled:
            raise ValueError(
                f"value_255 object means two classes, of values 0 and 255; there are {len(names)}: "
                f"{', '.join(names)}. Give two names, the first for 0: --labels background object."
            )
        return LabelMap({0: 0, 255: 1}, "0 and 255", "Give a label_map from raw values to classes.")
    first = int(meaning.zero_is_unlabeled)
    ids = {index + first: index for index in range(len(names))}
    if meaning.ignore_index in ids:
        hint = " --zero_is_unlabeled makes 1 the first class." if meaning.ignore_index == 0 else ""
        raise ValueError(
            f"ignore_index {meaning.ignore_index} is also the id of class '{names[ids[meaning.ignore_index]]}'. "
            f"Give a label_map that says which raw value is which class.{hint}"
        )
    ids |= {meaning.ignore_index: IGNORE_INDEX} | ({0: IGNORE_INDEX} if first else {})
    allowed = f"{first} to {len(names) - 1 + first} and {meaning.ignore_index} (ignored)"
    if first:
        allowed += ", 0 (unlabeled)"
    advice = "Give a label_map from raw values (or colors) to classes, or all class names in labels."
    return LabelMap(ids, allowed, advice, asks_about_255=meaning.value_255 is None)


def _check_names(names: tuple[str, ...]) -> None:
    if not names:
        raise ValueError(
            "The classes have no names. Give --labels labels.txt (one name per line) or --labels NAME NAME ..."
        )
    if len(set(names)) != len(names) or len(names) > IGNORE_INDEX:
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"Give at most 255 different class names; got {len(names)}, repeated: {twice or 'none'}.")
    if len(names) == 1:
        raise ValueError(
            f"There is one class, '{names[0]}': every pixel would be it and nothing could be learned. Name the "
            f"background as well, as in --labels background {names[0]}; shapes take --unlabeled_as background."
        )


def own_spec(name: str, labels: tuple[str, ...], label_map: LabelMap) -> DatasetSpec:
    """Spec of a dataset of one's own: the colors of its masks or generated ones, no test split."""
    palette = distinct_colors(len(labels))
    if label_map.colors:
        own = {train_id: color for color, train_id in reversed(label_map.ids.items())}
        palette = tuple(own.get(index, color) for index, color in enumerate(palette))
    return DatasetSpec(name, labels, palette, test_split=None)


def read_labels(labels: list[str] | str, first: int = 0) -> ClassFile:
    """Class names from a list, or from a file of them; `first` is the number of the first class.

    Raises:
        `ValueError`: If the file does not exist or its content is no list of names.
    """
    if isinstance(labels, str):
        labels = [labels]
    if len(labels) == 1 and (Path(labels[0]).suffix.lower() in SUFFIXES or Path(labels[0]).is_file()):
        return read_class_file(labels[0], first)
    return ClassFile(tuple(map(str, labels)))


def _read_map(label_map: dict | str | None) -> dict[int | Color, str | int | None]:
    if label_map is None:
        return {}
    content = label_map if isinstance(label_map, dict) else _parse(label_map, _read(label_map, "label_map"))
    if not isinstance(content, dict) or not content:
        raise ValueError(f"A label_map maps raw values to classes, got {content!r}.")
    entries = {_raw(key): value for key, value in content.items()}
    if len({isinstance(key, tuple) for key in entries}) > 1:
        raise ValueError(f"A label_map maps either values or colors, got both: {', '.join(map(str, content))}.")
    return entries


def _raw(key: str | int) -> int | Color:
    """A raw value, or the color that `#rrggbb` or `r,g,b` names."""
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
        raise ValueError(f"'{key}' in the label_map is neither a value nor a color like #804080 or 128,64,128.")
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
    if Path(file).suffix.lower() in (".yaml", ".yml"):
        return load_yaml(text)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is not valid JSON: {error}.") from None
