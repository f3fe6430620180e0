"""The output every model returns: casting, hooks on native models, shapes found by running once."""

import copy

import pytest
import torch
from transformers import MobileViTConfig, MobileViTForSemanticSegmentation, SegformerForSemanticSegmentation

from helpers.native_names import module_named
from hf_segkd.loading.any_model import load_model
from hf_segkd.loading.native import FEATURE_MODULES, expose_features, output_shapes
from hf_segkd.models import SegmentationOutput

LABELS = {index: f"class_{index}" for index in range(6)}
SEGFORMER = {
    "model_type": "segformer",
    "hidden_sizes": [8, 8, 16, 16],
    "depths": [1, 1, 1, 1],
    "num_attention_heads": [1, 1, 2, 2],
    "decoder_hidden_size": 12,
}


@pytest.fixture(params=[True, False], ids=["espnet", "espnet_c"])
def model(request):
    return load_model({"model_type": "espnet", "depths": [1, 2], "use_decoder": request.param}, id2label=LABELS)[0]


@pytest.fixture
def segformer():
    torch.manual_seed(0)
    return load_model(SEGFORMER, id2label=LABELS)[0]


def images(*size):
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))


def test_float_casts_half_precision_and_keeps_float64_and_the_graph():
    """Losses need float32 under autocast, float64 in exact tests, and the gradient in both."""
    logits = torch.zeros(1, 2, 3, 3, dtype=torch.bfloat16, requires_grad=True)
    states = (torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float16))
    output = SegmentationOutput(logits=logits * 2, hidden_states=states).float()
    assert output.logits.dtype == torch.float32 and output.features is None
    assert [state.dtype for state in output.hidden_states] == [torch.float64, torch.float32]
    output.logits.sum().backward()
    assert (logits.grad == 2).all()


def test_segformer_returns_the_map_its_classifier_reads(segformer):
    """Features of another layer would be distilled without an error."""
    output = segformer.eval()(images(32, 64), output_hidden_states=True)
    assert isinstance(output, SegmentationOutput)
    assert output.features.shape == (2, 12, 8, 16) and len(output.hidden_states) == 4
    torch.testing.assert_close(segformer.decode_head.classifier(output.features), output.logits)


def test_exposed_segformer_is_saved_as_a_plain_one(segformer, tmp_path):
    """A distilled SegFormer must open without this library."""
    segformer.save_pretrained(tmp_path)
    plain, report = SegformerForSemanticSegmentation.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert torch.equal(plain.eval()(images(32, 32)).logits, segformer.eval()(images(32, 32)).logits)


def test_features_are_exposed_once_and_can_be_moved(segformer):
    """Repeated calls would add hook upon hook; a recipe's own module must replace the default one."""
    expose_features(expose_features(segformer))
    assert len(segformer._forward_hooks) == 1
    moved = expose_features(segformer, "decode_head.batch_norm")
    assert len(segformer._forward_hooks) == 1 and not segformer.decode_head.activation._forward_hooks
    assert (moved.eval()(images(32, 32)).features < 0).any()


def test_copy_of_an_exposed_model_keeps_its_own_features(segformer):
    """A shared hook would mix the features of a teacher and the student copied from it."""
    twin = copy.deepcopy(segformer).eval()
    with torch.no_grad():
        twin.decode_head.batch_norm.bias += 1
        assert not torch.equal(twin(images(32, 32)).features, segformer.eval()(images(32, 32)).features)
    assert twin._feature_hook is not segformer._feature_hook


def test_own_model_is_returned_unchanged(model):
    """It returns its features already."""
    assert expose_features(model) is model and not model._forward_hooks


def test_other_native_model_has_no_features_until_a_module_is_named(monkeypatch):
    """Without them logits can still be distilled; guessing a layer would compare something arbitrary."""
    monkeypatch.delitem(FEATURE_MODULES, "mobilevit")
    config = MobileViTConfig(
        hidden_sizes=[8, 8, 8], neck_hidden_sizes=[4, 4, 4, 4, 4, 4, 16], aspp_out_channels=8, num_labels=6
    )
    model = expose_features(MobileViTForSemanticSegmentation(config).eval())
    assert model(images(64, 64)).features is None
    model = expose_features(model, "segmentation_head.aspp.project")
    assert model(images(64, 64)).features.shape[1] == 8


def test_unknown_module_names_the_closest(segformer):
    """A misspelled path must not end in a traceback from inside torch."""
    with pytest.raises(ValueError, match="no module 'decode_head.activations'.*decode_head.activation"):
        expose_features(segformer, "decode_head.activations")


def test_module_that_returns_no_map_is_refused(segformer):
    """Token sequences (B, N, C) would be read as maps with N channels."""
    expose_features(segformer, module_named(segformer, ".mlp"))
    with pytest.raises(ValueError, match=r"features must be a map of shape \(B, C, h, w\)"):
        segformer(images(32, 32))


def test_output_shapes_lists_what_the_model_returns(model):
    """Projectors are built from these shapes."""
    shapes = output_shapes(model, (64, 96))
    logits = (1, 6, 64, 96) if model.config.use_decoder else (1, 6, 8, 12)
    expected = {"logits": logits, "features": (1, 256, 8, 12)}
    expected |= {"aux_logits": (1, 6, 8, 12)} if model.config.use_decoder else {}
    expected |= {
        "hidden_states.0": (1, 19, 32, 48),
        "hidden_states.1": (1, 131, 16, 24),
        "hidden_states.2": (1, 256, 8, 12),
    }
    assert {name: tuple(shape) for name, shape in shapes.items()} == expected


def test_output_shapes_leaves_the_model_as_it_was(model):
    """A frozen norm put back in training mode, or statistics of a black image, would spoil the run silently."""
    model.train().encoder.stem.eval()
    before = {name: module.training for name, module in model.named_modules()}
    state, generator = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    output_shapes(model, (32, 32))
    assert {name: module.training for name, module in model.named_modules()} == before
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)
