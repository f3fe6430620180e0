"""Encoder and decoder of ESPNetv2: depthwise dilated convolutions, and pyramids that read a map at five sizes."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BRANCHES = 4
# Extents of a block's four 3x3 kernels, pixels; one above a stage's limit becomes the smallest.
EXTENTS = (3, 5, 7, 9)
# Limits of the down-samplers and of the blocks of the three stages. Stage 3's down-sampler has the limit of stage 2.
DOWNSAMPLE_LIMITS = (13, 11, 9)
BLOCK_LIMITS = (13, 9, 7)
DECODER_SIZES = (64, 48, 32)
# Numerators and denominators of the sizes at which a pyramid reads its map; no size is below MIN_SIDE.
SCALES = ((2, 1), (3, 2), (1, 1), (1, 2), (1, 10))
MIN_SIDE = 5


class NormAct(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.normalization = nn.BatchNorm2d(channels)
        self.activation = nn.PReLU(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.normalization(x))


class ConvNorm(nn.Module):
    """Convolution without bias, batch norm. Padding keeps the size at stride 1."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, groups: int = 1):
        super().__init__()
        self.convolution = nn.Conv2d(
            in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, groups=groups, bias=False
        )
        self.normalization = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.normalization(self.convolution(x))


class ConvNormAct(ConvNorm):
    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, groups: int = 1):
        super().__init__(in_channels, out_channels, kernel_size, stride, groups)
        self.activation = nn.PReLU(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(super().forward(x))


class SpatialPyramid(nn.Module):
    """Reduce, four dilated depthwise convolutions in parallel, their running sums, expand; no last activation."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, limit: int):
        super().__init__()
        width = out_channels // BRANCHES
        self.reduce = ConvNormAct(in_channels, width, 1, groups=BRANCHES)
        self.branches = nn.ModuleList()
        for extent in sorted(extent if extent <= limit else EXTENTS[0] for extent in EXTENTS):
            dilation = (extent - 1) // 2
            options = {"padding": dilation, "dilation": dilation, "groups": width, "bias": False}
            self.branches.append(nn.Conv2d(width, width, 3, stride, **options))
        self.fuse = NormAct(out_channels)
        self.expand = ConvNorm(out_channels, out_channels, 1, groups=BRANCHES)

    def forward(self, x: Tensor) -> Tensor:
        reduced = self.reduce(x)
        sums = [self.branches[0](reduced)]
        for branch in self.branches[1:]:
            sums.append(sums[-1] + branch(reduced))
        return self.expand(self.fuse(torch.cat(sums, dim=1)))


class ESPNetv2Block(SpatialPyramid):
    def __init__(self, channels: int, limit: int):
        super().__init__(channels, channels, stride=1, limit=limit)
        self.activation = nn.PReLU(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(super().forward(x) + x)


class Downsample(nn.Module):
    """Average and strided pyramid side by side, plus the image at that size."""

    def __init__(self, in_channels: int, out_channels: int, limit: int, image_channels: int):
        super().__init__()
        self.pool = nn.AvgPool2d(kernel_size=3, stride=2, padding=1)
        self.block = SpatialPyramid(in_channels, out_channels - in_channels, stride=2, limit=limit)
        self.image = nn.Sequential(ConvNormAct(image_channels, 3, 3), ConvNorm(3, out_channels, 1))
        self.activation = nn.PReLU(out_channels)

    def forward(self, x: Tensor, pooled_image: Tensor) -> Tensor:
        joined = torch.cat([self.pool(x), self.block(x)], dim=1)
        return self.activation(joined + self.image(pooled_image))


class ESPNetv2Stage(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, depth: int, limits: tuple[int, int], image_channels: int):
        super().__init__()
        self.downsample = Downsample(in_channels, out_channels, limits[0], image_channels)
        self.layers = nn.ModuleList(ESPNetv2Block(out_channels, limits[1]) for _ in range(depth))

    def forward(self, x: Tensor, pooled_image: Tensor) -> Tensor:
        x = self.downsample(x, pooled_image)
        for layer in self.layers:
            x = layer(x)
        return x


class ESPNetv2Encoder(nn.Module):
    """Four maps at strides 2, 4, 8 and 16; each stage reads the image again, pooled to its size."""

    def __init__(self, hidden_sizes: list[int], depths: tuple[int, int], image_channels: int):
        super().__init__()
        self.stem = ConvNormAct(image_channels, hidden_sizes[0], 3, stride=2)
        self.pool = nn.AvgPool2d(kernel_size=3, stride=2, padding=1)
        self.stages = nn.ModuleList()
        limits = zip(DOWNSAMPLE_LIMITS, BLOCK_LIMITS, strict=True)
        for index, (depth, limit) in enumerate(zip((0, *depths), limits, strict=True)):
            widths = hidden_sizes[index : index + 2]
            self.stages.append(ESPNetv2Stage(*widths, depth, limit, image_channels))

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        pooled_image = self.pool(pixel_values)
        hidden_states = [self.stem(pixel_values)]
        for stage in self.stages:
            pooled_image = self.pool(pooled_image)
            hidden_states.append(stage(hidden_states[-1], pooled_image))
        return tuple(hidden_states)


class PoolingPyramid(nn.Module):
    """Depthwise convolutions of one map at five sizes, merged channel by channel.

    Args:
        in_channels (`int`): Channels of the map.
        size (`int`): Channels inside.
        out_channels (`int`, *optional*): Channels returned; without, `size` of them, for a classifier to read.
    """

    def __init__(self, in_channels: int, size: int, out_channels: int | None = None):
        super().__init__()
        self.reduce = ConvNormAct(in_channels, size, 1)
        self.branches = nn.ModuleList(nn.Conv2d(size, size, 3, padding=1, groups=size, bias=False) for _ in SCALES)
        self.fuse = NormAct(size * len(SCALES))
        self.merge = ConvNormAct(size * len(SCALES), size, 3, groups=size)
        self.expand = nn.Identity() if out_channels is None else ConvNormAct(size, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        reduced = self.reduce(x)
        sides = reduced.shape[-2:]
        maps = []
        for (numerator, denominator), branch in zip(SCALES, self.branches, strict=True):
            size = [torch.sym_max(MIN_SIDE, -(-side * numerator // denominator)) for side in sides]
            if numerator > denominator:
                maps.append(F.adaptive_avg_pool2d(branch(_resize(reduced, size)), sides))
            elif numerator < denominator:
                maps.append(_resize(branch(F.adaptive_avg_pool2d(reduced, size)), sides))
            else:
                maps.append(branch(reduced))
        fused = self.fuse(torch.cat(maps, dim=1))
        # Neighbors from here on: the five sizes of one channel, which `merge` sums.
        shuffled = fused.unflatten(1, (len(SCALES), -1)).transpose(1, 2).flatten(1, 2)
        return self.expand(self.merge(shuffled))


class Lateral(nn.Module):
    """An encoder map brought to the decoder's channels, each weighted by a gate that reads the map's mean."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.gate = nn.Conv2d(in_channels, out_channels, kernel_size=1, bias=False)
        self.body = ConvNormAct(in_channels, out_channels, 3, groups=math.gcd(in_channels, out_channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) * self.gate(x.mean(dim=(2, 3), keepdim=True)).sigmoid()


class ESPNetv2Decoder(nn.Module):
    """From the encoder's maps, deepest first, to logits at stride 2."""

    def __init__(self, hidden_sizes: list[int], pyramid_size: int, num_labels: int):
        super().__init__()
        stem, *_, last = hidden_sizes
        inputs = (last, *DECODER_SIZES)
        self.pyramids = nn.ModuleList(
            PoolingPyramid(channels, pyramid_size, out_channels)
            for channels, out_channels in zip(inputs, (*DECODER_SIZES, None), strict=True)
        )
        skipped = reversed(hidden_sizes[:-1])
        self.laterals = nn.ModuleList(Lateral(*sizes) for sizes in zip(skipped, DECODER_SIZES, strict=True))
        self.norms = nn.ModuleList(NormAct(channels) for channels in DECODER_SIZES)
        self.classifier = nn.Conv2d(pyramid_size, num_labels, kernel_size=1)

    def forward(self, hidden_states: tuple[Tensor, ...]) -> Tensor:
        x = self.pyramids[0](hidden_states[-1])
        skipped = reversed(hidden_states[:-1])
        for state, lateral, norm, pyramid in zip(skipped, self.laterals, self.norms, self.pyramids[1:], strict=True):
            x = pyramid(norm(_resize(x, state.shape[-2:]) + lateral(state)))
        return self.classifier(x)


def _resize(x: Tensor, size: list[int] | torch.Size) -> Tensor:
    return F.interpolate(x, size=size, mode="bilinear", align_corners=True)
