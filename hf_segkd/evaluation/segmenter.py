"""Image in, label map out: a model with its image processor and a protocol, as one object."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor

from hf_segkd.evaluation.inference import predict
from hf_segkd.evaluation.settings import InferenceProtocol
from hf_segkd.models import InputNormalization, upsamples_with_align_corners

WHOLE = InferenceProtocol()


class BaseSegmenter(ABC):
    """What is called with images and returns their label maps.

    A subclass sets `id2label` (`dict[int, str]`), the names of its classes.
    """

    id2label: dict[int, str]

    @property
    def num_labels(self) -> int:
        """Number of classes K."""
        return len(self.id2label)

    @abstractmethod
    def predict(self, pixel_values: Tensor, size: tuple[int, int]) -> Tensor:
        """Label maps (B, H, W) at `size` of uint8 RGB images (B, 3, h, w): uint8 up to 256 classes, else int32."""

    def __call__(
        self, images: Image.Image | np.ndarray | Tensor, size: tuple[int, int] | None = None
    ) -> np.ndarray | Tensor:
        """Segment one image, or a batch of one size.

        Args:
            images: A picture; uint8 RGB arrays (H, W, 3) or (B, H, W, 3); or uint8 RGB tensors (3, H, W) or
                (B, 3, H, W), on any device.
            size (`tuple[int, int]`, *optional*): Height and width of the label maps, pixels; the images' by default.

        Returns:
            Class ids (H, W), or (B, H, W) of a batch: a tensor where the segmenter runs for tensors, else an array.

        Raises:
            ValueError: If the images are of another type or shape, or the model does not take their size.
        """
        if isinstance(images, Tensor):
            pixel_values = images
        else:
            array = np.array(images.convert("RGB")) if isinstance(images, Image.Image) else images
            _check_kind(array, channels=-1)
            # Some arrays cannot be shared with torch: those that are read-only or run backwards.
            pixel_values = torch.from_numpy(np.require(array, requirements=["C", "W"])).movedim(-1, -3)
        _check_kind(pixel_values, channels=-3)
        batch = pixel_values if pixel_values.ndim == 4 else pixel_values[None]
        labels = self.predict(batch, tuple(size or batch.shape[-2:]))
        labels = labels if pixel_values.ndim == 4 else labels[0]
        return labels if isinstance(images, Tensor) else labels.cpu().numpy()


class Segmenter(BaseSegmenter):
    """A PyTorch model that segments images under a protocol.

    Args:
        model (`PreTrainedModel`): As [`~hf_segkd.loading.any_model.load_model`] returns it, in any precision, compiled
            or not; is put in eval mode.
        processor (`BaseImageProcessor`): The one it was trained with; its mean, std and channel order are used.
        protocol ([`~hf_segkd.evaluation.settings.InferenceProtocol`], *optional*): The whole image at a single scale
            by default.
        device (`str` or `torch.device`, *optional*): Where to move the model; by default it stays where it is.
    """

    def __init__(
        self,
        model: PreTrainedModel | nn.Module,
        processor: BaseImageProcessor,
        protocol: InferenceProtocol = WHOLE,
        device: str | torch.device | None = None,
    ):
        self.model = model.eval() if device is None else model.to(device).eval()
        self.processor, self.protocol = processor, protocol
        self.id2label = dict(model.config.id2label)
        parameter = next(model.parameters(), torch.empty(0))
        self.device, self.dtype = parameter.device, parameter.dtype
        self.normalization = InputNormalization.from_processor(processor).to(self.device)
        self.align_corners = upsamples_with_align_corners(model.config)

    def normalize(self, images: Tensor) -> Tensor:
        """What the model takes, `pixel_values` (B, 3, H, W), of uint8 RGB images (B, 3, H, W)."""
        return self.normalization(images.to(self.device)).to(self.dtype)

    @torch.inference_mode()
    def predict(self, pixel_values: Tensor, size: tuple[int, int]) -> Tensor:
        # One image at a time: logits of a batch at image size would not fit.
        images = (self.normalize(image[None]) for image in pixel_values)
        return torch.stack([predict(self.model, x, self.protocol, size, self.align_corners) for x in images])


def default_device() -> str:
    """`"cuda"` where there is a GPU, else `"cpu"`."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def _check_kind(images: np.ndarray | Tensor, channels: int) -> None:
    axes = "(H, W, 3) or (B, H, W, 3)" if channels == -1 else "(3, H, W) or (B, 3, H, W)"
    if images.dtype not in (np.uint8, torch.uint8) or images.ndim not in (3, 4) or images.shape[channels] != 3:
        raise ValueError(
            f"Images must be uint8 RGB of shape {axes}, got {images.dtype} of shape {tuple(images.shape)}. "
            "Give them as they are: they are normalized inside."
        )
