"""Convert an original checkpoint into a folder for `from_pretrained`, and check that the two agree.

hf-segkd convert CHECKPOINT.pth FOLDER --dataset camvid
hf-segkd convert --list
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

from dataset_builders import BUILDERS, open_dataset
from hf_segkd.commands.flags import CommandParser
from hf_segkd.console import readable_errors

PROBE_SIZE = (96, 136)


def check_folder(folder: Path, overwrite: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"'{folder}' is a file. Name a folder to save the model in.")
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise ValueError(f"'{folder}' is not empty. Name another folder, or pass --overwrite.")
    if (folder / "recipe.yaml").is_file():
        raise ValueError(
            f"'{folder}' holds a training run, whose scores are not the new model's. Name another folder."
        )


def probe(model, pixel_values):
    """Logits of an image, which must tell something."""
    import torch

    with torch.no_grad():
        logits = model(pixel_values=pixel_values).logits
    spread = (logits.amax(dim=(2, 3)) - logits.amin(dim=(2, 3))).max()
    if not logits.isfinite().all() or spread == 0:
        raise ValueError("The converted model gives logits that are constant or not finite: its weights are broken.")
    return logits


def describe(config) -> str:
    """What is particular to a config, in one line."""
    from hf_segkd.models.compat import PreTrainedConfig, field_names

    own = field_names(type(config)) - field_names(PreTrainedConfig)
    values = {name: getattr(config, name) for name in sorted(own)}
    for name, value in values.items():
        if isinstance(value, PreTrainedConfig):
            values[name] = f"{value.model_type}({describe(value)})"
    return ", ".join(f"{name}={value}" for name, value in values.items())


def check_reloaded(folder: Path, model, image, logits) -> None:
    """Weights bit for bit; logits up to the last bits, which depend on where the weights lie in memory."""
    from hf_segkd.loading.any_model import load_model

    reloaded, processor = load_model(str(folder))
    pixel_values = processor(image, return_tensors="pt")["pixel_values"]
    weights = reloaded.state_dict()
    same = all(value.equal(weights[key]) for key, value in model.state_dict().items())
    if not same or (logits - probe(reloaded, pixel_values)).abs().max() > 1e-5 * logits.abs().max():
        raise ValueError(f"The model saved in '{folder}' is not the one converted.")


def write_card(args: argparse.Namespace, family, num_labels: int) -> None:
    """Where the weights are from, as `conversion.json`, and the model card that says so."""
    from hf_segkd.reports.files import write_json
    from hf_segkd.reports.model_card import write_model_card
    from hf_segkd.training.finished_run import CONVERSION_FILE

    conversion = {
        "checkpoint": args.checkpoint.name,
        "sha256": hashlib.sha256(args.checkpoint.read_bytes()).hexdigest(),
        "family": family.name,
        "checked": family.checked,
        "dataset": args.dataset,
        "num_labels": num_labels,
    }
    write_json(conversion, args.folder / CONVERSION_FILE)
    write_model_card(args.folder, license=args.license)


def main(argv: list[str] | None = None) -> None:
    """Convert what the command line names, or list what can be converted."""
    args = parser().parse_args(argv)
    if not args.list and args.folder is None:
        parser().error("name a checkpoint and a folder, or pass --list")
    import torch
    from transformers.utils import logging

    from hf_segkd.conversion import FAMILIES, convert, converted_processor, load_original, recognize
    from hf_segkd.loading.permissions import follow_umask
    from hf_segkd.values import check_license

    if args.list:
        width = max(len(family.name) for family in FAMILIES)
        for family in FAMILIES:
            print(f"{family.name:<{width}}  checked with {family.checked}")
        return
    logging.disable_progress_bar()
    with readable_errors():
        check_folder(args.folder, args.overwrite)
        check_license(args.license)
        state_dict = load_original(args.checkpoint)
        model = convert(state_dict, id2label=open_dataset(args.dataset).spec.id2label if args.dataset else None)
        family = recognize(state_dict)
        processor = converted_processor(family, model.config)
        image = torch.randint(256, (3, *PROBE_SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        pixel_values = processor(image, return_tensors="pt")["pixel_values"]
        logits = probe(model, pixel_values)

        model.save_pretrained(args.folder)
        processor.save_pretrained(args.folder)
        follow_umask(args.folder)
        check_reloaded(args.folder, model, image, logits)
        write_card(args, family, model.config.num_labels)

    print(f"family      {family.name}")
    print(f"config      num_labels={model.config.num_labels}, {describe(model.config)}")
    print(f"parameters  {model.num_parameters():,}")
    print(f"saved       {args.folder} (the same after reloading)")


def parser() -> argparse.ArgumentParser:
    """Command line of this command."""
    parser = CommandParser("convert", __doc__)
    add = parser.add_argument
    add("checkpoint", type=Path, nargs="?", help="original file, such as ESP_base_57.8.pth")
    add("folder", type=Path, nargs="?", help="where the model and its image processor are saved")
    add("--dataset", choices=sorted(BUILDERS.keys() - {"folder"}), help="dataset it was trained on, names the classes")
    add("--license", help="license of the weights for the model card, as on the Hub: apache-2.0, mit, other, ...")
    add("--overwrite", action="store_true", help="save into a folder that holds files already")
    add("--list", action="store_true", help="name the checkpoints that can be read, and stop")
    return parser
