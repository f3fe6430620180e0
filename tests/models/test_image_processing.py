"""The image processor and the normalization on the device, which must agree to the last bit."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor

from helpers.native_names import pil_processor
from hf_segkd.loading.any_model import load_model
from hf_segkd.models import InputNormalization, SegmentationImageProcessor, SegmentationOutput, default_processor

ESPNET = default_processor(load_model({"model_type": "espnet", "num_labels": 6})[0].config)
PROCESSORS = {
    "espnet": ESPNET,
    "imagenet": SegmentationImageProcessor(),
    "segformer": pil_processor("segformer", "Segformer")(do_resize=False),
    "mobilevit": pil_processor("mobilevit", "MobileViT")(do_resize=False, do_center_crop=False),
    "scaled_to_one": SegmentationImageProcessor(rescale_factor=1 / 127.5, image_mean=[1, 1, 1], image_std=[1, 1, 1]),
    "neither": SegmentationImageProcessor(do_rescale=False, do_normalize=False),
}


@pytest.fixture
def pixels():
    """Every byte value in every channel, `(H, W, 3)`."""
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    return np.stack([values, values.T, values[::-1]], axis=-1)


@pytest.mark.parametrize("name", PROCESSORS)
def test_normalization_equals_the_processor(name, pixels):
    """Training normalizes on the device, released folders with the processor: both must feed the same numbers."""
    expected = torch.as_tensor(np.array(PROCESSORS[name](Image.fromarray(pixels), return_tensors="np").pixel_values))
    batch = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None]
    actual = InputNormalization.from_processor(PROCESSORS[name])(batch)
    assert actual.dtype == torch.float32
    # The same roundings in the same order: no tolerance is needed.
    torch.testing.assert_close(actual, expected.float(), rtol=0, atol=0)


def test_espnet_reads_blue_green_red_bytes_minus_their_mean():
    """With mean and deviation in RGB order the model still runs, some points of mIoU lower."""
    image = np.tile(np.array([10, 20, 30], dtype=np.uint8), (4, 4, 1))
    values = ESPNET(image, return_tensors="pt").pixel_values[0, :, 0, 0]
    expected = [(30 - 73.18188461) / 45.3199, (20 - 82.93553322) / 46.1528, (10 - 72.41519599) / 44.9148]
    torch.testing.assert_close(values, torch.tensor(expected))


def test_normalization_refuses_what_is_not_a_batch_of_bytes():
    """Images already scaled to 0..1 would be divided by 255 again, without an error."""
    for wrong in (torch.rand(1, 3, 4, 4), torch.zeros(3, 4, 4, dtype=torch.uint8)):
        with pytest.raises(ValueError, match="must be uint8 RGB of shape"):
            InputNormalization()(wrong)


def test_normalization_adds_nothing_to_a_state_dict():
    """A student saved with its statistics would not load as a plain model."""
    assert not InputNormalization.from_processor(ESPNET).state_dict()


def test_every_kind_of_image_gives_the_same_values(pixels):
    """Channels-first arrays, tensors and PIL images of other modes reach a pipeline alike."""
    processor, image = SegmentationImageProcessor(), Image.fromarray(pixels)
    tensor = torch.from_numpy(pixels.copy())
    expected = processor(image, return_tensors="pt").pixel_values
    kinds = [image.convert("RGBA"), pixels, pixels.transpose(2, 0, 1), tensor, tensor.permute(2, 0, 1), [image]]
    for kind in [*kinds, pixels[None]]:
        assert torch.equal(processor(kind, return_tensors="pt").pixel_values, expected)


def test_gray_and_palette_images_become_rgb():
    """Datasets mix modes; a one-channel array would be refused in the middle of an epoch."""
    for mode in ("L", "P", "1", "CMYK"):
        values = SegmentationImageProcessor()(Image.new(mode, (6, 4)), return_tensors="pt").pixel_values
        assert values.shape == (1, 3, 4, 6)


@pytest.mark.parametrize("image", [np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8)])
def test_array_that_is_not_rgb_bytes_is_refused(image):
    """Floats are ambiguous between 0..1 and 0..255."""
    with pytest.raises(ValueError, match=r"PIL image or uint8 of shape \(H, W, 3\)"):
        SegmentationImageProcessor()([image])


def test_palette_map_gives_its_class_ids():
    """Converted to gray, ids 0 1 2 of a VOC label become 0 38 75."""
    ids = np.array([[0, 1], [2, 255]], dtype=np.uint8)
    palette = Image.fromarray(ids, mode="P")
    palette.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
    batch = SegmentationImageProcessor()(Image.new("RGB", (2, 2)), palette, return_tensors="pt")
    assert torch.equal(batch.labels[0], torch.tensor([[0, 1], [2, 255]]))


def test_resizing_invents_no_class():
    """Interpolated ids between 0 and 255 are other classes."""
    ids = np.zeros((5, 7), dtype=np.uint8)
    ids[2:] = 255
    processor = SegmentationImageProcessor(size={"height": 16, "width": 12})
    batch = processor(Image.new("RGB", (7, 5)), Image.fromarray(ids), return_tensors="pt")
    assert batch.pixel_values.shape == (1, 3, 16, 12) and batch.labels.shape == (1, 16, 12)
    assert batch.labels.unique().tolist() == [0, 255]


def test_unequal_sizes_are_refused_only_when_stacked():
    """torch's own message names neither the images nor the way out."""
    images = [Image.new("RGB", (6, 4)), Image.new("RGB", (5, 4))]
    with pytest.raises(ValueError, match=r"unequal sizes.*\(4, 5\), \(4, 6\).*Give the processor a size"):
        SegmentationImageProcessor()(images, return_tensors="pt")
    assert [tuple(image.shape) for image in SegmentationImageProcessor()(images).pixel_values] == [
        (3, 4, 6),
        (3, 4, 5),
    ]


def test_maps_that_do_not_fit_their_images_are_refused():
    """A transposed label map would train on the wrong pixels."""
    image = Image.new("RGB", (6, 4))
    for maps in ([np.zeros((6, 4), np.uint8)], [np.zeros((4, 6), np.uint8)] * 2):
        with pytest.raises(ValueError, match="one segmentation map of its own size"):
            SegmentationImageProcessor()([image], maps)
    with pytest.raises(ValueError, match="Color maps must be translated"):
        SegmentationImageProcessor()([image], [image])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image_std": [1.0, 0.0, 1.0]}, "std must be positive"),
        ({"image_mean": [0.5]}, "mean must have three values"),
        ({"rescale_factor": 0.0}, "rescale_factor must be positive"),
        ({"size": {"shortest_edge": 4}}, "keys 'height' and 'width'"),
    ],
)
def test_impossible_fields_are_refused_at_construction(fields, message):
    """A deviation of zero gives infinite inputs at the first batch."""
    with pytest.raises(ValueError, match=message):
        SegmentationImageProcessor(**fields)


def test_processor_is_the_same_after_save_and_load(tmp_path):
    """Channel order and align_corners are what other processors do not save."""
    ESPNET.save_pretrained(tmp_path)
    loaded = AutoImageProcessor.from_pretrained(tmp_path)
    assert type(loaded) is SegmentationImageProcessor and loaded.to_dict() == ESPNET.to_dict()
    assert loaded.size is None and loaded.align_corners and loaded.do_flip_channel_order


def test_post_processing_upsamples_as_the_model_was_trained():
    """The other convention moves every class border by a fraction of the stride."""
    logits = torch.tensor([[[[0.0, 1.0]], [[0.4, -0.6]]]])
    output = SegmentationOutput(logits=logits)
    # Class 0 wins beyond 0.2 of the way; the five pixels lie at 0 .25 .5 .75 1 of it, or at 0 .1 .5 .9 1.
    for align_corners, expected in ((True, [1, 0, 0, 0, 0]), (False, [1, 1, 0, 0, 0])):
        processor = SegmentationImageProcessor(align_corners=align_corners)
        [labels] = processor.post_process_semantic_segmentation(output, target_sizes=[(1, 5)])
        assert labels.dtype == torch.int64 and labels.tolist() == [expected]


def test_post_processing_wants_one_size_per_image():
    """A shorter list would silently drop images."""
    output = SegmentationOutput(logits=torch.zeros(2, 3, 4, 4))
    assert [tuple(item.shape) for item in ESPNET.post_process_semantic_segmentation(output)] == [(4, 4)] * 2
    with pytest.raises(ValueError, match="1 target_sizes for 2 images"):
        ESPNET.post_process_semantic_segmentation(output, target_sizes=[(8, 8)])
