"""The decoded cache: the same pixels, whole or not there, never more than the disk holds."""

import json
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

import dataset_builders
from helpers.own_photos import NAMES, write_photos
from hf_segkd.data import SegmentationDataset, TrainTransform, collate, decoded
from hf_segkd.data import cache as cache_module
from hf_segkd.data.cache import decoded_size
from hf_segkd.data.transforms import read_example

SIZES = [(24, 32), (40, 20), (33, 57), (24, 32)]


def rows(changed: int = 0) -> datasets.Dataset:
    """Images of four sizes; `changed` moves one pixel."""
    columns = {
        "image": datasets.Image(mode="RGB"),
        "annotation": datasets.Image(),
        "image_id": datasets.Value("string"),
    }
    examples = []
    for index, size in enumerate(SIZES):
        generator = np.random.default_rng(index)
        image, labels = (
            generator.integers(0, high, shape, dtype=np.uint8) for high, shape in ((256, (*size, 3)), (5, size))
        )
        image[0, 0, 0] ^= changed
        labels[0, 0] = 255
        examples.append(
            {"image": Image.fromarray(image), "annotation": Image.fromarray(labels), "image_id": f"i{index}"}
        )
    return datasets.Dataset.from_list(examples, features=datasets.Features(columns))


def equal(a: dict, b: dict) -> bool:
    return a["image_id"] == b["image_id"] and all(torch.equal(a[key], b[key]) for key in ("image", "annotation"))


def test_cached_rows_are_the_decoded_ones_whatever_their_size(tmp_path):
    """An offset that is wrong by one row shears every image after it."""
    table = rows()
    found = decoded(table, tmp_path)
    assert len(found) == 4
    assert all(equal(found[index], read_example(table[index])) for index in range(4))


@pytest.mark.parametrize("workers", [0, 2])
def test_training_sees_the_same_pixels_with_and_without_it(tmp_path, workers):
    """A faster run that is another run cannot be compared."""
    batches = []
    for source in (rows(), decoded(rows(), tmp_path)):
        dataset = SegmentationDataset(source, TrainTransform((16, 24)), num_labels=5, seed=2)
        loader = DataLoader(dataset, batch_size=2, collate_fn=collate, num_workers=workers)
        batches.append([torch.cat([b["pixel_values"].flatten(), b["labels"].flatten()]) for b in loader])
    assert all(torch.equal(a, b) for a, b in zip(*batches, strict=True))


def test_the_second_run_decodes_nothing(tmp_path, monkeypatch):
    """The point of it."""
    decoded(rows(), tmp_path)
    monkeypatch.setattr(cache_module, "_write", None)
    assert len(decoded(rows(), tmp_path)) == 4


def test_other_pixels_have_another_cache(tmp_path):
    """A cache that outlives its images trains on yesterday's labels."""
    before, after = decoded(rows(), tmp_path), decoded(rows(changed=1), tmp_path)
    assert before.folder != after.folder
    assert not torch.equal(before[0]["image"], after[0]["image"])


def test_changed_files_and_another_label_map_have_another_cache(tmp_path):
    """The files' times and the meaning of the values are part of the fingerprint."""
    photos = write_photos(tmp_path / "photos")

    def cached(**options):
        return decoded(
            dataset_builders.open_dataset("folder", str(photos), **options).split("train"), tmp_path / "cache"
        )

    first = cached(labels=NAMES)
    assert cached(labels=NAMES).folder == first.folder
    swapped = cached(label_map={"0": "background", "2": "crack", "1": "rust"})
    assert swapped.folder != first.folder
    masks = first[0]["annotation"], swapped[0]["annotation"]
    assert torch.equal(masks[0] == 1, masks[1] == 2) and not torch.equal(*masks)
    path = photos / "masks" / f"{first.image_ids[0]}.png"
    Image.fromarray(np.zeros_like(Image.open(path))).save(path)
    assert cached(labels=NAMES).folder != first.folder


class StopAfterTwo(Exception):
    pass


def test_an_interrupted_preparation_leaves_nothing_that_looks_whole(tmp_path, monkeypatch):
    """Half a cache would train on half of the images, or crash in the middle of the first epoch."""
    table, read = rows(), []

    def stopping(example, bands):
        read.append(example)
        if len(read) > 2:
            raise StopAfterTwo
        return read_example(example)

    monkeypatch.setattr(cache_module, "read_example", stopping)
    with pytest.raises(StopAfterTwo):
        decoded(table, tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()], "the disk is not given back"
    monkeypatch.setattr(cache_module, "read_example", read_example)
    assert all(equal(decoded(table, tmp_path)[index], read_example(table[index])) for index in range(4))


def test_what_a_killed_preparation_left_is_written_anew(tmp_path):
    """A process that is killed cannot tidy up."""
    whole = decoded(rows(), tmp_path).folder
    partial = whole.with_name(whole.name + ".partial")
    shutil.move(whole, partial)
    (partial / "images.bin").write_bytes(b"x")
    found = decoded(rows(), tmp_path)
    assert equal(found[3], read_example(rows()[3])) and not partial.exists()


def test_a_damaged_file_is_refused_with_what_to_do(tmp_path):
    """A map that ends early is a bus error, which has no message."""
    folder = decoded(rows(), tmp_path).folder
    with open(folder / "labels.bin", "r+b") as file:
        file.truncate(100)
    with pytest.raises(ValueError, match=r"labels.bin has 100 bytes, expected 4217. Delete"):
        decoded(rows(), tmp_path)


def test_size_is_known_before_anything_is_written_and_checked_against_the_disk(tmp_path, monkeypatch, caplog):
    """A full disk stops every other job on the machine."""
    pixels = sum(height * width for height, width in SIZES)
    assert decoded_size(rows()) == 4 * pixels
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=4 * pixels - 1))
    with pytest.raises(ValueError, match=r"4 images need 0.00 GiB decoded, .* has 0.00 GiB free"):
        decoded(rows(), tmp_path)
    assert [path.suffix for path in tmp_path.iterdir()] in ([], [".lock"])
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with caplog.at_level("INFO", "hf_segkd"):
        folder = decoded(rows(), tmp_path).folder
    assert "4 images need 0.00 GiB decoded" in caplog.text
    assert sum((folder / name).stat().st_size for name in ("images.bin", "labels.bin")) == 4 * pixels


def test_nothing_done_to_a_row_reaches_the_disk(tmp_path):
    """An in-place change in a transform would spoil the image for every later epoch."""
    found = decoded(rows(), tmp_path)
    before = (found.folder / "images.bin").read_bytes()
    found[1]["image"].zero_()
    assert (found.folder / "images.bin").read_bytes() == before


def test_workers_that_are_spawned_map_the_files_instead_of_copying_them(tmp_path):
    """Pickled arrays would be one copy of the dataset per worker."""
    found = decoded(rows(), tmp_path)
    content = pickle.dumps(found)
    assert len(content) < 1000 < (found.folder / "images.bin").stat().st_size
    assert equal(pickle.loads(content)[2], found[2])


def test_processes_that_ask_at_once_write_once(tmp_path, monkeypatch):
    """Eight processes of one machine would write eight times 18 GB."""
    written, write = [], cache_module._write
    monkeypatch.setattr(cache_module, "_write", lambda *arguments: (written.append(1), write(*arguments)))
    tables = [rows() for _ in range(4)]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda table: decoded(table, tmp_path), tables))
    assert len(written) == 1 and all(equal(x[2], found[0][2]) for x in found)


def test_values_that_a_byte_cannot_hold_are_refused_by_name(tmp_path):
    """Class 300 would become class 44."""
    table = rows()
    wide = Image.fromarray(np.full(SIZES[0], 300, dtype=np.int32))
    table = datasets.Dataset.from_list([table[0] | {"annotation": wide}], features=table.features)
    with pytest.raises(ValueError, match="'i0' holds 300 to 300"):
        decoded(table, tmp_path)


def test_the_index_names_every_image(tmp_path):
    """Messages about a wrong label must name the image, cached or not."""
    folder = decoded(rows(), tmp_path).folder
    assert json.loads((folder / "index.json").read_text())["image_ids"] == ["i0", "i1", "i2", "i3"]
    dataset = SegmentationDataset(decoded(rows(), tmp_path), TrainTransform((8, 8)), num_labels=3)
    with pytest.raises(ValueError, match="annotation of image 'i1' holds 3, 4"):
        dataset[1]
