"""Push and pull with the real client against a Hub on this machine: what is there, who can use it, what breaks."""

import json
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from PIL import Image
from safetensors.torch import load, load_file

from helpers.hub_runs import WITHOUT_PACKAGE, recipe, run, snippets
from helpers.hub_storage import Repository
from helpers.local_hub import LocalHub
from helpers.paths import ROOT
from helpers.tiny import LABELS
from hf_segkd.hub import released_processor
from hf_segkd.loading.any_model import load_model
from hf_segkd.models import MODELS, default_processor
from hf_segkd.recipe import load_yaml
from hf_segkd.values import without_paths

DISTILL, PUSH = ROOT / "scripts" / "distill.py", ROOT / "scripts" / "push_to_hub.py"
RELEASED = {
    *("README.md", "config.json", "model.safetensors", "preprocessor_config.json"),
    *("recipe.yaml", "metrics.json", "training_log.json"),
    "modeling_segkd.py",
    *(f"figures/{name}.png" for name in ("classes", "curves", "predictions", "sample")),
}
# Loads each model folder named on the command line and saves its logits beside it.
SAVE_LOGITS = """
import torch, sys
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation
torch.set_num_threads(1)
for argument in sys.argv[2:]:
    name, _, trust = argument.partition(",")
    processor = AutoImageProcessor.from_pretrained(name, trust_remote_code=bool(trust))
    model = AutoModelForSemanticSegmentation.from_pretrained(name, trust_remote_code=bool(trust)).eval()
    with torch.no_grad():
        logits = model(**processor(Image.open(sys.argv[1]), return_tensors="pt")).logits
    torch.save(logits, name.replace("/", "_") + ".pt")
"""


@pytest.fixture(scope="module")
def hub():
    server = LocalHub()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def pushed(hub, tmp_path_factory):
    """A run that pushed its student and its training state; its folder, and what it printed."""
    folder = tmp_path_factory.mktemp("pushed")
    options = {"push_to_hub": True, "hub_model_id": "student", "hub_strategy": "checkpoint", "hub_private_repo": True}
    given = recipe(folder, **options, hub_token="hf_alice", keep_checkpoints=True)
    environment = hub.environment(folder / "cache", token=None)
    done = run([DISTILL, given, "--output_dir", folder / "run"], environment)
    assert done.returncode == 0, done.stdout
    return folder / "run", done.stdout


def logits_of(folder: Path) -> torch.Tensor:
    model, processor = load_model(str(folder))
    with torch.no_grad():
        return model(**processor(Image.open(folder / "figures" / "sample.png"), return_tensors="pt")).logits


def assert_same_logits(file: Path, wanted: torch.Tensor) -> None:
    """Up to the order of sums, which depends on where weights lie in memory, and a native processor's rounding."""
    torch.testing.assert_close(torch.load(file, weights_only=True), wanted, rtol=1e-5, atol=1e-6)


# ---- what is on the Hub ---------------------------------------------------------------------------------------------


def test_run_pushes_its_folder_and_training_state_where_it_was_asked(hub, pushed):
    """Optimizer state triples a download; an incomplete folder cannot be loaded or explained."""
    folder, printed = pushed
    files = hub.files("models/alice/student")
    state = {path for path in files if path.startswith("last-checkpoint/")}
    assert files.keys() - state == RELEASED
    assert {"last-checkpoint/optimizer.pt", "last-checkpoint/config.json"} < state
    assert all(files[name] == (folder / name).read_bytes() for name in RELEASED - {"recipe.yaml"})
    own = load_yaml((folder / "recipe.yaml").read_text())
    assert own["output_dir"] == str(folder) and load_yaml(files["recipe.yaml"].decode()) == without_paths(own)
    assert not any(str(folder.parent).encode() in files[name] for name in RELEASED)
    assert (folder / "checkpoint-4").is_dir() and hub.repositories["models/alice/student"].private
    assert f"{hub.endpoint}/alice/student/commit/" in printed


def test_token_is_in_no_file_and_no_log(hub, pushed):
    """A token in a public folder is found within minutes."""
    folder, printed = pushed
    contents = [path.read_bytes() for path in folder.rglob("*") if path.is_file()]
    contents += [*hub.files("models/alice/student").values(), printed.encode()]
    assert not any(b"hf_alice" in content for content in contents)


@pytest.mark.slow
def test_pull_without_the_package_gives_the_trainers_logits(hub, pushed, tmp_path):
    """The snippets of the card, in a process that has never heard of hf_segkd, are what a user does first."""
    folder, _ = pushed
    blocks = snippets(hub.files("models/alice/student")["README.md"].decode())
    program = WITHOUT_PACKAGE + "\n".join(blocks) + SAVE_LOGITS
    argv = ["-c", program, folder / "figures" / "sample.png", "alice/student,trust"]
    done = run(argv, hub.environment(tmp_path / "cache"), folder=tmp_path)
    assert done.returncode == 0 and "(48, 32)" in done.stdout, done.stdout
    assert_same_logits(tmp_path / "alice_student.pt", logits_of(folder))


@pytest.mark.slow
def test_resumed_from_the_hub_on_another_machine_ends_with_the_same_bits(hub, pushed, tmp_path):
    """Rented machines take their disk along when they go."""
    stored = hub.repositories["models/alice/student"]
    state = "last-checkpoint/trainer_state.json"
    steps = [json.loads(x[state].content)["global_step"] if state in x else 0 for x in stored.commits.values()]
    stored.branches["other"] = resumed = list(stored.commits)[steps.index(2)]
    options = {"push_to_hub": True, "hub_model_id": "student", "hub_strategy": "end", "hub_revision": "other"}
    argv = [DISTILL, recipe(tmp_path, **options), "--output_dir", tmp_path / "run", "--resume"]
    done = run(argv, hub.environment(tmp_path / "cache"))
    assert done.returncode == 0, done.stdout
    ours, theirs = load_file(tmp_path / "run" / "model.safetensors"), load_file(pushed[0] / "model.safetensors")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    # Two steps, not four: the first two were another machine's.
    assert f"GET /alice/student/resolve/{resumed}/{state}" in hub.requests and done.stdout.count("  loss ") == 2
    files = hub.files("models/alice/student", "other")
    assert 'revision="other"' in files["README.md"].decode() and files.keys() > RELEASED


@pytest.mark.slow
def test_teacher_from_the_hub_is_pinned_to_its_commit(hub, pushed, tmp_path):
    """`main` of tomorrow is another teacher; the recipe must say which one it was."""
    argv = [DISTILL, recipe(tmp_path, losses={"task": {}, "kd": {}}, max_steps=2), "--teacher", "alice/student"]
    done = run([*argv, "--output_dir", tmp_path / "run"], hub.environment(tmp_path / "cache"))
    assert done.returncode == 0, done.stdout
    sha = hub.repositories["models/alice/student"].branches["main"]
    assert f"teacher_revision: {sha}" in (tmp_path / "run" / "recipe.yaml").read_text()
    card = (tmp_path / "run" / "README.md").read_text()
    assert f"distilled from [alice/student](https://huggingface.co/alice/student/tree/{sha})" in card


@pytest.mark.slow
def test_dataset_goes_through_the_hub_unchanged(hub, tmp_path):
    """Prepared data is shared between machines the same way; its label maps must not be re-encoded."""
    program = """
import sys, numpy, datasets
if sys.argv[1] == "push":
    import dataset_builders
    options = {"num_train": 2, "num_validation": 1, "num_test": 1, "height": 32, "width": 48}
    rows = dataset_builders.open_dataset("synthetic", **options).all_splits()
    rows.push_to_hub("alice/scenes", private=True)
else:
    rows = datasets.load_dataset("alice/scenes")
for split in sorted(rows):
    for row in rows[split]:
        print("row", split, row["image_id"], numpy.array(row["annotation"]).astype(int).sum())
"""
    pushed = run(["-c", program, "push"], hub.environment(tmp_path / "here"))
    pulled = run(["-c", WITHOUT_PACKAGE + program, "pull"], hub.environment(tmp_path / "there"))
    rows = [[line for line in x.stdout.splitlines() if line.startswith("row ")] for x in (pushed, pulled)]
    assert len(rows[0]) == 4 and rows[0] == rows[1], pushed.stdout + pulled.stdout


# ---- failures -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_refused_credentials_stop_a_run_before_it_trains(hub, tmp_path):
    """Finding out after the last step costs the night."""
    program = """
import sys
sys.path.insert(0, "scripts")
import distill
for token, name in (("hf_wrong", "new"), ("hf_alice", "bob/student"), ("hf_reader", "alice/finished"), (None, "new")):
    argv = [sys.argv[1], "--output_dir", sys.argv[2], "--push_to_hub", "--hub_model_id", name]
    try:
        distill.main(argv + (["--hub_token", token] if token else []))
    except SystemExit as stop:
        print("refused", repr(str(stop.code)))
"""
    argv = ["-c", program, recipe(tmp_path), tmp_path / "run"]
    for name in ("models/bob/student", "models/alice/finished"):
        hub.repositories[name] = Repository(private=False)
        hub.repositories[name].commit("main", {})
    done = run(argv, hub.environment(tmp_path / "cache", token=None))
    refused = [line for line in done.stdout.splitlines() if line.startswith("refused")]
    assert ["(401)" in x for x in refused] == [True, False, False, True], done.stdout
    assert all("Log in with" in x or "may not write to" in x for x in refused) and "hf_" not in done.stdout
    assert not any((tmp_path / "run").iterdir())


@pytest.mark.slow
def test_upload_that_breaks_off_loses_nothing_and_the_printed_command_finishes_it(hub, tmp_path):
    """The first answer to a lost upload must not be a second training."""
    options = {"push_to_hub": True, "hub_model_id": "broken", "hub_strategy": "end", "max_steps": 1, "eval_steps": 1}
    argv = [DISTILL, recipe(tmp_path, **options, save_steps=1), "--output_dir", tmp_path / "run"]
    environment = hub.environment(tmp_path / "cache")
    address, port = hub.endpoint, int(hub.endpoint.rsplit(":", 1)[1])
    hub.stop()
    down = run(argv, environment)
    assert down.returncode == 1 and f"error: No answer from the Hub at {address}" in down.stdout, down.stdout
    hub.start(port)
    hub.fail("POST /api/models/alice/broken/commit/main", 500)
    broken = run(argv, environment)
    assert broken.returncode == 1 and "answered 500" in broken.stdout, broken.stdout
    assert "PUT /_objects/" in " ".join(hub.requests) and not hub.files("models/alice/broken")
    expected = RELEASED - {"figures/curves.png"}  # of one evaluation
    assert {path.relative_to(tmp_path / "run").as_posix() for path in (tmp_path / "run").rglob("*.*")} == expected
    (command,) = [line.strip() for line in broken.stdout.splitlines() if line.strip().startswith("hf-segkd push")]
    again = run(["-m", "hf_segkd", *shlex.split(command)[1:]], environment)
    assert again.returncode == 0, again.stdout
    assert hub.files("models/alice/broken").keys() == expected


@pytest.mark.slow
def test_failed_upload_during_training_does_not_stop_it(hub, tmp_path):
    """The Hub's bad minute is no reason to lose an hour; the last upload brings everything anyway."""
    hub.fail("POST /api/models/alice/bumpy/preupload/main", 403, times=1)
    options = {"push_to_hub": True, "hub_model_id": "bumpy", "max_steps": 1, "eval_steps": 1, "save_steps": 1}
    argv = [DISTILL, recipe(tmp_path, **options), "--output_dir", tmp_path / "run"]
    done = run(argv, {**hub.environment(tmp_path / "cache"), "TRANSFORMERS_VERBOSITY": "warning"})
    assert done.returncode == 0 and "An upload during training failed" in done.stdout, done.stdout
    assert hub.files("models/alice/bumpy").keys() == RELEASED - {"figures/curves.png"}


# ---- use without the package ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_saved_models_of_every_kind_load_without_the_package(tmp_path):
    """A model file that imports from the package instead of its siblings breaks only on the users' machines."""
    Image.new("RGB", (64, 48), (90, 120, 30)).save(tmp_path / "image.png")
    segformer = {"hidden_sizes": [8, 8, 8, 8], "depths": [1] * 4, "num_attention_heads": [1] * 4}
    specs = [{"model_type": config.model_type.removeprefix("segkd_")} for config in MODELS]
    specs.append({"model_type": "pspnet", "backbone": "efficientnet_lite0", "hidden_size": 8})
    specs.append({"model_type": "segformer", "decoder_hidden_size": 8, **segformer})
    wanted, names = {}, []
    for spec in specs:
        model = load_model(spec, id2label=LABELS)[0].eval()
        processor = released_processor(default_processor(model.config), model.config)
        folder = tmp_path / "-".join(filter(None, (spec["model_type"], spec.get("backbone"))))
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        with torch.no_grad():
            inputs = default_processor(model.config)(Image.open(tmp_path / "image.png"), return_tensors="pt")
            wanted[folder.name] = model(**inputs).logits
        native = spec["model_type"] == "segformer"
        assert native == (not list(folder.glob("*.py")))
        names.append(folder.name + ("" if native else ",trust"))
    done = run(["-c", WITHOUT_PACKAGE + SAVE_LOGITS, "image.png", *names], folder=tmp_path)
    assert done.returncode == 0, done.stdout
    for name, logits in wanted.items():
        assert_same_logits(tmp_path / f"{name}.pt", logits)


@pytest.mark.slow
def test_pull_in_an_environment_of_torch_transformers_and_pillow_alone(hub, pushed, tmp_path):
    """Blocking one import in this environment hides what the others bring along."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    site = next((tmp_path / "venv").glob("lib/python*/site-packages"))
    for name in requirements({"torch", "transformers", "pillow", "numpy"}):
        for file in metadata.files(name):
            top = file.parts[0]
            if top != ".." and not (site / top).exists() and Path(file.locate()).exists():
                (site / top).symlink_to(Path(str(file.locate())[: -len(str(file))]) / top)
    program = "\n".join(snippets(hub.files("models/alice/student")["README.md"].decode())) + SAVE_LOGITS
    argv = [tmp_path / "venv" / "bin" / "python", "-c", program, pushed[0] / "figures" / "sample.png"]
    environment = {**hub.environment(tmp_path / "cache"), "PATH": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*argv, "alice/student,trust"], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert_same_logits(tmp_path / "alice_student.pt", logits_of(pushed[0]))


def requirements(names: set[str]) -> set[str]:
    """Distributions that `names` need here, themselves included."""
    found, todo = set(), set(names)
    while todo:
        name = todo.pop()
        found.add(name)
        for line in metadata.requires(name) or ():
            needed = Requirement(line)
            if (needed.marker is None or needed.marker.evaluate({"extra": ""})) and needed.name not in found:
                todo.add(needed.name)
    return found


def test_weights_on_the_hub_are_those_of_the_best_step(hub, pushed):
    """What is downloaded in mid-training should be the best so far, not the latest."""
    folder, _ = pushed
    stored = load(hub.files("models/alice/student")["model.safetensors"])
    assert all(torch.equal(value, stored[name]) for name, value in load_file(folder / "model.safetensors").items())
