"""SegFormer checkpoints of CIRKD as transformers' own class."""

import pytest
import torch
from transformers import SegformerForSemanticSegmentation

from helpers import golden_models
from hf_segkd.conversion import convert, converted_processor, recognize
from hf_segkd.conversion.segformer import config
from hf_segkd.loading.any_model import load_model
from hf_segkd.loading.pretrained import processor_of

B0 = "cirkd-segformer-MiT_B0-19"


@pytest.fixture(scope="module")
def original():
    """State dict of a SegFormer-B0 with 19 classes, in original names."""
    return golden_models.original_state_dict(golden_models.read(B0, golden_models.OWN))


def images(*size):
    return torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(1))


def test_converted_model_is_the_same_after_save_and_load(original, tmp_path):
    """transformers writes older names than its modules have: a plain load of the file leaves most out."""
    model = convert(original)
    model.save_pretrained(tmp_path)
    loaded = load_model(str(tmp_path))[0]
    assert type(loaded) is type(model) is SegformerForSemanticSegmentation
    expected = model.state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in loaded.state_dict().items())
    with torch.no_grad():
        assert torch.equal(loaded(pixel_values=images(64, 96)).logits, model(pixel_values=images(64, 96)).logits)


def test_logits_are_upsampled_as_in_the_original_also_after_loading(original, tmp_path):
    """transformers' own processor and loss have align_corners=False: other predictions than the published ones."""
    model = convert(original)
    model.save_pretrained(tmp_path)
    assert processor_of(model).align_corners and load_model(str(tmp_path))[1].align_corners


def test_rgb_processor_gives_what_the_original_saw(original):
    """A forgotten or doubled flip costs many points of mIoU and no error."""
    model = convert(original)
    weight = next(model.parameters())
    assert torch.equal(weight.flip(1), original["patch_embed1.proj.weight"])
    image = torch.randint(256, (3, 16, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    processor = converted_processor(recognize(original), model.config)
    assert processor.align_corners
    pixel_values = processor(image, return_tensors="pt").pixel_values
    bgr = image.flip(0)[None] - torch.tensor([104.00698793, 116.66876762, 122.67891434]).view(1, 3, 1, 1)
    torch.testing.assert_close(pixel_values.flip(1), bgr)


def test_bias_of_the_fusing_convolution_moves_into_the_norm(original):
    """transformers' convolution has none: dropped, the logits move by a tenth of their range."""
    head = convert(original).decode_head
    x = torch.randn(2, head.linear_fuse.in_channels, 3, 4, generator=torch.Generator().manual_seed(3))
    norm = {name: original[f"linear_fuse.1.{name}"] for name in ("running_mean", "running_var", "weight", "bias")}
    fused = torch.nn.functional.conv2d(x, original["linear_fuse.0.weight"], original["linear_fuse.0.bias"])
    expected = torch.nn.functional.batch_norm(fused, **norm, eps=1e-5)
    torch.testing.assert_close(head.batch_norm(head.linear_fuse(x)), expected, rtol=1e-4, atol=1e-5)


def test_config_is_read_from_the_shapes(original):
    """File names lie about sizes and classes."""
    read = config(original)
    assert (read.num_labels, read.decoder_hidden_size, read.classifier_dropout_prob) == (19, 256, 0.0)
    assert (read.depths, read.hidden_sizes, read.sr_ratios) == ([2, 2, 2, 2], [32, 64, 160, 256], [8, 4, 2, 1])
    other = dict(original) | {"linear_pred.weight": torch.zeros(7, 256, 1, 1), "linear_pred.bias": torch.zeros(7)}
    other |= {f"block3.2.{key[9:]}": value for key, value in original.items() if key.startswith("block3.0.")}
    model = convert(other)
    assert (model.config.num_labels, model.config.depths) == (7, [2, 2, 3, 2])


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("linear_fuse.0.bias", "looks like SegFormer but lacks linear_fuse.0.bias"),
        ("patch_embed1.proj.weight", "looks like SegFormer but lacks patch_embed1.proj.weight"),
        (
            "block2.1.attn.kv.weight",
            r"Missing .*blocks?(\.1)+\.attention\.(k_proj|self\.key)\.weight, .*\.(v_proj|self\.value)\.weight",
        ),
        ("linear_fuse.1.running_mean", "Missing .*decode_head.batch_norm.running_mean"),
    ],
)
def test_missing_tensor_is_named(original, key, message):
    """Also those that an operation splits or folds: a KeyError would say nothing about the file."""
    with pytest.raises(ValueError, match=message):
        convert({name: value for name, value in original.items() if name != key})
