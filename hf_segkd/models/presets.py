"""Short names of backbones, filled by their own files."""

from typing import Any

# As recipes write them, and the fields of the config that they stand for.
BACKBONES: dict[str, dict[str, Any]] = {}
