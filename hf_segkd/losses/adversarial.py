"""Holistic distillation: a discriminator learns to tell the student's logits from the teacher's."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_segkd.losses.base import DistillationLoss, LossSetup, check_same_classes, get_layer, map_shape, resize_like
from hf_segkd.losses.discriminator import MIN_SIDE, Discriminator, Preprocessing
from hf_segkd.losses.draws import SeededDraws
from hf_segkd.losses.skd import PairwiseLoss
from hf_segkd.models.outputs import SegmentationOutput
from hf_segkd.values import check_positive, check_value

ORDERS = {"student_first": ("student", "teacher"), "teacher_first": ("teacher", "student")}
Objective = Literal["hinge", "wgan-gp"]
Order = Literal["student_first", "teacher_first"]
Optimizer = Literal["adam", "sgd"]


class AdversarialLoss(DistillationLoss):
    """Holistic distillation (Structured KD): a discriminator D tells logit maps apart, the student learns to pass.

    `student = −mean D(s)` reaches the student only. `discriminator` reaches D only: `"hinge"` is `mean relu(1 − D(t))
    + mean relu(1 + D(s))`, `"wgan-gp"` is `mean D(s) − mean D(t) + gradient_penalty · mean (‖∇D(x)‖ − 1)²` at mixtures
    `x = α t + (1 − α) s`, α uniform in [0, 1] per image. One backward serves both; D has its own optimizer.

    Args:
        setup (`LossSetup`): Shapes of both models' logits, at least 64×64 positions; the teacher's are resized.
        objective (`str`, *optional*, defaults to `"hinge"`): `"hinge"` (CIRKD) or `"wgan-gp"` (SKD, CWD's code).
        gradient_penalty (`float`, *optional*, defaults to `10.0`): Weight of `"wgan-gp"`'s penalty, ≥ 0.
        order (`str`, *optional*, defaults to `"student_first"`): Whose logits D sees first after the student's own
            pass (CIRKD, CWD's code), or `"teacher_first"` (SKD). Each call moves D's running statistics.
        preprocessing (`str`, *optional*, defaults to `"batch_norm"`): Of the logits, see
            [`~hf_segkd.losses.discriminator.Discriminator`]. All originals use `"batch_norm"`.
        optimizer (`str`, *optional*, defaults to `"adam"`): D's: `"adam"` with betas (0.9, 0.99), or `"sgd"` with
            momentum 0.9 (SKD, which sets its weight decay to the student's).
        learning_rate (`float`, *optional*, defaults to `4e-4`): D's, > 0; the run's schedule scales it, too, unless
            `constant_learning_rate`.
        weight_decay (`float`, *optional*, defaults to `0.0`): D's, ≥ 0; the recipe's own does not reach D.
        layer (`str`, *optional*, defaults to `"logits"`): Field to compare: `"logits"` or `"aux_logits"`.
        constant_learning_rate (`bool`, *optional*, defaults to `False`): Whether D's learning rate stays what it is
            (CIRKD) instead of following the run's schedule (SKD).
        condition_on_image (`bool`, *optional*, defaults to `False`): Whether D also sees the image, at the size of the
            logits, as in the paper. None of the codes does.

    Returns:
        `dict[str, torch.Tensor]`: Scalars `"student"` and `"discriminator"`. CIRKD's weights: 0.001 and 0.1. With
        `"hinge"`, `"discriminator"` starts near 2 and is 0 once D tells all maps apart; `"student"` has no bounds.

    Raises:
        ValueError: If the student's logits are smaller than 64×64, the models differ in classes, or an option is
            unknown or negative.

    Differs from the original: D collects no gradient from the student's term (there it is thrown away), and its own is
    averaged between processes (not in CIRKD); a call of D keeps its spectral norm's gradient when another call follows
    (as on torch ≤ 1.6); D and its optimizer are saved. Spectral norm advances with every micro-batch of an accumulated
    step. Two processes equal one with both batches for `"hinge"`, if D's BatchNorm is synchronized (it is on GPUs) or
    replaced by `"tanh"`.

    Reference: Liu et al., Structured Knowledge Distillation for Semantic Segmentation, CVPR 2019,
    https://huggingface.co/papers/1903.04197
    """

    paper = "https://huggingface.co/papers/1903.04197"
    citation = PairwiseLoss.citation  # one paper
    min_side = MIN_SIDE
    time_growth = "the discriminator's"
    memory_growth = "3.2 M parameters"
    fused = True

    def __init__(
        self,
        setup: LossSetup,
        objective: Objective = "hinge",
        gradient_penalty: float = 10.0,
        order: Order = "student_first",
        preprocessing: Preprocessing = "batch_norm",
        optimizer: Optimizer = "adam",
        learning_rate: float = 4e-4,
        weight_decay: float = 0.0,
        layer: str = "logits",
        constant_learning_rate: bool = False,
        condition_on_image: bool = False,
    ):
        super().__init__(setup, layer=layer)
        check_same_classes("adversarial", self.student_channels, self.teacher_channels)
        check_value("adversarial: objective", objective, Objective)
        check_value("adversarial: order", order, Order)
        check_value("adversarial: optimizer", optimizer, Optimizer)
        _check_numbers(learning_rate, gradient_penalty=gradient_penalty, weight_decay=weight_decay)
        _check_size(*map_shape(setup.student, layer, "student")[-2:])
        self.objective, self.order, self.gradient_penalty = objective, ORDERS[order], gradient_penalty
        self.optimizer_name, self.learning_rate, self.weight_decay = optimizer, learning_rate, weight_decay
        self.constant_learning_rate = constant_learning_rate
        self.condition_on_image = condition_on_image
        channels = self.student_channels + setup.image_channels * condition_on_image
        self.discriminator = Discriminator(channels, preprocessing)
        self.draws = SeededDraws(setup.seed)

    def forward(
        self,
        student: SegmentationOutput,
        teacher: SegmentationOutput,
        labels: Tensor | None,
        images: Tensor | None = None,
    ) -> dict[str, Tensor]:
        student_logits = get_layer(student, self.layer)
        image = self.image_for(student_logits, images)
        # Frozen, D passes the gradient on to the student without taking any itself.
        self.discriminator.requires_grad_(False)
        generator = -self.judge(student_logits, image).mean()
        self.discriminator.requires_grad_(True)
        teacher_logits = resize_like(get_layer(teacher, self.layer), student_logits)
        logits = {"student": student_logits.detach(), "teacher": teacher_logits}
        scores = {whose: self.judge(logits[whose], image) for whose in self.order}
        value = OBJECTIVES[self.objective](scores["student"], scores["teacher"])
        if self.objective == "wgan-gp" and self.gradient_penalty:
            value = value + self.gradient_penalty * self.penalty(logits["student"], logits["teacher"], image)
        return {"student": generator, "discriminator": value}

    def image_for(self, logits: Tensor, images: Tensor | None) -> Tensor | None:
        """What D sees beside the logits: the images at their size, or nothing."""
        if not self.condition_on_image:
            return None
        if images is None:
            raise ValueError("adversarial: condition_on_image needs the images. Call it with images=pixel_values.")
        size = logits.shape[-2:]
        return F.interpolate(images.to(logits.dtype), size=size, mode="bilinear", antialias=True)

    def judge(self, logits: Tensor, image: Tensor | None) -> Tensor:
        """D's scores of logits, given the image if it is conditioned on it."""
        return self.discriminator(logits if image is None else torch.cat([logits, image], dim=1))

    def penalty(self, student_logits: Tensor, teacher_logits: Tensor, image: Tensor | None = None) -> Tensor:
        """Mean squared distance from 1 of the norm of D's gradient, per image, at a random mixture of both maps."""
        share = self.draw_shares(len(student_logits)).to(student_logits, non_blocking=True).view(-1, 1, 1, 1)
        mixture = (share * teacher_logits + (1 - share) * student_logits).requires_grad_()
        (gradient,) = torch.autograd.grad(self.judge(mixture, image).sum(), mixture, create_graph=True)
        return (gradient.flatten(1).norm(dim=1) - 1).square().mean()

    def draw_shares(self, batch: int) -> Tensor:
        """The teacher's random share α of each image's mixture."""
        return self.draws.uniform(torch.Size([batch]))

    def optimizer(self) -> torch.optim.Optimizer:
        parameters = self.discriminator.parameters()
        options = {"lr": self.learning_rate, "weight_decay": self.weight_decay}
        if self.optimizer_name == "sgd":
            optimizer = torch.optim.SGD(parameters, momentum=0.9, **options)
        else:
            optimizer = torch.optim.Adam(parameters, betas=(0.9, 0.99), **options)
        if self.constant_learning_rate:
            optimizer.register_step_pre_hook(_restore_learning_rate)
        return optimizer


def _restore_learning_rate(optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict) -> None:
    """Undo what the run's schedule did to the learning rate, before a step."""
    for group in optimizer.param_groups:
        group["lr"] = optimizer.defaults["lr"]


def hinge(student_scores: Tensor, teacher_scores: Tensor) -> Tensor:
    """What D minimizes: the teacher's scores are to exceed 1, the student's to fall below −1."""
    return F.relu(1 - teacher_scores).mean() + F.relu(1 + student_scores).mean()


def wasserstein(student_scores: Tensor, teacher_scores: Tensor) -> Tensor:
    """What D minimizes: the student's mean score less the teacher's, without bounds."""
    return student_scores.mean() - teacher_scores.mean()


OBJECTIVES = {"hinge": hinge, "wgan-gp": wasserstein}


def _check_numbers(learning_rate: float, **not_negative: float) -> None:
    check_positive("adversarial: learning_rate", learning_rate)
    for name, value in not_negative.items():
        if not value >= 0:
            raise ValueError(f"adversarial: {name} must not be negative, got {value}.")


def _check_size(height: int, width: int) -> None:
    if min(height, width) >= MIN_SIDE:
        return
    factors = " and ".join(
        f"{math.ceil(100 * MIN_SIDE / side) / 100:g} times as {word}"
        for side, word in ((height, "high"), (width, "wide"))
        if side < MIN_SIDE
    )
    raise ValueError(
        f"adversarial: the discriminator needs student logits of at least {MIN_SIDE}×{MIN_SIDE} positions, got "
        f"{height}×{width}. Make crop_size {factors} (512×512 pixels for logits at 1/8 of the image), or leave this "
        "loss out."
    )
