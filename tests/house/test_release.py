"""What people see of a release before they install it: citation, badges, notes, workflows."""

import configparser
import re
import subprocess
import sys

import yaml

import hf_segkd
from helpers.paths import ROOT


def setup() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def test_citation_names_the_version_and_the_license():
    """A citation of another version sends a reader to other code."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == hf_segkd.__version__
    assert citation["license"] == setup()["metadata"]["license"]


def test_badges_say_what_setup_cfg_says():
    """A badge is read as a promise."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    badges = dict(re.findall(r"img\.shields\.io/badge/([a-z]+)-(\S+?)-[a-z]+\)", text))
    oldest = re.search(r"transformers>=([\d.]+)", setup()["options"]["install_requires"])[1]
    python = setup()["options"]["python_requires"].removeprefix(">=")
    assert badges == {"license": "Apache--2.0", "python": f"{python}%2B", "transformers": f"{oldest}%2B"}


def test_notes_of_this_version_are_its_section_of_the_changelog():
    """A release without notes is one that nobody dares to install."""
    command = [sys.executable, ROOT / "docs" / "release_notes.py"]
    done = subprocess.run([*command, hf_segkd.__version__], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("- ") and len(done.stdout.splitlines()) > 5
    assert "##" not in done.stdout
    refused = subprocess.run([*command, "9.9"], capture_output=True, text=True)
    assert refused.returncode == 1 and "no section 9.9" in refused.stderr


def test_workflows_run_targets_and_files_that_exist():
    """A target that was renamed would be noticed by the first contributor."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = {
        name for head in re.findall(r"^([a-z][a-z -]*):", makefile, flags=re.MULTILINE) for name in head.split()
    }
    for path in (ROOT / ".github" / "workflows").glob("*.yml"):
        text = path.read_text(encoding="utf-8")
        jobs = yaml.safe_load(text)["jobs"]
        runs = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
        named = [word for line in runs if line.startswith("make ") for word in line.split()[1:] if word.isidentifier()]
        assert set(named) | set(re.findall(r"target: ([a-z-]+)", text)) <= targets
        assert all((ROOT / line).is_file() for line in runs if line.startswith("."))
        assert all((ROOT / name).is_file() for line in runs for name in re.findall(r"python (\S+\.py)", line))


def test_issue_templates_can_be_read():
    """GitHub shows no form at all when one of its fields is wrong."""
    for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"):
        form = yaml.safe_load(path.read_text(encoding="utf-8"))
        if path.stem != "config":
            assert {"name", "description", "body"} <= set(form)
            assert all("label" in field["attributes"] for field in form["body"])
