"""How models are run: the protocol, where, and in which precision. No torch, so that --help is quick."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_type_hints

from hf_segkd.values import check_value

# Ways to time a forward pass; see [`~hf_segkd.evaluation.profiling.measure`].
VARIANTS = ("eager", "channels_last", "folded", "bf16", "compiled")


@dataclass(frozen=True)
class InferenceProtocol:
    """How a model is applied to one image.

    Args:
        mode (`str`, *optional*, defaults to `"whole"`): `"whole"` runs the whole image; `"slide"` runs overlapping
            crops and averages where they overlap; `"halves"` runs the left and the right half and puts their logits
            side by side, as the SegFormer evaluation of CIRKD does on Cityscapes.
        crop_size (`tuple[int, int]`, *optional*): Height and width of a crop, pixels; for `"slide"` only.
        stride (`tuple[int, int]`, *optional*): Steps from crop to crop, pixels, at most the crop's size. By default
            both are two thirds of the crop's height, rounded up: 342 for 512x1024, as in Structured KD.
        scales (`tuple[float, ...]`, *optional*, defaults to `(1.0,)`): The image is run at each of these sizes.
        flip (`bool`, *optional*, defaults to `False`): Whether each view is run mirrored too.
        average (`str`, *optional*, defaults to `"logits"`): What is averaged over the views: `"logits"` (CIRKD, CSKD)
            or `"probabilities"`.
        align_corners (`bool`, *optional*): How logits are upsampled; `None` takes the model's own way.
        scale_align_corners (`bool`, *optional*, defaults to `False`): Whether the corner pixels of the image and of
            its scaled view coincide, as in all the original repositories; sizes are then rounded down, as there.

    Raises:
        ValueError: If a value is out of range, or does not belong to the mode.
    """

    mode: Literal["whole", "slide", "halves", "auto"] = field(
        default="whole",
        metadata={
            "help": "Run the whole image, overlapping crops of --crop_size (slide), its two halves, or windows of "
            "images too large for 2 GiB and others whole (auto) (default: whole, of predict: auto)."
        },
    )
    crop_size: tuple[int, int] | None = field(
        default=None,
        metadata={"help": "Height and width of a crop of --mode slide, pixels.", "metavar": ("HEIGHT", "WIDTH")},
    )
    stride: tuple[int, int] | None = field(
        default=None,
        metadata={
            "help": "Steps from crop to crop of --mode slide, pixels (default: two thirds of its height).",
            "metavar": ("HEIGHT", "WIDTH"),
        },
    )
    scales: tuple[float, ...] = field(
        default=(1.0,), metadata={"help": "Run each image at these sizes and average: 0.75 1 1.25."}
    )
    flip: bool = field(default=False, metadata={"help": "Run each image mirrored too and average."})
    average: Literal["logits", "probabilities"] = field(
        default="logits", metadata={"help": "What is averaged over scales, flips and crops."}
    )
    align_corners: bool | None = field(
        default=None, metadata={"help": "How logits are upsampled to the image (default: the model's own way)."}
    )
    scale_align_corners: bool = field(
        default=False, metadata={"help": "Scale images as the original repositories do: corners aligned."}
    )

    def __post_init__(self):
        hints = get_type_hints(type(self))
        for name in ("mode", "average"):
            check_value(name, getattr(self, name), hints[name])
        if (self.mode == "slide") != (self.crop_size is not None) or (self.stride is not None and not self.crop_size):
            raise ValueError(
                f"mode 'slide' needs a crop_size and only it takes one, got mode {self.mode!r}, crop_size "
                f"{self.crop_size}, stride {self.stride}."
            )
        if self.crop_size is not None:
            if self.stride is None:
                side = -(-2 * self.crop_size[0] // 3)
                object.__setattr__(self, "stride", tuple(min(side, length) for length in self.crop_size))
            pairs = zip(self.crop_size, self.stride, strict=True)
            if len(self.crop_size) != 2 or any(not 1 <= stride <= side for side, stride in pairs):
                raise ValueError(
                    f"crop_size and stride must be (height, width) with 1 <= stride <= crop_size, got "
                    f"{self.crop_size} and {self.stride}. A larger stride would leave pixels without a prediction."
                )
        if not self.scales or min(self.scales) <= 0:
            raise ValueError(f"scales must be positive numbers, at least one, got {self.scales}.")

    def __str__(self) -> str:
        names = {"whole": "whole image", "auto": "whole image, windows where too large"}
        parts = [names.get(self.mode, self.mode)]
        if self.crop_size is not None:
            parts = ["crops {}x{}, stride {}x{}".format(*self.crop_size, *self.stride)]
        sizes = ", ".join(f"{scale:g}" for scale in self.scales)
        parts.append("single scale" if self.scales == (1.0,) else f"scales {sizes}")
        if self.flip:
            parts.append("flipped too")
        if self.flip or len(self.scales) > 1 or self.mode == "slide":
            parts.append(f"mean of {self.average}")
        if self.align_corners is not None:
            parts.append(f"align_corners={self.align_corners}")
        if self.scale_align_corners:
            parts.append("images scaled with align_corners=True")
        return ", ".join([*parts, "at label size"])

    @classmethod
    def from_arguments(cls, arguments: Any) -> InferenceProtocol:
        """The protocol that a command line describes, whose flags are these fields."""
        values = {one.name: getattr(arguments, one.name) for one in fields(cls)}
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


@dataclass(kw_only=True)
class TeacherArguments:
    """What teaches: one model, or several whose predictions are averaged, and the views of an image that each sees.

    [`~hf_segkd.evaluation.teacher.TeacherDescription`] is made of it.
    """

    teacher: dict | str | list[dict | str] | None = field(
        default=None,
        metadata={
            "help": "Trained teacher: folder, Hub id or original checkpoint (.pth). Several are averaged; one may be "
            "'{model: ..., weight: 2, classes: {...}}'."
        },
    )
    teacher_classes: dict | str | None = field(
        default=None,
        metadata={
            "help": "Where class names differ, teacher class(es) of each dataset class: '{car: [car, truck]}', or a "
            "file."
        },
    )
    teacher_revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit of a teacher from the Hub."}
    )
    teacher_flip: bool = field(default=False, metadata={"help": "The teacher also sees each image mirrored."})
    teacher_scales: list[float] = field(
        default_factory=lambda: [1.0], metadata={"help": "The teacher sees each image at these sizes: 0.75 1 1.25."}
    )
    teacher_window: list[int] | None = field(
        default=None,
        metadata={
            "help": "The teacher sees overlapping crops of this height and width (pixels) instead of the image."
        },
    )
    teacher_stride: int | None = field(
        default=None,
        metadata={
            "help": "Pixels per position of the averaged probabilities; 1 is the size of the labels (default: as fine "
            "as the finest teacher)."
        },
    )
    teacher_average: Literal["probabilities", "logits"] = field(
        default="probabilities", metadata={"help": "What is averaged over teachers and views."}
    )


@dataclass(kw_only=True)
class RunningArguments:
    """Where and in which precision models run."""

    device: Literal["cpu", "cuda"] | None = field(
        default=None, metadata={"help": "Where the model runs (default: the GPU where there is one)."}
    )
    dtype: Literal["float32", "bfloat16", "float16"] = field(
        default="float32", metadata={"help": "Precision of the model's weights."}
    )
    compile: bool = field(default=False, metadata={"help": "Compile the model first, with torch.compile."})
    trust_remote_code: bool = field(
        default=False, metadata={"help": "Run the Python code that a model from the Hub brings."}
    )
    num_workers: int = field(default=0, metadata={"help": "Processes that read images."})
