from fractions import Fraction

import datasets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import DataLoader

from dataset_builders import DATASETS
from hf_segkd.data import EvalTransform, SegmentationDataset, TrainTransform, check_labels, collate
from hf_segkd.data.resizing import INTERPOLATIONS, Box
from hf_segkd.data.specs import DatasetSpec
from hf_segkd.data.transforms import read_example
from hf_segkd.models import InputNormalization

SCALES = [Fraction(tenths, 10) for tenths in range(5, 21)]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def blocks(height: int, width: int, size: int = 12, num_labels: int = 5) -> np.ndarray:
    """Map of square blocks of random class ids."""
    coarse = np.random.default_rng(0).integers(0, num_labels, (-(-height // size), -(-width // size)))
    return np.kron(coarse, np.ones((size, size))).astype(np.uint8)[:height, :width]


def encoded_example(height: int, width: int) -> dict:
    """Image whose gray level is 40 times the class id."""
    labels = blocks(height, width)
    image = Image.fromarray(np.repeat(40 * labels[..., None], 3, axis=2))
    return {"image": image, "annotation": Image.fromarray(labels), "image_id": "street_7"}


def rows(count: int = 4, height: int = 24, width: int = 32, **changes) -> datasets.Dataset:
    features = datasets.Features(
        {"image": datasets.Image(mode="RGB"), "annotation": datasets.Image(), "image_id": datasets.Value("string")}
    )
    examples = [encoded_example(height, width) | {"image_id": f"street_{i}"} | changes for i in range(count)]
    return datasets.Dataset.from_list(examples, features=features)


@pytest.mark.parametrize("spec", DATASETS.values(), ids=DATASETS)
def test_every_dataset_has_one_distinct_color_per_class(spec):
    """Two classes of one color cannot be told apart in any figure."""
    shared = 1 if spec.name == "ade20k" else 0  # its official palette paints skyscrapers like roads
    assert len(set(spec.palette)) + shared == len(set(spec.labels)) == spec.num_labels
    assert spec.label2id == {label: index for index, label in spec.id2label.items()}


def test_camvid_has_the_classes_of_segnet_in_their_order():
    """The released checkpoints were trained with this order; another one would score near zero."""
    names = "Sky Building Pole Road Pavement Tree SignSymbol Fence Car Pedestrian Bicyclist"
    assert DATASETS["camvid"].labels == tuple(names.split())
    assert DATASETS["camvid"].palette[3] == (128, 64, 128)


def test_a_spec_with_a_missing_color_is_refused():
    """Figures would fail long after training, or shift every color by one."""
    with pytest.raises(ValueError, match="2 labels and 1 colors"):
        DatasetSpec("mine", ("a", "b"), ((0, 0, 0),))


@pytest.mark.parametrize("scale", SCALES, ids=str)
@pytest.mark.parametrize("size", [(60, 80), (61, 97)])
def test_cropping_first_equals_resizing_everything_then_cropping(scale, size):
    """A window whose border falls between two grid points would shift the image against its labels."""
    image = torch.randint(256, (3, *size), dtype=torch.uint8, generator=generator())
    labels = torch.randint(256, size, dtype=torch.uint8, generator=generator())
    factor = float(scale) * (1 + 1e-12)
    whole = F.interpolate(image[None], scale_factor=factor, mode="bilinear", antialias=True)[0]
    height, width = (int(length * scale) for length in size)
    assert whole.shape[1:] == (height, width)
    nearest = [[int((i + Fraction(1, 2)) / scale) for i in range(length)] for length in (height, width)]
    whole_labels = labels[nearest[0]][:, nearest[1]]
    for top, left in ((0, 0), (height - 20, width - 27), (7, 11)):
        resize, box = INTERPOLATIONS["antialias"], Box(top, left, 20, 27)
        crop, crop_labels = resize.image(image, scale, box, size[0]), resize.labels(labels, scale, box)
        # One gray level: rounding of torch's uint8 kernel, whose weights depend on the window in principle.
        assert (crop.int() - whole[:, top : top + 20, left : left + 27].int()).abs().max() <= 1
        assert torch.equal(crop_labels, whole_labels[top : top + 20, left : left + 27])


@pytest.mark.parametrize("seed", range(20))
def test_image_and_labels_stay_aligned(seed):
    """A flip or offset applied to one of them only trains on wrong labels without any error."""
    item = TrainTransform((48, 64))(encoded_example(60, 80), generator(seed))
    image, labels = item["pixel_values"][0].float() / 40, item["labels"]
    # Away from block borders, where bilinear mixes classes; the outermost pixels may lie on one just outside the crop.
    padded = F.pad(labels[None, None].float(), (3, 3, 3, 3), value=-1)
    low, high = -F.max_pool2d(-padded, 7, 1)[0, 0], F.max_pool2d(padded, 7, 1)[0, 0]
    inside = (low == high) & (labels != 255)
    assert inside.sum() > 100
    assert torch.equal(image[inside].round().long(), labels[inside])


def test_crop_has_the_size_and_types_the_trainer_expects():
    """Float pixels or narrow labels would fail in the loss, or double the memory of the workers."""
    item = TrainTransform((40, 50))(encoded_example(60, 80), generator())
    assert item["pixel_values"].shape == (3, 40, 50) and item["pixel_values"].dtype == torch.uint8
    assert item["labels"].shape == (40, 50) and item["labels"].dtype == torch.int64
    assert item["pixel_values"].is_contiguous()


def test_small_images_are_padded_with_ignored_labels():
    """Padding with class 0 would teach that black borders are sky."""
    transform = TrainTransform((30, 40), scale_range=(1, 1), flip=0, ignore_index=200)
    item = transform(encoded_example(20, 25), generator())
    assert (item["labels"] == 200).sum() == 30 * 40 - 20 * 25
    assert (item["labels"][:20, :25] < 5).all()
    assert item["content"].tolist() == [0, 0, 20, 25]


def test_padding_is_flipped_with_the_picture_and_normalized_to_the_mean_itself():
    """The originals pad with 0 after the mean is taken off; bytes near the mean are off by up to 1.3 gray levels."""
    transform = TrainTransform((30, 40), scale_range=(1, 1), flip=1)
    item = transform(encoded_example(20, 25), generator())
    assert item["content"].tolist() == [0, 15, 20, 40] and (item["labels"][:, :15] == 255).all()
    normalization = InputNormalization(mean=(122.67891434, 116.66876762, 104.00698793))
    batch = collate([item, TrainTransform((30, 40), scale_range=(3, 3))(encoded_example(20, 25), generator())])
    padded, full = normalization(batch["pixel_values"], batch["content"])
    assert (padded[:, 20:] == 0).all() and (padded[:, :, :15] == 0).all()
    assert (padded[:, :20, 15:] != 0).all() and (full != 0).all()


def test_scales_are_the_grid_of_the_papers():
    """Scale 0.5 to 2.0 in steps of 0.1 has 16 values, both ends included; float steps tend to lose the last."""
    assert TrainTransform((8, 8)).scales == SCALES
    assert TrainTransform((8, 8), scale_range=(0.7, 2.1)).scales[-1] == Fraction(21, 10)


def test_flip_probability_is_respected():
    """A flip that never or always happens is not an augmentation."""
    example = encoded_example(24, 24)
    plain = EvalTransform()(example)["labels"]
    for flip, expected in ((0.0, {False}), (1.0, {True}), (0.5, {False, True})):
        transform = TrainTransform((24, 24), scale_range=(1, 1), flip=flip)
        seen = {not torch.equal(transform(example, generator(seed))["labels"], plain) for seed in range(20)}
        assert seen == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"crop_size": (0, 8)}, "crop_size"),
        ({"crop_size": (8, 8), "scale_range": (2.0, 0.5)}, "scale_range"),
        ({"crop_size": (8, 8), "scale_step": 0}, "scale_step"),
        ({"crop_size": (8, 8), "flip": 50}, "flip"),
    ],
)
def test_unusable_arguments_are_refused_at_construction(arguments, message):
    """They would otherwise fail in a worker, minutes later."""
    with pytest.raises(ValueError, match=message):
        TrainTransform(**arguments)


def test_evaluation_keeps_size_and_values():
    """Scores are defined at the original size of the labels."""
    example = encoded_example(21, 33)
    item = EvalTransform()(example)
    assert np.array_equal(item["labels"].numpy(), np.array(example["annotation"]))
    assert np.array_equal(item["pixel_values"].permute(1, 2, 0).numpy(), np.array(example["image"]))
    assert item["labels"].dtype == torch.int64


def test_palette_annotations_are_read_as_indices():
    """convert("L") would turn class ids into the gray levels of their colors."""
    labels = blocks(12, 24)
    palette = Image.fromarray(labels, mode="P")
    palette.putpalette([200, 10, 10, 10, 200, 10, 10, 10, 200, 90, 90, 90, 250, 250, 250])
    read = read_example({"image": Image.new("RGB", (24, 12)), "annotation": palette, "image_id": "x"})
    assert np.array_equal(read["annotation"].numpy(), labels)


def test_gray_images_become_rgb():
    """A single gray photo in a dataset would stop training with a shape error."""
    example = encoded_example(12, 12) | {"image": Image.new("L", (12, 12), 9)}
    assert read_example(example)["image"].shape == (3, 12, 12)


def test_color_annotations_are_refused_by_name():
    """The red channel of a color mask looks like class ids."""
    with pytest.raises(ValueError, match=r"'street_7' has shape \(24, 32, 3\).*class ids"):
        read_example(encoded_example(24, 32) | {"annotation": Image.new("RGB", (32, 24))})


def test_annotations_of_another_size_are_refused_by_name():
    """They would be cropped at another place than the image."""
    with pytest.raises(ValueError, match="'street_7' is 24 x 32 .* 32 x 24"):
        read_example(encoded_example(24, 32) | {"annotation": Image.new("L", (24, 32))})


def test_wrong_label_values_are_named():
    """Cross-entropy would fail on a device assert without saying which image it was."""
    labels = torch.tensor([[0, 10, 11], [12, 255, 3]], dtype=torch.uint8)
    with pytest.raises(ValueError, match="'street_7' holds 11, 12; allowed are 0 to 10 and 255"):
        check_labels(labels, 11, 255, "street_7")
    check_labels(labels, 13, 255, "street_7")
    with pytest.raises(ValueError, match="holds 255; allowed are 0 to 12 and -1"):
        check_labels(labels, 13, -1, "street_7")


def test_dataset_refuses_wrong_labels_of_any_item():
    """The check must run on the whole annotation, also when the crop misses the bad pixel."""
    labels = np.zeros((24, 32), dtype=np.uint8)
    labels[0, 0] = 9
    dataset = SegmentationDataset(rows(annotation=Image.fromarray(labels)), TrainTransform((4, 4)), num_labels=5)
    with pytest.raises(ValueError, match="'street_1' holds 9"):
        dataset[1]


def test_dataset_without_the_columns_is_refused():
    """A Hub dataset with a `label` column would otherwise raise KeyError in a worker."""
    with pytest.raises(ValueError, match=r"lacks the columns \['annotation'\]"):
        SegmentationDataset(rows().rename_column("annotation", "label"), EvalTransform(), num_labels=5)


def items(dataset: SegmentationDataset, **options) -> list[torch.Tensor]:
    loader = DataLoader(dataset, batch_size=2, collate_fn=collate, **options)
    return [torch.cat([batch["pixel_values"].flatten(), batch["labels"].flatten()]) for batch in loader]


def test_pixels_depend_on_seed_epoch_and_index_only():
    """A resumed run must see the pixels an uninterrupted one would have seen."""
    table = rows()
    dataset = SegmentationDataset(table, TrainTransform((16, 16)), num_labels=5, seed=3)
    first = dataset[2]["pixel_values"]
    torch.rand(5), dataset[0], dataset[1]
    assert torch.equal(dataset[2]["pixel_values"], first)
    assert torch.equal(dataset[-2]["pixel_values"], first)
    dataset.set_epoch(1)
    second = dataset[2]["pixel_values"]
    assert not torch.equal(second, first)
    dataset.set_epoch(0)
    assert torch.equal(dataset[2]["pixel_values"], first)
    other = SegmentationDataset(table, TrainTransform((16, 16)), num_labels=5, seed=4)
    assert not torch.equal(other[2]["pixel_values"], first)
    crops = {tuple(dataset[index]["labels"].flatten().tolist()) for index in range(4)}
    assert len(crops) > 1, "every image got the same crop"
    with pytest.raises(IndexError):
        dataset[4]


def test_workers_change_nothing_and_follow_the_epoch():
    """Workers that live on keep a copy of the dataset: they must still see set_epoch."""
    dataset = SegmentationDataset(rows(), TrainTransform((16, 16)), num_labels=5)
    loader = DataLoader(dataset, batch_size=2, collate_fn=collate, num_workers=1, persistent_workers=True)
    for epoch in (0, 1):
        dataset.set_epoch(epoch)
        alone = items(dataset)
        shared = [torch.cat([b["pixel_values"].flatten(), b["labels"].flatten()]) for b in loader]
        assert all(torch.equal(a, b) for a, b in zip(alone, shared, strict=True))


def test_collate_stacks_and_refuses_unequal_sizes():
    """torch.stack's own message does not say what to do about it."""
    small, large = EvalTransform()(encoded_example(8, 8)), EvalTransform()(encoded_example(8, 10))
    assert collate([small, small])["pixel_values"].shape == (2, 3, 8, 8)
    with pytest.raises(ValueError, match="batch size 1"):
        collate([small, large])
