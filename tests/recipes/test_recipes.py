"""The shipped recipes: they merge, they build, and they say what the originals' scripts say."""

import importlib.util
from functools import cache
from pathlib import Path

import pytest
import torch

import dataset_builders
from helpers.commands import distill
from helpers.paths import ROOT
from hf_segkd.data import TrainTransform
from hf_segkd.loading.any_model import load_model
from hf_segkd.loading.native import output_shapes
from hf_segkd.losses import LossSetup, build_losses
from hf_segkd.losses.draws import SeededDraws
from hf_segkd.recipe import load_yaml, merge, parse
from hf_segkd.training.config import DistillationConfig

KINDS = ("datasets", "pairs", "methods")
NAMES = {kind: sorted(path.stem for path in (ROOT / "hf_segkd/recipes" / kind).glob("*.yaml")) for kind in KINDS}


@cache
def recipe(kind: str, name: str) -> dict:
    return load_yaml(path(kind, name).read_text())


def path(kind: str, name: str) -> Path:
    return ROOT / "hf_segkd/recipes" / kind / f"{name}.yaml"


def network(pair: str) -> dict:
    """Fields of a pair's student; its images are no part of the network."""
    return {key: value for key, value in recipe("pairs", pair)["student"].items() if key != "processor"}


def load_page():
    spec = importlib.util.spec_from_file_location("make_recipes", ROOT / "docs" / "make_recipes.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PAGE = load_page()
ROWS = [table | row for table in PAGE.published() for row in table["rows"]]
RUNS = [row for row in ROWS if "no_recipe" not in row]


def read(row: dict) -> tuple:
    """What `distill.py` makes of a row's command: script's arguments, config, merged recipe."""
    *names, flags = *PAGE.arguments(row)[:3], PAGE.arguments(row)[3:]
    files = [str(path(kind, name)) for kind, name in zip(KINDS, names, strict=True)]
    argv = [*files, "--output_dir", "runs/x", "--use_cpu", *flags]
    (script, config), merged = parse((distill.ScriptArguments, DistillationConfig), argv)
    return script, config, merged


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


CLASSES = {"ade20k": 150, "camvid": 11, "cityscapes": 19, "coco_stuff_164k": 182, "synthetic": 10, "voc_aug": 21}


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


KD = {"weight": 1.0, "temperature": 1.0}
HINGE = {"weight": {"student": 0.001, "discriminator": 0.1}, "constant_learning_rate": True}
WGAN_GP = {"weight": {"student": 0.001, "discriminator": 0.1}, "objective": "wgan-gp"}
CIRKDV2 = {
    **{"fitnet": 1.0, "minibatch_pixel": 1.0, "memory_pixel": 0.1, "memory_region": 0.1},
    **{"minibatch_channel": 1.0, "memory_channel": 0.1, "channel_kd": 100.0},
}


def cwd(layer: str, weight: float, temperature: float = 4.0, **options) -> dict:
    return {"type": "cwd", "layer": layer, "weight": weight, "temperature": temperature, **options}


# Weights of the originals' scripts. CIRKD's train_kd family first, then its own methods, CSKD, Structured KD, CWD.
WEIGHTS = {
    "baseline": {},
    "kd": {"kd": KD},
    "skd": {"kd": KD, "skd_pairwise": {"weight": 10.0, "pooling": "max2"}, "adversarial": HINGE},
    "ifvd": {"kd": KD, "ifvd": {"weight": 20.0}, "adversarial": HINGE},
    "cwd": {
        **{"kd": KD, "cwd_features": cwd("features", 50.0), "cwd_logits": cwd("logits", 3.0), "adversarial": HINGE},
    },
    "cwd_segformer": {
        "kd": KD,
        "cwd_features": cwd("features", 5.0),
        "cwd_logits": cwd("logits", 0.3),
        "adversarial": HINGE,
    },
    "fitnet": {"kd": KD, "fitnet": {"weight": 10.0}},
    "at": {"kd": KD, "at": {"weight": 10000.0}},
    "dsd": {"dsd": {"weight": {"psd": 1000.0, "csd": 10.0}, "temperature": 4.0}},
    "cirkd": {
        **{"kd": KD, "cirkd_minibatch": {"weight": 1.0}, "cirkd_memory": {"weight": {"pixel": 0.1, "region": 0.1}}},
    },
    "cirkdv2": {"kd": KD, "cirkdv2": {"weight": CIRKDV2}},
    "cirkdv2_segformer": {"kd": KD, "cirkdv2": {"context": False, "pixel_memory": 2000, "weight": CIRKDV2}},
    "cskd": {
        **{"cwd_logits": cwd("logits", 3.0, 2.0), "cskd": {"weight": {"cam": 0.3, "pam": 0.8}, "temperature": 2.0}},
    },
    "skd_original": {
        "kd": {"weight": 10.0, "reduction": "cross_entropy_sum"},
        "skd_pairwise": {"weight": 0.5, "pooling": 0.5},
        "adversarial": {
            **{"weight": {"student": 0.1, "discriminator": 0.1}, "objective": "wgan-gp", "order": "teacher_first"},
            **{"optimizer": "sgd", "weight_decay": 5e-4},
        },
    },
    "cwd_logits": {"cwd_logits": cwd("logits", 3.0)},
    "holistic": {"adversarial": WGAN_GP},
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_method_has_the_weights_of_the_originals_script(name):
    """A weight ten times off trains, and the method looks bad."""
    assert recipe("methods", name)["losses"] == {"task": {"weight": 1.0}, **WEIGHTS[name]}


# Optimizer, learning rate, weight decay, crop, images per step, steps, scales, flip.
SCHEDULES = {
    "cityscapes_40k": ("sgd", 0.02, 1e-4, [512, 1024], 16, 40000, [0.5, 2.0], 0.5),
    "cityscapes": ("sgd", 0.01, 1e-4, [512, 1024], 8, 80000, [0.5, 2.0], 0.5),
    "cityscapes_mobilevit": ("adamw_torch", 9e-4, 0.01, [512, 1024], 8, 80000, [0.5, 2.0], 0.5),
    "cityscapes_segformer": ("adamw_torch", 2e-4, 1e-4, [1024, 1024], 8, 160000, [0.5, 2.0], 0.5),
    "voc_aug": ("sgd", 0.02, 1e-4, [512, 512], 16, 80000, [0.5, 2.0], 0.5),
    "ade20k": ("sgd", 0.02, 1e-4, [512, 512], 16, 80000, [0.5, 2.0], 0.5),
    "coco_stuff_164k": ("sgd", 0.02, 1e-4, [512, 512], 16, 80000, [0.5, 2.0], 0.5),
    "voc_aug_40k": ("sgd", 0.02, 1e-4, [512, 512], 16, 40000, [0.5, 2.0], 0.5),
    "camvid_40k": ("sgd", 0.02, 1e-4, [360, 360], 16, 40000, [0.5, 2.0], 0.5),
    "cityscapes_skd": ("sgd", 0.01, 5e-4, [512, 512], 8, 40000, [0.7, 2.1], 0.5),
    "cityscapes_torchdistiller": ("sgd", 0.01, 5e-4, [512, 512], 8, 40000, [1.0, 1.0], 0.0),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_dataset_has_the_schedule_of_the_originals_script(name):
    """Half the steps or twice the learning rate is another row of the table; defaults count as much as keys."""
    script, config, _ = read({"dataset": name, "pair": "pspnet-r101_pspnet-r18", "method": "baseline"})
    augmentation = (script.scale_range, script.flip)
    batch = config.per_device_train_batch_size * config.gradient_accumulation_steps
    found = (config.optim, config.learning_rate, config.weight_decay, script.crop_size, batch, config.max_steps)
    assert (*found, *augmentation) == SCHEDULES[name]
    assert (config.lr_scheduler_type, config.lr_scheduler_kwargs) == ("polynomial", {"power": 0.9, "lr_end": 0.0})
    assert (config.max_grad_norm, config.warmup_steps) == (0.0, 0)
    assert config.eval_steps == (200 if name == "cityscapes_skd" else 800)
    assert config.optim != "sgd" or config.optim_args == "momentum=0.9"


SKD_PSPNET = network("skd-pspnet-r101_skd-pspnet-r18")
RESNET101 = {"depths": [3, 4, 23, 3], "hidden_sizes": [256, 512, 1024, 2048], "layer_type": "bottleneck"}
# By the first half of a pair's name; a teacher of the Hub is known to the Hub alone.
TEACHERS = {
    "deeplabv3-r101": {"model_type": "deeplabv3", "backbone": "resnet101"},
    "deeplabv3-r101-v1": {"model_type": "deeplabv3", "backbone": "resnet101", "hidden_size": 256},
    "pspnet-r101": {"model_type": "pspnet", "backbone": "resnet101"},
    "skd-pspnet-r101": {
        **SKD_PSPNET,
        **{"hidden_size": 512, "pool_hidden_size": 512, "auxiliary_hidden_size": 512},
        "backbone": {**SKD_PSPNET["backbone"], **RESNET101},
    },
    "segformer-b4": {
        **{"model_type": "segformer", "decoder_hidden_size": 768},
        **{"hidden_sizes": [64, 128, 320, 512], "depths": [3, 8, 27, 3]},
    },
    "espnet": {"model_type": "espnet"},
}


@pytest.mark.parametrize(
    "name, parameters",
    [
        ("deeplabv3-r101", 79_084_262),
        ("deeplabv3-r101-v1", 61_118_950),
        ("pspnet-r101", 58_629_606),
        ("skd-pspnet-r101", 70_437_350),
        ("segformer-b4", 64_007_635),
    ],
)
def test_teachers_of_these_tests_are_the_published_ones(name, parameters):
    """The shapes below would otherwise be those of teachers that nobody has."""
    with torch.device("meta"):
        teacher = load_model(TEACHERS[name], id2label={i: str(i) for i in range(19)})[0]
    assert sum(parameter.numel() for parameter in teacher.parameters()) == parameters


@cache
def shapes(model: str, num_labels: int, crop: tuple[int, int]) -> dict[str, torch.Size]:
    """Shapes of everything that the model of a config, given as text, returns for a crop."""
    with torch.device("meta"):
        model = load_model(load_yaml(model), {i: str(i) for i in range(num_labels)})[0]
    return output_shapes(model, crop)


@pytest.fixture
def empty_queues(monkeypatch):
    """On the meta device there is nothing to draw, and 182 classes of it take a second."""
    monkeypatch.setattr(SeededDraws, "unit_rows", lambda self, shape, dtype: torch.empty(shape))


@pytest.mark.parametrize("row", RUNS, ids=lambda row: " ".join(PAGE.arguments(row)))
def test_command_of_a_published_row_builds_its_losses(row, empty_queues):
    """A flag that is gone, or a map too small for a loss, would be found by whoever wants to reproduce the row."""
    script, config, merged = read(row)
    assert merged["student"].items() >= recipe("pairs", row["pair"])["student"].items() or row["name"] == "Teachers"
    fields = {key: value for key, value in script.student.items() if key != "processor"}
    teacher = TEACHERS.get(row["pair"].split("_")[0], {"model_type": "espnet"})
    num_labels, crop = CLASSES[script.dataset], tuple(script.crop_size)
    student, teacher = (shapes(str(model), num_labels, crop) for model in (fields, teacher))
    with torch.device("meta"):
        modules, _ = build_losses(config.losses, LossSetup(student, num_labels=num_labels, teacher=teacher))
    assert list(modules) == list(config.losses)


def test_every_recipe_of_the_originals_leads_to_a_published_row():
    """A recipe that no row uses is one whose numbers nobody compares."""
    used = {kind: {PAGE.arguments(row)[index] for row in RUNS} for index, kind in enumerate(KINDS)}
    missing = {kind: [name for name in NAMES[kind] if name not in used[kind]] for kind in KINDS}
    assert missing == {
        "datasets": ["synthetic"],
        "pairs": ["synthetic", "synthetic_teacher"],
        # Without a published row on our page: CanKD, GKD and PKD. The others are parts of cirkd.
        "methods": ["cankd", "cirkd_memory", "cirkd_minibatch", "gkd", "pkd"],
    }


def test_page_of_recipes_is_up_to_date():
    """`python docs/make_recipes.py` writes it; a number changed in one place only would be believed in the other."""
    assert PAGE.render(PAGE.PAGE.read_text(encoding="utf-8")) == PAGE.PAGE.read_text(encoding="utf-8")


def test_cited_numbers_have_a_source_and_measured_ones_a_cell_of_the_results():
    """Numbers from memory, and ours in the column of theirs, are what the page exists to prevent."""
    assert all(table["source"] and table["teacher"] for table in PAGE.published())
    assert all(float(number) > 0 for row in ROWS for number in row.get("published", {}).values())
    for row in ROWS:
        cited, ours = PAGE.row_cells(row)[4:6]
        assert ours == "" or ("ours" in row and ours.endswith("(results.md)"))
        assert (cited == "–") == ("published" not in row)
    with pytest.raises(ValueError, match="has no row 'mIoU' with a column 'nobody'"):
        PAGE.measured(section="Quickstart: synthetic street scenes", row="mIoU", column="nobody")
