"""Students of other images than 8-bit RGB, and models of RGB that read a part of such images."""

import numpy as np
import pytest
import torch
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation, SegformerConfig

from dataset_builders import open_dataset
from helpers.own_photos import NAMES, save
from helpers.tiny import LABELS, TINY
from helpers.trainers import equal, weights
from hf_segkd.evaluation.segmenter import Segmenter
from hf_segkd.loading.any_model import load_model
from hf_segkd.loading.bands import check_reads, student_for_bands, widen
from hf_segkd.models import Bands, InputNormalization, SegmentationImageProcessor, default_processor, input_channels
from hf_segkd.training.distiller import Distiller

FOUR = ("red", "green", "blue", "nir")
SEGFORMER = {
    "model_type": "segformer",
    "hidden_sizes": [8, 8, 8, 8],
    "depths": [1, 1, 1, 1],
    "num_attention_heads": [1, 1, 1, 1],
    "decoder_hidden_size": 8,
}
UPERNET_SWIN = {
    "model_type": "upernet",
    "hidden_size": 8,
    "backbone": {"model_type": "swin", "embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 1, 1]},
}
NETWORKS = {
    "espnet-c": TINY,
    "espnet": {**TINY, "use_decoder": True},
    "espnetv2": {"model_type": "espnetv2", "width": 0.5, "depths": [1, 1]},
    "segformer": SEGFORMER,
    "swin": UPERNET_SWIN,
} | {
    name: {"model_type": "pspnet", "hidden_size": 8, "backbone": name}
    for name in (
        "resnet18",
        "resnet18_vanilla",
        "mobilenetv2",
        "mobilenetv3_small",
        "mobilevit_xxs",
        "efficientnet_lite0",
    )
}


def network(name: str):
    torch.manual_seed(0)
    return load_model(NETWORKS[name], id2label=LABELS)[0].eval()


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("names", [FOUR, ("thermal",), ("nir", "red", "green"), ("blue", *FOUR[:2], *"abcdefghij")])
def test_every_network_reads_any_bands_and_a_saved_one_loads(name, names, tmp_path):
    """A first convolution of 3 channels that is left anywhere fails, or is drawn anew when the folder is loaded."""
    student = network(name)
    if name == "espnet" and len(LABELS) < 5:
        pytest.skip("its decoder needs 5 classes")
    wide = widen(student, names).eval()
    image = torch.randn(2, len(names), 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits = wide(pixel_values=image).logits
        assert input_channels(wide.config) == len(names) and logits.isfinite().all()
        wide.save_pretrained(tmp_path)
        loaded = AutoModelForSemanticSegmentation.from_pretrained(tmp_path).eval()
        assert equal(weights(loaded), weights(wide))
        found = loaded(pixel_values=image).logits
    # Not equal: on some CPUs, the place in memory decides how sums are rounded.
    torch.testing.assert_close(found, logits, rtol=0, atol=1e-5 * logits.abs().max().item())


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("names", [("nir", "blue", "red", "green"), ("thermal",)])
def test_a_gray_picture_gets_the_answer_it_got_before(name, names):
    """Filters that are summed without the factor 3/N answer N/3 times as strongly, and the norms behind are wrong."""
    student = network(name)
    gray = torch.randn(1, 1, 64, 64, generator=torch.Generator().manual_seed(1))
    if name.startswith("espnet") and not name.startswith("espnetv2"):
        # Norm and slope of the image's own channels are those of the colors, which must be alike for this.
        same_channels(student)
    with torch.no_grad():
        expected = student(pixel_values=gray.expand(-1, 3, -1, -1)).logits
        found = widen(student, names).eval()(pixel_values=gray.expand(-1, len(names), -1, -1)).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def same_channels(student) -> None:
    for norm in student.encoder.norms[:2]:
        for tensor in (norm.normalization.running_mean, norm.normalization.running_var):
            tensor[-3:] = tensor[-1]


@pytest.mark.parametrize("order", [("red", "green", "blue"), ("blue", "green", "red")])
def test_named_colors_keep_their_filters_and_others_get_the_mean(order):
    """A BGR network whose first filter goes to the band called red would start from a wrong picture."""
    student = network("segformer")
    own = student.segformer.state_dict()
    key = next(key for key, value in own.items() if value.ndim == 4 and value.shape[1] == 3)
    wide = widen(student, ("nir", "green", "red", "blue"), order).segformer.state_dict()[key]
    for band, color in ((1, "green"), (2, "red"), (3, "blue")):
        torch.testing.assert_close(wide[:, band], 0.75 * own[key][:, order.index(color)])
    torch.testing.assert_close(wide[:, 0], 0.75 * own[key].mean(dim=1))


@pytest.mark.parametrize("suffix", ["png", "tif", "npy"])
def test_a_ramp_of_twelve_bits_reaches_the_network(tmp_path, suffix):
    """Clipped or rounded to 8 bits, 4096 levels become 256 or one."""
    ramp = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    for index in range(2):
        save(tmp_path / "masks" / f"{index}.png", (ramp % 2).astype(np.uint8))
        path = tmp_path / "images" / f"{index}.{suffix}"
        path.parent.mkdir(exist_ok=True)
        np.save(path, ramp) if suffix == "npy" else save(path, ramp)
    dataset = open_dataset("folder", str(tmp_path), labels=NAMES, bands=["thermal"], cache_dir=str(tmp_path / "cache"))
    images = dataset.evaluation_set()
    loaded = load_model(TINY, id2label=dataset.spec.id2label)
    student, processor = student_for_bands(*loaded, dataset.bands, images, {}, is_new=True)
    distiller = Distiller(student, {}, normalization=InputNormalization.from_processor(processor))
    expected = (ramp - ramp.mean()) / ramp.std()
    for found in (
        distiller.normalization(images[0]["pixel_values"][None]),
        Segmenter(student, processor).normalize(images[0]["pixel_values"][None]),
        processor(ramp, return_tensors="pt")["pixel_values"],
    ):
        # float32 holds a value of this size to 1e-7; a step of the ramp is 8e-4.
        np.testing.assert_allclose(found[0, 0].numpy(), expected, atol=5e-7)


def test_a_teacher_of_rgb_reads_its_three_bands_in_its_own_range():
    """The teacher was trained on bytes: 4095 must be its 255, and infrared must not be its blue."""
    bands = Bands(("nir", "blue", "green", "red"), "uint16", (95.0, 4095.0))
    processor = default_processor(SegformerConfig())
    stored = torch.randint(0, 5000, (2, 4, 8, 8), generator=torch.Generator().manual_seed(0)).float()
    stored = stored.round()
    found = InputNormalization.from_processor(processor, bands)(stored)
    as_bytes = ((stored[:, [3, 2, 1]].double() - 95) / 4000 * 255).clamp(0, 255)
    mean, std = (torch.tensor(x).view(1, 3, 1, 1) for x in (processor.image_mean, processor.image_std))
    torch.testing.assert_close(found, ((as_bytes / 255 - mean) / std).float(), rtol=1e-5, atol=1e-5)


def test_bytes_of_more_bands_give_a_teacher_its_bits():
    """With infrared beside them, red, green and blue are the picture that the teacher would have been given."""
    picture = torch.randint(256, (2, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    bands = Bands(FOUR, "uint8")
    processor = SegmentationImageProcessor(do_flip_channel_order=True)
    with_infrared = torch.cat([picture, picture[:, :1]], dim=1)
    expected = InputNormalization.from_processor(processor)(picture)
    assert torch.equal(InputNormalization.from_processor(processor, bands)(with_infrared), expected)


@pytest.mark.parametrize(
    ("reads", "images", "message"),
    [
        (None, Bands(("nir", "red", "green"), "uint8"), "no blue. Name the bands"),
        (None, Bands(FOUR, "uint16"), "Give --pixel_range DARKEST BRIGHTEST"),
        (Bands(FOUR, "uint16"), None, "so they are 8-bit RGB. Name their bands"),
        (Bands(FOUR, "uint16"), Bands(FOUR, "float32"), "store both the same way"),
        (Bands(("swir",), "uint16"), Bands(FOUR, "uint16"), "no swir"),
    ],
)
def test_a_model_that_cannot_read_the_images_is_refused(reads, images, message):
    """Each of these would run, on pixels that mean something else."""
    processor = SegmentationImageProcessor()
    if reads is not None:
        count = len(reads.names)
        statistics = {"image_mean": [0] * count, "image_std": [1] * count}
        processor = SegmentationImageProcessor(**statistics, bands=reads.names, pixel_dtype=reads.dtype)
    with pytest.raises(ValueError, match=message):
        check_reads(processor, images)


def test_a_teacher_of_bands_reads_those_it_knows():
    """A teacher of two of the bands distills into a student of all."""
    processor = SegmentationImageProcessor(
        image_mean=[1, 2], image_std=[3, 4], do_rescale=False, bands=["nir", "red"], pixel_dtype="uint16"
    )
    stored = torch.arange(16.0).view(1, 4, 2, 2)
    found = InputNormalization.from_processor(processor, Bands(FOUR, "uint16"))(stored)
    torch.testing.assert_close(found, torch.stack([(stored[0, 3] - 1) / 3, (stored[0, 0] - 2) / 4])[None])


def test_given_statistics_are_used_and_a_student_of_these_bands_stays(tmp_path):
    """Training on must not measure anew: the weights were made for the old numbers."""
    bands = Bands(FOUR, "uint16", (0, 4095))
    images = [{"pixel_values": torch.rand(4, 8, 8)}]
    given = {"image_mean": [1, 2, 3, 4], "image_std": [5, 6, 7, 8]}
    student, processor = student_for_bands(*load_model(TINY, id2label=LABELS), bands, images, given, is_new=True)
    assert (processor.image_mean, processor.image_std, processor.do_rescale) == ([1, 2, 3, 4], [5, 6, 7, 8], False)
    assert student_for_bands(student, processor, bands, images, {}, is_new=False) == (student, processor)
    with pytest.raises(ValueError, match="store and name both alike"):
        student_for_bands(student, processor, Bands(FOUR[::-1], "uint16"), images, {}, is_new=False)
    with pytest.raises(ValueError, match="image_mean and image_std, both, got image_mean"):
        student_for_bands(*load_model(TINY, id2label=LABELS), bands, images, {"image_mean": [0] * 4}, is_new=True)


def test_the_processor_of_bands_travels_and_refuses_other_arrays(tmp_path):
    """Whoever loads the folder elsewhere has only this file between them and wrongly scaled values."""
    statistics = {"image_mean": [100, 200], "image_std": [10, 20], "do_rescale": False}
    processor = SegmentationImageProcessor(**statistics, bands=["red", "nir"], pixel_dtype="int16", pixel_range=[0, 9])
    processor.save_pretrained(tmp_path)
    loaded = AutoImageProcessor.from_pretrained(tmp_path, trust_remote_code=True)
    array = np.full((4, 6, 2), -50, dtype=np.int16)
    assert loaded(array, return_tensors="pt")["pixel_values"][0, :, 0, 0].tolist() == [-15.0, -12.5]
    assert loaded([array, array], return_tensors="pt")["pixel_values"].shape == (2, 2, 4, 6)
    assert torch.equal(
        loaded(torch.from_numpy(array).permute(2, 0, 1))["pixel_values"][0][0], torch.full((4, 6), -15.0)
    )
    for wrong in (array.astype(np.float32), array[..., :1], np.zeros((4, 6, 3), np.uint8)):
        with pytest.raises(ValueError, match=r"array \(H, W, 2\) of int16, the bands red, nir"):
            loaded(wrong)
