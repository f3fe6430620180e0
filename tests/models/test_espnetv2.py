"""ESPNetv2: equality with the original, its sizes, and what a small copy of a layer can show by hand."""

import json

import pytest
import torch
import torch.nn.functional as F

from helpers import golden_espnetv2, golden_folder
from hf_segkd.conversion import convert, converted_processor, load_original, recognize
from hf_segkd.evaluation.profiling import count_macs
from hf_segkd.loading.any_model import load_model
from hf_segkd.models import default_processor
from hf_segkd.models.espnetv2 import ESPNetv2Config
from hf_segkd.models.espnetv2_layers import BLOCK_LIMITS, DOWNSAMPLE_LIMITS, PoolingPyramid, SpatialPyramid

CASES = golden_espnetv2.cases()
# Counted on the original, less the activations it never runs; multiply-adds at 256x512 and 512x1024, 20 classes.
SIZES = {
    0.5: (80_342 - 112, 149_069_802, 596_248_176),
    1.0: (234_010 - 224, 271_333_354, 1_085_283_952),
    1.5: (468_362 - 352, 428_330_474, 1_713_255_536),
    2.0: (789_242 - 480, 674_456_554, 2_697_742_960),
}


def new_model(width=0.5, num_labels=6, **fields):
    torch.manual_seed(0)
    labels = {index: f"class_{index}" for index in range(num_labels)}
    return load_model({"model_type": "espnetv2", "width": width, **fields}, id2label=labels)[0]


def images(*size):
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))


@pytest.mark.golden
@pytest.mark.parametrize("name", CASES)
def test_released_file_gives_the_originals_maps(name):
    """Order of branches, dilations, corners, padding in the mean, shuffle: none shows in a shape."""
    case = CASES[name]
    state_dict = load_original(golden_espnetv2.released(f"espnetv2/{case['file']}"))
    model, expected, image = convert(state_dict), golden_espnetv2.outputs(case), golden_espnetv2.image(case)
    assert torch.equal(image, expected["input"])
    pixel_values = converted_processor(recognize(state_dict), model.config)(image, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        output = model(pixel_values, output_hidden_states=True)
    assert list(output.logits.shape) == case["tensors"]["logits"]["shape"]
    found = {f"level{index}": golden_espnetv2.sample(x) for index, x in enumerate(output.hidden_states, start=1)}
    found["logits"] = output.logits[0, :, 1::4, 1::4].flatten()
    for field, value in found.items():
        # 1e-4 of the largest value: float32 against float64 gives 2e-6, the smallest mistake tried 6e-3.
        difference = (value - expected[field].flatten()).abs().max()
        assert difference <= 1e-4 * case["tensors"][field]["absmax"], field
    # Scores closer than rounding may change places: one pixel in the vectors at hand.
    assert (output.logits[0].argmax(dim=0) != expected["labels"]).sum() <= 3


def test_every_released_width_has_golden_vectors():
    """Without them the comparison above would run over nothing and pass."""
    manifest = json.loads((golden_folder.OWN / "espnetv2" / "manifest.json").read_text())
    found = {(case["s"], case["task"]) for case in manifest["vectors"].values()}
    assert (
        found == {(width, task) for width in SIZES for task in ("city", "pascal")} and len(manifest["vectors"]) == 16
    )


@pytest.mark.parametrize("width", SIZES)
def test_width_has_the_parameters_and_operations_of_the_original(width):
    """A width rounded otherwise, or groups that differ, refuses every released file."""
    with torch.device("meta"):
        model = new_model(width, num_labels=20)
        more_classes = new_model(width, num_labels=21)
    parameters, small, large = SIZES[width]
    assert (model.num_parameters(), more_classes.num_parameters()) == (parameters, parameters + 11)
    assert (count_macs(model, (256, 512)), count_macs(model, (512, 1024))) == (small, large)
    assert count_macs(more_classes, (256, 512)) == small + 327_680


def test_dilations_are_the_originals():
    """The last stage's down-sampler reads further than its blocks do, which no weight's shape tells."""
    found = [[branch.dilation[0] for branch in SpatialPyramid(16, 16, 1, limit).branches] for limit in (13, 11, 9, 7)]
    assert found == [[1, 2, 3, 4], [1, 2, 3, 4], [1, 2, 3, 4], [1, 1, 2, 3]]
    assert (DOWNSAMPLE_LIMITS, BLOCK_LIMITS) == ((13, 11, 9), (13, 9, 7))


def test_branches_are_summed_from_the_first():
    """Without the sums, wide dilations leave a grid; the original adds the first branch to the second too."""
    pyramid = SpatialPyramid(16, 16, 1, 9).eval()
    for branch in pyramid.branches:
        torch.nn.init.dirac_(branch.weight, groups=4)  # each branch passes its input on
    kept = []
    pyramid.fuse.register_forward_pre_hook(lambda module, inputs: kept.append(inputs[0]))
    x = images(8, 8).repeat(1, 6, 1, 1)[:, :16]
    pyramid(x)
    reduced = pyramid.reduce(x)
    torch.testing.assert_close(kept[0], torch.cat([reduced, 2 * reduced, 3 * reduced, 4 * reduced], dim=1))


def test_pyramid_merges_the_sizes_of_one_channel():
    """Without the shuffle each output would mix channels of a single size."""
    pyramid = PoolingPyramid(4, size=3).eval()
    shuffled = []
    pyramid.fuse.register_forward_hook(lambda *args: torch.arange(15.0).view(1, 15, 1, 1).expand(2, 15, 8, 8))
    pyramid.merge.register_forward_pre_hook(lambda module, inputs: shuffled.append(inputs[0][0, :, 0, 0]))
    pyramid(torch.zeros(2, 4, 8, 8))
    assert shuffled[0].tolist() == [0, 3, 6, 9, 12, 1, 4, 7, 10, 13, 2, 5, 8, 11, 14]


@pytest.mark.parametrize("size", [(16, 32), (47, 112), (17, 23), (9, 131), (3, 1)])
def test_any_image_size_works(size):
    """The original's addition fails unless both sides are multiples of 16."""
    model = new_model().eval()
    with torch.no_grad():
        output = model(images(*size), output_hidden_states=True)
    strides = [[-(-side // stride) for side in size] for stride in (2, 4, 8, 16)]
    assert [list(state.shape[2:]) for state in output.hidden_states] == strides
    assert list(output.logits.shape) == [2, 6, *size] and output.logits.isfinite().all()


def test_features_are_the_encoders_last_map():
    """The map that the classifier reads has half as many channels as there are classes: too few to distill."""
    output = new_model(1.0)(images(32, 48), output_hidden_states=True)
    assert output.features is output.hidden_states[-1] and output.aux_logits is None
    assert [state.shape[1] for state in output.hidden_states] == [32, 64, 128, 256]


def test_loss_is_the_cross_entropy_of_the_pixels_that_count():
    """Void pixels in the mean would make the loss depend on how much of the image is annotated."""
    labels = torch.randint(6, (2, 30, 22), generator=torch.Generator().manual_seed(2))
    labels[:, :10] = 255
    output = new_model()(images(30, 22), labels=labels.to(torch.uint8))
    torch.testing.assert_close(output.loss, F.cross_entropy(output.logits[:, :, 10:], labels[:, 10:]))


def test_pyramid_size_follows_the_classes_and_stays_when_saved(tmp_path):
    """Classes renamed or cut off after training must not change the shapes that the weights have."""
    sizes = [ESPNetv2Config(num_labels=count).pyramid_size for count in (1, 2, 11, 20, 21, 150)]
    assert sizes == [1, 1, 5, 10, 10, 16]
    ESPNetv2Config(num_labels=20).save_pretrained(tmp_path)
    assert ESPNetv2Config.from_pretrained(tmp_path, num_labels=11).pyramid_size == 10


def test_images_come_in_rgb_with_imagenet_statistics():
    """The older ESPNet reads BGR bytes: its statistics here would cost a quarter of the logits' range."""
    processor = default_processor(ESPNetv2Config())
    assert not processor.do_flip_channel_order and processor.do_rescale and processor.align_corners
    assert processor.image_mean == [0.485, 0.456, 0.406] and processor.image_std == [0.229, 0.224, 0.225]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"width": 0.25}, "width must be a multiple of 0.25, at least 0.5, got 0.25"),
        ({"width": 1.3}, "width must be a multiple of 0.25"),
        ({"depths": (3, 0)}, "depths must be two numbers of blocks"),
        ({"pyramid_size": 0}, "pyramid_size must be at least 1"),
    ],
)
def test_impossible_config_is_refused(fields, message):
    """Channels that groups do not divide fail later, in a layer whose name says nothing about the width."""
    with pytest.raises(ValueError, match=message):
        ESPNetv2Config(**fields)
