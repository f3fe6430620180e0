"""What tests name inside transformers, under the names of the installed release."""

from importlib import import_module

from torch import nn


def pil_processor(model: str, name: str) -> type:
    """The class `<name>ImageProcessorPil` of a model; before 5.4 it has the name without `Pil`."""
    folder = f"transformers.models.{model}"
    try:
        module = import_module(f"{folder}.image_processing_pil_{model}")
    except ModuleNotFoundError:
        return getattr(import_module(f"{folder}.image_processing_{model}"), f"{name}ImageProcessor")
    return getattr(module, f"{name}ImageProcessorPil")


def module_named(model: nn.Module, ending: str) -> str:
    """Path of the first submodule whose name ends so: releases nest it differently."""
    return next(name for name, _ in model.named_modules() if name.endswith(ending))
