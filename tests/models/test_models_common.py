"""What every model of the library does, whatever its architecture and backbone."""

import copy

import pytest
import torch
from transformers import AutoModelForSemanticSegmentation

from helpers.checkpointing import enable_checkpointing
from hf_segkd.loading.any_model import load_model
from hf_segkd.models import BACKBONES, MODELS
from hf_segkd.training.argument_checks import NOT_COMPILED

LABELS = {index: f"class_{index}" for index in range(6)}
RESNET = {"model_type": "segkd_resnet", "stem_width": 4, "depths": [1, 1, 1, 1], "hidden_sizes": [8, 8, 12, 16]}


def cases():
    """Each architecture, small, and DeepLabV3 on one backbone of each other kind at its own size."""
    specs = {}
    for config_class in MODELS:
        small = {"hidden_size": 8, "backbone": RESNET} if "backbone" in config_class.attribute_map else {}
        specs[config_class.model_type] = {"model_type": config_class.model_type} | small
    for name, fields in BACKBONES.items():
        if fields["model_type"] not in {RESNET["model_type"], *specs}:
            specs[fields["model_type"]] = {"model_type": "deeplabv3", "backbone": name, "hidden_size": 8}
    return specs


SPECS = cases()


def build(name):
    torch.manual_seed(0)
    return load_model(SPECS[name], id2label=LABELS)[0]


@pytest.fixture(params=SPECS)
def model(request):
    return build(request.param)


def images(*size):
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))


def labels(*size):
    return torch.randint(6, (2, *size), generator=torch.Generator().manual_seed(2))


def step(model, size=(40, 56)):
    """One training step; loss, gradients and buffers."""
    torch.manual_seed(3)  # dropout
    loss = model.train()(images(*size), labels=labels(*size)).loss
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    return loss.detach(), gradients, dict(model.named_buffers())


def test_model_is_the_same_after_save_and_load(model, tmp_path):
    """Tensors made in `__init__` and not saved would come back as garbage; running statistics are no parameters."""
    step(model)
    model.eval().save_pretrained(tmp_path)
    loaded = AutoModelForSemanticSegmentation.from_pretrained(tmp_path)
    assert type(loaded) is MODELS[type(model.config)]
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())
    assert {name for name, _ in model.named_buffers()} <= set(model.state_dict())
    with torch.no_grad():
        # Not bit for bit: where the weights lie in memory decides which kernel multiplies them.
        torch.testing.assert_close(loaded(images(24, 32)).logits, model(images(24, 32)).logits)


def test_every_parameter_gets_a_finite_gradient(model):
    """A layer left out of the graph would stay at its random weights; under DDP it would stop the run."""
    _, gradients, buffers = step(model)
    for name, gradient in gradients.items():
        assert gradient is not None and gradient.isfinite().all(), name
    assert all(value.isfinite().all() for value in buffers.values())


def test_checkpointing_changes_neither_gradients_nor_statistics(model):
    """The layers run twice: dropout must repeat itself, and batch norms must not count twice."""
    if not model.supports_gradient_checkpointing:
        pytest.skip("has no gradient checkpointing")
    other = copy.deepcopy(model)
    enable_checkpointing(other, {"use_reentrant": False})
    plain, checkpointed = step(model), step(other)
    assert torch.equal(plain[0], checkpointed[0])
    for first, second in zip(plain[1:], checkpointed[1:], strict=True):
        for name, value in first.items():
            torch.testing.assert_close(second[name], value, rtol=1e-6, atol=1e-8, msg=name)


def test_hidden_states_come_on_request_and_the_fields_have_their_shapes(model):
    """Losses address them by number, from shallow to deep."""
    with torch.no_grad():
        output = model.eval()(images(64, 96), output_hidden_states=True)
    heights = [state.shape[-2] for state in output.hidden_states]
    assert heights == sorted(heights, reverse=True)
    assert output.logits.shape[:2] == (2, 6) and output.features.shape[0] == 2
    assert model(images(64, 96)).hidden_states is None


@pytest.mark.parametrize("size", [(17, 23), (33, 62), (9, 131), (64, 64)])
def test_any_image_size_works(model, size):
    """Sizes of photographs are rarely multiples of 8."""
    loss = model.train()(images(*size), labels=labels(*size)).loss
    assert loss.isfinite()
    with torch.no_grad():
        output = model.eval()(images(*size), return_dict=False)
    assert isinstance(output, tuple) and output[0].isfinite().all()


def test_norms_start_neutral_and_biases_at_zero(model):
    """A model built on the meta device gets whatever `_init_weights` leaves out as garbage."""
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.BatchNorm2d | torch.nn.LayerNorm):
            assert (module.weight == 1).all() and (module.bias == 0).all(), name
        if isinstance(module, torch.nn.BatchNorm2d):
            assert (module.running_mean == 0).all() and (module.running_var == 1).all(), name
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            assert 0 < module.weight.std() < 2, name
            assert module.bias is None or (module.bias == 0).all(), name


def test_channels_last_gives_the_same(model):
    """The faster layout of GPUs: a view that forgets it would crash or copy."""
    model = model.double().eval()  # sums of another order: float64 keeps them apart from mistakes
    other = copy.deepcopy(model).to(memory_format=torch.channels_last)
    pixel_values = images(40, 56).double()
    with torch.no_grad():
        logits = other(pixel_values.contiguous(memory_format=torch.channels_last)).logits
        torch.testing.assert_close(logits, model(pixel_values).logits)


def test_half_precision_stays_finite(model):
    """bf16 autocast is how big students train."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model.train()(images(40, 56), labels=labels(40, 56))
    output.loss.backward()
    assert output.loss.isfinite() and output.logits.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in SPECS if name not in NOT_COMPILED])
def test_compiled_model_trains_like_the_plain_one(name):
    """Two steps of inductor's code: a graph that forgets running statistics shows in the second.

    In float64: in float32 the batch norms over few pixels make more of one changed last bit than inductor does.
    """
    torch._dynamo.reset()
    results = []
    for compiled in (False, True):
        model = build(name).double()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout | torch.nn.Dropout2d):
                module.p = 0.0  # inductor draws other random numbers
        run = torch.compile(model) if compiled else model
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        for _ in range(2):
            optimizer.zero_grad()
            loss = run.train()(images(40, 56).double(), labels=labels(40, 56)).loss
            loss.backward()
            optimizer.step()
        results.append((loss.detach(), model.state_dict()))
    (loss, state), (compiled_loss, compiled_state) = results
    torch.testing.assert_close(compiled_loss, loss, rtol=1e-10, atol=0)
    for key, value in state.items():
        torch.testing.assert_close(compiled_state[key], value, rtol=1e-6, atol=1e-8, msg=key)
