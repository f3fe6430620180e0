"""Permissions of weight files: safetensors creates them readable by the owner only."""

from __future__ import annotations

import os
from pathlib import Path


def follow_umask(folder: str | Path) -> None:
    """Give the `.safetensors` files in a folder the permissions that the user's umask gives to any new file."""
    umask = os.umask(0o077)
    os.umask(umask)
    for file in Path(folder).glob("*.safetensors"):
        file.chmod(0o666 & ~umask)
