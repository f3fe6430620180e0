"""Parts of a model card that do not depend on a run: how to use the model, where it is from, what the data allows."""

from __future__ import annotations

import json
from pathlib import Path

from transformers.utils import IMAGE_PROCESSOR_NAME

from dataset_builders import DATASETS
from hf_segkd.data.specs import UNKNOWN_LICENSE
from hf_segkd.models.released_code import MODULE, OLDEST_TRANSFORMERS
from hf_segkd.reports.card_data import SAMPLE
from hf_segkd.reports.markdown import code, plain
from hf_segkd.training.finished_run import METRICS_FILE


def data_license(dataset: str) -> str:
    """What the data may be used for, and where it comes from."""
    if dataset not in DATASETS:
        return UNKNOWN_LICENSE
    spec = DATASETS[dataset]
    return f"{spec.license} Source: {spec.link}" if spec.link else spec.license


def usage(folder: Path, repo_id: str | None, branch: str | None) -> dict:
    """Requirements, arguments of the code snippets, and image type, for the model card."""
    # Native students have no code in their folder, and nothing to trust.
    remote = any(path.suffix == ".py" for path in folder.iterdir())
    revision = f", revision={json.dumps(branch)}" if branch else ""
    extra = revision + (", trust_remote_code=True" if remote else "")
    processor = json.loads((folder / IMAGE_PROCESSOR_NAME).read_text(encoding="utf-8"))
    bands = processor.get("bands")
    sample = "figures/sample.npy" if bands else SAMPLE
    where = json.dumps(repo_id or ".")
    has_sample = (folder / sample).is_file() or (folder / METRICS_FILE).is_file()
    image = json.dumps(sample if has_sample else "photo.jpg")
    if has_sample and repo_id:
        image = f"hf_hub_download({where}, {image}{revision})"
    reader = "`numpy`" if bands else "`pillow`"
    needs = f"Needs `torch`, `transformers` and {reader} only."
    if remote:
        oldest = ".".join(map(str, OLDEST_TRANSFORMERS))
        needs = f"Needs `torch`, `transformers` {oldest} or newer and {reader}: the model's code is `{MODULE}.py`."
    needs += "" if repo_id else " The snippets run in this folder."
    if remote:
        needs += " Where `hf_segkd` is installed and imported, `trust_remote_code=False` serves."
    return {
        "requirements": needs,
        "remote_image": has_sample and repo_id is not None,
        "load_arguments": f"model={where}{extra}",
        "load_arguments_positional": f"{where}{extra}",
        "image": image,
        "bands": _bands(processor),
    }


def _bands(processor: dict) -> dict | None:
    """What images hold that are not 8-bit RGB, for the card: one row for each band."""
    if not processor.get("bands"):
        return None
    statistics = zip(processor["bands"], processor["image_mean"], processor["image_std"], strict=True)
    return {
        "dtype": processor["pixel_dtype"],
        "count": len(processor["bands"]),
        "range": [f"{value:g}" for value in processor.get("pixel_range") or ()],
        "divided": processor["do_rescale"],
        "rows": [[name, f"{mean:.6g}", f"{std:.6g}"] for name, mean, std in statistics],
    }


def converted_content(config: dict, conversion: dict) -> dict:
    """What the template says of a converted checkpoint, from its `conversion.json`."""
    name = plain(config["architectures"][0].removesuffix("ForSemanticSegmentation"))
    of_dataset = f" of {plain(conversion['dataset'])}" if conversion["dataset"] else ""
    return {
        "sentence": (
            f"{name} for semantic segmentation of {conversion['num_labels']} classes{of_dataset}: the published "
            f"weights of {plain(conversion['family'])}, converted. Nothing was trained and nothing was scored here."
        ),
        "origin": "Conversion",
        "facts": [
            f"original file: {code(conversion['checkpoint'])}, SHA-256 {code(conversion['sha256'])}",
            f"family: {plain(conversion['family'])}; the conversion was compared with {plain(conversion['checked'])}",
            "all weights are those of the file, in float32; loaded again, the folder gave the same logits",
        ],
        "license": data_license(conversion["dataset"]) if conversion["dataset"] else UNKNOWN_LICENSE,
    }


def prompt_facts(recipe: dict) -> list[str]:
    """One fact for each teacher that was asked in words."""
    given = recipe.get("teacher")
    facts = []
    for entry in given if isinstance(given, list) else [given]:
        if not isinstance(entry, dict) or "prompts" not in entry:
            continue
        asked = [f"{name}: {x if isinstance(x, str) else ', '.join(x)}" for name, x in entry["prompts"].items()]
        asked += [f"everything else: {entry['background']}"] if entry.get("background") else []
        facts.append(f"the teacher's labels came from prompts, no person drew them ({plain('; '.join(asked))})")
    return facts
