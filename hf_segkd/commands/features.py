"""t-SNE of pixel embeddings by class, one panel per model, the same pixels in each.

python scripts/features.py TEACHER STUDENT BASELINE --dataset camvid --data_dir CamVid --output features.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch.utils.data import Subset
from transformers import HfArgumentParser

import dataset_builders
from hf_segkd.console import plain_logs, readable_errors
from hf_segkd.data import EvalTransform, SegmentationDataset
from hf_segkd.data.sampling import evenly_spread
from hf_segkd.evaluation.embeddings import pixel_embeddings, tsne
from hf_segkd.loading.any_model import load_with_processor
from hf_segkd.reports.figures import plot_embeddings
from hf_segkd.reports.files import model_names
from hf_segkd.training.checks import check_classes


def main(argv: list[str] | None = None) -> None:
    """Draw what the command line says."""
    arguments = parser().parse_args(argv)
    plain_logs()
    with readable_errors():
        options = dataset_builders.data_options(arguments)
        spec = dataset_builders.dataset_spec(arguments.dataset, arguments.data_dir, **options)
        names = model_names(arguments.models)
        models = {name: load_with_processor(model) for name, model in names.items()}
        for model, _ in models.values():
            check_classes(model, spec.labels, "model")
        split = arguments.split or spec.eval_split
        rows = dataset_builders.load_split(arguments.dataset, arguments.data_dir, split, **options)
        dataset = SegmentationDataset(rows, EvalTransform(spec.ignore_index), spec.num_labels)
        count = min(arguments.num_images, len(dataset))
        dataset = Subset(dataset, evenly_spread(len(dataset), count))
        Path(arguments.output).parent.mkdir(parents=True, exist_ok=True)
        maps = {}
        for name, (model, processor) in models.items():
            vectors, classes = pixel_embeddings(
                model, processor, dataset, arguments.per_class, spec.num_labels, arguments.seed, arguments.device
            )
            maps[name] = tsne(vectors, arguments.seed, arguments.perplexity), classes
            print(f"{name}: {len(vectors)} pixels of {count} images", flush=True)
        plot_embeddings(maps, spec, arguments.output)
    print(arguments.output)


def parser() -> argparse.ArgumentParser:
    """Command line of this script."""
    form = argparse.RawDescriptionHelpFormatter
    parser = HfArgumentParser(dataset_builders.DataArguments, description=__doc__, formatter_class=form)
    add = parser.add_argument
    add("models", nargs="+", help="folders or Hub ids")
    add("--dataset", required=True, help=", ".join(dataset_builders.BUILDERS) + "; or a folder or Hub id")
    add("--data_dir", help="folder of the raw dataset")
    add("--split", help="train, validation or test (default: the dataset's validation split)")
    add("--output", required=True, help="picture to write, .png or .pdf")
    add("--num_images", type=int, default=20, help="images, evenly spread over the split")
    add("--per_class", type=int, default=10, help="pixels of each class from each image")
    add("--perplexity", type=float, default=30.0, help="of t-SNE")
    add("--seed", type=int, default=0)
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    return parser
