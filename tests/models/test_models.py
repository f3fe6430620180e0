"""Models: equality with the originals, any size, loss, loading and its errors."""

import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSemanticSegmentation

from helpers import golden_models
from hf_segkd.conversion import convert, recognize
from hf_segkd.loading.any_model import load_model
from hf_segkd.loading.native import expose_features
from hf_segkd.loading.pretrained import processor_of
from hf_segkd.models.espnet import ESPNetConfig, ESPNetForSemanticSegmentation

LABELS = {index: f"class_{index}" for index in range(6)}
SPECS = {
    "espnet": {"model_type": "espnet", "depths": [1, 2]},
    "espnet_c": {"model_type": "espnet", "depths": [1, 2], "use_decoder": False},
}


@pytest.fixture(params=SPECS)
def model(request):
    torch.manual_seed(0)
    return load_model(SPECS[request.param], id2label=LABELS)[0]


def images(*size):
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))


@pytest.mark.golden
def test_golden_folder_holds_networks():
    """With a wrong folder the comparison below would run over nothing and pass."""
    assert golden_models.names()


@pytest.mark.golden
@pytest.mark.parametrize("name", golden_models.parameters())
def test_converted_network_equals_the_original(name):
    """A wrong order of concatenation, dilation, eps or key map shows in no shape, only in the numbers."""
    case, expected = golden_models.read(name), golden_models.outputs(name)
    state_dict = golden_models.original_state_dict(case)
    model, family = expose_features(convert(state_dict)), recognize(state_dict)
    # SegFormer's fusing bias is folded into the norm after it.
    folded = sum(shape[0] for key, shape, _ in case["state_dict"] if key == "linear_fuse.0.bias")
    assert model.num_parameters() == case["params"] - folded
    for salt, size in zip(case["input_salts"], case["inputs"], strict=True):
        image = golden_models.image(salt, size)  # BGR, as the originals read
        if not family.processor.get("do_flip_channel_order"):
            image = image.flip(1)
        with torch.no_grad():
            output = model(pixel_values=image, output_hidden_states=True)
        compare(case, expected, f"{size[0]}x{size[1]}", output)


def compare(case, expected, prefix, output):
    fields = {"logits": output.logits, "aux_logits": output.aux_logits, "feature": output.features}
    absent = {f"{prefix}.{field}" for field, value in fields.items() if value is None}
    fields |= {f"stage{index}": state for index, state in enumerate(output.hidden_states, start=1)}
    fields["backbone"] = output.hidden_states[-1]
    stored = {key for key in expected if key.startswith(f"{prefix}.")}
    assert {f"{prefix}.logits", f"{prefix}.feature"} <= stored and not stored & absent
    for key in stored:
        value, entry = fields[key.removeprefix(f"{prefix}.")], case["tensors"][key]
        assert list(value.shape) == entry["shape"], key
        # 1e-4 of the largest value: float32 sums of another order give 2e-5 at worst.
        difference = (golden_models.sample(value, entry["stored"]) - expected[key].flatten()).abs().max()
        assert difference <= 1e-4 * entry["absmax"], key


def test_model_is_the_same_after_save_and_load(model, tmp_path):
    """Tensors made in `__init__` and not saved would come back as garbage."""
    model.save_pretrained(tmp_path)
    loaded = load_model(str(tmp_path), id2label=LABELS)[0]
    assert loaded.config.to_dict() == model.config.to_dict() | {"_name_or_path": str(tmp_path)}
    assert torch.equal(loaded(images(24, 32)).logits, model.eval()(images(24, 32)).logits)


def test_auto_class_knows_the_model(model, tmp_path):
    """Without registration a released folder opens with our own function only."""
    model.save_pretrained(tmp_path)
    assert type(AutoModelForSemanticSegmentation.from_pretrained(tmp_path)) is ESPNetForSemanticSegmentation


def test_every_parameter_gets_a_finite_gradient(model):
    """A layer left out of the graph would stay at its random weights; under DDP it would stop the run."""
    model(images(40, 56), labels=torch.randint(6, (2, 40, 56))).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("size", [(16, 24), (17, 23), (33, 62), (9, 131), (3, 1)])
def test_any_image_size_works(model, size):
    """Sizes of photographs are rarely multiples of 8; the original stops with a shape error."""
    with torch.no_grad():
        output = model.eval()(images(*size))
    stride_8 = [-(-length // 8) for length in size]
    assert list(output.logits.shape) == [2, 6, *(size if model.config.use_decoder else stride_8)]
    assert list(output.features.shape) == [2, 256, *stride_8]


def test_loss_is_the_cross_entropy_of_the_pixels_that_count(model):
    """Void pixels in the mean would make the loss depend on how much of the image is annotated."""
    labels = torch.randint(6, (2, 30, 22), generator=torch.Generator().manual_seed(2))
    labels[:, :10] = 255
    output = model(images(30, 22), labels=labels.to(torch.uint8))
    logits = F.interpolate(output.logits, size=(30, 22), mode="bilinear", align_corners=True)
    expected = F.cross_entropy(logits[:, :, 10:], labels[:, 10:])
    torch.testing.assert_close(output.loss, expected)


def test_loss_is_zero_with_a_graph_when_every_pixel_is_ignored(model):
    """A mean over no pixel is NaN, and one NaN step destroys the weights."""
    loss = model(images(16, 16), labels=torch.full((2, 16, 16), 255)).loss
    loss.backward()
    assert loss == 0
    assert all((parameter.grad == 0).all() for parameter in model.parameters())


def test_hidden_states_go_from_shallow_to_deep_and_end_with_the_features(model):
    """Losses address them by number: another order would compare other layers."""
    output = model(images(32, 48), output_hidden_states=True)
    assert [tuple(state.shape[1:]) for state in output.hidden_states] == [(19, 16, 24), (131, 8, 12), (256, 4, 6)]
    assert output.hidden_states[-1] is output.features
    assert model(images(32, 48)).hidden_states is None


def test_tuple_is_returned_on_request(model):
    """Tools of the ecosystem that export or trace models ask for tuples."""
    output = model(images(16, 16), return_dict=False)
    assert isinstance(output, tuple) and output[0].shape[:2] == (2, 6)


def test_untrained_convolutions_keep_the_variance_of_their_input():
    """The default of transformers, a deviation of 0.02 whatever the layer, makes a deep net start at a constant."""
    model = load_model({"model_type": "espnet"}, id2label=LABELS)[0]
    weight = model.encoder.stages[1].downsample.c1.weight
    assert weight.std().item() == pytest.approx((2 / 1.0625 / (131 * 9)) ** 0.5, rel=0.05)


def test_every_norm_has_the_epsilon_of_the_original(model):
    """One at torch's default moves the logits by 4e-5 of their range: too little for the comparison above."""
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert norms and {norm.eps for norm in norms} == {1e-3}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_sizes": (16, 4, 128)}, "hidden_sizes must be three widths"),
        ({"hidden_sizes": (16, 64)}, "hidden_sizes must be three widths"),
        ({"depths": (2, 0)}, "depths must be two numbers of blocks"),
    ],
)
def test_impossible_config_is_refused(fields, message):
    """A branch of zero channels builds, and fails much later."""
    with pytest.raises(ValueError, match=message):
        ESPNetConfig(**fields)


def test_decoder_refuses_fewer_than_five_classes():
    """Its last block shares the class channels among five branches."""
    with pytest.raises(ValueError, match="at least 5 classes, got 4. Set use_decoder=False"):
        ESPNetForSemanticSegmentation(ESPNetConfig(num_labels=4))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"model_type": "espnt"}, "Unknown model_type 'espnt'. Did you mean 'espnet'"),
        ({"model_type": "bert"}, "Unknown model_type 'bert'"),
        ({"depths": [1, 2]}, "needs a model_type, one of deeplabv3"),
        ({"model_type": "espnet", "depht": [1, 2]}, "no field depht. Did you mean 'depths'"),
        ({"model_type": "segformer", "depths": "all"}, "Wrong type in the fields of 'segformer'.*depths"),
        ({"model_type": "espnet", "num_labels": 7}, "num_labels is 7 but the dataset has 6 classes"),
    ],
)
def test_new_model_that_cannot_be_made_says_what_was_meant(spec, message):
    """A misspelled field would be kept by transformers as an attribute that nothing reads."""
    with pytest.raises(ValueError, match=message):
        load_model(spec, id2label=LABELS)


def test_absent_model_says_what_was_looked_for(model, tmp_path, monkeypatch):
    """The path of a teacher is the easiest thing to get wrong in a recipe."""
    message = "No model found at '.*'.*Looked for a folder with config.json and model.safetensors, then for a Hub id"
    with pytest.raises(ValueError, match=message):
        load_model(str(tmp_path / "no" / "such" / "folder"))
    with pytest.raises(ValueError, match=message):
        load_model(str(tmp_path))
    monkeypatch.setattr(model, "name_or_path", str(tmp_path / "no" / "such" / "folder"))
    with pytest.raises(ValueError, match=message):
        processor_of(model)
    (tmp_path / "model.pth").touch()
    with pytest.raises(ValueError, match="is damaged or no PyTorch checkpoint"):
        load_model(str(tmp_path / "model.pth"))


def test_weights_that_do_not_fill_the_model_are_refused(model, tmp_path):
    """transformers fills the gaps at random and goes on."""
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    key, norm = "encoder.stem.convolution.weight", "encoder.norms.0.normalization.bias"
    save_file({name: value for name, value in weights.items() if name != key}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=f"Missing: {key}. Of another shape: none"):
        load_model(str(tmp_path))
    save_file(weights | {norm: torch.zeros(3)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=f"Missing: none. Of another shape: {norm}"):
        load_model(str(tmp_path))


def test_damaged_weights_and_another_number_of_classes_are_refused(model, tmp_path):
    """A download cut short and a teacher of another dataset are told apart."""
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has 6 classes, the dataset 2"):
        load_model(str(tmp_path), id2label={0: "a", 1: "b"})
    content = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="are damaged"):
        load_model(str(tmp_path))


def test_processor_is_the_saved_one_or_the_kind_the_model_was_published_with(model, tmp_path):
    """ESPNet reads BGR bytes: an RGB processor costs many points of mIoU and no error."""
    processor = processor_of(model)
    assert processor.do_flip_channel_order and not processor.do_rescale and processor.align_corners
    assert processor.image_mean == [73.18188461, 82.93553322, 72.41519599]
    segformer = load_model({"model_type": "segformer"}, id2label=LABELS)[0]
    assert not processor_of(segformer).do_flip_channel_order and not processor_of(segformer).align_corners
    model.save_pretrained(tmp_path)
    assert load_model(str(tmp_path))[1].to_dict() == processor.to_dict()
    processor.image_std = [1.0, 1.0, 1.0]
    processor.save_pretrained(tmp_path)
    assert load_model(str(tmp_path))[1].image_std == [1.0, 1.0, 1.0]
    assert processor_of(load_model(str(tmp_path))[0]).image_std == [1.0, 1.0, 1.0]
    assert json.loads((tmp_path / "preprocessor_config.json").read_text())["do_flip_channel_order"]
