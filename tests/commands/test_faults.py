"""What ends a training: each fault is provoked for real, and said in one paragraph with what to do."""

import os
import resource
import signal

import pytest
import torch
from transformers import SegformerConfig, SegformerForSemanticSegmentation, TrainerCallback

from helpers.commands import distill, recipe
from helpers.tiny import LABELS, TinyScenes
from helpers.trainers import trainer_for, weights
from hf_segkd.console import TrainingFault
from hf_segkd.loading.native import expose_features
from hf_segkd.losses import LOSSES
from hf_segkd.training.checkpoints import last_checkpoint
from hf_segkd.training.faults import FiniteWatch

pytestmark = pytest.mark.usefixtures("module_without_figures")


@pytest.fixture
def tiny_native():
    """A function that makes the same native SegFormer again and again."""

    def make():
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

    return make


LONG = {"load_best_model_at_end": False, "eval_strategy": "no"}


class FromStep(TrainerCallback):
    """Does `act` before each step from step `first` on, counted from 1."""

    def __init__(self, first, act):
        self.first, self.act = first, act

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step + 1 >= self.first:
            self.act()


def fault_of(trainer) -> str:
    with pytest.raises(TrainingFault) as error:
        trainer.train()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_nan_in_a_term_names_it_and_the_step_and_keeps_the_batch(tmp_path, tiny_student, tiny_teacher):
    """Without the batch, the one image in 100 000 that does it is never found."""

    def poison():
        with torch.no_grad():
            tiny_teacher.decode_head.classifier.weight[0] = float("inf")

    options = {"max_steps": 6, "save_steps": 1, "logging_steps": 100, **LONG}
    trainer = trainer_for(tmp_path, tiny_student, tiny_teacher, [FromStep(3, poison)], **options)
    message = fault_of(trainer)
    assert "Not finite at step 3: kd = nan" in message and "task" not in message
    kept = torch.load(tmp_path / "not_finite-3-0.pt", weights_only=True)
    assert kept["pixel_values"].dtype == torch.uint8 and kept["pixel_values"].shape == (2, 3, 32, 32)
    assert kept["labels"].shape == (2, 32, 32) and kept["step"] == 3 and kept["values"]["task"] > 0
    assert last_checkpoint(tmp_path).endswith("checkpoint-2")


@pytest.mark.parametrize("late", [False, True], ids=["cpu", "host ahead"])
def test_gradient_that_is_not_finite_is_found_before_its_weights_are_saved(tmp_path, tiny_student, late, monkeypatch):
    """The terms of that step are all finite: its checkpoint would hold NaN, and every resume would stop again."""
    if late:
        monkeypatch.setattr("hf_segkd.training.faults._copy", lambda values: (values, NeverReady()))

    def poison():
        tiny_student.decode_head.classifier.weight.register_hook(lambda gradient: gradient * float("nan"))

    trainer = trainer_for(tmp_path, tiny_student, None, [FromStep(2, poison)], save_steps=1, **LONG)
    assert "Not finite at step 2: the gradient = nan" in fault_of(trainer)
    assert last_checkpoint(tmp_path).endswith("checkpoint-1")


class NeverReady:
    """The event of a copy that is still on its way."""

    waited = 0

    def query(self):
        return False

    def synchronize(self):
        self.waited += 1


def test_values_that_are_late_are_waited_for_after_the_lag_and_before_a_checkpoint(tmp_path, monkeypatch):
    """On a GPU the host runs ahead; a fault that nobody looks at again would be saved."""
    monkeypatch.setattr("hf_segkd.training.faults._copy", lambda values: (values, NeverReady()))
    watch = FiniteWatch(str(tmp_path), lag=2)
    watch.see(1, {"task": torch.tensor(float("nan"))}, {"labels": torch.zeros(1)})
    watch.see(2, {"task": torch.tensor(1.0)}, {"labels": torch.zeros(1)})
    with pytest.raises(TrainingFault, match="at step 1: task = nan"):
        watch.see(3, {"task": torch.tensor(1.0)}, {"labels": torch.zeros(1)})
    watch.see(4, {"task": torch.tensor(float("inf"))}, {"labels": torch.zeros(1)})
    with pytest.raises(TrainingFault, match="at step 4: task = inf"):
        watch.wait()


def test_out_of_memory_names_what_to_turn(tmp_path, tiny_student):
    """`alloc_cpu.cpp: not enough memory` does not tell a user which of 150 options needs less."""

    class Greedy(torch.nn.Module):
        def forward(self, student, teacher, labels):
            return student.logits.sum() + torch.empty(2**50, device=student.logits.device).sum()

    trainer = trainer_for(tmp_path, tiny_student, per_device_eval_batch_size=2)
    trainer.model.losses["greedy"], trainer.model.weights["greedy"] = Greedy(), 1.0
    message = fault_of(trainer)
    assert message.startswith("Out of memory after step 0, with 2 images of 32x32 pixels at a time on cpu.")
    for way in (
        "bf16: true;",
        "per_device_train_batch_size: 1 with gradient_accumulation_steps: 2",
        "per_device_eval_batch_size: 1",
        "a smaller crop_size than 32 32",
    ):
        assert way in message
    assert "activation_checkpointing" not in message  # which ESPNet cannot do


def test_advice_for_out_of_memory_is_not_what_is_already_done(tmp_path, tiny_student):
    """A knob that is turned already costs another failed run."""
    options = {"bf16": True, "per_device_train_batch_size": 1}
    trainer = trainer_for(tmp_path, tiny_student, callbacks=[FromStep(1, lambda: torch.empty(2**50))], **options)
    message = fault_of(trainer)
    assert "bf16" not in message and "per_device" not in message and "crop_size" in message


class Deadly(TinyScenes):
    """Kills the worker that reads image 5, as the kernel does when memory runs out."""

    def __getitem__(self, index):
        if index == 5 and torch.utils.data.get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


def test_worker_that_dies_is_explained(tmp_path, tiny_student):
    """`DataLoader worker (pid 4711) is killed by signal` leaves the user to guess why."""
    trainer = trainer_for(tmp_path, tiny_student, train=Deadly(), dataloader_num_workers=2, **LONG)
    message = fault_of(trainer)
    assert "A process that reads images died after step" in message
    assert "dataloader_num_workers below 2" in message and "--resume" in message


def test_other_errors_keep_their_traceback(tmp_path, tiny_student):
    """A bug dressed up as lack of memory is never found."""

    def fail():
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="^mine$"):
        trainer_for(tmp_path, tiny_student, callbacks=[FromStep(1, fail)]).train()


def test_activation_checkpointing_as_advised_trains_the_same(tmp_path, tiny_native):
    """Trainer asks the module that it trains, which is not a transformers model: advice that ends in an error."""
    if not tiny_native().supports_gradient_checkpointing:
        pytest.skip("this release of transformers cannot do it for SegFormer, and the run says so")
    found = []
    for name, options in (("a", {}), ("b", {"activation_checkpointing": True})):
        student = tiny_native()
        trainer = trainer_for(tmp_path / name, student, max_steps=2, **LONG, **options)
        trainer.train()
        assert any(getattr(module, "gradient_checkpointing", False) for module in student.modules()) == (name == "b")
        found.append(weights(student))
    assert all(torch.allclose(x, found[1][key]) for key, x in found[0].items())


def test_script_ends_a_fault_with_one_paragraph(tmp_path, monkeypatch):
    """Fifty lines of traceback hide the one that helps."""

    def nan(self, student, teacher, labels):
        return student.logits.sum() * float("nan")

    monkeypatch.setattr(LOSSES["task"], "forward", nan)
    with pytest.raises(SystemExit) as stop:
        distill.main([recipe(tmp_path), "--output_dir", str(tmp_path / "run")])
    assert str(stop.value.code).startswith("error: Not finite at step 1: task = nan, loss = nan.")


def test_file_that_may_not_grow_is_a_full_disk_too(tmp_path, tiny_student):
    """Where no small disk can be mounted, this is what a quota looks like."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    limit = FromStep(3, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (8192, before[1])))
    try:
        message = fault_of(trainer_for(tmp_path, tiny_student, callbacks=[limit], **LONG))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "Saving checkpoint-4" in message and "checkpoint-2 is complete: free some space" in message
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-2"]
