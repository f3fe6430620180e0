"""A page to try models on: pictures, webcam and clips, with times, class areas and where two models differ."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from hf_segkd.deployment.clips import clip_name, drawing, write_clip
from hf_segkd.deployment.demo_models import DemoModels, Segmented
from hf_segkd.reports.markdown import plain

EXTRA = "pip install 'hf-segkd[demo]'"
UPLOADS = "20mb"  # largest file that a visitor may send
CLIP_FRAMES = 150  # of a visitor's clip, and
CLIP_SIDE = 640  # pixels of its longer side: a CPU segments a few frames per second
_RESULT = {"interactive": False, "format": "png", "show_label": False, "buttons": ["download", "fullscreen"]}
_KEPT = 3600  # seconds that what visitors sent is kept at most
_BESIDE = " | "  # between the titles of two pictures that the slider compares
_BROKEN = "This file is no picture that can be read. Try a JPEG or PNG."


class DemoPage(DemoModels):
    """The page of models that share their classes; see [`~hf_segkd.deployment.demo_models.DemoModels`]."""

    def build(self, examples: Sequence[Image.Image] = ()):
        """The Gradio page (`gradio.Blocks`); `launch()` starts it.

        Args:
            examples (`Sequence[PIL.Image.Image]`, *optional*): Pictures to pick from.

        Raises:
            ImportError: Without gradio.
        """
        try:
            import gradio
        except ImportError as error:
            raise ImportError(f"The demo page needs gradio: {EXTRA}") from error
        kept = (_KEPT, _KEPT)  # seconds between two looks, and until a file is deleted
        with gradio.Blocks(title=self.heading, analytics_enabled=False, delete_cache=kept) as page:
            gradio.Markdown(f"# {plain(self.heading)}")
            or_example = ", or one of the examples" if examples and self.bands is None else ""
            speed = gradio.Markdown(f"Segment an image of your own{or_example}.")
            if self.bands is None and importlib.util.find_spec("av"):
                with gradio.Tab("Image"):
                    self._add_image(gradio, speed, examples)
                with gradio.Tab("Video"):
                    self._add_video(gradio)
            else:
                self._add_image(gradio, speed, examples)
        return page

    def _add_image(self, gradio: Any, speed: Any, examples: Sequence[Image.Image]) -> None:
        result = gradio.State()
        with gradio.Row():
            with gradio.Column(scale=1):
                picture = self._image_input(gradio, examples)
                opacity = gradio.Slider(0, 1, 0.5, step=0.05, label="Opacity of the classes")
            with gradio.Column(scale=2):
                pair, shown, captions, differing = self._add_results(gradio)
                summary = gradio.Markdown()
                # Plain text, not HTML: class names come from a repository that anybody may have written.
                kinds = ["str", *["number"] * len(self.segmenters)]
                table = gradio.Dataframe(datatype=kinds, interactive=False, show_label=False)

        def show(image: Image.Image | str | None, opacity: float, pair: str) -> list:
            if image is None:
                return [None, "", "", None, *self.segmenters, *[None] * len(differing), *blend(None, opacity, pair)]
            try:
                found = self.segment(image)
            except (ValueError, OSError, SyntaxError) as error:  # Pillow raises each on some broken file
                message = str(error) if isinstance(error, ValueError) else _BROKEN
                raise gradio.Error(message, print_exception=False) from None
            texts = [self.speed(found), self.summary(found), self.table(found), *self.captions(found)]
            difference = [self.difference(found)] if differing else []
            return [found, *texts, *difference, *blend(found, opacity, pair)]

        def blend(found: Segmented | None, opacity: float, pair: str) -> list:
            if found is None:
                return [None] * len(shown)
            return [self.compared(found, tuple(pair.split(_BESIDE)), opacity), *self.overlays(found, opacity)]

        settings = [opacity, pair]
        picture.change(show, [picture, *settings], [result, speed, summary, table, *captions, *differing, *shown])
        for setting in settings:
            setting.change(blend, [result, *settings], shown, show_progress="hidden")

    def _add_results(self, gradio: Any) -> tuple[Any, list, list, list]:
        """Tabs of pictures: what the slider compares; slider and overlays; their captions; the difference if any."""
        overlays, captions, differing = [], [], []
        with gradio.Tab("Side by side"), gradio.Row():
            for title in self.segmenters:
                with gradio.Column(min_width=200):
                    captions.append(gradio.Markdown(title))
                    overlays.append(gradio.Image(elem_classes=f"result-{title.lower()}", **_RESULT))
        with gradio.Tab("Slider"):
            choices = [_BESIDE.join(titles) for titles in self.pairs]
            pair = gradio.Radio(choices, value=choices[0], show_label=False)
            slider = gradio.ImageSlider(elem_classes="compared", **_RESULT)
        if len(self.segmenters) == 2:
            with gradio.Tab("Difference"):
                gradio.Markdown(f"Colored where the models differ, with the class of {list(self.segmenters)[1]}.")
                differing.append(gradio.Image(elem_classes="difference", **_RESULT))
        return pair, [slider, *overlays], captions, differing

    def _image_input(self, gradio: Any, examples: Sequence[Image.Image]) -> Any:
        if self.bands is not None:
            return gradio.File(type="filepath", label=f"TIFF, .npy or PNG: {self.bands}")
        # As stored: gradio itself would make 16 bits 8.
        options = {"type": "pil", "image_mode": None, "sources": ["upload", "webcam", "clipboard"]}
        picture = gradio.Image(label="Image", height=260, **options)
        decode = picture.preprocess

        def preprocess(payload: Any) -> Any:
            try:
                return decode(payload)
            except Exception:  # Pillow raises anything on a broken file, before any function of this page is called
                raise gradio.Error(_BROKEN, print_exception=False) from None

        picture.preprocess = preprocess
        if examples:
            gradio.Examples([[example] for example in examples], picture, label="Examples")
        return picture

    def _add_video(self, gradio: Any) -> None:
        gradio.Markdown(f"The first {CLIP_FRAMES} frames, at most {CLIP_SIDE} pixels wide or high, without sound.")
        with gradio.Row():
            clip = gradio.Video(label="Video", height=320, sources=["upload", "webcam"])
            shown = gradio.Video(label="Classes", height=320, interactive=False, autoplay=True, loop=True)
        summary = gradio.Markdown()

        def show(path: str | None) -> tuple[str | None, str]:
            if path is None:
                return None, ""
            try:
                return self.draw_clip(Path(path))
            except ValueError as error:
                message = str(error).replace(str(path), Path(path).name)
                raise gradio.Error(message, print_exception=False) from None

        clip.change(show, clip, [shown, summary])

    def draw_clip(self, source: Path) -> tuple[str, str]:
        """Write the overlay of a clip beside it; return its path, and what was written.

        Raises:
            ValueError: If the clip is empty, damaged or cut short.
        """
        draw = drawing(self.segmenters)

        def draw_small(frame: Image.Image) -> Image.Image:
            frame.thumbnail((CLIP_SIDE, CLIP_SIDE))
            # Even sides: what all browsers play.
            return draw(frame.crop((0, 0, frame.width // 2 * 2, frame.height // 2 * 2)))

        target = source.with_name(f"classes_{clip_name(source)}")
        return str(target), str(write_clip(source, target, draw_small, CLIP_FRAMES))


def serve(build: Callable[[], Any], **options: Any) -> None:
    """Build a page and serve it until the process is stopped; what visitors sent is deleted then.

    Args:
        build (`Callable`): Returns the page: [`DemoPage.build`].
        options: For Gradio's `launch`. Larger files than 20 MB are refused.
    """
    # Gradio keeps uploads in a folder that all users of the machine can read, and leaves them there.
    with tempfile.TemporaryDirectory(prefix="hf_segkd_demo_") as folder, _environment("GRADIO_TEMP_DIR", folder):
        handler = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
        try:
            build().launch(max_file_size=UPLOADS, share=False, **options)
        finally:
            signal.signal(signal.SIGTERM, handler)


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
