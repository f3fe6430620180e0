"""What may be said of one model of a teacher."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, get_type_hints

from hf_segkd.evaluation.settings import InferenceProtocol
from hf_segkd.values import check_positive, check_value, did_you_mean


@dataclass(frozen=True)
class TeacherMember:
    """One model of a teacher.

    Args:
        model (`str`): Folder, Hub id or original checkpoint (`.pth`).
        weight (`float`, *optional*, defaults to `1.0`): Its share in the mean, relative to the others', > 0.
        classes (`dict` or `str`, *optional*): As in [`~hf_segkd.loading.class_map.map_classes`].
        revision (`str`, *optional*): Branch, tag or commit of a Hub id.
        flip (`bool`, *optional*, defaults to `False`): Whether it sees each view mirrored too.
        scales (`list[float]`, *optional*, defaults to `[1.0]`): Sizes at which it sees the image.
        window (`list[int]`, *optional*): Height and width, pixels, of overlapping crops that it sees instead of the
            whole image. They overlap by at least a third.
        prompts, background, combine (*optional*): Its classes in words, for CLIPSeg or SAM 3, as in
            [`~hf_segkd.loading.prompt_teacher.load_prompt_teacher`].

    Raises:
        ValueError: If a value is of another type or out of range.
    """

    model: str
    weight: float = 1.0
    classes: dict | str | None = None
    revision: str | None = None
    flip: bool = False
    scales: list[float] = field(default_factory=lambda: [1.0])
    window: list[int] | None = None
    prompts: dict | None = None
    background: str | None = None
    combine: str = "max"

    def __post_init__(self):
        for name, hint in get_type_hints(type(self)).items():
            check_value(f"teacher.{name}", getattr(self, name), hint)
        check_positive("teacher.weight", self.weight)
        self.protocol(False)

    def __str__(self) -> str:
        share = "" if self.weight == 1 else f"{self.weight:g} x "
        protocol = str(self.protocol(None)).removesuffix(", at label size")
        return share + self.model + ("" if self.is_plain else f" ({protocol})")

    def protocol(self, align_corners: bool | None) -> InferenceProtocol:
        """The views, as evaluation describes them."""
        window = tuple(self.window) if self.window is not None else None
        mode = "whole" if window is None else "slide"
        return InferenceProtocol(mode, window, scales=tuple(self.scales), flip=self.flip, align_corners=align_corners)

    @property
    def spec(self) -> str | dict[str, Any]:
        """What [`~hf_segkd.loading.any_model.load_model`] takes."""
        if self.prompts is None:
            return self.model
        words = {"prompts": self.prompts, "background": self.background, "combine": self.combine}
        return {"model": self.model, **words}

    @property
    def is_plain(self) -> bool:
        """Whether it sees the image alone, as it is."""
        return not self.flip and list(self.scales) == [1.0] and self.window is None


def member_of(given: dict | str, common: Mapping[str, Any]) -> TeacherMember:
    """A member from its name or its own entries, completed by the common ones."""
    own = {"model": given} if isinstance(given, str) else given
    known = [one.name for one in fields(TeacherMember)]
    for key in own:
        if key not in known:
            raise ValueError(
                f"A teacher has no entry {key!r}.{did_you_mean(key, known)} Its entries: {', '.join(known)}."
            )
    if "model" not in own:
        raise ValueError(f"A teacher needs a model: {{model: FOLDER_OR_HUB_ID, weight: 1.0}}, got {given!r}.")
    return TeacherMember(**{**common, **own})
