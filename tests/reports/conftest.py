"""A finished run whose card the tests read."""

import pytest

from helpers.commands import distill
from helpers.hub_runs import recipe
from helpers.tiny import TINY


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A distilled student; its teacher is the same network, wider."""
    folder = tmp_path_factory.mktemp("runs")
    wide = {**TINY, "hidden_sizes": [4, 10, 15], "use_decoder": True}
    distill.main([recipe(folder, student=wide, max_steps=2), "--output_dir", str(folder / "teacher")])
    losses = {"task": {}, "kd": {"weight": 1.0}, "logits": {"type": "cwd", "layer": "logits", "weight": 3.0}}
    given = recipe(folder, losses=losses, max_steps=2, eval_steps=1, save_steps=1)
    distill.main([given, "--teacher", str(folder / "teacher"), "--output_dir", str(folder / "student")])
    return folder / "student"


@pytest.fixture
def copied(finished, tmp_path):
    """A folder whose files may be changed."""
    for name in ("config.json", "preprocessor_config.json", "metrics.json", "recipe.yaml"):
        (tmp_path / name).write_text((finished / name).read_text())
    return tmp_path
