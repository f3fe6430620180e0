"""What is particular to one published dataset: its ids, lists, options and the official files at hand."""

import zipfile

import numpy as np
import pytest
from PIL import Image

from dataset_builders import builder_class, open_dataset
from dataset_builders.cityscapes import LABEL_IDS
from helpers.paths import SHARED
from helpers.raw_trees import SIZE, cityscapes, coco_stuff_164k, mask, picture, voc_aug, write

SAMPLES = SHARED / "samples" / "ade20k_sceneparsing" / "sampleData"


def test_cityscapes_maps_each_of_the_35_official_ids(tmp_path):
    """The 19 train ids keep the official order; the other 16 ids, the license plate among them, are ignored."""
    assert sorted(LABEL_IDS) == list(range(-1, 34))
    config = builder_class("cityscapes").BUILDER_CONFIG_CLASS()
    lookup = builder_class("cityscapes").label_map(config).ids
    evaluated = {7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33}
    assert {raw for raw, train_id in lookup.items() if train_id != 255} == evaluated
    assert [lookup[raw] for raw in sorted(evaluated)] == list(range(19))


def test_bar_of_a_preparation_knows_its_end(tmp_path):
    """Without the number of images it shows no time left."""
    folder, cache = write(tmp_path / "data", cityscapes()), str(tmp_path / "cache")
    drawn = builder_class("synthetic")(cache_dir=cache, num_train=4, num_validation=3, num_test=2)
    found = builder_class("cityscapes")(cache_dir=cache)
    found.pairs = found.find_pairs(str(folder), found.config)
    expected = [4, 3, 2], [len(pairs) for pairs in found.pairs.values()]
    for builder, counts in zip((drawn, found), expected, strict=True):
        assert [x.split_info.num_examples for x in builder._split_generators(None)] == counts


def test_cityscapes_test_split_is_unlabeled(tmp_path):
    """Its published label files hold placeholders, which would be scored as truth."""
    root = write(tmp_path / "data", cityscapes())
    rows = open_dataset("cityscapes", str(root), cache_dir=str(tmp_path / "cache")).split("test")
    assert set(np.array(rows[0]["annotation"]).flat) == {255} and rows[0]["annotation"].size == SIZE


@pytest.mark.parametrize("zipped", [False, True])
def test_cityscapes_extra_images_are_unlabeled_training_images(tmp_path, zipped):
    """Distillation can use them; their coarse labels must not count as fine ones."""
    root = write(tmp_path / "data", cityscapes())
    inside = "leftImg8bit/train_extra/bonn/bonn_000000_000001_leftImg8bit.png"
    with pytest.raises(ValueError, match=r"lacks leftImg8bit/train_extra/ \(or leftImg8bit_trainextra.zip\)"):
        open_dataset("cityscapes", str(root), extra=True).files()
    if zipped:
        with zipfile.ZipFile(root / "leftImg8bit_trainextra.zip", "w") as opened:
            opened.writestr(inside, picture(7, ".png"))
    else:
        write(root, {inside: picture(7, ".png")})
    plain, extra = (
        open_dataset("cityscapes", str(root), cache_dir=str(tmp_path / "cache"), extra=extra).split("train")
        for extra in (False, True)
    )
    assert len(plain) == 2 and extra["image_id"][2] == "bonn_000000_000001_leftImg8bit"
    assert set(np.array(extra[2]["annotation"]).flat) == {255}


def test_voc_palette_pngs_are_read_as_indices(tmp_path):
    """Read as gray levels, aeroplane (1) becomes 38, which is no class and easily mistaken for one."""
    root = write(tmp_path / "data", voc_aug())
    rows = open_dataset("voc_aug", str(root), cache_dir=str(tmp_path / "cache")).split("validation")
    assert np.array(rows[0]["annotation"]).flat[:5].tolist() == [255, 1, 2, 20, 0]


def test_voc_train_list_gives_images_and_order(tmp_path):
    """Published splits are lists: the fourth SBD image is a validation image."""
    root = write(tmp_path / "data", voc_aug())
    assert [image.stem[-1] for image, _ in open_dataset("voc_aug", str(root)).files()["train"]] == ["2", "0", "1"]
    lines = b"/JPEGImages/2007_000001.jpg /SegmentationClassAug/2007_000001.png\n"
    (root / "ImageSets" / "Segmentation" / "trainaug.txt").unlink()
    write(root, {"list/train_aug.txt": lines})
    assert [image.stem[-1] for image, _ in open_dataset("voc_aug", str(root)).files()["train"]] == ["1"]


def test_voc_without_a_train_list_leaves_the_validation_images_out(tmp_path):
    """10582 is the number of SBD annotations that are not in the validation list; leakage would raise every score."""
    files = voc_aug()
    del files["ImageSets/Segmentation/trainaug.txt"]
    root = write(tmp_path / "data", files)
    pairs = open_dataset("voc_aug", str(root)).files()
    assert [image.stem[-1] for image, _ in pairs["train"]] == ["0", "1", "2"]
    (root / "ImageSets" / "Segmentation" / "val.txt").unlink()
    with pytest.raises(ValueError, match="lacks ImageSets/Segmentation/val.txt"):
        open_dataset("voc_aug", str(root)).files()


def test_coco_stuff_with_171_classes_skips_the_unused_ids(tmp_path):
    """The two class counts differ by 6 % in mIoU on the same predictions: they must not be mixed up."""
    root = write(tmp_path / "data", coco_stuff_164k())
    rows = open_dataset("coco_stuff_164k", str(root), cache_dir=str(tmp_path / "cache"), num_labels=171).split("train")
    # 11 (street sign) is unused, so that 12 (stop sign) moves down by one, and 181 by eleven.
    assert np.array(rows[0]["annotation"]).flat[:5].tolist() == [0, 10, 11, 170, 255]
    spec = open_dataset("coco_stuff_164k", num_labels=171).spec
    assert (spec.num_labels, spec.labels[11], spec.labels[170]) == (171, "stop sign", "wood")
    assert set(open_dataset("coco_stuff_164k").spec.labels) - set(spec.labels) >= {"street sign", "hair brush"}
    write(root, {"stuffthingmaps/train2017/000000000001.png": mask(11)})
    with pytest.raises(ValueError, match=r"holds the values \[11\]"):
        open_dataset("coco_stuff_164k", str(root), cache_dir=str(tmp_path / "cache"), num_labels=171).split("train")
    with pytest.raises(ValueError, match="must be 182 .* or 171, got 172"):
        str(open_dataset("coco_stuff_164k", num_labels=172).spec)


def test_coco_stuff_validation_images_alone_can_be_scored(tmp_path):
    """The train images are 18 GB that an evaluation does not need."""
    files = {path: content for path, content in coco_stuff_164k().items() if not path.startswith("train2017/")}
    root = write(tmp_path / "data", files)
    pairs = open_dataset("coco_stuff_164k", str(root)).files()
    assert list(pairs) == ["validation"] and len(pairs["validation"]) == 1


def test_coco_stuff_reads_the_folders_of_cirkd(tmp_path):
    """Those who ran the original have images/ and annotations/."""
    moved = {
        path.replace("stuffthingmaps", "annotations") if "stuff" in path else f"images/{path}": content
        for path, content in coco_stuff_164k().items()
    }
    root = write(tmp_path / "data", moved)
    assert len(open_dataset("coco_stuff_164k", str(root)).files()["train"]) == 2


@pytest.mark.parametrize("folder", [SAMPLES, SAMPLES.parent], ids=lambda x: x.name)
def test_official_ade20k_samples_map_as_documented(folder, tmp_path):
    """The only official files at hand: raw 0 is ignored, raw v is class v - 1, at full size."""
    if not SAMPLES.is_dir():
        pytest.skip("needs ../shared/samples/ade20k_sceneparsing")
    rows = open_dataset("ade20k", str(folder), cache_dir=str(tmp_path / "cache")).split("validation")
    assert rows["image_id"] == ["ADE_val_00000001", "ADE_val_00000002", "ADE_val_00000003"]
    for row in rows:
        raw = np.array(Image.open(SAMPLES / "annotations" / f"{row['image_id']}.png"))
        ids = np.array(row["annotation"])
        assert row["image"].size == ids.shape[::-1]
        expected = np.bincount(raw.ravel(), minlength=151)
        assert np.bincount(ids.ravel(), minlength=256)[:150].tolist() == expected[1:151].tolist()
        assert (ids == 255).sum() == expected[0]


def test_published_camvid_has_the_class_histogram_of_a_direct_count(camvid, tmp_path):
    """An image paired with its neighbor's annotation keeps the counts of images, and nothing else."""
    rows = open_dataset("camvid", str(camvid), cache_dir=str(tmp_path / "cache")).split("validation")
    direct = sum(
        np.bincount(np.array(Image.open(path)).ravel(), minlength=256) for path in (camvid / "valannot").glob("*.png")
    )
    direct[255] += direct[11]
    direct[11] = 0
    built = sum(np.bincount(np.array(row["annotation"]).ravel(), minlength=256) for row in rows)
    assert len(rows) == 101 and built.tolist() == direct.tolist()
