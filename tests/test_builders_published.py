"""Builders of the published datasets on small trees in the official layout, as folders and as official archives."""

import io
import zipfile
from pathlib import Path

import datasets
import numpy as np
import pytest
from conftest import SHARED
from PIL import Image

from dataset_builders import BUILDERS, command_line, dataset_spec, find_pairs, load_split, load_splits
from hf_segkd.data.labels import CITYSCAPES_IDS, bit_color

SAMPLES = SHARED / "samples" / "ade20k_sceneparsing" / "sampleData"
SIZE = (6, 4)  # width, height


def picture(seed: int, suffix: str) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (*SIZE[::-1], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG" if suffix == ".png" else "JPEG")
    return buffer.getvalue()


def mask(*values: int, palette: bool = False) -> bytes:
    """PNG whose first pixels hold `values`, the others the last of them; grey, or with VOC's palette."""
    raw = np.full(SIZE[::-1], values[-1], dtype=np.uint8)
    raw.flat[: len(values)] = values
    image = Image.fromarray(raw)
    if palette:
        image.putpalette([channel for index in range(256) for channel in bit_color(index)])
        assert image.mode == "P"
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def cityscapes() -> dict[str, bytes]:
    files = {"leftImg8bit/README": b"text", "gtFine/license.txt": b"text"}
    places = ("train", "aachen"), ("train", "ulm"), ("val", "lindau"), ("test", "berlin")
    for index, (split, city) in enumerate(places):
        name = f"{city}_000000_00001{index}"
        files[f"leftImg8bit/{split}/{city}/{name}_leftImg8bit.png"] = picture(index, ".png")
        for kind, content in (("labelIds", mask(0, 7, 8, 33, 29, 255, 11)), ("color", picture(9, ".png"))):
            files[f"gtFine/{split}/{city}/{name}_gtFine_{kind}.png"] = content
        files[f"gtFine/{split}/{city}/{name}_gtFine_polygons.json"] = b"{}"
    return files


def voc_aug() -> dict[str, bytes]:
    files = {f"JPEGImages/2007_00000{index}.jpg": picture(index, ".jpg") for index in range(5)}
    for index in range(4):
        files[f"SegmentationClassAug/2007_00000{index}.png"] = mask(0, 15, 20, 255)
    for index in (0, 3):
        files[f"SegmentationClass/2007_00000{index}.png"] = mask(255, 1, 2, 20, 0, palette=True)
    files["ImageSets/Segmentation/train.txt"] = b"2007_000000\n"
    files["ImageSets/Segmentation/val.txt"] = b"2007_000003\n"
    files["ImageSets/Segmentation/trainaug.txt"] = b"2007_000002\n2007_000000\n2007_000001\n"
    return files


def ade20k() -> dict[str, bytes]:
    files = {"objectInfo150.txt": b"table"}
    for split, stem in (("training", "ADE_train_0000000"), ("validation", "ADE_val_0000000")):
        for index in range(2 if split == "training" else 1):
            files[f"images/{split}/{stem}{index}.jpg"] = picture(index, ".jpg")
            files[f"annotations/{split}/{stem}{index}.png"] = mask(0, 1, 7, 150)
    return files


def coco_stuff_164k() -> dict[str, bytes]:
    files = {}
    for split, count in (("train2017", 2), ("val2017", 1)):
        for index in range(count):
            files[f"{split}/00000000000{index}.jpg"] = picture(index, ".jpg")
            files[f"stuffthingmaps/{split}/00000000000{index}.png"] = mask(0, 10, 12, 181, 255)
    return files


TREES = {"cityscapes": cityscapes, "voc_aug": voc_aug, "ade20k": ade20k, "coco_stuff_164k": coco_stuff_164k}
COUNTS = {
    "cityscapes": {"train": 2, "validation": 1, "test": 1},
    "voc_aug": {"train": 3, "validation": 1},
    "ade20k": {"train": 2, "validation": 1},
    "coco_stuff_164k": {"train": 2, "validation": 1},
}
IDS = {  # of the first pixels of a train annotation
    "cityscapes": [255, 0, 1, 18, 255, 255, 2],
    "voc_aug": [0, 15, 20, 255],
    "ade20k": [255, 0, 6, 149],
    "coco_stuff_164k": [0, 10, 12, 181, 255],
}
ARCHIVES = {  # official archive: the folders it holds, and what they are called inside it
    "cityscapes": {
        "leftImg8bit_trainvaltest.zip": {"leftImg8bit": "leftImg8bit"},
        "gtFine_trainvaltest.zip": {"gtFine": "gtFine"},
    },
    "voc_aug": {"SegmentationClassAug.zip": {"SegmentationClassAug": "SegmentationClassAug"}},
    "ade20k": {
        "ADEChallengeData2016.zip": {
            "images": "ADEChallengeData2016/images",
            "annotations": "ADEChallengeData2016/annotations",
        }
    },
    "coco_stuff_164k": {
        "train2017.zip": {"train2017": "train2017"},
        "val2017.zip": {"val2017": "val2017"},
        "stuffthingmaps_trainval2017.zip": {
            "stuffthingmaps/train2017": "train2017",
            "stuffthingmaps/val2017": "val2017",
        },
    },
}


def write(root: Path, files: dict[str, bytes]) -> Path:
    for path, content in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
    return root


def write_archives(root: Path, name: str, files: dict[str, bytes]) -> Path:
    """The same tree, with the folders that have an official archive inside that archive."""
    rest = dict(files)
    root.mkdir()
    for archive, folders in ARCHIVES[name].items():
        with zipfile.ZipFile(root / archive, "w") as opened:
            for folder, inside in folders.items():
                for path in [path for path in rest if path.startswith(f"{folder}/")]:
                    opened.writestr(inside + path.removeprefix(folder), rest.pop(path))
            opened.writestr("__MACOSX/._x.png", b"junk")
    return write(root, rest)


@pytest.fixture(params=TREES)
def name(request):
    return request.param


@pytest.fixture
def root(tmp_path, name):
    return write(tmp_path / "data", TREES[name]())


def rows_of(split: datasets.Dataset) -> list:
    return [(row["image_id"], np.array(row["image"]).tolist(), np.array(row["annotation"]).tolist()) for row in split]


def test_official_tree_gives_counts_train_ids_and_ignored_pixels(name, root, tmp_path):
    """One id off by one trains every class as its neighbour."""
    splits = load_splits(name, str(root), cache_dir=str(tmp_path / "cache"))
    assert {split: len(rows) for split, rows in splits.items()} == COUNTS[name]
    row = splits["train"][0]
    annotation = np.array(row["annotation"])
    assert annotation.flat[: len(IDS[name])].tolist() == IDS[name] and annotation.dtype == np.uint8
    assert row["image"].mode == "RGB" and row["image"].size == SIZE and row["annotation"].mode == "L"
    assert splits["train"].column_names == ["image", "annotation", "image_id"]


def test_official_archives_give_the_rows_of_their_folders(name, root, tmp_path):
    """Unpacking 60 GB first should not be needed, and must change nothing."""
    zipped = write_archives(tmp_path / "zipped", name, TREES[name]())
    before = sorted(zipped.rglob("*"))
    a, b = (load_splits(name, str(folder), cache_dir=str(tmp_path / "cache")) for folder in (root, zipped))
    assert a.keys() == b.keys() and all(rows_of(a[split]) == rows_of(b[split]) for split in a)
    assert sorted(zipped.rglob("*")) == before, "something was extracted"


def test_parquet_export_reloads_equal(name, root, tmp_path, monkeypatch, capsys):
    """An export that holds paths instead of pictures is found out on another machine."""
    monkeypatch.setattr(command_line, "ROWS_PER_FILE", 1)
    before = {split: rows_of(rows) for split, rows in load_splits(name, str(root)).items()}
    command_line.main(name, "", ["--data_dir", str(root), "--output", str(tmp_path / "out")])
    assert f"train: {COUNTS[name]['train']} images" in capsys.readouterr().out
    for path in sorted(root.rglob("*.*")):
        path.unlink()
    again = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    assert {split: rows_of(rows) for split, rows in again.items()} == before
    opened = load_split(str(tmp_path / "out"), None, "validation", cache_dir=str(tmp_path / "cache"))
    assert rows_of(opened) == before["validation"]
    assert dataset_spec(str(tmp_path / "out")).labels == dataset_spec(name).labels


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_partial_downloads_name_what_is_missing_and_where_to_get_it(name, root, tmp_path, suffix):
    """Half an archive trains on half the data, and the score is blamed on the method."""
    victims = {
        ("cityscapes", "jpg"): "leftImg8bit/train/ulm/ulm_000000_000011_leftImg8bit.png",
        ("cityscapes", "png"): "gtFine/train/ulm/ulm_000000_000011_gtFine_labelIds.png",
        ("voc_aug", "jpg"): "JPEGImages/2007_000001.jpg",
        ("voc_aug", "png"): "SegmentationClassAug/2007_000001.png",
        ("ade20k", "jpg"): "images/training/ADE_train_00000001.jpg",
        ("ade20k", "png"): "annotations/training/ADE_train_00000001.png",
        ("coco_stuff_164k", "jpg"): "train2017/000000000001.jpg",
        ("coco_stuff_164k", "png"): "stuffthingmaps/train2017/000000000001.png",
    }
    (root / victims[name, suffix]).unlink()
    total = 3 if name == "voc_aug" else 2
    with pytest.raises(ValueError, match=rf"^1 of {total} train .*00001.* incomplete\. Get .*http") as error:
        load_split(name, str(root), "validation", cache_dir=str(tmp_path / "cache"))
    assert Path(victims[name, suffix]).stem.split("_gtFine")[0].split("_leftImg")[0] in str(error.value)
    assert not (tmp_path / "cache").exists(), "work began before the download was checked"


def test_missing_parts_are_all_named(name, tmp_path):
    """The first run after a download should say everything that is still to be fetched."""
    write(tmp_path / "data", {"notes.txt": b""})
    with pytest.raises(ValueError) as error:
        find_pairs(name, str(tmp_path / "data"))
    for part in BUILDERS[name].PARTS:
        assert str(part) in str(error.value)
    assert "found notes.txt" in str(error.value) and "http" in str(error.value)
    with pytest.raises(ValueError, match="needs data_dir, the folder that holds .*http"):
        find_pairs(name, None)
    with pytest.raises(ValueError, match="is not a folder"):
        find_pairs(name, str(tmp_path / "nowhere"))


def test_folder_one_level_too_high_is_answered_with_the_right_one(name, root):
    """Archives unpack into a folder of their own name."""
    with pytest.raises(ValueError, match=f"Did you mean {root}"):
        find_pairs(name, str(root.parent))


def test_cut_archives_are_named(name, tmp_path):
    """A broken download is a few bytes short and looks complete."""
    root = write_archives(tmp_path / "zipped", name, TREES[name]())
    archive = sorted(root.glob("*.zip"))[0]
    archive.write_bytes(archive.read_bytes()[:-30])
    with pytest.raises(ValueError, match=rf"{archive.name} is not a complete zip archive .* Download it again"):
        find_pairs(name, str(root))


def test_archives_with_names_that_lead_out_are_refused(tmp_path):
    """A foreign archive must not decide which files are read."""
    root = write_archives(tmp_path / "zipped", "ade20k", ade20k())
    with zipfile.ZipFile(root / "ADEChallengeData2016.zip", "a") as opened:
        opened.writestr("../images/ADE_train_00000009.jpg", b"")
    with pytest.raises(ValueError, match=r"unsafe name '\.\./images"):
        find_pairs("ade20k", str(root))


def test_damaged_archive_members_are_named(tmp_path):
    """A flipped bit inside an archive must not end as an unreadable traceback."""
    root = write_archives(tmp_path / "zipped", "ade20k", ade20k())
    content = (root / "ADEChallengeData2016.zip").read_bytes()
    jpeg = ade20k()["images/training/ADE_train_00000000.jpg"]
    place = content.index(jpeg) + 30
    flipped = bytes([content[place] ^ 255])
    (root / "ADEChallengeData2016.zip").write_bytes(content[:place] + flipped + content[place + 1 :])
    with pytest.raises(ValueError, match=r"Cannot read .*ADE_train_00000000\.jpg.*Bad CRC"):
        load_split("ade20k", str(root), "train", cache_dir=str(tmp_path / "cache"))


def test_counts_that_differ_from_the_published_ones_are_reported(name, root, caplog):
    """Scores on another number of images are not the published benchmark."""
    load_split(name, str(root), "validation")
    assert f"has {BUILDERS[name].COUNTS['validation']} images, this one has 1" in caplog.text
    assert "train" not in caplog.text


@pytest.mark.parametrize(
    ("name", "path", "raw", "message"),
    [
        ("cityscapes", "gtFine/train/ulm/ulm_000000_000011_gtFine_labelIds.png", 34, "label ids 0 to 33 and 255"),
        ("voc_aug", "SegmentationClassAug/2007_000001.png", 21, "0 to 20 and 255"),
        ("ade20k", "annotations/training/ADE_train_00000001.png", 151, "1 to 150"),
        ("coco_stuff_164k", "stuffthingmaps/train2017/000000000001.png", 182, "0 to 181 and 255"),
    ],
)
def test_raw_values_outside_the_table_are_named(name, tmp_path, path, raw, message):
    """Annotations of another release would fail on the GPU, or train wrong classes."""
    root = write(tmp_path / "data", TREES[name]() | {path: mask(0, raw)})
    with pytest.raises(ValueError, match=rf"{path} holds the values \[{raw}\]; allowed are .*{message}"):
        load_split(name, str(root), "train", cache_dir=str(tmp_path / "cache"))


def test_cityscapes_maps_each_of_the_35_official_ids(tmp_path):
    """The 19 train ids keep the official order; the other 16 ids, the license plate among them, are ignored."""
    assert sorted(CITYSCAPES_IDS) == list(range(-1, 34))
    config = BUILDERS["cityscapes"].BUILDER_CONFIG_CLASS()
    lookup = BUILDERS["cityscapes"].label_map(config).ids
    evaluated = {7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33}
    assert {raw for raw, train_id in lookup.items() if train_id != 255} == evaluated
    assert [lookup[raw] for raw in sorted(evaluated)] == list(range(19))


def test_cityscapes_test_split_is_unlabelled(tmp_path):
    """Its published label files hold placeholders, which would be scored as truth."""
    root = write(tmp_path / "data", cityscapes())
    rows = load_split("cityscapes", str(root), "test", cache_dir=str(tmp_path / "cache"))
    assert set(np.array(rows[0]["annotation"]).flat) == {255} and rows[0]["annotation"].size == SIZE


@pytest.mark.parametrize("zipped", [False, True])
def test_cityscapes_extra_images_are_unlabelled_training_images(tmp_path, zipped):
    """Distillation can use them; their coarse labels must not count as fine ones."""
    root = write(tmp_path / "data", cityscapes())
    inside = "leftImg8bit/train_extra/bonn/bonn_000000_000001_leftImg8bit.png"
    with pytest.raises(ValueError, match=r"lacks leftImg8bit/train_extra/ \(or leftImg8bit_trainextra.zip\)"):
        find_pairs("cityscapes", str(root), extra=True)
    if zipped:
        with zipfile.ZipFile(root / "leftImg8bit_trainextra.zip", "w") as opened:
            opened.writestr(inside, picture(7, ".png"))
    else:
        write(root, {inside: picture(7, ".png")})
    plain, extra = (
        load_split("cityscapes", str(root), "train", str(tmp_path / "cache"), extra=extra) for extra in (False, True)
    )
    assert len(plain) == 2 and extra["image_id"][2] == "bonn_000000_000001_leftImg8bit"
    assert set(np.array(extra[2]["annotation"]).flat) == {255}


def test_voc_palette_pngs_are_read_as_indices(tmp_path):
    """Read as grey levels, aeroplane (1) becomes 38, which is no class and easily mistaken for one."""
    root = write(tmp_path / "data", voc_aug())
    rows = load_split("voc_aug", str(root), "validation", cache_dir=str(tmp_path / "cache"))
    assert np.array(rows[0]["annotation"]).flat[:5].tolist() == [255, 1, 2, 20, 0]


def test_voc_train_list_gives_images_and_order(tmp_path):
    """Published splits are lists: the fourth SBD image is a validation image."""
    root = write(tmp_path / "data", voc_aug())
    assert [image.stem[-1] for image, _ in find_pairs("voc_aug", str(root))["train"]] == ["2", "0", "1"]
    lines = b"/JPEGImages/2007_000001.jpg /SegmentationClassAug/2007_000001.png\n"
    (root / "ImageSets" / "Segmentation" / "trainaug.txt").unlink()
    write(root, {"list/train_aug.txt": lines})
    assert [image.stem[-1] for image, _ in find_pairs("voc_aug", str(root))["train"]] == ["1"]


def test_voc_without_a_train_list_leaves_the_validation_images_out(tmp_path):
    """10582 is the number of SBD annotations that are not in the validation list; leakage would raise every score."""
    files = voc_aug()
    del files["ImageSets/Segmentation/trainaug.txt"]
    root = write(tmp_path / "data", files)
    pairs = find_pairs("voc_aug", str(root))
    assert [image.stem[-1] for image, _ in pairs["train"]] == ["0", "1", "2"]
    (root / "ImageSets" / "Segmentation" / "val.txt").unlink()
    with pytest.raises(ValueError, match="lacks ImageSets/Segmentation/val.txt"):
        find_pairs("voc_aug", str(root))


def test_coco_stuff_with_171_classes_skips_the_unused_ids(tmp_path):
    """The two class counts differ by 6 % in mIoU on the same predictions: they must not be mixed up."""
    root = write(tmp_path / "data", coco_stuff_164k())
    rows = load_split("coco_stuff_164k", str(root), "train", cache_dir=str(tmp_path / "cache"), num_labels=171)
    # 11 (street sign) is unused, so that 12 (stop sign) moves down by one, and 181 by eleven.
    assert np.array(rows[0]["annotation"]).flat[:5].tolist() == [0, 10, 11, 170, 255]
    spec = dataset_spec("coco_stuff_164k", num_labels=171)
    assert (spec.num_labels, spec.labels[11], spec.labels[170]) == (171, "stop sign", "wood")
    assert set(dataset_spec("coco_stuff_164k").labels) - set(spec.labels) >= {"street sign", "hair brush"}
    write(root, {"stuffthingmaps/train2017/000000000001.png": mask(11)})
    with pytest.raises(ValueError, match=r"holds the values \[11\]"):
        load_split("coco_stuff_164k", str(root), "train", cache_dir=str(tmp_path / "cache"), num_labels=171)
    with pytest.raises(ValueError, match="must be 182 .* or 171, got 172"):
        dataset_spec("coco_stuff_164k", num_labels=172)


def test_coco_stuff_validation_images_alone_can_be_scored(tmp_path):
    """The train images are 18 GB that an evaluation does not need."""
    files = {path: content for path, content in coco_stuff_164k().items() if not path.startswith("train2017/")}
    root = write(tmp_path / "data", files)
    pairs = find_pairs("coco_stuff_164k", str(root))
    assert list(pairs) == ["validation"] and len(pairs["validation"]) == 1


def test_coco_stuff_reads_the_folders_of_cirkd(tmp_path):
    """Those who ran the original have images/ and annotations/."""
    moved = {
        path.replace("stuffthingmaps", "annotations") if "stuff" in path else f"images/{path}": content
        for path, content in coco_stuff_164k().items()
    }
    root = write(tmp_path / "data", moved)
    assert len(find_pairs("coco_stuff_164k", str(root))["train"]) == 2


def test_official_ade20k_samples_map_as_documented(tmp_path):
    """The only official files at hand: raw 0 is ignored, raw v is class v - 1, at full size."""
    if not SAMPLES.is_dir():
        pytest.skip("needs ../shared/samples/ade20k_sceneparsing")
    rows = load_split("ade20k", str(SAMPLES), "validation", cache_dir=str(tmp_path / "cache"))
    assert rows["image_id"] == ["ADE_val_00000001", "ADE_val_00000002", "ADE_val_00000003"]
    for row in rows:
        raw = np.array(Image.open(SAMPLES / "annotations" / f"{row['image_id']}.png"))
        ids = np.array(row["annotation"])
        assert row["image"].size == ids.shape[::-1]
        expected = np.bincount(raw.ravel(), minlength=151)
        assert np.bincount(ids.ravel(), minlength=256)[:150].tolist() == expected[1:151].tolist()
        assert (ids == 255).sum() == expected[0]


def test_published_camvid_has_the_class_histogram_of_a_direct_count(camvid, tmp_path):
    """An image paired with its neighbour's annotation keeps the counts of images, and nothing else."""
    rows = load_split("camvid", str(camvid), "validation", cache_dir=str(tmp_path / "cache"))
    direct = sum(
        np.bincount(np.array(Image.open(path)).ravel(), minlength=256) for path in (camvid / "valannot").glob("*.png")
    )
    direct[255] += direct[11]
    direct[11] = 0
    built = sum(np.bincount(np.array(row["annotation"]).ravel(), minlength=256) for row in rows)
    assert len(rows) == 101 and built.tolist() == direct.tolist()
