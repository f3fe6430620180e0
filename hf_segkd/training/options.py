"""The options of a training run, without torch: `hf-segkd distill --help` must not wait for it."""

from __future__ import annotations

from dataclasses import Field, dataclass, field, fields
from typing import Literal

from dataset_builders import BUILDERS, DataArguments
from hf_segkd.evaluation.settings import TeacherArguments


def _help(text: str) -> dict[str, str]:
    return {"help": text}


@dataclass(kw_only=True)
class InputArguments(DataArguments):
    """Which data, how its files are checked and its images are augmented."""

    data: str | None = field(
        default=None,
        metadata=_help("Your own folder, the name of a dataset, or a Hub id. Options that you leave out are derived."),
    )
    dataset: str | None = field(
        default=None, metadata=_help(f"Dataset: {', '.join(BUILDERS)}; or a folder or Hub id. Derives no options.")
    )
    data_dir: str | None = field(default=None, metadata=_help("Folder of the raw dataset."))
    streaming: bool = field(
        default=False,
        metadata=_help("Read the training images of a Hub id or parquet folder during the run, without storing them."),
    )
    shuffle_buffer: int = field(
        default=1000, metadata=_help("With --streaming: size of the pool of encoded images from which each is drawn.")
    )
    unlabeled: list[str] | str | None = field(
        default=None,
        metadata=_help("Unlabeled images, which only the teacher labels: folders, quoted patterns, or Hub ids."),
    )
    check_data: Literal["sample", "full", "none"] = field(
        default="sample",
        metadata=_help("Files to check first: 1000 per split (sample), all (full), or none."),
    )
    skip_unreadable: bool = field(default=False, metadata=_help("Leave out training images that cannot be read."))
    cache_dir: str | None = field(
        default=None, metadata=_help("Folder for decoded images, so that each image is decoded only once.")
    )
    crop_size: list[int] = field(
        default_factory=lambda: [512, 1024], metadata=_help("Height and width of training crops, in pixels.")
    )
    scale_range: list[float] = field(
        default_factory=lambda: [0.5, 2.0], metadata=_help("Smallest and largest random scale of training images.")
    )
    flip: float = field(default=0.5, metadata=_help("Probability of flipping a training image horizontally."))
    interpolation: Literal["antialias", "opencv"] = field(
        default="antialias",
        metadata=_help("How crops are resized: with antialiasing, or as OpenCV does (the original code)."),
    )
    cat_max_ratio: float = field(
        default=1.0,
        metadata=_help("Redraw a crop if one class covers at least this fraction of its labeled pixels; 1 disables."),
    )
    jitter: dict | str | None = field(
        default=None,
        metadata=_help("Random color changes: '{brightness: 0.5, contrast: 0.5, saturation: 0.5, hue: 0.05}'."),
    )

    def __post_init__(self):
        if (self.data is None) == (self.dataset is None):
            raise ValueError("Give --data FOLDER (own photos, options derived) or --dataset NAME, one of the two.")


@dataclass(kw_only=True)
class ScriptArguments(InputArguments, TeacherArguments):
    """What is trained on what; the training itself is set by [`~hf_segkd.training.config.DistillationConfig`]."""

    teacher_features: str | None = field(
        default=None, metadata=_help("Submodule of the teacher whose output is distilled as features.")
    )
    teacher_cache: str | None = field(
        default=None,
        metadata=_help("Folder for the teacher's predictions on all training images: computed once, then reused."),
    )
    cache_only: bool = field(default=False, metadata=_help("Fill teacher_cache and stop."))
    student: dict | str = field(
        metadata=_help(
            "Student: name of a new one (see hf-segkd recipes), folder, Hub id, .pth, '{model_type: espnet, ...}'."
        )
    )
    trust_remote_code: bool = field(
        default=False, metadata=_help("Run the Python code that a model from the Hub brings.")
    )
    license: str | None = field(
        default=None, metadata=_help("License for the student's model card, as the Hub spells it: apache-2.0, ...")
    )
    overwrite: bool = field(default=False, metadata=_help("Replace an earlier run in output_dir."))
    resume: bool = field(default=False, metadata=_help("Continue from the newest complete checkpoint in output_dir."))
    resume_with_changes: bool = field(
        default=False, metadata=_help("Resume even though the recipe differs. The card then shows both recipes.")
    )


@dataclass
class DistillationArguments:
    """Our own training options, and those of `transformers.TrainingArguments` that most runs set.

    The latter are declared again for the sake of `--help`, with the defaults that segmentation runs need.
    """

    teacher_dtype: Literal["float32", "bfloat16", "float16"] = field(
        default="float32", metadata=_help("Precision of the teacher's weights.")
    )
    unlabeled_ratio: float | None = field(
        default=None,
        metadata=_help("Unlabeled images per labeled one in each batch (default: all images shuffled together)."),
    )
    ema_decay: float | None = field(
        default=None, metadata=_help("Evaluate and save a moving average (EMA) of the student's weights, e.g. 0.999.")
    )
    freeze_batch_norm: bool = field(
        default=False,
        metadata=_help("Train a finished student a little longer with the batch-norm statistics that it has."),
    )
    quantization_aware: bool = field(
        default=False,
        metadata=_help(
            "Train a finished student a little longer on weights and maps rounded as its int8 file will hold them."
        ),
    )
    losses: dict | str | None = field(
        default_factory=lambda: {"task": {}},
        metadata=_help("Losses by name, with their options: '{task: {}, kd: {weight: 1, temperature: 4}}'."),
    )
    output_dir: str | None = field(
        default=None, metadata=_help("Folder for the student, its checkpoints, metrics and figures.")
    )
    max_steps: int = field(default=-1, metadata=_help("Optimizer steps. If positive, num_train_epochs is ignored."))
    num_train_epochs: float = field(default=3.0, metadata=_help("Passes over the training images."))
    learning_rate: float = field(default=5e-5, metadata=_help("Learning rate at the start."))
    weight_decay: float = field(default=0.0, metadata=_help("Weight decay of the optimizer."))
    per_device_train_batch_size: int = field(default=8, metadata=_help("Training images per device and forward pass."))
    gradient_accumulation_steps: int = field(
        default=1, metadata=_help("Forward passes per optimizer step; their gradients are accumulated.")
    )
    total_batch_size: int | None = field(
        default=None,
        metadata=_help(
            "Images per optimizer step that the learning rate was tuned for. Another number gives a warning."
        ),
    )
    per_device_eval_batch_size: int = field(default=1, metadata=_help("Evaluation images per device at a time."))
    eval_steps: float | None = field(
        default=0.1, metadata=_help("Steps between evaluations, or a fraction of the run.")
    )
    save_steps: float = field(default=0.1, metadata=_help("Steps between checkpoints, or a fraction of the run."))
    logging_steps: float = field(default=50, metadata=_help("Steps between log lines, or a fraction of the run."))
    keep_checkpoints: bool = field(
        default=False, metadata=_help("Keep the checkpoint-* folders when the run has finished.")
    )
    seed: int = field(default=42, metadata=_help("Seed of weights, image order, augmentation and losses."))
    bf16: bool = field(default=False, metadata=_help("Compute in bfloat16 where that is safe (mixed precision)."))
    channels_last: bool = field(
        default=False,
        metadata=_help("Store maps with the channels last: faster convolutions on a GPU, and on a CPU with bf16."),
    )
    use_cpu: bool = field(default=False, metadata=_help("Train on the CPU even if there is a GPU."))
    dataloader_num_workers: int = field(default=0, metadata=_help("Processes that read and augment images."))
    push_to_hub: bool = field(default=False, metadata=_help("Upload the finished run to the Hub."))
    hub_model_id: str | None = field(
        default=None, metadata=_help("Repository for the upload: OWNER/NAME (default: the name of output_dir).")
    )


_GROUPS = {
    "teacher_dtype": "teacher",
    "unlabeled_ratio": "data",
    "cache_only": "teacher",
    "ema_decay": "student",
    "freeze_batch_norm": "student",
    "quantization_aware": "student",
    "losses": "losses",
}


def option_groups() -> dict[str, list[Field]]:
    """The options by the title under which `--help` shows them: data, teacher, student, losses, run."""
    groups: dict[str, list[Field]] = {"data": [], "teacher": [], "student": [], "losses": [], "run": []}
    data = {option.name for option in fields(InputArguments)}
    for option in (*fields(ScriptArguments), *fields(DistillationArguments)):
        title = "data" if option.name in data else option.name.split("_")[0]
        groups[_GROUPS.get(option.name, title if title in groups else "run")].append(option)
    first = ("data", "dataset", "data_dir")
    groups["data"].sort(key=lambda option: first.index(option.name) if option.name in first else len(first))
    return groups
