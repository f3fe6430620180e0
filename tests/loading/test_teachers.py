"""Any teacher: the native and universal models of transformers, their inputs, features, logits and sizes."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from transformers import (
    AutoModelForSemanticSegmentation,
    AutoModelForUniversalSegmentation,
    AutoProcessor,
    Dinov2Config,
    UperNetConfig,
)

from helpers.native_names import module_named, pil_processor
from helpers.teachers import ALL, CONFIGS, SEMANTIC, STAGES, native, needs_scipy, saved, trainer_for
from helpers.tiny import LABELS, TinyScenes
from hf_segkd.loading.any_model import load_model
from hf_segkd.loading.class_map import map_classes
from hf_segkd.loading.native import FEATURE_MODULES, expose_features
from hf_segkd.loading.patches import state_maps
from hf_segkd.loading.pretrained import processor_of
from hf_segkd.loading.universal import query_logits
from hf_segkd.models import PROCESSORS, InputNormalization, SegmentationImageProcessor, default_processor

LOGITS = {"task": {}, "kd": {}, "cwd_logits": {"type": "cwd", "layer": "logits", "weight": 3.0}}
FEATURES = {"fitnet": {}, "cwd": {"weight": 3.0}}
# As transformers pairs them; the Pil variants need no torchvision.
PROCESSOR_OF = {
    "beit": pil_processor("beit", "Beit"),
    "data2vec-vision": pil_processor("beit", "Beit"),
    "dpt": pil_processor("dpt", "DPT"),
    "eomt": pil_processor("eomt", "Eomt"),
    "mask2former": pil_processor("mask2former", "Mask2Former"),
    "maskformer": pil_processor("maskformer", "MaskFormer"),
    "mobilenet_v2": pil_processor("mobilenet_v2", "MobileNetV2"),
    "mobilevit": pil_processor("mobilevit", "MobileViT"),
    "mobilevitv2": pil_processor("mobilevit", "MobileViT"),
    "oneformer": partial(pil_processor("oneformer", "OneFormer"), repo_path=None, class_info_file=None),
    "segformer": pil_processor("segformer", "Segformer"),
    "upernet": pil_processor("segformer", "Segformer"),
}


def images(*size, batch=2):
    return torch.randint(0, 256, (batch, 3, *size), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def queries(height, width, classes=10, count=7):
    generator = torch.Generator().manual_seed(2)
    class_logits = 3 * torch.randn(2, count, classes + 1, generator=generator)
    return class_logits, 5 * torch.randn(2, count, height, width, generator=generator)


@pytest.mark.parametrize("name", ALL)
def test_every_kind_of_teacher_distils(name, tmp_path):
    """Logits of every stride, from a folder of save_pretrained; features too where the classifier's map is known."""
    teacher = load_model(saved(name, LABELS, tmp_path / "teacher"))[0]
    losses = LOGITS | (FEATURES if name in FEATURE_MODULES else {})
    trainer = trainer_for(tmp_path / "run", teacher, losses)
    before = {key: value.clone() for key, value in trainer.student.state_dict().items()}
    trainer.train()
    entry = trainer.state.log_history[0]
    assert all(entry[f"loss_{loss}"] > 0 for loss in losses)
    assert any(not torch.equal(before[key], value) for key, value in trainer.student.state_dict().items())


# ---- features and hidden states ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(set(FEATURE_MODULES) & set(SEMANTIC)))
def test_features_of_native_models_are_what_their_classifier_reads(name):
    """The papers distill that map; one layer earlier has as plausible a shape."""
    model = expose_features(native(name, LABELS))
    head = {"dpt": "head.head.4", "upernet": "decode_head.classifier"}
    read = next(x for x, _ in model.named_modules() if x == head.get(name) or x.endswith("head.classifier"))
    seen = []
    model.get_submodule(read).register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    output = model(torch.rand(2, 3, 64, 64))
    assert torch.equal(output.features, seen[0]) and output.features.ndim == 4


@pytest.mark.parametrize("name", ["beit", "dpt"])
def test_token_sequences_become_the_maps_that_the_decoder_reads(name):
    """(B, N, C) would be taken for a map's (B, C, N); a transposed grid would compare the wrong places."""
    model = expose_features(native(name, LABELS))
    read = "neck.reassemble_stage.readout_projects.0" if name == "dpt" else module_named(model, "fpn1")
    seen = []
    model.get_submodule(read).register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    states = model(torch.rand(2, 3, 64, 64), output_hidden_states=True).hidden_states
    assert len(states) == 5 and all(state.shape == (2, 16, 4, 4) for state in states)
    if name == "dpt":  # sequences with the class token beside each patch
        assert torch.equal(states[1].flatten(2).transpose(1, 2), seen[0][..., :16])
    else:
        assert torch.equal(states[0], seen[0])


def test_patches_are_laid_out_row_by_row_after_the_other_tokens():
    """Off by the class token, every map would be shifted by one patch."""
    config = native("beit", LABELS).config
    tokens = torch.tensor([99.0, *range(8)]).view(1, 9, 1)
    (found,) = state_maps((tokens,), config, (32, 64))
    assert found[0, 0].tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_sequences_of_unknown_order_are_left_out():
    """A loss that takes hidden_states.2 would find N channels of C places."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "image_size": 56, "patch_size": 14}
    config = UperNetConfig(backbone_config=Dinov2Config(**sizes, **STAGES), hidden_size=16, pool_scales=[1, 2])
    model = expose_features(AutoModelForSemanticSegmentation.from_config(config).eval())
    output = model(torch.rand(1, 3, 56, 70), output_hidden_states=True)
    assert output.hidden_states is None and output.features.shape == (1, 16, 4, 5)


def test_module_of_a_recipe_is_checked_before_training(tmp_path):
    """Otherwise the first step of a queued job would be its last."""
    teacher = native("segformer", LABELS)
    expose_features(teacher, module_named(teacher, ".mlp"))
    with pytest.raises(ValueError, match=r"features must be a map of shape \(B, C, h, w\)"):
        trainer_for(tmp_path, teacher, LOGITS | FEATURES)


@needs_scipy
def test_universal_model_gives_maps_and_features_where_named(tmp_path):
    """Its pixel embeddings are what its masks read; guessing them would be our invention."""
    model = expose_features(native("mask2former", LABELS))
    output = model(torch.rand(1, 3, 64, 96), output_hidden_states=True)
    assert output.features is None
    shapes = [tuple(state.shape[1:]) for state in output.hidden_states]
    assert shapes == [(8, 16, 24), (16, 8, 12), (32, 4, 6), (64, 2, 3)]
    model = expose_features(model, "model.pixel_level_module.decoder.mask_projection")
    assert model(torch.rand(1, 3, 64, 96)).features.shape == (1, 32, 16, 24)


# ---- universal models ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mask2former", "maskformer", "oneformer", "eomt"])
def test_query_logits_have_the_processors_best_class(name):
    """The teacher would otherwise not be the model whose score is published."""
    class_logits, mask_logits = queries(384, 384)  # the size to which Mask2Former's processor brings all masks
    output = SimpleNamespace(class_queries_logits=class_logits, masks_queries_logits=mask_logits, patch_offsets=None)
    options = {"size": {"shortest_edge": 384, "longest_edge": 384}} if name == "eomt" else {}
    sizes = [(384, 384)] * 2 if name == "eomt" else None  # its processor cannot do without
    found = PROCESSOR_OF[name](**options).post_process_semantic_segmentation(output, sizes)
    assert torch.equal(query_logits(class_logits, mask_logits).argmax(dim=1), torch.stack(list(found)))


def test_query_logits_softmax_is_the_normalized_score():
    """By hand: the query is class 0 with 1/2, class 1 with 1/4, nothing with 1/4; the other one class 1 for sure."""
    class_logits = torch.tensor([[[0.5, 0.25, 0.25], [0.0, 1.0, 0.0]]]).log()
    mask_logits = torch.tensor([0.8, 0.1]).logit().view(1, 2, 1, 1)
    scores = torch.tensor([0.5 * 0.8, 0.25 * 0.8 + 0.1])
    found = query_logits(class_logits, mask_logits).softmax(dim=1).flatten()
    torch.testing.assert_close(found, scores / scores.sum())


def test_query_logits_are_finite_where_no_query_claims_the_pixel():
    """One logarithm of zero and every loss of the batch is NaN."""
    class_logits, mask_logits = queries(4, 4)
    assert query_logits(class_logits, torch.full_like(mask_logits, -1e4)).isfinite().all()


def test_query_logits_are_summed_in_float32_under_autocast():
    """Sums over a hundred queries in bf16 move the teacher's distribution."""
    class_logits, mask_logits = queries(4, 4)
    scores = torch.einsum("bqk,bqhw->bkhw", class_logits.softmax(dim=-1)[..., :-1], mask_logits.sigmoid())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = query_logits(class_logits, mask_logits)
    torch.testing.assert_close(found, (scores / scores.sum(dim=1, keepdim=True)).log(), atol=1e-5, rtol=1e-5)


@needs_scipy
def test_oneformer_is_asked_for_a_semantic_map(tmp_path):
    """Its processor asks in words; other words, or other padding, are another model."""
    folder = saved("oneformer", LABELS, tmp_path)
    model, image = load_model(folder)[0], images(64, 64, batch=1)
    processor = AutoProcessor.from_pretrained(folder)
    inputs = processor(image[0].numpy(), ["semantic"], do_resize=False, return_tensors="pt")
    plain = AutoModelForUniversalSegmentation.from_pretrained(folder).eval()(**inputs)
    expected = query_logits(plain.class_queries_logits, plain.masks_queries_logits)
    normalization = InputNormalization.from_processor(processor_of(model))
    torch.testing.assert_close(model(pixel_values=normalization(image)).logits, expected, atol=1e-5, rtol=1e-5)


@needs_scipy
def test_oneformer_without_its_tokenizer_is_refused(tmp_path):
    """transformers would ask the Hub for it, or spell every word as unknown."""
    native("oneformer", LABELS).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no tokenizer at .* OneFormerProcessor.save_pretrained"):
        load_model(str(tmp_path))


@needs_scipy
def test_universal_model_keeps_its_classes_when_its_features_move():
    """Queries have no classes to choose from before they are made logits."""
    model = map_classes(expose_features(native("mask2former", {0: "road", 1: "sky"})), ("sky", "road"))
    image = torch.rand(1, 3, 64, 64)
    before = model(image).logits
    moved = expose_features(model, "model.pixel_level_module.decoder.mask_projection")
    assert torch.equal(moved(image).logits, before)


@needs_scipy
def test_missing_package_is_named(tmp_path, monkeypatch):
    """scipy is only asked for deep inside a constructor."""
    folder = saved("mask2former", LABELS, tmp_path)

    def refuse(*args, **kwargs):
        raise ImportError("Mask2FormerLoss requires the scipy library")

    monkeypatch.setattr(AutoModelForUniversalSegmentation, "from_pretrained", refuse)
    with pytest.raises(ValueError, match="needs a package that is missing: .*scipy"):
        load_model(folder)


# ---- sizes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "size", "reads"),
    [
        ("dpt", (32, 128), "square images only"),
        ("data2vec-vision", (32, 128), "images of 64x64 pixels only"),
        ("beit", (64, 72), "multiples of its patch size, 16 pixels"),
        pytest.param("eomt", (32, 128), "images of 64x64 pixels only", marks=needs_scipy),
    ],
)
def test_sizes_that_a_teacher_cannot_read_are_refused(name, size, reads):
    """32x128 has as many patches as 64x64: DPT and Data2Vec would return a scrambled map without complaint."""
    with pytest.raises(ValueError, match=f"{reads}, got {size[0]}x{size[1]}. Set crop_size"):
        expose_features(native(name, LABELS))(torch.rand(1, 3, *size))


# ---- inputs --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(PROCESSOR_OF))
def test_normalization_equals_the_models_own_processor(name):
    """Wrong statistics make a worse teacher, never an error."""
    image, processor = images(32, 48, batch=1), PROCESSOR_OF[name](do_resize=False, do_center_crop=False)
    expected = processor(image[0], return_tensors="pt", input_data_format="channels_first")["pixel_values"]
    found = InputNormalization.from_processor(processor)(image)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", sorted(PROCESSOR_OF))
def test_teacher_saved_without_processor_gets_its_kinds_own(name):
    """save_pretrained of a model alone does not write one: BEiT would be shown ImageNet's statistics."""
    image = images(8, 8)
    expected = InputNormalization.from_processor(PROCESSOR_OF[name]())
    found = InputNormalization.from_processor(default_processor(CONFIGS[name]()))
    assert torch.equal(found(image), expected(image))
    assert {kind for kind in PROCESSORS if not kind.startswith("segkd_")} <= set(PROCESSOR_OF)


class Seen(torch.nn.Module):
    """A loss that remembers what it is given."""

    def forward(self, student, teacher, labels):
        self.teacher = teacher
        return (student.logits**2).mean()


def test_teacher_sees_its_own_order_mean_and_std_inside_the_trainer(tmp_path):
    """The student's normalization would make it a worse teacher without a word."""
    processor = SegmentationImageProcessor(
        do_flip_channel_order=True, image_mean=[0.1, 0.3, 0.5], image_std=[0.5, 0.7, 0.9]
    )
    native("segformer", LABELS).save_pretrained(tmp_path / "teacher")
    processor.save_pretrained(tmp_path / "teacher")
    teacher, seen = load_model(str(tmp_path / "teacher"))[0], Seen()
    trainer = trainer_for(tmp_path / "run", teacher, {"task": {}}, own={"seen": seen})
    batch = trainer.data_collator([TinyScenes(size=64)[index] for index in range(2)])
    trainer.compute_loss(trainer.model, batch)
    alone = load_model(str(tmp_path / "teacher"))[0]
    with torch.no_grad():
        expected = alone(**processor(batch["pixel_values"], return_tensors="pt")).logits
    assert torch.equal(seen.teacher.logits, expected)
