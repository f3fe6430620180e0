"""Write docs/camvid.md from the committed results of `python -m benchmarks.camvid`.

    python -m benchmarks.camvid.report

Stages that have not been run are listed as such.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.camvid.__main__ import EVERY, FACTORS, HERE, METHODS, RESULTS, SEEDS
from benchmarks.camvid.robustness import DISTURBANCES
from hf_segkd.evaluation.comparison import paired_gain
from hf_segkd.reports.method_benchmark import COUNTS, MethodResult, read_results
from hf_segkd.reports.tables import markdown_table

PAGE = HERE.parents[1] / "docs" / "camvid.md"
HEAD = """# CamVid: what distillation is worth

Written by `python -m benchmarks.camvid.report` from the files in `benchmarks/results/camvid`; the runs are those of

```bash
python -m benchmarks.camvid --data_dir CamVid --checkpoints checkpoints --output_dir runs/camvid
```

Student: ESPNet-C, 347,145 parameters, on the 367 training images, from the Cityscapes weights that ESPNet's authors
released, or from scratch where that is said. Teacher: the released ESPNet of 65.13 mIoU on the test split, which has
seen the labels of the training and validation images and 2000 more images. Every run takes the last step of the
schedule in `benchmarks/camvid/schedule.yaml`; scores are of whole images at 360x480, single scale. The test split (233
images) is scored once for each run; everything that is chosen is chosen on the validation split (101 images) with
another seed. Scores on the test split are some 10 points lower than on the validation split.

All runs took one core, with torch 2.13.0+cpu. The first table of methods, that of the starts, that of other conditions
and the best students were computed in float32 on an AMD EPYC, everything else in bfloat16 on an Intel Xeon; the
schedule was changed to float32 because that AMD processor computes wrong gradients in bfloat16.
"""

REPEATED = "methods_bfloat16"
NOT_RUN = ("ifvd", "cirkd", "cirkdv2", "cskd", "bpkd", "mgd", "af_dcd", "MSE of normalized features")
TEACHERS = {
    "alone": "none",
    "live": "the 65.13 file, run on each crop",
    "cached": "the same, stored predictions of whole images",
    "views": "the same with flip and scales 0.5, 1, 2, stored",
    "four": "the four released files trained with 2000 more images, averaged, stored",
}

# Results -> how the student starts, and which it is.
STARTS = {
    "starts/scratch": ("from scratch", "ESPNet-C"),
    "starts/imagenet": ("from ImageNet", "PSPNet-MobileNetV2"),
    "methods": ("from Cityscapes", "ESPNet-C"),
}

BEST = {
    "espnetc_alone": "ESPNet-C from Cityscapes, alone",
    "espnetc_alone_bfloat16": "the same in bfloat16 on an Intel Xeon",
    "espnetc_taught": "ESPNet-C from Cityscapes, four teachers",
    "espnetc_alone_frozen": "ESPNet-C alone, trained on with frozen batch norms",
    "espnetc_taught_frozen": "ESPNet-C with four teachers, trained on with frozen batch norms",
    "espnetc_taught_long": "ESPNet-C from Cityscapes, four teachers, twice the steps",
    "espnetv2_alone": "ESPNetv2-2.0 from Cityscapes, alone",
    "espnetv2_taught": "ESPNetv2-2.0 from Cityscapes, four teachers",
}

LEVERS = (
    ("four teachers, DIST at three times its weight", "espnetc_taught", "espnetc_alone"),
    ("400 more steps with frozen batch norms, alone", "espnetc_alone_frozen", "espnetc_alone"),
    ("400 more steps with frozen batch norms, with the teachers", "espnetc_taught_frozen", "espnetc_taught"),
    ("twice the steps, with the teachers", "espnetc_taught_long", "espnetc_taught"),
)


def main(argv: list[str] | None = None) -> None:
    arguments = parser().parse_args(argv)
    results = Path(arguments.results)
    sections = (
        labels,
        started,
        weights,
        methods,
        other_starts,
        robustness,
        best,
        baseline,
        unweighted,
        scratch,
        teachers,
    )
    parts = [HEAD, *(section(results) for section in sections)]
    Path(arguments.page).write_text("\n".join(parts), encoding="utf-8")


def baseline(results: Path) -> str:
    note = (
        "These trials were started by `hf-segkd benchmark` with the same recipes, before the command above existed; "
        "their commit was not recorded.\n"
    )
    return trials("## The baseline from scratch\n", results / "baseline", note)


def started(results: Path) -> str:
    return trials("## The baseline, tuned first\n", results / "started", "From the Cityscapes weights.\n")


def trials(title: str, folder: Path, more: str) -> str:
    """What each trial of a baseline's settings found on the validation split."""
    if not is_there(folder):
        return not_run(title)
    curves = json.loads((folder / "curves.json").read_text(encoding="utf-8"))
    found = {result.method: result for result in read_results(folder)}
    steps = sorted({step for step, _ in next(iter(curves.values()))})
    rows = []
    for name, result in found.items():
        trial = yaml.safe_load((HERE / "trials" / f"{name}.yaml").read_text(encoding="utf-8"))
        curve = dict(curves[f"{name}/0"])
        weighted = trial["losses"]["task"].get("class_weights", "none")
        jitter = "yes" if "jitter" in trial else "no"
        settings = (f"{trial['learning_rate']:g}", f"{trial['weight_decay']:g}", jitter, weighted)
        rows.append([*settings, *(percent(curve[step]) for step in steps[:-1]), percent(result.mean_iou[0])])
    head = ["learning rate", "weight decay", "color jitter", "class weights", *(f"step {step}" for step in steps)]
    note = (
        "\nmIoU in percent on the validation split, seed 0; a row is a trial, its columns the run's curve. One seed: "
        f"differences of a point or two may be chance. {more}"
    )
    return "\n".join([title, markdown_table(head, rows), note])


def weights(results: Path) -> str:
    title = "## The weight of each method\n"
    done = [method for method in METHODS if is_there(results / "weights" / method)]
    if not done:
        return not_run(title)
    rows = []
    for method in done:
        scores = {result.method: result.mean_iou[0] for result in read_results(results / "weights" / method)}
        rows.append([method, *(percent(scores[f"{method}_{factor}"]) for factor in FACTORS)])
    note = "\nmIoU in percent on the validation split, seed 0, 500 steps. The best weight is used below.\n"
    head = ["method", "a third of the recipe's weight", "the recipe's weight", "three times the recipe's weight"]
    return "\n".join([title, markdown_table(head, rows), note])


def methods(results: Path) -> str:
    title = "## Methods\n"
    if not is_there(results / "methods"):
        return not_run(title)
    rows = [method_row(result) for result in read_results(results / "methods")]
    note = (
        "\nTest split, seeds 1, 2 and 3: mean and standard deviation; the interval resamples seeds and images. "
        "Seconds of a step: the clock's, median of the seeds, on one of two cores, of which the other was busy too: "
        "differences of a tenth may be chance.\n"
    )
    if is_there(results / "longer"):
        longer = read_results(results / "longer")[0]
        steps = f"baseline, {longer.facts['steps']} steps"
        more = gain(results / "longer", results / "methods", "baseline")
        scored = [mean([*longer.mean_iou.values()]), interval(more), verdict(more)]
        rows.insert(1, [steps, "", *scored, f"{longer.seconds_per_step:.2f}"])
        note += "The row of more steps takes half as much time again: more than any teacher here costs.\n"
    else:
        note += "Not run yet: the baseline for as long as a run with a teacher takes.\n"
    note += f"Not run: {', '.join(NOT_RUN)}.\n"
    head = ["method", "weights", "mIoU %", "gain [95 % interval]", "in words", "s / step"]
    if is_there(results / REPEATED):
        note += "\n" + repeated(results)
    return "\n".join([title, markdown_table(head, rows), note])


def repeated(results: Path) -> str:
    """The same table from the same commands in bfloat16 on another processor."""
    rows = [method_row(result)[:-1] for result in read_results(results / REPEATED)]
    note = (
        "\nThe same runs in bfloat16 on an Intel Xeon, which were made first: other rounding gives other students. "
        "A method that helps in both tables is the surer choice.\n"
    )
    return "\n".join([markdown_table(["method", "weights", "mIoU %", "gain [95 % interval]", "in words"], rows), note])


def method_row(result: MethodResult) -> list[str]:
    name, factor = name_and_factor(result.method)
    scored = [mean([*result.mean_iou.values()]), interval(result.gain), verdict(result.gain)]
    return [name, factor, *scored, f"{result.seconds_per_step:.2f}"]


def name_and_factor(recipe: str) -> tuple[str, str]:
    """A method and the factor of its weight: ("dist", "3 x") for "dist_triple", ("baseline", "") for "baseline"."""
    name, _, factor = recipe.rpartition("_")
    return (name, f"{FACTORS[factor]:.2g} x") if factor in FACTORS else (recipe, "")


def labels(results: Path) -> str:
    note = (
        "The student starts from its Cityscapes weights and takes 1000 steps, with the best settings of the next "
        "section. "
        "mIoU in percent on the test split, seeds 1, 2 and 3, and the gain over the same seeds alone with its 95 % "
        "interval. `kd_cwd` is pixel-wise KD and channel-wise distillation of the logits, with the recipe's weights "
        "as they are; the teacher is read from a cache of whole images. In the last column half of each batch is "
        "labeled. The smaller sets are every second, fourth or eighth training image. In 1000 steps, more labels do "
        "not help the student alone.\n"
    )
    return few_labels("## How many labels\n", results / "labels", "kd_cwd", note)


def unweighted(results: Path) -> str:
    note = (
        "As the first table, but without class weights in the task loss: a weaker student alone, and a larger gain. "
        "Class weights alone, in the first table, add more than the teacher does here.\n"
    )
    return few_labels("## Few labels, without class weights\n", results / "unweighted", "kd_cwd", note)


def scratch(results: Path) -> str:
    note = (
        "As the first table, but from scratch, with all steps and pixel-wise KD only, for the smallest number of "
        "labels.\n"
    )
    return few_labels("## Few labels, from scratch\n", results / "scratch", "kd", note)


def few_labels(title: str, results: Path, method: str, note: str) -> str:
    """A row for each number of labels that has been run."""
    rows = []
    for count in sorted(EVERY):
        alone, *others = (results / f"{count}_{kind}" for kind in ("alone", method, "unlabeled"))
        if is_there(alone):
            gained = [f"{score(folder)} {interval(gain(folder, alone))}".strip() or "not run" for folder in others]
            if count == max(EVERY):
                gained[-1] = "there are none"
            rows.append([str(count), score(alone), *gained])
    if not rows:
        return not_run(title)
    head = ["labeled images", "alone", f"{method} on the same images", "on the other training images too"]
    return "\n".join([title, markdown_table(head, rows), "", note])


def teachers(results: Path) -> str:
    title = "## Which teacher, and whether to store its predictions\n"
    folder = results / "teachers"
    rows = [
        [text, score(folder / name), interval(gain(folder / name, folder / "alone")) if name != "alone" else ""]
        for name, text in TEACHERS.items()
        if is_there(folder / name)
    ]
    if not rows:
        return not_run(title)
    note = (
        "\nmIoU in percent on the test split, seeds 1, 2 and 3, half of the steps, all with `kd` at the recipe's "
        "weight; the gain is that over the same seeds alone.\n"
    )
    return "\n".join([title, markdown_table(["teacher", "mIoU %", "gain [95 % interval]"], rows), note])


def other_starts(results: Path) -> str:
    """What the method with the best weight gains for students with other weights to begin with."""
    title = "## How the student starts\n"
    done = [name for name in STARTS if name != "methods" and is_there(results / name)]
    if not done:
        return not_run(title)
    (method,) = (result.method for result in read_results(results / done[0]) if result.method != "baseline")
    rows = []
    for name in [*done, "methods"]:
        found = {result.method: result for result in read_results(results / name)}
        alone, taught = found["baseline"], found[method]
        scores = [mean([*result.mean_iou.values()]) for result in (alone, taught)]
        seeds = ", ".join(map(str, taught.mean_iou))
        rows.append([*STARTS[name], str(alone.facts["steps"]), seeds, *scores, interval(taught.gain)])
    taught = " ".join(name_and_factor(method))
    head = ["the student starts", "student", "steps", "seeds", "mIoU % alone", f"mIoU % with {taught}"]
    note = (
        "\nTest split, the 367 training images, class weights, the teacher of the table above. The "
        "weight of the method was chosen for the student from Cityscapes and not tuned again.\n"
    )
    if is_there(results / "starts" / "imagenet_trials"):
        note += f"Learning rate of the student from ImageNet, the better of two: {rates(results)}.\n"
    missing = [" ".join(STARTS[name]) for name in STARTS if not is_there(results / name)]
    for name in done:
        run = read_results(results / name)[0].mean_iou
        missing += [f"{' '.join(STARTS[name])}, seed {seed}" for seed in SEEDS if int(seed) not in run]
    if missing:
        note += f"\nNot run yet: {'; '.join(missing)}.\n"
    return "\n".join([title, markdown_table([*head, "gain [95 % interval]"], rows), note])


def rates(results: Path) -> str:
    """Each learning rate that was tried from ImageNet, with its score on the validation split."""
    scores = []
    for result in read_results(results / "starts" / "imagenet_trials"):
        trial = yaml.safe_load((HERE / "trials" / f"{result.method}.yaml").read_text(encoding="utf-8"))
        scores.append(f"{trial['learning_rate']:g} scored {percent(result.mean_iou[0])}")
    return ", ".join(scores) + " on the validation split (seed 0, alone)"


def best(results: Path) -> str:
    title = "## Our best students\n"
    rows = []
    for name, text in BEST.items():
        folder = results / "best" / name
        if is_there(folder):
            result = read_results(folder)[0]
            against = results / "best" / name.replace("taught", "alone")
            gained = interval(gain(folder, against)) if against != folder else ""
            rows.append([text, str(result.facts["steps"]), score(folder), gained])
    if not rows:
        return not_run(title)
    note = (
        "\nOn training and validation images together, as the released files were trained, with class weights; the "
        "four teachers are the released files that saw 2000 more images, averaged and stored; the method is that with "
        "the best validation score of the weights above. Rows with frozen batch norms train a row above on. Seed 1, "
        "test split, each scored once; the gain is that over the same schedule alone, and its interval resamples "
        "images only. The authors give 60.35 for ESPNet-C and 61.38 for ESPNet, and 64.13 and 65.13 with 2000 more "
        "images and Structured KD.\n"
    )
    missing = [text for name, text in BEST.items() if not is_there(results / "best" / name)]
    if missing:
        note += f"\nNot run yet: {'; '.join(missing)}.\n"
    table = markdown_table(["student", "steps", "mIoU %", "gain [95 % interval]"], rows)
    return "\n".join([title, table, note, levers(results)])


def levers(results: Path) -> str:
    """What was tried to raise the best ESPNet-C, and its effect."""
    weighed = "not run"
    if is_there(results / "started"):
        trials = {result.method: result.mean_iou[0] for result in read_results(results / "started")}
        weighed = f"{100 * (trials['rare_classes'] - trials['center']):+.2f}"
    rows = [["class weights (validation split, 1000 steps, alone, seed 0)", weighed]]
    for text, name, against in LEVERS:
        gained = gain(results / "best" / name, results / "best" / against)
        rows.append([text, interval(gained) or "not run"])
    return markdown_table(["tried for ESPNet-C", "effect on mIoU"], rows) + "\n"


def robustness(results: Path) -> str:
    title = "## Other conditions\n"
    done = [name for name in DISTURBANCES if is_there(results / "robustness" / name)]
    if not done:
        return not_run(title)
    columns = [read_results(results / "methods"), *(read_results(results / "robustness" / name) for name in done)]
    found = [{result.method: result for result in column} for column in columns]
    rows = [
        [name_and_factor(method)[0], *(score_and_gain(column.get(method)) for column in found)] for method in found[0]
    ]
    note = (
        "\nThe students in float32 on disturbed test images (`python -m benchmarks.camvid.robustness`): mean "
        "mIoU in percent of seeds 1, 2 and 3, and the gain over the same seeds alone with its 95 % interval. The "
        "pictures are made from fixed seeds, the same for all students. Fog: a blend with 45 to 75 percent of light "
        "gray. Darkness: a quarter of the light, with noise of standard deviation 4 of 255. Noise: standard deviation "
        "20. Blur: Gaussian, radius 2 pixels. JPEG: quality 15. No student was trained on such pictures.\n"
    )
    return "\n".join([title, markdown_table(["method", "clean", *done], rows), note])


def score_and_gain(result: MethodResult | None) -> str:
    if result is None:
        return ""
    return f"{percent(statistics.mean(result.mean_iou.values()))} {interval(result.gain)}".strip()


def score(folder: Path) -> str:
    """Mean and standard deviation of a folder with a single method; empty if it has not been run."""
    return mean([*read_results(folder)[0].mean_iou.values()]) if is_there(folder) else ""


def gain(folder: Path, alone: Path, method: str = "") -> tuple[float, float, float] | None:
    """What a folder's method gains over that of another, with its interval; `None` if one has not been run.

    `method` names the one to compare with where `alone` has several.
    """
    if not (is_there(folder) and is_there(alone)):
        return None
    ours, theirs = counts_of_seeds(folder), counts_of_seeds(alone, method)
    seeds = sorted(ours.keys() & theirs.keys())
    return paired_gain(*(torch.stack([counts[seed] for seed in seeds]) for counts in (ours, theirs)))


def counts_of_seeds(folder: Path, method: str = "") -> dict[str, Tensor]:
    """Seed -> intersections and unions of each image, of one method, or of a folder's only one."""
    found = load_file(folder / COUNTS)
    return {name.rpartition("/")[2]: counts for name, counts in found.items() if name.startswith(method)}


def is_there(folder: Path) -> bool:
    return (folder / "results.json").is_file()


def not_run(title: str) -> str:
    return f"{title}\nNot run yet.\n"


def percent(value: float) -> str:
    return f"{100 * value:.2f}"


def mean(values: list[float]) -> str:
    text = percent(statistics.mean(values))
    return f"{text} ± {percent(statistics.stdev(values))}" if len(values) > 1 else text


def interval(gain: tuple[float, float, float] | None) -> str:
    return "" if gain is None else f"{100 * gain[0]:+.2f} [{100 * gain[1]:+.2f}, {100 * gain[2]:+.2f}]"


def verdict(gain: tuple[float, float, float] | None) -> str:
    """What the interval allows to say."""
    if gain is None:
        return ""
    if gain[1] > 0:
        return "helps"
    return "hurts" if gain[2] < 0 else "cannot be told"


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "benchmarks.camvid.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", default=str(RESULTS), help="folder of the results (default: the committed one)")
    parser.add_argument("--page", default=str(PAGE), help="page to write (default: docs/camvid.md)")
    return parser


if __name__ == "__main__":
    main()
