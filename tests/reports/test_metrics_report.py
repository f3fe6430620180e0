"""Where the code of a run came from."""

import subprocess

import pytest

from helpers.paths import ROOT
from hf_segkd.reports.metrics_report import source_commit


def test_commit_is_that_of_the_checkout():
    """A run without it cannot be repeated with the same code."""
    if not (ROOT / ".git").exists():
        pytest.skip("not run from a git checkout")
    head = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    assert source_commit() == head.stdout.strip()
