"""t-SNE of pixel embeddings by class, one panel per model, the same pixels in each.

    hf-segkd features TEACHER STUDENT BASELINE --dataset camvid --data_dir CamVid --output features.png

Models are folders, Hub ids or original checkpoints (.pth).
"""

from __future__ import annotations

import argparse
from pathlib import Path

from dataset_builders import DataArguments, open_from_arguments
from dataset_builders.arguments import find_data
from hf_segkd.commands.flags import CommandParser, add_dataset, add_fields
from hf_segkd.console import plain_logs, readable_errors
from hf_segkd.reports.files import model_names


def main(argv: list[str] | None = None) -> None:
    """Draw what the command line says."""
    arguments = parser().parse_args(argv)
    plain_logs()
    from torch.utils.data import Subset

    from hf_segkd.data.sampling import evenly_spread
    from hf_segkd.evaluation.embeddings import pixel_embeddings, tsne
    from hf_segkd.evaluation.segmenter import Segmenter, default_device
    from hf_segkd.loading.any_model import load_model
    from hf_segkd.reports.figures import plot_embeddings
    from hf_segkd.training.checks import check_classes

    with readable_errors():
        find_data(arguments)
        dataset = open_from_arguments(arguments)
        spec, device = dataset.spec, arguments.device or default_device()
        names = model_names(arguments.models)
        options = {"device": device, "bands": dataset.bands}
        segmenters = {name: Segmenter(*load_model(model), **options) for name, model in names.items()}
        for segmenter in segmenters.values():
            check_classes(segmenter.model, spec.labels, "model")
        images = dataset.evaluation_set(arguments.split)
        images = Subset(images, evenly_spread(len(images), arguments.num_images))
        Path(arguments.output).parent.mkdir(parents=True, exist_ok=True)
        maps = {}
        for name, segmenter in segmenters.items():
            vectors, classes = pixel_embeddings(
                segmenter, images, arguments.per_class, spec.num_labels, arguments.seed
            )
            maps[name] = tsne(vectors, arguments.seed, arguments.perplexity), classes
            print(f"{name}: {len(vectors)} pixels of {len(images)} images", flush=True)
        plot_embeddings(maps, spec, arguments.output)
    print(arguments.output)


def parser() -> argparse.ArgumentParser:
    """Command line of this command."""
    parser = CommandParser("features", __doc__)
    add = parser.add_argument
    add("models", nargs="+", help="folders, Hub ids or original checkpoints (.pth), one panel each")
    add_dataset(parser, "images to look at", required=True)
    add("--split", help="train, validation or test (default: the dataset's validation split)")
    add("--output", required=True, help="picture to write, .png or .pdf")
    add("--num_images", type=int, default=20, help="images, evenly spread over the split (default: 20)")
    add("--per_class", type=int, default=10, help="pixels of each class from each image (default: 10)")
    add("--perplexity", type=float, default=30.0, help="perplexity of t-SNE (default: 30)")
    add("--seed", type=int, default=0, help="seed of the choice of pixels and of t-SNE (default: 0)")
    add("--device", choices=["cpu", "cuda"], help="where the models run (default: the GPU where there is one)")
    add_fields(parser, DataArguments, "data")
    return parser
