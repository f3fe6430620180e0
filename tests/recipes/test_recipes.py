"""The shipped recipes: they merge and they build."""

import pytest
import torch

import dataset_builders
from helpers.shipped_recipes import CLASSES, NAMES, network, recipe
from hf_segkd.data import TrainTransform
from hf_segkd.loading.any_model import load_model
from hf_segkd.losses import LossSetup, build_losses
from hf_segkd.recipe import merge
from hf_segkd.training.config import DistillationConfig


def test_any_three_recipes_merge_without_touching_each_other():
    """A key in two kinds of recipe would make the order in the command matter, and the last file win unseen."""
    for dataset in NAMES["datasets"]:
        for pair in NAMES["pairs"]:
            whole = merge(recipe("datasets", dataset), recipe("pairs", pair))
            assert whole == recipe("datasets", dataset) | recipe("pairs", pair)
            for method in NAMES["methods"]:
                merged = merge(whole, recipe("methods", method))
                assert len(merged) == len(whole | recipe("methods", method))
                for name, options in recipe("methods", method)["losses"].items():  # a dataset may add classes' weights
                    assert options == {key: merged["losses"][name][key] for key in options}
                assert {"dataset", "student", "losses", "max_steps"} <= merged.keys()


@pytest.mark.parametrize("name", NAMES["datasets"])
def test_dataset_recipe_builds_its_classes_crops_and_schedule(name, tmp_path):
    """A schedule whose evaluations and checkpoints do not coincide is refused only when the run starts."""
    keys = recipe("datasets", name)
    spec = dataset_builders.open_dataset(keys["dataset"], **keys.get("dataset_config", {})).spec
    assert spec.num_labels == CLASSES.get(keys["dataset"], spec.num_labels)
    TrainTransform(tuple(keys["crop_size"]), tuple(keys["scale_range"]), flip=keys.get("flip", 0.5))
    own = {"dataset", "dataset_config", "crop_size", "scale_range", "flip", "interpolation"}
    options = {key: value for key, value in keys.items() if key not in own}
    config = DistillationConfig(output_dir=str(tmp_path), use_cpu=True, **options)
    assert config.max_steps == keys["max_steps"]
    assert config.load_best_model_at_end == (name not in ("camvid_released", "cityscapes_torchdistiller"))


# Classes, parameters: of the networks of the originals, counted in their code; of SegFormer without the bias of its
# fusing convolution, which transformers folds into the norm.
PARAMETERS = {
    "deeplabv3-r101_deeplabv3-r18": (19, 22_762_918),
    "deeplabv3-r101_upernet-r18": (19, 16_569_638),
    "deeplabv3-r101_deeplabv3-mbv3-s": (19, 3_298_739),
    "deeplabv3-r101_deeplabv3-mbv3-l": (150, 6_785_990),
    "deeplabv3-r101_pspnet-mbv3-s": (19, 2_589_747),
    "deeplabv3-r101_pspnet-mbv3-l": (150, 6_126_918),
    "deeplabv3-r101_deeplabv3-mobilevit-xxs": (19, 2_372_483),
    "deeplabv3-r101_pspnet-mobilevit-xxs": (19, 1_794_051),
    "deeplabv3-r101-v1_deeplabv3-r18-v1": (19, 13_607_974),
    "deeplabv3-r101-v1_deeplabv3-mbv2": (19, 3_233_171),
    "deeplabv3-r101-v1_pspnet-r18": (19, 12_919_334),
    "pspnet-r101_pspnet-r18": (19, 12_919_334),
    "pspnet-r101_deeplabv3-r18-v1": (19, 13_607_974),
    "skd-pspnet-r101_skd-pspnet-r18": (19, 13_068_262),
    "segformer-b4_segformer-b0": (19, 3_719_027),
    "eomt-ade20k_segformer-b0": (19, 3_719_027),
    "mask2former-cityscapes_deeplabv3-r18": (19, 22_762_918),
    "espnet_espnet": (19, 363_462),
    "espnet_espnet-c": (19, 349_193),
    "segformer-cityscapes_espnet-c": (19, 349_193),
}


@pytest.mark.parametrize("name", NAMES["pairs"])
def test_pair_builds_the_published_student(name):
    """A head of the other version's width trains as well, and ends elsewhere than the table says."""
    num_labels, parameters = PARAMETERS.get(name, (10, None))
    with torch.device("meta"):
        student = load_model(network(name), id2label={i: str(i) for i in range(num_labels)})[0]
    assert student.config.num_labels == num_labels
    assert parameters in (None, sum(parameter.numel() for parameter in student.parameters()))
    assert name in PARAMETERS or name.startswith("synthetic")


def test_structured_kds_pair_differs_from_cirkds_where_their_networks_do():
    """Both have a PSPNet on ResNet-18; the order of its maps and the dilations do not show in the parameters."""
    with torch.device("meta"):
        student = load_model(network("skd-pspnet-r101_skd-pspnet-r18"), id2label={0: "a"})[0]
        logits = student.eval()(torch.zeros(1, 3, 512, 1024)).logits
    config = student.config
    assert (config.input_first, config.activation_slope, config.spatial_dropout) == (False, 0.01, True)
    assert (config.backbone_config.first_dilation, config.backbone_config.ceil_mode) == ("full", True)
    assert logits.shape[-2:] == (65, 129)


@pytest.mark.parametrize("name", NAMES["methods"])
def test_method_builds_for_a_teacher_wider_than_its_student(name):
    """An option that only parses may still be refused by its loss."""
    size, num_labels = (64, 64), 5
    shapes = [
        {
            "logits": torch.Size((1, num_labels, *size)),
            "aux_logits": torch.Size((1, num_labels, *size)),
            "features": torch.Size((1, channels, *size)),
            **{f"hidden_states.{index}": torch.Size((1, channels, *size)) for index in range(4)},
        }
        for channels in (8, 16)
    ]
    specs = recipe("methods", name)["losses"]
    modules, weights = build_losses(specs, LossSetup(shapes[0], num_labels=num_labels, teacher=shapes[1]))
    assert list(modules) == list(weights) == list(specs)
