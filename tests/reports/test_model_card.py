"""The card of a run: true numbers, metadata that the Hub accepts, snippets that run."""

import json
import math
import re

import pytest
from huggingface_hub import ModelCard
from transformers import pipeline

from dataset_builders import DATASETS
from helpers.hub_runs import RECIPE, WITHOUT_PACKAGE, run, snippets
from helpers.hub_storage import card_errors, metadata
from helpers.tiny import LABELS
from hf_segkd.data.specs import UNKNOWN_LICENSE
from hf_segkd.loading.any_model import load_model
from hf_segkd.losses import LOSSES
from hf_segkd.recipe import dump, load_yaml
from hf_segkd.reports.markdown import code, fence, plain
from hf_segkd.reports.model_card import model_card, update_model_card, write_model_card
from hf_segkd.reports.run_folder import begin_run


def cells(card: str, name: str) -> list[str]:
    """One row of the card's table."""
    return [row.strip(" |").split(" | ")[1:] for row in card.splitlines() if row.startswith(f"| {name} |")][0]


def test_table_holds_what_was_measured(finished):
    """A card is quoted: each number must be the run's own, the ratio that of the two beside it."""
    card, report = (finished / "README.md").read_text(), json.loads((finished / "metrics.json").read_text())
    student, teacher = (load_model(str(finished.parent / name))[0] for name in ("student", "teacher"))
    counts = [teacher.num_parameters(), student.num_parameters()]
    row = cells(card, "parameters, M")
    assert row == [*(f"{count / 1e6:.3g}" for count in counts), f"{counts[1] / counts[0]:.3f}"]
    teacher_iou = json.loads((finished.parent / "teacher" / "metrics.json").read_text())["mean_iou"]
    scores = [f"{100 * value:.2f} %" for value in (teacher_iou, report["mean_iou"])]
    assert cells(card, "mean IoU") == [*scores, f"{100 * (report['mean_iou'] - teacher_iou):+.2f} points"]
    assert "latency" not in card


def test_model_index_survives_the_hubs_parser(finished):
    """A leaderboard reads the header, not the table."""
    report, card = json.loads((finished / "metrics.json").read_text()), ModelCard.load(finished / "README.md")
    assert card_errors(metadata((finished / "README.md").read_text())) == []
    found = {result.metric_type: result for result in card.data.eval_results}
    assert math.isclose(found["mean_iou"].metric_value, report["mean_iou"], abs_tol=1e-6)
    assert found["mean_iou"].dataset_name == "synthetic" and found["mean_iou"].dataset_split == "validation"
    assert found["mean_iou"].metric_args == {"protocol": report["protocol"]}
    assert card.data.pipeline_tag == "image-segmentation" and "knowledge-distillation" in card.data.tags


def test_methods_of_the_run_are_cited_and_no_others(finished):
    """Authors are owed the citation, also where a loss goes by another name in the recipe."""
    card = (finished / "README.md").read_text()
    used = {LOSSES["kd"], LOSSES["cwd"]}
    for loss in LOSSES.values():
        if loss.citation:
            assert (loss.citation in card) == (loss in used), loss


def test_linked_files_exist_and_the_recipe_is_the_folders(finished):
    """A broken picture is the first thing a visitor sees."""
    card = (finished / "README.md").read_text()
    links = [line.split("](")[1].rstrip(")") for line in card.splitlines() if line.startswith("![")]
    assert {"figures/predictions.png", "figures/classes.png", "figures/curves.png"} == set(links)
    assert all((finished / link).is_file() for link in links)
    recipe = load_yaml((finished / "recipe.yaml").read_text())
    (shown,) = re.findall(r"```yaml\n(.*?)```", card, re.DOTALL)
    assert load_yaml(shown) == {**recipe, "teacher": "teacher", "output_dir": "student"}


@pytest.mark.slow
def test_snippets_run_in_the_folder_where_the_package_is_absent(finished):
    """Code that nobody ran is wrong within a year; who downloads a student does not have this library."""
    blocks = snippets((finished / "README.md").read_text())
    assert len(blocks) == 2
    done = run(["-c", WITHOUT_PACKAGE + "\n".join(blocks)], folder=finished)
    assert done.returncode == 0, done.stdout
    assert "(48, 32)" in done.stdout and any(name in done.stdout for name in LABELS.values())


def test_with_the_package_no_code_of_the_folder_is_asked_for(finished):
    """Whoever has the library should neither be asked for trust nor run a copy of it."""
    segment = pipeline("image-segmentation", model=str(finished), trust_remote_code=False)
    assert type(segment.model).__module__ == "hf_segkd.models.espnet"
    assert segment(str(finished / "figures" / "sample.png"))[0]["mask"].size == (48, 32)


def test_student_without_teacher_has_no_teacher_column(copied):
    """A baseline's card must not promise a comparison."""
    report = json.loads((copied / "metrics.json").read_text())
    del report["models"]["teacher"]
    (copied / "metrics.json").write_text(json.dumps(report))
    (copied / "recipe.yaml").write_text("dataset: synthetic\nstudent: {model_type: espnet}\n")
    card = model_card(copied)
    assert "trained with the labels alone" in card and "## Methods" not in card
    assert len(cells(card, "parameters, M")) == 1 and "knowledge-distillation" not in card


def test_latency_is_shown_where_it_was_measured(copied):
    """A number from another machine, or none at all, must not stand in the column."""
    teacher = "runs/teacher"
    dump({**load_yaml((copied / "recipe.yaml").read_text()), "teacher": teacher}, copied / "recipe.yaml")
    rows = [{"model": name, "variant": "eager", "p50_ms": ms} for name, ms in ((teacher, 8.0), (str(copied), 2.0))]
    (copied / "benchmark.json").write_text(json.dumps({"rows": rows}))
    assert cells(model_card(copied), "median latency, ms") == ["8", "2", "0.250"]
    (copied / "benchmark.json").write_text(json.dumps({"rows": rows[:1]}))
    assert "median latency" not in model_card(copied)


HOSTILE = (
    *("a | b", "```\n# owned", "![x](https://evil.example/p.png)", "<img src=x onerror=alert(1)>", "</details>"),
    *("[free](https://evil.example)", "https://evil.example", "`rm -rf`", "__bold__", "&lt;b&gt;", "\x1b[2Jgone"),
    *("a\\|b", "line\r\nbreak", "\u202ebackwards", "$$x$$"),
)


def hostile(copied, name: str):
    """A folder in which class, dataset, teacher and method go by that name."""
    report = json.loads((copied / "metrics.json").read_text())
    for scores in (report, report["models"]["teacher"]):
        for key in ("per_class_iou", "per_class_dice"):
            scores[key] = {name if label == "sky" else label: value for label, value in scores[key].items()}
    (copied / "metrics.json").write_text(json.dumps({**report, "dataset": name}))
    given = load_yaml((copied / "recipe.yaml").read_text())
    losses = {"task": {}, name: {"type": "kd"}}
    dump({**given, "dataset": name, "teacher": f"x/{name}", "losses": losses}, copied / "recipe.yaml")
    return model_card(copied)


def without_code(card: str) -> str:
    """The body of a card without its blocks of code."""
    body, fence = [], None
    for line in card.split("---", 2)[2].splitlines():
        mark = line[: len(line) - len(line.lstrip("`"))]
        if fence is None and len(mark) >= 3:
            fence = mark
        elif fence is not None and line.startswith(fence):
            fence = None
        elif fence is None:
            body.append(line)
    assert fence is None, "a block of code does not end"
    return re.sub("`[^`\n]+`", "", "\n".join(body))


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_names_of_strangers_are_shown_and_do_nothing(copied, name):
    """Class names come from exports and the Hub: one broke the table, one showed a picture of another server."""
    files = {path: path.read_text() for path in copied.iterdir()}
    expected = without_code(hostile(copied, "harmless"))
    for path, text in files.items():
        path.write_text(text)
    card = hostile(copied, name)
    body = without_code(card)
    for mark in ("\n#", "](", "<", "\n|", "\n```", "\n- ", "https://", "$", "*"):
        assert body.count(mark) == expected.count(mark), mark
    rows = [line for line in body.splitlines() if line.startswith("|")]
    widths = [line.count("|") for line in expected.splitlines() if line.startswith("|")]
    assert [row.count("|") for row in rows] == widths
    assert all(letter.isprintable() for letter in body.replace("\n", ""))
    assert ModelCard(card).data.eval_results[0].dataset_name == name
    assert load_yaml(card.split("yaml\n")[1].split("\n```")[0])["dataset"] == name or "```" in name


def test_ordinary_names_are_left_as_they_are():
    """Escapes in front of every underscore would make the card's source unreadable."""
    for name in ("traffic_light", "road (wet), 3-lane", "straße", "mIoU 24.5 % [+0.1, +0.3]", "runs/a-b.c"):
        assert plain(name) == name
    assert code("kd_cwd") == "`kd_cwd`" and plain("a|b") == "a&#124;b" and fence("a ```` b") == "`" * 5


def test_own_data_is_said_to_have_an_unknown_license(copied):
    """Someone's photos are not free because a library does not know them."""
    report = json.loads((copied / "metrics.json").read_text())
    (copied / "metrics.json").write_text(json.dumps({**report, "dataset": "my_farm"}))
    assert UNKNOWN_LICENSE in model_card(copied) and "classes of my_farm" in model_card(copied)


def test_every_dataset_of_the_library_says_its_license():
    """Most of them forbid commercial use, which a downloader cannot guess."""
    assert all(spec.license != UNKNOWN_LICENSE for spec in DATASETS.values())


def test_card_changed_by_hand_is_kept(copied):
    """An afternoon's description must survive the second upload."""
    write_model_card(copied)
    assert update_model_card(copied, "alice/student") and '"alice/student"' in (copied / "README.md").read_text()
    assert update_model_card(copied, "alice/student")
    (copied / "README.md").write_text("Mine.\n")
    assert not update_model_card(copied, "alice/student") and (copied / "README.md").read_text() == "Mine.\n"


def test_merged_recipe_holds_neither_token_nor_destination(tmp_path):
    """It is printed in the card, which everybody reads."""
    begin_run(str(tmp_path), {**RECIPE, "push_to_hub": True, "hub_token": "hf_secret", "hub_model_id": "a/b"})
    text = (tmp_path / "recipe.yaml").read_text()
    assert "hf_secret" not in text and "hub" not in text and "crop_size" in text
