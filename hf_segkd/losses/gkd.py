"""Generalizable distillation (GKD, CVPR 2026) from a foundation encoder."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_segkd.losses.base import DistillationLoss, LossSetup, get_layer, resize_like
from hf_segkd.losses.functional.attention import attend
from hf_segkd.models.outputs import SegmentationOutput
from hf_segkd.values import check_positive


class GKDLoss(DistillationLoss):
    """GKD (Generalizable, CVPR 2026): student tokens, re-mixed by attention to the teacher's, reproduce these.

    Positions are tokens. With `Q = P_q(s)` and `V = P_v(s)`, each a LayerNorm and a linear layer to the teacher's
    channels, and the teacher's own tokens t as keys, `y_i = Σ_j softmax_j(Q_i·t_j) V_j`; the loss is the mean over
    B·N·C_t of `(y − t)²`. P_q and P_v are trained with the student and dropped afterwards.

    Args:
        setup (`LossSetup`): Shapes of both models' outputs; channel counts may differ.
        num_heads (`int`, *optional*, defaults to `1`): Parts of the teacher's channels that attend separately, > 0;
            must divide their number. The authors use 1.
        scaled (`bool`, *optional*, defaults to `False`): Whether similarities are divided by the root of the channels
            of a head, which keeps the attention from being one-hot for wide maps. The authors do not.
        layer (`str`, *optional*, defaults to `"features"`): Field to compare, e.g. `"hidden_states.-1"`.

    Returns:
        `torch.Tensor`: Scalar, in squared units of the teacher's map. The authors weigh it by 1.

    Raises:
        ValueError: If `num_heads` does not divide the teacher's channels or a model has no such field.

    Differs from the original: it distills the patch tokens of vision transformers, without labels, with two further
    terms for the class token and for masked patches ([`GKDTokenTerms`]); convolutional maps are an extension that its
    authors have not tested. A teacher's map of another size is resized to the student's instead of failing.

    Reference: Lv et al., Generalizable Knowledge Distillation from Vision Foundation Models for Semantic Segmentation,
    CVPR 2026, https://huggingface.co/papers/2603.02554
    """

    paper = "https://huggingface.co/papers/2603.02554"
    citation = """@inproceedings{lv2026generalizable,
  title={Generalizable Knowledge Distillation from Vision Foundation Models for Semantic Segmentation},
  author={Lv, Chonghua and Zhao, Dong and Wang, Shuang and Quan, Dou and Huyan, Ning and Sebe, Nicu and Zhong, Zhun},
  booktitle={CVPR},
  year={2026}
}"""
    time_growth = "BN²C"
    memory_growth = "one block of queries"

    def __init__(self, setup: LossSetup, num_heads: int = 1, scaled: bool = False, layer: str = "features"):
        super().__init__(setup, layer=layer)
        self.remix = TokenRemix(self.student_channels, self.teacher_channels, num_heads, scaled)

    def forward(self, student: SegmentationOutput, teacher: SegmentationOutput, labels: Tensor) -> Tensor:
        student_map = get_layer(student, self.layer)
        teacher_map = resize_like(get_layer(teacher, self.layer), student_map, align_corners=False)
        teacher_tokens = teacher_map.flatten(2).mT
        return F.mse_loss(self.remix(student_map.flatten(2).mT, teacher_tokens), teacher_tokens)


class TokenRemix(nn.Module):
    """Query-based soft distillation: mixes projected student tokens (B, N, C) by their likeness to the teacher's.

    Args:
        student_channels, teacher_channels (`int`): C and C'.
        num_heads (`int`, *optional*, defaults to `1`), scaled (`bool`, *optional*, defaults to `False`): As for
            [`GKDLoss`].

    Returns:
        `torch.Tensor` of shape `(B, N, C')`.
    """

    def __init__(self, student_channels: int, teacher_channels: int, num_heads: int = 1, scaled: bool = False):
        super().__init__()
        check_positive("gkd: num_heads", num_heads)
        if teacher_channels % num_heads:
            raise ValueError(f"gkd: num_heads must divide the teacher's {teacher_channels} channels, got {num_heads}.")
        self.num_heads = num_heads
        self.scale = (teacher_channels // num_heads) ** -0.5 if scaled else 1.0
        self.query = nn.Sequential(nn.LayerNorm(student_channels), nn.Linear(student_channels, teacher_channels))
        self.value = nn.Sequential(nn.LayerNorm(student_channels), nn.Linear(student_channels, teacher_channels))

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        query = self._heads(self.query(student))
        value = self._heads(self.value(student))
        mixed = attend(query, self._heads(teacher), value, self.scale)
        return mixed.unflatten(0, (len(student), -1)).flatten(1, 2).mT

    def _heads(self, x: Tensor) -> Tensor:
        """Tokens (B, N, C) as maps (B·heads, C/heads, N)."""
        return x.mT.unflatten(1, (self.num_heads, -1)).flatten(0, 1)


class GKDTokenTerms(nn.Module):
    """The three terms of GKD's first stage, between encoders with a class token; no labels.

    Args:
        student_channels, teacher_channels (`int`): Width of the tokens.

    Returns:
        `dict[str, torch.Tensor]`: Scalars `token`, of the class token; `feature`, of class and patch tokens together;
        and `patch`, of the student's patch tokens when some of its patches were masked, over all patches. The authors
        weigh each by 1.
    """

    def __init__(self, student_channels: int, teacher_channels: int):
        super().__init__()
        self.token = TokenRemix(student_channels, teacher_channels)
        self.feature = TokenRemix(student_channels, teacher_channels)
        self.patch = TokenRemix(student_channels, teacher_channels)

    def forward(
        self, student_class: Tensor, student_patches: Tensor, masked: Tensor, teacher_class: Tensor, teacher: Tensor
    ) -> dict[str, Tensor]:
        """Class tokens are (B, C), patch tokens (B, N, C); `masked` are the student's of masked input."""
        class_token = self.token(student_class[:, None], teacher_class[:, None])
        tokens = torch.cat([class_token, self.feature(student_patches, teacher)], dim=1)
        return {
            "token": F.mse_loss(class_token[:, 0], teacher_class),
            "feature": F.mse_loss(tokens, torch.cat([teacher_class[:, None], teacher], dim=1)),
            "patch": F.mse_loss(self.patch(masked, teacher), teacher),
        }


def mask_patches(patches: Tensor, mask: Tensor, mask_token: Tensor) -> Tensor:
    """Patch embeddings (B, N, C) with `mask_token` (1, C) where `mask` (B, N) is true, before positions are added."""
    return torch.where(mask[..., None], mask_token, patches)
