"""The scripts as a user runs them: results on disk, readable refusals, interruption and resume."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from helpers.commands import RECIPE, recipe, refusal
from helpers.paths import ROOT
from hf_segkd.commands import distill, evaluate
from hf_segkd.loading.any_model import load_model


@pytest.fixture(scope="module")
def finished(teacher, tmp_path_factory):
    folder = tmp_path_factory.mktemp("student")
    losses = {"task": {}, "kd": {"weight": 1.0}, "cwd": {"weight": 3.0}, "at": {"weight": 10.0}}
    argv = [recipe(folder, losses=losses), "--teacher", teacher, "--output_dir", str(folder / "run")]
    return distill.main(argv), folder / "run"


def test_final_folder_is_complete_and_holds_neither_teacher_nor_pickle(finished, teacher):
    """People who never saw this code download that folder."""
    _, folder = finished
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert names == {
        *("config.json", "model.safetensors", "preprocessor_config.json", "recipe.yaml", "metrics.json"),
        *(
            "training_log.json",
            "README.md",
            "modeling_segkd.py",
        ),
        *(f"figures/{name}.png" for name in ("predictions", "curves", "classes", "sample")),
    }
    assert load_file(folder / "model.safetensors").keys() == load_model(str(folder))[0].state_dict().keys()
    assert (folder / "model.safetensors").stat().st_size < (Path(teacher) / "model.safetensors").stat().st_size


@pytest.mark.slow
def test_final_student_gives_the_same_logits_in_a_new_process(finished, tmp_path):
    """What was evaluated must be what is released."""
    _, folder = finished
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 56, 3), dtype=np.uint8))
    image.save(tmp_path / "image.png")
    code = (
        "import sys, torch, hf_segkd; from PIL import Image; "
        "from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation as Auto; "
        "torch.set_num_threads(1); model = Auto.from_pretrained(sys.argv[1]).eval(); "
        "inputs = AutoImageProcessor.from_pretrained(sys.argv[1])(Image.open(sys.argv[2]), return_tensors='pt'); "
        "torch.save(model(**inputs).logits.detach(), sys.argv[3])"
    )
    paths = [str(folder), str(tmp_path / "image.png"), str(tmp_path / "logits.pt")]
    subprocess.run([sys.executable, "-c", code, *paths], check=True, cwd=tmp_path)
    model, processor = load_model(str(folder))
    inputs = processor(image, return_tensors="pt")
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, torch.load(tmp_path / "logits.pt", weights_only=True))


def test_merged_recipe_alone_repeats_the_run(finished, tmp_path, without_figures):
    """The recipe in the folder is the claim; it must give the same numbers."""
    report, folder = finished
    again = distill.main([str(folder / "recipe.yaml"), "--output_dir", str(tmp_path / "again")])
    assert again["per_class_iou"] == report["per_class_iou"]
    assert all(
        torch.equal(a, b)
        for a, b in zip(
            load_file(folder / "model.safetensors").values(),
            load_file(tmp_path / "again" / "model.safetensors").values(),
            strict=True,
        )
    )


# The validation scenes of the training runs here.
SCENES = ["--dataset", "synthetic", "--dataset_config", json.dumps(RECIPE["dataset_config"])]


def test_evaluate_gives_the_numbers_of_the_training_run(finished, tmp_path, capsys):
    """Two evaluation paths that disagree make every table doubtful."""
    report, folder = finished
    argv = [str(folder), *SCENES, "--output_dir", str(tmp_path), "--device", "cpu"]
    (found,) = evaluate.main(argv).values()
    assert found["per_class_iou"] == report["per_class_iou"]
    written = json.loads((tmp_path / "metrics.json").read_text())
    assert written["mean_iou"] == pytest.approx(report["mean_iou"])
    assert np.trace(written["confusion_matrix"]) / np.sum(written["confusion_matrix"]) == written["overall_accuracy"]
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    assert {"best.png", "worst.png"} <= names and "pavement" in capsys.readouterr().out


def test_no_figures_leaves_the_scores_alone(finished, tmp_path, capsys):
    """Queues of evaluations need the numbers, not a minute of drawing for each."""
    _, folder = finished
    evaluate.main([str(folder), *SCENES, "--output_dir", str(tmp_path), "--device", "cpu", "--no_figures"])
    assert [path.name for path in tmp_path.rglob("*")] == ["metrics.json"]
    head, first, *_ = capsys.readouterr().out.splitlines()
    assert head.split() == ["class", "IoU", "%", "Dice", "%", "acc", "%"] and len(first.split()) == 4


def test_two_models_are_evaluated_and_compared_in_one_command(finished, teacher, tmp_path, capsys):
    """The difference of two tables says nothing about its uncertainty."""
    _, folder = finished
    argv = ["--compare", teacher, str(folder), *SCENES, "--output_dir", str(tmp_path)]
    reports = evaluate.main([*argv, "--device", "cpu", "--flip", "--mode", "slide", "--crop_size", "16", "32"])
    assert len(reports) == 2 and all((tmp_path / name / "metrics.json").is_file() for name in reports)
    comparison = json.loads((tmp_path / "comparison.json").read_text())
    first, second = (reports[comparison[key]]["mean_iou"] for key in ("first", "second"))
    value, low, high = comparison["mean_iou"]
    assert value == pytest.approx(first - second) and low <= value <= high
    summary = (tmp_path / "summary.md").read_text()
    assert all(f"| {name} | {100 * reports[name]['mean_iou']:.2f} |" in summary for name in reports)
    printed = capsys.readouterr().out
    assert "95 % interval" in printed and (tmp_path / "predictions.png").is_file()
    table = printed[printed.index("IoU  ") : printed.index("\nmean IoU")].splitlines()
    assert table[0].split()[1:] == list(reports) and len({len(line) for line in table}) == 1


@pytest.mark.slow
def test_run_stopped_by_sigterm_and_resumed_ends_with_the_same_bits(teacher, tmp_path):
    """Machines are taken away; the run must not notice."""
    given = recipe(tmp_path, max_steps=60, eval_steps=20, save_steps=20, losses={"task": {}, "cwd": {"weight": 3.0}})

    def command(folder, *more):
        path = [given, "--teacher", teacher, "--output_dir", str(tmp_path / folder), *more]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        argv = [sys.executable, "-u", str(ROOT / "scripts" / "distill.py"), *path]
        return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)

    whole, stopped = command("whole"), command("parts")
    for line in stopped.stdout:
        if "  loss " in line:
            stopped.send_signal(signal.SIGTERM)
            break
    assert "--resume" in stopped.stdout.read() and stopped.wait() == 128 + signal.SIGTERM
    checkpoint = next((tmp_path / "parts").glob("checkpoint-*")).name
    assert 0 < int(checkpoint.split("-")[1]) < 60 and not (tmp_path / "parts" / "metrics.json").exists()
    resumed = command("parts", "--resume")
    assert [whole.communicate()[0] and whole.wait(), resumed.communicate()[0] and resumed.wait()] == [0, 0]
    a, b = (load_file(tmp_path / folder / "model.safetensors") for folder in ("whole", "parts"))
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


# ---- refusals: before any training step, in one message -----------------------------------------------------------


@pytest.fixture
def camvid_folder(tmp_path):
    """Two images a split in CamVid's layout."""
    for split in ("train", "val", "test"):
        for suffix in ("", "annot"):
            (tmp_path / "CamVid" / (split + suffix)).mkdir(parents=True)
        for index in range(2):
            Image.new("RGB", (48, 32)).save(tmp_path / "CamVid" / split / f"{index}.png")
            Image.new("L", (48, 32), index).save(tmp_path / "CamVid" / f"{split}annot" / f"{index}.png")
    return tmp_path / "CamVid"


def test_wrong_data_folder_names_what_was_looked_for(tmp_path):
    """`FileNotFoundError: train` does not tell a user which layout is expected."""
    (tmp_path / "photos").mkdir()
    argv = [recipe(tmp_path, dataset="camvid", dataset_config={}), "--data_dir", str(tmp_path / "photos")]
    message = refusal([*argv, "--output_dir", str(tmp_path / "out")])
    assert "photos" in message and "trainannot" in message


def test_label_values_outside_the_classes_are_named(tmp_path, camvid_folder):
    """They would be an out-of-range index on a GPU, hours into the run."""
    Image.new("L", (48, 32), 77).save(camvid_folder / "trainannot" / "1.png")
    argv = [recipe(tmp_path, dataset="camvid", dataset_config={}), "--data_dir", str(camvid_folder)]
    message = refusal([*argv, "--output_dir", str(tmp_path / "out")])
    assert "77" in message and "1.png" in message


def test_teacher_with_other_classes_is_refused_with_both_lists(teacher, tmp_path, camvid_folder):
    """A teacher of another dataset distills nonsense without complaint."""
    argv = [recipe(tmp_path, dataset="camvid", dataset_config={}), "--data_dir", str(camvid_folder)]
    losses = ["--losses.kd.weight", "1", "--teacher", teacher]
    message = refusal([*argv, *losses, "--output_dir", str(tmp_path / "out")])
    assert "teacher (10): sky, building" in message and "dataset (11): Sky, Building, Pole" in message


def test_unknown_recipe_key_names_the_closest(tmp_path):
    """A key that nobody reads would silently train something else."""
    message = refusal([recipe(tmp_path), "--output_dir", str(tmp_path / "out"), "--learning_rat", "0.1"])
    assert "Unknown key in the recipe: 'learning_rat'. Did you mean 'learning_rate'?" in message


def test_losses_without_their_teacher_are_refused(tmp_path):
    """A distillation that quietly trains the baseline is the worst of all results."""
    given = recipe(tmp_path, losses={"task": {}, "kd": {}, "cwd": {}})
    message = refusal([given, "--output_dir", str(tmp_path / "out")])
    assert "No teacher, but these losses need one: kd, cwd." in message


def test_teacher_that_does_not_exist_is_refused(tmp_path):
    """A mistyped folder must not end as a connection error to the Hub."""
    given = recipe(tmp_path, losses={"task": {}, "kd": {}})
    missing = str(tmp_path / "no" / "such" / "teacher")
    message = refusal([given, "--teacher", missing, "--output_dir", str(tmp_path / "out")])
    assert f"No model found at '{missing}'" in message


def test_output_folder_with_files_is_refused_and_left_alone(tmp_path):
    """Yesterday's run must survive today's command from the shell's history."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("keep")
    message = refusal([recipe(tmp_path), "--output_dir", str(tmp_path / "out")])
    assert "is not empty (it holds notes.txt). Use --overwrite" in message
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["notes.txt"]


def test_output_folder_that_cannot_be_written_is_refused(tmp_path):
    """Noticing it at the first checkpoint costs the hours before it."""
    (tmp_path / "file").write_text("")
    message = refusal([recipe(tmp_path), "--output_dir", str(tmp_path / "file" / "out")])
    assert "cannot be written" in message


def test_finished_run_is_not_resumed(finished, tmp_path):
    """Resuming nothing would train from scratch over a finished student."""
    _, folder = finished
    message = refusal([recipe(tmp_path), "--output_dir", str(folder), "--resume"])
    assert "Nothing to resume" in message and "holds a finished run" in message


def test_refused_command_leaves_the_earlier_run_alone(finished, tmp_path):
    """--overwrite with a typo elsewhere must not delete the run first."""
    _, folder = finished
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    refusal([recipe(tmp_path, losses={"kd": {}}), "--output_dir", str(folder), "--overwrite"])
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_two_models_are_not_compared_on_one_image(teacher, tmp_path):
    """There is nothing to resample; without a look at it first, both models would be scored before the traceback."""
    argv = ["--compare", teacher, teacher + "/../run", "--dataset", "synthetic", "--output_dir", str(tmp_path)]
    argv += ["--dataset_config", "{num_validation: 1, num_train: 1, num_test: 1, height: 32, width: 48}"]
    with pytest.raises(SystemExit, match="at least two images to resample, the validation split has 1"):
        evaluate.main([*argv, "--device", "cpu"])


def test_a_split_without_labels_is_summed_up_without_numbers():
    """Cityscapes' test labels are all void: `None` times 100 would end the command after all the work."""
    report = {"mean_iou": None, "overall_accuracy": None, "images": 3, "split": "test", "protocol": "whole image"}
    assert evaluate.summary(report).startswith("mIoU -- %, pixel accuracy -- % (3 images, test")
