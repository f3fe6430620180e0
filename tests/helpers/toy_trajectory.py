"""Record a short run of a toy network in a plain loop, written from the formulas alone: no loss, trainer or schedule
of this library.

    python -m helpers.toy_trajectory FOLDER

tests/golden/trajectory was made so. Cross-entropy with the labels and pixel-wise KD (T = 1), SGD with momentum 0.9 and
weight decay 1e-4, learning rate 0.02 (1 - i / 5)^0.9 set before step i = 0, 1, ...; logits are upsampled with aligned
corners for the cross-entropy; no auxiliary head.
"""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from hf_segkd.loading.any_model import load_model
from hf_segkd.models import InputNormalization

STEPS = 5
RUN = """# A toy run, recorded by tests/helpers/toy_trajectory.py.
student: {model_type: espnet, use_decoder: false, hidden_sizes: [4, 10, 10], depths: [1, 1], num_labels: 5,
          align_corners: true}
teacher: {model_type: espnet, use_decoder: false, hidden_sizes: [4, 10, 10], depths: [1, 1], num_labels: 5,
          align_corners: true}
losses: {task: {weight: 1.0}, kd: {weight: 1.0, temperature: 1.0}}
learning_rate: 0.02
weight_decay: 1.0e-4
max_steps: 5
"""
FIELDS = {
    **{"model_type": "espnet", "use_decoder": False, "hidden_sizes": [4, 10, 10], "depths": [1, 1]},
    **{"num_labels": 5, "align_corners": True},
}


def record(folder: Path) -> None:
    """Write the run into a folder, as benchmarks/trajectories.py reads it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.yaml").write_text(RUN)
    torch.manual_seed(0)
    teacher, _ = load_model(FIELDS)
    student, processor = load_model(FIELDS)
    normalization = InputNormalization.from_processor(processor)
    labels = torch.randint(5, (STEPS, 2, 6, 8)).repeat_interleave(8, 2).repeat_interleave(8, 3)
    images = (labels[:, :, None] * 40 + torch.randint(30, (STEPS, 2, 3, 48, 64))).to(torch.uint8)
    labels[:, :, :8] = 255
    save_file({"pixel_values": images, "labels": labels}, folder / "batches.safetensors")
    save_file(teacher.state_dict(), folder / "teacher.safetensors")
    save_file(student.state_dict(), folder / "weights_0.safetensors")

    teacher.eval()
    student.train()
    speed = {name: torch.zeros_like(value) for name, value in student.named_parameters()}
    for step in range(STEPS):
        pixel_values = normalization(images[step])
        with torch.no_grad():
            teacher_logits = teacher(pixel_values=pixel_values).logits
        logits = student(pixel_values=pixel_values).logits
        large = F.interpolate(logits, size=(48, 64), mode="bilinear", align_corners=True)
        cross_entropy = F.cross_entropy(large, labels[step], ignore_index=255)
        batch, _, height, width = logits.shape
        log_student, log_teacher = logits.log_softmax(1), teacher_logits.log_softmax(1)
        kd = (log_teacher.exp() * (log_teacher - log_student)).sum() / (batch * height * width)
        student.zero_grad()
        (cross_entropy + kd).backward()
        rate = 0.02 * (1 - step / STEPS) ** 0.9
        with torch.no_grad():
            for name, value in student.named_parameters():
                speed[name] = 0.9 * speed[name] + value.grad + 1e-4 * value
                value -= rate * speed[name]
        if step in (0, STEPS - 1):
            save_file(student.state_dict(), folder / f"weights_{step + 1}.safetensors")


if __name__ == "__main__":
    record(Path(sys.argv[1]))
