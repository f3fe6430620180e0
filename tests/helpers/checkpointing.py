"""Activation checkpointing under the name that the installed transformers has for it."""


def enable_checkpointing(model, *options) -> None:
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable(*options)
    else:
        model.gradient_checkpointing_enable(*options)
