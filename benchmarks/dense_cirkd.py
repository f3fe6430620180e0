"""CIRKD's relations as the original formulates them: whole similarity maps, queues updated class by class."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.dense_attention import non_local
from hf_segkd.losses.cirkd import PIXELS_PER_CLASS
from hf_segkd.losses.cirkdv2 import CHANNEL_POOLING, CHANNELS_PER_STEP
from hf_segkd.models import SegmentationOutput


def minibatch(loss: nn.Module, student: SegmentationOutput, teacher: SegmentationOutput, labels: Tensor) -> Tensor:
    return _image_pairs(unit_pixels(student.features), unit_pixels(teacher.features), loss.temperature)


def memory_bank(loss: nn.Module, student: SegmentationOutput, teacher: SegmentationOutput, labels: Tensor) -> Tensor:
    students, teachers = (unit_pixels(x.features).flatten(0, 1) for x in (student, teacher))
    return sum(_bank(students, teachers, keys, loss.temperature) for keys in loss.buffers())


def memory(
    loss: nn.Module, student: SegmentationOutput, teacher: SegmentationOutput, labels: Tensor
) -> dict[str, Tensor]:
    return _memory(loss, student.features, teacher.features, labels)


def queue_update(loss: nn.Module, student: SegmentationOutput, teacher: SegmentationOutput, labels: Tensor) -> Tensor:
    labels = _labels(loss, labels, teacher.features.shape[-2:])
    _enqueue(loss, teacher.features.flatten(2).transpose(1, 2), labels)
    return student.features.new_zeros(())


def channel_relations(
    loss: nn.Module, student: SegmentationOutput, teacher: SegmentationOutput, labels: Tensor
) -> dict[str, Tensor]:
    return _channels(loss, student.features, teacher.features)


def cirkdv2(
    loss: nn.Module, student: SegmentationOutput, teacher: SegmentationOutput, labels: Tensor
) -> dict[str, Tensor]:
    student_map, teacher_map = non_local(loss.context, student.features), teacher.features
    terms = {"fitnet": F.mse_loss(loss.projector(student_map), teacher_map)}
    pixels = unit_pixels(student_map), unit_pixels(teacher_map)
    terms["minibatch_pixel"] = _image_pairs(*pixels, loss.minibatch.temperature)
    banks = _memory(loss.memory, student_map, teacher_map, labels)
    terms |= {f"memory_{name}": value for name, value in banks.items()}
    return terms | _channels(loss.channel, student_map, teacher_map)


def unit_pixels(x: Tensor) -> Tensor:
    return F.normalize(x, dim=1).flatten(2).transpose(1, 2)


def _image_pairs(students: Tensor, teachers: Tensor, temperature: float) -> Tensor:
    total, batch = 0.0, len(students)
    for i in range(batch):
        for j in range(batch):
            student_log = F.log_softmax(students[i] @ students[j].T / temperature, dim=1)
            target = F.softmax(teachers[i] @ teachers[j].T / temperature, dim=1)
            total = total + F.kl_div(student_log, target, reduction="batchmean")
    return total / batch**2


def _bank(students: Tensor, teachers: Tensor, keys: Tensor, temperature: float) -> Tensor:
    student_log = F.log_softmax(students @ keys.T / temperature, dim=1)
    target = F.softmax(teachers @ keys.T / temperature, dim=1)
    return F.kl_div(student_log, target, reduction="batchmean")


def _labels(loss: nn.Module, labels: Tensor, size: torch.Size) -> Tensor:
    labels = F.interpolate(labels[:, None].float(), size=size, mode="nearest").long().flatten(1)
    return torch.where(labels < loss.setup.num_labels, labels, loss.setup.num_labels)


def _memory(loss: nn.Module, student_map: Tensor, teacher_map: Tensor, labels: Tensor) -> dict[str, Tensor]:
    students, teachers = unit_pixels(loss.head(student_map)), unit_pixels(teacher_map)
    labels = _labels(loss, labels, student_map.shape[-2:])
    _enqueue(loss, teachers, labels)
    anchors = labels.flatten() != loss.setup.num_labels
    students, teachers = students.flatten(0, 1)[anchors], teachers.flatten(0, 1)[anchors]
    terms, temperature = {}, loss.temperature * loss.kd_temperature
    for name, samples in (("pixel", loss.pixel_samples), ("region", loss.region_samples)):
        queue = loss.get_buffer(f"{name}_queue")
        keys = queue[:, loss.draw_slots(name, queue.shape[1])[:samples]].flatten(0, 1).to(students.dtype)
        terms[name] = _bank(students, teachers, keys, temperature) * loss.kd_temperature**2
    return terms


@torch.no_grad()
def _enqueue(loss: nn.Module, pixels: Tensor, labels: Tensor) -> None:
    priorities = loss.draw_priorities(labels)
    for image, own, order in zip(pixels, labels, priorities, strict=True):
        for index in own.unique().tolist():
            if index == loss.setup.num_labels:
                continue
            members = (own == index).nonzero().squeeze(1)
            region = F.normalize(image[members].mean(dim=0, keepdim=True), dim=1)
            _write(loss.region_queue[index], loss.region_pointer, index, region)
            chosen = members[order[members].argsort()[:PIXELS_PER_CLASS]]
            _write(loss.pixel_queue[index], loss.pixel_pointer, index, F.normalize(image[chosen], dim=1))


def _write(queue: Tensor, pointers: Tensor, index: int, rows: Tensor) -> None:
    pointer, count = int(pointers[index]), len(rows)
    if pointer + count >= len(queue):
        queue[-count:] = rows
        pointers[index] = 0
    else:
        queue[pointer : pointer + count] = rows
        pointers[index] += count


def _channels(loss: nn.Module, student_map: Tensor, teacher_map: Tensor) -> dict[str, Tensor]:
    pooled = (
        F.avg_pool2d(x, kernel_size=CHANNEL_POOLING, stride=CHANNEL_POOLING, ceil_mode=True)
        for x in (student_map, teacher_map)
    )
    student, teacher = next(pooled), next(pooled)
    student, teacher = (F.normalize(x.flatten(2), dim=-1) for x in (loss.head(student), teacher))
    with torch.no_grad():
        rows = teacher.flatten(0, 1)
        chosen = loss.draw_rows(len(rows))[: min(len(rows), CHANNELS_PER_STEP)]
        _write(loss.queue, loss.pointer, 0, F.normalize(rows[chosen], dim=1))
    keys = loss.queue[loss.draw_slots(len(loss.queue))[: loss.samples]].to(student.dtype)
    temperature = loss.temperature * loss.kd_temperature
    bank = _bank(student.flatten(0, 1), teacher.flatten(0, 1), keys, temperature) * loss.kd_temperature**2
    return {
        "minibatch_channel": _image_pairs(student, teacher, loss.temperature),
        "memory_channel": bank,
        "channel_kd": F.mse_loss(student, teacher),
    }
