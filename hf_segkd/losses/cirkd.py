"""Cross-image relational distillation: relations between the pixels of a batch, and to a memory of pixels."""

import logging
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_segkd.distributed import gather, gather_with_gradient
from hf_segkd.losses.base import DistillationLoss, LossSetup, get_layer, resize_like
from hf_segkd.losses.draws import MemoryDtype, SeededDraws
from hf_segkd.losses.functional.similarity import bank_kl, image_pair_kl, unit_vectors
from hf_segkd.models.outputs import SegmentationOutput
from hf_segkd.values import check_positive, check_value

logger = logging.getLogger(__name__)

Pooling = int | Literal["auto"]
Sampling = Literal["own", "original"]
PAPER = "https://huggingface.co/papers/2204.06986"
CITATION = """@inproceedings{yang2022cross,
  title={Cross-Image Relational Knowledge Distillation for Semantic Segmentation},
  author={Yang, Chuanguang and Zhou, Helong and An, Zhulin and Jiang, Xue and Xu, Yongjun and Zhang, Qian},
  booktitle={CVPR},
  year={2022}
}"""
POOLED_FROM = 256  # pixels; CIRKD pools 4×4 from this height and width on, which only SegFormer at 1024 reaches
PIXELS_PER_CLASS = 16  # pixel_update_freq in CIRKD


class CIRKDMiniBatchLoss(DistillationLoss):
    """CIRKD, mini-batch: the student's similarities between pixels of all image pairs follow the teacher's.

    With unit vectors per pixel, `A_ij = X_i X_jᵀ / temperature` of images i and j is softmaxed over the N pixels of
    image j: `1/(B²·N) Σ_ij Σ_rows KL(teacher ‖ student)`, i = j included, in memory linear in N.

    Args:
        setup (`LossSetup`): Shapes of both models' outputs; channel counts may differ.
        temperature (`float`, *optional*, defaults to `0.1`): Softmax temperature, > 0. Paper: 0.1.
        pooling (`int` or `str`, *optional*, defaults to `"auto"`): Side in positions of the average pooling before;
            `"auto"` is 4 for maps of at least 256×256 and 1 otherwise.
        gather (`bool`, *optional*, defaults to `False`): Whether to pair the images of all processes. Each process
            then computes all of these pairs, which costs as much as one process with the whole batch.
        layer (`str`, *optional*, defaults to `"features"`): Field to compare.

    Returns:
        `torch.Tensor`: Scalar, in nats; at least 0, and 0 when both have the same similarities.

    Raises:
        ValueError: If the temperature is not positive or the pooling is neither `"auto"` nor a positive integer.

    Differs from the original: never holds a similarity map; a teacher map of another size is resized to the student's.
    As there, only images of the same process are paired by default: then two processes with half the batch each do not
    train as one with the whole batch. With `gather` they do.

    Reference: Yang et al., Cross-Image Relational Knowledge Distillation for Semantic Segmentation, CVPR 2022,
    https://huggingface.co/papers/2204.06986
    """

    paper, citation = PAPER, CITATION
    time_growth = "B²N²C"
    memory_growth = "B²N sums"
    fused = True

    def __init__(
        self,
        setup: LossSetup,
        temperature: float = 0.1,
        pooling: Pooling = "auto",
        gather: bool = False,
        layer: str = "features",
    ):
        super().__init__(setup, layer=layer)
        check_all_positive("cirkd_minibatch", temperature=temperature)
        check_value("cirkd_minibatch: pooling", pooling, Pooling)
        if pooling != "auto":
            check_positive("cirkd_minibatch: pooling", pooling)
        self.temperature, self.pooling, self.gather = temperature, pooling, gather
        self._warned = False

    def forward(self, student: SegmentationOutput, teacher: SegmentationOutput, labels: Tensor) -> Tensor:
        student_map = get_layer(student, self.layer)
        return self.compare(student_map, resize_like(get_layer(teacher, self.layer), student_map))

    def compare(self, student_map: Tensor, teacher_map: Tensor) -> Tensor:
        """The loss of two maps (B, C, h, w) of one size."""
        size = self.pooling
        if size == "auto":
            size = 4 if min(student_map.shape[-2:]) >= POOLED_FROM else 1
        if size > 1:
            student_map, teacher_map = (
                F.avg_pool2d(x, kernel_size=size, stride=size, ceil_mode=True) for x in (student_map, teacher_map)
            )
        student, teacher = unit_pixels(student_map), unit_pixels(teacher_map)
        if self.gather:
            student, teacher = gather_with_gradient(student), gather(teacher)
        if len(student) == 1 and not self._warned:
            logger.warning(
                "CIRKD mini-batch: one image per process, so it relates pixels of that image only. "
                "Set gather: true to relate the images of all processes."
            )
            self._warned = True
        return image_pair_kl(student, teacher, self.temperature)


class CIRKDMemoryLoss(DistillationLoss):
    """CIRKD, memory: the student's similarities to queues of the teacher's pixels and regions follow the teacher's.

    Each class keeps unit vectors of its pixels and of its regions (means per image). All labeled pixels are anchors;
    per bank, `kd_temperature² · mean KL(softmax(t·Qᵀ / (τ·T)) ‖ softmax(s·Qᵀ / (τ·T)))` over all classes' keys Q.

    Args:
        setup (`LossSetup`): Shapes of both models' outputs, classes, ignore index. The student's pixels go through a
            projection head (1×1 convolution, BatchNorm, ReLU, 1×1 convolution), whatever its channels.
        pixel_memory (`int`, *optional*, defaults to `20000`): Pixels kept per class. CIRKD: 2000 for SegFormer.
        region_memory (`int`, *optional*, defaults to `2000`): Regions kept per class.
        pixel_samples (`int`, *optional*): Pixel keys per class and step; `4096 // K + 1` by default.
        region_samples (`int`, *optional*): Region keys per class and step; `1024 // K + 1` by default.
        temperature (`float`, *optional*, defaults to `0.1`): τ, > 0. Paper: 0.1.
        kd_temperature (`float`, *optional*, defaults to `1.0`): T, > 0. Paper: 1.
        sampling (`str`, *optional*, defaults to `"own"`): Which pixels enter a class's queue: its own, or with
            `"original"` as many from the first rows of the image, whatever their class, as CIRKD's code does.
        memory_dtype (`str`, *optional*, defaults to `"float32"`): Or `"float16"`, `"bfloat16"`. The pixel queue takes
            K·pixel_memory·C numbers: 0.8 GB for Cityscapes, 6.1 GB for ADE20K in float32.
        layer (`str`, *optional*, defaults to `"features"`): Field to compare.

    Returns:
        `dict[str, torch.Tensor]`: Scalars `"pixel"` and `"region"`, in nats times kd_temperature²; 0 without labels.

    Raises:
        ValueError: If a temperature, size or number is not positive, or `sampling` or `memory_dtype` is unknown.

    Differs from the original: a class queue holds the class's own pixels; no labeled pixel gives 0, not NaN; queues
    are saved; processes exchange the chosen pixels instead of broadcasting the queues. As there, each process draws
    its own keys and averages over its own labeled pixels: two processes with half the batch each train as one with
    the whole batch only if every slot is a key, no class has more than 16 pixels in an image and all have as many
    labeled pixels.

    Reference: Yang et al., Cross-Image Relational Knowledge Distillation for Semantic Segmentation, CVPR 2022,
    https://huggingface.co/papers/2204.06986
    """

    paper, citation = PAPER, CITATION
    time_growth = "BNMC"
    memory_growth = "one map; K·M·C in the queues"
    fused = True

    def __init__(
        self,
        setup: LossSetup,
        pixel_memory: int = 20000,
        region_memory: int = 2000,
        pixel_samples: int | None = None,
        region_samples: int | None = None,
        temperature: float = 0.1,
        kd_temperature: float = 1.0,
        sampling: Sampling = "own",
        memory_dtype: MemoryDtype = "float32",
        layer: str = "features",
    ):
        super().__init__(setup, layer=layer)
        classes = setup.num_labels
        self.pixel_samples = 4096 // classes + 1 if pixel_samples is None else pixel_samples
        self.region_samples = 1024 // classes + 1 if region_samples is None else region_samples
        check_all_positive("cirkd_memory", temperature=temperature, kd_temperature=kd_temperature)
        check_all_positive("cirkd_memory", pixel_memory=pixel_memory, region_memory=region_memory)
        check_all_positive("cirkd_memory", pixel_samples=self.pixel_samples, region_samples=self.region_samples)
        check_value("cirkd_memory: sampling", sampling, Sampling)
        self.temperature, self.kd_temperature, self.sampling = temperature, kd_temperature, sampling
        self.limit = min(PIXELS_PER_CLASS, pixel_memory)
        self.head = projection_head(self.student_channels, self.teacher_channels)
        self.draws = SeededDraws(setup.seed)
        for name, size in (("pixel", pixel_memory), ("region", region_memory)):
            shape = (classes, size, self.teacher_channels)
            self.register_buffer(f"{name}_queue", self.draws.unit_rows(shape, memory_dtype))
            self.register_buffer(f"{name}_pointer", torch.zeros(classes, dtype=torch.long))

    def forward(self, student: SegmentationOutput, teacher: SegmentationOutput, labels: Tensor) -> dict[str, Tensor]:
        student_map = get_layer(student, self.layer)
        return self.compare(student_map, resize_like(get_layer(teacher, self.layer), student_map), labels)

    def compare(self, student_map: Tensor, teacher_map: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The two terms of maps (B, C, h, w) of one size; the batch enters the queues first, as in the original."""
        student_pixels, teacher_pixels = unit_pixels(self.head(student_map)), unit_pixels(teacher_map.detach())
        labels = self._labels_of(labels, student_map.shape[-2:])
        self._enqueue(*(gather(x) for x in self.choose(teacher_pixels, labels)))
        counts = (labels < self.setup.num_labels).flatten().to(student_pixels.dtype)
        weights = counts * self.kd_temperature**2 / counts.sum().clamp(min=1)
        terms = {}
        for name, samples in (("pixel", self.pixel_samples), ("region", self.region_samples)):
            queue = self.get_buffer(f"{name}_queue")
            # One draw for all classes, as in CIRKD: the keys lie in the same slots of every class.
            slots = self.draw_slots(name, queue.shape[1])[:samples].to(queue.device, non_blocking=True)
            keys = queue[:, slots].flatten(0, 1).to(student_pixels.dtype)
            arguments = (keys, weights, self.temperature * self.kd_temperature)
            terms[name] = bank_kl(student_pixels.flatten(0, 1), teacher_pixels.flatten(0, 1), *arguments)
        return terms

    def draw_priorities(self, labels: Tensor) -> Tensor:
        """Random number in [0, 1) per pixel, (B, N); a class's lowest ones enter its queue, in order."""
        return self.draws.uniform(labels.shape).to(labels.device, non_blocking=True)

    def draw_slots(self, name: str, size: int) -> Tensor:
        """Random order of the slots of the `"pixel"` or `"region"` queue; the first ones are this step's keys."""
        return self.draws.permutation(size)

    @torch.no_grad()
    def choose(self, pixels: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """What the local images (B, N, C) add to the queues: rows (B, K, 1 + limit, C), pixels per class (B, K).

        Row 0 is the class's region, the others its pixels; rows past a class's count are arbitrary.
        """
        batch, positions, channels = pixels.shape
        members = labels[:, None] == torch.arange(self.setup.num_labels, device=labels.device)[:, None]
        counts = members.sum(dim=-1)
        regions = members.to(pixels.dtype) @ pixels / counts.clamp(min=1)[..., None]
        starts = counts.cumsum(dim=1) - counts
        # One sort by class, then by random number; in float64 the sum keeps every bit of both.
        by_class = (labels + self.draw_priorities(labels).double()).argsort(dim=1)
        index = starts[..., None] + torch.arange(self.limit, device=labels.device)
        chosen = by_class.gather(1, index.clamp(max=positions - 1).flatten(1))
        if self.sampling == "original":
            ranks = labels.argsort(dim=1, stable=True).argsort(dim=1)
            ranks = ranks - starts.gather(1, labels.clamp(max=self.setup.num_labels - 1))
            chosen = ranks.gather(1, chosen).clamp(min=0)
        rows = pixels.gather(1, chosen[..., None].expand(-1, -1, channels)).view(*index.shape, channels)
        return F.normalize(torch.cat([regions[:, :, None], rows], dim=2), dim=-1), counts

    @torch.no_grad()
    def _enqueue(self, rows: Tensor, counts: Tensor) -> None:
        # Image by image, because a block's place depends on those before it; all classes at once, without a
        # synchronization: two writes per image instead of two per image and class.
        for image_rows, image_counts in zip(rows, counts, strict=True):
            write_rows(self.region_queue, self.region_pointer, image_rows[:, :1], image_counts.clamp(max=1))
            write_rows(self.pixel_queue, self.pixel_pointer, image_rows[:, 1:], image_counts.clamp(max=self.limit))

    def _labels_of(self, labels: Tensor, size: torch.Size) -> Tensor:
        """Labels (B, h·w) on the map's grid; K stands for every pixel without a class."""
        labels = F.interpolate(labels[:, None].float(), size=size, mode="nearest").long().flatten(1)
        known = (labels >= 0) & (labels < self.setup.num_labels) & (labels != self.setup.ignore_index)
        return labels.where(known, torch.full_like(labels, self.setup.num_labels))


def write_rows(queue: Tensor, pointer: Tensor, rows: Tensor, counts: Tensor) -> None:
    """Write the first `counts` of `rows` (K, k, C) into each class's ring (K, M, C), in place; counts ≤ k ≤ M.

    A block that would reach the end takes the last slots and the pointer starts again at 0, as in CIRKD.
    """
    size = queue.shape[1]
    wraps = pointer + counts >= size
    start = torch.where(wraps, size - counts, pointer)
    offsets = torch.arange(rows.shape[1], device=queue.device)
    # Unused rows repeat row 0, and an absent class rewrites what is there: no shape depends on the data.
    offsets = offsets * (offsets < counts[:, None])
    classes = torch.arange(len(queue), device=queue.device)[:, None]
    slots = start[:, None] + offsets
    present = (counts > 0)[:, None, None]
    queue[classes, slots] = torch.where(present, rows[classes, offsets].to(queue.dtype), queue[classes, slots])
    pointer.copy_((pointer + counts).masked_fill(wraps, 0))


def projection_head(student_channels: int, teacher_channels: int) -> nn.Sequential:
    """The student's way into the teacher's space: 1×1 convolution, BatchNorm, ReLU, 1×1 convolution."""
    return nn.Sequential(
        nn.Conv2d(student_channels, teacher_channels, kernel_size=1, bias=False),
        nn.BatchNorm2d(teacher_channels),
        nn.ReLU(inplace=True),
        nn.Conv2d(teacher_channels, teacher_channels, kernel_size=1, bias=False),
    )


def unit_pixels(x: Tensor) -> Tensor:
    """Map (B, C, h, w) as unit vectors (B, h·w, C), contiguous per pixel."""
    return unit_vectors(x.flatten(2).transpose(1, 2).contiguous())


def check_all_positive(method: str, **values: float) -> None:
    for name, value in values.items():
        check_positive(f"{method}: {name}", value)
