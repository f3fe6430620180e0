"""Conversion of ESPNetv2: every key, the classes of the released files, and their use as teacher and student."""

import re

import pytest
import torch
import yaml
from safetensors.torch import load_file

from dataset_builders import DATASETS
from helpers import golden_espnetv2
from helpers.commands import RECIPE, distill, script
from hf_segkd.conversion import convert
from hf_segkd.conversion.espnetv2 import FAMILY
from hf_segkd.loading.any_model import load_model
from hf_segkd.loading.class_map import class_names, map_classes
from hf_segkd.models.espnetv2 import ESPNetv2Config, ESPNetv2ForSemanticSegmentation

pytestmark = pytest.mark.usefixtures("module_without_figures")

CITYSCAPES, VOC = DATASETS["cityscapes"], DATASETS["voc_aug"]
RELEASED = sorted(case["file"] for case in golden_espnetv2.cases().values())
PHOTO = torch.linspace(-1, 1, 3 * 32 * 48).view(1, 3, 32, 48)
UNUSED = [f"base_net.level{level}_0.eesp.module_act.weight" for level in (2, 3, 4)]


def original(num_labels, width=0.5):
    """A new network's weights in the names of a released file."""
    torch.manual_seed(0)
    ours = ESPNetv2ForSemanticSegmentation(ESPNetv2Config(width=width, num_labels=num_labels)).state_dict()
    names = {FAMILY.translate(key): key for key in original_keys()}
    extra = {key: torch.full((16,), 4e-13) for key in UNUSED}
    return {names[key]: value for key, value in ours.items()} | extra


def layer(name, parts=("conv", "bn", "act")):
    """Keys of a convolution, a norm and an activation, or of the last of these, by their names in the original."""
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    tails = dict(zip(parts, [("weight",), norm, ("weight",)][3 - len(parts) :], strict=True))
    return [f"{name}.{part}.{tail}" for part, values in tails.items() for tail in values]


def block(name):
    keys = [f"{name}.spp_dw.{index}.conv.weight" for index in range(4)] + [f"{name}.module_act.weight"]
    expand = [key for key in layer(f"{name}.conv_1x1_exp") if ".act." not in key]
    return keys + layer(f"{name}.proj_1x1") + expand + layer(f"{name}.br_after_cat", ("bn", "act"))


def original_keys():
    """All keys of a released file, as its specification lists them."""
    keys = layer("base_net.level1")
    for level, depth in ((2, 0), (3, 3), (4, 7)):
        down = f"base_net.level{level}_0"
        image = layer(f"{down}.inp_reinf.0") + layer(f"{down}.inp_reinf.1")
        keys += block(f"{down}.eesp") + [key for key in image if "reinf.1.act" not in key] + [f"{down}.act.weight"]
        for index in range(depth):
            keys += block(f"base_net.level{level}.{index}")
    for index in (1, 2, 3, 4):
        pyramid = f"bu_dec_l{index}"
        keys += [f"{pyramid}.stages.{size}.weight" for size in range(5)]
        keys += layer(f"{pyramid}.projection_layer.cbr", "012") + layer(f"{pyramid}.merge_layer.0.br", "01")
        keys += layer(f"{pyramid}.merge_layer.2.cbr", "012") + [f"{pyramid}.merge_layer.3.weight"]
        keys += layer(f"{pyramid}.br.br", "01") if index < 4 else [f"{pyramid}.merge_layer.3.bias"]
    for index in (2, 3, 4):
        join = f"merge_enc_dec_l{index}"
        keys += layer(f"{join}.expansion_layer.cbr", "012") + [f"{join}.wt_layer.1.weight"]
        keys += layer(f"bu_br_l{index}", "01")
    return keys


def test_every_key_is_translated_by_one_rule_to_a_name_of_its_own():
    """The first match wins: a second one would depend on the order of the table."""
    state_dict = original(num_labels=20)
    assert len(state_dict) == 526
    kept = [key for key in state_dict if not re.search(FAMILY.dropped, key)]
    assert len(kept) == 523
    assert all(sum(re.search(pattern, key) is not None for pattern, _ in FAMILY.rename) == 1 for key in kept)
    assert len({FAMILY.translate(key) for key in kept}) == 523


@pytest.mark.parametrize("width", [0.5, 1.0, 1.25, 1.5, 2.0])
def test_config_is_read_from_the_shapes(width):
    """File names lie about widths and classes."""
    config = convert(original(20, width)).config
    assert (config.width, config.depths, config.pyramid_size, config.num_labels) == (width, (3, 7), 10, 20)


def test_classes_are_those_that_the_released_files_were_trained_on():
    """Cityscapes' background comes last, Pascal VOC's first; one place off, and every class is another."""
    city, pascal = convert(original(20)).config, convert(original(21)).config
    assert class_names(city) == [*CITYSCAPES.labels, "background"] and city.label2id["background"] == 19
    assert class_names(pascal) == list(VOC.labels) and pascal.id2label[0] == "background"
    assert convert(original(20), CITYSCAPES.id2label).config.id2label == city.id2label
    assert convert(original(21), VOC.id2label).config.id2label == pascal.id2label
    assert convert(original(7)).config.id2label[6] == "LABEL_6"
    with pytest.raises(ValueError, match="has 20 classes, the dataset 11"):
        convert(original(20), DATASETS["camvid"].id2label)


@pytest.fixture
def city(tmp_path):
    torch.save(original(20), tmp_path / "city.pth")
    return tmp_path / "city.pth"


@torch.no_grad()
def logits(model):
    return model.eval()(PHOTO).logits


def test_as_teacher_and_as_student_it_has_the_classes_of_the_dataset(city, tmp_path):
    """The 20th score has no counterpart in Cityscapes: kept, it would take part of every softmax."""
    teacher, _ = load_model(str(city))
    whole = logits(teacher)
    assert whole.shape[1] == 20
    assert torch.equal(logits(map_classes(teacher, CITYSCAPES.labels)), whole[:, :19])
    script("convert").main([str(city), str(tmp_path / "folder"), "--dataset", "cityscapes"])
    for source in (city, tmp_path / "folder"):
        student, _ = load_model(str(source), CITYSCAPES.id2label)
        assert student.config.num_labels == 19 and student.config.pyramid_size == 10
        torch.testing.assert_close(logits(student), whole[:, :19], rtol=1e-5, atol=1e-5)
    student.save_pretrained(tmp_path / "saved")
    torch.testing.assert_close(logits(load_model(str(tmp_path / "saved"))[0]), logits(student))


def test_released_kind_distills_into_the_smallest_width(tmp_path):
    """The teacher straight from its file; the student trains, is saved and opens again."""
    labels = {index: name for index, name in enumerate(DATASETS["synthetic"].labels)}
    torch.save(original(len(labels), width=1.0), tmp_path / "teacher.pth")
    losses = {"task": {}, "kd": {}, "cwd": {"layer": "features"}}
    given = {**RECIPE, "student": {"model_type": "espnetv2", "width": 0.5}, "losses": losses, "max_steps": 2}
    (tmp_path / "given.yaml").write_text(yaml.safe_dump(given))
    argv = [str(tmp_path / "given.yaml"), "--teacher", str(tmp_path / "teacher.pth")]
    assert distill.main([*argv, "--output_dir", str(tmp_path / "run")])["steps"] == 2
    student, _ = load_model(str(tmp_path / "run"), labels)
    saved = load_file(tmp_path / "run" / "model.safetensors")
    assert all(torch.equal(value, saved[key]) for key, value in student.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize("name", RELEASED)
def test_released_file_converts_by_the_command_and_serves_as_it_is(name, tmp_path):
    """A tensor left behind keeps its random start, and the published mIoU is lost without an error."""
    path, spec = golden_espnetv2.released(f"espnetv2/{name}"), CITYSCAPES if "city" in name else VOC
    script("convert").main([str(path), str(tmp_path / "model"), "--dataset", spec.name])
    folder, _ = load_model(str(tmp_path / "model"))
    teacher, processor = load_model(str(path))
    assert torch.equal(logits(folder), logits(teacher)) and processor.image_std == [0.229, 0.224, 0.225]
    assert logits(map_classes(teacher, spec.labels)).shape[1] == spec.num_labels
    student, _ = load_model(str(path), spec.id2label)
    assert class_names(student.config) == list(spec.labels)
