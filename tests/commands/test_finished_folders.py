"""A file that exists is no proof that the work is done: what counts as finished, and what is never replaced."""

import json
import os
import shutil
import stat

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from helpers.commands import distill, recipe, script
from helpers.tiny import RECIPE
from hf_segkd.commands import benchmark, convert, demo, export, push, quickstart
from hf_segkd.reports.files import model_names
from hf_segkd.training.finished_run import missing_of_run

pytestmark = pytest.mark.usefixtures("module_without_figures")


def cut(path):
    path.write_bytes(path.read_bytes()[:-10])


DAMAGE = {
    "no student": (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors is missing"),
    "empty student": (lambda folder: (folder / "model.safetensors").write_bytes(b""), "model.safetensors is damaged"),
    "short student": (lambda folder: cut(folder / "model.safetensors"), "model.safetensors is damaged"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "config.json is missing"),
    "empty scores": (lambda folder: (folder / "metrics.json").write_bytes(b""), "metrics.json is damaged"),
    "wrong index": (
        lambda folder: (folder / "model.safetensors.index.json").write_text("[]"),
        "model.safetensors.index.json is damaged",
    ),
    "no scores": (lambda folder: (folder / "metrics.json").unlink(), "metrics.json is missing"),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Folder of a finished run of one step."""
    folder = tmp_path_factory.mktemp("whole")
    before = os.umask(0o022)
    distill.main([recipe(folder, max_steps=1, eval_steps=1, save_steps=1), "--output_dir", str(folder / "run")])
    os.umask(before)
    return folder / "run"


@pytest.fixture
def finished(whole, tmp_path):
    """A copy that may be damaged."""
    return shutil.copytree(whole, tmp_path / "run")


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_folder_is_no_finished_run(finished, kind):
    """`quickstart`, `benchmark` and `push` went on from scores without a student."""
    assert missing_of_run(finished) is None
    act, message = DAMAGE[kind]
    act(finished)
    assert missing_of_run(finished) == message
    with pytest.raises(SystemExit, match=f"not the folder of a finished run: {message}"):
        push.main([str(finished), "somebody/student"])


def test_resume_trains_a_student_that_is_gone_again(finished, tmp_path):
    """The folder said `Nothing to resume: holds a finished run`, and held none."""
    before = load_file(finished / "model.safetensors")
    (finished / "model.safetensors").unlink()
    given = recipe(tmp_path, max_steps=1, eval_steps=1, save_steps=1)
    distill.main([given, "--output_dir", str(finished), "--resume"])
    after = load_file(finished / "model.safetensors")
    assert missing_of_run(finished) is None and all(torch.equal(x, after[key]) for key, x in before.items())


def test_scores_of_before_go_when_a_run_begins(finished, tmp_path, monkeypatch):
    """Killed after the student was written, the folder would hold the new student beside the scores of the old one."""
    given = recipe(tmp_path, max_steps=1, eval_steps=1, save_steps=1)
    (finished / "model.safetensors").unlink()
    monkeypatch.setattr("hf_segkd.training.trainer.DistillationTrainer.train", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        distill.main([given, "--output_dir", str(finished), "--resume"])
    assert not (finished / "metrics.json").exists()


@pytest.mark.parametrize("kind", DAMAGE)
def test_quickstart_trains_damaged_folders_again(whole, tmp_path, kind, monkeypatch):
    """It tabulated the scores of a student that was gone."""
    trained = []
    for name in ("teacher", "student_alone", "student_distilled"):
        shutil.copytree(whole, tmp_path / "seed0" / name)
    DAMAGE[kind][0](tmp_path / "seed0" / "student_alone")

    def run(argv):
        folder = quickstart.Path(argv[argv.index("--output_dir") + 1])
        trained.append(folder.name)
        shutil.copytree(whole, folder, dirs_exist_ok=True)

    monkeypatch.setattr(distill, "main", run)
    quickstart.main(["--output_dir", str(tmp_path)])
    assert trained == ["student_alone"]


@pytest.fixture
def queue_of_one(whole, tmp_path, monkeypatch):
    """A benchmark of one run, whose training copies a finished run; how often it trained and scored."""
    counts = {"trained": 0, "scored": 0}

    class Done:
        returncode = 0

    def train(command, **options):
        counts["trained"] += 1
        shutil.copytree(whole, tmp_path / "out" / "baseline" / "seed0", dirs_exist_ok=True)
        return Done

    real = benchmark.score

    def score(run, dataset, split):
        counts["scored"] += 1
        real(run, dataset, split)

    monkeypatch.setattr(benchmark.subprocess, "run", train)
    monkeypatch.setattr(benchmark, "score", score)
    monkeypatch.setattr("hf_segkd.reports.method_benchmark.changed_keys", lambda *args: [])
    given = recipe(tmp_path, max_steps=1, eval_steps=1, save_steps=1)

    def call(split="test"):
        assert benchmark.main([given, "--output_dir", str(tmp_path / "out"), "--split", split]) == 0
        return dict(counts)

    return call, tmp_path / "out" / "baseline" / "seed0"


def test_benchmark_scores_again_what_is_not_of_this_student_and_split(queue_of_one):
    """Scores of the validation split stood in the table of the test split."""
    call, folder = queue_of_one
    assert call() == {"trained": 1, "scored": 1}
    assert call() == {"trained": 1, "scored": 1}
    assert call("validation") == {"trained": 1, "scored": 2}
    assert json.loads((folder / "scores.json").read_text())["split"] == "validation"
    cut(folder / "scores.json")
    assert call("validation") == {"trained": 1, "scored": 3}
    (folder / "model.safetensors").unlink()
    assert call("validation") == {"trained": 2, "scored": 4}


def test_profile_and_benchmark_write_different_files(whole):
    """Both wrote `benchmark.json`: a profiled student counted as scored, and a scored one had no card."""
    profile = script("profile").__doc__ + script("profile").parser().format_help()
    assert "benchmark.json" in profile and benchmark.SCORES != "benchmark.json"


def evaluate(*argv):
    data = ["--dataset", "synthetic", "--dataset_config", json.dumps(RECIPE["dataset_config"]), "--device", "cpu"]
    return script("evaluate").main([*map(str, argv), *data])


def test_evaluation_does_not_replace_the_scores_of_a_run(finished, tmp_path):
    """`evaluate runs/a runs/b --output_dir runs` wrote over `runs/a/metrics.json`, of which the card is made."""
    before = (finished / "metrics.json").read_bytes()
    other = shutil.copytree(finished, tmp_path / "other")
    for argv in ([finished, "--output_dir", finished], [finished, other, "--output_dir", tmp_path]):
        with pytest.raises(SystemExit, match="holds a training run with scores of its own"):
            evaluate(*argv)
    assert (finished / "metrics.json").read_bytes() == before


def test_names_of_results_stay_in_their_folder(tmp_path, monkeypatch):
    """The name of `..` is `..`: results were written beside the output folder."""
    monkeypatch.chdir(tmp_path)
    assert list(model_names(["..", "."])) == [tmp_path.parent.name, tmp_path.name]


def test_conversion_does_not_replace_a_run(finished, tmp_path):
    """The scores would be those of another model."""
    with pytest.raises(SystemExit, match="holds a training run"):
        convert.main([str(tmp_path / "x.pth"), str(finished), "--overwrite"])


def test_picture_of_the_data_replaces_no_other(tmp_path, monkeypatch):
    """Without --output it goes into the working folder, where an `overview.png` may be somebody's own."""
    monkeypatch.chdir(tmp_path)
    argv = ["folder", "--data_dir", "data", "--labels", "sky", "road"]
    for index in range(4):
        for kind, shape in (("images", (16, 16, 3)), ("masks", (16, 16))):
            (tmp_path / "data" / kind).mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(index).integers(0, 2, shape, dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / kind / f"{index}.png")
    prepare = script("prepare")
    prepare.main(argv)
    prepare.main(argv)  # its own may be drawn again
    Image.new("RGB", (4, 4)).save("overview.png")
    before = (tmp_path / "overview.png").read_bytes()
    with pytest.raises(SystemExit, match="overview.png' is in the way"):
        prepare.main(argv)
    assert (tmp_path / "overview.png").read_bytes() == before


def test_space_is_not_written_into_a_folder_of_others(tmp_path):
    """`--space .` replaced the README.md of a project."""
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(SystemExit, match="holds no earlier Space"):
        demo.main(["user/student", "--space", str(tmp_path)])
    assert (tmp_path / "README.md").read_text() == "mine"


def test_export_keeps_files_of_another_model(tmp_path, monkeypatch):
    """`model_int8.onnx` of an earlier model stayed beside the new `model_fp32.onnx`, in one folder."""
    (tmp_path / "model_int8.onnx").write_bytes(b"earlier")
    made_with = {"model": "a", "output": "labels", "size": None}
    with pytest.raises(ValueError, match="holds model_int8.onnx of another model"):
        export.begin_export(tmp_path, made_with, overwrite=False)
    export.begin_export(tmp_path, made_with, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["export.json"]
    (tmp_path / "model_fp32.onnx").write_bytes(b"of an export that was interrupted")
    export.begin_export(tmp_path, made_with, overwrite=False)
    with pytest.raises(ValueError, match="of another model, --output or --size"):
        export.begin_export(tmp_path, {**made_with, "output": "logits"}, overwrite=False)
    assert (tmp_path / "model_fp32.onnx").is_file()


def test_weights_can_be_read_by_whom_the_umask_allows(whole):
    """safetensors writes 0600: colleagues and servers got the config of a student and not its weights."""
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in whole.iterdir() if path.is_file()}
    assert modes["model.safetensors"] == modes["config.json"] == 0o644
