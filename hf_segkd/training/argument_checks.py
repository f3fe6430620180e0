"""Training arguments that cannot work, or that would do something else than they say: refused before any compute."""

from __future__ import annotations

import os

import torch
from transformers import PreTrainedModel, TrainingArguments
from transformers.integrations import get_reporting_integration_callbacks

from .bfloat16 import wrong_convolution

# Fields of TrainingArguments: the only value that works here, and what is wrong with others.
FIXED = {
    "label_smoothing_factor": (0.0, "it belongs to Trainer's own loss, which is not used here"),
    "batch_eval_metrics": (True, "scores are counted batch by batch, because whole logits would not fit in memory"),
    "prediction_loss_only": (False, "it would leave the scores out"),
    "label_names": (["labels"], "the datasets call them labels"),
    "remove_unused_columns": (False, "it would take the images away"),
    "fp16_full_eval": (False, "it would turn the trained student itself into float16; use fp16 or bf16"),
    "bf16_full_eval": (False, "it would turn the trained student itself into bfloat16; use bf16"),
    "auto_find_batch_size": (False, "it would train with other batches than the recipe says"),
    "save_only_model": (False, "--resume could not continue from such checkpoints"),
    "enable_jit_checkpoint": (False, "a signal saves a checkpoint already"),
    "greater_is_better": (True, "all scores here are better when greater; the worst student would be the result"),
    "resume_from_checkpoint": (None, "it would skip the comparison with the run; use --resume"),
    "ignore_data_skip": (False, "it would show the same images twice after --resume"),
    "eval_do_concat_batches": (True, "scores are counted from whole batches"),
    "use_liger_kernel": (False, "it is for language models"),
}
# Networks whose gradients inductor makes zero without an error, as the test of compiled models shows.
NOT_COMPILED = ("segkd_espnetv2",)


def check_processes(args: TrainingArguments) -> None:
    """Refuse a launch in which several processes each believe that they are alone.

    Raises:
        ValueError: If the launcher has started more processes than have found each other.
    """
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched > 1 and args.world_size == 1:
        raise ValueError(
            f"{launched} processes were launched, but each one would train alone, all into the same folder. On a CPU "
            "add --use_cpu; otherwise launch one process."
        )


def check_arguments(args: TrainingArguments, student: PreTrainedModel) -> None:
    """Refuse what cannot work with these arguments and this student.

    Raises:
        ValueError: Names the argument, its value, and what to give instead.
    """
    for name, (wanted, why) in FIXED.items():
        value = getattr(args, name)
        if value != wanted and not (value is None and wanted is False):
            raise ValueError(f"{name}: {value} cannot be used: {why}. Leave it out.")
    if args.torch_compile and student.config.model_type in NOT_COMPILED:
        raise ValueError(
            f"torch_compile: {type(student).__name__} cannot be compiled: its gradients come out as zero, without an "
            "error. Leave torch_compile out."
        )
    if args.dataloader_persistent_workers and args.dataloader_num_workers == 0:
        raise ValueError(
            "dataloader_persistent_workers needs processes that read images. "
            "Set dataloader_num_workers to 1 or more, or leave it out."
        )
    if args.fp16 and args.device.type == "cpu":
        raise ValueError("fp16 needs a GPU: on a CPU the run would be in float32. Leave it out, or use bf16.")
    if args.bf16 and args.device.type == "cpu":
        _check_bf16_on_cpu(student)
    if args.quantization_aware and args.activation_checkpointing:
        raise ValueError(
            "quantization_aware with activation_checkpointing: maps would be computed a second time without rounding. "
            "Leave one of them out."
        )
    if args.activation_checkpointing and not student.supports_gradient_checkpointing:
        raise ValueError(
            f"activation_checkpointing: {type(student).__name__} cannot do it. Leave it out; a smaller "
            "per_device_train_batch_size or crop_size needs less memory too."
        )
    if args.learning_rate == 0:
        raise ValueError("learning_rate 0 trains nothing. Give a value above 0.")
    if student.config.num_labels < 2:
        raise ValueError(
            "The student has one class: its loss is always 0 and its score always 100 %. "
            "Give a second class, such as background."
        )
    _check_reporting(args)


def check_weights(weights: dict[str, float | dict[str, float]]) -> None:
    """Refuse losses that all have weight 0.

    Raises:
        ValueError: Names them.
    """
    if all(weight == 0 for weight in weights.values()):
        raise ValueError(f"All losses ({', '.join(weights)}) have weight 0: nothing would be trained.")


def _check_bf16_on_cpu(student: PreTrainedModel) -> None:
    if name := wrong_convolution(student):
        convolution = student.get_submodule(name)
        raise ValueError(
            f"bf16: on this CPU, torch {torch.__version__} computes wrong gradients in bfloat16 for a dilated "
            f"convolution of {type(student).__name__}, {name} ({convolution}). Leave bf16 out."
        )


def _check_reporting(args: TrainingArguments) -> None:
    for name in args.report_to:
        try:
            for callback in get_reporting_integration_callbacks([name]):
                callback()
        except (RuntimeError, ImportError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"report_to: {name} cannot be used: {reason} Install it, or leave it out.") from None
