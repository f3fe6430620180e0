"""Images without labels: where they come from, what a row of them is, and how they share batches."""

from collections import Counter

import datasets
import pytest
import torch

from dataset_builders.unlabeled import unlabeled_images
from helpers.own_photos import picture, save, table
from hf_segkd.data import EvalTransform, SegmentationDataset, TrainTransform
from hf_segkd.data.unlabeled import JoinedRows, MixedSampler, UnlabeledRows


@pytest.fixture
def photos(tmp_path):
    """Five photos of several sizes, one in a subfolder, and things that are none."""
    for index in range(4):
        save(tmp_path / "photos" / f"{index}.jpg", picture(index, (40 + 8 * index, 32)))
    save(tmp_path / "photos" / "more" / "4.PNG", picture(4))
    save(tmp_path / "photos" / ".thumbnails" / "5.png", picture(5))
    (tmp_path / "photos" / "notes.txt").write_text("no image")
    return tmp_path / "photos"


def test_folder_pattern_and_stored_dataset_give_their_images(photos, tmp_path):
    """Whoever has photos has them in one of these; a kind that is overlooked is missing without a word."""
    table(6).save_to_disk(tmp_path / "stored")
    assert len(unlabeled_images(str(photos))) == 5
    assert len(unlabeled_images(f"{photos}/*.jpg")) == 4 and len(unlabeled_images(f"{photos}/**/*.PNG")) == 1
    rows = unlabeled_images([str(photos), str(tmp_path / "stored")])
    assert len(rows) == 11 and set(rows.column_names) == {"image", "image_id"}
    assert [rows[0]["image"].size, rows[10]["image"].size] == [(40, 32), (40, 32)]


@pytest.mark.parametrize("source, message", [("nowhere", "no folder 'nowhere'"), ("{}/*.bmp", "no images in")])
def test_source_without_images_is_refused(photos, source, message):
    """A typing error would train on the labels alone and call it semi-supervised."""
    with pytest.raises(ValueError, match=message):
        unlabeled_images(source.format(photos))


def test_row_is_an_image_whose_every_pixel_is_ignored(photos):
    """Of any size, whole or as a crop: losses leave out what has the ignored value, and nothing else."""
    rows = UnlabeledRows(unlabeled_images(str(photos)), 255)
    whole = SegmentationDataset(rows, EvalTransform(), num_labels=3)
    crops = SegmentationDataset(rows, TrainTransform((64, 64), cat_max_ratio=0.75), num_labels=3)
    for index in range(len(rows)):
        item = whole[index]
        assert item["pixel_values"].shape[-2:] == item["labels"].shape and (item["labels"] == 255).all()
        crop = crops[index]
        assert crop["pixel_values"].shape == (3, 64, 64) and (crop["labels"] == 255).all()
        assert crop["pixel_values"].float().std() > 1


def test_joined_rows_are_those_of_the_dataset_and_then_the_others(photos):
    """The teacher's stored maps go by this order."""
    labeled = datasets.Dataset.from_dict({"image": [1, 2], "annotation": [3, 4], "image_id": ["a", "b"]})
    joined = JoinedRows(labeled, UnlabeledRows(unlabeled_images(str(photos)), 9))
    assert len(joined) == 7 and joined[1]["image_id"] == "b"
    assert joined[2]["image_id"].endswith("0.jpg") and joined[6]["annotation"].unique().tolist() == [9]


@pytest.mark.parametrize("ratio, shares", [(1.0, (4, 4)), (3.0, (2, 6)), (0.1, (7, 1)), (100.0, (1, 7))])
def test_every_batch_has_its_share_of_both(ratio, shares):
    """With 8 labeled images among 8000, most steps would see no label at all."""
    sampler = MixedSampler(5, 23, batch_size=8, ratio=ratio)
    indices = list(sampler)
    assert len(indices) == len(sampler) and len(indices) % 8 == 0
    for batch in torch.tensor(indices).view(-1, 8).tolist():
        assert sum(index < 5 for index in batch) == shares[0] and sum(index >= 5 for index in batch) == shares[1]
    counts = Counter(indices)
    assert set(counts) == set(range(28))
    for kind in (range(5), range(5, 28)):  # shuffled and not drawn: none comes twice more often than another
        assert max(counts[index] for index in kind) - min(counts[index] for index in kind) <= 1


def test_order_depends_on_seed_and_epoch_alone():
    """A resumed run must go on with the batches it would have had."""
    first, again = (MixedSampler(5, 23, 8, 1.0, seed=3) for _ in range(2))
    assert list(first) == list(first) == list(again)
    again.set_epoch(1)
    assert list(first) != list(again)
    first.set_epoch(1)
    assert list(first) == list(again) != list(MixedSampler(5, 23, 8, 1.0, seed=4))


@pytest.mark.parametrize(
    "arguments, message",
    [((0, 5, 8, 1.0), "two kinds"), ((5, 5, 1, 1.0), "room for both"), ((5, 5, 8, 0.0), "must be positive")],
)
def test_share_that_cannot_be_kept_is_refused(arguments, message):
    """Found while the first epoch is drawn, it would end a run that looked fine."""
    with pytest.raises(ValueError, match=message):
        MixedSampler(*arguments)
