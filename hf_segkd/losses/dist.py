"""Distillation from a stronger teacher: correlations instead of exact probabilities."""

from torch import Tensor
from torch.linalg import vector_norm

from hf_segkd.losses.base import DistillationLoss, LossSetup, check_same_classes, get_layer, resize_like
from hf_segkd.models.outputs import SegmentationOutput
from hf_segkd.values import check_positive

EPS = 1e-8


class DISTLoss(DistillationLoss):
    """DIST: the student's class probabilities correlate with the teacher's, pixel by pixel and class by class.

    With p, q the softmax over classes of student and teacher at `temperature`, and ρ the Pearson correlation:
    `temperature² · [beta · (1 − mean over pixels of ρ(p_i, q_i)) + gamma · (1 − mean over classes of ρ(p_k, q_k))]`,
    where p_i holds the K classes of a pixel and p_k all B·h·w pixels of the local batch for a class.

    Args:
        setup (`LossSetup`): Shapes of both models' logits; the numbers of classes must agree.
        beta (`float`, *optional*, defaults to `1.0`): Weight of the correlation over classes.
        gamma (`float`, *optional*, defaults to `1.0`): Weight of the correlation over pixels.
        temperature (`float`, *optional*, defaults to `1.0`): Softmax temperature, > 0.
        layer (`str`, *optional*, defaults to `"logits"`): Field to compare: `"logits"` or `"aux_logits"`.

    Returns:
        `torch.Tensor`: Scalar, between 0 and 2 · temperature² · (beta + gamma) for positive weights.

    Raises:
        ValueError: If the temperature is not positive or the classes disagree.

    Differs from the original: the code at hand has no temperature, which is the default here; a teacher map of
    another size is resized to the student's. As there, `gamma`'s term correlates the pixels of the local batch: two
    processes with half the batch each do not train as one with the whole batch.

    Reference: Huang et al., Knowledge Distillation from A Stronger Teacher, NeurIPS 2022,
    https://huggingface.co/papers/2205.10536
    """

    paper = "https://huggingface.co/papers/2205.10536"
    citation = """@inproceedings{huang2022knowledge,
  title={Knowledge Distillation from A Stronger Teacher},
  author={Huang, Tao and You, Shan and Wang, Fei and Qian, Chen and Xu, Chang},
  booktitle={NeurIPS},
  year={2022}
}"""
    time_growth = "BKN"
    memory_growth = "BKN"

    def __init__(
        self, setup: LossSetup, beta: float = 1.0, gamma: float = 1.0, temperature: float = 1.0, layer: str = "logits"
    ):
        super().__init__(setup, layer=layer)
        check_positive("dist: temperature", temperature)
        check_same_classes("dist", self.student_channels, self.teacher_channels)
        self.beta, self.gamma, self.temperature = beta, gamma, temperature

    def forward(self, student: SegmentationOutput, teacher: SegmentationOutput, labels: Tensor) -> Tensor:
        student_logits = get_layer(student, self.layer)
        teacher_logits = resize_like(get_layer(teacher, self.layer), student_logits)
        student_probabilities = (student_logits / self.temperature).softmax(dim=1)
        teacher_probabilities = (teacher_logits / self.temperature).softmax(dim=1)
        pixels = 1 - correlation(student_probabilities, teacher_probabilities, dim=(1,)).mean()
        classes = 1 - correlation(student_probabilities, teacher_probabilities, dim=(0, 2, 3)).mean()
        return self.temperature**2 * (self.beta * pixels + self.gamma * classes)


def correlation(a: Tensor, b: Tensor, dim: tuple[int, ...]) -> Tensor:
    """Pearson correlation of `a` and `b` over the dimensions `dim`; 0 where one of them is constant."""
    a, b = a - a.mean(dim, keepdim=True), b - b.mean(dim, keepdim=True)
    return (a * b).sum(dim) / (vector_norm(a, dim=dim) * vector_norm(b, dim=dim) + EPS)
