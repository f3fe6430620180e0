"""The one file of code that a saved model brings along."""

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from transformers import AutoConfig

from helpers.released import SMALL, save_students
from hf_segkd.models import BACKBONES, MODELS, NETWORKS, SHORT_NAMES, SegmentationImageProcessor
from hf_segkd.models.released_code import _check_names, _Source, released_code

FILES = {"config.json", "model.safetensors", "modeling_segkd.py", "preprocessor_config.json"}
BACKBONED = [name for name in NETWORKS if not name.startswith("espnet")]
# One short name for each file of backbones.
BACKBONE_KINDS = {fields["model_type"]: name for name, fields in BACKBONES.items()}
LOAD = Path(__file__).parents[1] / "helpers" / "load_released.py"


def code_of(network: str, **fields) -> str:
    config = AutoConfig.for_model(SHORT_NAMES[network], **fields)
    return released_code(config, MODELS[type(config)].__name__)


@pytest.mark.parametrize("backbone", BACKBONE_KINDS.values())
@pytest.mark.parametrize("network", BACKBONED)
def test_every_network_with_every_backbone_is_one_module(network, backbone):
    """Two files with one name for two things would run the wrong one in silence, so saving refuses them."""
    code = code_of(network, backbone=backbone)
    compile(code, "modeling_segkd.py", "exec")
    assert "from ." not in code and "TYPE_CHECKING" not in code
    assert code == code_of(network, backbone=backbone)
    assert f"class {NETWORKS[network]}ForSemanticSegmentation" in code and "class SegmentationImageProcessor" in code


def test_a_module_reads_as_if_written_by_hand(tmp_path):
    """Strangers are asked to trust it: undefined names, long lines or a loose layout are no invitation."""
    for network in BACKBONED:
        for kind, backbone in BACKBONE_KINDS.items():
            (tmp_path / f"{network}_{kind}.py").write_text(code_of(network, backbone=backbone))
    for network in set(NETWORKS) - set(BACKBONED):
        (tmp_path / f"{network}.py").write_text(code_of(network))
    ruff = [sys.executable, "-m", "ruff"]
    subprocess.run([*ruff, "check", "--isolated", "--select", "F,E9", "-q", tmp_path], check=True)
    subprocess.run([*ruff, "format", "--isolated", "--line-length", "119", "--check", "-q", tmp_path], check=True)


def test_a_module_holds_no_backbone_but_its_own_and_the_default():
    """Who reads the code before trusting it should not have to read five networks that never run."""
    code = code_of("pspnet", backbone="mobilenetv3_small")
    assert "class MobileNetV3Backbone" in code and "class DilatedResNetBackbone" in code
    assert "MobileViT" not in code and "EfficientNetLite" not in code


def sources(folder: Path, **files: str) -> dict[str, _Source]:
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
    return {name: _Source(folder / f"{name}.py") for name in files}


@pytest.mark.parametrize(
    "other",
    [
        "def WIDTH():\n    pass\n",
        "try:\n    from torch import WIDTH\nexcept ImportError:\n    pass\n",
        "from torch import WIDTH\n",
    ],
)
def test_a_name_with_two_meanings_is_refused(tmp_path, other):
    """In one module the later would replace the earlier, and the earlier's users would read it."""
    with pytest.raises(ValueError, match="WIDTH has two meanings.*one.py.*rename"):
        _check_names(sources(tmp_path, one="WIDTH = 1\n", two=other))


@pytest.mark.parametrize(
    "line", ["from .one import a as b", "from ..one import a", "def f():\n    from .one import a"]
)
def test_an_import_that_cannot_be_merged_is_refused(tmp_path, line):
    """Left out or left in, the name would be missing where the model is loaded."""
    with pytest.raises(ValueError, match="line [12]: a file that travels"):
        sources(tmp_path, one=f"{line}\n")


def test_an_old_transformers_is_told_in_one_sentence(monkeypatch):
    """A raw ImportError of some class says neither that the version is the reason nor which one would do."""
    old = ModuleType("transformers")
    old.__version__ = "4.56.2"
    monkeypatch.setitem(sys.modules, "transformers", old)
    with pytest.raises(ImportError, match="needs transformers 4.57 or newer, here is 4.56.2"):
        exec(released_code(), {})


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """Saved students by name, and what a process without this package did with them."""
    folder = tmp_path_factory.mktemp("released")
    save_students(folder, SMALL)
    result = subprocess.run([sys.executable, LOAD, folder], capture_output=True, text=True, cwd=folder)
    assert result.returncode == 0, result.stderr[-3000:]
    return folder, json.loads(result.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", SMALL)
def test_a_saved_folder_works_without_this_package(released, name):
    """Strangers load it with nothing but transformers, and expect the trainer's logits and no complaint."""
    folder, found = released
    assert {path.name for path in (folder / name).iterdir()} == FILES
    facts = dict(found[name])
    assert facts.pop("difference") < 1e-5  # on some CPUs, the place in memory decides how sums are rounded
    assert facts == {
        "processor": "SegmentationImageProcessor",
        "complaints": [],
        "saved again": sorted(FILES),
    }


@pytest.mark.parametrize("first", ["model", "processor"])
def test_the_order_of_saving_does_not_matter(tmp_path, tiny_student, first):
    """The processor's code alone, written last, would leave the model without its own."""
    processor = SegmentationImageProcessor()
    order = (tiny_student, processor) if first == "model" else (processor, tiny_student)
    for item in order:
        item.save_pretrained(tmp_path)
    text = (tmp_path / "modeling_segkd.py").read_text()
    assert "class ESPNetForSemanticSegmentation" in text and "class SegmentationImageProcessor" in text


def test_a_native_model_brings_the_processor_alone(tmp_path, tiny_student):
    """A SegFormer on BGR images needs no network's code, not even that of a student saved there before."""
    tiny_student.save_pretrained(tmp_path)
    AutoConfig.for_model("segformer").save_pretrained(tmp_path)
    SegmentationImageProcessor(do_flip_channel_order=True).save_pretrained(tmp_path)
    text = (tmp_path / "modeling_segkd.py").read_text()
    assert "class SegmentationImageProcessor" in text and "ForSemanticSegmentation" not in text
