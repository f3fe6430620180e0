"""What a user waits for before anything happens, and whether our models are known after `import hf_segkd`."""

import json
import subprocess
import sys

import pytest
import torch

import hf_segkd
from hf_segkd.commands import COMMANDS

HEAVY = ("torch", "transformers", "datasets", "matplotlib", "numpy", "accelerate")
MEASURE = """
import json, os, sys
before = os.times()
{code}
after = os.times()
loaded = [name for name in {heavy} if name in sys.modules]
print("RESULT" + json.dumps([loaded, after.user + after.system - before.user - before.system]))
"""


def child(code: str, *argv: str, cwd=None) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, cwd=cwd)


@pytest.mark.parametrize(
    "code",
    [
        "import hf_segkd",
        "from hf_segkd.commands import main; main(['--help'])",
        "from hf_segkd.commands import main; main(['recipes'])",
        "from hf_segkd.commands import main; main(['distill', '--help'])",
    ],
)
def test_start_is_quick_and_loads_no_big_library(code):
    """Torch and transformers take seconds, which a question about a flag should not cost."""
    result = child(MEASURE.format(code=code, heavy=HEAVY))
    assert result.returncode == 0, result.stderr
    loaded, seconds = json.loads(result.stdout.rsplit("RESULT", 1)[1])
    assert loaded == [] and seconds < 1.0  # 0.5 s, with slack for a busy machine
    assert result.stderr == ""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A saved student of one of our own architectures, without its code: nothing but the registration can load it."""
    from helpers.tiny import LABELS, TINY
    from hf_segkd.loading.any_model import load_model

    folder = tmp_path_factory.mktemp("student")
    torch.manual_seed(0)
    model, processor = load_model(TINY, id2label=LABELS)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    for name in ("config.json", "preprocessor_config.json"):
        content = json.loads((folder / name).read_text())
        content.pop("auto_map", None)
        (folder / name).write_text(json.dumps(content))
    return str(folder)


ORDERS = {
    "hf_segkd first": "import hf_segkd",
    "transformers first": "import transformers, hf_segkd",
    "Auto classes first": "from transformers import AutoModel, AutoImageProcessor; import hf_segkd",
    "a model first": "from transformers import SegformerForSemanticSegmentation; import hf_segkd",
    "a model later": "import hf_segkd; from transformers import SegformerForSemanticSegmentation, Trainer",
}
QUICK = {"transformers first", "a model later"}  # one before and one after; each starts a process
USES = """
import sys
folder = sys.argv[1]
from transformers import AutoConfig
assert AutoConfig.from_pretrained(folder).model_type == "segkd_espnet"
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation, pipeline
assert type(AutoModelForSemanticSegmentation.from_pretrained(folder)).__module__ == "hf_segkd.models.espnet"
assert type(AutoImageProcessor.from_pretrained(folder)).__module__ == "hf_segkd.models.image_processing"
assert type(pipeline("image-segmentation", model=folder).model).__module__ == "hf_segkd.models.espnet"
"""


@pytest.mark.parametrize("order", [x if x in QUICK else pytest.param(x, marks=pytest.mark.slow) for x in ORDERS])
def test_importing_the_package_makes_its_models_known(order, folder, tmp_path):
    """README promises it; without, `from_pretrained` asks to run remote code, or knows no such model type."""
    result = child(ORDERS[order] + USES, folder, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "requires torchvision" not in result.stderr


@pytest.mark.slow
def test_config_alone_is_known(folder, tmp_path):
    """A tool that reads only config.json imports no other Auto class."""
    code = "import hf_segkd, sys; from transformers import AutoConfig; AutoConfig.from_pretrained(sys.argv[1])"
    result = child(code, folder, cwd=tmp_path)
    assert result.returncode == 0, result.stderr


def test_public_names_are_importable_and_listed():
    """A lazy name that points to a moved module fails only when somebody uses it."""
    for name in hf_segkd.__all__:
        assert getattr(hf_segkd, name) is not None
    assert set(hf_segkd.__all__) == set(hf_segkd._MODULES) and set(hf_segkd.__all__) <= set(dir(hf_segkd))
    with pytest.raises(AttributeError, match="no attribute 'load_modle'"):
        hf_segkd.load_modle  # noqa: B018


def test_overview_fits_a_screen_and_names_every_command(capsys):
    """A command that is not listed does not exist for who installed the package."""
    from hf_segkd.commands import main

    main(["--help"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 24 and max(map(len, lines)) <= 119
    assert all(any(line.strip().startswith(name + " ") for line in lines) for name in COMMANDS)


def test_unknown_command_gets_the_closest():
    """The commands of other libraries differ by a letter."""
    from hf_segkd.commands import main

    with pytest.raises(SystemExit, match="unknown command 'evalute'. Did you mean 'evaluate'?"):
        main(["evalute"])


def test_python_m_runs_the_same_commands():
    """`accelerate launch -m hf_segkd distill` needs it."""
    result = subprocess.run([sys.executable, "-m", "hf_segkd", "recipes", "kd_cwd"], capture_output=True, text=True)
    assert result.returncode == 0 and "kd_cwd  Pixel-wise KD + channel-wise distillation" in result.stdout
