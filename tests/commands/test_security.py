"""What strangers' files may not do; SECURITY.md promises it."""

import ast
import configparser
import re
from pathlib import Path

import pytest
from transformers import AutoConfig, SegformerConfig

from helpers.paths import ROOT
from hf_segkd.loading.any_model import load_model

SOURCES = [path for folder in ("hf_segkd", "scripts", "dataset_builders") for path in (ROOT / folder).rglob("*.py")]
# Ways to run what is in a file, by what is called.
FORBIDDEN = {
    *("eval", "exec", "pickle.load", "pickle.loads", "yaml.unsafe_load", "yaml.full_load", "yaml.load_all"),
    *("os.system", "extractall", "extract", "joblib.load"),
}


def calls(path: Path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_source_runs_what_it_reads(path):
    for name, words in calls(path):
        assert name not in FORBIDDEN and name.split(".")[-1] not in {"extractall", "extract", "unsafe_load"}, name
        if name == "torch.load":
            assert words.get("weights_only") == "True"
        if name == "yaml.load":
            assert words.get("Loader") == "_Loader"  # a SafeLoader: tests/recipes/test_recipe.py
        if name in ("np.load", "numpy.load"):
            assert words.get("allow_pickle", "False") == "False"
        assert words.get("trust_remote_code") != "True" and words.get("shell") != "True"


def test_the_scan_sees_every_way_of_writing_a_call(tmp_path):
    """A scan that finds nothing because it looks at nothing would pass for ever."""
    (tmp_path / "a.py").write_text("import torch\nx = torch.load(\n    'f', weights_only=False)\n")
    assert list(calls(tmp_path / "a.py")) == [("torch.load", {"weights_only": "False"})]
    with pytest.raises(AssertionError):
        test_no_source_runs_what_it_reads(tmp_path / "a.py")


@pytest.fixture
def foreign_folder(tmp_path, monkeypatch):
    """A model folder whose own code leaves a trace when it runs."""
    trace, folder = tmp_path / "ran", tmp_path / "foreign"
    SegformerConfig().save_pretrained(folder)
    text = (folder / "config.json").read_text().replace('"segformer"', '"foreign"')
    classes = '{"AutoConfig": "code.ForeignConfig", "AutoModelForSemanticSegmentation": "code.Foreign"}'
    (folder / "config.json").write_text(text.replace("{", f'{{"auto_map": {classes},', 1))
    (folder / "code.py").write_text(
        "from pathlib import Path\nfrom transformers import PreTrainedConfig\n\n"
        f"Path({str(trace)!r}).touch()\n\n\n"
        "class ForeignConfig(PreTrainedConfig):\n    model_type = 'foreign'\n"
    )
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    return str(folder), trace


def test_code_of_a_model_runs_only_when_the_user_says_so(foreign_folder):
    folder, trace = foreign_folder
    with pytest.raises(ValueError, match="brings Python code of its own.*--trust_remote_code"):
        load_model(folder)
    assert not trace.exists()
    AutoConfig.from_pretrained(folder, trust_remote_code=True)
    assert trace.exists()  # the trap works


def test_every_dependency_has_an_upper_bound():
    """The next major version of any of them is one that nobody has tested."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    texts = [config["options"]["install_requires"], *config["options.extras_require"].values()]
    names = [line.split(";")[0].strip() for text in texts for line in text.splitlines() if line.strip()]
    unbounded = [name for name in names if not re.search(r"<\d", name)]
    assert len(names) > 10 and not unbounded
