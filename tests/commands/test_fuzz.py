"""Malformed recipes and command lines: each ends in a run plan or in one paragraph that says what is wrong."""

import contextlib
import io
import os
import string
from inspect import signature

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers.paths import ROOT
from hf_segkd.commands import distill
from hf_segkd.losses import COMMON_OPTIONS, LOSSES, LossSetup, build_losses
from hf_segkd.training.config import DistillationConfig

FOLDER = ROOT / "hf_segkd" / "recipes"
RECIPES = sorted(FOLDER.glob("*/*.yaml"))
FIELDS = sorted({*distill.ScriptArguments.__dataclass_fields__, *DistillationConfig.__dataclass_fields__})
GOOD = [str(FOLDER / name) for name in ("datasets/camvid.yaml", "methods/baseline.yaml")]
GOOD += ["--student", "{model_type: espnet}", "--teacher", "teacher", "--output_dir", "run"]
EXAMPLES = int(os.environ.get("HF_SEGKD_FUZZ_EXAMPLES", "200"))  # of each test; `make test-slow` takes 2000

numbers = st.one_of(
    st.integers(-3, 3),
    st.sampled_from([10**30, -(10**30), 1e308, 1e-320, 0.5, float("nan"), float("inf"), -float("inf")]),
)
words = st.one_of(
    st.text(max_size=6),
    st.text(string.printable, max_size=10),
    st.sampled_from(["", " ", "null", "~", "true", "no", "1e-4", "0x10", "{", "[1,", "{a: 1}", "é", "%d {}"]),
)
scalars = st.one_of(numbers, words, st.none(), st.booleans())
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=2), st.dictionaries(st.one_of(words, numbers), inner, max_size=2)
    ),
    max_leaves=4,
)
methods = st.one_of(st.sampled_from(sorted(LOSSES)), words)
options = st.sampled_from(sorted({*COMMON_OPTIONS, *(x for m in LOSSES.values() for x in signature(m).parameters)}))
losses = st.dictionaries(
    methods, st.one_of(values, st.dictionaries(st.one_of(options, words), values, max_size=2)), min_size=1, max_size=2
)
names = st.one_of(st.sampled_from(FIELDS), words)
recipes = st.one_of(
    st.dictionaries(names, values, max_size=3).map(yaml.safe_dump),
    st.fixed_dictionaries({"losses": losses}).map(yaml.safe_dump),
    st.one_of(values, st.text(max_size=30)).map(lambda x: x if isinstance(x, str) else yaml.safe_dump(x)),
    st.sampled_from(
        [
            "a: !!python/object/apply:os.system [exit]",
            "a: &x [*x]",
            "seed: 1\nseed: 2",
            "losses: {kd: {}, kd: {weight: 2}}",
            "? [a, b]\n: 1",
            "- seed",
            "\tseed: 1",
            "seed: 2024-02-30",
            "\ufeffseed: 1",
            "seed: \x00",
        ]
    ),
)
dotted = st.builds(".".join, st.lists(st.one_of(methods, options, words), min_size=1, max_size=3))
flags = st.builds(
    lambda name, equals, given: [f"--{name}{equals}", *given],
    st.one_of(names, dotted, dotted.map("losses.{}".format)),
    st.sampled_from(["", "", "", "=", "=1", "=null"]),
    st.lists(st.one_of(words, scalars.map(str), values.map(lambda x: yaml.safe_dump(x).strip())), max_size=2),
)


class Planned(Exception):
    """A valid plan: what would be trained from here on."""


@pytest.fixture
def plan(monkeypatch, tmp_path):
    """The script up to the plan: a command line to its arguments and its losses, no data, no network, no model."""

    def build(script, config, dataset):
        build_losses(config.losses, loss_setup())
        raise Planned(script, config)

    def plan(argv):
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            distill.main(argv)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(distill, "build", build)
    monkeypatch.setattr("hf_segkd.training.checks.find_checkpoint", lambda *_: None)
    monkeypatch.setattr("hf_segkd.hub.pin_revision", lambda *_: None)
    return plan


def loss_setup() -> LossSetup:
    shapes = {"logits": 3, "aux_logits": 3, "features": 4, "hidden_states.0": 4}
    shapes = {field: torch.Size((1, channels, 65, 65)) for field, channels in shapes.items()}
    return LossSetup(shapes, 3, shapes)


def ends_well(plan, argv: list[str]) -> None:
    try:
        plan(argv)
    except Planned:
        return
    except SystemExit as end:
        if end.code in (0, None) and {"--help", "-h"} & set(argv):
            return
        message = end.code
    assert isinstance(message, str) and message.startswith("error: ") and len(message) > 20
    assert "\n\n" not in message.strip() and "Traceback" not in message and len(message) < 5000


thoroughly = settings(
    max_examples=EXAMPLES, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)


@thoroughly
@given(
    files=st.lists(st.sampled_from(RECIPES), max_size=3),
    own=st.one_of(st.none(), recipes),
    flags=st.lists(flags, max_size=3),
)
def test_any_command_line_ends_in_a_plan_or_one_paragraph(plan, tmp_path, files, own, flags):
    """Whoever mistypes a recipe should read what to mend, not a traceback, and not after an hour of training."""
    argv = [str(file) for file in files]
    if own is not None:
        (tmp_path / "own.yaml").write_bytes(own.encode("utf-8", "surrogatepass"))
        argv.append("own.yaml")
    ends_well(plan, [*argv, *(word for flag in flags for word in flag), "--output_dir", "run"])


@thoroughly
@given(st.data())
def test_one_odd_value_in_a_good_recipe_ends_so_too(plan, tmp_path, data):
    """Wild recipes stop at their first unknown key; these reach what checks the values."""
    if data.draw(st.booleans()):
        method = data.draw(st.sampled_from(sorted(LOSSES)))
        option = data.draw(st.sampled_from([*COMMON_OPTIONS, *list(signature(LOSSES[method]).parameters)[1:]]))
        own = {"losses": {method: {option: data.draw(values)}}}
    else:
        own = {data.draw(st.sampled_from(FIELDS)): data.draw(values)}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(own))
    ends_well(plan, [*GOOD[:2], "own.yaml", *GOOD[2:]])


@pytest.mark.parametrize(
    "argv", [[], ["--"], ["-"], [""], ["."], ["missing.yaml"], ["--losses"], ["--=1"], ["x\0y"]], ids=repr
)
def test_odd_words_are_refused(plan, argv):
    ends_well(plan, argv)


def test_a_good_command_line_is_planned(plan):
    """Were everything refused, the test above would pass too."""
    with pytest.raises(Planned) as planned:
        plan([*GOOD, "--losses.task.weight", "2"])
    script, config = planned.value.args
    assert script.student == {"model_type": "espnet"} and config.losses == {"task": {"weight": 2}}
