"""CIRKDv2: the relations of CIRKD on contextual features, and relations between channels."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_segkd.distributed import gather, gather_with_gradient
from hf_segkd.losses.base import DistillationLoss, LossSetup, channel_projector, get_layer, map_shape, resize_like
from hf_segkd.losses.cirkd import (
    CIRKDMemoryLoss,
    CIRKDMiniBatchLoss,
    Pooling,
    Sampling,
    check_all_positive,
    projection_head,
    write_rows,
)
from hf_segkd.losses.draws import MemoryDtype, SeededDraws
from hf_segkd.losses.functional.attention import attend
from hf_segkd.losses.functional.similarity import bank_kl, image_pair_kl
from hf_segkd.models.outputs import SegmentationOutput

CHANNEL_POOLING = 4  # positions; CIRKD pools 4×4 before it compares channels
CHANNELS_PER_STEP = 256  # update frequency of the channel queue in CIRKD


class CIRKDv2Loss(DistillationLoss):
    """CIRKDv2: FitNet, mini-batch, memory and channel relations, all on the student's contextual features.

    A non-local block gives the student's features (B, C, h, w) their context. Its output is compared by FitNet (mean
    squared error after a 1×1 convolution), by both CIRKD losses, and by three terms between channels as unit vectors
    over 4×4-pooled space: mini-batch and memory relations as for pixels, and a mean squared error.

    Args:
        setup (`LossSetup`): Shapes of both models' outputs for one crop; the channel queue is tied to its size.
        context (`bool`, *optional*, defaults to `True`): Whether to use the non-local block. CIRKD: not for SegFormer.
        pixel_memory, region_memory, pixel_samples, region_samples, sampling, memory_dtype:
            As for [`~hf_segkd.losses.CIRKDMemoryLoss`].
        channel_memory (`int`, *optional*, defaults to `10000`): Channels kept, of D = ⌈h/4⌉·⌈w/4⌉ numbers each.
        channel_samples (`int`, *optional*, defaults to `2048`): Channel keys per step.
        temperature (`float`, *optional*, defaults to `0.1`): Of all similarities, > 0.
        kd_temperature (`float`, *optional*, defaults to `1.0`): Of the memory terms, > 0.
        pooling (`int` or `str`, *optional*, defaults to `"auto"`): As for [`~hf_segkd.losses.CIRKDMiniBatchLoss`].
        gather (`bool`, *optional*, defaults to `False`): Whether both mini-batch terms pair the images of all
            processes, as for [`~hf_segkd.losses.CIRKDMiniBatchLoss`].
        layer (`str`, *optional*, defaults to `"features"`): Field to compare.

    Returns:
        `dict[str, torch.Tensor]`: Scalars, with CIRKD's weights: `"fitnet"` (1 or 10), `"minibatch_pixel"` (1),
        `"memory_pixel"` and `"memory_region"` (0.1), `"minibatch_channel"` (1), `"memory_channel"` (0.1) and
        `"channel_kd"` (100).

    Raises:
        ValueError: If a temperature or size is not positive, an option is unknown, or in `forward` when the student's
            map is not of the size that the loss was set up for.

    Differs from the original: block and FitNet projection are synchronized between processes; the block depends on
    `context` and not on FitNet's weight; maps may have any size; see also [`~hf_segkd.losses.CIRKDMemoryLoss`]. Two
    processes with half the batch each train as one with the whole batch only with `gather`, and where the memory terms
    do (every channel slot a key, too).

    Reference: Yang et al., Cross-Image Relational Knowledge Distillation for Semantic Segmentation, CVPR 2022,
    https://huggingface.co/papers/2204.06986; CIRKDv2 is its extension in the same repository.
    """

    paper, citation = CIRKDMemoryLoss.paper, CIRKDMemoryLoss.citation
    time_growth = "B²N²C + BNMC"
    memory_growth = "as its parts"
    fused = True

    def __init__(
        self,
        setup: LossSetup,
        context: bool = True,
        pixel_memory: int = 20000,
        region_memory: int = 2000,
        pixel_samples: int | None = None,
        region_samples: int | None = None,
        channel_memory: int = 10000,
        channel_samples: int = 2048,
        temperature: float = 0.1,
        kd_temperature: float = 1.0,
        sampling: Sampling = "own",
        memory_dtype: MemoryDtype = "float32",
        pooling: Pooling = "auto",
        gather: bool = False,
        layer: str = "features",
    ):
        super().__init__(setup, layer=layer)
        self.context = ContextBlock(self.student_channels) if context else nn.Identity()
        self.projector = channel_projector(self.student_channels, self.teacher_channels, always=True)
        self.minibatch = CIRKDMiniBatchLoss(setup, temperature, pooling, gather, layer)
        sizes = (pixel_memory, region_memory, pixel_samples, region_samples)
        self.memory = CIRKDMemoryLoss(setup, *sizes, temperature, kd_temperature, sampling, memory_dtype, layer=layer)
        self.channel = ChannelRelations(
            setup, channel_memory, channel_samples, temperature, kd_temperature, memory_dtype, gather, layer
        )

    def forward(self, student: SegmentationOutput, teacher: SegmentationOutput, labels: Tensor) -> dict[str, Tensor]:
        student_map = self.context(get_layer(student, self.layer))
        teacher_map = resize_like(get_layer(teacher, self.layer), student_map)
        terms = {
            "fitnet": F.mse_loss(self.projector(student_map), teacher_map),
            "minibatch_pixel": self.minibatch.compare(student_map, teacher_map),
        }
        memory = self.memory.compare(student_map, teacher_map, labels)
        return terms | {f"memory_{name}": x for name, x in memory.items()} | self.channel(student_map, teacher_map)


class ContextBlock(nn.Module):
    """Non-local block: every position adds what it attends to, `fuse([x, context(softmax(q kᵀ / √c) v)])`, c = C/2.

    Args:
        channels (`int`): C, of input and output.

    Returns:
        `torch.Tensor` of shape `(B, C, h, w)`: Non-negative features; memory is linear in h·w.
    """

    def __init__(self, channels: int):
        super().__init__()
        inner = max(channels // 2, 1)
        self.query, self.key, self.value = (nn.Conv2d(channels, inner, kernel_size=1, bias=False) for _ in range(3))
        self.context = self._convolution(inner, channels)
        self.fuse = self._convolution(2 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (layer(x).flatten(2) for layer in (self.query, self.key, self.value))
        attended = attend(query, key, value, scale=query.shape[1] ** -0.5)
        return self.fuse(torch.cat([x, self.context(attended.unflatten(2, x.shape[-2:]))], dim=1))

    @staticmethod
    def _convolution(inputs: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(inputs, outputs, kernel_size=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
        )


class ChannelRelations(nn.Module):
    """The channel terms of CIRKDv2: channels as unit vectors over space, compared as CIRKD compares pixels.

    Args:
        setup (`LossSetup`): Shapes of both models' outputs for one crop.
        memory (`int`, *optional*, defaults to `10000`): Channels in the queue.
        samples (`int`, *optional*, defaults to `2048`): Keys per step.
        temperature, kd_temperature (`float`): τ of the similarities and T of the memory term.
        memory_dtype (`str`), gather (`bool`), layer (`str`): As for [`~hf_segkd.losses.CIRKDv2Loss`].

    Returns:
        `dict[str, torch.Tensor]`: Scalars `"minibatch_channel"`, `"memory_channel"` and `"channel_kd"`.

    Raises:
        ValueError: If a value is not positive, or when the map's size is not the one of the setup.
    """

    def __init__(
        self,
        setup: LossSetup,
        memory: int = 10000,
        samples: int = 2048,
        temperature: float = 0.1,
        kd_temperature: float = 1.0,
        memory_dtype: MemoryDtype = "float32",
        gather: bool = False,
        layer: str = "features",
    ):
        super().__init__()
        check_all_positive("cirkdv2", channel_memory=memory, channel_samples=samples)
        check_all_positive("cirkdv2", temperature=temperature, kd_temperature=kd_temperature)
        _, student_channels, *size = map_shape(setup.student, layer, "student")
        teacher_channels = map_shape(setup.teacher, layer, "teacher")[1]
        self.size = tuple(size)
        self.samples, self.temperature, self.kd_temperature = samples, temperature, kd_temperature
        self.gather = gather
        self.head = projection_head(student_channels, teacher_channels)
        self.draws = SeededDraws(setup.seed + 1)  # others than those of the pixels
        height, width = (-(-side // CHANNEL_POOLING) for side in self.size)
        self.register_buffer("queue", self.draws.unit_rows((1, memory, height * width), memory_dtype)[0])
        self.register_buffer("pointer", torch.zeros(1, dtype=torch.long))

    def forward(self, student_map: Tensor, teacher_map: Tensor) -> dict[str, Tensor]:
        if student_map.shape[-2:] != self.size:
            raise ValueError(
                f"cirkdv2: the channel queue was made for maps of {self.size[0]}x{self.size[1]}, got "
                f"{student_map.shape[-2]}x{student_map.shape[-1]}. Train with the crop size of the setup."
            )
        student, teacher = self._channels(student_map, self.head), self._channels(teacher_map, nn.Identity())
        all_teachers = gather(teacher)
        self._enqueue(all_teachers.flatten(0, 1))
        slots = self.draw_slots(len(self.queue))[: self.samples].to(self.queue.device, non_blocking=True)
        keys = self.queue[slots].to(student.dtype)
        anchors = student.flatten(0, 1)
        weights = anchors.new_full((len(anchors),), self.kd_temperature**2 / len(anchors))
        memory = bank_kl(anchors, teacher.flatten(0, 1), keys, weights, self.temperature * self.kd_temperature)
        pairs = (gather_with_gradient(student), all_teachers) if self.gather else (student, teacher)
        return {
            "minibatch_channel": image_pair_kl(*pairs, self.temperature),
            "memory_channel": memory,
            "channel_kd": F.mse_loss(student, teacher),
        }

    def draw_rows(self, size: int) -> Tensor:
        """Random order of all processes' channels; the first ones enter the queue. The same in every process."""
        return self.draws.permutation(size, shared=True)

    def draw_slots(self, size: int) -> Tensor:
        """Random order of the queue's slots; the first ones are this step's keys."""
        return self.draws.permutation(size)

    @staticmethod
    def _channels(x: Tensor, head: nn.Module) -> Tensor:
        """Unit vectors (B, C, D) over the pooled positions."""
        pooled = F.avg_pool2d(x, kernel_size=CHANNEL_POOLING, stride=CHANNEL_POOLING, ceil_mode=True)
        return F.normalize(head(pooled).flatten(2), dim=-1)

    @torch.no_grad()
    def _enqueue(self, channels: Tensor) -> None:
        count = min(len(channels), CHANNELS_PER_STEP, len(self.queue))
        chosen = self.draw_rows(len(channels))[:count].to(channels.device, non_blocking=True)
        rows = F.normalize(channels[chosen], dim=-1)
        write_rows(self.queue[None], self.pointer, rows[None], torch.full_like(self.pointer, count))
