"""A recorded run of a plain loop, replayed in the trainer."""

import importlib.util
import shutil

import pytest

from helpers.paths import ROOT

FOLDER = ROOT / "tests" / "golden" / "trajectory"


@pytest.fixture(scope="module")
def trajectories():
    spec = importlib.util.spec_from_file_location("trajectories", ROOT / "benchmarks" / "trajectories.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_trainer_takes_the_steps_of_a_plain_loop(trajectories, capsys):
    """Loss, schedule, momentum, weight decay, normalization and upsampling at once: one slip moves the weights."""
    rows = trajectories.main([str(FOLDER)])
    assert [row[0] for row in rows] == ["1", "5"]
    # float32: sums in another order, 1e-6 of the movement after each of the two.
    assert all(float(row[1]) < 1e-4 for row in rows)
    assert "| step | difference | largest in | there |" in capsys.readouterr().out


@pytest.mark.parametrize(
    "old, new",
    [
        ("learning_rate: 0.02", "learning_rate: 0.021"),
        ("weight_decay: 1.0e-4", "weight_decay: 5.0e-4"),
        ("kd: {weight: 1.0,", "kd: {weight: 1.1,"),
        ("align_corners: true}\nteacher", "align_corners: false}\nteacher"),
        ("max_steps: 5", "max_steps: 5\nlr_scheduler_kwargs: {power: 1.0}"),
    ],
)
def test_the_replay_notices_what_another_run_would_do(trajectories, tmp_path, old, new):
    """A comparison that cannot fail says nothing."""
    shutil.copytree(FOLDER, tmp_path / "run")
    text = (FOLDER / "run.yaml").read_text()
    assert old in text
    (tmp_path / "run" / "run.yaml").write_text(text.replace(old, new))
    assert float(trajectories.replay(tmp_path / "run")[-1][1]) > 1e-4
