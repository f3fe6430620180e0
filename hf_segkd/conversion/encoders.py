"""The encoder of a segmentation model, as the start of another one's backbone."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoConfig, AutoImageProcessor, AutoModelForSemanticSegmentation, PreTrainedModel
from transformers.utils import IMAGE_PROCESSOR_NAME, cached_file

from hf_segkd.conversion import FAMILIES, convert, load_original, recognize
from hf_segkd.conversion.family import StateDict
from hf_segkd.models import PROCESSOR_FIELDS, default_processor


class Encoder(NamedTuple):
    """What a segmentation model offers to a new student's backbone.

    Args:
        model_type (`str`): Of its encoder's config.
        weights (`dict[str, torch.Tensor]`): Of its encoder, by the encoder's own names.
        dropped (`list[str]`): Names of all its other tensors.
        processor (`dict[str, Any]`): Arguments of the image processor that it was trained with.
    """

    model_type: str
    weights: StateDict
    dropped: list[str]
    processor: dict[str, Any]

    @property
    def order(self) -> str:
        """Order of channels that the weights expect, `"rgb"` or `"bgr"`."""
        return "bgr" if self.processor.get("do_flip_channel_order") else "rgb"

    def processor_for(self, wanted: str) -> dict[str, Any]:
        """The processor's arguments once the weights read images in that order."""
        if wanted == self.order:
            return self.processor
        names = [name for name in ("image_mean", "image_std") if name in self.processor]
        turned = {name: self.processor[name][::-1] for name in names}
        return self.processor | turned | {"do_flip_channel_order": wanted == "bgr"}


def segmentation_encoder(spec: str) -> Encoder | None:
    """Read the encoder of a segmentation model.

    Args:
        spec (`str`): Original `.pth` file, folder or Hub id.

    Returns:
        [`Encoder`]: `None` where `spec` holds no segmentation model.

    Raises:
        ValueError: There is nothing at `spec`, or its weights do not fill the model that its config describes.
    """
    if Path(spec).is_file():
        state_dict = load_original(spec)
        if not any(family.matches(state_dict) for family in FAMILIES):
            return None
        return _split(convert(state_dict), recognize(state_dict).processor)
    try:
        config = AutoConfig.from_pretrained(spec)
    except OSError as error:
        raise nothing_at(spec, error) from error
    if not (config.architectures or [""])[0].endswith("ForSemanticSegmentation"):
        return None
    options = {"dtype": torch.float32, "output_loading_info": True}
    model, report = AutoModelForSemanticSegmentation.from_pretrained(spec, **options)
    if report["missing_keys"]:
        raise ValueError(f"The weights in '{spec}' do not fill the model that its config.json describes.")
    saved = cached_file(spec, IMAGE_PROCESSOR_NAME, _raise_exceptions_for_missing_entries=False)
    processor = AutoImageProcessor.from_pretrained(spec) if saved else default_processor(config)
    known = vars(processor)
    return _split(model, {name: known[name] for name in PROCESSOR_FIELDS if known.get(name) is not None})


def _split(model: PreTrainedModel, processor: dict[str, Any]) -> Encoder:
    children = dict(model.named_children())
    name = "backbone" if "backbone" in children else model.base_model_prefix
    if name not in children:
        raise ValueError(f"{type(model).__name__} has no encoder that fits a backbone. Give another model's weights.")
    dropped = [key for key in model.state_dict() if not key.startswith(f"{name}.")]
    return Encoder(children[name].config.model_type, children[name].state_dict(), dropped, processor)


def nothing_at(spec: str, error: OSError) -> ValueError:
    """The message for a folder or Hub id without weights."""
    return ValueError(
        f"No backbone weights at '{spec}' ({str(error).splitlines()[0]}). Give an original .pth file, or a folder or "
        "Hub id of a transformers checkpoint."
    )
