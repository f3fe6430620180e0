"""bf16, gradient accumulation, clipping, and the moving average of the student's weights."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import SegformerConfig, SegformerForSemanticSegmentation, TrainerCallback

from helpers.tiny import LABELS, TINY
from helpers.trainers import SignalAt, equal, trainer_for, weights
from hf_segkd.loading.any_model import load_model
from hf_segkd.loading.native import expose_features
from hf_segkd.training.callbacks import ModelEMA
from hf_segkd.training.config import DistillationConfig

ONE_RUN = {"load_best_model_at_end": False, "eval_strategy": "no", "save_strategy": "no"}


def native():
    torch.manual_seed(0)
    config = SegformerConfig(
        id2label=LABELS,
        depths=[1] * 4,
        hidden_sizes=[8, 8, 16, 16],
        num_attention_heads=[1, 1, 2, 2],
        decoder_hidden_size=16,
        **dict.fromkeys(("drop_path_rate", "classifier_dropout_prob"), 0.0),
    )
    return expose_features(SegformerForSemanticSegmentation(config))


def own():
    torch.manual_seed(0)
    return load_model(TINY, id2label=LABELS)[0]


def freeze_batch_norm(model):
    """Batch statistics of 4 and of 2 x 2 images differ by definition."""
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.train = lambda mode=True, module=module: module
            module.eval().training = False
    return model


def distance(a, b):
    return max((a[key].double() - b[key].double()).abs().max().item() for key in a)


def test_bf16_trains_close_to_float32_with_float32_weights_and_losses(tmp_path, tiny_teacher):
    """Weights in bf16 would lose every update smaller than 1/256 of them."""
    seen, curves = set(), {}
    for bf16 in (False, True):
        student = own()
        student.decode_head.register_forward_hook(lambda module, args, out: seen.add(out.dtype))
        options = {"bf16": bf16, "max_steps": 20, "learning_rate": 0.05, "losses": {"task": {}, "kd": {}}, **ONE_RUN}
        trainer = trainer_for(tmp_path, student, tiny_teacher, **options)
        trainer.train()
        curves[bf16] = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        assert {x.dtype for x in student.parameters()} == {torch.float32}
    assert seen == {torch.float32, torch.bfloat16}
    # 3 %: bf16 keeps 8 bits of each activation.
    assert curves[True] == pytest.approx(curves[False], rel=0.03)
    assert sum(curves[True][-4:]) < sum(curves[True][:4])


@pytest.mark.parametrize("make", [own, native])
def test_channels_last_trains_the_same_and_saves_ordinary_weights(tmp_path, tiny_teacher, make):
    """A memory format is for speed alone: neither the numbers nor the files may show it."""
    found = []
    for channels_last in (False, True):
        options = {"channels_last": channels_last, "max_steps": 3, "losses": {"task": {}, "kd": {}}, **ONE_RUN}
        trainer = trainer_for(tmp_path, make(), tiny_teacher, **options)
        trainer.train()
        found.append(weights(trainer.student))
        for model in (trainer.student, trainer.teacher):
            kernels = [x for x in model.parameters() if x.dim() == 4 and x.shape[1] > 1 and x.shape[2] > 1]
            assert kernels and all(x.is_contiguous() != channels_last for x in kernels)
    trainer.save_student()
    assert equal(weights(type(trainer.student).from_pretrained(tmp_path)), found[1])
    # 1e-5: three steps of float32 sums in another order.
    assert distance(*found) < 1e-5


@pytest.mark.parametrize("make", [own, native])
@pytest.mark.parametrize("max_grad_norm", [0.0, 0.05])
def test_accumulated_steps_equal_those_of_large_batches(tmp_path, tiny_teacher, make, max_grad_norm):
    """Trainer multiplies the loss of a model with **kwargs by the accumulation steps; clipping must see their sum."""
    found = []
    for batch, accumulation in ((4, 1), (2, 2), (1, 4)):
        student = freeze_batch_norm(make())
        options = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation, "max_steps": 5}
        losses = {"task": {}, "kd": {}}
        trainer = trainer_for(
            tmp_path, student, tiny_teacher, losses=losses, max_grad_norm=max_grad_norm, **options, **ONE_RUN
        )
        trainer.train()
        found.append(weights(student))
    assert distance(found[0], weights(make())) > 1e-4
    # 1e-5: five steps of float32 sums in another order.
    assert distance(found[0], found[1]) < 1e-5 and distance(found[0], found[2]) < 1e-5


def test_clipping_bounds_the_step_over_student_and_projectors_together(tmp_path, tiny_teacher):
    """A clip that is set and not applied is the difference between a run and a NaN."""
    student = own()
    options = {"max_grad_norm": 0.01, "max_steps": 1, "learning_rate": 0.5, **ONE_RUN}
    trainer = trainer_for(tmp_path, student, tiny_teacher, **options)
    before = [parameter.detach().clone() for parameter in trainer.model.parameters()]
    trainer.train()
    moved = torch.cat([(b - a).flatten() for a, b in zip(before, trainer.model.parameters(), strict=True)])
    # 1e-3: small differences of weights near 1, in float32.
    assert moved.norm().item() == pytest.approx(0.5 * 0.01, rel=1e-3)
    assert trainer.state.log_history[0]["grad_norm"] > 0.01


# ---- moving average ----------------------------------------------------------------------------------------------


def test_average_is_the_one_of_the_formula_and_counters_are_copied():
    """Three steps by hand, from the initial weights on; an averaged counter of batches would be no number."""
    model = torch.nn.BatchNorm2d(1)
    average = ModelEMA(model, 0.9)
    for value in (2.0, 3.0, 4.0):
        with torch.no_grad():
            model.weight.fill_(value)
            model.running_mean.fill_(value)
            model.num_batches_tracked.add_(1)
        average.on_step_end(None, None, None)
    expected = 0.9**3 * 1 + 0.1 * (0.81 * 2 + 0.9 * 3 + 4)
    assert average.values["weight"].item() == pytest.approx(expected)
    assert average.values["running_mean"].item() == pytest.approx(expected - 0.729)
    assert average.values["num_batches_tracked"] == 3
    with average.applied():
        assert model.weight.item() == pytest.approx(expected)
    assert model.weight.item() == 4.0


class Record(TrainerCallback):
    def __init__(self, student):
        self.student, self.steps = student, []

    def on_step_end(self, args, state, control, **kwargs):
        self.steps.append(weights(self.student))


def test_average_is_evaluated_saved_and_the_result_and_does_not_change_the_training(tmp_path, tiny_teacher):
    """Scores of the one and weights of the other would be a result that nobody can repeat."""
    plain = own()
    record = Record(plain)
    options = {"eval_steps": 1, "save_steps": 1, "keep_checkpoints": True, "save_total_limit": None}
    trainer_for(tmp_path / "plain", plain, tiny_teacher, [record], **options).train()
    student = own()
    expected = weights(student)
    averaged = Record(student)
    trainer = trainer_for(tmp_path / "ema", student, tiny_teacher, [averaged], ema_decay=0.5, **options)
    trainer.train()
    assert all(equal(a, b) for a, b in zip(record.steps, averaged.steps, strict=True))
    scores = [entry["eval_mean_iou"] for entry in trainer.state.log_history if "eval_mean_iou" in entry]
    for step, live in enumerate(record.steps, start=1):
        expected = {key: (x + live[key]) / 2 if x.is_floating_point() else live[key] for key, x in expected.items()}
        saved = load_model(str(tmp_path / "ema" / f"checkpoint-{step}"))[0]
        assert distance(weights(saved), expected) < 1e-6
        found = trainer_for(tmp_path / "score", saved).evaluate()["eval_mean_iou"]
        assert found == pytest.approx(scores[step - 1], abs=1e-12)
    best = tmp_path / "ema" / f"checkpoint-{trainer.state.best_global_step}"
    assert equal(weights(student), weights(load_model(str(best))[0]))
    assert trainer.evaluate()["eval_mean_iou"] == max(scores)
    trainer.save_student()
    trainer.clean_up()
    assert equal(load_file(tmp_path / "ema" / "model.safetensors"), load_file(best / "model.safetensors"))
    assert not (tmp_path / "ema" / "weights.safetensors").exists()


def test_interrupted_run_with_an_average_ends_with_the_same_bits(tmp_path, tiny_teacher):
    """A resume that trains on from the average, or begins it anew, is another run."""

    def run(folder, callbacks=None, resume=None):
        options = {"max_steps": 6, "ema_decay": 0.8, "load_best_model_at_end": False}
        trainer = trainer_for(folder, own(), tiny_teacher, callbacks, **options)
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    whole = run(tmp_path / "whole")
    run(tmp_path / "parts", [SignalAt(2)])
    resumed = run(tmp_path / "parts", resume=str(tmp_path / "parts" / "checkpoint-3"))
    assert equal(weights(whole.model), weights(resumed.model))
    a, b = (load_file(tmp_path / x / "checkpoint-6" / "weights.safetensors") for x in ("whole", "parts"))
    assert equal(a, b) and not equal(a, weights(resumed.student))


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.1, 2])
def test_decay_outside_of_0_and_1_is_refused(tmp_path, decay):
    """0 averages nothing, and 1 never learns."""
    with pytest.raises(ValueError, match=f"ema_decay must lie between 0 and 1, both excluded, got {decay}"):
        DistillationConfig(output_dir=str(tmp_path), use_cpu=True, ema_decay=decay)
