"""Train a student, with a teacher (distillation) or without (the baseline).

    hf-segkd distill --data photos --teacher runs/teacher --student segformer-b0 --output_dir runs/student
    hf-segkd distill camvid espnet_espnet-c kd_cwd \\
        --data_dir CamVid --teacher runs/espnet_camvid --output_dir runs/camvid_kd_cwd

With --data, options that are not given are derived from data and student, and shown (docs/your_own_data.md).

Recipes come first, by name in the order dataset, pair, method (`hf-segkd recipes` lists them), or as .yaml files. They
are merged from left to right; flags win. `--losses.cwd.weight 3` reaches into one. On several devices:
`accelerate launch -m hf_segkd distill ...`, or `accelerate launch scripts/distill.py ...` in a checkout.
"""

from __future__ import annotations

import argparse
import ast
import sys
import textwrap
from contextlib import ExitStack
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, get_type_hints

from hf_segkd.commands.flags import CommandParser, add_field
from hf_segkd.console import TrainingFault, plain_logs, readable_errors
from hf_segkd.recipe import parse, recipe_names
from hf_segkd.training.options import DistillationArguments, ScriptArguments, option_groups

if TYPE_CHECKING:
    from dataset_builders.opened import OpenedDataset
    from hf_segkd.training.config import DistillationConfig
    from hf_segkd.training.trainer import DistillationTrainer


def parser(all_options: bool = False) -> argparse.ArgumentParser:
    """The command line for `--help` and completion; [`~hf_segkd.recipe.parse`] reads it.

    Args:
        all_options (`bool`, *optional*, defaults to `False`): Add the options of `transformers.TrainingArguments`
            that few runs need, which takes seconds to import.
    """
    parser = CommandParser("distill", __doc__, usage="%(prog)s RECIPE ... [options]", allow_abbrev=False)
    recipes = parser.add_argument("recipes", nargs="*", metavar="RECIPE", help="names or .yaml files")
    recipes.completer = lambda **_: [name for names in recipe_names().values() for name in names]
    parser.add_argument("--help-all", action="store_true", help="show the options of transformers' Trainer too")
    hints = get_type_hints(ScriptArguments) | get_type_hints(DistillationArguments)
    for title, options in option_groups().items():
        note = textwrap.fill(f"Known losses: {', '.join(loss_names())}.", 76) if title == "losses" else None
        group = parser.add_argument_group(title, note)
        for option in options:
            add_field(group, option, hints[option.name])
    if all_options:
        from hf_segkd.training.config import DistillationConfig

        group = parser.add_argument_group("Trainer")
        more = get_type_hints(DistillationConfig)
        for option in fields(DistillationConfig):
            if option.init and option.name not in hints:
                add_field(group, option, more[option.name])
    return parser


def loss_names() -> list[str]:
    """Keys of [`~hf_segkd.losses.METHODS`], read from its source: importing it would import torch."""
    source = Path(__file__).parents[1] / "losses" / "__init__.py"
    for statement in ast.parse(source.read_text(encoding="utf-8")).body:
        if isinstance(statement, ast.Assign) and statement.targets[0].id == "METHODS":
            return [key.value for key in statement.value.keys]
    raise ValueError(f"{source} has no METHODS.")


def main(argv: list[str] | None = None) -> dict:
    """Run one training and return what `metrics.json` holds."""
    argv = sys.argv[1:] if argv is None else argv
    if {"-h", "--help", "--help-all"} & set(argv):
        parser(all_options="--help-all" in argv).print_help()
        return {}
    from dataset_builders.arguments import find_data
    from hf_segkd.training.checks import own_folder
    from hf_segkd.training.config import DistillationConfig
    from hf_segkd.training.derived import derive_options
    from hf_segkd.training.inputs import open_training_data
    from hf_segkd.training.stored_teacher import check_cache
    from hf_segkd.training.streamed import check_streaming

    plain_logs()
    with ExitStack() as held:
        with readable_errors():
            (script, config), recipe = parse((ScriptArguments, DistillationConfig), argv)
            check_streaming(script, config)
            find_data(script)
            dataset = open_training_data(script)
            if script.data:
                derived = derive_options(recipe, script.student, dataset, config)
                (script, config), recipe = parse((ScriptArguments, DistillationConfig), argv, derived)
                find_data(script)
            check_cache(script, config)
            if script.cache_only:
                return fill_cache(script, config, dataset)
            held.enter_context(own_folder(config))
        return run(script, config, recipe, dataset)


def fill_cache(script: ScriptArguments, config: DistillationConfig, dataset: OpenedDataset) -> dict:
    """Compute the teacher's predictions and train nothing."""
    from hf_segkd.evaluation.teacher import pin_teacher
    from hf_segkd.training.inputs import training_data
    from hf_segkd.training.stored_teacher import stored_teacher

    pin_teacher(script, {})
    maps = stored_teacher(script, config, dataset, training_data(script, dataset, config.seed))
    if config.should_save:
        print(f"The teacher's predictions for {len(maps)} images: {script.teacher_cache}")
    return {"maps": len(maps)}


def run(script: ScriptArguments, config: DistillationConfig, recipe: dict, dataset: OpenedDataset) -> dict:
    """Train, score and save in a folder that is held for this run."""
    from hf_segkd.evaluation.teacher import pin_teacher
    from hf_segkd.reports.data_summary import SAMPLE, short_text, summarize
    from hf_segkd.reports.metrics_report import metrics_report, run_facts, training_cost
    from hf_segkd.reports.run_folder import begin_run, finish_run
    from hf_segkd.reports.tables import table
    from hf_segkd.training.checks import find_checkpoint
    from hf_segkd.training.class_weights import resolve_class_weights
    from hf_segkd.training.resume import check_same_recipe, field_defaults

    with readable_errors():
        script.resume = script.resume or script.resume_with_changes
        with config.main_process_first():
            checkpoint = find_checkpoint(config, script.overwrite, script.resume)
        pin_teacher(script, recipe)
        config.losses = resolve_class_weights(config.losses, dataset)
        if "losses" in recipe:
            recipe["losses"] = config.losses
        if checkpoint:
            defaults = field_defaults(type(script), type(config))
            check_same_recipe(config.output_dir, recipe, defaults, script.resume_with_changes)
        trainer, skipped = build(script, config, dataset)
        trainer.allow_changes = script.resume_with_changes
        if trainer.args.should_save and dataset.label_map is not None:
            print(short_text(summarize(dataset, limit=SAMPLE)))
    trainer.accelerator.wait_for_everyone()  # nobody writes while another process still looks at the folder
    first_step = int(checkpoint.rsplit("-", 1)[1]) if checkpoint else 0
    if trainer.args.should_save:
        begin_run(config.output_dir, recipe, script.overwrite, first_step)

    with readable_errors(TrainingFault):
        runtime = trainer.train(resume_from_checkpoint=checkpoint).metrics["train_runtime"]
    step = trainer.state.global_step
    if trainer.interrupted and step < trainer.state.max_steps:
        print(f"Interrupted at step {step}; the state is saved. Run the same command with --resume to continue.")
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
    from accelerate.utils import set_seed

    from hf_segkd.evaluation.teacher import TeacherDescription, TeacherEnsemble
    from hf_segkd.loading.bands import check_reads, student_for_bands
    from hf_segkd.loading.norm_calibration import calibrate_folded_norms
    from hf_segkd.loading.students import load_student, resolve_student
    from hf_segkd.training.checks import check_teacher, check_unlabeled, load_teacher
    from hf_segkd.training.inputs import training_data
    from hf_segkd.training.stored_teacher import attach, stored_teacher
    from hf_segkd.training.trainer import DistillationTrainer
    from hf_segkd.values import check_license

    check_license(script.license)
    spec = dataset.spec
    check_unlabeled(script, config)
    teacher, teacher_processor = None, None
    description = TeacherDescription.from_arguments(script)
    is_taught = check_teacher(description, config.losses)
    if description and not is_taught and config.should_log:
        print("The teacher is not used: no loss needs one.")
    if is_taught and not script.teacher_cache:
        hints = (script.teacher_features, script.trust_remote_code)
        teacher, teacher_processor = load_teacher(description, config.losses, spec.labels, *hints)
        check_reads(teacher_processor, dataset.bands, "teacher")
    set_seed(config.seed)
    described, fields = resolve_student(script.student), {}
    for option in ("quantization_aware", "freeze_batch_norm"):
        if getattr(config, option) and isinstance(described, dict):
            raise ValueError(
                f"{option} trains a finished student a little longer, and this one has no trained weights. "
                "Train it first, then give --student the folder of that run."
            )
    if dataset.bands is not None and isinstance(described, dict):
        fields = described.get("processor") or {}  # of the bands, not of the network that is widened for them
        described = {name: value for name, value in described.items() if name != "processor"}
    student, processor = load_student(described, spec.id2label, trust_remote_code=script.trust_remote_code)

    data = training_data(script, dataset, config.seed)
    if dataset.bands is not None:
        is_new = isinstance(described, dict) and "backbone_weights" not in described
        student, processor = student_for_bands(student, processor, dataset.bands, data.whole_train, fields, is_new)
    check_reads(processor, dataset.bands, "student")
    calibrate_folded_norms(student, processor, data.train)
    if is_taught and script.teacher_cache:
        attach(stored_teacher(script, config, dataset, data), data, student)
    trainer = DistillationTrainer(
        student,
        teacher,
        args=config,
        train_dataset=data.train,
        eval_dataset=data.validation,
        processing_class=processor,
        teacher_processing_class=teacher_processor,
        teacher_classes=None if isinstance(teacher, TeacherEnsemble) else script.teacher_classes,
        calibration_dataset=data.whole_train,
        ignore_index=spec.ignore_index,
    )
    return trainer, len(data.skipped)
