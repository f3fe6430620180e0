"""Stored predictions of a teacher: bytes, shards, and the crop of a map that belongs to a crop of the image."""

import pickle
from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hf_segkd.data import SegmentationDataset, TrainTransform
from hf_segkd.data.resizing import Box
from hf_segkd.data.teacher_maps import ALL_CLASSES, TOP, TeacherMaps, crop_of, own_size, store, write_shard

K = 5


def logits(*size, classes=K, sharp=4.0):
    return sharp * torch.randn(classes, *size, generator=torch.Generator().manual_seed(0))


def kl(a, b, temperature=1.0):
    a, b = (x.div(temperature).log_softmax(0) for x in (a, b))
    return float((a.exp() * (a - b)).sum(0).mean())


@pytest.mark.parametrize("sharp", [0.5, 4.0, 20.0])
def test_bytes_keep_the_distribution(sharp):
    """256 levels must be fine where classes are likely: a linear table loses a hundred times as much there."""
    x = logits(30, 40, sharp=sharp)
    stored = store(x, (30, 40), True, normalized=False)
    assert stored.codes.dtype == np.uint8 and stored.codes.shape == (30, 40, K)
    assert 0 <= kl(x, stored.logits()) < 2e-4 and kl(x, stored.logits(), 4.0) < 2e-4


def test_stored_logits_are_the_teachers_own_and_not_only_up_to_a_constant():
    """Channel-wise distillation compares positions of one class: there the softmax over classes must be undone."""
    x = logits(8, 8) + 30
    stored = store(x, (8, 8), True, normalized=False)
    assert (stored.logits() - x).abs().mean() < 0.1 and (stored.logits() - x).abs().max() < 0.3
    plain = store(x.log_softmax(0), (8, 8), True, normalized=True)
    assert plain.log_sum is None and (plain.logits() - x.log_softmax(0)).abs().mean() < 0.1


def test_many_classes_keep_the_likeliest_and_the_mass_of_the_rest():
    """150 bytes for each position would be most of a disk; without the rest mass the tail would be impossible."""
    x = logits(6, 7, classes=ALL_CLASSES + 90, sharp=2.0)
    stored = store(x, (6, 7), True, normalized=False)
    assert stored.codes.shape == (6, 7, TOP) and stored.index.dtype == np.uint8
    probabilities = stored.logits().softmax(0)
    assert probabilities.shape == x.shape and (probabilities > 0).all()
    top = x.softmax(0).topk(TOP, dim=0)
    torch.testing.assert_close(probabilities.gather(0, top.indices), top.values, atol=0.02, rtol=0.05)
    assert kl(x, stored.logits()) < 0.1
    wide = store(logits(2, 3, classes=300), (2, 3), True, normalized=True)
    assert wide.index.dtype == np.uint16 and wide.logits().shape == (300, 2, 3)


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("size", [(6, 8), (48, 64), (5, 7)])
def test_untransformed_image_gets_the_map_itself(align_corners, size):
    """Any interpolation here would make a cached run another run than a live one."""
    stored = store(logits(*size), (48, 64), align_corners, normalized=False)
    found = crop_of(stored, Fraction(1), Box(0, 0, 48, 64), (48, 64))
    assert torch.equal(found, stored.logits())


def test_smaller_result_is_what_the_losses_would_make_of_the_map():
    """They bring a finer teacher to the student's grid by corner-aligned resizing: only the order may change."""
    stored = store(logits(48, 64), (48, 64), True, normalized=False)
    found = crop_of(stored, Fraction(1), Box(0, 0, 48, 64), (48, 64), (6, 8))
    expected = F.interpolate(stored.logits()[None], size=(6, 8), mode="bilinear", align_corners=True)[0]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


class Ramp:
    """A teacher whose logits are those of its pixels, on an image for which scaling and teaching can be swapped."""

    def __init__(self, height=40, width=56):
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        self.image = torch.stack([3 * rows + 20, 2 * columns + 30, 250 - 2 * rows - 2 * columns]).to(torch.uint8)

    @staticmethod
    def teach(image):
        x = image.float() / 25
        return torch.stack([x[0], x[1], x[2], 0.5 * (x[0] + x[1]), x[2] - x[0]])

    def rows(self):
        annotation = torch.zeros(self.image.shape[-2:], dtype=torch.uint8)
        return Rows([{"image": self.image, "annotation": annotation, "image_id": "ramp"}])


class Rows(list):
    column_names = ("image", "annotation", "image_id")


class OneMap:
    """Stands for [`TeacherMaps`] of a single image."""

    size = None

    def __init__(self, stored):
        self.stored = stored

    def crop(self, index, scale, box, crop_size):
        return crop_of(self.stored, scale, box, crop_size, self.size)


@pytest.mark.parametrize("interpolation", ["antialias", "opencv"])
@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("scale", [0.5, 0.7, 1.0, 1.3, 2.0])
@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_map_goes_through_the_same_scale_crop_and_flip_as_the_image(interpolation, align_corners, scale, flip):
    """Shifted by half a pixel, or not mirrored, every border would teach the class beside it."""
    ramp = Ramp()
    crop = (16, 20)
    transform = TrainTransform(crop, (scale, scale), flip=flip, interpolation=interpolation)
    dataset = SegmentationDataset(ramp.rows(), transform, num_labels=K)
    dataset.teacher = OneMap(store(ramp.teach(ramp.image), tuple(ramp.image.shape[-2:]), align_corners, False))
    for epoch in range(4):
        dataset.set_epoch(epoch)
        item = dataset[0]
        live = ramp.teach(item["pixel_values"])
        # Away from the image's border, where resizing meets pixels that are not there.
        inner = slice(2, -2)
        difference = (item["teacher_logits"] - live)[:, inner, inner].abs()
        # Bytes of image (1/25 a gray level, twice) and map (a hundredth of the depth): a shift of a pixel is 0.24.
        assert item["teacher_logits"].shape == live.shape and difference.mean() < 0.07 and difference.max() < 0.2


@pytest.mark.parametrize("align_corners", [True, False])
def test_coarse_map_is_read_where_the_crop_lies(align_corners):
    """A map at stride 8 has its own grid: the part for a crop lies between its positions."""
    height, width = 48, 64
    at = np.linspace(0, height - 1, 6) if align_corners else (np.arange(6) + 0.5) * 8 - 0.5
    across = np.linspace(0, width - 1, 8) if align_corners else (np.arange(8) + 0.5) * 8 - 0.5
    value = torch.from_numpy(at[:, None] + across).float() / 20
    stored = store(torch.stack([value, -value, 0 * value]), (height, width), align_corners, False)
    found = crop_of(stored, Fraction(1), Box(10, 20, 16, 16), (16, 16))
    assert found.shape == (3, 2, 2) == (3, *own_size(stored, (16, 16)))
    centers = np.array([0, 15]) if align_corners else np.array([3.5, 11.5])
    expected = torch.from_numpy((10 + centers)[:, None] + 20 + centers).float() / 20
    torch.testing.assert_close(found[0], expected, atol=0.05, rtol=0)


def test_border_of_the_map_goes_on_in_padding():
    """Beyond the picture nobody knows: a constant class there would be a lesson about corners."""
    stored = store(logits(8, 8), (8, 8), False, normalized=False)
    found = crop_of(stored, Fraction(1), Box(0, 0, 8, 8), (12, 8))
    assert torch.equal(found[:, :8], stored.logits()) and torch.equal(found[:, 11], stored.logits()[:, 7])


def test_shards_give_the_maps_back_in_the_order_of_the_dataset(tmp_path):
    """A map of another image would teach nonsense without a single warning."""
    maps = {name: store(logits(4, 4 + i), (8, 8), True, bool(i)) for i, name in enumerate("abc")}
    write_shard(tmp_path / "0.safetensors", {"a": maps["a"], "c": maps["c"]}, {"a": {}, "c": {}})
    write_shard(tmp_path / "1.safetensors", {"b": maps["b"]}, {"b": {}})
    read = pickle.loads(pickle.dumps(TeacherMaps(tmp_path, ["c", "b", "a"])))
    assert len(read) == 3
    for index, name in enumerate("cba"):
        assert torch.equal(read[index].logits(), maps[name].logits())
        assert read[index].image_size == (8, 8) and read[index].align_corners
    with pytest.raises(ValueError, match="lacks the maps of 1 of 2"):
        TeacherMaps(tmp_path, ["a", "d"])
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["0.safetensors", "1.safetensors"]
