"""The losses as the original repositories formulate them, to compare with: whole maps and loops over classes.

Each function takes one of the library's losses, for its options and its state, and gives the same value.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_segkd.models import SegmentationOutput


def task(loss: nn.Module, student: SegmentationOutput, teacher: SegmentationOutput, labels: Tensor) -> Tensor:
    size, setup = labels.shape[-2:], loss.setup
    logits = F.interpolate(student.logits, size=size, mode="bilinear", align_corners=setup.align_corners)
    return F.cross_entropy(logits, labels, ignore_index=setup.ignore_index)


def kd(loss: nn.Module, student: SegmentationOutput, teacher: SegmentationOutput, labels: Tensor) -> Tensor:
    student_log = F.log_softmax(student.logits / loss.temperature, dim=1)
    target = F.softmax(teacher.logits / loss.temperature, dim=1)
    batch, _, height, width = student_log.shape
    return F.kl_div(student_log, target, reduction="sum") * loss.temperature**2 / (batch * height * width)


def cwd(loss: nn.Module, student: SegmentationOutput, teacher: SegmentationOutput, labels: Tensor) -> Tensor:
    maps = (x[loss.layer].flatten(2) for x in (student, teacher))
    distributions, target = (F.softmax(x / loss.temperature, dim=-1) for x in maps)
    batch, channels, _ = distributions.shape
    return F.kl_div(distributions.log(), target, reduction="sum") * loss.temperature**2 / (batch * channels)


def at(loss: nn.Module, student: SegmentationOutput, teacher: SegmentationOutput, labels: Tensor) -> Tensor:
    student_map, teacher_map = (F.normalize(x.features.pow(2).mean(1).flatten(1)) for x in (student, teacher))
    return (student_map - teacher_map).pow(2).mean()


def skd_pairwise(loss: nn.Module, student: SegmentationOutput, teacher: SegmentationOutput, labels: Tensor) -> Tensor:
    similarities = []
    for output in (student, teacher):
        regions = F.max_pool2d(output.features, kernel_size=2, stride=2, ceil_mode=True)
        regions = F.normalize(regions, dim=1).flatten(2)
        similarities.append(torch.einsum("bcm,bcn->bmn", regions, regions))
    return (similarities[0] - similarities[1]).pow(2).mean()


def ifvd(loss: nn.Module, student: SegmentationOutput, teacher: SegmentationOutput, labels: Tensor) -> Tensor:
    labels = F.interpolate(labels[:, None].float(), size=student.features.shape[-2:], mode="nearest")
    variations = []
    for features in (student.features, teacher.features):
        centres, classes = features.clone(), labels.expand(features.shape)
        for index in range(loss.setup.num_labels):
            members = (classes == index).to(features.dtype)
            means = (members * features).sum((2, 3)) / (members.sum((2, 3)) + 1e-6)
            centres = (1 - members) * centres + members * means[..., None, None]
        variations.append(F.cosine_similarity(features, centres, dim=1))
    return (variations[0] - variations[1]).pow(2).mean()


def cirkd_minibatch(
    loss: nn.Module, student: SegmentationOutput, teacher: SegmentationOutput, labels: Tensor
) -> Tensor:
    students, teachers = _unit_pixels(student.features), _unit_pixels(teacher.features)
    total, batch = 0.0, len(students)
    for i in range(batch):
        for j in range(batch):
            student_log = F.log_softmax(students[i] @ students[j].T / loss.temperature, dim=1)
            target = F.softmax(teachers[i] @ teachers[j].T / loss.temperature, dim=1)
            total = total + F.kl_div(student_log, target, reduction="batchmean")
    return total / batch**2


def memory_bank(loss: nn.Module, student: SegmentationOutput, teacher: SegmentationOutput, labels: Tensor) -> Tensor:
    students, teachers = (_unit_pixels(x.features).flatten(0, 1) for x in (student, teacher))
    total = 0.0
    for keys in loss.buffers():
        student_log = F.log_softmax(students @ keys.T / loss.temperature, dim=1)
        target = F.softmax(teachers @ keys.T / loss.temperature, dim=1)
        total = total + F.kl_div(student_log, target, reduction="batchmean")
    return total


def _unit_pixels(x: Tensor) -> Tensor:
    return F.normalize(x, dim=1).flatten(2).transpose(1, 2)
