"""Random changes of color, all four in one pass over the pixels."""

import math

import torch
from torch import Tensor

# Weights of ITU-R BT.601: gray = 0.299 R + 0.587 G + 0.114 B.
_LUMA = torch.tensor([0.299, 0.587, 0.114])
_TO_YIQ = torch.tensor([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
_FROM_YIQ = torch.linalg.inv(_TO_YIQ)


class PhotometricJitter:
    """Random brightness, contrast, saturation and hue of an image.

    Each of them is an affine map of RGB, and so is their product: one 3 x 3 matrix and one offset per image, rounded
    and clipped to 0 .. 255 once. Strengths are drawn uniformly; 0 leaves that property alone.

    Args:
        brightness (`float`, *optional*, defaults to `0.0`): Largest shift, fraction of the full scale, 0 to 1.
        contrast (`float`, *optional*, defaults to `0.0`): Factor 1 - contrast to 1 + contrast around the mean gray of
            the crop, 0 to 1.
        saturation (`float`, *optional*, defaults to `0.0`): Factor of the distance to gray, likewise, 0 to 1.
        hue (`float`, *optional*, defaults to `0.0`): Largest turn, fraction of the color circle, 0 to 0.5.

    Raises:
        `ValueError`: If a strength is out of range.

    Differs from the original: CIRKD and CSKD have no jitter. MMSegmentation's (0.125, 0.5, 0.5, 0.05 in these units)
    applies each with a chance of one half, turns hue in HSV and clips after every step.
    """

    def __init__(self, brightness: float = 0.0, contrast: float = 0.0, saturation: float = 0.0, hue: float = 0.0):
        strengths = {"brightness": brightness, "contrast": contrast, "saturation": saturation, "hue": hue}
        for name, strength in strengths.items():
            highest = 0.5 if name == "hue" else 1
            if not 0 <= strength <= highest:
                raise ValueError(f"{name} of the jitter must be between 0 and {highest}, got {strength}.")
        self.strengths = torch.tensor(list(strengths.values()))

    def __call__(self, image: Tensor, generator: torch.Generator) -> Tensor:
        """Change a uint8 image (3, h, w)."""
        brightness, contrast, saturation, hue = (2 * torch.rand(4, generator=generator) - 1) * self.strengths
        matrix = _saturation(1 + saturation) @ _hue(hue)
        pixels = image.flatten(1).float()
        # Hue and saturation leave every pixel's luma alone, so the mean gray can be taken before them.
        gray = _LUMA @ pixels.mean(dim=1)
        offset = 255 * brightness - contrast * gray
        changed = torch.addmm(offset.expand(3, 1), (1 + contrast) * matrix, pixels)
        return changed.round_().clamp_(0, 255).to(torch.uint8).view(image.shape)


class BandJitter:
    """Random brightness and contrast of an image of any bands, in its own range and type.

    Every band is multiplied by one factor around its own mean in the crop, and shifted by one fraction of the full
    scale: `mean + (1 + c) (x - mean) + b · scale`. Bytes are rounded and clipped, other values are neither.

    Args:
        brightness (`float`, *optional*, defaults to `0.0`): Largest shift, fraction of `scale`, 0 to 1.
        contrast (`float`, *optional*, defaults to `0.0`): Factor 1 - contrast to 1 + contrast, 0 to 1.
        saturation, hue (`float`, *optional*): Must be 0: they are properties of colors.
        scale (`float`, *optional*): Distance from the darkest to the brightest value; brightness needs it.

    Raises:
        `ValueError`: If a strength is out of range, is one of colors, or the scale is unknown.
    """

    def __init__(
        self,
        brightness: float = 0.0,
        contrast: float = 0.0,
        saturation: float = 0.0,
        hue: float = 0.0,
        scale: float | None = None,
    ):
        if saturation or hue:
            raise ValueError("jitter: saturation and hue are of RGB colors; bands take brightness and contrast.")
        for name, strength in (("brightness", brightness), ("contrast", contrast)):
            if not 0 <= strength <= 1:
                raise ValueError(f"{name} of the jitter must be between 0 and 1, got {strength}.")
        if brightness and scale is None:
            raise ValueError("jitter: brightness is a fraction of the full scale. Give --pixel_range or leave it out.")
        self.strengths = torch.tensor([brightness * (scale or 0), contrast])

    def __call__(self, image: Tensor, generator: torch.Generator) -> Tensor:
        """Change an image (C, h, w), uint8 or float32."""
        shift, contrast = (2 * torch.rand(2, generator=generator) - 1) * self.strengths
        pixels = image.float()
        mean = pixels.mean(dim=(1, 2), keepdim=True)
        changed = mean + (1 + contrast) * (pixels - mean) + shift
        return changed.round_().clamp_(0, 255).to(torch.uint8) if image.dtype == torch.uint8 else changed


def _saturation(factor: Tensor) -> Tensor:
    """Matrix that scales the distance of a color to the gray of the same luma."""
    return factor * torch.eye(3) + (1 - factor) * _LUMA.expand(3, 3)


def _hue(turn: Tensor) -> Tensor:
    """Matrix that turns the chroma plane of YIQ by a fraction of the circle; luma stays."""
    angle = 2 * math.pi * float(turn)
    cosine, sine = math.cos(angle), math.sin(angle)
    rotation = torch.tensor([[1, 0, 0], [0, cosine, -sine], [0, sine, cosine]])
    return _FROM_YIQ @ rotation @ _TO_YIQ
