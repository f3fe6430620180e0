"""What the models of a demo say of one image: overlays, times, areas, and where they differ."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from hf_segkd.data.pixels import misfit, read_pixels
from hf_segkd.data.raw import Unreadable
from hf_segkd.deployment.label_files import palette_of, upright
from hf_segkd.evaluation.segmenter import BaseSegmenter
from hf_segkd.loading.class_map import placeholders
from hf_segkd.reports.pictures import colorize, overlay, visible

LONGEST_SIDE = 1024  # pixels; a phone's photo would take a CPU minutes


@dataclass(frozen=True)
class Segmented:
    """What the models said of one image: class ids (H, W) and milliseconds, by the model's title."""

    image: Image.Image
    labels: dict[str, np.ndarray]
    milliseconds: dict[str, float]


class DemoModels:
    """Models that share their classes, side by side.

    Args:
        segmenters (`dict[str, BaseSegmenter]`): By title, in the order shown; one or more. One whose classes have no
            names, as an original checkpoint's, takes those of the others. All take the same images; those of other
            bands than 8-bit RGB are uploaded as files.
        names (`dict[str, str]`, *optional*): What each is called, by title: its folder or Hub id.

    Raises:
        ValueError: No segmenter, or segmenters whose classes or images differ.
    """

    def __init__(self, segmenters: dict[str, BaseSegmenter], names: dict[str, str] | None = None):
        if not segmenters:
            raise ValueError("Give at least one model.")
        classes = {title: segmenter.id2label for title, segmenter in segmenters.items()}
        named = [title for title, id2label in classes.items() if not placeholders(list(id2label.values()))]
        first = next(iter(named or classes))
        self.id2label = classes[first]
        for title, id2label in classes.items():
            same = len(id2label) == len(self.id2label) and (title not in named or id2label == self.id2label)
            if not same:
                raise ValueError(
                    f"The models on one page must share their classes: {title} has {len(id2label)} "
                    f"({', '.join(id2label.values())}), {first} has {len(self.id2label)} "
                    f"({', '.join(self.id2label.values())})."
                )
        self.palette = palette_of(self.id2label)
        self.segmenters = segmenters
        self.names = names or {}
        self.bands = segmenters[first].bands
        for title, segmenter in segmenters.items():
            if segmenter.bands != self.bands:
                raise ValueError(f"The models on one page must take the same images: {title} and {first} do not.")
            # The first pass allocates, and would be shown as slow.
            channels, dtype = (len(self.bands.names), self.bands.dtype) if self.bands else (3, "uint8")
            segmenter(np.zeros((96, 96, channels), dtype=dtype))

    def segment(self, picture: Image.Image | str) -> Segmented:
        """Run every model on a picture, or on the file of an image of bands, shrunk to [`LONGEST_SIDE`].

        Raises:
            ValueError: A file that cannot be read, or holds other bands.
        """
        pixels, image = self._open(picture)
        labels, milliseconds = {}, {}
        for title, segmenter in self.segmenters.items():
            start = time.perf_counter()
            labels[title] = segmenter(pixels)
            milliseconds[title] = 1000 * (time.perf_counter() - start)
        return Segmented(image, labels, milliseconds)

    def _open(self, picture: Image.Image | str) -> tuple[Image.Image | np.ndarray, Image.Image]:
        """What the models take, and a picture of it; of bands that are too large, each n-th pixel."""
        if self.bands is None:
            image = upright(picture)
            image.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.BICUBIC)
            return image, image
        try:
            array = read_pixels(picture)
        except Unreadable as error:
            raise ValueError(f"This file cannot be read: {error}.") from None
        if wrong := misfit(array, self.bands):
            raise ValueError(f"This image {wrong}.")
        step = -(-max(array.shape[:2]) // LONGEST_SIDE)
        array = np.ascontiguousarray(array[::step, ::step])
        return array, visible(array, self.bands.names)

    @property
    def heading(self) -> str:
        """Titles and names of the models, plain text."""
        named = [f"{title} ({self.names[title]})" if title in self.names else title for title in self.segmenters]
        return " and ".join(named)

    def overlays(self, result: Segmented, opacity: float) -> list[Image.Image]:
        """The image under each model's colors; `opacity` from 0, the image alone, to 1, the colors alone."""
        return [overlay(result.image, labels, self.palette, opacity) for labels in result.labels.values()]

    def captions(self, result: Segmented) -> list[str]:
        """Title and time of each model, Markdown."""
        return [f"**{title}** · {time:.0f} ms" for title, time in result.milliseconds.items()]

    def summary(self, result: Segmented) -> str:
        """Size of the image and, of two models, on how much of it they agree."""
        width, height = result.image.size
        size = f"{width} × {height} pixels"
        if len(result.labels) != 2:
            return size
        first, second = result.labels.values()
        return f"{size}, the same class on {100 * (first == second).mean():.1f} % of them"

    def speed(self, result: Segmented) -> str:
        """Of two models, how much faster the second was on this image; else nothing."""
        if len(result.milliseconds) != 2:
            return ""
        (first, slow), (second, fast) = result.milliseconds.items()
        times = f"on this image: {fast:.0f} ms against {slow:.0f} ms"
        if fast <= slow:
            return f"{second} is {slow / fast:.1f} times as fast as {first} {times}."
        return f"{second} takes {fast / slow:.1f} times as long as {first} {times}."

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """What can be compared with a slider: two models, and the image (`"Image"`) with each."""
        titles = list(self.segmenters)
        return [*zip(titles[:1], titles[1:], strict=False), *(("Image", title) for title in titles)]

    def compared(self, result: Segmented, pair: tuple[str, str], opacity: float) -> tuple[Image.Image, Image.Image]:
        """The two pictures of one of [`pairs`]."""
        pictures = dict(zip(result.labels, self.overlays(result, opacity), strict=True)) | {"Image": result.image}
        return pictures[pair[0]], pictures[pair[1]]

    def difference(self, result: Segmented) -> Image.Image:
        """Of two models: where they differ, in the second's colors; elsewhere the image, pale and gray."""
        first, second = result.labels.values()
        pale = Image.blend(result.image.convert("L").convert("RGB"), Image.new("RGB", result.image.size, "white"), 0.6)
        colors = np.asarray(colorize(second, self.palette))
        return Image.fromarray(np.where((first != second)[..., None], colors, np.asarray(pale)))

    def table(self, result: Segmented) -> dict[str, Any]:
        """Legend and area of every class that a model found, largest first, as `gradio.Dataframe` takes it."""
        areas = [np.bincount(x.ravel(), minlength=len(self.palette)) / x.size for x in result.labels.values()]
        total = sum(areas)
        found = [index for index in np.argsort(-total) if total[index]]
        plain = [""] * len(areas)
        return {
            "headers": ["class", *(f"{title}, %" for title in result.labels)],
            "data": [[self.id2label[index], *(round(100 * x[index], 1) for x in areas)] for index in found],
            "metadata": {"styling": [[_swatch(self.palette[index]), *plain] for index in found]},
        }


def _swatch(color: Sequence[int]) -> str:
    """CSS of a cell that shows the color of its class."""
    return "border-left: 1.2em solid rgb({}, {}, {})".format(*color)
