"""Compare the command of a resumed run with the recipe in its folder."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

from hf_segkd.recipe import load_yaml

RECIPE_FILE = "recipe.yaml"
# What the run was until `--resume_with_changes`; the card compares each with the next.
EARLIER_RECIPE = "recipe_until_{}.yaml"
# What changes neither data nor weights nor scores: where things are written, what is logged, who reads images.
MAY_DIFFER = {
    *("resume", "resume_with_changes", "overwrite", "output_dir", "trust_remote_code", "check_data", "cache_dir"),
    "license",
    *("save_steps", "save_strategy", "save_total_limit", "keep_checkpoints", "per_device_eval_batch_size"),
    *("report_to", "run_name", "project", "disable_tqdm", "log_level", "log_level_replica", "log_on_each_node"),
    *("ddp_timeout", "torch_empty_cache_steps", "include_num_input_tokens_seen", "use_cpu", "skip_memory_metrics"),
}
MAY_DIFFER_PREFIXES = ("logging_", "dataloader_", "push_to_hub", "hub_", "trackio_")
DECIDES = {"dataloader_drop_last"}  # of those with such a prefix, what changes the batches all the same
PATHS = {"data", "data_dir", "teacher", "teacher_cache", "student", "unlabeled"}


def without_location(recipe: dict[str, Any]) -> dict[str, Any]:
    """A recipe without what need not match: token, upload target, and how the run was started."""
    left_out = ("resume", "overwrite", "push_to_hub", "hub_")
    return {key: value for key, value in recipe.items() if not key.startswith(left_out)}


def differences(was: dict[str, Any], now: dict[str, Any], defaults: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Differences between two recipes, as dotted key -> (old, new), except those that may differ.

    A key that one of them lacks has its default value. Nested mappings, the losses above all, are compared key by key.
    """
    keys = dict.fromkeys([*was, *now])
    found = {}
    for key in keys:
        if key in MAY_DIFFER or (key.startswith(MAY_DIFFER_PREFIXES) and key not in DECIDES):
            continue
        first = was.get(key, defaults.get(key))
        second = now.get(key, defaults.get(key))
        if key in PATHS:
            first, second = _normal_path(first), _normal_path(second)
        found |= _compare(key, first, second)
    return found


def field_defaults(*classes: type) -> dict[str, Any]:
    """Default of every field of some dataclasses."""
    found = {}
    for field in (field for cls in classes for field in dataclasses.fields(cls)):
        if field.default is not dataclasses.MISSING:
            found[field.name] = field.default
        elif field.default_factory is not dataclasses.MISSING:
            found[field.name] = field.default_factory()
    return found


def check_same_recipe(output_dir: str, recipe: dict[str, Any], defaults: dict[str, Any], allow: bool = False) -> None:
    """Compare the command of a resumed run with the recipe in its folder.

    Args:
        output_dir (`str`): Folder of the run; without a recipe there is nothing to compare.
        recipe (`dict`): Of the command.
        defaults (`dict`): From [`field_defaults`].
        allow (`bool`, *optional*, defaults to `False`): Let differences pass (`--resume_with_changes`).

    Raises:
        ValueError: If anything differs that changes the run; all of it is listed.
    """
    file = Path(output_dir) / RECIPE_FILE
    if allow or not file.is_file():
        return
    changes = differences(load_yaml(file.read_text(encoding="utf-8")) or {}, recipe, defaults)
    if changes:
        listed = "\n".join(f"  {line}" for line in change_lines(changes))
        raise ValueError(
            f"This is not the run in {output_dir!r}:\n{listed}\nRun the command it was started with, or add "
            "--resume_with_changes to go on all the same: both recipes are then kept, and the card tells of both."
        )


def change_lines(changes: dict[str, tuple[Any, Any]]) -> list[str]:
    """One line for each difference: `learning_rate: was 0.01, now 0.02`."""
    return [f"{key}: was {_shown(was)}, now {_shown(now)}" for key, (was, now) in changes.items()]


def earlier_recipes(folder: Path) -> list[tuple[int, dict[str, Any]]]:
    """Step and recipe of each part of a run that was resumed with changes, oldest first; without the last part."""
    found = []
    for file in folder.glob(EARLIER_RECIPE.format("*")):
        step = file.stem.rsplit("_", 1)[-1]
        if step.isdigit():
            found.append((int(step), load_yaml(file.read_text(encoding="utf-8"))))
    return sorted(found, key=lambda part: part[0])


def _compare(key: str, first: Any, second: Any) -> dict[str, tuple[Any, Any]]:
    if isinstance(first, dict) and isinstance(second, dict):
        found = {}
        for name in dict.fromkeys([*first, *second]):
            found |= _compare(f"{key}.{name}", first.get(name), second.get(name))
        return found
    same = first == second or (_is_list(first) and _is_list(second) and list(first) == list(second))
    return {} if same else {key: (first, second)}


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _normal_path(value: Any) -> Any:
    return os.path.normpath(value) if isinstance(value, str) else value


def _shown(value: Any) -> str:
    return "not set" if value is None else str(value)
