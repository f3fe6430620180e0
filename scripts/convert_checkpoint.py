"""Convert an original checkpoint into a folder for `from_pretrained`, and check that the two agree.

python scripts/convert_checkpoint.py CHECKPOINT.pth FOLDER --dataset camvid
"""

import argparse
from dataclasses import fields
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from hf_segkd.conversion import convert, load_original, recognise
from hf_segkd.data.datasets import DATASETS
from hf_segkd.errors import readable_errors
from hf_segkd.models import default_processor, load_processor, load_segmenter

PROBE_SIZE = (96, 136)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="original file, such as ESP_base_57.8.pth")
    parser.add_argument("folder", type=Path, help="where the model and its image processor are saved")
    parser.add_argument("--dataset", choices=sorted(DATASETS), help="dataset it was trained on, names the classes")
    parser.add_argument("--overwrite", action="store_true", help="save into a folder that holds files already")
    return parser.parse_args(argv)


def check_folder(folder: Path, overwrite: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"'{folder}' is a file. Name a folder to save the model in.")
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise ValueError(f"'{folder}' is not empty. Name another folder, or pass --overwrite.")


@torch.no_grad()
def probe(model: PreTrainedModel, pixel_values: Tensor) -> Tensor:
    logits = model(pixel_values=pixel_values).logits
    spread = (logits.amax(dim=(2, 3)) - logits.amin(dim=(2, 3))).max()
    if not logits.isfinite().all() or spread == 0:
        raise ValueError("The converted model gives logits that are constant or not finite: its weights are broken.")
    return logits


def describe(config: PreTrainedConfig) -> str:
    own = {field.name for field in fields(config)} - {field.name for field in fields(PreTrainedConfig)}
    values = {"num_labels": config.num_labels} | {name: getattr(config, name) for name in sorted(own)}
    return ", ".join(f"{name}={value}" for name, value in values.items())


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    logging.disable_progress_bar()
    with readable_errors():
        check_folder(args.folder, args.overwrite)
        state_dict = load_original(args.checkpoint)
        model = convert(state_dict, id2label=DATASETS[args.dataset].id2label if args.dataset else None)
        processor = default_processor(model.config)
        image = torch.randint(256, (3, *PROBE_SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        pixel_values = processor(image, return_tensors="pt")["pixel_values"]
        logits = probe(model, pixel_values)

        model.save_pretrained(args.folder)
        processor.save_pretrained(args.folder)
        reloaded = load_processor(str(args.folder))(image, return_tensors="pt")["pixel_values"]
        if not torch.equal(logits, probe(load_segmenter(str(args.folder)), reloaded)):
            raise ValueError(f"The model saved in '{args.folder}' gives other logits than the one converted.")

    print(f"family      {recognise(state_dict).name}")
    print(f"config      {describe(model.config)}")
    print(f"parameters  {model.num_parameters():,}")
    print(f"saved       {args.folder} (logits equal after reloading)")


if __name__ == "__main__":
    main()
