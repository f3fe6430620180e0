"""The discriminator of holistic distillation: a small SAGAN that judges logit maps."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_segkd.losses.functional.attention import attend
from hf_segkd.values import check_value

Preprocessing = Literal["batch_norm", "tanh", "image"]
MIN_SIDE = 64  # positions; four halvings and a 4×4 convolution leave nothing of a smaller map
WIDTHS = (64, 128, 256, 512)
SLOPE = 0.1


class Discriminator(nn.Module):
    """Scores whether logits come from the teacher, as in the code of SKD, CWD and CIRKD.

    Four 4×4 convolutions of stride 2 with spectral norm and LeakyReLU(0.1), 64 to 512 channels wide, self-attention
    after the third and the fourth, and a plain 4×4 convolution to one score. 3.2 M parameters for 19 classes.

    Args:
        num_labels (`int`): Number of classes K.
        preprocessing (`str`, *optional*, defaults to `"batch_norm"`): What the logits go through first:
            `"batch_norm"`, `"tanh"`, or `"image"` for values from 0 to 255, which it brings to −1 to 1.

    Returns:
        `torch.Tensor`: Scores (B, 1, ⌊h/16⌋−3, ⌊w/16⌋−3) without bounds; 1×1 for 64×64 positions, 1×5 for 64×128.

    Raises:
        ValueError: If the preprocessing is unknown.

    Differs from the original: no attention matrix is kept for the backward pass; parameters have other names.

    Reference: Liu et al., Structured Knowledge Distillation for Semantic Segmentation, CVPR 2019,
    https://huggingface.co/papers/1903.04197; the network: Zhang et al., Self-Attention Generative Adversarial
    Networks, ICML 2019, https://huggingface.co/papers/1805.08318
    """

    def __init__(self, num_labels: int, preprocessing: Preprocessing = "batch_norm"):
        super().__init__()
        check_value("preprocessing", preprocessing, Preprocessing)
        self.preprocess = PREPROCESSING[preprocessing](num_labels)
        self.conv1 = SpectralNormConv(num_labels, WIDTHS[0])
        self.conv2 = SpectralNormConv(WIDTHS[0], WIDTHS[1])
        self.conv3 = SpectralNormConv(WIDTHS[1], WIDTHS[2])
        self.attention1 = SelfAttention(WIDTHS[2])
        self.conv4 = SpectralNormConv(WIDTHS[2], WIDTHS[3])
        self.attention2 = SelfAttention(WIDTHS[3])
        self.score = nn.Conv2d(WIDTHS[3], 1, kernel_size=4)

    def forward(self, logits: Tensor) -> Tensor:
        x = self.preprocess(logits)
        for conv in (self.conv1, self.conv2, self.conv3):
            x = F.leaky_relu(conv(x), SLOPE)
        x = self.attention1(x)
        x = self.attention2(F.leaky_relu(self.conv4(x), SLOPE))
        return self.score(x)


class SpectralNormConv(nn.Module):
    """4×4 convolution of stride 2 whose weight, seen as a matrix, is divided by its largest singular value, estimated.

    Every forward, also in eval mode, improves the estimate by one power iteration and keeps its two vectors in the
    state. They are constants of the graph of that forward: later ones do not change its gradient.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        conv = nn.Conv2d(in_channels, out_channels, kernel_size=4)
        self.weight, self.bias = conv.weight, conv.bias
        self.register_buffer("u", F.normalize(torch.randn(out_channels), dim=0))
        self.register_buffer("v", F.normalize(torch.randn(in_channels * 16), dim=0))

    def forward(self, x: Tensor) -> Tensor:
        matrix = self.weight.flatten(1)
        with torch.no_grad():
            v = F.normalize(matrix.T @ self.u, dim=0)
            u = F.normalize(matrix @ v, dim=0)
            self.u.copy_(u)
            self.v.copy_(v)
        return F.conv2d(x, self.weight / (u @ matrix @ v), self.bias, stride=2, padding=1)


class SelfAttention(nn.Module):
    """`gamma · softmax(q kᵀ) v + x` between the positions of a map, without scaling; gamma starts at 0 and learns."""

    def __init__(self, channels: int):
        super().__init__()
        self.query = nn.Conv2d(channels, channels // 8, kernel_size=1)
        self.key = nn.Conv2d(channels, channels // 8, kernel_size=1)
        self.value = nn.Conv2d(channels, channels, kernel_size=1)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (layer(x).flatten(2) for layer in (self.query, self.key, self.value))
        return self.gamma * attend(query, key, value).view_as(x) + x


class ImageRange(nn.Module):
    """Values from 0 to 255 brought to −1 to 1."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * (x / 255 - 0.5)


PREPROCESSING = {
    "batch_norm": nn.BatchNorm2d,
    "tanh": lambda num_labels: nn.Tanh(),
    "image": lambda num_labels: ImageRange(),
}
