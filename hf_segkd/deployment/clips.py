"""Clips in, clips out: every frame of a video or an animated picture, drawn anew."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from hf_segkd.deployment.label_files import palette_of, upright, whole_file
from hf_segkd.evaluation.progress import progress
from hf_segkd.reports.markdown import printable
from hf_segkd.reports.pictures import overlay

if TYPE_CHECKING:
    from hf_segkd.evaluation.segmenter import BaseSegmenter

VIDEOS = {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".wmv", ".flv"}
ANIMATIONS = {".gif": "GIF", ".webp": "WEBP"}  # suffix: what Pillow calls the format
_EXTRA = "Videos need PyAV: pip install 'hf-segkd[video]'"
_STILL = 100  # milliseconds that a frame is shown whose file does not say, as browsers do
_BT709 = 1  # number of that color space, its primaries and its curve in the tables of H.264
Draw = Callable[[Image.Image], Image.Image]


@dataclass(frozen=True)
class WrittenClip:
    """What was written: number of frames, size in pixels, frames per second, and seconds that it took."""

    frames: int
    size: tuple[int, int]
    fps: float
    seconds: float

    def __str__(self) -> str:
        width, height = self.size
        speed = self.frames / self.seconds
        return f"{self.frames} frames of {width} x {height}, {self.fps:.4g} fps, segmented at {speed:.1f} frames/s"


def is_clip(path: Path) -> bool:
    """Whether a file is a video, by its name, or a GIF or WebP of more than one frame."""
    suffix = path.suffix.lower()
    if suffix not in ANIMATIONS:
        return suffix in VIDEOS
    try:
        with Image.open(path) as picture:
            return getattr(picture, "n_frames", 1) > 1
    except Exception:  # Pillow raises anything on a broken file
        return True  # reported as a broken clip: as a picture, its first frame might pass


def clip_name(path: Path) -> str:
    """File name of the clip that is made of one: animations keep their kind, videos become `.mp4`."""
    return f"{path.stem}{path.suffix.lower() if path.suffix.lower() in ANIMATIONS else '.mp4'}"


def check_installed(paths: Iterable[Path]) -> None:
    """Check that what reads these clips is installed.

    Raises:
        ImportError: Without PyAV, if there is a video.
    """
    if any(path.suffix.lower() in VIDEOS for path in paths):
        _import_av()


def drawing(segmenters: dict[str, BaseSegmenter], opacity: float = 0.5) -> Draw:
    """What turns a frame into the frame to show: the overlay of one model, or those of several side by side.

    Args:
        segmenters (`dict[str, BaseSegmenter]`): By the title above each panel; a single one gets none.
        opacity (`float`, *optional*, defaults to `0.5`): Share of the colors, 0 to 1.

    Raises:
        ValueError: Models of other classes than the first, or of other images than 8-bit RGB.
    """
    first = next(iter(segmenters.values()))
    for title, segmenter in segmenters.items():
        if segmenter.bands is not None:
            raise ValueError(f"Clips hold 8-bit RGB, {title} reads {segmenter.bands}.")
        if segmenter.id2label != first.id2label:
            theirs, ours = (", ".join(one.id2label.values()) for one in (segmenter, first))
            raise ValueError(
                f"Models side by side must share their classes: {title} has {theirs}, the first model {ours}."
            )
    palette = palette_of(first.id2label)

    def draw(frame: Image.Image) -> Image.Image:
        panels = [overlay(frame, segmenter(frame), palette, opacity) for segmenter in segmenters.values()]
        return panels[0] if len(panels) == 1 else _side_by_side(panels, list(segmenters))

    return draw


def write_clip(source: Path, target: Path, draw: Draw, limit: int | None = None) -> WrittenClip:
    """Draw every frame of a clip anew.

    Timestamps are kept, also uneven ones; sound is left out. Frames are turned as the camera was held. A video becomes
    H.264; of an odd width or height without halved colors (4:4:4), since H.264 halves even sizes only.

    Args:
        source (`Path`): A video, or an animated GIF or WebP.
        target (`Path`): Whole or absent, whatever interrupts the program; see [`clip_name`].
        draw (`Callable`): From a frame (RGB) to the frame to show; all of one size.
        limit (`int`, *optional*): Stop after this many frames.

    Raises:
        ImportError: A video without PyAV.
        ValueError: If the clip is empty, damaged or cut short.
    """
    rewrite = _rewrite_animation if source.suffix.lower() in ANIMATIONS else _rewrite_video
    target.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(target) as unfinished:
        return rewrite(source, unfinished, draw, limit)


def _rewrite_video(source: Path, target: Path, draw: Draw, limit: int | None) -> WrittenClip:
    av = _import_av()
    count = _count_frames(av, source)
    count = min(count, limit or count)
    try:
        with av.open(str(source)) as clip, av.open(str(target), "w", format="mp4") as written:
            stream = clip.streams.video[0]
            stream.thread_type = "AUTO"
            rate = stream.average_rate or stream.guessed_rate or Fraction(25)
            start, done, size, encoder = time.perf_counter(), 0, (0, 0), None
            for frame in progress(islice(clip.decode(stream), count), count, f"predicting {source.name}", "frame"):
                picture = draw(_upright_frame(frame))
                if encoder is None:
                    size = picture.size
                    encoder = _add_stream(written, stream, rate, frame.rotation % 180 != 0, size)
                shown = av.VideoFrame.from_image(picture)
                shown = shown.reformat(format=encoder.pix_fmt, dst_colorspace="ITU709", dst_color_range="MPEG")
                timed = frame.pts is not None
                shown.pts, shown.time_base = (frame.pts, frame.time_base) if timed else (done, 1 / rate)
                written.mux(encoder.encode(shown))
                done += 1
            if encoder is None:
                raise ValueError(f"'{source}' holds no frame that can be decoded.")
            written.mux(encoder.encode(None))
    except av.FFmpegError as error:
        raise ValueError(f"'{source}' cannot be read as a video: {error.strerror}. It is damaged.") from None
    return WrittenClip(done, size, float(rate), time.perf_counter() - start)


def _import_av() -> Any:
    try:
        import av
    except ImportError as error:
        raise ImportError(_EXTRA) from error
    return av


def _count_frames(av: Any, source: Path) -> int:
    """Frames of a video, found without decoding any; refuses one that is cut short."""
    if source.stat().st_size == 0:
        raise ValueError(f"'{source}' is empty.")
    try:
        with av.open(str(source)) as clip:
            if not clip.streams.video:
                raise ValueError(f"'{source}' holds no video, or is cut short before it.")
            stream = clip.streams.video[0]
            count, end = 0, Fraction(0)
            for packet in clip.demux(stream):
                if packet.size and packet.pts is not None:
                    count += not packet.is_discard
                    end = max(end, (packet.pts + (packet.duration or 0)) * packet.time_base)
                elif packet.size:
                    count += 1
            # A trimmed MP4 may hold less than it declares; whether its boxes are all there is certain.
            in_boxes = "mp4" in clip.format.name
            cut = _boxes_are_cut(source) if in_boxes else end < Fraction(95, 100) * _declared_seconds(stream)
    except av.FFmpegError as error:
        raise ValueError(f"'{source}' is no video, or is cut short: {error.strerror}.") from None
    if cut:
        raise ValueError(f"'{source}' is cut short: it ends after {float(end):.1f} seconds. Copy it again.")
    if not count:
        raise ValueError(f"'{source}' holds no frames.")
    return count


def _declared_seconds(stream: Any) -> Fraction:
    """How long a stream is according to its file, 0 where that is not said."""
    if stream.duration is not None and stream.frames:
        return max(stream.duration, 0) * stream.time_base
    parts = stream.metadata.get("DURATION", "0").split(":")  # of Matroska, hours:minutes:seconds
    return sum((Fraction(part) * 60**power for power, part in enumerate(reversed(parts))), Fraction(0))


def _boxes_are_cut(source: Path) -> bool:
    """Whether a box of an MP4 or QuickTime file reaches behind the file's end."""
    end = source.stat().st_size
    with source.open("rb") as file:
        at = 0
        while at + 8 <= end:
            file.seek(at)
            head = file.read(16)
            size = int.from_bytes(head[:4])
            if size == 1:  # 64 bits of size follow
                size = int.from_bytes(head[8:])
            at = at + size if size else end  # 0: up to the end
    return at > end


def _upright_frame(frame: Any) -> Image.Image:
    array = frame.to_ndarray(format="rgb24")
    return Image.fromarray(np.ascontiguousarray(np.rot90(array, round(frame.rotation / 90))))


def _add_stream(written: Any, stream: Any, rate: Fraction, is_turned: bool, size: tuple[int, int]) -> Any:
    even = size[0] % 2 == size[1] % 2 == 0
    encoder = written.add_stream("libx264", rate=rate, options={"crf": "18"})
    encoder.width, encoder.height = size
    encoder.pix_fmt = "yuv420p" if even else "yuv444p"
    context = encoder.codec_context
    context.time_base = stream.time_base
    context.colorspace = context.color_primaries = context.color_trc = _BT709
    context.color_range = 1  # 16 to 235, as players expect
    if aspect := stream.sample_aspect_ratio:
        context.sample_aspect_ratio = 1 / aspect if is_turned else aspect
    return encoder


def _rewrite_animation(source: Path, target: Path, draw: Draw, limit: int | None) -> WrittenClip:
    start = time.perf_counter()
    milliseconds = _durations(source)[:limit]
    count = len(milliseconds)
    with Image.open(source) as clip:
        frames = progress(_drawn_frames(clip, count, draw), count, f"predicting {source.name}", "frame")
        first = next(frames)
        kind = ANIMATIONS[source.suffix.lower()]
        options = {"loop": clip.info["loop"]} if "loop" in clip.info else {}
        first.save(target, kind, save_all=True, append_images=frames, duration=milliseconds, **options)
    return WrittenClip(count, first.size, 1000 * count / sum(milliseconds), time.perf_counter() - start)


def _durations(source: Path) -> list[int]:
    """Milliseconds of each frame; all are decoded, so that a broken one is found before the model runs."""
    durations = []
    try:
        with Image.open(source) as clip:
            for index in range(clip.n_frames):
                clip.seek(index)
                clip.load()
                durations.append(round(clip.info.get("duration") or _STILL))
    except Exception as error:  # Pillow raises anything on a broken file
        raise ValueError(f"'{source}' is damaged or cut short: {error}.") from None
    return durations


def _drawn_frames(clip: Image.Image, count: int, draw: Draw) -> Iterator[Image.Image]:
    for index in range(count):
        clip.seek(index)
        yield draw(upright(clip))


def _side_by_side(panels: Sequence[Image.Image], titles: Sequence[str]) -> Image.Image:
    """Pictures of one size in a row, each below its title; of even width and height, as videos are best."""
    width, height = panels[0].size
    bar = max(16, height // 16)
    gap = 4
    size = len(panels) * (width + gap) - gap, bar + height
    canvas = Image.new("RGB", tuple(side + side % 2 for side in size), "white")
    draw = ImageDraw.Draw(canvas)
    for column, (panel, title) in enumerate(zip(panels, titles, strict=True)):
        left = column * (width + gap)
        font = _fitting_font(printable(title), width, 0.7 * bar)
        draw.text((left + width / 2, bar / 2), printable(title), "black", font, anchor="mm")
        canvas.paste(panel, (left, bar))
    return canvas


def _fitting_font(text: str, width: float, size: float) -> Any:
    font = ImageFont.load_default(size)
    length = max(font.getlength(text), 1)
    return font if length <= width else ImageFont.load_default(max(1, size * width / length))
