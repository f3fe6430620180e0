"""What the pixels of an image hold where they are not 8-bit RGB: the names of its bands, their type, their range."""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers.image_processing_utils import BaseImageProcessor

RGB = ("red", "green", "blue")
PIXEL_DTYPES = ("uint8", "uint16", "int16", "float32")
BYTE_RANGE = (0.0, 255.0)


@dataclass(frozen=True)
class Bands:
    """Bands of the images of a dataset or of a model. 8-bit RGB pictures have no description: `None`.

    Args:
        names (`tuple[str, ...]`): One for each channel, in the order of the files.
        dtype (`str`): `"uint8"`, `"uint16"`, `"int16"` or `"float32"`: the type of the stored values.
        pixel_range (`tuple[float, float]`, *optional*): The stored values that a model of 8-bit pictures sees as 0
            and as 255; of bytes 0 and 255. Nothing else reads it.

    Raises:
        ValueError: No name, one twice, an unknown type, or a range that is not two rising numbers.
    """

    names: tuple[str, ...]
    dtype: str
    pixel_range: tuple[float, float] | None = None

    def __post_init__(self):
        if not self.names or len(set(self.names)) != len(self.names):
            raise ValueError(f"Each band needs a name of its own, got {', '.join(self.names) or 'none'}.")
        if self.dtype not in PIXEL_DTYPES:
            raise ValueError(f"Pixels must be {', '.join(PIXEL_DTYPES)}, got {self.dtype}.")
        if self.pixel_range is None and self.dtype == "uint8":
            object.__setattr__(self, "pixel_range", BYTE_RANGE)
        if self.pixel_range is not None:
            check_range(self.pixel_range)
            object.__setattr__(self, "pixel_range", tuple(map(float, self.pixel_range)))

    @classmethod
    def of(cls, processor: BaseImageProcessor) -> "Bands | None":
        """Bands that a model reads, as its processor says; `None` for 8-bit RGB."""
        fields = processor.to_dict()
        if not fields.get("bands"):
            return None
        return cls(tuple(fields["bands"]), fields["pixel_dtype"], fields.get("pixel_range"))

    def positions(self, names: Sequence[str]) -> list[int]:
        """Channels of the bands called `names`, in their order.

        Raises:
            ValueError: The images lack one; all that are there are named.
        """
        lacking = [name for name in names if name not in self.names]
        if lacking:
            raise ValueError(
                f"The model reads the bands {', '.join(names)}; the images have {', '.join(self.names)}, and no "
                f"{', '.join(lacking)}. Name the bands of the images so, or take another model."
            )
        return [self.names.index(name) for name in names]

    def __str__(self) -> str:
        count = "1 band" if len(self.names) == 1 else f"{len(self.names)} bands"
        text = f"{count} of {self.dtype} ({', '.join(self.names)})"
        if self.pixel_range is None:
            return text
        low, high = self.pixel_range
        return f"{text}, {low:g} to {high:g} as 0 to 255 for models of 8-bit pictures"


def check_range(pixel_range: Sequence[float]) -> None:
    """Refuse anything but two rising numbers.

    Raises:
        ValueError: Shows what was given.
    """
    if len(pixel_range) != 2 or not pixel_range[0] < pixel_range[1]:
        raise ValueError(f"pixel_range must be the darkest and the brightest value, rising, got {list(pixel_range)}.")
