"""The queue of the CamVid benchmark, its data and its disturbed pictures; the tables of the nuclei."""

import argparse
import importlib
import json
import sys
from itertools import takewhile
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml

from helpers.paths import ROOT
from hf_segkd.recipe import parse
from hf_segkd.reports.files import write_json
from hf_segkd.training.config import DistillationConfig
from hf_segkd.training.options import ScriptArguments

sys.path.append(str(ROOT))
queue = importlib.import_module("benchmarks.camvid.__main__")
robustness = importlib.import_module("benchmarks.camvid.robustness")


@pytest.fixture
def arguments(tmp_path):
    names = [f"{index:04}.png" for index in range(367)]
    camvid = tmp_path / "camvid"
    for folder in ("train", "trainannot", "val", "valannot", "test", "testannot"):
        (camvid / folder).mkdir(parents=True)
    for name in names:
        (camvid / "train" / name).touch()
    lines = [f"/SegNet/CamVid/train/{name} /SegNet/CamVid/trainannot/{name}" for name in names]
    (camvid / "train.txt").write_text("\n".join(lines) + "\n")
    for name in ("val.txt", "test.txt"):
        (camvid / name).write_text("")
    return argparse.Namespace(
        data_dir=str(camvid), output_dir=str(tmp_path / "runs"), results=str(tmp_path / "results")
    )


def test_labeled_images_are_nested_and_the_others_are_all_the_rest(arguments):
    """A point of the curve with other images than the one before would show the images, not their number."""
    before = set()
    for count in sorted(queue.EVERY):
        labeled, rest = queue.split_training_images(count, arguments)
        names = {line.split()[0].rsplit("/")[-1] for line in (labeled / "train.txt").read_text().splitlines()}
        others = {path.name for path in rest.iterdir()}
        assert len(names) == count and not names & others and len(names | others) == 367
        assert before <= names
        before = names


def test_part_of_camvid_is_refused(arguments, tmp_path):
    """Every eighth line of half a list is another experiment under the same name."""
    (tmp_path / "camvid" / "train.txt").write_text("a.png b.png\n" * 100)
    with pytest.raises(ValueError, match="lists 100 images, CamVid has 367"):
        queue.split_training_images(46, arguments)


def test_trials_scale_what_a_method_adds_and_leave_the_task(arguments):
    """Scaling all weights alike would be a trial of the learning rate."""
    recipe = yaml.safe_load(open(queue.scaled("bpkd", "triple", arguments)))
    assert recipe["losses"] == {"task": {"weight": 1.0}, "bpkd": {"weight": {"edge": 300.0, "body": 60.0}, "width": 7}}


def test_best_weight_is_read_from_the_trials(arguments, tmp_path):
    """A weight that is set by hand would be one more trial that nobody counted."""
    folder = tmp_path / "results" / "weights" / "kd"
    folder.mkdir(parents=True)
    runs = [{"method": f"kd_{name}", "mean_iou": value} for name, value in (("third", 0.4), ("triple", 0.5))]
    (folder / "results.json").write_text(json.dumps({"baseline": "kd_third", "runs": runs}))
    assert queue.best_factor("kd", arguments) == "triple"


def test_best_students_learn_by_the_recipe_with_the_best_trial(arguments, tmp_path):
    """The test split must not choose the method, nor may a hand."""
    for method in queue.METHODS:
        folder = tmp_path / "results" / "weights" / method
        folder.mkdir(parents=True)
        scores = {"third": 0.4, "recipe": 0.6 if method == "at" else 0.5, "triple": 0.3}
        runs = [{"method": f"{method}_{name}", "mean_iou": value} for name, value in scores.items()]
        (folder / "results.json").write_text(json.dumps({"runs": runs}))
    recipe = queue.best_recipe(arguments)
    assert recipe.endswith("at_recipe.yaml") and "at" in yaml.safe_load(open(recipe))["losses"]
    assert queue.frozen("espnetc_taught", recipe, arguments)[1].endswith("best/espnetc_taught/at_recipe/seed1")


@pytest.mark.parametrize("name", robustness.DISTURBANCES)
def test_disturbed_pictures_differ_and_are_the_same_for_every_student(name):
    """Two students scored on other noise could not be compared."""
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 48, 64), dtype=np.uint8))
    first, again = (
        robustness.disturbed([{"pixel_values": image}] * 2, robustness.DISTURBANCES[name])[1]["pixel_values"]
        for _ in range(2)
    )
    assert first.dtype == torch.uint8 and first.shape == image.shape
    assert torch.equal(first, again) and not torch.equal(first, image)


def test_disturbed_scores_are_those_of_the_student_that_is_there_now(tmp_path, monkeypatch):
    """A student that was trained again must not keep the scores of the one before."""
    student, folder = tmp_path / "methods" / "kd" / "seed1", tmp_path / "robustness" / "fog" / "kd" / "seed1"
    evaluation = SimpleNamespace(per_image=torch.ones(2, 2, 3), scores=lambda: {"mean_iou": 0.25})
    monkeypatch.setattr(robustness, "load_model", lambda path: ())
    monkeypatch.setattr(robustness, "Segmenter", lambda: None)
    monkeypatch.setattr(robustness, "evaluate", lambda *args, **options: evaluation)
    student.mkdir(parents=True)
    write_json({"method": "kd", "seed": 1, "mean_iou": 0.5, "student": "one"}, student / "scores.json")
    assert not robustness.is_scored(student, folder)
    robustness.score(student, [], 11, folder)
    assert robustness.is_scored(student, folder)
    robustness.collect([folder], tmp_path / "results")
    run = json.loads((tmp_path / "results" / "results.json").read_text(encoding="utf-8"))["runs"][0]
    assert run == {"method": "kd", "seed": 1, "mean_iou": 0.25, "student": "one"}
    write_json({"method": "kd", "seed": 1, "mean_iou": 0.5, "student": "another"}, student / "scores.json")
    assert not robustness.is_scored(student, folder)


def test_page_is_what_its_command_writes_from_the_committed_results(tmp_path):
    """A number that was typed, or one of runs that are not here, could not be checked by anybody."""
    report = importlib.import_module("benchmarks.camvid.report")
    report.main(["--page", str(tmp_path / "camvid.md")])
    assert (ROOT / "docs" / "camvid.md").read_text(encoding="utf-8") == (tmp_path / "camvid.md").read_text(
        encoding="utf-8"
    )


def test_tables_of_the_nuclei_are_what_their_command_writes():
    """The same, for the binary example."""
    nuclei = importlib.import_module("benchmarks.nuclei.__main__")
    _, rest = nuclei.PAGE.read_text(encoding="utf-8").split(nuclei.MARKS[0])
    assert rest.split(nuclei.MARKS[1])[0] == nuclei.tables()


def test_commands_of_the_nuclei_can_be_read(tmp_path, monkeypatch):
    """A recipe after a flag ended the queue before its first step."""
    nuclei = importlib.import_module("benchmarks.nuclei.__main__")
    read = []

    def distill(argv):
        read.append(parse((ScriptArguments, DistillationConfig), argv)[1])

    def benchmark(argv):
        recipes = list(takewhile(lambda word: not word.startswith("-"), argv))
        options, flags = nuclei.benchmark.parser().parse_known_args(argv[len(recipes) :])
        for method in options.methods:
            distill([*recipes, method, *flags])

    monkeypatch.setattr(nuclei.distill, "main", distill)
    monkeypatch.setattr(nuclei.benchmark, "main", benchmark)
    for command in (nuclei.evaluate, nuclei.export):
        parser = command.parser()
        monkeypatch.setattr(command, "main", lambda argv, parser=parser: read.append(vars(parser.parse_args(argv))))
    monkeypatch.setattr(nuclei.shutil, "copyfile", lambda source, target: None)
    monkeypatch.setattr(nuclei, "FOUND", tmp_path / "found")
    write_json({}, tmp_path / "teacher" / "metrics.json")
    arguments = argparse.Namespace(data_dir="nuclei", weights="start.pth", output_dir=str(tmp_path))
    with pytest.raises(FileNotFoundError, match="teacher_scores"):
        nuclei.run(arguments)
    teacher, scored, *students, file = read
    assert teacher["student"] == "start.pth" and "teacher" not in teacher
    assert scored["teacher"] == [str(tmp_path / "teacher")]
    assert [run["teacher"] for run in students] == [str(tmp_path / "teacher")] * len(nuclei.METHODS)
    assert all(run["data_dir"] == "nuclei" for run in [teacher, scored, *students, file])
