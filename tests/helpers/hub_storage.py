"""What the local Hub stores, and how it describes it to the client."""

import hashlib
import re
from dataclasses import dataclass, field

import yaml


@dataclass(frozen=True)
class Stored:
    content: bytes
    lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def oid(self) -> str:
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()


@dataclass
class Repository:
    private: bool
    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, Stored]] = field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, Stored]) -> str:
        sha = hashlib.sha1(f"{len(self.commits)} {sorted(files)}".encode()).hexdigest()
        self.commits[sha], self.branches[branch] = files, sha
        return sha


def entry(path: str, file: Stored | None) -> dict:
    if file is None:
        return {"type": "directory", "path": path, "size": 0, "oid": hashlib.sha1(path.encode()).hexdigest()}
    entry = {"type": "file", "path": path, "size": len(file.content), "oid": file.oid}
    return entry | ({"lfs": {"oid": file.sha256, "size": len(file.content), "pointerSize": 130}} if file.lfs else {})


def metadata(readme: str) -> dict:
    found = re.match(r"---\n(.*?)\n---", readme, re.DOTALL)
    return yaml.safe_load(found[1]) if found else {}


def card_errors(header: dict) -> list[str]:
    """What the Hub demands of `model-index`."""
    errors = []
    for model in header.get("model-index", []):
        for result in model.get("results", []):
            errors += [f"{key} is missing" for key in ("task", "dataset", "metrics") if not result.get(key)]
            errors += [f"dataset.{key} is missing" for key in ("type", "name") if not result["dataset"].get(key)]
            errors += [f"metric without {key}" for x in result["metrics"] for key in ("type", "value") if key not in x]
    return errors
