"""Double similarity distillation."""

from itertools import combinations
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor

from hf_segkd.losses.at import mean_square
from hf_segkd.losses.base import DistillationLoss, LossSetup, check_same_classes, resize_like
from hf_segkd.models.outputs import SegmentationOutput
from hf_segkd.values import check_positive, check_value

Missing = Literal["drop", "original"]
ENTRIES = ("aux_logits", "features", "logits")


class DSDLoss(DistillationLoss):
    """Double similarity distillation: what changes between layers, and how classes overlap, as the teacher has it.

    `psd`: with a_i the attention map of entry i (as in [`ATLoss`]) and `r_nm` the unit vector of `a_n − a_m`, the mean
    over pairs of entries n < m, images and positions of `(r_student − r_teacher)²`.
    `csd`: with P the softmax over positions of the 2×2 mean-pooled logits, the mean over B·K² of `(PPᵀ_s − PPᵀ_t)²`.

    Args:
        setup (`LossSetup`): Shapes of both models' outputs. Entries are the auxiliary logits, the features and the
            logits, each of them that both models have.
        temperature (`float`, *optional*, defaults to `4.0`): Of the softmax in `csd`, > 0. The original's constant.
        missing (`str`, *optional*, defaults to `"drop"`): What happens when one model has no auxiliary logits:
            `"drop"` leaves them out of both, `"original"` puts that model's logits in their place, as the code for the
            mobile students does. Such a student then learns from the features only (see `forward`).

    Returns:
        `dict[str, torch.Tensor]`: Scalars `psd`, at most 4/(h·w), and `csd`, at most 1: hence weights of 1000 and 10.

    Raises:
        ValueError: If the temperature or `missing` is wrong, the classes disagree, or fewer than two entries are left.

    Differs from the original: entries that are missing are dropped; attention maps and logits of another size are
    resized to the student's logits; the unit vectors are not normalized a second time, which changes nothing.

    Reference: Feng et al., Double Similarity Distillation for Semantic Image Segmentation, IEEE TIP 2021,
    https://huggingface.co/papers/2107.08591
    """

    paper = "https://huggingface.co/papers/2107.08591"
    citation = """@article{feng2021double,
  title={Double Similarity Distillation for Semantic Image Segmentation},
  author={Feng, Yingchao and Sun, Xian and Diao, Wenhui and Li, Jihao and Gao, Xin},
  journal={IEEE Transactions on Image Processing},
  volume={30},
  pages={5363--5376},
  year={2021}
}"""
    time_growth = "BCN + BK²N"
    memory_growth = "BN"
    fused = True

    def __init__(self, setup: LossSetup, temperature: float = 4.0, missing: Missing = "drop"):
        super().__init__(setup, layer="logits")
        check_positive("dsd: temperature", temperature)
        check_value("dsd: missing", missing, Missing)
        check_same_classes("dsd", self.student_channels, self.teacher_channels)
        self.temperature = temperature
        self.student_entries, self.teacher_entries = _entries(setup, missing)
        if len(self.student_entries) < 2:
            raise ValueError(
                "dsd: compares at least two of aux_logits, features and logits, but the models share only "
                f"{', '.join(self.student_entries)}. Name the module whose output becomes `features`."
            )

    @classmethod
    def teacher_fields(cls, options: dict[str, Any]) -> tuple[str, ...]:
        return ("features", "logits")

    def forward(self, student: SegmentationOutput, teacher: SegmentationOutput, labels: Tensor) -> dict[str, Tensor]:
        # With a stand-in, the original's pair of logits and logits sends back ±1e12 and more, which cancels but
        # swallows the other gradients of the logits in rounding: they are exactly 0, and only the features learn.
        stand_in = self.student_entries.count("logits") > 1
        logits = student.logits.detach() if stand_in else student.logits
        student_maps = [logits if name == "logits" else student[name] for name in self.student_entries]
        teacher_maps = [teacher[name] for name in self.teacher_entries]
        student_relations, teacher_relations = (relations(maps, logits) for maps in (student_maps, teacher_maps))
        psd = [F.mse_loss(s, t) for s, t in zip(student_relations, teacher_relations, strict=True)]
        csd = F.mse_loss(self.overlap(logits), self.overlap(resize_like(teacher.logits, logits)))
        return {"psd": sum(psd) / len(psd), "csd": csd + 0 * student.logits.sum() if stand_in else csd}

    def overlap(self, logits: Tensor) -> Tensor:
        """Inner products (B, K, K) of the classes' distributions over positions, for logits (B, K, h, w)."""
        pooled = F.avg_pool2d(logits, kernel_size=2, ceil_mode=True).flatten(2)
        distributions = (pooled / self.temperature).softmax(dim=-1)
        return distributions @ distributions.transpose(1, 2)


def relations(maps: list[Tensor], reference: Tensor) -> list[Tensor]:
    """Unit vectors (B, h·w) of the differences between the attention maps of every two of `maps`, on one grid."""
    # Resized after the mean over channels: a wide feature map at the size of the image would not fit into memory.
    strengths = [resize_like(mean_square(x)[:, None], reference) for x in maps]
    attentions = [F.normalize(x.flatten(1), dim=1) for x in strengths]
    return [F.normalize(first - second, dim=1) for first, second in combinations(attentions, 2)]


def _entries(setup: LossSetup, missing: str) -> tuple[list[str], list[str]]:
    sides = setup.student, setup.teacher
    shared = [name for name in ENTRIES if all(name in shapes for shapes in sides)]
    if missing == "drop" or all("aux_logits" in x for x in sides) or not any("aux_logits" in x for x in sides):
        return shared, shared
    return tuple(["aux_logits" if "aux_logits" in shapes else "logits", *shared] for shapes in sides)
