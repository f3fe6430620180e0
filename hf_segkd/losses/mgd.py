"""Masked generative distillation."""

import torch.nn.functional as F
from torch import Tensor, nn

from hf_segkd.losses.base import DistillationLoss, LossSetup, channel_projector, get_layer, resize_like
from hf_segkd.losses.draws import SeededDraws
from hf_segkd.models.outputs import SegmentationOutput


class MGDLoss(DistillationLoss):
    """MGD: from a student's map with random positions masked out, a small block regenerates the teacher's whole map.

    `1/B · Σ (G(M · A student) − teacher)²`, summed over channels and positions. M is 0 at a fraction `mask_ratio` of
    the positions (all channels at once) and 1 elsewhere, A a 1×1 projector, there when channels differ, and the
    generator G a 3×3 convolution, ReLU and a 3×3 convolution. A and G are trained with the student.

    Args:
        setup (`LossSetup`): Shapes of both models' outputs; channel counts may differ.
        mask_ratio (`float`, *optional*, defaults to `0.75`): Probability that a position is masked, in [0, 1). The
            authors use 0.75 for segmentation, 0.65 and 0.45 for detectors.
        layer (`str`, *optional*, defaults to `"features"`): Field to compare. The authors take the last stage of the
            backbone, e.g. `"hidden_states.3"`.

    Returns:
        `torch.Tensor`: Scalar, in squared units of the teacher's map. A sum, as published: it grows with C·h·w, hence
        the weight of 2e-5 for maps of 2048×64×64, which is 168 on the mean.

    Raises:
        ValueError: If the mask ratio is not in [0, 1).

    Differs from the original: masks come from an own generator whose state is saved; a teacher map of another size is
    resized to the student's instead of failing. Each process draws its own masks: two
    processes with half the batch each train as one with the whole batch on average only.

    Reference: Yang et al., Masked Generative Distillation, ECCV 2022, https://huggingface.co/papers/2205.01529
    """

    paper = "https://huggingface.co/papers/2205.01529"
    citation = """@inproceedings{yang2022masked,
  title={Masked Generative Distillation},
  author={Yang, Zhendong and Li, Zhe and Shao, Mingqi and Shi, Dachuan and Yuan, Zehuan and Yuan, Chun},
  booktitle={ECCV},
  year={2022}
}"""
    time_growth = "BNC²"
    memory_growth = "one map"

    def __init__(self, setup: LossSetup, mask_ratio: float = 0.75, layer: str = "features"):
        super().__init__(setup, layer=layer)
        check_mask_ratio("mgd", mask_ratio)
        self.generation = MaskedGeneration(self.student_channels, self.teacher_channels, mask_ratio, setup.seed)

    def forward(self, student: SegmentationOutput, teacher: SegmentationOutput, labels: Tensor) -> Tensor:
        generated = self.generation(get_layer(student, self.layer))
        teacher_map = resize_like(get_layer(teacher, self.layer), generated)
        return F.mse_loss(generated, teacher_map, reduction="sum") / len(generated)


class MaskedGeneration(nn.Module):
    """Map (B, C', h, w) of the teacher's channels, made from a student's map (B, C, h, w) whose positions are masked.

    Args:
        student_channels (`int`): C.
        teacher_channels (`int`): C'; a 1×1 projector comes first when it is not C.
        mask_ratio (`float`): Probability that a position is masked, in [0, 1).
        seed (`int`): Seed of the masks.
    """

    def __init__(self, student_channels: int, teacher_channels: int, mask_ratio: float, seed: int):
        super().__init__()
        self.mask_ratio, self.draws = mask_ratio, SeededDraws(seed)
        self.projector = channel_projector(student_channels, teacher_channels, bias=True)
        self.generator = nn.Sequential(
            nn.Conv2d(teacher_channels, teacher_channels, kernel_size=3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(teacher_channels, teacher_channels, kernel_size=3, padding=1),
        )

    def forward(self, student_map: Tensor) -> Tensor:
        batch, _, height, width = student_map.shape
        mask = self.draw_mask(batch, height, width).to(student_map, non_blocking=True)
        # After the projector, whose bias would fill the masked positions again.
        return self.generator(self.projector(student_map) * mask)

    def draw_mask(self, batch: int, height: int, width: int) -> Tensor:
        """Random mask (B, 1, h, w): 1 for a position that is kept, 0 for a masked one."""
        return self.draws.uniform((batch, 1, height, width)) >= self.mask_ratio


def check_mask_ratio(method: str, mask_ratio: float) -> None:
    if not 0 <= mask_ratio < 1:
        raise ValueError(f"{method}: mask_ratio must be a fraction in [0, 1), got {mask_ratio}.")
