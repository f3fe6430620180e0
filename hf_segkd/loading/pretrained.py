"""Saved models of folders and the Hub, new models, and the image processor of either."""

from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING,
    AutoConfig,
    AutoImageProcessor,
    AutoModelForSemanticSegmentation,
    AutoModelForUniversalSegmentation,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.image_processing_utils import BaseImageProcessor
from transformers.models.auto.modeling_auto import MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES
from transformers.utils import IMAGE_PROCESSOR_NAME, PROCESSOR_NAME, cached_file

from hf_segkd.loading.class_map import keep_classes
from hf_segkd.loading.universal import UNIVERSAL_MODELS
from hf_segkd.models import SHORT_NAMES, InputNormalization, default_processor, resolve_backbone
from hf_segkd.models.compat import BackboneConfigMixin, field_names
from hf_segkd.values import did_you_mean


def pretrained_model(spec: str, id2label: dict[int, str] | None = None, **hub_kwargs: Any) -> PreTrainedModel:
    """A saved model of a folder or Hub id; see [`~hf_segkd.loading.any_model.load_model`], which calls this."""
    folder = Path(spec)
    if not folder.is_dir() and (folder.is_absolute() or spec.startswith(".") or spec.count("/") > 1):
        raise _not_found(spec, "there is no such folder")  # a Hub id never looks like this: no need to ask the Hub
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise _not_found(spec, "the folder has no config.json")
    hub_kwargs = {"trust_remote_code": False} | hub_kwargs
    try:
        config = AutoConfig.from_pretrained(spec, **hub_kwargs)
        _check_task(spec, config)
        universal = config.model_type in UNIVERSAL_MODELS
        auto_class = AutoModelForUniversalSegmentation if universal else AutoModelForSemanticSegmentation
        model, report = auto_class.from_pretrained(
            spec, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True, **hub_kwargs
        )
    except _OtherTask:
        raise
    except OSError as error:
        raise _not_found(spec, str(error).splitlines()[0]) from error
    except ImportError as error:  # scipy for the universal models, timm for some backbones
        raise ValueError(f"The model at '{spec}' needs a package that is missing: {str(error).strip()}") from error
    except SafetensorError as error:
        raise ValueError(f"The weights in '{spec}' are damaged ({error}). Save or download them again.") from error
    except Exception as error:  # transformers trusts what it reads: a wrong type there ends in any of them
        if "trust_remote_code" in str(error):
            raise ValueError(
                f"The model at '{spec}' brings Python code of its own, which runs with your rights. Read it, and if "
                "you trust it, pass --trust_remote_code (in Python: trust_remote_code=True)."
            ) from None
        raise _malformed(spec, "its config.json or its list of weights", error) from error
    if folder.is_dir():
        _check_types(folder, model)
    mismatched = [key for key, *_ in report["mismatched_keys"]]
    if report["missing_keys"] or mismatched:
        raise ValueError(
            f"The weights in '{spec}' do not fill the model its config.json describes. "
            f"Missing: {_list(report['missing_keys'])}. Of another shape: {_list(mismatched)}. "
            "Use a folder saved by save_pretrained, with the config.json it was saved with."
        )
    if id2label is not None:
        keep_classes(model, id2label)
    if id2label is not None and len(id2label) != model.config.num_labels:
        raise ValueError(
            f"The model at '{spec}' has {model.config.num_labels} classes, the dataset {len(id2label)}. "
            "Use a model trained on the same dataset."
        )
    return model


def _malformed(spec: str, what: str, error: Exception) -> ValueError:
    reason = " ".join(str(error).split())[:300]
    return ValueError(
        f"The model at '{spec}' cannot be loaded: {what} is malformed ({type(error).__name__}: {reason}). Use a "
        "folder saved by save_pretrained, or download it again."
    )


def _check_types(folder: Path, model: PreTrainedModel) -> None:
    """Refuse weights stored as integers where the model has real numbers: they would be taken at face value."""
    real = {name for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
    for file in folder.glob("model*.safetensors"):
        with safe_open(file, framework="pt") as stored:
            types = {name: stored.get_slice(name).get_dtype() for name in real & set(stored.keys())}
        wrong = [name for name, dtype in types.items() if dtype[0] not in "FB" or dtype == "BOOL"]
        if wrong:
            raise ValueError(
                f"The weights in '{folder}' are stored as {types[wrong[0]]}, not as real numbers: {_list(wrong)}. "
                "Quantized weights cannot be loaded here: use the folder that they were made from."
            )


class _OtherTask(ValueError):
    """The model is for another task than segmentation."""


def _check_task(spec: str, config: PreTrainedConfig) -> None:
    """Refuse models of other tasks; transformers would fill a segmentation model's head with random numbers."""
    architecture = (config.architectures or [type(config).__name__])[0]
    advice = (
        "Give a semantic segmentation model. As the start of a new student it may serve: "
        f"'{{model_type: ..., backbone_weights: {spec}}}'."
    )
    if architecture.endswith("ForImageClassification"):
        raise _OtherTask(
            f"'{spec}' is an image classifier ({architecture}): it tells what is in an image, not where. {advice}"
        )
    mapped = type(config) in MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING or config.model_type in UNIVERSAL_MODELS
    if not mapped and "auto_map" not in vars(config):
        raise _OtherTask(f"'{spec}' is no segmentation model but a {architecture}. {advice}")


def _not_found(spec: str, reason: str) -> ValueError:
    return ValueError(
        f"No model found at '{spec}' ({reason}). Looked for a folder with config.json and model.safetensors, then for "
        "a Hub id. Check the path, or the id and the connection."
    )


def new_model(spec: dict[str, Any], id2label: dict[int, str] | None = None) -> PreTrainedModel:
    """A model with random weights; see [`~hf_segkd.loading.any_model.load_model`], which calls this."""
    options = dict(spec)
    model_type = _resolve_model_type(options.pop("model_type", None))
    config_class = CONFIG_MAPPING[model_type]
    _check_fields(config_class, options)
    backbone = options.get("backbone", options.get("backbone_config"))
    if isinstance(backbone, dict):
        backbone_class = type(resolve_backbone({"model_type": backbone.get("model_type")}))
        _check_fields(backbone_class, {name: value for name, value in backbone.items() if name != "model_type"})
    if id2label is not None:
        if options.get("num_labels", len(id2label)) != len(id2label):
            raise ValueError(
                f"num_labels is {options['num_labels']} but the dataset has {len(id2label)} classes. Leave it out."
            )
        options |= {"id2label": id2label, "label2id": {name: index for index, name in id2label.items()}}
    try:
        config = AutoConfig.for_model(model_type, **options)
    except StrictDataclassError as error:
        raise ValueError(f"Wrong type in the fields of '{model_type}': {' '.join(str(error).split())}") from error
    return AutoModelForSemanticSegmentation.from_config(config)


def _check_fields(config_class: type[PreTrainedConfig], options: dict[str, Any]) -> None:
    """A misspelled field would be kept as an attribute that nothing reads."""
    known = field_names(config_class) | set(config_class.attribute_map) | {"num_labels"}
    # No field of transformers' own models, but kept in config.json; everything here upsamples by it.
    known |= {"align_corners"}
    if not isinstance(options.get("align_corners", False), bool):
        raise ValueError(f"align_corners must be true or false, got {options['align_corners']!r}.")
    if issubclass(config_class, BackboneConfigMixin):
        known |= {"out_features", "out_indices"}
    unknown = sorted(set(options) - known)
    if unknown:
        raise ValueError(
            f"{config_class.__name__} has no field {_list(unknown)}.{did_you_mean(unknown[0], known, cutoff=0.0)} "
            f"Its fields are the arguments of {config_class.__name__}."
        )


def _resolve_model_type(name: str | None) -> str:
    for candidate in (SHORT_NAMES.get(name), name):
        if candidate in CONFIG_MAPPING and CONFIG_MAPPING[candidate] in MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING:
            return candidate
    names = list(SHORT_NAMES)
    names += sorted(set(MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES) - set(names) - set(SHORT_NAMES.values()))
    if name is None:
        raise ValueError(f"A new model needs a model_type, one of {', '.join(names)}.")
    hint = did_you_mean(name, names, cutoff=0.0)
    raise ValueError(f"Unknown model_type '{name}'.{hint} Known: {', '.join(names)}.")


def _list(keys: Any, limit: int = 8) -> str:
    keys = sorted(keys)
    more = f" and {len(keys) - limit} more" if len(keys) > limit else ""
    return (", ".join(keys[:limit]) or "none") + more


def processor_of(model: PreTrainedModel, **hub_kwargs: Any) -> BaseImageProcessor:
    """The image processor saved beside a model, or the one that its kind of model was published with.

    Args:
        model (`PreTrainedModel`): Remembers where it came from (`name_or_path`).
        hub_kwargs: Passed to `from_pretrained`: `revision`, `token`, ...; `trust_remote_code` is `False` unless given.

    Returns:
        `BaseImageProcessor`: The saved one; without, [`default_processor`] of the model's config.

    Raises:
        ValueError: The place cannot be read any more.
    """
    place = model.name_or_path
    trust = {"trust_remote_code": hub_kwargs.pop("trust_remote_code", False)}
    # OneFormer's is part of a processor with a tokenizer, which is saved under the other name.
    names = (IMAGE_PROCESSOR_NAME, PROCESSOR_NAME) if place else ()
    try:
        if any(cached_file(place, x, _raise_exceptions_for_missing_entries=False, **hub_kwargs) for x in names):
            processor = AutoImageProcessor.from_pretrained(place, **trust, **hub_kwargs)
            InputNormalization.from_processor(processor)
            return processor
    except OSError as error:
        raise _not_found(place, str(error).splitlines()[0]) from error
    except Exception as error:  # as for the model
        if "trust_remote_code" in str(error):
            raise
        raise _malformed(place, "its preprocessor_config.json", error) from error
    return default_processor(model.config)
