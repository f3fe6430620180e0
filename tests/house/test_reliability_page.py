"""docs/reliability.md promises nothing that no test provokes."""

import re

from helpers.paths import ROOT, TESTS


def test_every_test_that_the_page_names_exists():
    """A renamed test would leave a promise behind that nobody keeps."""
    lines = [line for line in (ROOT / "docs" / "reliability.md").read_text().splitlines() if line.startswith("| ")]
    named = [re.findall(r"`(test_\w+)` \|$", line) for line in lines if not line.startswith("| fault |")]
    defined = {
        name for path in TESTS.rglob("test_*.py") for name in re.findall(r"^def (test_\w+)", path.read_text(), re.M)
    }
    assert len(named) > 20 and all(len(names) == 1 for names in named)
    assert {name for names in named for name in names} <= defined
