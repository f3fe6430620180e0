"""Small inputs for every loss, shared by the tests that run over `LOSSES`."""

import torch
from torch import nn

from hf_segkd.losses import LOSSES, LossSetup, build_losses
from hf_segkd.models import SegmentationOutput

K, IGNORE = 3, 255
STUDENT_CHANNELS, TEACHER_CHANNELS = 4, 6
SIDE = 8  # of the maps, where the loss does not need larger ones; labels are 4 times as large


def side(name: str) -> int:
    return max(SIDE, LOSSES[name].min_side)


def images(name: str) -> int:
    """Images per process: two, or as many as the loss needs."""
    return max(2, LOSSES[name].min_batch)


def shapes(channels: int, height: int, width: int) -> dict[str, torch.Size]:
    sizes = {"logits": K, "aux_logits": K, "features": channels, "hidden_states.0": STUDENT_CHANNELS}
    return {field: torch.Size((1, count, height, width)) for field, count in sizes.items()}


def setup(name: str, teacher_channels: int = TEACHER_CHANNELS, size: int | None = None) -> LossSetup:
    size = size or side(name)
    return LossSetup(shapes(STUDENT_CHANNELS, size, size), K, shapes(teacher_channels, size, size), IGNORE)


def build(name: str, teacher_channels: int = TEACHER_CHANNELS, size: int | None = None, **options):
    """One loss with fixed initial weights."""
    torch.manual_seed(0)
    modules, _ = build_losses({name: options}, setup(name, teacher_channels, size))
    return modules[name]


def output(
    channels, size, batch, scale=1.0, constant=False, seed=0, dtype=torch.float32, grad=True
) -> SegmentationOutput:
    """Random maps, or maps that are constant over space."""
    generator = torch.Generator().manual_seed(seed)

    def draw(count):
        x = torch.randn(batch, count, *size, generator=generator, dtype=torch.float64)
        x = x[..., :1, :1].expand_as(x) if constant else x
        return (scale * x).to(dtype).requires_grad_(grad)

    return SegmentationOutput(
        logits=draw(K), aux_logits=draw(K), features=draw(channels), hidden_states=(draw(STUDENT_CHANNELS),)
    )


def pair(name: str, batch: int | None = None, teacher_size: tuple[int, int] | None = None, **options):
    """Outputs of a student, with graph, and of a teacher, without."""
    size, batch = (side(name), side(name)), batch or images(name)
    other = options | {"seed": options.get("seed", 0) + 100, "grad": False}
    teacher = output(TEACHER_CHANNELS, teacher_size or size, batch, **other)
    return output(STUDENT_CHANNELS, size, batch, **options), teacher


def labels_for(name: str, batch: int | None = None, value: int | None = None) -> torch.Tensor:
    """Random classes below a stripe of ignored pixels, the same number in each image; or one value everywhere."""
    size = 4 * side(name)
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(0, K, (batch or images(name), size, size), generator=generator)
    labels[:, : size // 4] = IGNORE
    return labels if value is None else torch.full_like(labels, value)


def named(value) -> dict[str, torch.Tensor]:
    return value if isinstance(value, dict) else {"": value}


def total(value) -> torch.Tensor:
    return sum(named(value).values())


class TinyNet(nn.Module):
    """Images (B, 3, h, w) to every output field at the same size: for a student without BatchNorm or dropout."""

    def __init__(self, channels: int, seed: int):
        super().__init__()
        torch.manual_seed(seed)
        self.stem = nn.Conv2d(3, STUDENT_CHANNELS, kernel_size=3, padding=1)
        self.body = nn.Conv2d(STUDENT_CHANNELS, channels, kernel_size=1)
        self.classifier = nn.Conv2d(channels, K, kernel_size=1)
        self.auxiliary = nn.Conv2d(STUDENT_CHANNELS, K, kernel_size=1)

    def forward(self, pixel_values, output_hidden_states=True):
        hidden = self.stem(pixel_values).tanh()
        features = self.body(hidden).tanh()
        return SegmentationOutput(
            logits=self.classifier(features),
            aux_logits=self.auxiliary(hidden),
            features=features,
            hidden_states=(hidden,),
        )


def freeze_batch_norm(module: nn.Module) -> nn.Module:
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.eval()
    return module
