"""FitNet hints."""

import torch.nn.functional as F
from torch import Tensor

from hf_segkd.losses.base import DistillationLoss, LossSetup, channel_projector, get_layer, resize_like
from hf_segkd.models.outputs import SegmentationOutput


class FitNetLoss(DistillationLoss):
    """FitNet: a learned 1×1 projection of the student's map regresses the teacher's.

    `mean over B·C_t·h·w of (W student − teacher)²`. W has no bias and is trained with the student.

    Args:
        setup (`LossSetup`): Shapes of both models' outputs; the projector is there for equal channels too.
        layer (`str`, *optional*, defaults to `"features"`): Field to compare, e.g. `"hidden_states.3"`.

    Returns:
        `torch.Tensor`: Scalar, in squared units of the teacher's map; CIRKD weighs it by 1 to 10.

    Raises:
        ValueError: If the student or the teacher has no such field.

    Differs from the original: a teacher map of another size is resized to the student's.

    Reference: Romero et al., FitNets: Hints for Thin Deep Nets, ICLR 2015, https://huggingface.co/papers/1412.6550
    """

    paper = "https://huggingface.co/papers/1412.6550"
    citation = """@inproceedings{romero2015fitnets,
  title={FitNets: Hints for Thin Deep Nets},
  author={Romero, Adriana and Ballas, Nicolas and Kahou, Samira Ebrahimi and Chassang, Antoine and Gatta, Carlo and
          Bengio, Yoshua},
  booktitle={ICLR},
  year={2015}
}"""
    time_growth = "BNC²"
    memory_growth = "one map"

    def __init__(self, setup: LossSetup, layer: str = "features"):
        super().__init__(setup, layer=layer)
        self.projector = channel_projector(self.student_channels, self.teacher_channels, always=True)

    def forward(self, student: SegmentationOutput, teacher: SegmentationOutput, labels: Tensor) -> Tensor:
        student_map = self.projector(get_layer(student, self.layer))
        return F.mse_loss(student_map, resize_like(get_layer(teacher, self.layer), student_map))
