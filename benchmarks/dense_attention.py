"""Losses with attention as the originals formulate them: whole N × N attention maps, patch by patch."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_segkd.losses.cskd import query_width
from hf_segkd.losses.discriminator import SLOPE
from hf_segkd.models import SegmentationOutput


def context(loss: nn.Module, student: SegmentationOutput, teacher: SegmentationOutput, labels: Tensor) -> Tensor:
    return (non_local(loss, student.features) * teacher.features).mean()


def non_local(block: nn.Module, x: Tensor) -> Tensor:
    """CIRKDv2's context block; a student without one has `nn.Identity`."""
    if isinstance(block, nn.Identity):
        return x
    query, key, value = (layer(x).flatten(2) for layer in (block.query, block.key, block.value))
    attended = _attend(query * query.shape[1] ** -0.5, key, value)
    return block.fuse(torch.cat([x, block.context(attended.view(len(x), -1, *x.shape[-2:]))], dim=1))


def cskd(
    loss: nn.Module, student: SegmentationOutput, teacher: SegmentationOutput, labels: Tensor
) -> dict[str, Tensor]:
    student_map, values = loss.projector(student.features), {}
    distance = _cka if loss.comparison == "cka" else F.mse_loss
    if "cam" in loss.terms:
        refined = (
            _channel_attention(x, loss.gammas["cam"], loss.temperature) for x in (student_map, teacher.features)
        )
        values["cam"] = distance(*refined)
    if "pam" in loss.terms:
        refined = []
        for whose, x in (("student", student_map), ("teacher", teacher.features)):
            pieces = [piece for rows in x.chunk(loss.grid, dim=2) for piece in rows.chunk(loss.grid, dim=3)]
            refined.append([_position_attention(loss, whose, piece) for piece in pieces])
        values["pam"] = sum(distance(s, t) for s, t in zip(*refined, strict=True)) / len(refined[0])
    return values


def adversarial(
    loss: nn.Module, student: SegmentationOutput, teacher: SegmentationOutput, labels: Tensor
) -> dict[str, Tensor]:
    discriminator = loss.discriminator
    discriminator.requires_grad_(False)
    generator = -_score(discriminator, student.logits).mean()
    discriminator.requires_grad_(True)
    logits = {"student": student.logits.detach(), "teacher": teacher.logits}
    scores = {whose: _score(discriminator, logits[whose]) for whose in loss.order}
    if loss.objective == "hinge":
        value = F.relu(1 - scores["teacher"]).mean() + F.relu(1 + scores["student"]).mean()
        return {"student": generator, "discriminator": value}
    share = loss.draw_shares(len(student.logits)).to(student.logits).view(-1, 1, 1, 1)
    mixture = (share * teacher.logits + (1 - share) * student.logits.detach()).requires_grad_()
    (gradient,) = torch.autograd.grad(_score(discriminator, mixture).sum(), mixture, create_graph=True)
    penalty = (gradient.flatten(1).norm(dim=1) - 1).pow(2).mean()
    value = scores["student"].mean() - scores["teacher"].mean() + loss.gradient_penalty * penalty
    return {"student": generator, "discriminator": value}


def _attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    weights = F.softmax(torch.bmm(query.transpose(1, 2), key), dim=-1)
    return torch.bmm(value, weights.transpose(1, 2))


def _channel_attention(x: Tensor, gamma: Tensor, temperature: float) -> Tensor:
    flat = x.flatten(2)
    energy = torch.bmm(flat, flat.transpose(1, 2))
    weights = F.softmax((energy.max(dim=-1, keepdim=True)[0] - energy) / temperature, dim=-1)
    return gamma * torch.bmm(weights, flat).view_as(x) + x


def _position_attention(loss: nn.Module, whose: str, x: Tensor) -> Tensor:
    projection, width = loss.projection(whose, x), query_width(x.shape[1])
    sizes = (width, width, x.shape[1])
    weights = projection[:, :-1, None, None].split(sizes)
    biases = projection[:, -1].split(sizes)
    query, key, value = (F.conv2d(x, w, b).flatten(2) for w, b in zip(weights, biases, strict=True))
    return loss.gammas["pam"] * _attend(query / loss.temperature, key, value).view_as(x) + x


def _cka(x: Tensor, y: Tensor) -> Tensor:
    grams = [z.flatten(1) @ z.flatten(1).T for z in (x, y)]
    centring = torch.eye(len(x), dtype=x.dtype) - 1 / len(x)
    a, b = (centring @ gram @ centring for gram in grams)
    alignment = (a * b).sum() / ((a * a).sum() * (b * b).sum()).sqrt()
    return -torch.log(alignment.abs() + 1e-8)


def _score(discriminator: nn.Module, logits: Tensor) -> Tensor:
    x = discriminator.preprocess(logits)
    for conv in (discriminator.conv1, discriminator.conv2, discriminator.conv3):
        x = F.leaky_relu(conv(x), SLOPE)
    x = _self_attention(discriminator.attention1, x)
    x = _self_attention(discriminator.attention2, F.leaky_relu(discriminator.conv4(x), SLOPE))
    return discriminator.score(x)


def _self_attention(layer: nn.Module, x: Tensor) -> Tensor:
    query, key, value = (conv(x).flatten(2) for conv in (layer.query, layer.key, layer.value))
    return layer.gamma * _attend(query, key, value).view_as(x) + x
