"""Clips: every frame is predicted, at its own time and size, and what is broken leaves no file."""

import sys

import numpy as np
import pytest
from PIL import Image

from dataset_builders.street_scenes import draw_scene
from helpers.commands import script
from helpers.tiny import LABELS, TINY
from hf_segkd.deployment import clips
from hf_segkd.deployment.label_files import palette_of
from hf_segkd.evaluation.segmenter import Segmenter
from hf_segkd.loading.any_model import load_model
from hf_segkd.models import default_processor
from hf_segkd.reports.pictures import overlay

DURATIONS = [50, 100, 150, 70, 200]  # milliseconds


def scenes(count, height, width):
    """A camera that moves to the right, so that no two frames are equal."""
    scene = draw_scene("test", 0, height, width + 8 * count, seed=0)[0]
    return [np.ascontiguousarray(scene[:, 8 * index : 8 * index + width]) for index in range(count)]


def animation(path, height=32, width=41, **options):
    first, *others = [Image.fromarray(frame) for frame in scenes(len(DURATIONS), height, width)]
    first.save(path, save_all=True, append_images=others, duration=DURATIONS, **options)
    return path


def video(path, count=5, height=48, width=64, times=None, codec="libx264", pixels="yuv420p", **options):
    av = pytest.importorskip("av", reason="needs the extra 'video'")
    with av.open(str(path), "w", options=options) as clip:
        stream = clip.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = width, height, pixels
        for index, array in enumerate(scenes(count, height, width)):
            frame = av.VideoFrame.from_ndarray(array, format="rgb24")
            if times is not None:
                frame.pts = times[index]
            clip.mux(stream.encode(frame))
        clip.mux(stream.encode(None))
    return path


def decoded(path):
    """Frames of a video, and their times in seconds."""
    av = pytest.importorskip("av", reason="needs the extra 'video'")
    with av.open(str(path)) as clip:
        frames = list(clip.decode(clip.streams.video[0]))
    return [frame.to_ndarray(format="rgb24") for frame in frames], [frame.time for frame in frames]


def same(frame):
    """A drawing that changes nothing."""
    return frame


def tiles(array):
    """Mean colors of 16 x 16 pixels, of which compression takes little."""
    height, width, channels = array.shape
    return array.reshape(height // 16, 16, width // 16, 16, channels).mean(axis=(1, 3))


def left_in(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    loaded = load_model({**TINY, "use_decoder": True}, id2label=LABELS)[0]
    loaded.save_pretrained(folder)
    default_processor(loaded.config).save_pretrained(folder)
    return str(folder)


def predict(*argv):
    return script("predict").main([*map(str, argv), "--device", "cpu"])


def test_every_frame_of_a_gif_is_predicted_and_shown_as_long(tmp_path, model):
    """Only the first was: a GIF of a drive became one label map."""
    source = animation(tmp_path / "drive.gif", loop=0)
    (written,) = predict(model, source, "--output_dir", tmp_path / "out")
    segmenter = Segmenter(*load_model(model))
    with Image.open(source) as before, Image.open(written) as after:
        assert written.name == "drive.gif" and after.size == (41, 32) and after.info["loop"] == 0
        assert after.n_frames == len(DURATIONS)
        for index, duration in enumerate(DURATIONS):
            before.seek(index)
            after.seek(index)
            assert after.info["duration"] == duration
            frame = before.convert("RGB")
            expected = np.asarray(overlay(frame, segmenter(frame), palette_of(LABELS)), dtype=int)
            difference = np.abs(np.asarray(after.convert("RGB"), dtype=int) - expected)
            assert difference.mean() < 12, "a GIF has 256 colors"


def test_an_animated_webp_stays_one_and_a_still_gif_becomes_a_label_map(tmp_path, model):
    """Whether a file is a clip lies in the file, not in its suffix."""
    animation(tmp_path / "drive.webp")
    Image.fromarray(scenes(1, 24, 24)[0]).save(tmp_path / "still.gif")
    written = predict(model, tmp_path / "drive.webp", tmp_path / "still.gif", "--output_dir", tmp_path / "out")
    assert [path.name for path in written] == ["drive.webp", "still.png"]
    assert Image.open(written[0]).n_frames == len(DURATIONS) and Image.open(written[1]).mode == "P"


def test_a_video_keeps_its_frames_times_and_size(tmp_path, model, capsys):
    """A phone's frames are spaced unevenly: at an even rate the clip would run too fast or too slow."""
    times = [0, 1, 3, 4, 9]  # tenths of a second
    source = video(tmp_path / "clip.mkv", times=times)
    (written,) = predict(model, source, "--output_dir", tmp_path / "out")
    frames, seconds = decoded(written)
    assert written.name == "clip.mp4" and frames[0].shape == (48, 64, 3)
    assert seconds == pytest.approx([time / 10 for time in times])
    assert "5 frames of 64 x 48" in capsys.readouterr().out
    segmenter = Segmenter(*load_model(model))
    for before, after in zip(decoded(source)[0], frames, strict=True):
        expected = np.asarray(overlay(Image.fromarray(before), segmenter(Image.fromarray(before)), palette_of(LABELS)))
        assert np.abs(tiles(after) - tiles(expected)).max() < 12, "compressed, and at half the resolution of colors"


@pytest.mark.parametrize("height, width", [(47, 64), (48, 63), (47, 63)])
def test_odd_sizes_are_kept(height, width, tmp_path):
    """H.264 with halved colors refuses them, after the model has run."""
    source = video(tmp_path / "odd.mkv", count=2, height=height, width=width, pixels="yuv444p")
    clips.write_clip(source, tmp_path / "out.mp4", same)
    assert [frame.shape for frame in decoded(tmp_path / "out.mp4")[0]] == [(height, width, 3)] * 2


def test_colors_are_kept(tmp_path):
    """Written with the coefficients of one color space and read with those of another, red becomes orange."""
    source = video(tmp_path / "in.mkv", count=2, pixels="yuv444p", crf="1")
    colors = [(200, 30, 40), (20, 200, 60), (30, 40, 220)]
    shown = iter([Image.new("RGB", (64, 48), color) for color in colors[:2]])
    clips.write_clip(source, tmp_path / "out.mp4", lambda frame: next(shown))
    for frame, color in zip(decoded(tmp_path / "out.mp4")[0], colors, strict=False):
        assert np.abs(frame.reshape(-1, 3).mean(axis=0) - color).max() < 4


def test_a_clip_held_sideways_is_turned(tmp_path):
    """Phones store the rotation beside the pixels: the model would see buildings lying on their side."""
    upright = video(tmp_path / "upright.mp4", count=2)
    content = bytearray(upright.read_bytes())
    at = content.index(b"tkhd") + 44  # the matrix of the track's header: a quarter turn to the right
    matrix = [0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30]
    content[at : at + 36] = b"".join(value.to_bytes(4, signed=True) for value in matrix)
    (tmp_path / "turned.mp4").write_bytes(content)
    seen = []
    clips.write_clip(tmp_path / "turned.mp4", tmp_path / "out.mp4", lambda frame: seen.append(frame) or frame)
    assert np.array_equal(np.asarray(seen[0]), np.rot90(decoded(upright)[0][0], -1))
    assert decoded(tmp_path / "out.mp4")[0][0].shape == (64, 48, 3)


def test_two_models_are_shown_side_by_side_below_their_names(tmp_path, model):
    """Before and after in one clip; without names nobody knows which is which."""
    other = tmp_path / "other"
    loaded = load_model(TINY, id2label=LABELS)[0]
    loaded.save_pretrained(other)
    default_processor(loaded.config).save_pretrained(other)
    source = animation(tmp_path / "drive.gif")
    (written,) = predict(model, source, "--side_by_side", other, "--output_dir", tmp_path / "out")
    with Image.open(written) as clip:
        picture = np.asarray(clip.convert("RGB"))
    assert picture.shape == (16 + 32, 2 * 41 + 4, 3)
    bars = picture[:16, :41], picture[:16, 45:]
    assert all((bar.min(axis=(0, 1)) < 128).all() for bar in bars), "a title above each"
    assert not np.array_equal(picture[16:, :41], picture[16:, 45:])
    with pytest.raises(SystemExit, match="now .*side_by_side|side_by_side: .*now"):
        predict(model, source, "--output_dir", tmp_path / "out")


def test_models_that_do_not_fit_side_by_side_are_refused(tmp_path, model):
    """One palette for two sets of classes would color one of them wrongly."""
    segmenter = Segmenter(*load_model(model))
    other = Segmenter(*load_model(TINY, id2label={0: "sky", 1: "road"}))
    with pytest.raises(ValueError, match="b has sky, road"):
        clips.drawing({"a": segmenter, "b": other})
    Image.fromarray(scenes(1, 24, 24)[0]).save(tmp_path / "still.png")
    animation(tmp_path / "drive.gif")
    for argv, message in (
        (["drive.gif", "--side_by_side", model], "shows a second model"),
        (["drive.gif", "still.png", "--side_by_side", "other"], "'still' is no video and no animation"),
    ):
        files = [str(tmp_path / word) if word.endswith((".gif", ".png")) else word for word in argv]
        with pytest.raises(SystemExit, match=message):
            predict(model, *files, "--output_dir", tmp_path / "out")


def test_an_interrupted_command_goes_on_and_no_input_is_replaced(tmp_path, model, monkeypatch):
    """An hour of video must not be predicted twice, nor written over."""
    source = animation(tmp_path / "drive.gif")
    before = source.read_bytes()
    with pytest.raises(SystemExit, match="would be replaced"):
        predict(model, source, "--output_dir", tmp_path)
    assert source.read_bytes() == before
    predict(model, source, "--output_dir", tmp_path / "out")
    monkeypatch.setattr(clips, "write_clip", lambda *_: pytest.fail("predicted again"))
    predict(model, source, "--output_dir", tmp_path / "out")


def broken(kind, folder):
    """A file that is no whole clip."""
    if kind == "gif":
        path = animation(folder / "broken.gif")
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
        return path
    path = folder / ("broken.mkv" if kind == "mkv" else "broken.mp4")
    if kind in ("empty", "text"):
        path.write_bytes(b"" if kind == "empty" else b"no video, " * 50)
        return path
    options = {"movflags": "faststart"} if kind == "faststart" else {}
    content = video(path, count=20, **options).read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])
    return path


@pytest.mark.parametrize(
    "kind, message",
    [
        ("empty", "is empty"),
        ("text", "is no video"),
        ("mp4", "is no video, or is cut short"),
        ("faststart", "is cut short"),
        ("mkv", "is cut short"),
        ("gif", "damaged or cut short"),
    ],
)
def test_a_broken_clip_is_named_and_leaves_nothing(kind, message, tmp_path, model):
    """Half of a clip would pass for the whole; libav itself ends at the last frame without a word."""
    if kind != "gif":
        pytest.importorskip("av", reason="needs the extra 'video'")
    whole = animation(tmp_path / "whole.gif")
    with pytest.raises(SystemExit, match=f"broken: .*{message}"):
        predict(model, broken(kind, tmp_path), whole, "--output_dir", tmp_path / "out")
    assert left_in(tmp_path / "out") == ["predictions.json", "whole.gif"]


def test_a_clip_that_fails_at_its_end_leaves_nothing(tmp_path):
    """A full disk or an interruption must not leave what looks like a finished clip."""

    def fail(frame):
        raise KeyboardInterrupt

    (tmp_path / "out").mkdir()
    with pytest.raises(KeyboardInterrupt):
        clips.write_clip(animation(tmp_path / "drive.gif"), tmp_path / "out" / "drive.gif", fail)
    with pytest.raises(KeyboardInterrupt):
        clips.write_clip(video(tmp_path / "clip.mp4"), tmp_path / "out" / "clip.mp4", fail)
    assert left_in(tmp_path / "out") == []


def test_a_video_without_pyav_says_what_to_install(tmp_path, model, monkeypatch):
    """The extra is optional: its absence must not read like a bug, nor come after the pictures."""
    monkeypatch.setitem(sys.modules, "av", None)
    (tmp_path / "clip.mp4").write_bytes(b"anything")
    with pytest.raises(SystemExit, match=r"hf-segkd\[video\]"):
        predict(model, tmp_path / "clip.mp4", "--output_dir", tmp_path / "out")


def test_a_limit_ends_a_clip_early(tmp_path):
    """The demo page shows the first seconds of what a visitor sends."""
    written = clips.write_clip(animation(tmp_path / "drive.gif"), tmp_path / "out.gif", same, limit=2)
    assert written.frames == Image.open(tmp_path / "out.gif").n_frames == 2
    assert clips.write_clip(video(tmp_path / "clip.mp4"), tmp_path / "out.mp4", same, limit=2).frames == 2
