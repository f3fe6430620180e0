"""Replay a recorded run of another code in our trainer and compare the weights after each step.

    python benchmarks/trajectories.py tests/golden/trajectory

A folder holds, weights and teacher under the names of our models (`scripts/convert.py` shows how they map):

* `run.yaml`: fields of a recipe: `student` (of a new model), `losses`, `learning_rate`, `max_steps`, ..., `teacher`
  (fields of a new model too) where there is one;
* `batches.safetensors`: `pixel_values`, uint8 RGB (S, B, 3, H, W), and `labels`, (S, B, H, W), of S steps; `content`,
  (S, B, 4), where crops were padded;
* `weights_0.safetensors`: the student before the first step; `weights_N.safetensors`: after step N, for any N;
* `teacher.safetensors`: the teacher; `losses_0.safetensors`: parameters and buffers of our losses before the first
  step, where they have any. Without them these are drawn.

Networks with dropout agree only if both codes are recorded without it (`classifier_dropout: 0` in the student).
The difference is |ours - theirs| over |theirs - start|, of all parameters as one vector: 1 is as far as the run went.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import Dataset, SequentialSampler
from transformers import PreTrainedModel, TrainerCallback

from hf_segkd.loading.any_model import load_model
from hf_segkd.recipe import load_yaml
from hf_segkd.reports.tables import markdown_table
from hf_segkd.training.config import DistillationConfig
from hf_segkd.training.trainer import DistillationTrainer

NO_OUTPUT = {
    **{"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False, "report_to": "none"},
    **{"use_cpu": True, "disable_tqdm": True, "logging_strategy": "no"},
}


def main(argv: list[str] | None = None) -> list[tuple[str, ...]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of the recorded run")
    rows = replay(parser.parse_args(argv).folder)
    print(markdown_table(("step", "difference", "largest in", "there"), rows))
    return rows


def replay(folder: Path) -> list[tuple[str, ...]]:
    """Step, difference, and the tensor that differs most with its own difference, of each step that was recorded."""
    recipe = load_yaml((folder / "run.yaml").read_text(encoding="utf-8"))
    batches = RecordedBatches(load_file(folder / "batches.safetensors"))
    student, processor = _model(recipe.pop("student"), folder / "weights_0.safetensors")
    teacher, teacher_processor = None, None
    if "teacher" in recipe:
        teacher, teacher_processor = _model(recipe.pop("teacher"), folder / "teacher.safetensors")
    comparison = Comparison(student, folder)
    with tempfile.TemporaryDirectory() as output_dir:
        args = DistillationConfig(
            output_dir=output_dir, per_device_train_batch_size=batches.batch_size, **NO_OUTPUT, **recipe
        )
        trainer = InOrder(
            student,
            teacher,
            args=args,
            train_dataset=batches,
            processing_class=processor,
            teacher_processing_class=teacher_processor,
            callbacks=[comparison],
        )
        if (folder / "losses_0.safetensors").is_file():
            trainer.model.losses.load_state_dict(load_file(folder / "losses_0.safetensors"))
        trainer.train()
    return comparison.rows


def _model(fields: dict, weights: Path) -> tuple[PreTrainedModel, object]:
    model, processor = load_model(fields)
    model.load_state_dict(load_file(weights), strict=True)
    return model, processor


class InOrder(DistillationTrainer):
    """The trainer without shuffling: the recorded batches come as they came there."""

    def _get_train_sampler(self, train_dataset=None) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)


class RecordedBatches(Dataset):
    """The images of all batches, one after the other."""

    def __init__(self, arrays: dict[str, Tensor]):
        self.batch_size = arrays["labels"].shape[1]
        self.arrays = {key: value.flatten(0, 1) for key, value in arrays.items()}

    def __len__(self) -> int:
        return len(self.arrays["labels"])

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {key: value[index] for key, value in self.arrays.items()}


class Comparison(TrainerCallback):
    """Compares the student with the recorded weights after each step that has some."""

    def __init__(self, student: PreTrainedModel, folder: Path):
        self.student = student
        self.folder = folder
        self.start = load_file(folder / "weights_0.safetensors")
        self.rows: list[tuple[str, ...]] = []

    def on_step_end(self, args, state, control, **kwargs) -> None:
        file = self.folder / f"weights_{state.global_step}.safetensors"
        if not file.is_file():
            return
        theirs = load_file(file)
        names = [name for name, _ in self.student.named_parameters()]
        ours = dict(self.student.named_parameters())
        apart = {name: (ours[name].detach().cpu() - theirs[name]).double().norm() for name in names}
        moved = {name: (theirs[name] - self.start[name]).double().norm() for name in names}
        total = _norm(apart) / _norm(moved)
        worst = max(names, key=lambda name: apart[name] / moved[name].clamp(min=1e-12))
        share = apart[worst] / moved[worst].clamp(min=1e-12)
        self.rows.append((str(state.global_step), f"{total:.1e}", worst, f"{share:.1e}"))


def _norm(parts: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(parts.values())).norm()


if __name__ == "__main__":
    main()
