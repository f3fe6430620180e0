"""Cross-attention-based non-local knowledge distillation."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_segkd.losses.base import DistillationLoss, LossSetup, channel_projector, get_layer, map_shape, resize_like
from hf_segkd.losses.functional.attention import attend, attend_by_sum
from hf_segkd.losses.pkd import normalize
from hf_segkd.models.outputs import SegmentationOutput
from hf_segkd.values import check_positive, check_value

Affinity = Literal["dot", "embedded_gaussian", "gaussian", "concatenation"]


class CanKDLoss(DistillationLoss):
    """CanKD: the student's map, enriched by attention to the teacher's, agrees with it after instance normalization.

    With 1×1 convolutions q of the student and k, v of the teacher, each 2×2 max pooled to M positions, and no softmax:
    `z = s + BN(W (1/M Σ_j (q_i·k_j) v_j))`, and the loss is `½ · mean over B·C·h·w of (IN(z) − IN(t))²`. BN starts at
    scale 0, so that training starts from [`PKDLoss`] and the branch grows.

    Args:
        setup (`LossSetup`): Shapes of both models' outputs; a 1×1 projector is added when channels differ.
        affinity (`str`, *optional*, defaults to `"dot"`): `"dot"` as above; `"embedded_gaussian"` a softmax over j;
            `"gaussian"` the same between the maps themselves; `"concatenation"` a learned `ReLU(w·[q_i; k_j]) / M`.
        inter_channels (`int`, *optional*): Channels of q, k and v; half of the teacher's by default.
        sub_sample (`bool`, *optional*, defaults to `True`): Whether k and v are pooled.
        batch_norm (`bool`, *optional*, defaults to `True`): Whether BN follows W; without it W starts at 0.
        skip (`bool`, *optional*, defaults to `True`): Whether z contains s.
        instance_norm (`bool`, *optional*, defaults to `True`): Whether z and t are normalized first.
        layer (`str`, *optional*, defaults to `"features"`): Field to compare. The authors take the last stage of the
            backbone, `"hidden_states.-1"`.

    Returns:
        `torch.Tensor`: Scalar, about 1 for unrelated maps. The authors' scripts weigh it by 10, and by 20 once.

    Raises:
        ValueError: If an option is unknown or not positive, a model has no such field, or the teacher's map is too
            small to be pooled.

    Differs from the original: for `"dot"` the sums over positions commute, so that `Σ_j v_j k_jᵀ` is formed first
    where that matrix is smaller, the same value in memory linear in h·w; a student's map of another size is resized to
    the teacher's instead of failing; the projector has PyTorch's initialization. BN takes the images of the local
    batch: two processes with half the batch each do not train as one with the whole batch.

    Reference: Sun and Ohyama, CanKD: Cross-Attention-based Non-local operation for Feature-based Knowledge
    Distillation, WACV 2026, https://huggingface.co/papers/2511.21503
    """

    paper = "https://huggingface.co/papers/2511.21503"
    citation = """@inproceedings{sun2026cankd,
  title={CanKD: Cross-Attention-based Non-local operation for Feature-based Knowledge Distillation},
  author={Sun, Shizhe and Ohyama, Wataru},
  booktitle={WACV},
  year={2026}
}"""
    time_growth = "BNC²"
    memory_growth = "BCN + C²"

    def __init__(
        self,
        setup: LossSetup,
        affinity: Affinity = "dot",
        inter_channels: int | None = None,
        sub_sample: bool = True,
        batch_norm: bool = True,
        skip: bool = True,
        instance_norm: bool = True,
        layer: str = "features",
    ):
        super().__init__(setup, layer=layer)
        check_value("cankd: affinity", affinity, Affinity)
        if inter_channels is not None:
            check_positive("cankd: inter_channels", inter_channels)
        height, width = map_shape(setup.teacher, layer, "teacher")[-2:]
        if sub_sample and min(height, width) < 2:
            raise ValueError(f"cankd: a teacher's map of {height}×{width} cannot be pooled. Set sub_sample: false.")
        self.skip = skip
        self.instance_norm = instance_norm
        self.projector = channel_projector(self.student_channels, self.teacher_channels, bias=True)
        self.attention = CrossAttention(self.teacher_channels, affinity, inter_channels, sub_sample, batch_norm)

    def forward(self, student: SegmentationOutput, teacher: SegmentationOutput, labels: Tensor) -> Tensor:
        student_map = self.projector(get_layer(student, self.layer))
        return self.compare(student_map, get_layer(teacher, self.layer))

    def compare(self, student_map: Tensor, teacher_map: Tensor) -> Tensor:
        """The loss of two maps (B, C, h, w) with the teacher's channels."""
        student_map = resize_like(student_map, teacher_map, align_corners=False)
        enriched = self.attention(student_map, teacher_map)
        if self.skip:
            enriched = student_map + enriched
        if self.instance_norm:
            enriched = normalize(enriched, "image")
            teacher_map = normalize(teacher_map, "image")
        return 0.5 * F.mse_loss(enriched, teacher_map)


class CrossAttention(nn.Module):
    """Non-local block whose queries are the student's and whose keys and values are the teacher's, (B, C, h, w) each.

    Args:
        channels (`int`): C.
        affinity (`str`), inter_channels (`int`), sub_sample (`bool`), batch_norm (`bool`): As for [`CanKDLoss`].
    """

    def __init__(
        self, channels: int, affinity: Affinity, inter_channels: int | None, sub_sample: bool, batch_norm: bool
    ):
        super().__init__()
        inner = inter_channels or max(channels // 2, 1)
        self.affinity = affinity
        self.pool = nn.MaxPool2d(kernel_size=2) if sub_sample else nn.Identity()
        self.value = nn.Conv2d(channels, inner, kernel_size=1)
        self.query = nn.Identity()
        self.key = nn.Identity()
        if affinity != "gaussian":
            self.query = nn.Conv2d(channels, inner, kernel_size=1)
            self.key = nn.Conv2d(channels, inner, kernel_size=1)
        if affinity == "concatenation":
            self.pair = nn.Conv2d(2 * inner, 1, kernel_size=1, bias=False)
        self.output = nn.Conv2d(inner, channels, kernel_size=1)
        self.norm = nn.BatchNorm2d(channels) if batch_norm else nn.Identity()
        last = self.norm if batch_norm else self.output
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, student_map: Tensor, teacher_map: Tensor) -> Tensor:
        query = self.query(student_map).flatten(2)
        key = self.pool(self.key(teacher_map)).flatten(2)
        value = self.pool(self.value(teacher_map)).flatten(2)
        attended = self.attend(query, key, value)
        return self.norm(self.output(attended.unflatten(2, student_map.shape[-2:])))

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Values (B, c, N) for queries (B, c, N), from keys and values (B, c, M)."""
        if self.affinity.endswith("gaussian"):
            return attend(query, key, value)
        if self.affinity == "concatenation":
            of_query, of_key = self.pair.weight.flatten().split(query.shape[1])
            first = torch.einsum("c,bcn->bn", of_query, query)
            second = torch.einsum("c,bcm->bm", of_key, key)
            return attend_by_sum(first, second, value)
        value = value / key.shape[2]
        if query.shape[1] ** 2 < query.shape[2] * key.shape[2]:
            return (value @ key.mT) @ query
        return value @ (key.mT @ query)
