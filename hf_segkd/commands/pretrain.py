"""Train a student's features without labels, from a vision backbone: the stage before `hf-segkd distill`.

    hf-segkd pretrain --teacher facebook/dinov2-base --student mobilenetv3-small --images photos/all \\
        --output_dir runs/pretrained
    hf-segkd distill --data photos --student runs/pretrained --output_dir runs/student

Both in one command: what stands behind `--` goes to `hf-segkd distill`, which starts from the result.

    hf-segkd pretrain --teacher facebook/dinov2-base --student mobilenetv3-small --images photos/all \\
        --output_dir runs/pretrained -- --data photos --output_dir runs/student

The teacher is any backbone that transformers loads (DINOv2, DINOv3, ConvNeXt, Swin, ViT, ...). Losses compare the last
stage of the student's backbone with the teacher's map; by default `cosine`.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from hf_segkd.commands.flags import CommandParser, add_field, add_fields
from hf_segkd.console import TrainingFault, plain_logs, readable_errors
from hf_segkd.recipe import dump, parse
from hf_segkd.training.options import DistillationArguments

if TYPE_CHECKING:
    from hf_segkd.training.config import DistillationConfig
    from hf_segkd.training.trainer import DistillationTrainer

LAYER = "hidden_states.-1"  # the last stage of the student's backbone, and the teacher's last map
# Losses that compare features and read no labels.
LABEL_FREE = ("cosine", "pkd", "gkd", "cankd", "fitnet", "cwd", "at", "mgd", "skd_pairwise")
BASE: dict[str, Any] = {
    **{"optim": "adamw_torch", "learning_rate": 1e-3, "weight_decay": 0.05},
    **{"per_device_train_batch_size": 16, "num_train_epochs": 10.0},
    **{"eval_strategy": "no", "load_best_model_at_end": False},
}
FINISHED = "pretraining.json"


@dataclass(kw_only=True)
class PretrainArguments:
    """Who teaches whom, on which images."""

    teacher: str = field(metadata={"help": "Vision backbone: a folder or Hub id that transformers loads."})
    student: dict | str = field(metadata={"help": "Student, as hf-segkd distill takes it: a name, folder, ..."})
    images: list[str] = field(metadata={"help": "Folders (searched through), patterns in quotes, or Hub ids."})
    crop_size: list[int] = field(
        default_factory=lambda: [224, 224], metadata={"help": "Height and width of training crops, in pixels."}
    )
    scale_range: list[float] = field(
        default_factory=lambda: [0.5, 2.0], metadata={"help": "Smallest and largest random scale of the images."}
    )
    flip: float = field(default=0.5, metadata={"help": "Probability of flipping an image horizontally."})
    num_labels: int = field(
        default=20, metadata={"help": "Classes that a new student is made for; distill gives it its own."}
    )
    trust_remote_code: bool = field(default=False, metadata={"help": "Run the Python code that a model brings."})
    overwrite: bool = field(default=False, metadata={"help": "Replace an earlier run in output_dir."})
    resume: bool = field(default=False, metadata={"help": "Continue an interrupted run; pass over a finished one."})


def main(argv: list[str] | None = None) -> dict:
    """Run the stage without labels and, where a command for it is given, the training after it.

    Returns:
        `dict`: What `pretraining.json` holds, or `metrics.json` of the training.
    """
    argv = sys.argv[1:] if argv is None else argv
    if {"-h", "--help"} & set(argv):
        parser().print_help()
        return {}
    own, following = argv, None
    if "--" in argv:
        own, following = argv[: argv.index("--")], argv[argv.index("--") + 1 :]
    from hf_segkd.training.checks import own_folder
    from hf_segkd.training.config import DistillationConfig

    plain_logs()
    with ExitStack() as held:
        with readable_errors():
            (script, config), recipe = read_options(own, DistillationConfig)
            held.enter_context(own_folder(config))
        report = run(script, config, recipe)
    if following is None:
        return report
    from hf_segkd.commands import distill

    return distill.main([*following, "--student", config.output_dir])


def read_options(argv: list[str], config_class: type) -> tuple[tuple, dict[str, Any]]:
    """Options and recipe; losses without labels, each on the last stage unless the recipe says otherwise.

    Raises:
        ValueError: As [`~hf_segkd.recipe.parse`], or a loss that reads labels or logits.
    """
    classes = (PretrainArguments, config_class)
    _, recipe = parse(classes, argv, BASE)
    losses = {
        name: dict(options) for name, options in recipe.get("losses", {"cosine": {}}).items() if options is not None
    }
    losses.pop("task", None)  # of method recipes: there are no labels
    for name, options in losses.items():
        method = options.get("type", name)
        if method not in LABEL_FREE:
            raise ValueError(
                f"losses.{name}: {method} reads labels or logits, which this stage does not have. Losses of features "
                f"alone: {', '.join(LABEL_FREE)}."
            )
        options.setdefault("layer", LAYER)
    (script, config), recipe = parse(classes, argv, BASE)
    config.losses = losses
    return (script, config), recipe | {"losses": losses}


def run(script: PretrainArguments, config: DistillationConfig, recipe: dict[str, Any]) -> dict:
    """Train and save in a folder that is held for this run; a finished one is passed over with `--resume`."""
    import json

    from hf_segkd.reports.files import write_json
    from hf_segkd.reports.run_folder import begin_run
    from hf_segkd.training.checks import find_checkpoint

    finished = Path(config.output_dir) / FINISHED
    if script.resume and finished.is_file():
        print(f"{config.output_dir} is finished.")
        return json.loads(finished.read_text(encoding="utf-8"))
    with readable_errors():
        with config.main_process_first():
            checkpoint = find_checkpoint(config, script.overwrite, script.resume)
        trainer = build(script, config)
    trainer.accelerator.wait_for_everyone()
    if config.should_save:
        finished.unlink(missing_ok=True)
        begin_run(config.output_dir, recipe, script.overwrite, int(checkpoint.rsplit("-", 1)[1]) if checkpoint else 0)
    with readable_errors(TrainingFault):
        trainer.train(resume_from_checkpoint=checkpoint)
    if trainer.interrupted and trainer.state.global_step < trainer.state.max_steps:
        print(f"Interrupted at step {trainer.state.global_step}; run the same command with --resume to continue.")
        sys.exit(128 + trainer.interrupted)
    report = {
        **{"teacher": script.teacher, "images": len(trainer.train_dataset), "steps": trainer.state.global_step},
        **{"losses": config.losses, "last": trainer.state.log_history[-2:]},
    }
    if config.should_save:
        trainer.save_student()
        dump(recipe, Path(config.output_dir) / "recipe.yaml")
        write_json(trainer.state.log_history, Path(config.output_dir) / "training_log.json")
        write_json(report, finished)
        trainer.clean_up()
        print(
            f"Student without classes: {config.output_dir}. Train it: hf-segkd distill --student {config.output_dir}"
        )
    trainer.end()
    return report


def build(script: PretrainArguments, config: DistillationConfig) -> DistillationTrainer:
    """Load models and images.

    Raises:
        ValueError: For whatever is wrong with them; nothing has been trained by then.
    """
    from accelerate.utils import set_seed

    from dataset_builders.unlabeled import unlabeled_images
    from hf_segkd.data import SegmentationDataset, TrainTransform
    from hf_segkd.data.unlabeled import UnlabeledRows
    from hf_segkd.loading.any_model import load_model
    from hf_segkd.loading.feature_teacher import load_feature_teacher
    from hf_segkd.loading.norm_calibration import calibrate_folded_norms
    from hf_segkd.loading.students import resolve_student
    from hf_segkd.training.trainer import DistillationTrainer

    set_seed(config.seed)
    trust = {"trust_remote_code": script.trust_remote_code}
    spec = resolve_student(script.student)
    new = {index: f"LABEL_{index}" for index in range(script.num_labels)} if isinstance(spec, dict) else None
    student, processor = load_model(spec, new, **trust)
    teacher, teacher_processor = load_feature_teacher(script.teacher, student.config.id2label, **trust)
    transform = TrainTransform(tuple(script.crop_size), tuple(script.scale_range), flip=script.flip)
    rows = UnlabeledRows(unlabeled_images(script.images), transform.ignore_index)
    images = SegmentationDataset(rows, transform, student.config.num_labels, seed=config.seed)
    calibrate_folded_norms(student, processor, images)
    return DistillationTrainer(
        student,
        teacher,
        args=config,
        train_dataset=images,
        processing_class=processor,
        teacher_processing_class=teacher_processor,
    )


def parser() -> argparse.ArgumentParser:
    """The command line for `--help` and completion; [`~hf_segkd.recipe.parse`] reads it."""
    parser = CommandParser("pretrain", __doc__, usage="%(prog)s [METHOD] [options] [-- distill's options]")
    parser.add_argument("recipes", nargs="*", metavar="METHOD", help=f"a recipe of one of {', '.join(LABEL_FREE)}")
    add_fields(parser, PretrainArguments, "models and images")
    hints = get_type_hints(DistillationArguments)
    group = parser.add_argument_group("run")
    for option in fields(DistillationArguments):
        if option.name not in ("eval_steps", "per_device_eval_batch_size", "push_to_hub", "hub_model_id"):
            add_field(group, option, hints[option.name])
    return parser
