"""`hf_segkd.distill(...)`: the command `hf-segkd distill` as a function, and the finished run as an object."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast, overload

import yaml

from hf_segkd.console import TrainingFault
from hf_segkd.recipe import dump

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image
    from transformers import PreTrainedModel
    from transformers.image_processing_utils import BaseImageProcessor

    from hf_segkd.evaluation.segmenter import Segmenter

    Picture: TypeAlias = str | Path | Image.Image | np.ndarray


def distill(
    *,
    teacher: str | Path | dict | list | None = None,
    student: str | Path | dict | None = None,
    data: str | Path | None = None,
    method: str | None = None,
    output_dir: str | Path,
    recipes: Sequence[str] = (),
    **options: Any,
) -> FinishedRun:
    """Train a student as `hf-segkd distill` does, and score and save it.

    Args:
        teacher (`str`): Folder, Hub id or original checkpoint of a trained segmentation model; `None` trains with the
            labels alone.
        student (`str` or `dict`): A name (`"segformer-b0"`), folder, Hub id, checkpoint, or the fields of a new model.
        data (`str`): Your own folder, a benchmark's name, or what `datasets` opens. What `options` leave open is then
            derived from data and student, and logged: [`~hf_segkd.training.derived.derive_options`].
        method (`str`, *optional*): Recipe of the method, such as `"cirkd"`; `hf-segkd recipes` lists them.
        output_dir (`str`): Folder for the student, its scores and its card.
        recipes (`Sequence[str]`, *optional*): Further recipes, before the method: `("camvid", "espnet_espnet-c")`.
        options: Any other option of the command, as it is called there: `max_steps=2000`, `crop_size=[256, 256]`,
            `losses={"kd": {"weight": 2.0}}`. `hf-segkd distill --help-all` lists them.

    Returns:
        [`FinishedRun`]: Student, processor and scores.

    Raises:
        ValueError: For whatever the command refuses, with its message; nothing has been trained by then.
        TrainingFault: If training had begun.

    ```python
    run = hf_segkd.distill(teacher="runs/teacher", student="segformer-b0", data="photos", output_dir="runs/student")
    run.scores["mean_iou"], run.predict("photo.jpg")
    ```
    """
    from hf_segkd.commands import distill as command

    given = {"teacher": teacher, "student": student, "data": data, "output_dir": output_dir}
    given = {name: value for name, value in given.items() if value is not None} | options
    given = {name: str(value) if isinstance(value, Path) else value for name, value in given.items()}
    words = [*recipes, *([method] if method else [])]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "options.yaml"
        _write(given, file)
        with errors_raised():
            scores = command.main([*words, str(file)])
    return FinishedRun(str(output_dir), scores)


@dataclass(frozen=True)
class FinishedRun:
    """What a run has left in its folder; `FinishedRun.open(folder)` finds it again.

    Args:
        folder (`str`): `output_dir` of the run.
        scores (`dict`): What its `metrics.json` holds: `mean_iou`, `per_class_iou`, ...
    """

    folder: str
    scores: dict[str, Any]

    @classmethod
    def open(cls, folder: str | Path) -> FinishedRun:
        """The run that was finished in `folder`.

        Raises:
            ValueError: If none was.
        """
        import json

        from hf_segkd.commands.push import check_folder

        check_folder(str(folder))
        return cls(str(folder), json.loads((Path(folder) / "metrics.json").read_text(encoding="utf-8")))

    @property
    def student(self) -> PreTrainedModel:
        """The student, as it was saved, in evaluation mode on the CPU."""
        return self._loaded[0]

    @property
    def processor(self) -> BaseImageProcessor:
        """Its image processor."""
        return self._loaded[1]

    @overload
    def predict(self, images: Picture) -> np.ndarray: ...

    @overload
    def predict(self, images: Sequence[Picture]) -> list[np.ndarray]: ...

    def predict(self, images: Picture | Sequence[Picture]) -> np.ndarray | list[np.ndarray]:
        """Segment one image or several.

        Args:
            images: A file, a picture, a uint8 RGB array (H, W, 3), or a list of these. A student of bands
                takes files or arrays (H, W, C) of them.

        Returns:
            `np.ndarray` of shape `(H, W)`: Class ids at the image's size; a list of them for a list.
        """
        if isinstance(images, list | tuple):
            return [self._predicted(image) for image in images]
        return self._predicted(cast("Picture", images))

    def push(self, repo_id: str, **options: Any) -> str:
        """Upload the run to the Hub, as `hf-segkd push` does, and return its address.

        Args:
            repo_id (`str`): `"OWNER/NAME"`, or a name for your own; created when it does not exist.
            options: Those of the command: `private=True`, `branch="v2"`.
        """
        from hf_segkd.commands import push

        with errors_raised():
            return push.main([self.folder, repo_id, *_flags(options)])

    def export(self, output_dir: str | Path | None = None, **options: Any) -> list[dict]:
        """Write the student as ONNX, as `hf-segkd export` does, and return the rows of its table, PyTorch's first.

        Args:
            output_dir (`str`, *optional*): By default `onnx` in the run's folder.
            options: Those of the command: `precisions=["fp32", "int8_dynamic"]`, `size=[256, 256]`.
        """
        from hf_segkd.commands import export

        output_dir = output_dir or Path(self.folder) / "onnx"
        with errors_raised():
            return export.main([self.folder, "--output_dir", str(output_dir), *_flags(options)])

    def _predicted(self, image: Picture) -> np.ndarray:
        from hf_segkd.commands.predict import read
        from hf_segkd.data.raw import Unreadable

        if not isinstance(image, str | Path):
            return cast("np.ndarray", self._segmenter(image))
        try:
            content, _ = read(Path(image).read_bytes(), self._segmenter.bands)
        except Unreadable as error:
            raise ValueError(f"'{image}' {error}.") from error
        return cast("np.ndarray", self._segmenter(content))

    @cached_property
    def _loaded(self) -> tuple[PreTrainedModel, BaseImageProcessor]:
        from hf_segkd.loading.any_model import load_model

        return load_model(self.folder)

    @cached_property
    def _segmenter(self) -> Segmenter:
        from hf_segkd.evaluation.segmenter import Segmenter, default_device

        return Segmenter(*self._loaded, device=default_device())


@contextmanager
def errors_raised() -> Iterator[None]:
    """Raise the error itself where a command would print it and leave the process."""
    try:
        yield
    except SystemExit as stop:
        if isinstance(stop.__context__, ValueError | OSError | TrainingFault):
            raise stop.__context__ from None
        raise


def _write(options: dict[str, Any], file: Path) -> None:
    try:
        dump(options, file)
    except yaml.YAMLError as error:
        raise ValueError(f"Options must be plain values, as a recipe holds them: {error}") from None


def _flags(options: dict[str, Any]) -> list[str]:
    words = []
    for name, value in options.items():
        if value is None or value is False:
            continue
        values = [] if value is True else value if isinstance(value, list | tuple) else [value]
        words += [f"--{name}", *map(str, values)]
    return words
