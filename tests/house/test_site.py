"""The pages of the site: written by their commands, reachable, and true to the options that they name."""

import inspect
import re
import subprocess
import sys
from dataclasses import fields

import make_api
import make_options
import make_troubleshooting
import pytest
import torch
import yaml

from helpers.paths import ROOT
from hf_segkd.losses import LOSSES
from hf_segkd.recipe import load_yaml
from hf_segkd.training.config import DistillationConfig
from hf_segkd.training.options import ScriptArguments

DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))


def test_options_page_is_what_its_command_writes():
    """An option that was added or renamed would be missing on the page that promises all of them."""
    text = make_options.render()
    assert (DOCS / "options.md").read_text(encoding="utf-8") == text, "run make docs"


def test_api_pages_are_what_their_command_writes():
    """A module without its entry is one that nobody finds."""
    written = make_api.pages()
    assert {path.stem for path in (DOCS / "api").iterdir()} == set(written)
    for name, text in written.items():
        assert (DOCS / "api" / f"{name}.md").read_text(encoding="utf-8") == text, "run make docs"


def test_troubleshooting_shows_the_messages_as_they_are():
    """Who searches the page for a message must find its own words there."""
    text = make_troubleshooting.render()
    assert (DOCS / "troubleshooting.md").read_text(encoding="utf-8") == text, "run make docs"
    assert text.count("**Cause.**") >= 20


def navigation(entry) -> list[str]:
    """All pages below an entry of mkdocs.yml's navigation."""
    if isinstance(entry, str):
        return [entry]
    return [page for child in (entry.values() if isinstance(entry, dict) else entry) for page in navigation(child)]


def test_every_page_is_in_the_navigation():
    """A page that no menu names is read by nobody."""
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    notebooks = {f"notebooks/{path.stem}.md" for path in (DOCS / "notebooks").glob("*.ipynb")}
    assert set(navigation(nav)) == {path.relative_to(DOCS).as_posix() for path in PAGES} | notebooks


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.name)
def test_links_between_files_lead_somewhere(page):
    """The README is no page of the site, so that its build does not look at these links."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if not link.startswith(("http", "#")):
            assert (page.parent / link.split("#")[0]).exists(), link


def option_exists(key: str) -> bool:
    """Whether `hf-segkd distill` reads a key such as `losses.kd.weight.student`."""
    name, *rest = key.split(".")
    known = {field.name for kind in (ScriptArguments, DistillationConfig) for field in fields(kind)}
    if name != "losses":
        return name in known
    loss, *rest = rest
    if loss not in LOSSES:  # a second one of a kind, under a name of the recipe's own
        options = load_yaml((ROOT / "hf_segkd/recipes/methods/cwd.yaml").read_text(encoding="utf-8"))["losses"]
        return loss in options and rest[0] == "weight"
    return not rest or rest[0] in {"weight", *inspect.signature(LOSSES[loss]).parameters}


def test_every_key_of_the_migration_page_exists():
    """A flag that is translated into a key that nobody reads is worse than none."""
    found = 0
    for line in (DOCS / "migrating.md").read_text(encoding="utf-8").splitlines():
        ours = line.strip("| ").split(" | ")[-1] if line.startswith("| ") else ""
        for key in re.findall(r"--([a-z][\w.]+)", ours):
            found += 1
            assert option_exists(key), key
    assert found > 50


def test_the_loss_of_the_readme_trains_a_student_whose_maps_are_smaller(tiny_student, tiny_teacher):
    """The first loss of one's own is a copy of it. The README's student and teacher have maps of two sizes."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    names = {"student": tiny_student, "teacher": tiny_teacher}
    exec(next(block for block in blocks if "class LogitMSE" in block), names)
    images = torch.zeros(2, 3, 32, 48)
    outputs = [model(pixel_values=images, output_hidden_states=True) for model in (tiny_student, tiny_teacher)]
    assert outputs[0].logits.shape != outputs[1].logits.shape
    labels = torch.zeros(2, 32, 48, dtype=torch.long)
    total = sum(loss(*outputs, labels) for loss in names["losses"].values())
    total.backward()
    assert total.isfinite() and any(weight.grad is not None for weight in tiny_student.parameters())


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    """Strict: a broken link, a page outside the menu or a docstring that cannot be read ends the build."""
    pytest.importorskip("mkdocs", reason="needs pip install -e '.[docs]'")
    command = [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stderr[-3000:]
    pages = {path.relative_to(tmp_path / "site").as_posix() for path in (tmp_path / "site").rglob("*.html")}
    assert {"index.html", "options.html", "api/losses.html", "notebooks/own_photos.html"} <= pages
    text = (tmp_path / "site" / "index.html").read_text(encoding="utf-8")
    assert not re.findall(r'(?:src|href)="https?://[^"]+\.(?:js|css|woff2?)"', text)
