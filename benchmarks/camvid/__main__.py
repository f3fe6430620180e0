"""Work through the CamVid benchmark: stages of `hf-segkd benchmark`, each of which may be stopped and continued.

    python -m benchmarks.camvid --data_dir CamVid --checkpoints checkpoints --output_dir runs/camvid
    python -m benchmarks.camvid --data_dir CamVid --checkpoints checkpoints --output_dir runs/camvid --stages methods

`checkpoints` holds the released files of Structured KD, of which `ESP_SD+KD+CITY_65.1.pth` is the teacher, and one
of ESPNet's, trained on Cityscapes; `best` also needs that of ESPNetv2-2.0, `starts` an ImageNet file of MobileNetV2
(`mobilenetv2_imagenet.safetensors`). What a finished stage found is copied to `--results`, from which
`python -m benchmarks.camvid.report` writes the tables.

Stages, in this order:
  baseline   learning rate, weight decay and color jitter of the student alone, from scratch; validation split, one
             seed
  started    the same and class weights from the Cityscapes weights of the same network, with half as many steps
  weights    each method at a third of its recipe's weight, at this weight and at three times it; as the
             best trial of `started`, with half of its steps; validation split, one seed
  methods    each method at the best of these weights, with the steps of `started`; three other seeds, test split
  longer     the baseline with half as many steps again, for a comparison at equal time, three seeds, test split
  labels     46, 367, 92, 184 labeled images: alone, with `kd_cwd` on them, with `kd_cwd` on the other images too;
             start and steps as in `started`, three seeds, test split
  unweighted 46 labeled images as in `labels`, but all pixels count alike; three seeds, test split
  scratch    46 labeled images as in `labels`, with `kd`, from scratch; three seeds, test split
  teachers   KD from one teacher on crops, from its stored maps of whole images, from those with flip and scales, from
             those of four teachers; half as many steps, three seeds, test split
  starts     the best recipe of `weights` and the baseline from other starts: ESPNet-C from scratch, PSPNet-MobileNetV2
             from ImageNet with the better of two learning rates on the validation split; three seeds, test split
  best       training and validation images together, more steps: ESPNet-C and ESPNetv2-2.0 from Cityscapes alone and
             with four teachers by the best recipe of `weights`, ESPNet-C then with frozen batch norms; ESPNet-C with
             the teachers for twice the steps; one seed, test split
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import yaml

from hf_segkd.commands import benchmark
from hf_segkd.reports.files import write_json

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parent / "results" / "camvid"
RECIPES = HERE.parents[1] / "hf_segkd" / "recipes" / "methods"
SCHEDULE = str(HERE / "schedule.yaml")
TEACHER = "ESP_SD+KD+CITY_65.1.pth"
# The released files that were trained with 2000 more images.
FOUR = (TEACHER, "esp-c_KD+CITY+SD_64.1.pth", "ESP_kd+city+63.2.pth", "esp-c_kd+city_62.8.pth")
METHODS = ("kd", "cwd_logits", "kd_cwd", "dist", "skd_pairwise", "at", "fitnet", "pkd")
FACTORS = {"third": 1 / 3, "recipe": 1.0, "triple": 3.0}
# Names of files in trials/.
FROM_SCRATCH = ("center", "decay_0.1", "jitter", "rate_1e-3", "rate_4e-3")
STARTED = ("center", "decay_0.1", "jitter", "rare_classes", "rare_classes_rate_1e-3", "rare_classes_rate_4e-3")
IMAGENET_RATES = ("rare_classes_rate_5e-4", "rare_classes_rate_1e-3")
TRIAL_SEED, SEEDS = ("0",), ("1", "2", "3")
START = "Cityscapes_ESPNet_C_Ours_60.pth"
NO_CURVE = ("--eval_strategy", "no")  # the validation split is scored at the end only
EVERY = {46: 8, 367: 1, 92: 4, 184: 2}  # labeled images -> step through the list of training images


def main(argv: list[str] | None = None) -> None:
    arguments = parser().parse_args(argv)
    for stage in arguments.stages:
        STAGES[stage](arguments)


def run_baseline(arguments: argparse.Namespace) -> None:
    queue("baseline", trials(FROM_SCRATCH), TRIAL_SEED, "validation", arguments)


def run_started(arguments: argparse.Namespace) -> None:
    queue("started", trials(STARTED), TRIAL_SEED, "validation", arguments, start_weights(arguments))


def trials(names: Sequence[str]) -> list[str]:
    return [str(HERE / "trials" / f"{name}.yaml") for name in names]


def run_weights(arguments: argparse.Namespace) -> None:
    flags = [*teacher(arguments), *start(arguments, schedule_steps() // 4)]
    for method in METHODS:
        recipes = [scaled(method, name, arguments) for name in FACTORS]
        queue(f"weights/{method}", recipes, TRIAL_SEED, "validation", arguments, flags)


def run_methods(arguments: argparse.Namespace) -> None:
    recipes = ["baseline", *(scaled(method, best_factor(method, arguments), arguments) for method in METHODS)]
    queue("methods", recipes, SEEDS, "test", arguments, [*teacher(arguments), *start(arguments), *NO_CURVE])


def run_longer(arguments: argparse.Namespace) -> None:
    flags = [*start(arguments, schedule_steps() * 3 // 4), *NO_CURVE]
    queue("longer", ["baseline"], SEEDS, "test", arguments, flags)


def run_labels(arguments: argparse.Namespace) -> None:
    for count in EVERY:
        few_labels("labels", count, "kd_cwd", arguments, [*start(arguments), *NO_CURVE])


def run_unweighted(arguments: argparse.Namespace) -> None:
    few_labels("unweighted", min(EVERY), "kd_cwd", arguments, start_weights(arguments))


def run_scratch(arguments: argparse.Namespace) -> None:
    few_labels("scratch", min(EVERY), "kd", arguments)


def few_labels(stage: str, count: int, method: str, arguments: argparse.Namespace, flags: Sequence[str] = ()) -> None:
    """Train on `count` labels alone, with a teacher on the same images, and with one on the other images too."""
    labeled, rest = split_training_images(count, arguments)
    flags = [*flags, "--data_dir", str(labeled)]
    stored = [*teacher(arguments), "--teacher_cache", str(Path(arguments.output_dir) / "teacher_cache")]
    queue(f"{stage}/{count}_alone", ["baseline"], SEEDS, "test", arguments, flags)
    queue(f"{stage}/{count}_{method}", [method], SEEDS, "test", arguments, [*flags, *stored])
    if count != max(EVERY):
        more = ["--unlabeled", str(rest), "--unlabeled_ratio", "1.0"]
        queue(f"{stage}/{count}_unlabeled", [method], SEEDS, "test", arguments, [*flags, *stored, *more])


def run_teachers(arguments: argparse.Namespace) -> None:
    steps = ["--max_steps", str(schedule_steps() // 2)]
    views = ["--teacher_flip", "--teacher_scales", "0.5", "1", "2"]
    four = ["--teacher", *(str(Path(arguments.checkpoints) / name) for name in FOUR)]
    queue("teachers/alone", ["baseline"], SEEDS, "test", arguments, steps)
    queue("teachers/live", ["kd"], SEEDS, "test", arguments, [*steps, *teacher(arguments)])
    for name, described in (("cached", teacher(arguments)), ("views", [*teacher(arguments), *views]), ("four", four)):
        folder = "teacher_cache" if name == "cached" else f"teacher_cache_{name}"
        stored = [*described, "--teacher_cache", str(Path(arguments.output_dir) / folder)]
        queue(f"teachers/{name}", ["kd"], SEEDS, "test", arguments, [*steps, *stored])


def run_starts(arguments: argparse.Namespace) -> None:
    methods, flags = ["baseline", best_recipe(arguments)], [*teacher(arguments), *NO_CURVE]
    queue("starts/scratch", methods, SEEDS, "test", arguments, flags, recipes=[str(HERE / "starts" / "scratch.yaml")])

    recipes = [str(HERE / "starts" / "imagenet.yaml")]
    weights = str(Path(arguments.checkpoints) / "mobilenetv2_imagenet.safetensors")
    described = {"model_type": "pspnet", "backbone": "mobilenetv2", "backbone_weights": weights}
    student = ["--student", json.dumps(described), *NO_CURVE]
    names = trials(IMAGENET_RATES)
    queue("starts/imagenet_trials", names, TRIAL_SEED, "validation", arguments, student, recipes=recipes)
    trial = HERE / "trials" / f"{best_trial('starts/imagenet_trials', arguments)['method']}.yaml"
    rate = ["--learning_rate", str(yaml.safe_load(trial.read_text(encoding="utf-8"))["learning_rate"])]
    flags = [*teacher(arguments), *student, *rate]
    queue("starts/imagenet", methods, SEEDS, "test", arguments, flags, recipes=recipes)


def run_best(arguments: argparse.Namespace) -> None:
    four = ["--teacher", *(str(Path(arguments.checkpoints) / name) for name in FOUR)]
    stored = [*four, "--teacher_cache", str(Path(arguments.output_dir) / "teacher_cache_four")]
    city = ["--student", str(Path(arguments.checkpoints) / START)]
    small = [*city, "--max_steps", "4000"]
    large = ["--student", str(Path(arguments.checkpoints) / "espnetv2" / "espnetv2_s_2.0_city_1024x512.pth")]
    method = best_recipe(arguments)
    runs = {
        "espnetc_alone": ("espnetc", "baseline", small),
        "espnetc_taught": ("espnetc", method, [*small, *stored]),
        "espnetc_alone_frozen": ("espnetc", "baseline", frozen("espnetc_alone", "baseline", arguments)),
        "espnetc_taught_frozen": ("espnetc", method, [*frozen("espnetc_taught", method, arguments), *stored]),
        "espnetv2_alone": ("espnetv2", "baseline", large),
        "espnetv2_taught": ("espnetv2", method, [*large, *stored]),
        "espnetc_taught_long": ("espnetc", method, [*city, *stored]),
    }
    for name, (recipe, method, flags) in runs.items():
        recipes = [str(HERE / "best" / f"{recipe}.yaml")]
        queue(f"best/{name}", [method], SEEDS[:1], "test", arguments, flags, recipes=recipes)


def frozen(name: str, method: str, arguments: argparse.Namespace) -> list[str]:
    """A tenth of the steps more, with the batch-norm statistics that a run of `best` has, at a tenth of its rate."""
    student = Path(arguments.output_dir) / "best" / name / Path(method).stem / f"seed{SEEDS[0]}"
    return ["--student", str(student), "--max_steps", "400", "--learning_rate", "2.0e-4", "--freeze_batch_norm"]


STAGES = {
    "baseline": run_baseline,
    "started": run_started,
    "weights": run_weights,
    "methods": run_methods,
    "longer": run_longer,
    "labels": run_labels,
    "unweighted": run_unweighted,
    "scratch": run_scratch,
    "teachers": run_teachers,
    "starts": run_starts,
    "best": run_best,
}


def queue(
    stage: str,
    methods: list[str],
    seeds: Sequence[str],
    split: str,
    arguments: argparse.Namespace,
    flags: Sequence[str] = (),
    recipes: Sequence[str] = (),
) -> None:
    """Run what is missing of a stage, and copy what it found to the results; `recipes` go on top of the schedule."""
    folder = Path(arguments.output_dir) / stage
    data = [] if "--data_dir" in flags else ["--data_dir", arguments.data_dir]
    cache = ["--cache_dir", str(Path(arguments.output_dir) / "decoded")]
    options = ["--methods", *methods, "--seeds", *seeds, "--split", split, "--output_dir", str(folder)]
    failed = benchmark.main([SCHEDULE, *recipes, *options, *data, *cache, *flags])
    if failed:
        raise SystemExit(f"Stage {stage}: {failed} runs failed. Their logs lie in {folder}.")
    target = Path(arguments.results) / stage
    target.mkdir(parents=True, exist_ok=True)
    for name in ("results.json", "counts.safetensors"):
        shutil.copyfile(folder / name, target / name)
    write_json(validation_curves(folder), target / "curves.json")


def validation_curves(folder: Path) -> dict[str, list[list[float]]]:
    """Steps at which each run, "method/seed", was evaluated, and the mIoU found on the validation split."""
    curves = {}
    for log in sorted(folder.glob("*/seed*/training_log.json")):
        entries = json.loads(log.read_text(encoding="utf-8"))
        name = f"{log.parent.parent.name}/{log.parent.name.removeprefix('seed')}"
        curves[name] = [[entry["step"], entry["eval_mean_iou"]] for entry in entries if "eval_mean_iou" in entry]
    return curves


def schedule_steps() -> int:
    return yaml.safe_load(Path(SCHEDULE).read_text(encoding="utf-8"))["max_steps"]


def teacher(arguments: argparse.Namespace) -> list[str]:
    return ["--teacher", str(Path(arguments.checkpoints) / TEACHER)]


def start(arguments: argparse.Namespace, steps: int | None = None) -> list[str]:
    """The Cityscapes weights with the best settings of `started`: those of the schedule, rare classes weighed."""
    return [*start_weights(arguments, steps), "--losses.task.class_weights", "enet"]


def start_weights(arguments: argparse.Namespace, steps: int | None = None) -> list[str]:
    """The student's Cityscapes weights, with half of the schedule's steps or as many as given."""
    return ["--student", str(Path(arguments.checkpoints) / START), "--max_steps", str(steps or schedule_steps() // 2)]


def scaled(method: str, name: str, arguments: argparse.Namespace) -> str:
    """A recipe with the weights of all its losses but the task's multiplied; the path of the new file."""
    recipe = yaml.safe_load((RECIPES / f"{method}.yaml").read_text(encoding="utf-8"))
    for loss, options in recipe["losses"].items():
        if loss != "task":
            options["weight"] = _times(options["weight"], FACTORS[name])
    path = Path(arguments.output_dir) / "recipes" / f"{method}_{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return str(path)


def _times(weight: float | dict[str, float], factor: float) -> float | dict[str, float]:
    if isinstance(weight, dict):
        return {term: value * factor for term, value in weight.items()}
    return weight * factor


def best_factor(method: str, arguments: argparse.Namespace) -> str:
    """Name of the factor with the best validation score of the stage `weights`."""
    return best_trial(f"weights/{method}", arguments)["method"].removeprefix(f"{method}_")


def best_trial(stage: str, arguments: argparse.Namespace) -> dict:
    content = json.loads((Path(arguments.results) / stage / "results.json").read_text(encoding="utf-8"))
    return max(content["runs"], key=lambda run: run["mean_iou"])


def best_recipe(arguments: argparse.Namespace) -> str:
    """Path of the recipe with the best validation score of the whole stage `weights`."""
    method = max(METHODS, key=lambda name: best_trial(f"weights/{name}", arguments)["mean_iou"])
    return scaled(method, best_factor(method, arguments), arguments)


def split_training_images(count: int, arguments: argparse.Namespace) -> tuple[Path, Path]:
    """A CamVid folder of links with `count` training images, evenly spread over the list, and one with the others."""
    source = Path(arguments.data_dir).resolve()
    lines = (source / "train.txt").read_text(encoding="utf-8").split("\n")
    lines = [line for line in lines if line.strip()]
    kept = lines[:: EVERY[count]]
    if len(kept) != count:
        raise ValueError(f"{source}/train.txt lists {len(lines)} images, CamVid has 367. Give the whole folder.")
    labeled, rest = (Path(arguments.output_dir) / "data" / f"{count}_{name}" for name in ("labeled", "rest"))
    for folder in (labeled, rest):
        folder.mkdir(parents=True, exist_ok=True)
    for name in ("train", "trainannot", "val", "valannot", "test", "testannot", "val.txt", "test.txt"):
        link(labeled / name, source / name)
    (labeled / "train.txt").write_text("\n".join(kept) + "\n", encoding="utf-8")
    for line in sorted(set(lines) - set(kept)):
        name = Path(line.split()[0]).name
        link(rest / name, source / "train" / name)
    return labeled, rest


def link(path: Path, target: Path) -> None:
    if not path.is_symlink():
        path.symlink_to(target)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "benchmarks.camvid", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data_dir", required=True, help="folder of CamVid as distributed with SegNet's tutorial")
    add("--checkpoints", required=True, help="folder of the released ESPNet files")
    add("--output_dir", required=True, help="folder of the runs")
    add(
        "--results",
        default=str(RESULTS),
        help="folder that finished stages are copied to (default: the committed one)",
    )
    add("--stages", nargs="+", choices=STAGES, default=list(STAGES), help="what to run (default: all)")
    return parser


if __name__ == "__main__":
    main()
