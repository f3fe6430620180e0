"""What the benchmarks compare: two forms of the same function."""

import copy
import importlib
import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from helpers.paths import ROOT
from hf_segkd.losses import LOSSES
from hf_segkd.models import SegmentationOutput
from hf_segkd.recipe import parse
from hf_segkd.training.config import DistillationConfig
from hf_segkd.training.options import ScriptArguments

sys.path.append(str(ROOT))
cases, scale, step = (importlib.import_module(f"benchmarks.{name}") for name in ("cases", "scale", "step"))

QUEUES = {"pixel_memory": 40, "region_memory": 3, "pixel_samples": 8, "region_samples": 2}
CHANNELS = {"channel_memory": 300, "channel_samples": 64}
SMALL = {
    LOSSES["cirkd_memory"]: QUEUES,
    cases.QueueUpdate: QUEUES,
    LOSSES["cirkdv2"]: QUEUES | CHANNELS,
    cases.Channels: {name.removeprefix("channel_"): size for name, size in CHANNELS.items()},
}


def run(case, form: str, loss, inputs) -> tuple:
    """Value, gradients and state after two passes of one form, in float64."""
    loss, (student, teacher, labels) = copy.deepcopy(loss).double(), inputs
    student = {name: student[name].detach().double().requires_grad_() for name in case.channels}
    teacher = {name: teacher[name].double() for name in case.channels}
    inputs = SegmentationOutput(**student), SegmentationOutput(**teacher), labels
    torch.manual_seed(0)
    case.value(form, loss, inputs)  # The second pass starts from what the first left behind.
    value = case.value(form, loss, inputs)
    gradients = [x for x in case.gradients(value, loss, inputs) if x is not None]
    return value.detach(), gradients, loss.state_dict()


@pytest.mark.parametrize("name", [name for name in cases.CASES if not name.endswith("batch 8")])
def test_both_forms_are_one_function(name):
    """A ratio between two different functions would mean nothing. Queues and running statistics are part of it."""
    case = cases.CASES[name]
    case = replace(case, options=case.options | SMALL.get(case.loss, {}))
    crop = (512, 512) if case.loss is LOSSES["adversarial"] else (64, 96)
    loss, inputs = case.build(crop=crop)
    values, gradients, states = zip(*(run(case, form, loss, inputs) for form in ("ours", "dense")), strict=True)
    torch.testing.assert_close(*values, rtol=1e-9, atol=1e-12)
    for ours, plain in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-8, atol=1e-8 * plain.abs().max().item())
    torch.testing.assert_close(*states, rtol=1e-9, atol=1e-9)


def test_every_fused_loss_is_measured():
    """What computes otherwise than its formula reads must not escape the comparison with the plain form."""
    assert {loss for loss in LOSSES.values() if loss.fused} <= {case.loss for case in cases.CASES.values()}


NETWORK = {"model_type": "deeplabv3", "backbone": "resnet18", "num_labels": 5, "hidden_size": 16}


@pytest.mark.parametrize("part", step.PARTS)
def test_both_forms_of_a_step_train_alike(part):
    """With losses left out of one form, the step's ratio would flatter us; `kd` and `task` come with the recipe."""
    after = []
    for form in ("ours", "dense"):
        distiller, inputs = step.build("cirkd_minibatch", form, part, 2, (64, 96), NETWORK, NETWORK)
        distiller, inputs["pixel_values"] = distiller.double(), inputs["pixel_values"].double()
        before = {name: x.clone() for name, x in distiller.student.state_dict().items()}
        # `Distiller` hands its losses float32: equal to its rounding.
        step.step(distiller, torch.optim.SGD(distiller.parameters(), lr=1.0), inputs)
        after.append({name: x - before[name] for name, x in distiller.student.state_dict().items()})
    changed = [name for name, x in after[0].items() if x.is_floating_point() and x.any()]
    assert len(changed) == len([x for x in after[0].values() if x.is_floating_point()])
    for name in changed:
        torch.testing.assert_close(after[0][name], after[1][name], rtol=1e-3, atol=1e-4 * after[1][name].abs().max())


def test_every_fused_loss_has_a_plain_form_in_the_step():
    """A recipe with a fused loss that is only ours could not be compared."""
    assert set(step.DENSE) >= {loss for loss in LOSSES.values() if loss.fused}


def test_scale_counts_what_processes_send():
    """Bytes that are not counted would make the plan for many GPUs look cheap."""
    case = replace(scale.gathered()["cirkd_memory"], crop=(64, 96), options=QUEUES)
    alone, shared = (scale.cost(case, processes)["sent"] for processes in (1, 4))
    classes, teacher = 19, 256
    pixels, regions = classes * 16 * teacher * 4, classes * teacher * 4
    assert alone == 0 and 2 * (pixels + regions) <= shared <= 2.1 * (pixels + regions)


@pytest.mark.slow
def test_gpu_script_is_rehearsed_on_a_cpu(tmp_path):
    """A minute on a borrowed GPU is too dear for a misspelled name."""
    flags = ["--device", "cpu", "--batch", "3", "--crop", "64", "128", "--passes", "1", "--only", "kd", "holistic"]
    command = [sys.executable, "-m", "benchmarks.gpu", *flags, "--output", str(tmp_path / "gpu")]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert set(report["steps"]) == {"baseline", "kd", "holistic"} and "needs" in report["steps"]["holistic"]["refused"]
    assert report["relations"] and len(report["teacher"]) == 5
    assert (tmp_path / "gpu.md").read_text().startswith("| method | step / plain training |")


@pytest.mark.slow
def test_curve_over_labeled_images_is_drawn_from_finished_runs(tmp_path, capsys):
    """The pool must be other scenes than the labeled ones, and a second start must train nothing again."""
    few_labels = importlib.import_module("benchmarks.few_labels")
    argv = ["--output_dir", str(tmp_path), "--counts", "8", "--seeds", "0", "--steps", "2", "--teacher_steps", "2"]
    first = few_labels.main([*argv, "--use_cpu"])
    report = json.loads((tmp_path / "few_labels-8-0" / "metrics.json").read_text())
    assert report["training_images"] == {"dataset": 8, "unlabeled": 392}
    capsys.readouterr()
    assert few_labels.main([*argv, "--use_cpu"]) == first
    assert "| labeled images | labels alone | few_labels |" in capsys.readouterr().out


def test_gain_without_labels_comes_with_its_standard_error():
    """Pairs of one seed share their noise: the error is that of the paired gains, here 1, 2 and 6 points."""
    label_free = importlib.import_module("benchmarks.label_free")
    gains = (0.01, 0.02, 0.06)
    rows = [{"seed": seed, "from scratch": 0.3, "pretrained": 0.3 + gain} for seed, gain in enumerate(gains)]
    text = label_free.table(rows)
    assert "| 2 | 30.00 | 36.00 | +6.00 |" in text and "Mean paired gain +3.00 points, standard error 1.53." in text


def test_forms_of_a_teacher_differ_in_nothing_else(tmp_path):
    """Another weight or temperature in one of the forms would pass for an effect of the teacher."""
    forms = importlib.import_module("benchmarks.teacher_forms")
    found = {}
    for form in forms.FORMS:
        words = ["datasets/synthetic", "pairs/synthetic", str(forms.write_recipe(form, tmp_path))]
        found[form] = parse((ScriptArguments, DistillationConfig), [*words, "--output_dir", str(tmp_path)])[1]
    live, whole, views = found.values()
    assert {key for key in whole if whole[key] != live.get(key)} == {"teacher_cache"}
    assert {key for key in views if views[key] != whole.get(key)} == {"teacher_cache", *forms.VIEWS}


def test_seconds_of_a_step_reach_from_one_end_to_the_next(monkeypatch):
    """Reading the next images, or their stored maps, is part of a step's cost; starting up is not."""
    cache = importlib.import_module("benchmarks.teacher_cache")
    ticks = iter([5.0, 6.0, 8.5])
    monkeypatch.setattr(cache.time, "process_time", lambda: next(ticks))
    clock = cache.StepSeconds()
    for _ in range(3):
        clock.on_step_end()
    assert clock.seconds() == [1.0, 2.5]
