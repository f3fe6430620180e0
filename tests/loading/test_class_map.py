"""Teachers of other class spaces: matched by name, by a recipe, or refused; and what distill.py makes of them."""

import importlib
import json
import math

import pytest
import torch
import yaml

from dataset_builders import DATASETS
from helpers.paths import ROOT
from helpers.teachers import native, saved, trainer_for
from helpers.tiny import LABELS, TINY, TinyScenes
from hf_segkd.loading.class_map import ClassMap, map_classes, match_classes, shared_classes, shown_matches
from hf_segkd.loading.native import expose_features
from hf_segkd.losses import LossSetup, build_losses
from hf_segkd.models import SegmentationOutput
from hf_segkd.training.distiller import Distiller

CITYSCAPES = (
    *("road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation"),
    *("terrain", "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"),
)
RECIPE = {
    "dataset": "synthetic",
    "dataset_config": {"num_train": 4, "num_validation": 2, "num_test": 2, "height": 32, "width": 48},
    **{"student": TINY, "crop_size": [32, 32], "per_device_train_batch_size": 2, "max_steps": 2, "eval_steps": 2},
    **{"save_steps": 2, "logging_steps": 1, "use_cpu": True},
    "losses": {"task": {}, "kd": {}},
}


def logits(channels=4):
    return torch.randn(2, channels, 3, 3, generator=torch.Generator().manual_seed(0))


# ---- matching ------------------------------------------------------------------------------------------------------


def test_names_are_matched_in_any_order_case_and_spelling_of_spaces():
    """A teacher's class 0 taught as the student's class 0 trains without a complaint."""
    assert match_classes(["Sky", "traffic light", "road"], ("road", "sky", "Traffic_Light"), {}) == [[2], [0], [1]]


def test_superset_gives_the_students_classes():
    """ADE20K's teachers know 150 classes, of which a student may need a few."""
    assert match_classes(["wall", "road", "sky", "sea"], ("sky", "road"), {}) == [[2], [1]]


def test_mapping_names_one_or_several_teacher_classes_and_the_rest_goes_by_name():
    """Listing what has the same name on both sides would hide what differs."""
    found = match_classes(CITYSCAPES, ("sky", "Sign"), {"sign": ["Traffic Sign", "traffic_light"]})
    assert found == [[10], [6, 7]]
    assert match_classes(CITYSCAPES, ("Pavement",), {"Pavement": "sidewalk"}) == [[1]]


def test_mapping_may_overrule_equal_names():
    """Two datasets may mean different things by one word."""
    assert match_classes(["car", "vehicle"], ("car",), {"car": "vehicle"}) == [[1]]


@pytest.mark.parametrize("placeholder", [0, 1], ids=["teacher", "student"])
def test_placeholders_count_as_the_same_classes_in_equal_number_only(placeholder):
    """LABEL_0 is not a name: with other numbers nothing says which class is which."""
    names = [["LABEL_0", "LABEL_1"], ["sky", "road"]]
    first, second = names if placeholder == 0 else reversed(names)
    assert match_classes(first, second, {}) == [[0], [1]]
    with pytest.raises(ValueError, match="No counterpart for"):
        match_classes(["LABEL_0", "LABEL_1", "LABEL_2"], ("LABEL_0", "LABEL_1"), {})


def test_refusal_lists_both_and_names_what_is_missing():
    """A user has to see two lists side by side to write the mapping."""
    with pytest.raises(ValueError) as refusal:
        match_classes(["road", "sky"], ("road", "marking"), {})
    message = str(refusal.value)
    assert "No counterpart for: marking." in message
    assert "teacher (2): road, sky" in message and "dataset (2): road, marking" in message
    assert "teacher_classes" in message


def test_one_teacher_class_for_two_is_refused():
    """Its probability would count twice against all others."""
    with pytest.raises(ValueError, match="Meant for more than one class: person."):
        match_classes(["person", "sky"], ("rider", "walker"), {"rider": "person", "walker": "person"})


@pytest.mark.parametrize("mapping", [{"skies": "sky"}, {"sky": "skies"}])
def test_unknown_names_in_the_mapping_are_refused(mapping):
    """A misspelled name would leave the class as it was."""
    with pytest.raises(ValueError, match="has no class 'skies'. Did you mean 'sky'?"):
        match_classes(["sky", "road"], ("sky", "road"), mapping)


def test_mapping_that_is_none_is_refused():
    """`--teacher_classes sky` on the command line is a string."""
    with pytest.raises(ValueError, match="must be a mapping"):
        match_classes(["sky"], ("sky",), "sky")


@pytest.mark.parametrize(
    ("label", "name"),
    [("traffic-light", "Traffic Light"), ("car", "cars"), ("buses", "bus"), ("berries", "berry"), ("boxes", "box")],
)
def test_hyphens_and_plurals_are_matched_by_rule(label, name):
    """Two people write one class in two ways; a mapping for each would be tedious and wrong."""
    assert match_classes(["sky", name], (label,), {}) == match_classes(["sky", label], (name,), {}) == [[1]]


def test_an_equal_name_wins_over_a_plural_and_two_plurals_are_not_guessed_between():
    """A teacher may have both, and mean two things."""
    assert match_classes(["cars", "car"], ("car",), {}) == [[1]]
    with pytest.raises(ValueError, match="No counterpart for: bus"):
        match_classes(["buss", "buses"], ("bus",), {})


def test_all_other_classes_may_be_the_background():
    """A teacher of 150 classes for a student of three: nobody lists the other 147."""
    found = match_classes(["wall", "road", "sky", "car"], ("background", "cars"), {"*": "background"})
    assert found == [[0, 1, 2], [3]]
    named = {"*": "background", "background": "sky"}
    assert match_classes(["wall", "road", "sky", "car"], ("background", "cars"), named) == found
    with pytest.raises(ValueError, match="the dataset has no class 'backgrund'. Did you mean 'background'"):
        match_classes(["wall"], ("background",), {"*": "backgrund"})


def test_a_file_holds_the_mapping(tmp_path):
    """A mapping of 150 names is not typed on a command line."""
    (tmp_path / "map.yaml").write_text('"*": background\ncar: [bus, truck]\n')
    found = match_classes(["wall", "bus", "truck"], ("background", "car"), str(tmp_path / "map.yaml"))
    assert found == [[0], [1, 2]]
    with pytest.raises(ValueError, match="'none.yaml' given as teacher_classes does not exist"):
        match_classes(["wall"], ("wall",), "none.yaml")


@pytest.mark.parametrize("given", [3, [], [None], {"a": "b"}])
def test_values_that_name_no_class_are_refused(given):
    """They ended in a TypeError."""
    with pytest.raises(ValueError, match="'background' is given as .*expected a class of the teacher"):
        match_classes(["wall", "sky"], ("background", "sky"), {"background": given})


def test_case_14_a_class_that_the_teacher_does_not_know_is_learned_from_labels_alone():
    """`{background: null}` ended in a TypeError; without a way to say it, such a class stopped every run."""
    mapping = {"background": None}
    assert match_classes(["sky", "wall"], ("background", "wall", "sky"), mapping) == [[], [1], [0]]
    assert match_classes(["sky", "wall", "rust"], ("wall", "Rust", "sky"), {"rust": None}) == [[1], [], [0]]
    assert shared_classes(("wall", "Rust", "sky"), {"rust": None, "sky": "heaven"}) == [0, 2]
    assert shared_classes(("wall", "rust"), {"wall": "walls"}) is shared_classes(("wall", "rust"), None) is None
    with pytest.raises(ValueError, match=r"learned from labels alone with \{name: null\}"):
        match_classes(["sky"], ("rust", "sky"), {})
    with pytest.raises(ValueError, match="the teacher would know 1. It must know two at least"):
        match_classes(["sky", "wall"], ("rust", "sky"), {"rust": None})
    with pytest.raises(ValueError, match="the dataset has no class 'rusty'. Did you mean 'rust'"):
        match_classes(["sky", "wall"], ("rust", "sky", "wall"), {"rusty": None})


def test_what_was_matched_by_more_than_equal_names_is_shown():
    """Whoever reads it sees a wrong match; nobody would look for one."""
    labels = ("car", "background", "rust", "sky")
    groups = match_classes(["Cars", "wall", "sea", "sky"], labels, {"*": "background", "rust": None})
    shown = shown_matches(["Cars", "wall", "sea", "sky"], labels, groups)
    assert shown == "Cars -> car; wall, sea -> background; none -> rust (from labels alone)"
    many = [f"thing {index}" for index in range(100)]
    shown = shown_matches([*many, "sky"], ("sky", "rest"), [[100], list(range(100))])
    assert shown.startswith("thing 0, thing 1, ") and shown.endswith("thing 11 and 88 more -> rest")


# ---- the map -------------------------------------------------------------------------------------------------------


def test_probabilities_of_merged_classes_are_summed():
    """The sum of logits, or their mean, would be another distribution."""
    x = logits()
    found = ClassMap([[2], [0, 3], [1]])(SegmentationOutput(logits=x)).logits.softmax(dim=1)
    p = x.softmax(dim=1)
    torch.testing.assert_close(found, torch.stack([p[:, 2], p[:, 0] + p[:, 3], p[:, 1]], dim=1))


def test_left_out_classes_are_conditioned_away():
    """What remains must be a distribution over the student's classes."""
    x = logits()
    found = ClassMap([[3], [1]])(SegmentationOutput(logits=x)).logits.softmax(dim=1)
    p = x.softmax(dim=1)[:, [3, 1]]
    torch.testing.assert_close(found, p / p.sum(dim=1, keepdim=True))


def test_a_class_made_of_none_has_no_probability():
    """A teacher that is scored, or averaged with others, must not predict a class that it does not know."""
    x = logits()
    mapped = ClassMap([[3], [], [1, 0]])(SegmentationOutput(logits=x.half())).logits.float()
    found = mapped.softmax(dim=1)
    assert not found[:, 1].any() and mapped.isfinite().all()  # an infinite logit is NaN once it is resized
    p = x.half().float().softmax(dim=1)
    expected = (p[:, 0] + p[:, 1]) / (p[:, 0] + p[:, 1] + p[:, 3])
    torch.testing.assert_close(found[:, 2], expected, atol=1e-3, rtol=1e-3)


def test_kd_leaves_the_mass_of_unknown_classes_out():
    """KL(t || s') with s'_k = s_k / sum of s over the shared classes: by hand, with its gradient."""
    student = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)  # the teacher does not know the first class
    teacher = torch.tensor([0.25, 0.75], dtype=torch.float64)
    expected = 0.25 * math.log(0.25 / 0.4) + 0.75 * math.log(0.75 / 0.6)
    setup = LossSetup({"logits": (1, 3, 1, 1)}, 3, {"logits": (1, 3, 1, 1)})
    losses, _ = build_losses({"task": {}, "kd": {}}, setup, shared=[1, 2])
    student_logits = student.log().view(1, 3, 1, 1).requires_grad_()
    teacher_logits = torch.cat([torch.tensor([-1e4]), teacher.log()]).view(1, 3, 1, 1)

    class Fixed(torch.nn.Module):
        def forward(self, pixel_values, output_hidden_states):
            return SegmentationOutput(logits=student_logits)

    distiller = Distiller(Fixed(), losses, weights={"task": 0.0}, shared=[1, 2])
    found = distiller(torch.zeros(1, 3, 1, 1), torch.tensor([[[0]]]), SegmentationOutput(logits=teacher_logits))
    assert found.terms["kd"].item() == pytest.approx(expected, abs=1e-12)
    assert found.terms["task"].item() == pytest.approx(math.log(2), abs=1e-6)  # labels are of all classes
    found.loss.backward()
    # The gradient of a KL is s' - t over the shared classes, and nothing for the other.
    torch.testing.assert_close(student_logits.grad.flatten(), torch.tensor([0, 0.15, -0.15], dtype=torch.float64))


def test_auxiliary_logits_are_mapped_and_features_are_not():
    """A loss on aux_logits would compare other classes than one on logits."""
    output = SegmentationOutput(logits=logits(), aux_logits=logits() + 1, features=logits(5))
    found = ClassMap([[1], [0]])(output)
    assert torch.equal(found.aux_logits, output.aux_logits[:, [1, 0]]) and found.features is output.features


def test_mapping_a_teacher_again_replaces_the_first_map():
    """The script and the trainer both call it; twice applied, a permutation is another one."""
    teacher = expose_features(native("segformer", {0: "road", 1: "sky", 2: "sea"}))
    image = torch.rand(1, 3, 32, 32)
    plain = teacher(image).logits
    for _ in range(2):
        map_classes(teacher, ("sea", "road"))
    expose_features(teacher, "decode_head.batch_norm")  # moves the features, keeps the classes
    assert torch.equal(teacher(image).logits, plain[:, [2, 0]])
    assert torch.equal(map_classes(teacher, ("road", "sky", "sea"))(image).logits, plain)


def test_teacher_with_permuted_classes_teaches_the_same(tmp_path):
    """The whole way through the trainer: an unmatched order is the commonest silent mistake."""
    teacher = native("segformer", LABELS)
    order = torch.randperm(10, generator=torch.Generator().manual_seed(0))
    state = teacher.state_dict()
    permuted = native("segformer", {index: LABELS[int(label)] for index, label in enumerate(order)})
    permuted.load_state_dict(
        {key: value[order] if "classifier" in key else value for key, value in state.items()}, strict=True
    )
    found = []
    for model in (teacher, permuted):
        trainer = trainer_for(tmp_path, expose_features(model), {"task": {}, "kd": {}})
        batch = trainer.data_collator([TinyScenes(size=64)[index] for index in range(2)])
        found.append(trainer.compute_loss(trainer.model, batch))
    torch.testing.assert_close(found[0], found[1])


# ---- through the script --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def distill():
    return importlib.import_module("hf_segkd.commands.distill")


def command(folder, **changes):
    path = folder / "given.yaml"
    path.write_text(yaml.safe_dump({**RECIPE, **changes}, sort_keys=False))
    return [str(path), "--output_dir", str(folder / "run")]


def test_offline_folder_with_its_own_classes_and_features_teaches(distill, tmp_path):
    """A Hub download is such a folder: other classes, another order, features by a module's name."""
    names = ["tree", "road", "pavement", "sky", "building", "pole", "sign", "car", "man", "woman", "line", "sea"]
    folder = saved("upernet", dict(enumerate(names)), tmp_path / "teacher")
    losses = {"task": {}, "kd": {}, "cwd": {}}
    given = {"teacher": folder, "teacher_features": "decode_head.bottleneck.activation", "losses": losses}
    given["teacher_classes"] = {"person": ["man", "woman"]}
    distill.main([*command(tmp_path, **given), "--teacher_classes.marking", "line"])
    log = json.loads((tmp_path / "run" / "training_log.json").read_text())
    assert {"loss_kd", "loss_cwd"} <= log[0].keys() and (tmp_path / "run" / "figures" / "predictions.png").is_file()


def test_a_class_that_the_teacher_lacks_is_trained_and_scored(distill, tmp_path, capsys):
    """The run goes on with it, and `evaluate` scores such a teacher before anything is trained."""
    folder = saved("segformer", {index: name for index, name in LABELS.items() if name != "marking"}, tmp_path / "t")
    losses = {"task": {}, "kd": {}, "dist": {}, "cwd_logits": {"type": "cwd", "layer": "logits"}}
    assert "learned from labels alone" in refused(distill, command(tmp_path, teacher=folder, losses=losses))
    report = distill.main(
        command(tmp_path, teacher=folder, losses=losses, teacher_classes={"marking": None}, overwrite=True)
    )
    assert report["models"]["teacher"]["per_class_iou"]["marking"] in (None, 0.0)
    argv = [folder, "--dataset", "synthetic", "--dataset_config", json.dumps(RECIPE["dataset_config"])]
    argv += ["--teacher_classes", "{marking: null}", "--output_dir", str(tmp_path / "scores"), "--no_figures"]
    (scores,) = importlib.import_module("hf_segkd.commands.evaluate").main([*argv, "--device", "cpu"]).values()
    assert scores["per_class_iou"] == report["models"]["teacher"]["per_class_iou"]


def refused(distill, argv) -> str:
    with pytest.raises(SystemExit) as stop:
        distill.main(argv)
    return str(stop.value.code)


def test_teacher_that_cannot_read_whole_images_ends_the_run_well(distill, tmp_path, capsys):
    """A square crop suits DPT, the figure's 32x48 images do not: hours of training must not end in its traceback."""
    folder = saved("dpt", LABELS, tmp_path / "teacher")
    distill.main(command(tmp_path, teacher=folder))
    assert "without the teacher: This model (dpt) reads square images only" in capsys.readouterr().out
    assert (tmp_path / "run" / "metrics.json").is_file()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crop_size": [32, 48]}, "reads square images only, got 32x48"),
        ({"teacher_features": "head.hed.3"}, "has no module 'head.hed.3'"),
        ({"teacher_classes": {"moon": "sky"}}, "the dataset has no class 'moon'"),
    ],
)
def test_unfit_teacher_is_refused_before_training(distill, tmp_path, changes, message):
    """Each of these would be found at the first step of a queued job."""
    folder = saved("dpt", LABELS, tmp_path / "teacher")
    with pytest.raises(SystemExit) as stop:
        distill.main(command(tmp_path, teacher=folder, **changes))
    assert str(stop.value.code).startswith("error: ") and message in str(stop.value.code)


def test_shipped_map_from_cityscapes_to_camvid_fits():
    """A recipe for a teacher of the Hub cannot be run here; its names can be checked."""
    recipe = yaml.safe_load((ROOT / "hf_segkd/recipes/pairs/segformer-cityscapes_espnet-c.yaml").read_text())
    labels = DATASETS["camvid"].labels
    groups = match_classes(CITYSCAPES, labels, recipe["teacher_classes"])
    found = {label: [CITYSCAPES[index] for index in group] for label, group in zip(labels, groups, strict=True)}
    assert found["SignSymbol"] == ["traffic light", "traffic sign"] and found["Road"] == ["road"]
