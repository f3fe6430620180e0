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
from functools import partial
from pathlib import Path

from hf_segkd.commands.flags import CommandParser
from hf_segkd.console import plain_logs, readable_errors


def main(argv: list[str] | None = None) -> None:
    """Start the page, or write the Space, as the command line says."""
    arguments = parser().parse_args(argv)
    plain_logs()
    from hf_segkd.deployment.demo_page import DemoPage, serve, write_space
    from hf_segkd.evaluation.segmenter import Segmenter, default_device
    from hf_segkd.loading.any_model import load_model
    from hf_segkd.loading.bands import check_reads
    from hf_segkd.models import Bands

    with readable_errors():
        if arguments.space:
            print(write_space(arguments.space, arguments.student, arguments.teacher, examples()))
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
        page = DemoPage(segmenters)
    build = partial(page.build, examples())
    with readable_errors(ImportError, OSError):  # Gradio is not installed, or the port is taken
        serve(build, server_name=arguments.host, server_port=arguments.port)


def static_page(student: str, teacher: str | None, folder: str, runtime: str, model_id: str | None = None) -> Path:
    """Write the page that runs a student in the browser, with the results of its teacher on the examples."""
    from hf_segkd.deployment.static_page import check_runtime, write_static_page
    from hf_segkd.evaluation.segmenter import Segmenter
    from hf_segkd.loading.any_model import load_model

    check_runtime(runtime)
    segmenter = Segmenter(*load_model(teacher)) if teacher else None
    title = model_id or Path(student).stem
    return write_static_page(folder, *load_model(student), runtime, title, segmenter, examples(), model_id)


def examples(count: int = 4) -> list:
    """Street scenes, drawn anew each time: free to be published."""
    from PIL import Image

    from dataset_builders.street_scenes import draw_scene

    return [Image.fromarray(draw_scene("test", index, 240, 320, seed=0)[0]) for index in range(count)]


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
