"""Every way in which a folder of images and masks can be wrong, found before training."""

import io
import shutil
import zipfile

import datasets
import numpy as np
import pytest
from PIL import Image

import dataset_builders
from helpers.folder_checks import check, refusal
from helpers.own_photos import COLUMNS, NAMES, cut_off, ids, picture, save, table, write_splits
from hf_segkd.data.integrity import Problem, problem_table
from hf_segkd.data.transforms import read_example
from hf_segkd.training.checks import check_data


@pytest.fixture
def photos(tmp_path):
    return write_splits(tmp_path / "photos")


def line(text: str, file: str) -> str:
    """The only line of a table that names `file`."""
    (found,) = [row for row in text.splitlines() if file in row]
    return found


def test_nothing_is_said_about_sound_data(photos, caplog):
    """A check that cries wolf is switched off."""
    assert check(photos, how="full") == [] and not caplog.records


@pytest.mark.parametrize("damage", ["cut off", "empty", "text"])
@pytest.mark.parametrize("kind", ["images", "masks"])
def test_unreadable_files_are_named(photos, kind, damage):
    """A file that was cut off in a download passes every look at its header, and stops epoch one in a worker."""
    path = photos / kind / "train" / "train_3.png"
    if damage == "cut off":
        cut_off(path)
    else:
        path.write_bytes(b"" if damage == "empty" else b"<html>404</html>")
    assert line(refusal(photos), "train_3.png").startswith("unreadable  train  " + kind)


def test_a_cut_off_jpeg_is_unreadable(photos):
    """Pillow can be told to fill the rest with gray: then nobody would notice."""
    path = photos / "images" / "val" / "val_9.jpg"
    (photos / "images" / "val" / "val_9.png").unlink()
    save(path, picture(9, (80, 64)))
    cut_off(path)
    assert line(refusal(photos), "val_9.jpg").startswith("unreadable  validation")


def test_a_mask_of_another_size_is_named_with_both_sizes(photos):
    """Its labels would be cropped at another place than the image."""
    save(photos / "masks" / "train" / "train_2.png", ids(2, (64, 80)))
    row = line(refusal(photos), "train_2.png")
    assert row.startswith("size ") and "64 x 80 pixels, its image 80 x 64" in row


def test_a_photo_is_compared_as_it_is_shown(photos):
    """Phones store photos lying and an EXIF note to turn them; the loader turns them, and so must the check."""
    upright, turned = picture(4, (64, 80)), Image.Exif()
    turned[0x0112] = 6
    (photos / "images" / "train" / "train_4.png").unlink()
    upright.save(photos / "images" / "train" / "train_4.jpg", exif=turned)
    assert check(photos) == []
    row = dataset_builders.open_dataset("folder", str(photos), labels=NAMES).split("train")[4]
    assert read_example(row)["image"].shape == (3, 64, 80)


def test_label_values_outside_the_classes_are_named(photos):
    """On a GPU they are an out-of-range index without a name."""
    labels = ids(5, (80, 64))
    labels[10:20, 10:40] = 7
    save(photos / "masks" / "train" / "train_5.png", labels)
    row = line(refusal(photos), "train_5.png")
    assert row.startswith("values ") and "holds 7 on 5.9 % of its pixels" in row


def test_masks_saved_as_jpeg_are_refused_whatever_they_hold(photos):
    """JPEG changes few values of a mask with small ids, all of them at the borders that matter."""
    (photos / "masks" / "train" / "train_1.png").unlink()
    save(photos / "masks" / "train" / "train_1.jpg", ids(1, (80, 64)))
    assert line(refusal(photos), "train_1.jpg").startswith("JPEG mask")


@pytest.mark.parametrize("quality", [60, 75, 95])
def test_png_masks_that_were_jpeg_once_are_recognized(photos, quality):
    """Converting the file to PNG does not bring the labels back; "give all class names" would be the wrong advice."""
    buffer = io.BytesIO()
    circle = np.hypot(*np.mgrid[-32:32, -40:40]) < 20
    Image.fromarray(np.where(circle, 200, 100).astype(np.uint8)).save(buffer, "JPEG", quality=quality)
    save(photos / "masks" / "train" / "train_1.png", Image.open(buffer))
    text = refusal(photos, label_map={"100": "background", "200": "crack", "0": "crack", "1": "crack", "2": "rust"})
    assert line(text, "train_1.png").startswith("lossy mask")


def test_color_masks_are_refused_unless_the_map_is_of_colors(photos):
    """The red channel of a color mask looks like class ids."""
    labels = ids(1, (80, 64)) % 3
    colors = Image.fromarray(np.array([[0, 0, 0], [255, 0, 0], [0, 255, 0]], dtype=np.uint8)[labels])
    save(photos / "masks" / "train" / "train_1.png", colors)
    row = line(refusal(photos), "train_1.png")
    assert row.startswith("color mask") and "(64, 80, 3)" in row
    for index, split in [*((i, "train") for i in range(8)), *((i, "val") for i in range(8, 12))]:
        save(photos / "masks" / split / f"{split}_{index}.png", colors)
    color_map = {"#000000": "background", "#ff0000": "crack"}
    assert "#00ff00" in line(refusal(photos, label_map=color_map), "train_1.png")
    assert check(photos, label_map=color_map | {"#00ff00": "rust"}) == []


def binary_masks(root):
    for path in (root / "masks").rglob("*.png"):
        labels = (np.array(Image.open(path)) == 1).astype(np.uint8) * 255
        save(path, labels)


def test_masks_of_0_and_255_are_not_taken_for_unlabeled(photos, caplog):
    """255 means "ignore" everywhere: the object would be left out and a constant prediction would score 100 %."""
    binary_masks(photos)
    save(photos / "masks" / "train" / "train_2.png", np.full((64, 80), 255, dtype=np.uint8))  # nothing but object
    text = refusal(photos, labels=["background", "crack"])
    assert line(text, "train_1.png").startswith("binary mask") and "--label_map" in text
    assert line(text, "train_2.png").startswith("binary mask") and "no label" not in text + caplog.text
    assert check(photos, labels=None, label_map={"0": "background", "255": "crack"}) == []


def test_ignored_pixels_beside_classes_are_not_binary_masks(photos):
    """One image that shows background alone says nothing about the others."""
    labels = np.zeros((64, 80), dtype=np.uint8)
    labels[:5] = 255
    save(photos / "masks" / "train" / "train_0.png", labels)
    assert check(photos) == []


def test_masks_without_any_label_are_a_warning_and_missing_ones_are_not(photos, caplog):
    """An export that went wrong looks like that; so does an image that nobody has labeled."""
    save(photos / "masks" / "train" / "train_6.png", np.full((64, 80), 255, dtype=np.uint8))
    (photos / "masks" / "train" / "train_7.png").unlink()
    assert check(photos) == []
    assert line(caplog.text, "train_6.png").startswith("no label") and "train_7" not in caplog.text


def test_an_image_in_two_splits_is_refused_under_any_name(photos):
    """The student would be scored on what it was trained on."""
    shutil.copy(photos / "images" / "train" / "train_2.png", photos / "images" / "val" / "val_10.png")
    row = line(refusal(photos), "val_10.png")
    assert row.startswith("leak ") and "train_2.png of train" in row


def test_leaks_are_found_outside_the_sample(photos, monkeypatch):
    """A sample of both splits would meet the two copies of one image almost never."""
    monkeypatch.setattr("hf_segkd.training.checks.SAMPLE", 1)
    shutil.copy(photos / "images" / "train" / "train_7.png", photos / "images" / "val" / "val_11.png")
    assert line(refusal(photos), "val_11.png").startswith("leak ")


def test_equal_names_of_different_images_are_a_warning(photos, caplog):
    """Often each split is numbered from 0; sometimes it is the same photo, saved anew."""
    for kind in ("images", "masks"):
        (photos / kind / "val" / "val_8.png").rename(photos / kind / "val" / "train_0.png")
    assert check(photos) == []
    assert line(caplog.text, "val/train_0.png").startswith("same name")


def test_all_problems_are_in_one_table_with_what_to_do(photos):
    """Mending one file per start takes a day for what a table mends in an hour."""
    cut_off(photos / "images" / "train" / "train_0.png")
    save(photos / "masks" / "train" / "train_1.png", ids(1, (64, 80)))
    save(photos / "masks" / "val" / "val_9.png", np.full((64, 80), 9, dtype=np.uint8))
    cut_off(photos / "masks" / "val" / "val_10.png")
    text = refusal(photos)
    assert [line(text, name).split()[0] for name in ("train_0", "train_1", "val_9", "val_10")] == [
        *("unreadable", "size", "values", "unreadable")
    ]
    assert "--skip_unreadable" in text and "--label_map" in text


def test_the_table_stays_short():
    """A thousand lines scroll the first, and the advice, out of sight."""
    problems = [Problem("values", "train", index, f"{index}.png", "holds 7") for index in range(1000)]
    text = problem_table(problems)
    assert len(text.splitlines()) == 13 and "990 more, 1000 in all" in text


def test_a_sample_is_even_and_full_means_all(photos, monkeypatch):
    """A sample of the first files sees one city of fifty."""
    monkeypatch.setattr("hf_segkd.training.checks.SAMPLE", 4)
    cut_off(photos / "images" / "train" / "train_5.png")
    assert check(photos) == []
    assert "train_5.png" in refusal(photos, how="full")
    cut_off(photos / "images" / "train" / "train_6.png")
    assert "train_6.png" in refusal(photos)
    assert check(photos, how="none") == []


def test_zip_archives_are_checked_without_being_unpacked(tmp_path):
    """The official downloads are archives, and a broken member is found by its checksum alone."""
    path, payload = tmp_path / "ADEChallengeData2016.zip", io.BytesIO()
    picture(0).save(payload, "PNG")
    with zipfile.ZipFile(path, "w") as archive:
        for folder, split, index in (("training", "train", 1), ("validation", "val", 2)):
            content = payload.getvalue()[: 200 if split == "val" else None]
            archive.writestr(f"ADEChallengeData2016/images/{folder}/ADE_{split}_{index:08d}.jpg", content)
            mask = io.BytesIO()
            Image.fromarray(ids(index) % 3).save(mask, "PNG")
            archive.writestr(f"ADEChallengeData2016/annotations/{folder}/ADE_{split}_{index:08d}.png", mask.getvalue())
    with pytest.raises(ValueError) as refused:
        check_data(dataset_builders.open_dataset("ade20k", str(tmp_path)))
    assert line(str(refused.value), "ADE_val_00000002.jpg").startswith("unreadable")


def test_rows_of_an_opened_dataset_are_checked_too(tmp_path):
    """Parquet files hold whatever their maker put in."""
    rows = table(8)
    broken = rows.cast_column("photo", datasets.Image(decode=False))[3]["photo"]["bytes"][:300]
    features, content = rows.features, [*rows.cast_column("photo", datasets.Image(decode=False))]
    content[3]["photo"] = {"bytes": broken, "path": "dark.png"}
    content[5]["mask"] = Image.fromarray(np.full((32, 40), 9, dtype=np.uint8))
    datasets.Dataset.from_list(content, features=features).save_to_disk(tmp_path / "disk")
    name, options = str(tmp_path / "disk"), {"labels": NAMES, "validation_fraction": 0.25, **COLUMNS}
    with pytest.raises(ValueError) as refused:
        check_data(dataset_builders.open_dataset(name, **options))
    assert line(str(refused.value), "dark.png").startswith("unreadable")
    assert "mask of train_000005" in str(refused.value)


def test_a_published_split_with_a_leak_is_reported_and_not_refused(photos, caplog):
    """Nobody can mend a benchmark, and scores on it are compared as it is."""
    shutil.copy(photos / "images" / "train" / "train_2.png", photos / "images" / "val" / "val_10.png")
    dataset = dataset_builders.open_dataset("folder", str(photos), labels=NAMES)
    dataset.published = True
    assert check_data(dataset) == []
    assert line(caplog.text, "val_10.png").startswith("leak ")
