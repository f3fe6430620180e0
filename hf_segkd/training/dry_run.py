"""One training forward and one whole-image prediction before training, so that failures show early."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import PreTrainedConfig

from hf_segkd.data.sampling import evenly_spread
from hf_segkd.loading.patches import PATCH_SEQUENCES, check_input_size
from hf_segkd.models import input_channels

SAMPLE = 8  # validation images whose sizes are looked at


@torch.no_grad()
def check_forwards(distiller: nn.Module, batch: int, size: tuple[int, int], image: torch.Tensor | None) -> None:
    """Run a student as training and evaluation will, and leave it as it was.

    Args:
        distiller ([`~hf_segkd.training.distiller.Distiller`]): On its device.
        batch (`int`): Images in the smallest training batch of a process.
        size (`tuple[int, int]`): Height and width of the crops, pixels.
        image (`torch.Tensor`, *optional*): A validation image, uint8 (3, H, W).

    Raises:
        ValueError: If the student refuses such a batch, or the whole image.
    """
    student = distiller.student
    device = distiller.progress.device
    modes = {module: module.training for module in student.modules()}
    buffers = [(buffer, buffer.clone()) for buffer in student.buffers()]
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            student.train()
            channels = input_channels(student.config)
            crops = torch.zeros(batch, channels, *size, dtype=distiller.image_dtype, device=device)
            _try(distiller, crops, _batch_advice(batch, size))
            student.eval()
            if image is not None:
                _try(distiller, image[None].to(device), _image_advice(image.shape[-2:]))
    finally:
        for module, mode in modes.items():
            module.training = mode
        for buffer, value in buffers:
            buffer.copy_(value)


def check_sizes(config: PreTrainedConfig, dataset: Dataset, batch: int) -> None:
    """Refuse validation images that the student cannot read, or that do not fit into one batch.

    All images are looked at if several share a batch, else a sample.

    Raises:
        ValueError: Names both sizes, or the one that cannot be read.
    """
    if batch == 1 and config.model_type not in PATCH_SEQUENCES:
        return
    count = len(dataset)
    sizes = {}
    for index in range(count) if batch > 1 else evenly_spread(count, min(SAMPLE, count)):
        size = tuple(dataset[index]["labels"].shape)
        sizes.setdefault(size, index)
        if batch > 1 and len(sizes) > 1:
            shown = " and ".join(f"{height}x{width}" for height, width in sizes)
            raise ValueError(
                f"The validation images differ in size ({shown}), so they cannot share a batch. "
                "Set per_device_eval_batch_size: 1."
            )
    for size in sizes:
        try:
            check_input_size(config, size)
        except ValueError as error:
            raise ValueError(
                f"The student is evaluated on whole images, but this one cannot read them. {error} Or prepare "
                "validation images of a size that it reads."
            ) from None


def smallest_batch(images: int, batch: int, processes: int, drop_last: bool) -> int:
    """Images in the smallest training batch of one process.

    Raises:
        ValueError: If there are fewer images than one batch in every process needs.
    """
    if images == 0:
        raise ValueError("There are no training images.")
    if not drop_last:
        # With several processes, accelerate fills the last batches up with the first images.
        return images % batch or batch if processes == 1 else batch
    if images < batch * processes:
        raise ValueError(
            f"{images} training images are fewer than one step needs: {processes} processes x {batch} images "
            "(per_device_train_batch_size). Nothing would be trained. Lower the batch size or the number of "
            "processes, or take more images."
        )
    return batch


def _try(distiller: nn.Module, pixel_values: torch.Tensor, advice: str) -> None:
    try:
        distiller.predict(pixel_values)
    except (RuntimeError, ValueError, IndexError, ZeroDivisionError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{advice} ({type(distiller.student).__name__}: {reason[:300]})") from error


def _batch_advice(batch: int, size: tuple[int, int]) -> str:
    if batch == 1:
        return (
            "The student cannot be trained on a batch of one image: a batch norm would see a single value per "
            "channel. Give per_device_train_batch_size 2 or more, with dataloader_drop_last: true, which leaves a "
            "smaller last batch out."
        )
    return f"The student cannot be trained on crops of {size[0]}x{size[1]} pixels. Set a larger crop_size."


def _image_advice(size: tuple[int, int]) -> str:
    return (
        f"The student cannot predict a whole validation image of {size[0]}x{size[1]} pixels, as every evaluation "
        "does. Take another student, or prepare smaller validation images."
    )
