"""Cosine distance of feature maps."""

import torch.nn.functional as F
from torch import Tensor

from hf_segkd.losses.base import DistillationLoss, LossSetup, channel_projector, get_layer, resize_like
from hf_segkd.models.outputs import SegmentationOutput


class CosineLoss(DistillationLoss):
    """Cosine distance: at every position the student's feature points where the teacher's does.

    `mean over B·h·w of 1 − cos(W student, teacher)`, between 0 and 2. The norm of a feature does not count:
    positions at which a vision transformer's values are very large have no more weight than others.

    Args:
        setup (`LossSetup`): Shapes of both models' outputs; a 1×1 projector W is added when channels differ.
        layer (`str`, *optional*, defaults to `"features"`): Field to compare, e.g. `"hidden_states.-1"`.

    Returns:
        `torch.Tensor`: Scalar.

    Raises:
        ValueError: If the student or the teacher has no such field.

    Differs from the original: AM-RADIO adds a smooth L1 term to the same distance, with weights 0.9 and 0.1; a linear
    projection takes the place of its two-layer heads; a teacher map of another size is resized to the student's.

    Reference: Ranzinger et al., AM-RADIO: Agglomerative Vision Foundation Model -- Reduce All Domains Into One, CVPR
    2024, https://huggingface.co/papers/2312.06709
    """

    paper = "https://huggingface.co/papers/2312.06709"
    citation = """@inproceedings{ranzinger2024amradio,
  title={AM-RADIO: Agglomerative Vision Foundation Model -- Reduce All Domains Into One},
  author={Ranzinger, Mike and Heinrich, Greg and Kautz, Jan and Molchanov, Pavlo},
  booktitle={CVPR},
  year={2024}
}"""
    time_growth = "BNC²"
    memory_growth = "one map"

    def __init__(self, setup: LossSetup, layer: str = "features"):
        super().__init__(setup, layer=layer)
        self.projector = channel_projector(self.student_channels, self.teacher_channels)

    def forward(self, student: SegmentationOutput, teacher: SegmentationOutput, labels: Tensor) -> Tensor:
        student_map = self.projector(get_layer(student, self.layer))
        teacher_map = resize_like(get_layer(teacher, self.layer), student_map)
        return (1 - F.cosine_similarity(student_map, teacher_map, dim=1)).mean()
