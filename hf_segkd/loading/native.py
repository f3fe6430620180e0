"""Native models of Transformers, universal ones included, made to return [`SegmentationOutput`] with features."""

from dataclasses import fields
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_segkd.loading.patches import check_input_size, state_maps
from hf_segkd.loading.universal import UNIVERSAL_MODELS, query_logits, semantic_task
from hf_segkd.models import MODELS, SegmentationOutput, input_channels

# The only place where the inside of a native model is named: the module whose output its classifier reads.
FEATURE_MODULES = {
    "beit": "decode_head.fpn_bottleneck",
    "data2vec-vision": "decode_head.fpn_bottleneck",
    "dpt": "head.head.3",
    "mobilenet_v2": "segmentation_head.dropout",
    "mobilevit": "segmentation_head.dropout",
    "mobilevitv2": "segmentation_head.dropout",
    "segformer": "decode_head.activation",  # before the dropout, as CIRKD distills it
    "upernet": "decode_head.fpn_bottleneck",
}


class _OutputHook:
    """Wraps a native model: adapts its inputs, captures one module's output, returns `SegmentationOutput`."""

    def __init__(self, model: PreTrainedModel, module: str | None):
        self.module = module
        self.features: Tensor | None = None
        self.task = semantic_task(model) if model.config.model_type == "oneformer" else None
        self.handles = [
            model.register_forward_pre_hook(self.prepare, with_kwargs=True),
            # Before all other hooks: those of users, and the class map of a teacher, see a SegmentationOutput.
            model.register_forward_hook(self.build, with_kwargs=True, prepend=True),
        ]
        if module is not None:
            self.handles.append(model.get_submodule(module).register_forward_hook(self.keep))

    def prepare(self, model: PreTrainedModel, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        pixel_values = args[0] if args else kwargs["pixel_values"]
        check_input_size(model.config, pixel_values.shape[-2:])
        if self.task is not None:
            kwargs = {"task_inputs": self.task.expand(len(pixel_values), -1).to(pixel_values.device), **kwargs}
        return args, kwargs

    def keep(self, module: nn.Module, inputs: tuple, output: Any) -> None:
        if not isinstance(output, Tensor) or output.ndim != 4:
            raise ValueError(
                f"Module '{self.module}' returns {_describe(output)}, features must be a map of shape (B, C, h, w). "
                "Name a module that returns one, such as the last activation of the head."
            )
        self.features = output

    def build(self, model: PreTrainedModel, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
        features, self.features = self.features, None
        if isinstance(output, tuple):
            return output
        if self.module is not None and features is None:
            raise ValueError(f"Module '{self.module}' did not run in this forward pass. Name one that always does.")
        values = {field.name: output.get(field.name) for field in fields(SegmentationOutput)}
        if self.module is not None:
            values["features"] = features
        if model.config.model_type in UNIVERSAL_MODELS:
            values["logits"] = query_logits(output.class_queries_logits, output.masks_queries_logits)
            # MaskFormer's hidden_states mix encoder and decoder; EoMT has but one transformer.
            values["hidden_states"] = output.get("encoder_hidden_states", output.get("hidden_states"))
        pixel_values = args[0] if args else kwargs["pixel_values"]
        values["hidden_states"] = state_maps(values["hidden_states"], model.config, pixel_values.shape[-2:])
        return SegmentationOutput(**values)

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()


def _describe(value: Any) -> str:
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


def expose_features(model: PreTrainedModel, module: str | None = None) -> PreTrainedModel:
    """Make a segmentation model return [`SegmentationOutput`], with its features.

    Models of this library do so already and are returned as they are. A native model gets forward hooks, which
    change neither its weights nor what it saves. Calling again changes nothing, or moves the features to `module`.

    Args:
        model (`PreTrainedModel`): Any model of `AutoModelForSemanticSegmentation`, or a universal one (EoMT,
            Mask2Former, MaskFormer, OneFormer: [`~hf_segkd.models.query_logits`]), changed in place.
        module (`str`, *optional*): Path of the submodule whose output becomes `features`, as in `named_modules()`.
            Defaults to `FEATURE_MODULES`; a kind of model not in it has `features=None`, which limits distillation to
            logits and hidden states.

    Returns:
        `PreTrainedModel`: The same model. With `return_dict=False` it still returns its own tuple. Token sequences
        become maps in `hidden_states` ([`~hf_segkd.models.state_maps`]).

    Raises:
        ValueError: `module` is not a submodule, or OneFormer has no tokenizer; or, during a forward pass, `module`
            does not return a map or does not run, or the model cannot read images of that size.
    """
    model_type = model.config.model_type
    hook = vars(model).get("_feature_hook")
    if module is None and (hook is not None or type(model.config) in MODELS):
        return model
    path = module or FEATURE_MODULES.get(model_type)
    names = [name for name, _ in model.named_modules() if name]
    if path is not None and path not in names:
        closest = get_close_matches(path, names, n=3, cutoff=0.3)
        raise ValueError(
            f"{type(model).__name__} has no module '{path}' to take features from. "
            f"Closest names: {', '.join(closest) or 'none'}; `model.named_modules()` lists all {len(names)}."
        )
    if hook is not None:
        hook.remove()
    model._feature_hook = _OutputHook(model, path)
    return model


@torch.no_grad()
def output_shapes(model: PreTrainedModel, size: tuple[int, int]) -> dict[str, torch.Size]:
    """Shapes of a model's outputs for one crop, from one forward pass.

    Args:
        model (`PreTrainedModel`): A model that returns [`SegmentationOutput`]; left as it was found, each submodule's
            training mode included.
        size (`tuple[int, int]`): Height and width of the crop, in pixels.

    Returns:
        `dict[str, torch.Size]`: Shapes at batch size 1 under `"logits"`, `"aux_logits"`, `"features"`,
        `"hidden_states.0"`, ...; what the model does not return is absent.
    """
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        crop = torch.zeros(1, input_channels(model.config), *size, device=model.device, dtype=model.dtype)
        output = model(pixel_values=crop, output_hidden_states=True)
    finally:
        for module, mode in training.items():
            module.training = mode
    hidden_states = output.hidden_states or ()
    shapes = {name: value.shape for name, value in output.items() if isinstance(value, Tensor)}
    return shapes | {f"hidden_states.{index}": value.shape for index, value in enumerate(hidden_states)}
