"""The teacher cache: one pass, whoever makes it and however often it is killed, and nothing of another teacher."""

import os
import shutil
import signal
import time
from collections import namedtuple

import pytest
import torch

from helpers.tiny import LABELS, TINY, TinyScenes
from hf_segkd.data import teacher_maps
from hf_segkd.evaluation import teacher_cache
from hf_segkd.evaluation.teacher import TeacherDescription
from hf_segkd.evaluation.teacher_cache import TeacherCache, describe
from hf_segkd.evaluation.teacher_member import TeacherMember
from hf_segkd.loading.any_model import load_model

IMAGES = 12
KEYS = [f"{index:032x}" for index in range(IMAGES)]
SIZES = [(32, 32)] * IMAGES
ABOUT = {"version": 1, "labels": list(LABELS.values()), "teachers": [], "stride": None}


class Scenes(TinyScenes):
    """Notes every image that is read; may be slow, or die at one."""

    def __init__(self, note, die_at=None, seconds=0.0):
        super().__init__(IMAGES)
        self.note, self.die_at, self.seconds = note, die_at, seconds

    def __getitem__(self, index):
        time.sleep(self.seconds)
        with self.note.open("a") as file:
            file.write(f"{index}\n")
        if self.die_at is not None and len(self.note.read_text().split()) == self.die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(teacher_cache, "SHARD_IMAGES", 2)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model, processor = load_model(TINY, id2label=LABELS)
    return model.eval(), processor


def fill(folder, model, images, keys=KEYS):
    cache = TeacherCache(folder, ABOUT)
    cache.fill(*model, images, keys, SIZES)
    return cache


def child(work) -> int:
    """A process that does `work`, without the imports that a new interpreter would take."""
    process = os.fork()
    if process:
        return process
    try:
        work()
        os._exit(0)
    except BaseException:
        os._exit(1)


def finish(process: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def content(folder):
    return {path.name: path.read_bytes() for path in folder.glob(teacher_maps.SHARD)}


def test_pass_that_is_killed_twice_ends_as_one_that_is_not(tmp_path, model, small_shards):
    """A pass over a large teacher takes a night: half a shard, or a map of the wrong image, would stay for ever."""
    fill(tmp_path / "once", model, Scenes(tmp_path / "note"))
    expected = content(tmp_path / "once")
    note = tmp_path / "killed"
    for die_at in (4, 9):
        assert finish(child(lambda at=die_at: fill(tmp_path / "cache", model, Scenes(note, at)))) == -signal.SIGKILL
    assert 0 < len(content(tmp_path / "cache")) < len(expected)
    fill(tmp_path / "cache", model, Scenes(note))
    assert content(tmp_path / "cache") == expected and len(expected) == 6
    # Each start reads the first missing image once more, to know the size of its map; a kill costs its shard.
    assert len(note.read_text().split()) <= IMAGES + 3 + 2 * 2


def test_two_processes_share_the_work(tmp_path, model, small_shards):
    """Both from the beginning would take as long as one; both into one file could leave a mixture."""
    fill(tmp_path / "once", model, Scenes(tmp_path / "note"))
    notes = [tmp_path / "first", tmp_path / "second"]
    processes = [child(lambda note=x: fill(tmp_path / "cache", model, Scenes(note, seconds=0.05))) for x in notes]
    assert [finish(process) for process in processes] == [0, 0]
    assert content(tmp_path / "cache") == content(tmp_path / "once")
    seen = [len(note.read_text().split()) for note in notes]
    assert min(seen) > 1 and sum(seen) <= IMAGES + 2


def test_folder_that_another_process_is_beginning_is_taken(tmp_path):
    """Of two processes that began together, the second took the first one's temporary file for a stranger's."""
    (tmp_path / ".teacher.json-1").write_text("{")
    TeacherCache(tmp_path, ABOUT)
    TeacherCache(tmp_path, ABOUT)
    (tmp_path / "teacher.json").unlink()
    (tmp_path / "photo.png").touch()
    with pytest.raises(ValueError, match="is no teacher cache"):
        TeacherCache(tmp_path, ABOUT)


def test_only_what_is_new_is_computed(tmp_path, model, small_shards):
    """A hundred photos are added to a hundred thousand: their maps are a minute's work, not a night's."""
    fill(tmp_path / "cache", model, Scenes(tmp_path / "note"))
    changed = [*KEYS[:5], "f" * 32, *KEYS[6:]]
    note = tmp_path / "again"
    cache = fill(tmp_path / "cache", model, Scenes(note), changed)
    assert set(note.read_text().split()) == {"5"}
    assert cache.missing(changed) == [] and len(cache.maps(changed)) == IMAGES
    fill(tmp_path / "cache", model, Scenes(tmp_path / "none"), list(reversed(changed)))
    assert not (tmp_path / "none").exists()


def test_maps_are_those_of_the_teacher_and_their_error_is_logged(tmp_path, model, small_shards, caplog):
    """What training reads instead of the teacher must be the teacher, to the error that is told."""
    caplog.set_level("INFO", "hf_segkd")
    cache = fill(tmp_path / "cache", model, Scenes(tmp_path / "note"))
    normalization = teacher_cache.InputNormalization.from_processor(model[1])
    for index in (0, 7):
        images = normalization(TinyScenes(IMAGES)[index]["pixel_values"][None])
        with torch.no_grad():
            logits = model[0](pixel_values=images).logits[0]
        assert teacher_cache.divergence(logits, cache.maps(KEYS)[index].logits(), 1.0) < 1e-4
    assert "needs about 0.00 GiB (12 maps, 4x4 for an image of 32x32)" in caplog.text
    assert "12 maps; KL to the teacher itself, mean of 12:" in caplog.text and "at temperature 4" in caplog.text


def test_full_disk_is_seen_before_the_first_map(tmp_path, model, monkeypatch):
    """After hours, it would have been found by the operating system."""
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1, 1, 100))
    with pytest.raises(ValueError, match="needs about .* on a larger disk, or a larger teacher_stride"):
        fill(tmp_path / "cache", model, Scenes(tmp_path / "note"))
    assert content(tmp_path / "cache") == {}


def described(folder, **options):
    return describe(TeacherDescription((TeacherMember(str(folder), **options),)), ("a", "b"))


@pytest.fixture
def saved(tmp_path, model):
    for part in model:
        part.save_pretrained(tmp_path / "teacher")
    return tmp_path / "teacher"


@pytest.mark.parametrize(
    "options, message",
    [
        ({"flip": True}, r"teachers\[0\].flip: was False, now True"),
        ({"scales": [0.5, 1.0]}, "scales"),
        ({"classes": {"a": "x"}}, r"teachers\[0\].classes: was None, now \{'a': 'x'\}"),
        ({"weight": 2.0}, "weight"),
    ],
)
def test_cache_of_other_views_or_classes_is_refused(tmp_path, saved, options, message):
    """Its maps would teach what nobody asked for, without a word."""
    TeacherCache(tmp_path / "cache", described(saved))
    TeacherCache(tmp_path / "cache", described(saved))
    with pytest.raises(ValueError, match=message):
        TeacherCache(tmp_path / "cache", described(saved, **options))


def test_changed_weights_and_processor_are_noticed_and_a_moved_teacher_is_the_same(tmp_path, saved):
    """A teacher that was trained on has the name of the old one; another place makes no other teacher."""
    about = described(saved)
    TeacherCache(tmp_path / "cache", about)
    moved = saved.rename(tmp_path / "moved")
    TeacherCache(tmp_path / "cache", described(moved))
    for name in ("model.safetensors", "preprocessor_config.json"):
        kept = (moved / name).read_bytes()
        (moved / name).write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
        with pytest.raises(ValueError, match=r"of another teacher:\n  teachers\[0\].weights: was"):
            TeacherCache(tmp_path / "cache", described(moved))
        (moved / name).write_bytes(kept)
    shutil.rmtree(moved)
    TeacherCache(tmp_path / "cache", described(saved))
    with pytest.raises(ValueError, match=r"teachers\[0\].model: was"):
        TeacherCache(tmp_path / "cache", described(tmp_path / "other"))


def test_folder_of_something_else_is_refused(tmp_path):
    """--teacher_cache runs/teacher: shards among the files of a run would be hard to take out again."""
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="is no teacher cache"):
        TeacherCache(tmp_path, ABOUT)
