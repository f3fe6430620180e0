"""A model and its image processor as one function from the bytes of images to class ids."""

from __future__ import annotations

import numpy as np
import torch
from transformers import PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor

from hf_segkd.evaluation.inference import Protocol, predict
from hf_segkd.models import InputNormalization, upsamples_with_align_corners


class TorchSegmenter:
    """Class ids (B, H, W) of uint8 RGB images (B, H, W, 3), as an exported file gives them.

    Args:
        model (`PreTrainedModel`): As [`~hf_segkd.models.load_segmenter`] returns it; is put in eval mode and run where
            it is.
        processor (`BaseImageProcessor`): The one it was trained with; its mean, std and channel order are used.
    """

    def __init__(self, model: PreTrainedModel, processor: BaseImageProcessor):
        self.model = model.eval()
        self.normalization = InputNormalization.from_processor(processor).to(model.device)
        self.align_corners = upsamples_with_align_corners(model.config)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        size, labels = images.shape[1:3], []
        for image in torch.from_numpy(images).to(self.model.device).permute(0, 3, 1, 2):
            pixel_values = self.normalization(image[None]).to(self.model.dtype)
            labels.append(predict(self.model, pixel_values, Protocol(), size, self.align_corners).cpu())
        return torch.stack(labels).numpy()
