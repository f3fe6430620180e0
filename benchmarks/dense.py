"""The losses as the original repositories formulate them, to compare with: whole maps and loops over classes.

Relations and attention have their own files, `dense_cirkd.py` and `dense_attention.py`.

Each function takes one of the library's losses, for its options and its state, and gives the same value.
"""

from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_segkd.models import SegmentationOutput


def task(loss: nn.Module, student: SegmentationOutput, teacher: SegmentationOutput, labels: Tensor) -> Tensor:
    size, setup = labels.shape[-2:], loss.setup
    total = 0.0
    for logits, weight in ((student.logits, 1.0), (student.aux_logits, loss.aux_weight)):
        if logits is not None:
            logits = F.interpolate(logits, size=size, mode="bilinear", align_corners=setup.align_corners)
            total = total + weight * F.cross_entropy(logits, labels, ignore_index=setup.ignore_index)
    return total


def kd(loss: nn.Module, student: SegmentationOutput, teacher: SegmentationOutput, labels: Tensor) -> Tensor:
    student_log = F.log_softmax(student.logits / loss.temperature, dim=1)
    target = F.softmax(teacher.logits / loss.temperature, dim=1)
    batch, _, height, width = student_log.shape
    return F.kl_div(student_log, target, reduction="sum") * loss.temperature**2 / (batch * height * width)


def cwd(loss: nn.Module, student: SegmentationOutput, teacher: SegmentationOutput, labels: Tensor) -> Tensor:
    maps = (x.flatten(2) for x in (loss.projector(student[loss.layer]), teacher[loss.layer]))
    distributions, target = (F.softmax(x / loss.temperature, dim=-1) for x in maps)
    batch, channels, _ = distributions.shape
    return F.kl_div(distributions.log(), target, reduction="sum") * loss.temperature**2 / (batch * channels)


def at(loss: nn.Module, student: SegmentationOutput, teacher: SegmentationOutput, labels: Tensor) -> Tensor:
    student_map, teacher_map = (_attention(x.features) for x in (student, teacher))
    return (student_map - teacher_map).pow(2).mean()


def fitnet(loss: nn.Module, student: SegmentationOutput, teacher: SegmentationOutput, labels: Tensor) -> Tensor:
    return F.mse_loss(loss.projector(student.features), teacher.features)


def dsd(
    loss: nn.Module, student: SegmentationOutput, teacher: SegmentationOutput, labels: Tensor
) -> dict[str, Tensor]:
    residuals, overlaps = [], []
    for output in (student, teacher):
        attentions = [_attention(output[name]) for name in ("aux_logits", "features", "logits")]
        residuals.append([F.normalize(F.normalize(b - a)) for a, b in combinations(attentions, 2)])
        pooled = F.avg_pool2d(output.logits, kernel_size=2, stride=2, ceil_mode=True).flatten(2)
        distributions = F.softmax(pooled / loss.temperature, dim=-1)
        overlaps.append(torch.bmm(distributions, distributions.transpose(1, 2)))
    psd = sum((s - t).pow(2).mean() for s, t in zip(*residuals, strict=True)) / len(residuals[0])
    return {"psd": psd, "csd": (overlaps[0] - overlaps[1]).pow(2).mean()}


def dist(loss: nn.Module, student: SegmentationOutput, teacher: SegmentationOutput, labels: Tensor) -> Tensor:
    classes = student.logits.shape[1]
    logits = (x.logits.transpose(1, 3).reshape(-1, classes) for x in (student, teacher))
    p, q = (F.softmax(x / loss.temperature, dim=1) for x in logits)
    pixels, channels = (1 - _pearson(a, b).mean() for a, b in ((p, q), (p.T, q.T)))
    return loss.temperature**2 * (loss.beta * pixels + loss.gamma * channels)


def mgd(loss: nn.Module, student: SegmentationOutput, teacher: SegmentationOutput, labels: Tensor) -> Tensor:
    generated = _generate(loss.generation, student.features)
    return F.mse_loss(generated, teacher.features, reduction="sum") / len(generated)


def af_dcd(
    loss: nn.Module, student: SegmentationOutput, teacher: SegmentationOutput, labels: Tensor
) -> dict[str, Tensor]:
    generated = _generate(loss.generation, student.features)
    feature = F.mse_loss(generated, teacher.features, reduction="sum") / len(generated)
    anchors, pieces = loss.patches(generated), loss.patches(teacher.features)
    group = torch.arange(anchors.shape[1]) % loss.groups
    left_out = (group[:, None] == group) & ~torch.eye(len(group), dtype=torch.bool)
    logits = (-torch.cdist(anchors, pieces, p=1) / loss.temperature).masked_fill(left_out, -torch.inf)
    contrast = -F.log_softmax(logits, dim=-1).diagonal(dim1=1, dim2=2).sum()
    return {"feature": feature, "contrast": contrast / (anchors.shape[0] * anchors.shape[1] / loss.groups)}


def bpkd(
    loss: nn.Module, student: SegmentationOutput, teacher: SegmentationOutput, labels: Tensor
) -> dict[str, Tensor]:
    batch, classes = student.logits.shape[:2]
    members = (labels[:, None] == torch.arange(classes)[:, None, None]).float()
    reached = F.max_pool2d(members, loss.width, stride=1, padding=loss.width // 2)
    borders = reached * (reached.sum(dim=1, keepdim=True) > 1)
    mask = F.adaptive_avg_pool2d(borders, student.logits.shape[-2:]).to(student.logits.dtype)
    inside = [x.logits * (1 - mask) / loss.temperature for x in (student, teacher)]
    body = _kl(*(x.flatten(2) for x in inside), dim=2).sum() * loss.temperature**2 / (batch * classes)
    border = [x.logits * mask / loss.temperature for x in (student, teacher)]
    per_class = (mask * _kl(*border, dim=1).sum(dim=1, keepdim=True)).sum(dim=(2, 3)) / mask.sum(dim=(2, 3))
    return {"edge": per_class.sum() * loss.temperature**2 / batch, "body": body}


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
        centers, classes = features.clone(), labels.expand(features.shape)
        for index in range(loss.setup.num_labels):
            members = (classes == index).to(features.dtype)
            means = (members * features).sum((2, 3)) / (members.sum((2, 3)) + 1e-6)
            centers = (1 - members) * centers + members * means[..., None, None]
        variations.append(F.cosine_similarity(features, centers, dim=1))
    return (variations[0] - variations[1]).pow(2).mean()


def _attention(x: Tensor) -> Tensor:
    return F.normalize(x.pow(2).mean(dim=1).flatten(1), dim=1)


def _pearson(a: Tensor, b: Tensor) -> Tensor:
    a, b = a - a.mean(dim=1, keepdim=True), b - b.mean(dim=1, keepdim=True)
    return (a * b).sum(dim=1) / (a.norm(dim=1) * b.norm(dim=1) + 1e-8)


def _generate(generation: nn.Module, x: Tensor) -> Tensor:
    mask = generation.draw_mask(len(x), *x.shape[-2:]).to(x)
    return generation.generator(generation.projector(x) * mask)


def _kl(student: Tensor, teacher: Tensor, dim: int) -> Tensor:
    return F.kl_div(F.log_softmax(student, dim), F.softmax(teacher, dim), reduction="none")
