"""Recipes: merging, overrides, types and refusals."""

import time
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from transformers import get_scheduler

from dataset_builders import DataArguments, data_options
from helpers.paths import ROOT
from hf_segkd.recipe import dump, find_recipes, load_yaml, merge, parse
from hf_segkd.training.config import DistillationConfig

RECIPES = ROOT / "hf_segkd" / "recipes"


@dataclass
class Options:
    dataset: str
    student: dict | str | None = None
    rate: float = 0.1
    crop: list[int] = field(default_factory=lambda: [8, 8])
    flip: bool = True
    words: list[str] | None = None
    losses: dict | str | None = None


def write(folder, name, text):
    path = folder / name
    path.write_text(text)
    return str(path)


def test_later_recipes_win_and_flags_win_over_recipes(tmp_path):
    """The order in the command is the only inheritance there is."""
    first = write(tmp_path, "a.yaml", "dataset: camvid\nrate: 1e-4\nlosses: {task: {}, kd: {weight: 1}}\n")
    second = write(tmp_path, "b.yaml", "rate: 2e-3\nlosses: {kd: {temperature: 4}}\n")
    argv = [first, second, "--dataset", "voc", "--losses.kd.weight", "3e0", "--crop", "4", "6"]
    (options,), recipe = parse((Options,), argv)
    assert (options.dataset, options.rate, options.crop) == ("voc", 2e-3, [4, 6])
    assert options.losses == {"task": {}, "kd": {"weight": 3.0, "temperature": 4}}
    assert recipe["dataset"] == "voc" and recipe["crop"] == [4, 6] and recipe["losses"] == options.losses


def test_merged_recipe_alone_gives_the_same_run(tmp_path):
    """output_dir/recipe.yaml is the record of a run; it must be enough to run it again."""
    first = write(tmp_path, "a.yaml", "dataset: camvid\nstudent: {model_type: espnet, depths: [1, 2]}\n")
    argv = [first, "--rate", "1e-5", "--no_flip", "--losses.cwd.weight", "3", "--student.use_decoder", "false"]
    (options,), recipe = parse((Options,), argv)
    dump(recipe, tmp_path / "recipe.yaml")
    (again,), _ = parse((Options,), [str(tmp_path / "recipe.yaml")])
    assert again == options
    assert again.student == {"model_type": "espnet", "depths": [1, 2], "use_decoder": False} and again.flip is False


@pytest.mark.parametrize(
    "text, value",
    [
        ("runs/teacher", "runs/teacher"),
        ("user/model", "user/model"),
        ("{model_type: espnet, depths: [1, 2]}", {"model_type": "espnet", "depths": [1, 2]}),
        ('{"model_type": "espnet"}', {"model_type": "espnet"}),
    ],
)
def test_a_flag_takes_a_name_or_a_mapping(text, value):
    """HfArgumentParser alone refuses both: its reading of `dict | str` is a function that no text passes."""
    (options,), recipe = parse((Options,), ["--dataset", "camvid", "--student", text])
    assert options.student == value and recipe["student"] == value


def test_yaml_reads_scientific_notation_as_numbers_and_yes_as_text():
    """Plain PyYAML reads 1e-4 as a string and a class called `no` as False."""
    assert load_yaml("[1e-4, 2.5E+3, -1.e-2, 7, true, yes, no, 1.0, .5]") == [
        *(1e-4, 2500.0, -0.01, 7, True, "yes", "no", 1.0, 0.5)
    ]


def test_merge_leaves_its_arguments_alone():
    """A recipe used twice in one process must not remember the first run."""
    base = {"losses": {"kd": {"weight": 1}}}
    assert merge(base, {"losses": {"kd": {"weight": 2}}}) == {"losses": {"kd": {"weight": 2}}}
    assert base == {"losses": {"kd": {"weight": 1}}}


def test_null_takes_a_mapping_out(tmp_path):
    """A method that a crop or a machine cannot run, such as a discriminator, would need a recipe of its own."""
    first = write(
        tmp_path, "a.yaml", "dataset: camvid\nlosses: {task: {}, kd: {weight: 1}, adversarial: {weight: 2}}\n"
    )
    second = write(tmp_path, "b.yaml", "losses: {kd: null}\n")
    (options,), recipe = parse((Options,), [first, second, "--losses.adversarial", "null"])
    assert options.losses == recipe["losses"] == {"task": {}}
    (options,), _ = parse((Options,), [first, second, "--losses.kd.temperature", "4"])
    assert options.losses == {"task": {}, "kd": {"temperature": 4}, "adversarial": {"weight": 2}}


def test_null_inside_a_mapping_stays_a_value():
    """`pool_hidden_size: null` asks for a network's own default and must reach it."""
    assert merge({"student": {"depths": [1]}}, {"student": {"width": None, "depths": None}}) == {
        "student": {"depths": None, "width": None}
    }


def test_losses_that_are_null_are_left_out(tmp_path):
    """One queue of commands can then take a loss out of every method, those without it included."""
    losses = {"task": {}, "kd": {}, "adversarial": None}
    config = DistillationConfig(output_dir=str(tmp_path), use_cpu=True, losses=losses)
    assert config.losses == {"task": {}, "kd": {}} and "adversarial" in losses
    with pytest.raises(ValueError, match="The recipe has no losses"):
        DistillationConfig(output_dir=str(tmp_path), use_cpu=True, losses={"task": None})


def test_misspelled_null_is_refused(tmp_path):
    """The loss that was meant would go on training unnoticed."""
    with pytest.raises(ValueError, match="losses.adverserial is null.*no such loss.*task, adversarial"):
        losses = {"task": {}, "adversarial": {}, "adverserial": None}
        DistillationConfig(output_dir=str(tmp_path), use_cpu=True, losses=losses)


@pytest.mark.parametrize(
    "text, flags, message",
    [
        ("dataset: camvid\nstudnet: x\n", [], "Unknown key in the recipe: 'studnet'. Did you mean 'student'?"),
        ("dataset: camvid\n", ["--crop_sise", "3"], "Unknown key in the recipe: 'crop_sise'."),
        ("dataset: camvid\n", ["--rate", "fast"], "rate"),
        ("dataset: camvid\nrate: fast\n", [], "rate"),
        ("- a\n", [], "must hold a mapping"),
        ("a: [1\n", [], "is not valid YAML"),
        ("rate: 1\n", [], "dataset"),
        ("7: camvid\n", [], "the key 7 must be a word"),
        ("dataset: 2024_01\n", [], "dataset must be a word, got 202401. Put quotes around text."),
        ("dataset: camvid\ncrop: 8\n", [], "crop must be a list, each entry a whole number, got 8"),
        ("dataset: !!timestamp 1\n", [], "the tag tag:yaml.org,2002:timestamp is not supported"),
        ("dataset: !mine camvid\n", [], "the tag !mine is not supported"),
        ("dataset: a\ndataset: b\n", [], "the key 'dataset' is given twice"),
        ("dataset: &name camvid\nstudent: *name\n", [], "the alias *name is not supported"),
        ("dataset: camvid\n", ["--losses.kd.weight", "\x1f"], "is not valid YAML"),
        ("dataset: 2024-02-30\n", [], "is not valid YAML"),
        ("dataset: camvid\nrate: nan\n", [], "rate must be a finite number"),
        ("dataset: camvid\nrate: [1]\n", [], "rate must be a finite number"),
        ("dataset: camvid\nrate: true\n", [], "rate must be a finite number"),
        ("dataset: camvid\nlosses: [kd]\n", [], "losses must be a mapping"),
    ],
)
def test_wrong_recipes_are_refused_with_the_reason(tmp_path, text, flags, message):
    """A key that nobody reads would silently train something else."""
    with pytest.raises(ValueError) as error:
        parse((Options,), [write(tmp_path, "recipe.yaml", text), *flags])
    assert message in str(error.value)


def test_missing_recipe_file_is_named():
    """argparse would call it an unrecognized argument."""
    with pytest.raises(ValueError, match="Recipe 'nowhere.yaml' does not exist"):
        parse((Options,), ["nowhere.yaml"])


def test_recipe_after_a_flag_is_told_where_it_belongs(tmp_path):
    """`distill camvid --data_dir CamVid kd_cwd` is easily written; argparse names the word and no reason."""
    with pytest.raises(ValueError, match="'kd_cwd' belongs to no flag. Recipes come before the first flag"):
        parse((Options,), [write(tmp_path, "recipe.yaml", "dataset: camvid"), "--rate", "1", "kd_cwd"])


@pytest.mark.parametrize("text", ["[" * 100_000, "{a: " * 100_000, "- " * 100_000, "a: [" * 60 + "]" * 60])
def test_deep_nesting_is_refused_at_once(text):
    """PyYAML alone needs seconds for it, then ends in a RecursionError."""
    begin = time.process_time()
    with pytest.raises(ValueError, match="is not valid YAML"):
        load_yaml(text)
    # About 0.6 s; PyYAML alone takes 5.
    assert time.process_time() - begin < 3


# ---- text flags -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["2024_01", "1:30", "*.jpg", "null", "1e-4", "no", "0x1F", "-x", "{a: 1}", "# 1", ""])
def test_text_is_recorded_as_it_was_given(tmp_path, text):
    """Read as YAML, `--dataset 2024_01` would be recorded as 202401: another folder when the recipe is run again."""
    (options,), recipe = parse((Options,), [f"--dataset={text}"])
    assert options.dataset == recipe["dataset"] == text
    dump(recipe, tmp_path / "recipe.yaml")
    (again,), _ = parse((Options,), [str(tmp_path / "recipe.yaml")])
    assert again == options


@pytest.mark.parametrize("flags", [["--dataset=--"], ["--dataset", "--"], ["--words", "a", "--"]])
def test_two_dashes_are_no_value(flags):
    """argparse took them out: the dataset became an empty list."""
    with pytest.raises(ValueError, match="'--' cannot be a value"):
        parse((Options,), flags)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.characters(), max_size=8), words=st.lists(st.text(max_size=5), min_size=1, max_size=2))
def test_recipe_with_odd_texts_repeats_the_run(tmp_path, text, words):
    """A text that YAML reads as something else would make `recipe.yaml` another run than the one it records."""
    assume(text != "--")
    words = [word for word in words if not word.startswith("-")] or ["a"]
    (options,), recipe = parse((Options,), [f"--dataset={text}", "--words", *words])
    assert options.dataset == text and options.words == words
    dump(recipe, tmp_path / "recipe.yaml")
    (again,), recorded = parse((Options,), [str(tmp_path / "recipe.yaml")])
    assert again == options and recorded == recipe


# ---- recipes by name ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words, files",
    [
        (["camvid", "espnet_espnet-c", "kd_cwd"], ["datasets/camvid", "pairs/espnet_espnet-c", "methods/kd_cwd"]),
        (["synthetic", "synthetic", "baseline"], ["datasets/synthetic", "pairs/synthetic", "methods/baseline"]),
        (["camvid", "synthetic", "kd"], ["datasets/camvid", "pairs/synthetic", "methods/kd"]),
        (["synthetic"], ["datasets/synthetic"]),
        (["pairs/synthetic", "kd"], ["pairs/synthetic", "methods/kd"]),
        (["synthetic", "kd", "cwd"], ["datasets/synthetic", "methods/kd", "methods/cwd"]),
    ],
)
def test_recipes_are_found_by_name_in_the_order_of_the_command(words, files):
    """Who installed the library from PyPI has no folder of recipes to name."""
    assert find_recipes(words) == [RECIPES / f"{file}.yaml" for file in files]


def test_recipe_by_path_and_by_name_may_be_mixed(tmp_path):
    """An own dataset with a released method is the common case."""
    own = write(tmp_path, "own.yaml", "dataset: camvid\n")
    assert find_recipes([own, "kd_cwd"]) == [tmp_path / "own.yaml", RECIPES / "methods" / "kd_cwd.yaml"]


@pytest.mark.parametrize(
    "words, message",
    [
        (["camvit"], "Unknown recipe 'camvit'. Did you mean 'camvid' (datasets)?"),
        (["camvid", "pairs/espnet_espnet-d"], "Did you mean 'espnet_espnet-c' (pairs)?"),
        (["scripts/recipes/methods/kd_cwd.yaml"], "does not exist. Did you mean 'kd_cwd' (methods)?"),
        (["camvid", "pairs/synthetic", "synthetic"], "is ambiguous in this place. Write datasets/synthetic or pairs/"),
    ],
)
def test_unknown_and_ambiguous_names_say_what_was_meant(words, message):
    """A guessed recipe would train something else."""
    with pytest.raises(ValueError) as error:
        find_recipes(words)
    assert message in str(error.value)


def test_name_of_two_kinds_after_a_file_is_refused(tmp_path):
    """The file may be the dataset or the pair: the position of the name then says nothing."""
    with pytest.raises(ValueError, match="Write datasets/synthetic or pairs/synthetic"):
        find_recipes([write(tmp_path, "own.yaml", "dataset: camvid\n"), "synthetic"])


@pytest.mark.parametrize(
    "options, message",
    [
        ({"per_device_train_batch_size": 0}, "per_device_train_batch_size must be at least 1, got 0"),
        ({"per_device_eval_batch_size": -2}, "per_device_eval_batch_size must be at least 1, got -2"),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps must be at least 1"),
        ({"dataloader_num_workers": -1}, "dataloader_num_workers must be at least 0"),
        ({"learning_rate": -1.0}, "learning_rate must be at least 0"),
        ({"max_steps": 0}, "train nothing"),
        ({"num_train_epochs": 0}, "train nothing"),
        ({"metric_for_best_model": "miou"}, "metric_for_best_model must be one of mean_iou,"),
        ({"neftune_noise_alpha": 5.0}, "neftune_noise_alpha"),
        ({"optim_args": "3"}, "optim_args 3"),
        ({"lr_scheduler_kwargs": {"powr": 1}}, "cannot be made: .*powr"),
        ({"fsdp": "full_shard"}, "FSDP splits a model .* train with DDP"),
        ({"deepspeed": "zero.json"}, "DeepSpeed splits a model .* train with DDP"),
        ({"losses": "kd"}, "losses must be a mapping"),
    ],
    ids=str,
)
def test_arguments_that_would_fail_only_in_training_are_refused(tmp_path, options, message):
    """transformers notices them at the first step, after the networks were loaded and the data was read."""
    with pytest.raises(ValueError, match=message):
        DistillationConfig(output_dir=str(tmp_path), use_cpu=True, **options)


def test_another_end_of_the_learning_rate_keeps_the_schedules_power(tmp_path):
    """`--lr_scheduler_kwargs.lr_end 1e-4` alone would fall back to transformers' power 1, a straight line."""
    config = DistillationConfig(
        output_dir=str(tmp_path),
        use_cpu=True,
        learning_rate=0.02,
        max_steps=100,
        lr_scheduler_kwargs={"lr_end": 1e-4},
    )
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.02)
    schedule = get_scheduler(config.lr_scheduler_type, optimizer, 0, 100, config.lr_scheduler_kwargs)
    for step in range(100):
        assert schedule.get_last_lr()[0] == pytest.approx(1e-4 + (0.02 - 1e-4) * (1 - step / 100) ** 0.9)
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize("name", ["FSDP", "DEEPSPEED"])
def test_sharding_that_accelerate_asks_for_is_refused(tmp_path, monkeypatch, name):
    """`accelerate launch --use_fsdp` says so in the environment alone."""
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    with pytest.raises(ValueError, match="splits a model"):
        DistillationConfig(output_dir=str(tmp_path), use_cpu=True)


@pytest.mark.parametrize("path", sorted(RECIPES.rglob("*.yaml")), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_shipped_recipe_is_read_and_says_where_its_numbers_come_from(path, tmp_path):
    """A recipe that no test reads is broken by the next renamed option."""
    text = path.read_text()
    assert text.startswith("# ")
    keys = load_yaml(text)
    known = {"dataset", "student", "teacher", "data_dir", "crop_size", "scale_range", "dataset_config"}
    known |= {"teacher_features", "teacher_classes", "flip", "interpolation"}
    config = DistillationConfig(
        output_dir=str(tmp_path), use_cpu=True, **{key: value for key, value in keys.items() if key not in known}
    )
    assert config.losses


@pytest.mark.parametrize("text", ["{seed: 1}", '{"seed": 1}'])
def test_dataset_config_of_every_command_is_read_as_in_recipes(text):
    """`evaluate --dataset_config '{num_train: 8}'` would be refused where `distill` takes it."""
    assert data_options(DataArguments(dataset_config=text)) == {"seed": 1}


@pytest.mark.parametrize("text", ["{0: sky, 7: road}", '{"0": "sky", "7": "road"}'])
def test_label_map_of_every_command_is_read_as_in_recipes(text):
    """`--help` said "JSON", and the text was taken for the name of a file that does not exist."""
    found = data_options(DataArguments(label_map=text))["label_map"]
    assert {int(key): name for key, name in found.items()} == {0: "sky", 7: "road"}
    assert data_options(DataArguments(label_map="map.json")) == {"label_map": "map.json"}


@pytest.mark.parametrize("value", ["seed", "[1]", {0: None}, "{1: 2}"])
def test_dataset_config_that_is_no_mapping_of_options_is_refused(value):
    """A key that is no word would end as `TypeError: keywords must be strings`."""
    with pytest.raises(ValueError, match="dataset_config must be a mapping of options"):
        data_options(DataArguments(dataset_config=value))
