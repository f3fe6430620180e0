"""Start a page on which models are tried: upload an image, see each model's classes, time and areas.

    python scripts/demo.py STUDENT --teacher TEACHER
    python scripts/demo.py USER/STUDENT --teacher USER/TEACHER --space FOLDER

Models are folders or Hub ids. With --space, nothing is started: FOLDER gets the files of a Gradio Space.
"""

from __future__ import annotations

import argparse

import torch
from PIL import Image

from dataset_builders.street_scenes import draw_scene
from hf_segkd.console import plain_logs, readable_errors
from hf_segkd.deployment.demo_page import DemoPage, write_space
from hf_segkd.loading.pretrained import load_processor, load_segmenter


def main(argv: list[str] | None = None) -> None:
    """Start the page, or write the Space, as the command line says."""
    arguments = parser().parse_args(argv)
    plain_logs()
    with readable_errors():
        if arguments.space:
            print(write_space(arguments.space, arguments.student, arguments.teacher, examples()))
            return
        models = ({"Teacher": arguments.teacher} if arguments.teacher else {}) | {"Student": arguments.student}
        pairs = {title: (load(spec, arguments.device), load_processor(spec)) for title, spec in models.items()}
        page = DemoPage(pairs).build(examples())
    page.launch(server_name=arguments.host, server_port=arguments.port, share=False)


def load(spec: str, device: str):
    return load_segmenter(spec).to(device)


def examples(count: int = 4) -> list[Image.Image]:
    """Street scenes, drawn anew each time: free to be published."""
    return [Image.fromarray(draw_scene("test", index, 240, 320, seed=0)[0]) for index in range(count)]


def parser() -> argparse.ArgumentParser:
    """Command line of this script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("student", help="folder or Hub id")
    add("--teacher", help="folder or Hub id, shown beside it")
    add("--space", metavar="FOLDER", help="write the files of a Gradio Space there; models must be Hub ids")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    add("--host", default="127.0.0.1", help="address to serve at; 0.0.0.0: reachable from other machines")
    add("--port", type=int, help="default: the first free one from 7860")
    return parser
