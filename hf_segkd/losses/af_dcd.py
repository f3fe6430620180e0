"""Augmentation-free dense contrastive distillation."""

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_segkd.losses.base import DistillationLoss, LossSetup, get_layer, resize_like
from hf_segkd.losses.functional.tiling import blocks, recomputed
from hf_segkd.losses.mgd import MaskedGeneration, check_mask_ratio
from hf_segkd.models.outputs import SegmentationOutput
from hf_segkd.values import check_positive

BLOCK = 2**22  # distances held at once


class AfDCDLoss(DistillationLoss):
    """Af-DCD: regenerate the teacher's map from a masked one, and tell its pieces apart within small patches.

    `feature` is [`MGDLoss`]. For `contrast` both maps, max pooled, are cut into patches of P positions and each vector
    into M groups of channels; s and t are the C/M numbers of one position and group. An anchor s has the teacher's
    piece of its place as positive and the patch's P·(M − 1) pieces of other groups as negatives:
    `−1/(B·h·w) Σ_s log(e^(−|s − t⁺|₁/τ) / (e^(−|s − t⁺|₁/τ) + Σ_t⁻ e^(−|s − t⁻|₁/τ)))`, a sum over the M groups.

    Args:
        setup (`LossSetup`): Shapes of both models' outputs; channel counts may differ.
        mask_ratio (`float`, *optional*, defaults to `0.75`): Probability that a position is masked, in [0, 1).
        temperature (`float`, *optional*, defaults to `0.07`): τ, > 0, in units of the maps.
        groups (`int`, *optional*, defaults to `16`): M, from 2. The largest divisor of the teacher's channels up to it
            is taken: 16 of 512, 10 of 50.
        patch (`int`, *optional*, defaults to `4`): Side of a patch in positions; a smaller map is one patch. Rows and
            columns that fill no patch are left out of `contrast`.
        pooling (`int`, *optional*, defaults to `4`): Side in positions of the max pooling; 1 for none, as on CamVid.
        layer (`str`, *optional*, defaults to `"features"`): Field to compare. The authors take the last stage of the
            backbone, `"hidden_states.-1"`.
        max_grad_norm (`float`, *optional*): Largest norm of the gradients of the loss's own parameters, > 0; clipped
            once per optimizer step. The authors use 15.

    Returns:
        `dict[str, torch.Tensor]`: Scalars `feature`, a sum over channels and positions (see [`MGDLoss`]), and
        `contrast`, in nats; `M·log(1 + P·(M − 1))`, 88 by default, while all pieces are alike.

    Raises:
        ValueError: If an option is out of range or the teacher's channels cannot be divided into 2 to `groups` groups.

    Differs from the original: written after the authors' code. Its negatives leave out the anchor's own group at other
    positions; the paper's formula was not at hand to compare. One script's wider generator and fixed mask are not
    offered: its flags are unknown to the authors' parser. Distances are recomputed in backward, block by block; maps
    need not divide into patches; a teacher map of another size is resized to the student's. Each process draws its own
    masks: two processes with half the batch each train as one with the whole batch on average only.

    Reference: Fan et al., Augmentation-free Dense Contrastive Knowledge Distillation for Efficient Semantic
    Segmentation, NeurIPS 2023, https://huggingface.co/papers/2312.04168
    """

    paper = "https://huggingface.co/papers/2312.04168"
    citation = """@inproceedings{fan2023augmentation,
  title={Augmentation-free Dense Contrastive Knowledge Distillation for Efficient Semantic Segmentation},
  author={Fan, Jiawei and Li, Chao and Liu, Xiaolong and Song, Meina and Yao, Anbang},
  booktitle={NeurIPS},
  year={2023}
}"""
    time_growth = "BNPC"
    memory_growth = "one block of distances"
    fused = True

    def __init__(
        self,
        setup: LossSetup,
        mask_ratio: float = 0.75,
        temperature: float = 0.07,
        groups: int = 16,
        patch: int = 4,
        pooling: int = 4,
        layer: str = "features",
        max_grad_norm: float | None = None,
    ):
        super().__init__(setup, layer=layer)
        check_mask_ratio("af_dcd", mask_ratio)
        check_positive("af_dcd: temperature", temperature)
        for name, value, smallest in (("groups", groups, 2), ("patch", patch, 1), ("pooling", pooling, 1)):
            if not isinstance(value, int) or value < smallest:
                raise ValueError(f"af_dcd: {name} must be an integer from {smallest}, got {value!r}.")
        self.temperature, self.patch, self.pooling = temperature, patch, pooling
        self.groups = max(m for m in range(1, groups + 1) if self.teacher_channels % m == 0)
        if self.groups == 1:
            raise ValueError(
                f"af_dcd: the {self.teacher_channels} channels of the teacher's {layer} cannot be divided into 2 to "
                f"{groups} equal groups, so there would be no negatives. Choose another layer or more groups."
            )
        if max_grad_norm is not None:
            check_positive("af_dcd: max_grad_norm", max_grad_norm)
        self.max_grad_norm = max_grad_norm
        self.generation = MaskedGeneration(self.student_channels, self.teacher_channels, mask_ratio, setup.seed)

    def forward(self, student: SegmentationOutput, teacher: SegmentationOutput, labels: Tensor) -> dict[str, Tensor]:
        generated = self.generation(get_layer(student, self.layer))
        teacher_map = resize_like(get_layer(teacher, self.layer), generated)
        feature = F.mse_loss(generated, teacher_map, reduction="sum") / len(generated)
        return {"feature": feature, "contrast": self.contrast(generated, teacher_map)}

    def contrast(self, student_map: Tensor, teacher_map: Tensor) -> Tensor:
        """The contrastive term of two maps (B, C, h, w) of one size."""
        student, teacher = self.patches(student_map), self.patches(teacher_map)
        count, pieces, _ = student.shape
        total = student.new_zeros(())
        for block in blocks(count, max(1, BLOCK // pieces**2)):
            total = total + recomputed(patch_contrast, student[block], teacher[block], self.groups, self.temperature)
        return total / (count * pieces / self.groups)

    def patches(self, x: Tensor) -> Tensor:
        """Pieces (B·patches, P·M, C/M) of a map (B, C, h, w), the M groups of one position side by side."""
        if self.pooling > 1:
            x = F.max_pool2d(x, self.pooling, ceil_mode=True)
        height, width = (min(self.patch, side) for side in x.shape[-2:])
        x = x[..., : x.shape[2] // height * height, : x.shape[3] // width * width]
        x = x.unflatten(3, (-1, width)).unflatten(2, (-1, height)).unflatten(1, (self.groups, -1))
        # (B, M, C/M, rows, height, columns, width)
        return x.permute(0, 3, 5, 4, 6, 1, 2).flatten(0, 2).flatten(1, 3)


def patch_contrast(student: Tensor, teacher: Tensor, groups: int, temperature: float) -> Tensor:
    """Sum over all anchors of the contrastive loss of pieces (patches, P·M, c); piece i belongs to group i mod M."""
    logits = -torch.cdist(student, teacher, p=1) / temperature
    group = torch.arange(student.shape[1], device=student.device) % groups
    negatives = logits.masked_fill(group[:, None] == group, -torch.inf).logsumexp(dim=-1)
    gap = negatives - logits.diagonal(dim1=1, dim2=2)
    return torch.logaddexp(gap, torch.zeros_like(gap)).sum()
