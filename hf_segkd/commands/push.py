"""Upload the folder of a finished run, or of a converted checkpoint, to the Hub, with its model card.

    hf-segkd push runs/camvid_kd_cwd OWNER/NAME
    hf-segkd push runs/espnet_camvid OWNER/NAME --license mit
    hf-segkd push runs/camvid_kd_cwd OWNER/NAME --private --branch trial --token_file ~/.my_token
    hf-segkd push runs/camvid_kd_cwd OWNER/NAME --space static --runtime node_modules/onnxruntime-web

With --space static, a Space of the same name gets a page that runs the student in the browser (`hf-segkd demo
--static`). The same command again uploads what is missing or has changed. Checkpoints and logs are not uploaded, and
paths of this machine in recipe and reports are shortened to their last part; the folder itself keeps them.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from hf_segkd.commands.flags import CommandParser
from hf_segkd.console import readable_errors


def main(argv: list[str] | None = None) -> str:
    """Upload as the command line says and return the address of the commit."""
    arguments = parser().parse_args(argv)
    from hf_segkd.hub import open_repository, push_folder
    from hf_segkd.reports.model_card import update_model_card
    from hf_segkd.values import check_license

    with readable_errors():
        check_folder(arguments.folder)
        check_license(arguments.license)
        if arguments.space:
            check_space(arguments.runtime)
        token = Path(arguments.token_file).expanduser().read_text().strip() if arguments.token_file else None
        repo_id = open_repository(arguments.repo_id, arguments.private or None, arguments.branch, token)
        if not update_model_card(arguments.folder, repo_id, arguments.branch, arguments.license):
            print("README.md was changed by hand and is uploaded as it is: check the model's name in its snippets.")
        address = push_folder(arguments.folder, repo_id, arguments.branch, token)
        print(f"On the Hub: {address}")
        if arguments.space:
            print(f"Its page: {push_page(arguments, repo_id, token)}")
    return address


def check_folder(folder: str) -> None:
    """Check that a run was finished in `folder`, or a checkpoint converted to it.

    Raises:
        ValueError: If a file that each finished run leaves is missing or damaged.
    """
    from hf_segkd.training.finished_run import CONVERSION_FILE, missing_of_run

    if (Path(folder) / CONVERSION_FILE).is_file() and not (Path(folder) / "recipe.yaml").is_file():
        missing = missing_of_run(folder, CONVERSION_FILE)
        if missing:
            raise ValueError(f"{folder!r} is not the folder of a converted checkpoint: {missing}.")
        return
    missing = missing_of_run(folder)
    if missing is None and not (Path(folder) / "recipe.yaml").is_file():
        missing = "recipe.yaml is missing"
    if missing:
        raise ValueError(f"{folder!r} is not the folder of a finished run: {missing}.")


def check_space(runtime: str) -> None:
    """Check before anything is uploaded that a page can be written.

    Raises:
        ValueError: If `runtime` is not the npm package onnxruntime-web.
    """
    from hf_segkd.deployment.static_page import check_runtime

    check_runtime(runtime)


def push_page(arguments: argparse.Namespace, repo_id: str, token: str | None) -> str:
    """Write the static page of the student, upload it as a Space and return the address of the commit."""
    from hf_segkd.commands.demo import static_page
    from hf_segkd.hub import push_static_space

    with tempfile.TemporaryDirectory() as folder:
        static_page(arguments.folder, None, folder, arguments.runtime, model_id=repo_id)
        return push_static_space(folder, repo_id, arguments.private or None, token)


def parser() -> argparse.ArgumentParser:
    """Command line of this command."""
    parser = CommandParser("push", __doc__)
    add = parser.add_argument
    add("folder", help="output_dir of a finished run, or what hf-segkd convert saved")
    add("repo_id", help="OWNER/NAME, or NAME for your own; created when it does not exist")
    add("--license", help="license of the weights for the card, as on the Hub: apache-2.0, mit, other, ...")
    add("--private", action="store_true", help="make a new repository private")
    add("--branch", help="branch to write to; created when it does not exist")
    add("--token_file", help="file that holds the token (default: hf auth login, or HF_TOKEN)")
    add("--space", choices=["static"], help="also upload a Space: a page that runs the student in the browser")
    add("--runtime", default="node_modules/onnxruntime-web", help="npm package that --space copies (default: here)")
    return parser
