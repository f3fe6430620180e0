"""Train a student, with a teacher (distillation) or without (the baseline).

    accelerate launch scripts/distill.py hf_segkd/recipes/datasets/camvid.yaml \
        hf_segkd/recipes/pairs/espnet_espnet-c.yaml hf_segkd/recipes/methods/kd_cwd.yaml \
        --data_dir CamVid --teacher runs/espnet_camvid --output_dir runs/camvid_kd_cwd

Recipes are merged from left to right; flags win. `--losses.cwd.weight 3` reaches into one; `--help` lists all keys.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack
from dataclasses import dataclass, field

from accelerate.utils import set_seed

from dataset_builders import open_from_arguments
from dataset_builders.opened import OpenedDataset
from hf_segkd.console import TrainingFault, plain_logs, readable_errors
from hf_segkd.hub import pin_revision
from hf_segkd.loading.any_model import load_model
from hf_segkd.loading.norm_calibration import calibrate_folded_norms
from hf_segkd.recipe import parse
from hf_segkd.reports.metrics_report import metrics_report, run_facts, training_cost
from hf_segkd.reports.run_folder import begin_run, finish_run
from hf_segkd.reports.tables import table
from hf_segkd.training.checks import check_classes, find_checkpoint, load_teacher, name_classes, own_folder
from hf_segkd.training.config import DistillationConfig
from hf_segkd.training.inputs import InputArguments, training_data
from hf_segkd.training.resume import check_same_recipe, field_defaults
from hf_segkd.training.trainer import DistillationTrainer


@dataclass(kw_only=True)
class ScriptArguments(InputArguments):
    """What is trained on what; the training itself is set by [`~hf_segkd.training.config.DistillationConfig`]."""

    student: dict | str = field(metadata={"help": "Hub id, folder, checkpoint, or {model_type: espnet, ...}, new."})
    teacher: str | None = field(default=None, metadata={"help": "Hub id, folder or original checkpoint, trained."})
    teacher_features: str | None = field(default=None, metadata={"help": "Its module to take features from."})
    teacher_classes: dict | str | None = field(default=None, metadata={"help": "{dataset's class: teacher's, ...}"})
    teacher_revision: str | None = field(default=None, metadata={"help": "Its branch, tag or commit on the Hub."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run the Python code that a model brings."})
    overwrite: bool = field(default=False, metadata={"help": "Replace an earlier run in output_dir."})
    resume: bool = field(default=False, metadata={"help": "Go on from the newest complete checkpoint in output_dir."})
    resume_with_changes: bool = field(
        default=False, metadata={"help": "Resume although the recipe differs; the card then shows both."}
    )


def main(argv: list[str] | None = None) -> dict:
    """Run one training and return what `metrics.json` holds."""
    plain_logs()
    with ExitStack() as held:
        with readable_errors():
            types = (ScriptArguments, DistillationConfig)
            (script, config), recipe = parse(types, sys.argv[1:] if argv is None else argv)
            held.enter_context(own_folder(config))
        return run(script, config, recipe)


def run(script: ScriptArguments, config: DistillationConfig, recipe: dict) -> dict:
    """Train, score and save in a folder that is held for this run."""
    with readable_errors():
        script.resume = script.resume or script.resume_with_changes
        with config.main_process_first():
            checkpoint = find_checkpoint(config, script.overwrite, script.resume)
        if script.teacher and (revision := pin_revision(script.teacher, script.teacher_revision)):
            script.teacher_revision = recipe["teacher_revision"] = revision  # a branch moves on, a recipe must not
        dataset = open_from_arguments(script)
        if checkpoint:
            defaults = field_defaults(ScriptArguments, DistillationConfig)
            check_same_recipe(config.output_dir, recipe, defaults, script.resume_with_changes)
        trainer, skipped = build(script, config, dataset)
        trainer.allow_changes = script.resume_with_changes
    trainer.accelerator.wait_for_everyone()  # nobody writes while another process still looks at the folder
    first_step = int(checkpoint.rsplit("-", 1)[1]) if checkpoint else 0
    if trainer.args.should_save:
        begin_run(config.output_dir, recipe, script.overwrite, first_step)

    with readable_errors(TrainingFault):
        runtime = trainer.train(resume_from_checkpoint=checkpoint).metrics["train_runtime"]
    step = trainer.state.global_step
    if trainer.interrupted and step < trainer.state.max_steps:
        print(f"Interrupted at step {step}; the state is saved. Run the same command with --resume to go on.")
        sys.exit(128 + trainer.interrupted)
    cost = training_cost(trainer.state.log_history, runtime, first_step, step)
    trainer.evaluate()
    spec = dataset.spec
    report = metrics_report(
        trainer.eval_scores,
        spec.labels,
        **cost,
        **run_facts(trainer, spec, script.crop_size),
        skipped_unreadable=skipped,
    )
    if trainer.args.should_save:
        with readable_errors(TrainingFault):
            finish_run(trainer, spec, report, recipe)
        print(f"{table(report)}\nStudent, processor, recipe and metrics: {config.output_dir}")
    trainer.end()
    if config.push_to_hub and trainer.args.should_save:
        with readable_errors():  # last: whatever the Hub answers, the folder is complete
            print(f"On the Hub: {trainer.push_to_hub()}")
    return report


def build(
    script: ScriptArguments, config: DistillationConfig, dataset: OpenedDataset
) -> tuple[DistillationTrainer, int]:
    """Check everything that can be checked, load data and models; return the trainer and how many images it skips.

    Raises:
        ValueError: For whatever is wrong in recipe, data or models; nothing has been trained by then.
    """
    spec = dataset.spec
    hints = (script.teacher_features, script.teacher_classes, script.teacher_revision, script.trust_remote_code)
    teacher, teacher_processor = load_teacher(script.teacher, config.losses, spec.labels, *hints)
    set_seed(config.seed)
    student, processor = load_model(script.student, id2label=spec.id2label, trust_remote_code=script.trust_remote_code)
    check_classes(student, spec.labels, "student")
    name_classes(student, spec)

    data = training_data(script, dataset, config.seed)
    calibrate_folded_norms(student, processor, data.train)
    trainer = DistillationTrainer(
        student,
        teacher,
        args=config,
        train_dataset=data.train,
        eval_dataset=data.validation,
        processing_class=processor,
        teacher_processing_class=teacher_processor,
        teacher_classes=script.teacher_classes,
        ignore_index=spec.ignore_index,
    )
    return trainer, data.skipped
