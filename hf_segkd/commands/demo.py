"""Start a page on which models are tried: upload an image, see each model's classes, time and areas.

    hf-segkd demo STUDENT --teacher TEACHER
    hf-segkd demo USER/STUDENT --teacher USER/TEACHER --space FOLDER
    hf-segkd demo STUDENT --teacher TEACHER --static FOLDER --runtime node_modules/onnxruntime-web

Models are folders, Hub ids or original checkpoints (.pth). With --space, nothing is started: FOLDER gets the files of
a Gradio Space, whose models are Hub ids. With --static, FOLDER gets a page that runs the student in the browser,
without a server or a network; the teacher segments the examples now. Its runtime is copied from the npm package
onnxruntime-web: `npm install onnxruntime-web`.
"""

from __future__ import annotations

import argparse
import os
from functools import partial
from pathlib import Path

from hf_segkd.commands.flags import CommandParser
from hf_segkd.console import plain_logs, readable_errors


def main(argv: list[str] | None = None) -> None:
    """Start the page, or write the Space, as the command line says."""
    arguments = parser().parse_args(argv)
    plain_logs()
    from hf_segkd.deployment.demo_page import DemoPage, serve
    from hf_segkd.deployment.demo_space import write_space
    from hf_segkd.evaluation.segmenter import Segmenter, default_device
    from hf_segkd.loading.any_model import load_model
    from hf_segkd.loading.bands import check_reads
    from hf_segkd.models import Bands

    with readable_errors():
        if arguments.space:
            print(write_space(arguments.space, arguments.student, arguments.teacher, card_sample(arguments.student)))
            return
        if arguments.static:
            print(static_page(arguments.student, arguments.teacher, arguments.static, arguments.runtime))
            return
        models = {"Teacher": arguments.teacher} if arguments.teacher else {}
        models["Student"] = arguments.student
        device = arguments.device or default_device()
        loaded = {title: load_model(spec) for title, spec in models.items()}
        bands = Bands.of(loaded["Student"][1])  # a teacher of RGB reads its colors among them
        for title, (_, processor) in loaded.items():
            check_reads(processor, bands, title.lower())
        segmenters = {title: Segmenter(*pair, device=device, bands=bands) for title, pair in loaded.items()}
        page = DemoPage(segmenters, {title: short_name(model) for title, model in models.items()})
        pictures = examples(arguments.student, page.id2label)
    build = partial(page.build, pictures)
    with readable_errors(ImportError, OSError):  # Gradio is not installed, or the port is taken
        serve(build, server_name=arguments.host, server_port=arguments.port)


def static_page(student: str, teacher: str | None, folder: str, runtime: str, model_id: str | None = None) -> Path:
    """Write the page that runs a student in the browser, with the results of its teacher on the examples."""
    from hf_segkd.deployment.static_page import check_runtime, write_static_page
    from hf_segkd.evaluation.segmenter import Segmenter
    from hf_segkd.loading.any_model import load_model

    check_runtime(runtime)
    segmenter = Segmenter(*load_model(teacher)) if teacher else None
    model, processor = load_model(student)
    pictures = examples(student, dict(model.config.id2label))
    title = model_id or short_name(student)
    return write_static_page(folder, model, processor, runtime, title, segmenter, pictures, model_id)


def short_name(model: str) -> str:
    """A Hub id as it is; of a folder or file, its name: where it lies is nobody's business."""
    path = Path(os.path.abspath(model))
    if not path.exists():
        return model
    return path.stem if path.suffix == ".pth" else path.name


def examples(model: str, id2label: dict[int, str], count: int = 4) -> list:
    """Pictures that fit a model: drawn scenes for one of their classes, else the sample of its card, or none."""
    from PIL import Image

    from dataset_builders import DATASETS
    from dataset_builders.street_scenes import draw_scene

    if tuple(id2label[index] for index in sorted(id2label)) == DATASETS["synthetic"].labels:
        return [Image.fromarray(draw_scene("test", index, 240, 320, seed=0)[0]) for index in range(count)]
    return card_sample(model)


def card_sample(model: str) -> list:
    """The picture that a model's card shows, from its folder or repository, in a list; empty where there is none."""
    from PIL import Image
    from transformers.utils import cached_file

    from hf_segkd.deployment.label_files import upright
    from hf_segkd.reports.card_data import SAMPLE

    if Path(model).is_file():  # an original checkpoint
        return []
    try:
        path = cached_file(
            model,
            SAMPLE,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
            _raise_exceptions_for_gated_repo=False,
        )
        return [upright(Image.open(path))] if path else []
    except (OSError, ValueError):  # no repository, or no picture that can be read: a page without examples
        return []


def parser() -> argparse.ArgumentParser:
    """Command line of this command."""
    parser = CommandParser("demo", __doc__)
    add = parser.add_argument
    add("student", help="folder, Hub id or original checkpoint (.pth) of the model to try")
    add("--teacher", help="folder, Hub id or original checkpoint (.pth) of a second model, shown beside it")
    add("--space", metavar="FOLDER", help="write the files of a Gradio Space there; models must be Hub ids")
    add("--static", metavar="FOLDER", help="write a page there that runs the student in the browser")
    add("--runtime", default="node_modules/onnxruntime-web", help="npm package that --static copies (default: here)")
    add("--device", choices=["cpu", "cuda"], help="where the models run (default: the GPU where there is one)")
    add("--host", default="127.0.0.1", help="address to serve at; 0.0.0.0: reachable from other machines")
    add("--port", type=int, help="port to serve at (default: the first free one from 7860)")
    return parser
