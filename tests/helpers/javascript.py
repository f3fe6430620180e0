"""What tests of JavaScript need: Node, npm packages, Chromium, a server of local folders. Tests skip without them."""

import os
import shutil
import threading
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from helpers.paths import ROOT


def npm_package(name):
    """Folder of an installed npm package: of HF_SEGKD_NODE_MODULES, or of node_modules in the repository."""
    modules = Path(os.environ.get("HF_SEGKD_NODE_MODULES", ROOT / "node_modules"))
    if not (modules / name / "package.json").is_file():
        pytest.skip(f"needs `npm install --ignore-scripts {name}` and HF_SEGKD_NODE_MODULES=.../node_modules")
    return modules / name


def node():
    """Path of Node."""
    return shutil.which("node") or pytest.skip("needs node")


@contextmanager
def chromium(*arguments):
    """A headless Chromium, driven by playwright."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    executable = shutil.which("chromium") or pytest.skip("needs chromium")
    with playwright.sync_playwright() as driver:
        flags = ["--no-sandbox", "--disable-background-networking", *arguments]
        browser = driver.chromium.launch(executable_path=executable, args=flags)
        yield browser
        browser.close()


@contextmanager
def served(folder):
    """Address at which the files of a folder are served."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


class _Quiet(SimpleHTTPRequestHandler):
    extensions_map = SimpleHTTPRequestHandler.extensions_map | {".mjs": "text/javascript", ".wasm": "application/wasm"}

    def log_message(self, *_):
        pass
