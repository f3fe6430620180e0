"""Training arguments of a distillation run."""

import os
import sys
from dataclasses import dataclass, field
from typing import cast, get_args, get_type_hints

import torch
from torch import nn
from transformers import Trainer, TrainingArguments, get_scheduler

from hf_segkd.losses import LOSSES, check_losses
from hf_segkd.training.options import DistillationArguments
from hf_segkd.values import check_choice

METRICS = ("mean_iou", "mean_dice", "mean_iou_all", "mean_accuracy", "overall_accuracy", "frequency_weighted_iou")
DTYPES = get_args(get_type_hints(DistillationArguments)["teacher_dtype"])
# Smallest values of numbers that transformers itself stumbles over only later.
LOWEST = {
    "per_device_train_batch_size": 1,
    "per_device_eval_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "total_batch_size": 1,
    "save_total_limit": 1,
    "dataloader_num_workers": 0,
    "learning_rate": 0,
    "weight_decay": 0,
    "max_grad_norm": 0,
    "logging_steps": 0,
}


@dataclass
class DistillationConfig(DistillationArguments, TrainingArguments):
    """[`~transformers.TrainingArguments`] plus the losses, with the defaults that segmentation runs need.

    Args:
        losses (`dict`, *optional*, defaults to `{"task": {}}`): Name -> options, see
            [`~hf_segkd.losses.check_losses`]. The default is plain training. A method set to `None` is left out.
        keep_checkpoints (`bool`, *optional*, defaults to `False`): Keep `checkpoint-*` after a finished run. By
            default they go: the final folder holds the best student and no training state.
        ema_decay (`float`, *optional*): Between 0 and 1, both excluded: evaluate and save a moving average of the
            student's weights, see [`~hf_segkd.training.callbacks.ModelEMA`]. `None` does without.
        freeze_batch_norm (`bool`, *optional*, defaults to `False`): For a student that is trained already: its batch
            norms normalize with their running statistics, as in evaluation, and keep them. Scale and shift are
            trained.
        quantization_aware (`bool`, *optional*, defaults to `False`): For a student that is trained already: freeze
            its batch norms, and let its convolutions and linear layers compute on rounded values, see
            [`~hf_segkd.training.int8_rounding.Int8Rounding`]. What is evaluated and saved is in floating point, to
            be exported in int8.
        teacher_dtype (`str`, *optional*, defaults to `"float32"`): Or `"bfloat16"`, `"float16"`: of the teacher's
            weights, which halves them. With `bf16` its convolutions compute in bfloat16 anyway.
        channels_last (`bool`, *optional*, defaults to `False`): Weights and maps of student and teacher in the memory
            format `torch.channels_last`. The numbers stay the same to rounding.
        total_batch_size (`int`, *optional*): Images in one optimizer step, of all processes and accumulated steps
            together, that the learning rate was chosen for. A run with another number is warned, not changed.

    Raises:
        ValueError: On unknown losses, options or weights, a number out of range, options that the optimizer or the
            schedule refuses, an unknown `metric_for_best_model`, and FSDP or DeepSpeed.

    Defaults that differ from `TrainingArguments`: `remove_unused_columns=False` (images are columns),
    `dataloader_drop_last=True`, SGD with momentum 0.9, the polynomial schedule of power 0.9 down to 0
    (`lr_scheduler_kwargs.lr_end` for another end), no gradient clipping (all four originals), 10 evaluations per run,
    and the checkpoint with the best mIoU is the result.
    """

    # Transformers' own option, which it called gradient_checkpointing in earlier releases.
    activation_checkpointing: bool | None = field(default=None, metadata={"help": "Compute twice, keep less memory."})

    remove_unused_columns: bool = False
    dataloader_drop_last: bool = True
    ddp_broadcast_buffers: bool | None = False
    ddp_find_unused_parameters: bool | None = False
    optim: str = "sgd"
    optim_args: str | None = None
    lr_scheduler_type: str = "polynomial"
    lr_scheduler_kwargs: dict | str | None = None
    max_grad_norm: float = 0.0
    eval_strategy: str = "steps"
    save_strategy: str = "steps"
    save_total_limit: int | None = 2
    load_best_model_at_end: bool = True
    metric_for_best_model: str | None = "mean_iou"
    greater_is_better: bool | None = True
    batch_eval_metrics: bool = True
    logging_nan_inf_filter: bool = False

    _VALID_DICT_FIELDS = [*TrainingArguments._VALID_DICT_FIELDS, "losses"]

    def __post_init__(self):
        if self.optim == "sgd" and self.optim_args is None:
            self.optim_args = "momentum=0.9"
        if self.lr_scheduler_type == "polynomial" and not isinstance(self.lr_scheduler_kwargs, str):
            self.lr_scheduler_kwargs = {"power": 0.9, "lr_end": 0.0} | (self.lr_scheduler_kwargs or {})
        self.label_names = self.label_names or ["labels"]
        if self.disable_tqdm is None:  # a bar in a log file is a megabyte of carriage returns
            self.disable_tqdm = not sys.stderr.isatty()
        if not torch.cuda.is_available():
            self.dataloader_pin_memory = False
        elif self.accelerator_config is None:  # images travel to the GPU while it computes
            self.accelerator_config = {"non_blocking": self.dataloader_pin_memory}
        if self.activation_checkpointing and not hasattr(TrainingArguments, "activation_checkpointing"):
            self.gradient_checkpointing = True
        _check_numbers(self)
        _refuse_sharding(self)
        super().__post_init__()
        self.losses = _without_nulls(self.losses)
        check_losses(self.losses)
        _check_optimizer(self)


def _check_numbers(args: DistillationConfig) -> None:
    for name, lowest in LOWEST.items():
        value = getattr(args, name)
        if value is not None and value < lowest:
            raise ValueError(f"{name} must be at least {lowest}, got {value}.")
    if args.max_steps == 0 or (args.max_steps < 0 and args.num_train_epochs <= 0):
        raise ValueError(
            f"max_steps {args.max_steps} and num_train_epochs {args.num_train_epochs} train nothing. "
            "Give one of them above 0."
        )
    if args.ema_decay is not None and not 0 < args.ema_decay < 1:
        raise ValueError(f"ema_decay must lie between 0 and 1, both excluded, got {args.ema_decay}.")
    check_choice("teacher_dtype", args.teacher_dtype, DTYPES)
    if args.metric_for_best_model is not None:
        check_choice("metric_for_best_model", args.metric_for_best_model.removeprefix("eval_"), METRICS)
    if args.neftune_noise_alpha is not None:
        raise ValueError("neftune_noise_alpha adds noise to embeddings of words, which images have not. Leave it out.")


def _refuse_sharding(args: DistillationConfig) -> None:
    flags = {"FSDP": (args.fsdp, "ACCELERATE_USE_FSDP"), "DeepSpeed": (args.deepspeed, "ACCELERATE_USE_DEEPSPEED")}
    for name, (given, variable) in flags.items():
        if given or os.environ.get(variable, "false").lower() == "true":
            raise ValueError(
                f"{name} splits a model that is too large for one device. Students are small, and some losses bring "
                "networks and optimizers of their own: train with DDP (torchrun or accelerate launch --multi_gpu). "
                "If memory is short, see docs/scaling.md."
            )


def _check_optimizer(args: DistillationConfig) -> None:
    """Make optimizer and schedule once, for a single number: what they refuse should not wait for the first step."""
    try:
        optimizer_class, options = Trainer.get_optimizer_cls_and_kwargs(args)
        optimizer = optimizer_class([nn.Parameter(torch.zeros(1))], **options)
        schedule_options = cast(dict | None, args.lr_scheduler_kwargs)  # text was parsed by TrainingArguments
        get_scheduler(args.lr_scheduler_type, optimizer, 1, 10, schedule_options)
    except (TypeError, ValueError, ImportError, AttributeError, RuntimeError) as error:
        raise ValueError(
            f"optim {args.optim} (optim_args {args.optim_args}) with lr_scheduler_type {args.lr_scheduler_type} "
            f"(lr_scheduler_kwargs {args.lr_scheduler_kwargs}) cannot be made: {error}"
        ) from None


def _without_nulls(losses: dict | str | None) -> dict:
    """Leave out the methods that a recipe has set to null; a misspelled one would go on training unnoticed."""
    if isinstance(losses, str):
        raise ValueError(f"losses must be a mapping of methods, `{{kd: {{weight: 1}}}}`, got {losses!r}.")
    present = {name: options for name, options in (losses or {}).items() if options is not None}
    for name in losses or {}:
        if name not in present and name not in LOSSES:
            raise ValueError(
                f"losses.{name} is null, which takes a loss out, but there is no such loss. "
                f"Those in the recipe: {', '.join(present) or 'none'}."
            )
    return present
