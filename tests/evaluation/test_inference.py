"""From logits to label maps: crops, scales, flips."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hf_segkd.evaluation.inference import class_maps, predict, upsampled_argmax
from hf_segkd.evaluation.settings import InferenceProtocol
from hf_segkd.models import SegmentationOutput

K = 5


class Network(nn.Module):
    """Logits at stride 4 that depend on the place in the image, like those of a real network with padding."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 7, stride=4, padding=3), nn.Tanh(), nn.Conv2d(8, K, 3, padding=1))
        self.calls = []

    def forward(self, pixel_values):
        self.calls.append(tuple(pixel_values.shape[-2:]))
        return SegmentationOutput(logits=self.layers(pixel_values))


@pytest.fixture
def network():
    return Network().eval()


IMAGE = torch.randn(1, 3, 48, 64, generator=torch.Generator().manual_seed(1))


def maps(network, size=(48, 64), **options):
    """All class maps (K, H, W) of `IMAGE`."""
    options = {"align_corners": True, **options}
    with torch.no_grad():
        return torch.stack(list(class_maps(network, IMAGE, InferenceProtocol(**options), size)[0]))


def reference(network, image=IMAGE, size=(48, 64)):
    with torch.no_grad():
        return F.interpolate(network(image).logits, size=size, mode="bilinear", align_corners=True)[0]


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_argmax_by_class_is_that_of_the_whole_tensor(align_corners, dtype):
    """A memory saving that changes labels, at ties for instance, would change published numbers."""
    logits = torch.randn(2, K, 7, 9, generator=torch.Generator().manual_seed(0)).to(dtype)
    logits[:, 3] = logits[:, 1]
    full = F.interpolate(logits.float(), size=(50, 61), mode="bilinear", align_corners=align_corners).argmax(1)
    labels = upsampled_argmax(logits, (50, 61), align_corners)
    assert labels.dtype == torch.uint8 and torch.equal(labels.long(), full)
    assert torch.equal(upsampled_argmax(logits, (7, 9), align_corners).long(), logits.float().argmax(1))


def test_more_than_256_classes_keep_their_ids():
    """A byte would wrap class 300 to 44."""
    logits = torch.zeros(1, 301, 2, 2)
    logits[:, 300] = 1
    assert upsampled_argmax(logits, (4, 4), False).unique().tolist() == [300]


def test_whole_image_is_one_forward_upsampled_to_the_labels(network):
    """Labels may have another size than the image: logits go there directly."""
    assert torch.equal(maps(network, size=(96, 100)), reference(network, size=(96, 100)))
    assert network.calls[0] == (48, 64)


def test_images_are_scaled_as_the_originals_scale_them_on_request(network):
    """Structured KD and CIRKD align the corners and round sizes down; 0.1 of mIoU lies between the two ways."""
    scaled = F.interpolate(IMAGE, scale_factor=0.77, mode="bilinear", align_corners=True, recompute_scale_factor=True)
    assert scaled.shape[-2:] == (36, 49)
    found = maps(network, scales=(0.77,), scale_align_corners=True)
    torch.testing.assert_close(found, reference(network, scaled), rtol=0, atol=1e-6)
    assert not torch.allclose(found, maps(network, scales=(0.77,)), atol=1e-3)


def test_crops_step_by_two_thirds_of_their_height_on_both_sides():
    """Structured KD's one stride, ceil(2/3 h) = 342; 341 by 682 sees other pixels twice."""
    assert InferenceProtocol(mode="slide", crop_size=(512, 1024)).stride == (342, 342)
    assert InferenceProtocol(mode="slide", crop_size=(769, 300)).stride == (513, 300)


def test_a_crop_that_covers_the_image_is_the_whole_image(network):
    """Else sliding and whole could not be compared."""
    assert torch.equal(maps(network, mode="slide", crop_size=(48, 64)), maps(network))
    assert torch.equal(maps(network, mode="slide", crop_size=(100, 200), stride=(10, 10)), maps(network))


def test_crops_are_averaged_where_they_overlap(network):
    """Two crops of 48x40 with stride 24: columns 24 to 40 are seen twice."""
    got = maps(network, mode="slide", crop_size=(48, 40), stride=(48, 24))
    left, right = (reference(network, IMAGE[..., a : a + 40], (48, 40)) for a in (0, 24))
    assert torch.equal(got[..., :24], left[..., :24])
    assert torch.allclose(got[..., 24:40], (left[..., 24:] + right[..., :16]) / 2, atol=1e-6)
    assert torch.equal(got[..., 40:], right[..., 16:])


def test_crops_reach_the_border_and_cover_every_pixel(network):
    """The last crop is moved back to the border, as in the published evaluators, instead of being padded."""
    maps(network, mode="slide", crop_size=(32, 32), stride=(20, 20))
    assert network.calls == [(32, 32)] * 6  # rows 0, 16; columns 0, 20, 32


def test_halves_put_the_logits_side_by_side_before_upsampling(network):
    """SegFormer's Cityscapes evaluation: upsampling each half by itself would move its columns."""
    halves = torch.cat([network(IMAGE[..., :32]).logits, network(IMAGE[..., 32:]).logits], dim=-1)
    expected = F.interpolate(halves, size=(48, 64), mode="bilinear", align_corners=True)[0]
    assert torch.equal(maps(network, mode="halves"), expected.detach())


def test_flip_averages_the_view_with_its_mirror_image(network):
    """Logits of the mirrored image must be mirrored back."""
    mirrored = reference(network, IMAGE.flip(-1)).flip(-1)
    assert torch.allclose(maps(network, flip=True), (reference(network) + mirrored) / 2, atol=1e-6)


def test_flip_of_a_flip_is_the_identity(network):
    """The mirrored image gives the mirrored prediction."""
    with torch.no_grad():
        protocol = InferenceProtocol(flip=True, align_corners=True, mode="slide", crop_size=(48, 40), stride=(48, 24))
        straight = predict(network, IMAGE, protocol, (48, 64), True)
        mirrored = predict(network, IMAGE.flip(-1), protocol, (48, 64), True)
    assert torch.equal(mirrored.flip(-1), straight)


def test_scales_run_the_resized_image(network):
    """Scale 1 alone is the whole protocol; two scales are their mean at label size."""
    assert torch.equal(maps(network, scales=(1.0,)), maps(network))
    small = F.interpolate(IMAGE, size=(24, 32), mode="bilinear", align_corners=False)
    expected = (reference(network) + reference(network, small)) / 2
    assert torch.allclose(maps(network, scales=(1.0, 0.5)), expected, atol=1e-6)


def test_probabilities_are_softmaxed_at_label_size_before_averaging(network):
    """Averaging logits instead is another published convention, with other numbers."""
    views = [reference(network).softmax(0), reference(network, IMAGE.flip(-1)).flip(-1).softmax(0)]
    got = maps(network, flip=True, average="probabilities")
    assert torch.allclose(got, (views[0] + views[1]) / 2, atol=1e-6)
    assert torch.allclose(got.sum(0), torch.ones(48, 64), atol=1e-5)


def test_the_model_decides_on_align_corners_unless_the_protocol_does(network):
    """Models of this library upsample with aligned corners, native ones without."""
    protocol = InferenceProtocol()
    aligned = predict(network, IMAGE, protocol, (48, 64), True)
    assert torch.equal(aligned, predict(network, IMAGE, InferenceProtocol(align_corners=True), (48, 64), False))
    assert not torch.equal(aligned, predict(network, IMAGE, protocol, (48, 64), False))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"mode": "sliding"}, "mode must be one of 'whole', 'slide', 'halves', 'auto', got 'sliding'"),
        ({"mode": "slide"}, "mode 'slide' needs a crop_size"),
        ({"crop_size": (8, 8)}, "mode 'slide' needs a crop_size"),
        ({"stride": (8, 8)}, "mode 'slide' needs a crop_size"),
        ({"mode": "slide", "crop_size": (8, 8), "stride": (8, 9)}, "would leave pixels without a prediction"),
        ({"scales": ()}, "scales must be positive"),
        ({"scales": (1, 0)}, "scales must be positive"),
        ({"average": "votes"}, "average must be one of 'logits', 'probabilities'"),
    ],
)
def test_impossible_protocols_are_refused(options, message):
    """An evaluation that takes an hour should not fail, or worse succeed, for its last image."""
    with pytest.raises(ValueError, match=message):
        InferenceProtocol(**options)


def test_a_protocol_says_what_it_is():
    """The sentence goes into metrics.json and the model card."""
    assert str(InferenceProtocol()) == "whole image, single scale, at label size"
    text = str(InferenceProtocol(mode="slide", crop_size=(768, 768), stride=(512, 512), scales=(0.75, 1), flip=True))
    assert text == "crops 768x768, stride 512x512, scales 0.75, 1, flipped too, mean of logits, at label size"
