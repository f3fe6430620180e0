"""Statistics for batch norms that were folded away: without them, the first training step ruins the weights."""

import logging

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor

from hf_segkd.conversion.folded import is_unfolded
from hf_segkd.data.sampling import evenly_spread
from hf_segkd.data.streaming import StreamedSet
from hf_segkd.models import InputNormalization

logger = logging.getLogger(__name__)


class _Moments:
    """Mean and variance of each channel over all maps seen, summed in float64."""

    def __init__(self, channels: int):
        self.count = 0
        self.total = torch.zeros(channels, dtype=torch.float64)
        self.squares = torch.zeros(channels, dtype=torch.float64)

    def see(self, norm: nn.Module, inputs: tuple[Tensor]) -> None:
        maps = inputs[0].double().cpu()
        self.count += maps[:, 0].numel()
        self.total += maps.sum(dim=(0, 2, 3))
        self.squares += maps.square().sum(dim=(0, 2, 3))

    @property
    def mean(self) -> Tensor:
        return self.total / self.count

    @property
    def variance(self) -> Tensor:
        return (self.squares / self.count - self.mean.square()).clamp(min=0)


@torch.no_grad()
def calibrate_folded_norms(
    model: PreTrainedModel, processor: BaseImageProcessor, dataset: Dataset | StreamedSet, count: int = 32
) -> int:
    """Give batch norms from folded weights the statistics that their maps have on training images.

    Such a norm starts as mean 0, variance 1, scale 1: exact in evaluation, but in training it would be replaced by
    the batch's mean and variance, which the convolution before it never had. The images run through in evaluation
    mode; then `running_mean` and `running_var` become those measured, `weight` and `bias` their inverse, so that
    evaluation stays as it was. The same images give the same statistics. Other norms are left alone.

    Args:
        model (`PreTrainedModel`): A new student whose backbone was filled from a folded file; changed in place.
        processor (`BaseImageProcessor`): The model's own.
        dataset (`Dataset` or `StreamedSet`): The training set; items hold `pixel_values`, uint8 RGB (3, H, W).
        count (`int`, *optional*, defaults to `32`): Images to use, evenly spread over the dataset, or the
            first ones of a stream.

    Returns:
        `int`: Number of batch norms calibrated, also logged.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d) and is_unfolded(module)]
    if not norms:
        return 0
    images = some_items(dataset, count)
    moments = [_Moments(norm.num_features) for norm in norms]
    hooks = [norm.register_forward_pre_hook(moment.see) for norm, moment in zip(norms, moments, strict=True)]
    normalization = InputNormalization.from_processor(processor).to(model.device)
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        for image in images:
            model(pixel_values=normalization(image["pixel_values"][None].to(model.device)))
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in training.items():
            module.training = mode
    for norm, moment in zip(norms, moments, strict=True):
        scale = norm.weight.double().cpu() / (norm.running_var.double().cpu() + norm.eps).sqrt()
        shift = (moment.mean - norm.running_mean.double().cpu()) * scale
        norm.bias.copy_(norm.bias.double().cpu() + shift)
        norm.weight.copy_(scale * (moment.variance + norm.eps).sqrt())
        norm.running_mean.copy_(moment.mean)
        norm.running_var.copy_(moment.variance)
    logger.info("Calibrated %d batch norms of folded weights on %d training images.", len(norms), len(images))
    return len(norms)


def some_items(dataset: Dataset | StreamedSet, count: int) -> list[dict[str, Tensor]]:
    """At most `count` items of a dataset, evenly spread; of a stream the first ones."""
    if isinstance(dataset, StreamedSet):
        return dataset.head(count)
    return [dataset[index] for index in evenly_spread(len(dataset), count)]
