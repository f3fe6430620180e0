"""Students by name, and students from models of other classes."""

import logging

import pytest
import torch
from transformers import (
    ResNetConfig,
    ResNetForImageClassification,
    SegformerConfig,
    SegformerForImageClassification,
    SegformerForSemanticSegmentation,
)

from dataset_builders import DATASETS
from helpers import golden_models
from helpers.commands import distill, recipe, refusal
from helpers.paths import SHARED
from helpers.tiny import LABELS, TINY
from hf_segkd.commands import recipes
from hf_segkd.conversion.imagenet import load_backbone_weights
from hf_segkd.loading.any_model import load_model
from hf_segkd.loading.student_names import STUDENTS, student_fields
from hf_segkd.loading.students import class_axes, give_classes, load_student, resolve_student
from hf_segkd.models import BACKBONES

pytestmark = pytest.mark.usefixtures("module_without_figures")

OWN = {0: "crack", 1: "Sky", 2: "roads", 3: "rust"}
SEGFORMER = {"hidden_sizes": [8] * 4, "depths": [1] * 4, "num_attention_heads": [1] * 4, "decoder_hidden_size": 8}
RESNET = {"model_type": "segkd_resnet", "stem_width": 8, "depths": [1] * 4, "hidden_sizes": [8] * 4}
NETWORKS = [
    {"model_type": "segformer", **SEGFORMER},
    {"model_type": "espnet", "hidden_sizes": [4, 10, 10], "depths": [1, 1]},
    {"model_type": "espnet", "hidden_sizes": [4, 10, 10], "depths": [1, 1], "use_decoder": False},
    {"model_type": "espnetv2", "width": 0.5, "depths": [1, 1]},
    *({"model_type": head, "backbone": RESNET, "hidden_size": 8} for head in ("deeplabv3", "pspnet", "upernet")),
]


@pytest.mark.parametrize("spec", NETWORKS, ids=lambda spec: spec["model_type"])
def test_a_trained_model_keeps_all_but_what_belongs_to_its_classes(spec):
    """A student of another benchmark would else be refused, or start again from random weights."""
    model, _ = load_model(spec, DATASETS["cityscapes"].id2label)
    axes = class_axes(model)
    new = give_classes(model, {index: f"own {index}" for index in range(6)})
    trained = model.state_dict()
    kept = [key for key in trained if key not in axes]
    assert kept and len(kept) > len(axes) / 2
    for key, value in new.state_dict().items():
        same = value.shape == trained[key].shape and torch.equal(value, trained[key])
        constant = value.unique().numel() == 1  # zeros and ones of norms and biases are the same when they are new
        assert same or key in axes, key
        assert not same or key not in axes or constant, key
    assert new(pixel_values=torch.zeros(1, 3, 64, 64)).logits.shape[1] == 6


@pytest.mark.parametrize("spec", NETWORKS, ids=lambda spec: spec["model_type"])
def test_classes_of_the_same_name_keep_their_rows(spec, caplog):
    """`sky` of Cityscapes knows more of `Sky` than random numbers do; the order of classes must not matter."""
    caplog.set_level(logging.INFO, "hf_segkd")
    model, _ = load_model(spec, DATASETS["cityscapes"].id2label)
    names = [*DATASETS["cityscapes"].labels]
    new = give_classes(model, OWN | {4: "car", 5: "pole"}, "somewhere")
    pairs = {1: names.index("sky"), 2: names.index("road"), 4: names.index("car"), 5: names.index("pole")}
    trained, found = model.state_dict(), new.state_dict()
    counting = {key: axes for key, axes in class_axes(model).items() if axes}
    assert counting
    for key, axes in counting.items():
        others = [axis for axis in range(trained[key].ndim) if axis not in axes]
        if any(trained[key].shape[axis] != found[key].shape[axis] for axis in others):
            continue  # its other axes depend on the number of classes too
        for row, source in pairs.items():
            value = found[key].index_select(axes[0], torch.tensor([row]))
            wanted = trained[key].index_select(axes[0], torch.tensor([source]))
            if len(axes) == 2:
                value = value.index_select(axes[1], torch.tensor([*pairs]))
                wanted = wanted.index_select(axes[1], torch.tensor([*pairs.values()]))
            assert torch.equal(value, wanted), key
    assert "from somewhere: other classes" in caplog.text and "rows of 4 of 6 classes are taken by name" in caplog.text
    assert "2 start anew (crack, rust)" in caplog.text


def test_a_released_espnetv2_becomes_a_student_of_other_classes(caplog):
    """The original file, whose names are Cityscapes', for CamVid: six classes agree, five do not."""
    file = SHARED / "checkpoints" / "espnetv2" / "espnetv2_s_0.5_city_512x256.pth"
    if not file.is_file():
        pytest.skip("needs the released files beside the repository: ../shared/checkpoints")
    caplog.set_level(logging.INFO, "hf_segkd")
    labels = DATASETS["camvid"].id2label
    student, _ = load_student(str(file), labels)
    trained, _ = load_model(str(file))
    axes = class_axes(trained)
    kept = [key for key in trained.state_dict() if key not in axes]
    assert len(kept) > 300 and all(torch.equal(student.state_dict()[x], trained.state_dict()[x]) for x in kept)
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert student.eval()(pixel_values=image).logits.shape[1] == len(labels) == 11
    assert "rows of 6 of 11 classes are taken by name (Sky, Building, Pole, Road, Fence, Car)" in caplog.text
    assert "5 start anew (Pavement, Tree, SignSymbol, Pedestrian, Bicyclist)" in caplog.text


def test_the_same_classes_in_another_order_give_the_same_scores_in_that_order():
    """Numbers of classes are equal there, and a check of shapes alone would let them pass unturned."""
    model, _ = load_model({**TINY, "use_decoder": False}, LABELS)
    turned = give_classes(model.eval(), {9 - index: name for index, name in LABELS.items()})
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(turned(pixel_values=image).logits, model(pixel_values=image).logits.flip(1))


def test_placeholder_names_of_as_many_classes_are_the_same_classes():
    """LABEL_0 says nothing: a folder without names is taken as what it was given for."""
    model, _ = load_model(TINY, {index: f"LABEL_{index}" for index in range(len(LABELS))})
    assert give_classes(model, LABELS) is model and model.config.id2label == LABELS


def test_a_student_of_transformers_is_given_own_classes(tmp_path):
    """The id that most people type: a SegFormer of ADE20K's 150 classes."""
    config = SegformerConfig(**SEGFORMER, id2label=dict(enumerate(DATASETS["ade20k"].labels)), label2id={})
    SegformerForSemanticSegmentation(config).save_pretrained(tmp_path / "ade")
    report = distill.main([recipe(tmp_path, student=str(tmp_path / "ade")), "--output_dir", str(tmp_path / "run")])
    model, _ = load_model(str(tmp_path / "run"))
    assert [*report["per_class_iou"]] == [*LABELS.values()] == [*model.config.id2label.values()]


def test_an_original_checkpoint_is_given_own_classes(tmp_path):
    """ESPNetv2's Cityscapes files have 20 classes; 6 of CamVid's 11 are among them."""
    case = golden_models.read("skd19-espnet-p2q8-11", golden_models.OWN)
    torch.save(golden_models.original_state_dict(case), tmp_path / "espnet.pth")
    model, _ = load_student(str(tmp_path / "espnet.pth"), OWN | {4: "pole"})
    assert model.config.num_labels == 5 and torch.isfinite(model(pixel_values=torch.rand(1, 3, 32, 32)).logits).all()


@pytest.mark.parametrize("name", STUDENTS)
def test_every_name_makes_a_student(name):
    """A name in the list that fails is worse than none; a large one is built without content."""
    with torch.device("meta"):
        model, processor = load_student(name, LABELS)
    assert model.config.num_labels == len(LABELS) and processor.image_mean is not None


def test_every_backbone_of_the_papers_has_a_name():
    """A new backbone must not be reachable by its config alone."""
    named = {fields.get("backbone") for fields in STUDENTS.values()}
    assert {name for name in BACKBONES if not name.endswith(("ssseg", "vanilla"))} <= named


@pytest.mark.parametrize(
    "typed, meant",
    [
        ("SegFormer_B0", "segformer-b0"),
        ("mobilenetv3_small", "mobilenetv3-small"),
        ("deeplabv3-resnet18", "deeplabv3-r18"),
        ("espnetv2", "espnetv2-1.0"),
        ("mit-b2", "segformer-b2"),
    ],
)
def test_other_spellings_mean_the_same(typed, meant):
    """Papers, recipes and timm each write them in their own way."""
    assert student_fields(typed) == STUDENTS[meant]


def test_a_folder_goes_before_a_name(tmp_path, monkeypatch):
    """A run that was saved as `espnet` is not replaced by a new network in silence."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "espnet").mkdir()
    assert resolve_student("espnet") == "espnet" and resolve_student("espnet-c") == STUDENTS["espnet-c"]


def test_a_name_takes_other_fields_with_it():
    """Pretrained weights are what one adds first."""
    fields = resolve_student({"name": "segformer-b1", "backbone_weights": "somewhere"})
    assert fields == {**STUDENTS["segformer-b1"], "backbone_weights": "somewhere"}


def test_a_misspelled_student_gets_the_closest(tmp_path):
    """Asked for as a Hub id, it would end in a message about the connection."""
    message = refusal([recipe(tmp_path, student="segfomer-b0"), "--output_dir", str(tmp_path / "run")])
    assert "Unknown student 'segfomer-b0'. Did you mean 'segformer-b0'?" in message and "hf-segkd recipes" in message


def test_a_student_given_whole_and_by_fields_is_refused(tmp_path):
    """One of the two would be dropped without a word."""
    argv = [recipe(tmp_path), "--student", "segformer-b0", "--student.backbone_weights", "x", "--output_dir", "x"]
    assert "--student.name NAME" in refusal(argv)


def test_the_list_of_recipes_shows_the_students(capsys):
    """A name that is listed nowhere is one that nobody types."""
    recipes.main(["espnet-c"])
    assert "  espnet-c  {model_type: espnet, use_decoder: false}" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["ours", "segformer", "original"])
def test_backbone_weights_may_be_a_segmentation_models(kind, tmp_path):
    """A released segmentation model is often nearer to the data than ImageNet; its head is left out."""
    torch.manual_seed(0)
    if kind == "segformer":
        whole = SegformerForSemanticSegmentation(SegformerConfig(**SEGFORMER, num_labels=150))
        whole.save_pretrained(tmp_path)
        spec, encoder = {"model_type": "segformer", **SEGFORMER}, whole.segformer
    elif kind == "ours":
        spec = {"model_type": "pspnet", "backbone": RESNET, "hidden_size": 8}
        whole, processor = load_model({**spec, "model_type": "deeplabv3"}, OWN)
        processor.image_mean = [0.1, 0.2, 0.3]
        whole.save_pretrained(tmp_path)
        processor.save_pretrained(tmp_path)
        encoder = whole.backbone
    else:
        case = golden_models.read("cirkd-psp_mobile-mobilenetv3_small-19", golden_models.OWN)
        torch.save(golden_models.original_state_dict(case), tmp_path / "whole.pth")
        spec = {"model_type": "deeplabv3", "backbone": "mobilenetv3_small"}
        encoder = load_model(str(tmp_path / "whole.pth"))[0].backbone
    place = str(tmp_path / "whole.pth") if kind == "original" else str(tmp_path)
    student, processor = load_model({**spec, "backbone_weights": place}, LABELS)
    found = (student.segformer if kind == "segformer" else student.backbone).state_dict()
    for key, value in encoder.state_dict().items():
        assert torch.equal(found[key], value), key
    if kind == "ours":
        assert processor.image_mean == [0.1, 0.2, 0.3]  # its images are those of the weights
    report = load_backbone_weights(student.segformer if kind == "segformer" else student.backbone, place)
    assert any("classifier" in key for key in report.skipped)


def test_a_segmentation_models_backbone_reads_images_in_the_order_asked_for(tmp_path):
    """BGR weights under an RGB image cost points of mIoU, and nothing shows it."""
    spec = {"model_type": "pspnet", "backbone": RESNET, "hidden_size": 8}
    images = {
        "do_flip_channel_order": True,
        "do_rescale": False,
        "image_mean": [1.0, 2.0, 3.0],
        "image_std": [4, 5, 6],
    }
    whole, processor = load_model({**spec, "processor": images}, OWN)
    whole.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    student, own = load_model({**spec, "backbone_weights": str(tmp_path)}, LABELS)
    photo = torch.randint(256, (3, 40, 56), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = whole.eval().backbone(**processor(photo, return_tensors="pt")).feature_maps[-1]
        found = student.eval().backbone(**own(photo, return_tensors="pt")).feature_maps[-1]
    assert not own.do_flip_channel_order
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)  # three products summed in another order


@pytest.mark.parametrize("kind", ["resnet", "segformer", "file"])
def test_an_image_classifier_is_no_teacher_and_is_named_as_one(kind, tmp_path):
    """`microsoft/resnet-50` and `nvidia/mit-b0` look like teachers; their heads would be random numbers."""
    torch.manual_seed(0)
    place = str(tmp_path / "classifier")
    if kind == "resnet":
        config = ResNetConfig(embedding_size=8, hidden_sizes=[8] * 4, depths=[1] * 4, layer_type="basic")
        ResNetForImageClassification(config).save_pretrained(place)
    elif kind == "segformer":
        SegformerForImageClassification(SegformerConfig(**SEGFORMER)).save_pretrained(place)
    else:
        place += ".pth"
        torch.save({"conv1.weight": torch.zeros(8, 3, 3, 3), "fc.weight": torch.zeros(1000, 8)}, place)
    losses = {"task": {}, "kd": {}}
    message = refusal([recipe(tmp_path, losses=losses), "--teacher", place, "--output_dir", str(tmp_path / "run")])
    assert "is an image classifier" in message and "not where" in message and "backbone_weights" in message


def test_a_model_of_another_task_is_named(tmp_path):
    """transformers would list eighty config classes instead."""
    from transformers import Dinov2Config, Dinov2Model

    config = Dinov2Config(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, image_size=28)
    Dinov2Model(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is no segmentation model but a Dinov2Model"):
        load_model(str(tmp_path))
