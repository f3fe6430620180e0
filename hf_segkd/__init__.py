"""hf_segkd: distill a big semantic segmentation model into a small one, inside the Hugging Face ecosystem.

Importing it makes the package's models known to transformers' Auto classes, without importing transformers: that
happens as soon as somebody else has imported the Auto classes.
"""

import importlib
import importlib.abc
import sys
from importlib.machinery import ModuleSpec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dataset_builders import open_dataset
    from hf_segkd.commands.one_call import FinishedRun, distill
    from hf_segkd.evaluation.segmenter import Segmenter
    from hf_segkd.loading.any_model import load_model
    from hf_segkd.losses import LOSSES, DistillationLoss
    from hf_segkd.models import SegmentationOutput
    from hf_segkd.training.config import DistillationConfig
    from hf_segkd.training.distiller import Distiller
    from hf_segkd.training.trainer import DistillationTrainer

__version__ = "0.1.0"

# Imported on first use (PEP 562): torch and transformers take seconds, which `hf-segkd --help` should not cost.
_MODULES = {
    "DistillationConfig": "hf_segkd.training.config",
    "DistillationLoss": "hf_segkd.losses",
    "DistillationTrainer": "hf_segkd.training.trainer",
    "Distiller": "hf_segkd.training.distiller",
    "FinishedRun": "hf_segkd.commands.one_call",
    "LOSSES": "hf_segkd.losses",
    "SegmentationOutput": "hf_segkd.models",
    "Segmenter": "hf_segkd.evaluation.segmenter",
    "distill": "hf_segkd.commands.one_call",
    "load_model": "hf_segkd.loading.any_model",
    "open_dataset": "dataset_builders",
}

__all__ = [
    "LOSSES",
    "DistillationConfig",
    "DistillationLoss",
    "DistillationTrainer",
    "Distiller",
    "FinishedRun",
    "SegmentationOutput",
    "Segmenter",
    "distill",
    "load_model",
    "open_dataset",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'hf_segkd' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


_AUTO_CLASSES = "transformers.models.auto.configuration_auto"


class _RegisterModels:
    """Import hook that imports `hf_segkd.models`, which registers our models, once the Auto classes are there.

    It waits until the outermost import of a transformers module is done: within one, a part of transformers is half
    loaded, and our models could not import what they need.
    """

    def __init__(self):
        self.depth = 0

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] != "transformers":
            return None
        specs = (finder.find_spec(name, path, target) for finder in sys.meta_path if finder is not self)
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is not None:
            spec.loader = _CountingLoader(spec, self)
        return spec

    def register(self) -> None:
        if self in sys.meta_path and _AUTO_CLASSES in sys.modules:
            sys.meta_path.remove(self)
            importlib.import_module("hf_segkd.models")


class _CountingLoader(importlib.abc.Loader):
    """A module's own loader, and a count of how many modules of transformers are being loaded."""

    def __init__(self, spec: ModuleSpec, hook: _RegisterModels):
        self.spec = spec
        self.loader: Any = spec.loader
        self.hook = hook

    def create_module(self, spec):
        return self.loader.create_module(spec)

    def exec_module(self, module):
        self.spec.loader = self.loader
        module.__loader__ = self.loader
        self.hook.depth += 1
        try:
            self.loader.exec_module(module)
        finally:
            self.hook.depth -= 1
        if self.hook.depth == 0:
            self.hook.register()


_hook = _RegisterModels()
sys.meta_path.insert(0, _hook)
_hook.register()  # at once where the Auto classes are there already
