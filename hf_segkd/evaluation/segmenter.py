"""Image in, label map out: a model with its image processor and a protocol, as one object."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from functools import cached_property

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor

from hf_segkd.data.pixels import needs_bands
from hf_segkd.evaluation.inference import predict
from hf_segkd.evaluation.large_images import ALWAYS_WHOLE, MEMORY_LIMIT, MemoryEstimate, in_windows, window_side
from hf_segkd.evaluation.settings import InferenceProtocol
from hf_segkd.models import Bands, InputNormalization, input_channels, upsamples_with_align_corners

logger = logging.getLogger(__name__)

WHOLE = InferenceProtocol()


class BaseSegmenter(ABC):
    """Base class: called with images, returns their label maps.

    A subclass sets `id2label` (`dict[int, str]`), the names of its classes, and `bands`, what its images hold where
    they are not 8-bit RGB.
    """

    id2label: dict[int, str]
    bands: Bands | None = None

    @property
    def num_labels(self) -> int:
        """Number of classes K."""
        return len(self.id2label)

    @abstractmethod
    def predict(self, pixel_values: Tensor, size: tuple[int, int]) -> Tensor:
        """Label maps (B, H, W) at `size` of stored images (B, C, h, w): uint8 up to 256 classes, else int32."""

    def __call__(
        self, images: Image.Image | np.ndarray | Tensor, size: tuple[int, int] | None = None
    ) -> np.ndarray | Tensor:
        """Segment one image, or a batch of one size.

        Args:
            images: A picture; uint8 RGB arrays (H, W, 3) or (B, H, W, 3); or uint8 RGB tensors (3, H, W) or
                (B, 3, H, W), on any device. With `bands`, arrays (H, W, C) of their type, or tensors (C, H, W), uint8
                or float32.
            size (`tuple[int, int]`, *optional*): Height and width of the label maps, pixels; the images' by default.

        Returns:
            Class ids (H, W), or (B, H, W) of a batch: a tensor where the segmenter runs for tensors, else an array.

        Raises:
            ValueError: If the images are of another type or shape, or the model does not take their size.
        """
        if isinstance(images, Tensor):
            pixel_values = images
        else:
            array = self._array(images)
            # Some arrays cannot be shared with torch: those that are read-only or run backwards.
            pixel_values = torch.from_numpy(np.require(array, requirements=["C", "W"])).movedim(-1, -3)
        self._check_kind(pixel_values, channels=-3)
        batch = pixel_values if pixel_values.ndim == 4 else pixel_values[None]
        labels = self.predict(batch, tuple(size or batch.shape[-2:]))
        labels = labels if pixel_values.ndim == 4 else labels[0]
        return labels if isinstance(images, Tensor) else labels.cpu().numpy()

    def _array(self, image: Image.Image | np.ndarray) -> np.ndarray:
        if isinstance(image, Image.Image):
            if self.bands is not None:
                raise ValueError(f"The model reads {self.bands}: give an array (H, W, {len(self.bands.names)}).")
            if reason := needs_bands(image):
                raise ValueError(f"The image {reason}. This model reads 8-bit RGB.")
            return np.array(image.convert("RGB"))
        if self.bands is not None and image.dtype == self.bands.dtype != "uint8":
            image = image.astype(np.float32)
        self._check_kind(image, channels=-1)
        return image

    def _check_kind(self, images: np.ndarray | Tensor, channels: int) -> None:
        count = 3 if self.bands is None else len(self.bands.names)
        dtype = "uint8" if self.bands is None or self.bands.dtype == "uint8" else "float32"
        if str(images.dtype).removeprefix("torch.") == dtype and images.ndim in (3, 4):
            if images.shape[channels] == count:
                return
        axes = f"(H, W, {count}) or (B, H, W, {count})" if channels == -1 else f"({count}, H, W) or (B, {count}, H, W)"
        kind = "uint8 RGB" if self.bands is None else str(self.bands)
        raise ValueError(
            f"Images must be {kind} of shape {axes}, got {images.dtype} of shape {tuple(images.shape)}. "
            "Give them as they are: they are normalized inside."
        )


class Segmenter(BaseSegmenter):
    """A PyTorch model that segments images under a protocol.

    Args:
        model (`PreTrainedModel`): As [`~hf_segkd.loading.any_model.load_model`] returns it, in any precision, compiled
            or not; is put in eval mode.
        processor (`BaseImageProcessor`): The one it was trained with; its mean, std and channel order are used.
        protocol ([`~hf_segkd.evaluation.settings.InferenceProtocol`], *optional*): The whole image at a single scale
            by default.
        device (`str` or `torch.device`, *optional*): Where to move the model; by default it stays where it is.
        bands ([`~hf_segkd.models.Bands`], *optional*): What the images hold, where that is more than the model reads:
            a model of 8-bit RGB finds red, green and blue among them. By default what its processor says.
    """

    def __init__(
        self,
        model: PreTrainedModel | nn.Module,
        processor: BaseImageProcessor,
        protocol: InferenceProtocol = WHOLE,
        device: str | torch.device | None = None,
        bands: Bands | None = None,
    ):
        self.bands = bands if bands is not None else Bands.of(processor)
        self.model = model.eval() if device is None else model.to(device).eval()
        self.processor, self.protocol = processor, protocol
        self.id2label = dict(model.config.id2label)
        parameter = next(model.parameters(), torch.empty(0))
        self.device, self.dtype = parameter.device, parameter.dtype
        self.normalization = InputNormalization.from_processor(processor, self.bands).to(self.device)
        self.align_corners = upsamples_with_align_corners(model.config)
        self.windows: dict[tuple[int, int], int | None] = {}

    def normalize(self, images: Tensor) -> Tensor:
        """What the model takes, `pixel_values` (B, C, H, W), of images (B, C, H, W) as they are stored."""
        return self.normalization(images.to(self.device)).to(self.dtype)

    @torch.inference_mode()
    def predict(self, pixel_values: Tensor, size: tuple[int, int]) -> Tensor:
        # One image at a time: logits of a batch at image size would not fit.
        return torch.stack([self._predict_one(image, size) for image in pixel_values])

    def _predict_one(self, image: Tensor, size: tuple[int, int]) -> Tensor:
        side = self.window_side(tuple(image.shape[-2:])) if self.protocol.mode == "auto" else None
        if side is None or size != tuple(image.shape[-2:]):
            return self._run(self.model, self.normalize(image[None]), size)
        return in_windows(lambda x: self._run(self.model, self.normalize(x[None]), tuple(x.shape[-2:])), image, side)

    def _run(self, model: nn.Module, pixel_values: Tensor, size: tuple[int, int]) -> Tensor:
        return predict(model, pixel_values, self.protocol, size, self.align_corners)

    def window_side(self, size: tuple[int, int]) -> int | None:
        """Side of the windows, pixels, in which mode `"auto"` runs images of a size; `None`: it runs them whole."""
        if size[0] * size[1] <= ALWAYS_WHOLE:
            return None
        if size not in self.windows:
            needed = self.memory_estimate(size)
            side = window_side(self.memory_estimate) if needed > MEMORY_LIMIT else None
            self.windows[size] = side
            if side is not None:
                logger.warning(
                    "%d x %d pixels would take %.1f GiB at once: run in windows of %d pixels. --mode whole insists.",
                    *size,
                    needed / 2**30,
                    side,
                )
        return self.windows[size]

    @cached_property
    def memory_estimate(self) -> MemoryEstimate:
        """Bytes that one image of a size takes under the protocol."""
        channels = input_channels(self.model.config)

        def run(model: nn.Module, pixel_values: Tensor) -> Tensor:
            return self._run(model, pixel_values, tuple(pixel_values.shape[-2:]))

        return MemoryEstimate(self.model, self.dtype, run, channels)


def default_device() -> str:
    """`"cuda"` where there is a GPU, else `"cpu"`."""
    return "cuda" if torch.cuda.is_available() else "cpu"
