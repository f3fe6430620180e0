"""The teacher's fast forms: folded batch norms, half precision, compiled."""

import pytest
import torch
from torch import nn
from transformers.utils import ModelOutput

from helpers import teachers
from helpers.tiny import LABELS
from helpers.trainers import trainer_for
from hf_segkd.evaluation.profiling import measure
from hf_segkd.loading.any_model import load_model
from hf_segkd.loading.frozen import folded_batch_norms
from hf_segkd.loading.native import expose_features
from hf_segkd.models.compat import PreTrainedConfig
from hf_segkd.training.trainer import DistillationTrainer

NETWORKS = {
    "deeplabv3": ({"model_type": "deeplabv3", "backbone": "resnet18", "num_labels": 5, "hidden_size": 16}, 31),
    "upernet on MobileNetV3": ({"model_type": "upernet", "backbone": "mobilenetv3_small", "num_labels": 5}, 46),
    # ESPNet's normalize concatenations, or the output of a convolution that others read too.
    "espnet": ({"model_type": "espnet", "num_labels": 5}, 0),
}


def with_statistics(model):
    """Batch norms that do something: fresh ones scale by 1 and shift by 0."""
    generator = torch.Generator().manual_seed(0)
    for norm in (x for x in model.modules() if isinstance(x, nn.BatchNorm2d)):
        for x, low, high in ((norm.weight, 0.5, 1.5), (norm.bias, -1, 1), (norm.running_mean, -1, 1)):
            x.data.uniform_(low, high, generator=generator)
        norm.running_var.uniform_(0.5, 2, generator=generator)
    return model.eval().requires_grad_(False)


def count_norms(model):
    return sum(isinstance(x, nn.BatchNorm2d) for x in model.modules())


class Toy(nn.Module):
    """A convolution, whose output goes into a batch norm and, if `shared`, elsewhere too."""

    device = torch.device("cpu")
    config = PreTrainedConfig()

    @property
    def dtype(self):
        return self.conv.weight.dtype

    def __init__(self, shared: bool):
        super().__init__()
        self.conv, self.norm, self.shared = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), shared

    def forward(self, pixel_values, output_hidden_states):
        x = self.conv(pixel_values)
        return ModelOutput(logits=self.norm(x), **({"features": x} if self.shared else {}))


@pytest.mark.parametrize("name", NETWORKS)
def test_folding_changes_nothing_but_the_number_of_modules(name):
    """A wrong sign or a forgotten bias makes another teacher; a teacher left folded could not be saved any more."""
    spec, count = NETWORKS[name]
    model = with_statistics(load_model(spec)[0])
    images, modules = torch.rand(2, 3, 128, 128), dict(model.named_modules())
    expected = model(pixel_values=images, output_hidden_states=True)
    with folded_batch_norms(model, (64, 96)) as folded:
        found = model(pixel_values=images, output_hidden_states=True)
        left = count_norms(model)
    assert folded == count and left == count_norms(model) - count
    for key in ("logits", "features"):
        assert (found[key] - expected[key]).abs().max() < 1e-5 * expected[key].abs().max()
    assert dict(model.named_modules()) == modules


def test_half_precision_is_folded_too():
    """A limit for float32 would take its rounding for an error and quietly fold nothing, on the GPUs it is for."""
    model = with_statistics(load_model({"model_type": "deeplabv3", "backbone": "resnet101", "num_labels": 5})[0])
    with folded_batch_norms(model.to(torch.bfloat16), (64, 96)) as folded:
        assert folded == 114
    with folded_batch_norms(with_statistics(Toy(shared=True)).to(torch.bfloat16), (8, 8)) as folded:
        assert folded == 0


def test_convolution_read_twice_is_left_alone():
    """Whoever else reads its output would get normalized values."""
    for shared in (False, True):
        with folded_batch_norms(with_statistics(Toy(shared)), (8, 8)) as folded:
            assert folded == (not shared)


def test_module_that_features_are_taken_from_is_left_alone():
    """Its hook would stay behind with it, and the features would be those of an earlier image."""
    name = "decode_head.batch_norm"
    model = with_statistics(expose_features(teachers.native("segformer", LABELS), name))
    with folded_batch_norms(model, (64, 64)) as folded:
        assert folded == 0 and isinstance(model.get_submodule(name), nn.BatchNorm2d)


def test_interruption_leaves_the_teacher_whole():
    """Training may end with an error while the caller keeps the teacher."""
    model = with_statistics(Toy(shared=False))
    with pytest.raises(KeyboardInterrupt), folded_batch_norms(model, (8, 8)):
        raise KeyboardInterrupt
    assert isinstance(model.norm, nn.BatchNorm2d)


def test_folded_variant_is_measured():
    """A variant that measures the plain model would say that folding gains nothing."""
    model, seen = load_model(NETWORKS["deeplabv3"][0])[0], []
    model.register_forward_pre_hook(
        lambda *_: seen.append(sum(isinstance(x, nn.BatchNorm2d) for x in model.modules()))
    )
    measure(model, (64, 64), "folded", repeats=2, warmup=1)
    assert seen[-3:] == [0, 0, 0] and seen[0] == 31


@pytest.mark.parametrize("name", teachers.ALL)
def test_every_kind_of_teacher_runs_in_half_precision(name, tmp_path):
    """A float32 image meets bfloat16 weights in one of them, or a bfloat16 map reaches a loss."""
    teacher = load_model(teachers.saved(name, LABELS, tmp_path / "teacher"))[0]
    runs = {}
    for dtype in ("float32", "bfloat16"):
        trainer = teachers.trainer_for(tmp_path / dtype, teacher, {"task": {}, "kd": {}}, teacher_dtype=dtype)
        trainer.train()
        runs[dtype] = trainer.state.log_history[0]["loss_kd"]
        assert next(trainer.teacher.parameters()).dtype == getattr(torch, dtype)
    assert runs["bfloat16"] == pytest.approx(runs["float32"], rel=0.1)


def test_unknown_dtype_is_refused(tmp_path):
    """`bf16` is a flag of Trainer's; here it would end in getattr(torch, ...)."""
    with pytest.raises(ValueError, match="teacher_dtype must be one of float32, bfloat16, float16, got 'bf16'"):
        trainer_for(tmp_path, None, teacher_dtype="bf16")


@pytest.mark.slow
def test_compiled_teacher_teaches_the_same(tmp_path, tiny_teacher):
    """Compiling must change neither the terms nor the teacher that the caller keeps."""
    logged = []
    for compiled in (False, True):
        torch.manual_seed(0)
        student = load_model(NETWORKS["espnet"][0] | {"num_labels": len(LABELS)})[0]
        options = {"torch_compile": compiled, "torch_compile_backend": "eager" if compiled else None}
        trainer = trainer_for(tmp_path / str(compiled), student, tiny_teacher, max_steps=2, eval_steps=2, **options)
        ran = []
        trainer.teacher.register_forward_hook(lambda *_, ran=ran: ran.append(torch.compiler.is_compiling()))
        trainer.train()
        logged.append([x["loss_kd"] for x in trainer.state.log_history if "loss_kd" in x])
        assert any(ran) == compiled and trainer.run_teacher is trainer.teacher is tiny_teacher
    assert logged[1] == pytest.approx(logged[0], rel=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_trainer_folds_its_teacher_on_a_gpu(tmp_path, tiny_student, tiny_teacher):
    """Only there it pays."""
    count = count_norms(tiny_teacher)
    trainer: DistillationTrainer = trainer_for(tmp_path, tiny_student, tiny_teacher, use_cpu=False)
    seen = []
    trainer.student.register_forward_pre_hook(lambda *_: seen.append(count_norms(tiny_teacher)))
    trainer.train()
    assert min(seen) < count == count_norms(tiny_teacher)
