"""README.md of a finished run or a converted checkpoint, written from what is in its folder."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import quote

from huggingface_hub import ModelCard

from hf_segkd.losses import LOSSES
from hf_segkd.recipe import dump_text, load_yaml
from hf_segkd.reports.card_data import card_data
from hf_segkd.reports.card_text import converted_content, data_license, prompt_facts, usage
from hf_segkd.reports.markdown import code, fence, plain
from hf_segkd.reports.tables import markdown_table
from hf_segkd.training.finished_run import CONVERSION_FILE, METRICS_FILE
from hf_segkd.training.resume import RECIPE_FILE, change_lines, differences, earlier_recipes
from hf_segkd.values import check_license, without_paths

TEMPLATE = Path(__file__).parent / "templates" / "model_card.md"
FIGURES = {
    "figures/predictions.png": "Images, labels and predictions",
    "figures/classes.png": "IoU of each class",
    "figures/curves.png": "Training curves",
}


def write_model_card(
    folder: str | Path, repo_id: str | None = None, branch: str | None = None, license: str | None = None
) -> None:
    """Write `README.md` from the files of a finished run, or of a converted checkpoint.

    Args:
        folder (`str` or `Path`): With `config.json`, and `metrics.json` and `recipe.yaml` or `conversion.json`.
        repo_id (`str`, *optional*): Where the folder will be on the Hub: the snippets load from there. Without, they
            run inside the folder.
        branch (`str`, *optional*): Branch of the repository, other than `main`.
        license (`str`, *optional*): Of the weights, as the Hub writes it; defaults to that of the recipe.
    """
    (Path(folder) / "README.md").write_text(model_card(folder, repo_id, branch, license), encoding="utf-8")


def update_model_card(folder: str | Path, repo_id: str, branch: str | None = None, license: str | None = None) -> bool:
    """Let the card's snippets load from `repo_id`; a card that somebody has changed by hand is left alone.

    Without a `license` the card keeps the one that it has.

    Returns:
        `bool`: Whether the card in the folder is now that of the repository.
    """
    readme = Path(folder) / "README.md"
    text = readme.read_text(encoding="utf-8") if readme.is_file() else None
    was = None if text is None else ModelCard(text, ignore_metadata_errors=True).data.license
    ours = (model_card(folder, license=was), model_card(folder, repo_id, branch, was))
    wanted = model_card(folder, repo_id, branch, license or was)
    if text is None or text in ours:
        readme.write_text(wanted, encoding="utf-8")
    return readme.read_text(encoding="utf-8") == wanted


def model_card(
    folder: str | Path, repo_id: str | None = None, branch: str | None = None, license: str | None = None
) -> str:
    """Text of [`write_model_card`]; the same folder gives the same text."""
    folder = Path(folder).absolute()
    title = repo_id.split("/")[-1] if repo_id else folder.name
    config = _read_json(folder / "config.json")
    report = teachers = None
    if (folder / METRICS_FILE).is_file():
        report = without_paths(_read_json(folder / METRICS_FILE))
        recipe_text = (folder / RECIPE_FILE).read_text(encoding="utf-8")
        recipe = load_yaml(recipe_text)
        license = license or recipe.get("license")
        if _has_teacher(report):
            teachers = [own["model"] for own, revision in _teachers(recipe) if revision is not None]
        content = _trained(folder, config, report, recipe_text)
    else:
        content = converted_content(config, _read_json(folder / CONVERSION_FILE))
    check_license(license)
    content |= {"title": plain(title), "weights_license": license, **usage(folder, repo_id, branch)}
    data = card_data(folder, title, config, license, report, teachers)
    return str(ModelCard.from_template(data, template_path=str(TEMPLATE), **content)).rstrip() + "\n"


def _trained(folder: Path, config: dict, report: dict, recipe_text: str) -> dict:
    """What the template says of a run."""
    own = load_yaml(recipe_text)
    recipe = without_paths(own)
    shown = recipe_text.strip() if recipe == own else dump_text(recipe).strip()
    specs = recipe.get("losses", {"task": {}})
    methods = [LOSSES[options.get("type", name)] for name, options in specs.items()]
    columns, rows = _results(report, _latency(folder, own))
    class_columns, class_rows = _classes(report)
    return {
        "sentence": _sentence(config, report, recipe, [method for method in methods if method.needs_teacher]),
        "table": markdown_table(["", *columns], rows, numbers=True),
        "protocol": _protocol(report),
        "figures": [(path, caption) for path, caption in FIGURES.items() if (folder / path).is_file()],
        "class_table": markdown_table(["class", *class_columns], class_rows, numbers=True),
        "origin": "Training",
        "facts": _training(report, recipe) + prompt_facts(recipe) + _changes(folder, recipe),
        "recipe": shown,
        "shortened": recipe != own,
        "fence": fence(shown),
        "license": data_license(report["dataset"]),
        "methods": _methods(specs),
        "citations": "\n\n".join(dict.fromkeys(method.citation for method in methods if method.citation)),
    }


def _sentence(config: dict, report: dict, recipe: dict, methods: list) -> str:
    name = plain(config["architectures"][0].removesuffix("ForSemanticSegmentation"))
    text = f"{name} for semantic segmentation of the {len(report['per_class_iou'])} classes of "
    text += plain(report["dataset"])
    if methods:
        names = list(dict.fromkeys(method.__name__.removesuffix("Loss") for method in methods))
        text += f", distilled from {_teacher_name(recipe)} with {', '.join(names)}"
    else:
        text += ", trained with the labels alone"
    score = f"{_percent(report['mean_iou'])} mean IoU on the {report['images']} images of the {report['split']} split"
    return f"{text}: {score}."


def _teacher_name(recipe: dict) -> str:
    names = []
    for own, revision in _teachers(recipe):
        model = own["model"]
        name = code(Path(model).name)
        if revision is not None:
            name = f"[{plain(model)}](https://huggingface.co/{quote(model)}/tree/{quote(revision)})"
        weight = own.get("weight", 1)
        names.append(name if weight == 1 else f"{weight:g} x {name}")
    return " and ".join(names)


def _teachers(recipe: dict) -> list[tuple[dict, str | None]]:
    """Each teacher's description, and its revision if it is from the Hub."""
    given = recipe.get("teacher") or []
    described = [{"model": x} if isinstance(x, str) else x for x in (given if isinstance(given, list) else [given])]
    return [(own, own.get("revision", recipe.get("teacher_revision"))) for own in described]


def _teacher(report: dict) -> dict:
    return report.get("models", {}).get("teacher", {})


def _is_stored(report: dict) -> bool:
    """Whether the teacher's predictions came from a cache, so that nothing else is known of it."""
    return report.get("stored_teacher", False)


def _has_teacher(report: dict) -> bool:
    return bool(_teacher(report)) or _is_stored(report)


def _results(report: dict, latency: dict) -> tuple[list[str], list[list[str]]]:
    """Titles of the columns, and one row for each number that is known of the student."""
    scores = {key: report[key] for key in ("mean_iou", "mean_dice", "overall_accuracy") if key in report}
    student = {**report["models"]["student"], **scores, **latency.get("student", {})}
    height, width = report["macs_size"]
    kinds = {
        "parameters": ("parameters, M", lambda x: f"{x / 1e6:.3g}"),
        "macs": (f"GMACs at {height}×{width}", lambda x: f"{x / 1e9:.3g}"),
        "p50_ms": ("median latency, ms", lambda x: f"{x:.3g}"),
        "mean_iou": ("mean IoU", _percent),
        "mean_dice": ("mean Dice", _percent),
        "overall_accuracy": ("pixel accuracy", _percent),
    }
    known = {key: kind for key, kind in kinds.items() if key in student}
    if not _teacher(report):
        return ["student"], [[title, show(student[key])] for key, (title, show) in known.items()]
    teacher = {**_teacher(report), **latency.get("teacher", {})}
    rows = []
    for key, (title, show) in known.items():
        first = teacher.get(key)
        ratio = "-" if first is None else _compare(student[key], first, points=key in scores)
        rows.append([title, "-" if first is None else show(first), show(student[key]), ratio])
    return ["teacher", "student", "student / teacher"], rows


def _compare(student: float, teacher: float, points: bool) -> str:
    return f"{100 * (student - teacher):+.2f} points" if points else f"{student / teacher:.3f}"


def _classes(report: dict) -> tuple[list[str], list[list[str]]]:
    """IoU and Dice of each class, the teacher's first; a report of an earlier version has no Dice."""
    columns = {}
    for name, scores in (("teacher", _teacher(report)), ("student", report)):
        for key, title in (("per_class_iou", "IoU"), ("per_class_dice", "Dice")):
            if key in scores:
                columns[f"{name} {title}"] = scores[key]
    rows = [[label, *(_percent(values[label]) for values in columns.values())] for label in report["per_class_iou"]]
    return list(columns), rows


def _latency(folder: Path, recipe: dict) -> dict[str, dict]:
    """Rows of `hf-segkd profile TEACHER FOLDER --output_dir FOLDER`, where somebody measured."""
    if not (folder / "benchmark.json").is_file():
        return {}
    rows = _read_json(folder / "benchmark.json")["rows"]
    student = [row for row in rows if Path(row["model"]).absolute() == folder]
    if not student:
        return {}
    teacher = [x for x in rows if x["model"] == recipe.get("teacher") and x["variant"] == student[0]["variant"]]
    found = {"student": student[:1], "teacher": teacher[:1]}
    return {who: {"p50_ms": matching[0]["p50_ms"]} for who, matching in found.items() if matching}


def _protocol(report: dict) -> str:
    return (
        f"Scores: {report['images']} images of the {report['split']} split of {plain(report['dataset'])}, "
        f"{report['protocol']}. "
        "GMACs: multiply-accumulate operations of one image, counted by PyTorch. "
        "All numbers were measured, none is cited."
    )


def _training(report: dict, recipe: dict) -> list[str]:
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    processes = f", {report['processes']} processes" if report["processes"] > 1 else ""
    facts = [
        *_images(report),
        f"steps: {_steps(report)}, best at {report['best_step']}; seed {report['seed']}",
        f"hardware: {report['hardware']}{processes}",
        f"time: {_time(report)}",
        f"peak memory: {report['peak_memory_mib']} MiB",
        f"versions: {versions}" + (f"; code at commit {report['commit'][:12]}" if report["commit"] else ""),
    ]
    if isinstance(recipe["student"], str):
        facts.insert(0, f"start: {_start(report, recipe)}")
    if not _has_teacher(report):
        return facts
    stored = ", from its predictions for the whole training images, computed before" if _is_stored(report) else ""
    return [f"teacher: {_teacher_name(recipe)}{stored}", *facts]


def _images(report: dict) -> list[str]:
    """How many images without labels taught; nothing to say where there were none."""
    counts = report.get("training_images", {"unlabeled": 0})
    if not counts["unlabeled"]:
        return []
    seen = report["trained_on"]
    return [
        f"training images: {counts['dataset']} of the dataset and {counts['unlabeled']} without labels; of "
        f"{seen['images']} crops {seen['labeled_images']} had labels"
    ]


def _start(report: dict, recipe: dict) -> str:
    """The student that the run began with."""
    start = report.get("hub", {}).get("student")
    if start is None:
        return code(Path(recipe["student"]).name)
    return f"[{plain(start)}](https://huggingface.co/{quote(start)})"


def _steps(report: dict) -> str:
    asked = report.get("steps_asked", report["steps"])
    return f"{report['steps']}" if asked == report["steps"] else f"{report['steps']} ({asked} were asked for)"


def _time(report: dict) -> str:
    seconds = report["seconds_per_step"]
    if seconds is None:
        return "not measured, the run was resumed after its last step"
    total = seconds * report["steps"]
    duration = f"{total / 60:.1f} minutes" if total >= 60 else f"{total:.0f} seconds"
    return f"{seconds} s a step, {duration} without evaluations"


def _changes(folder: Path, recipe: dict) -> list[str]:
    """One fact for each time that the run was resumed with changes."""
    parts = earlier_recipes(folder)
    parts = [(step, without_paths(part)) for step, part in parts]
    following = [*(part for _, part in parts), recipe][1:]
    facts = []
    for (step, was), now in zip(parts, following, strict=True):
        changes = plain("; ".join(change_lines(differences(was, now, {}))))
        facts.append(f"resumed with changes at step {step}: {changes} (until then `recipe_until_{step}.yaml`)")
    return facts


def _methods(specs: dict[str, dict]) -> list[str]:
    lines = []
    for name, options in specs.items():
        loss = LOSSES[options.get("type", name)]
        if loss.paper:
            lines.append(f"{code(name)}: [{loss.__name__}]({loss.paper}), weight {options.get('weight', 1.0)}")
    return lines


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f} %"


def _read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))
