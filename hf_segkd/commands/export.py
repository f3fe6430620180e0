"""Write a model as ONNX files, compare them with PyTorch, and measure size, time and mIoU.

    hf-segkd export MODEL --output_dir OUT
    hf-segkd export MODEL --precisions fp32 fp16 int8 int8_dynamic --dataset camvid --data_dir CamVid --split test \\
        --output_dir OUT
    hf-segkd export MODEL --layout transformers.js --precisions fp16 int8_dynamic --output_dir OUT

MODEL is a folder, a Hub id or an original checkpoint (.pth). A file takes uint8 RGB images (B, H, W, 3) of any size,
or the stored values of a model's bands (B, H, W, C), and returns class ids (B, H, W). With --dataset, the table has
the mIoU of each file; int8 is calibrated on its training split. With --layout transformers.js, OUT is a model folder
for that library: onnx/model.onnx from pixel_values to logits, model_fp16.onnx and model_quantized.onnx (int8_dynamic)
beside it, and its two configs.
"""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from dataset_builders import DataArguments, open_from_arguments
from dataset_builders.arguments import find_data
from hf_segkd.commands.flags import CommandParser, add_dataset, add_fields
from hf_segkd.console import plain_logs, readable_errors
from hf_segkd.reports.files import write_json

if TYPE_CHECKING:
    from hf_segkd.models import Bands

PRECISIONS = ("fp32", "fp16", "int8", "int8_dynamic")
OUTPUTS = ("labels", "logits")
LAYOUTS = ("file", "transformers.js")
MIN_AGREEMENT = 0.9999


def main(argv: list[str] | None = None) -> list[dict]:
    """Export as the command line says and return the rows of the table, PyTorch's first."""
    arguments = parser().parse_args(argv)
    plain_logs()
    import torch

    from hf_segkd.deployment.onnx_segmenter import OnnxSegmenter, crops, images_of, measurements, to_markdown
    from hf_segkd.evaluation.profiling import thread_count
    from hf_segkd.evaluation.segmenter import Segmenter
    from hf_segkd.loading.any_model import load_model
    from hf_segkd.loading.bands import check_reads
    from hf_segkd.loading.fingerprint import fingerprint
    from hf_segkd.models import Bands
    from hf_segkd.training.checks import check_classes

    with readable_errors():
        if "int8" in arguments.precisions and not (arguments.data or arguments.dataset):
            raise ValueError(
                "int8 is calibrated on training images: give --data or --dataset, or choose int8_dynamic."
            )
        check_layout(arguments)
        find_data(arguments)
        model, processor = load_model(arguments.model)
        if arguments.layout == "transformers.js":
            return export_transformers_js(model, processor, arguments)
        dataset = open_from_arguments(arguments) if arguments.dataset else None
        if dataset:
            check_classes(model, dataset.spec.labels, "model")
            check_reads(processor, dataset.bands)
            if dataset.bands is not None and Bands.of(processor) is None:
                raise ValueError("The file takes 8-bit RGB as its model does, the images of this dataset have bands.")
        scored = dataset.evaluation_set(arguments.split) if dataset else None
        if dataset and arguments.size:
            check_size(arguments.size, scored, "to score")
            if "int8" in arguments.precisions:
                training = dataset.evaluation_set(dataset.spec.train_split)
                check_size(arguments.size, training, "to calibrate int8 on")
        made_with = {"model": fingerprint(model, processor), "output": arguments.output, "size": arguments.size}
        begin_export(Path(arguments.output_dir), made_with, arguments.overwrite)
        paths = write_files(model, processor, dataset, arguments)
        files = {name: OnnxSegmenter(path) for name, path in paths.items()}

    size = arguments.size or (512, 1024)
    pictures = images_of(scored, count=4) if scored else scenes(size, Bands.of(processor))
    batches = [picture[None] for picture in pictures]
    if not arguments.size:
        batches = list(crops(pictures, files["fp32"].metadata["size_multiple"]))
    segmenters = {"PyTorch": Segmenter(model, processor), **files}
    ignore_index = dataset.spec.ignore_index if dataset else 255
    rows = measurements(segmenters, batches, pictures[0], scored, model.config.num_labels, ignore_index)
    height, width, _ = pictures[0].shape
    threads = thread_count(torch.get_num_threads())
    conditions = f"{height} x {width} pixels, {threads}, {len(scored or ())} images scored"
    text = f"{to_markdown(rows, paths)}\n\n{conditions}\n"
    print(f"\n{text}")
    (Path(arguments.output_dir) / "export.md").write_text(text, encoding="utf-8")
    report = {"made_with": made_with, "conditions": conditions, "rows": rows}
    write_json(report, Path(arguments.output_dir) / "export.json")
    check_agreement(rows[1])
    return rows


def check_size(size: list[int], images, purpose: str) -> None:
    """Check that a file of fixed size takes the first of the images.

    Raises:
        ValueError: If it does not.
    """
    height, width = images[0]["pixel_values"].shape[-2:]
    if [height, width] != list(size):
        raise ValueError(
            f"--size {size[0]} {size[1]}, but the first image {purpose} has {height}x{width} pixels: a file of fixed "
            "size could not take it. Leave --size out, or give the size of the images."
        )


def begin_export(folder: Path, made_with: dict, overwrite: bool) -> None:
    """Make the output folder ready: `export.json` says which model and settings made the files that lie there.

    Raises:
        ValueError: If they were made with others and `overwrite` is not given.
    """
    manifest = folder / "export.json"
    earlier = json.loads(manifest.read_text(encoding="utf-8")).get("made_with") if manifest.is_file() else None
    files = sorted(folder.glob("model_*.onnx"))
    if files and earlier != made_with:
        if not overwrite:
            raise ValueError(
                f"'{folder}' holds {files[0].name} of another model, --output or --size. Give another --output_dir, "
                "or --overwrite to replace it."
            )
        for file in files:
            file.unlink()
    (folder / "export.md").unlink(missing_ok=True)
    write_json({"made_with": made_with}, manifest)


def check_layout(arguments: argparse.Namespace) -> None:
    """Check that the flags fit the layout.

    Raises:
        ValueError: If the folder of transformers.js is asked for something that it cannot hold.
    """
    if arguments.layout == "file":
        return
    given = [f"--{name}" for name in ("size", "data", "dataset", "data_dir", "split") if getattr(arguments, name)]
    given += ["--precisions int8"] if "int8" in arguments.precisions else []
    given += ["--output logits"] if arguments.output == "logits" else []
    if given:
        raise ValueError(
            f"--layout transformers.js takes images of any size, always gives logits, and has no calibrated int8: "
            f"leave out {', '.join(given)}. Its model_quantized.onnx is made by --precisions int8_dynamic."
        )


def export_transformers_js(model, processor, arguments: argparse.Namespace) -> list[dict]:
    """Write the folder of transformers.js, compare each file with PyTorch and return the rows of the table."""
    import onnxruntime

    from hf_segkd.deployment.onnx_segmenter import agreement, crops
    from hf_segkd.deployment.transformers_js import label_map, write_transformers_js
    from hf_segkd.evaluation.segmenter import Segmenter
    from hf_segkd.reports.tables import markdown_table

    earlier = sorted((Path(arguments.output_dir) / "onnx").glob("model*.onnx"))
    if earlier and not arguments.overwrite:
        raise ValueError(f"'{earlier[0]}' is there already. Give another --output_dir, or --overwrite to replace it.")
    for file in earlier:
        file.unlink()
    paths = write_transformers_js(model, processor, arguments.output_dir, arguments.precisions)
    segmenter = Segmenter(model, processor)
    batches = list(crops(scenes((256, 320), None), multiple=1))
    rows = []
    for name, path in paths.items():
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        equal = agreement(partial(label_map, session, processor), segmenter, batches)
        rows.append({"name": name, "path": str(path), "mib": path.stat().st_size / 2**20, "equal_pixels": equal})
    cells = [[row["path"], f"{row['mib']:.2f}", f"{100 * row['equal_pixels']:.3f}"] for row in rows]
    print(f"\n{markdown_table(['', 'MiB', 'pixels as in PyTorch, %'], cells)}\n")
    check_agreement(rows[0])
    return rows


def check_agreement(row: dict) -> None:
    """Stop with an error where the fp32 file is not the model."""
    if row["equal_pixels"] < MIN_AGREEMENT:
        sys.exit(f"error: the fp32 file disagrees with PyTorch on more than {1 - MIN_AGREEMENT:.2%} of the pixels.")


def write_files(model, processor, dataset, arguments: argparse.Namespace) -> dict[str, Path]:
    """The files asked for, by precision; fp32 always, because int8 is made from it."""
    from hf_segkd.deployment.onnx_export import export_onnx, quantize_dynamic, quantize_static
    from hf_segkd.deployment.onnx_segmenter import images_of

    paths = {name: Path(arguments.output_dir) / f"model_{name}.onnx" for name in PRECISIONS}
    wanted = {"fp32": paths["fp32"]} | {name: paths[name] for name in arguments.precisions}
    for name in ("fp32", "fp16"):
        if name in wanted:
            export_onnx(model, processor, paths[name], arguments.output, name, arguments.size)
    if "int8" in wanted:
        training = dataset.evaluation_set(dataset.spec.train_split)
        quantize_static(paths["fp32"], paths["int8"], images_of(training, arguments.calibration_images))
    if "int8_dynamic" in wanted:
        quantize_dynamic(paths["fp32"], paths["int8_dynamic"])
    return wanted


def scenes(size: tuple[int, int], bands: Bands | None, count: int = 4) -> list:
    """Street scenes, arrays (H, W, C), for a model of which no data is at hand; their green is every other band."""
    from dataset_builders.street_scenes import draw_scene

    pictures = [draw_scene("test", index, *size, seed=0)[0] for index in range(count)]
    if bands is None:
        return pictures
    channels = [("red", "green", "blue").index(name) if name in ("red", "blue") else 1 for name in bands.names]
    return [picture[..., channels].astype("uint8" if bands.dtype == "uint8" else "float32") for picture in pictures]


def parser() -> argparse.ArgumentParser:
    """Command line of this command."""
    parser = CommandParser("export", __doc__)
    add = parser.add_argument
    add("model", help="folder, Hub id or original checkpoint (.pth)")
    add("--output_dir", required=True, help="folder for model_<precision>.onnx, export.json and export.md")
    add("--precisions", nargs="+", default=["fp32"], choices=PRECISIONS, help="files to write; fp32 is always written")
    add("--layout", default="file", choices=LAYOUTS, help="files for onnxruntime, or a folder for transformers.js")
    add("--output", default="labels", choices=OUTPUTS, help="class ids at image size, or the model's logits")
    add("--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="fixed size of images, pixels (default: any)")
    add_dataset(parser, "images to score and to calibrate int8 on")
    add("--split", help="split that is scored (default: the dataset's validation split)")
    add("--calibration_images", type=int, default=32, help="training images that int8 is calibrated on (default: 32)")
    add("--overwrite", action="store_true", help="replace the files of another model or of other settings")
    add_fields(parser, DataArguments, "data")
    return parser
