"""Intra-class feature variation distillation."""

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_segkd.losses.base import DistillationLoss, LossSetup, get_layer, resize_like
from hf_segkd.models.outputs import SegmentationOutput

NORM_EPS = 1e-8


class IFVDLoss(DistillationLoss):
    """Intra-class feature variation: how far each pixel lies from the center of its class, as the teacher has it.

    `c_k` is the mean feature of class k in one image, `v_p = cos(f_p, c_y(p))` for a pixel p with label y(p).
    The loss is the mean over all B·h·w positions of `(v_student − v_teacher)²`; a position without a class adds 0.

    Args:
        setup (`LossSetup`): Shapes of both models' outputs; channel counts may differ.
        layer (`str`, *optional*, defaults to `"features"`): Field to compare.

    Returns:
        `torch.Tensor`: Scalar between 0 and 4. CIRKD weighs it by 20.

    Raises:
        ValueError: If the student or the teacher has no such field.

    Differs from the original: one matrix product with the one-hot labels instead of a loop over classes, the same
    value with memory O(B·h·w·(C + K)) instead of O(K·B·C·h·w); a teacher map of another size is resized to the
    student's; the classes are those of the setup, not the constant 19.

    Reference: Wang et al., Intra-class Feature Variation Distillation for Semantic Segmentation, ECCV 2020,
    https://www.ecva.net/papers/eccv_2020/papers_ECCV/html/230_ECCV_2020_paper.php
    """

    paper = "https://www.ecva.net/papers/eccv_2020/papers_ECCV/html/230_ECCV_2020_paper.php"
    citation = """@inproceedings{wang2020intra,
  title={Intra-class Feature Variation Distillation for Semantic Segmentation},
  author={Wang, Yukang and Zhou, Wei and Jiang, Tao and Bai, Xiang and Xu, Yongchao},
  booktitle={ECCV},
  year={2020}
}"""
    time_growth = "BN(C + K)"
    memory_growth = "BN"
    fused = True

    def __init__(self, setup: LossSetup, layer: str = "features"):
        super().__init__(setup, layer=layer)

    def forward(self, student: SegmentationOutput, teacher: SegmentationOutput, labels: Tensor) -> Tensor:
        student_map = get_layer(student, self.layer)
        teacher_map = resize_like(get_layer(teacher, self.layer), student_map)
        # Nearest resizing needs floating point; float32 is exact for class ids.
        labels = F.interpolate(labels[:, None].float(), size=student_map.shape[-2:], mode="nearest")
        members = labels.flatten(2).transpose(1, 2) == torch.arange(self.setup.num_labels, device=labels.device)
        members = members.to(student_map.dtype)
        return F.mse_loss(variation(student_map, members), variation(teacher_map, members))


def variation(features: Tensor, members: Tensor) -> Tensor:
    """Cosine of each pixel with the center of its class, (B, N); 0 for a pixel without a class.

    Args:
        features (`torch.Tensor` of shape `(B, C, h, w)`): Map with N = h·w pixels.
        members (`torch.Tensor` of shape `(B, N, K)`): One-hot classes; a row of zeros for a pixel without a class.
    """
    features = features.flatten(2)
    centers = features @ members / (members.sum(dim=1, keepdim=True) + 1e-6)  # 1e-6: as the original
    centers = centers / centers.norm(dim=1, keepdim=True).clamp(min=NORM_EPS)
    products = (members * (features.transpose(1, 2) @ centers)).sum(dim=-1)
    return products / features.norm(dim=1).clamp(min=NORM_EPS)
