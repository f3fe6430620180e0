"""Train a student, with a teacher (distillation) or without (the baseline).

    accelerate launch scripts/distill.py scripts/recipes/datasets/camvid.yaml \
        scripts/recipes/pairs/espnet_espnet-c.yaml scripts/recipes/methods/kd_cwd.yaml \
        --data_dir CamVid --teacher runs/espnet_camvid --output_dir runs/camvid_kd_cwd

Recipes are merged from left to right; flags win. `--losses.cwd.weight 3` reaches into one; `--help` lists all keys.
"""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path

import transformers
from accelerate.utils import set_seed

import dataset_builders
from hf_segkd.checks import check_classes, check_items, check_output_dir, check_teacher
from hf_segkd.config import DistillationConfig
from hf_segkd.data import DATASETS, EvalTransform, SegmentationDataset, TrainTransform
from hf_segkd.errors import readable_errors
from hf_segkd.models import load_processor, load_segmenter
from hf_segkd.recipe import dump, parse
from hf_segkd.reporting import metrics_report, plain_logs, table, training_cost, write_figures, write_json
from hf_segkd.trainer import DistillationTrainer


@dataclass
class ScriptArguments:
    """What is trained on what; the training itself is set by [`~hf_segkd.config.DistillationConfig`]."""

    dataset: str = field(metadata={"help": "Name of a dataset: " + ", ".join(DATASETS)})
    student: dict | str = field(metadata={"help": "Hub id, folder, or {model_type: espnet, ...} for a new one."})
    data_dir: str | None = field(default=None, metadata={"help": "Folder of the raw dataset."})
    teacher: str | None = field(default=None, metadata={"help": "Hub id or folder of a trained teacher."})
    crop_size: list[int] = field(default_factory=lambda: [512, 1024], metadata={"help": "Height and width, pixels."})
    scale_range: list[float] = field(default_factory=lambda: [0.5, 2.0], metadata={"help": "Random scale, from, to."})
    flip: float = field(default=0.5, metadata={"help": "Probability of a horizontal flip."})
    dataset_config: dict | str | None = field(default=None, metadata={"help": "Options of the dataset's builder."})
    overwrite: bool = field(default=False, metadata={"help": "Replace an earlier run in output_dir."})
    resume: bool = field(default=False, metadata={"help": "Go on from the newest checkpoint in output_dir."})


def main(argv: list[str] | None = None) -> dict:
    """Run one training and return what `metrics.json` holds."""
    plain_logs()
    with readable_errors():
        (script, config), recipe = parse(
            (ScriptArguments, DistillationConfig), argv if argv is not None else sys.argv[1:]
        )
        checkpoint = check_output_dir(config.output_dir, script.overwrite, script.resume)
        trainer = build(script, config)
    output_dir = Path(config.output_dir)
    if trainer.args.should_save:
        if script.overwrite:
            for old in output_dir.glob("checkpoint-*"):
                shutil.rmtree(old)
            (output_dir / "metrics.json").unlink(missing_ok=True)
        dump(
            {key: value for key, value in recipe.items() if key not in ("resume", "overwrite")},
            output_dir / "recipe.yaml",
        )

    first_step = int(checkpoint.rsplit("-", 1)[1]) if checkpoint else 0
    runtime = trainer.train(resume_from_checkpoint=checkpoint).metrics["train_runtime"]
    if trainer.interrupted and trainer.state.global_step < trainer.state.max_steps:
        print(
            f"Interrupted at step {trainer.state.global_step}; the state is saved. Run the same command with --resume."
        )
        sys.exit(128 + trainer.interrupted)
    cost = training_cost(trainer.state.log_history, runtime, first_step, trainer.state.global_step)
    trainer.evaluate()
    spec = DATASETS[script.dataset]
    report = metrics_report(
        trainer.eval_scores,
        spec.labels,
        dataset=spec.name,
        split=spec.eval_split,
        images=len(trainer.eval_dataset),
        protocol="whole image, single scale, at label size",
        seed=config.seed,
        best_step=trainer.state.best_global_step,
        steps=trainer.state.global_step,
        **cost,
    )
    if trainer.args.should_save:
        trainer.finish()
        write_json(trainer.state.log_history, output_dir / "training_log.json")
        write_json(report, output_dir / "metrics.json")
        write_figures(trainer, spec, output_dir / "figures")
        print(f"{table(report)}\nStudent, processor, recipe and metrics: {output_dir}")
    return report


def build(script: ScriptArguments, config: DistillationConfig) -> DistillationTrainer:
    """Check everything that can be checked, load data and models, and return the trainer.

    Raises:
        ValueError: For whatever is wrong in recipe, data or models; nothing has been trained by then.
    """
    if script.dataset not in DATASETS:
        raise ValueError(f"Unknown dataset {script.dataset!r}. Known datasets: {', '.join(DATASETS)}.")
    spec = DATASETS[script.dataset]
    needs_teacher = check_teacher(script.teacher, config.losses)
    teacher = load_segmenter(script.teacher) if needs_teacher else None
    set_seed(config.seed)
    student = load_segmenter(script.student, id2label=spec.id2label)
    for model, who in ((teacher, "teacher"), (student, "student")):
        if model is not None:
            check_classes(model, spec.labels, who)

    transform = TrainTransform(
        tuple(script.crop_size), tuple(script.scale_range), flip=script.flip, ignore_index=spec.ignore_index
    )
    splits = {}
    for split, split_transform in ((spec.train_split, transform), (spec.eval_split, EvalTransform(spec.ignore_index))):
        rows = dataset_builders.load_split(script.dataset, script.data_dir, split, **(script.dataset_config or {}))
        splits[split] = SegmentationDataset(rows, split_transform, spec.num_labels, seed=config.seed)
        check_items(splits[split])
    transformers.logging.set_verbosity_error()
    return DistillationTrainer(
        student,
        teacher,
        args=config,
        train_dataset=splits[spec.train_split],
        eval_dataset=splits[spec.eval_split],
        processing_class=load_processor(script.student if isinstance(script.student, str) else student),
        teacher_processing_class=load_processor(script.teacher) if needs_teacher else None,
        ignore_index=spec.ignore_index,
    )


if __name__ == "__main__":
    main()
