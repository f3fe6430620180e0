"""What is refused before any compute is spent."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Literal

from torch.utils.data import Dataset
from transformers import PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor

from dataset_builders.opened import OpenedDataset
from hf_segkd.data.integrity import WARNINGS, find_leaks, find_problems, problem_table
from hf_segkd.data.streaming import StreamedSet
from hf_segkd.evaluation.teacher import TeacherDescription
from hf_segkd.hub import fetch_checkpoint, open_repository
from hf_segkd.loading.class_map import class_names, normal, placeholders
from hf_segkd.losses import LOSSES, check_logits_only
from hf_segkd.training.argument_checks import check_processes, check_weights
from hf_segkd.training.checkpoints import PREFIX, complete, is_finished, last_checkpoint
from hf_segkd.training.config import DistillationConfig
from hf_segkd.training.dry_run import check_forwards, check_sizes, smallest_batch
from hf_segkd.training.finished_run import missing_of_run
from hf_segkd.training.options import ScriptArguments
from hf_segkd.training.run_lock import LOCK_FILE, run_lock
from hf_segkd.training.streamed import check_workers

logger = logging.getLogger(__name__)
SAMPLE = 1000  # images of a split whose files are decoded before training


def check_output_dir(output_dir: str | None, overwrite: bool = False, resume: bool = False) -> str | None:
    """Check that a run may write into `output_dir`, and find the checkpoint to resume from.

    Args:
        output_dir (`str`): Folder of the run; made when it does not exist.
        overwrite (`bool`, *optional*, defaults to `False`): Whether earlier files in it may be replaced.
        resume (`bool`, *optional*, defaults to `False`): Whether to go on from its newest complete checkpoint. An
            empty folder, a run that ended before its first checkpoint and one whose student is gone or damaged start
            from the beginning, so that a queue can run the same command again.

    Returns:
        `str | None`: Path of the checkpoint to resume from.

    Raises:
        ValueError: If no folder is named, it cannot be written, or it holds files and neither option is given.
    """
    if overwrite and resume:
        raise ValueError("--overwrite and --resume contradict each other. Give one of them.")
    folder = _writable(output_dir)
    found = sorted(path.name for path in folder.iterdir() if not path.name.startswith(LOCK_FILE))
    checkpoint = last_checkpoint(output_dir)
    if not found or overwrite:
        return None
    if resume and checkpoint:
        return checkpoint
    broken = [name for name in found if name.startswith(PREFIX)]
    missing = missing_of_run(folder)
    if resume and "recipe.yaml" in found and missing and not broken:
        return None
    if resume:
        state = "has no complete checkpoint" if missing else "holds a finished run"
        raise ValueError(
            f"Nothing to resume: output folder {output_dir!r} {state}. Use --overwrite or another folder."
        )
    way_out = " or --resume to go on from " + Path(checkpoint).name if checkpoint else ""
    raise ValueError(
        f"Output folder {output_dir!r} is not empty (it holds {', '.join(found[:5] + ['...'] * (len(found) > 5))}). "
        f"Use --overwrite to replace its run{way_out}, or give another folder."
    )


@contextmanager
def own_folder(config: DistillationConfig) -> Iterator[None]:
    """Hold the output folder for this run, see [`~hf_segkd.training.run_lock.run_lock`]; the main process does.

    Raises:
        ValueError: No folder is named, it cannot be written, another run holds it, or processes that were launched
            together have not found each other.
    """
    check_processes(config)
    with ExitStack() as held:
        with config.main_process_first():
            folder = _writable(config.output_dir)
            if config.should_save:
                held.enter_context(run_lock(folder))
        yield


def _writable(output_dir: str | None) -> Path:
    if not output_dir:
        raise ValueError("No output folder. Give --output_dir FOLDER (or output_dir: in a recipe).")
    folder = Path(output_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"Output folder {output_dir!r} cannot be written: {error.strerror}. Give another.") from None
    return folder


def find_checkpoint(config: DistillationConfig, overwrite: bool = False, resume: bool = False) -> str | None:
    """[`check_output_dir`]; a run that resumes in an empty folder and pushes to the Hub goes on from what is there.

    Raises:
        ValueError: As [`check_output_dir`], or the Hub refuses.
    """
    checkpoint = check_output_dir(config.output_dir, overwrite, resume)
    if checkpoint or not (resume and config.push_to_hub):
        return checkpoint
    name = config.hub_model_id or Path(config.output_dir).absolute().name
    repo_id = open_repository(name, config.hub_private_repo, config.hub_revision, config.hub_token)
    checkpoint = fetch_checkpoint(repo_id, config.output_dir, config.hub_revision, config.hub_token)
    for best in Path(config.output_dir).glob(f"{PREFIX}*"):  # put together from the repository's root
        if not is_finished(best):
            complete(best)
    return checkpoint


def check_teacher(teacher: TeacherDescription | None, losses: dict[str, dict]) -> bool:
    """Return whether any loss needs a teacher.

    Raises:
        ValueError: If they do and none is given, or they need more than it has.
    """
    needing = [name for name, options in losses.items() if LOSSES[options.get("type", name)].needs_teacher]
    if needing and not teacher:
        raise ValueError(
            f"No teacher, but these losses need one: {', '.join(needing)}. "
            "Give --teacher FOLDER_OR_HUB_ID, or use only the task loss."
        )
    if needing and not teacher.is_plain:
        check_logits_only(losses, "Several teachers, and views of the image, give logits and nothing else")
    return bool(needing)


def load_teacher(
    teacher: TeacherDescription | None,
    losses: dict[str, dict],
    labels: tuple[str, ...],
    features: str | None = None,
    trust_remote_code: bool = False,
) -> tuple[PreTrainedModel | None, BaseImageProcessor | None]:
    """Load the teacher if the losses need one, with its processor, and check that it knows the dataset's classes.

    Args:
        teacher ([`~hf_segkd.evaluation.teacher.TeacherDescription`], *optional*): One model, or several as one.
        losses (`dict[str, dict]`): Name -> options, as in a recipe.
        labels (`tuple[str, ...]`): The dataset's class names, in which order the teacher's logits come out.
        features (`str`, *optional*): As in [`~hf_segkd.models.expose_features`].
        trust_remote_code (`bool`, *optional*, defaults to `False`): Whether to run the Python code that it brings.

    Returns:
        `tuple`: The teacher and its image processor; two `None` when no loss needs one.

    Raises:
        ValueError: If it is missing, cannot be loaded, lacks that module or has other classes.
    """
    if not check_teacher(teacher, losses):
        return None, None
    return teacher.load(labels, features, trust_remote_code)


def check_unlabeled(script: ScriptArguments, config: DistillationConfig) -> None:
    """Refuse unlabeled images without a teacher, and a ratio of them without images.

    Raises:
        ValueError: Says what is missing.
    """
    if script.unlabeled and not any(LOSSES[x.get("type", name)].needs_teacher for name, x in config.losses.items()):
        raise ValueError("--unlabeled: without a loss that reads a teacher these images teach nothing. Add kd.")
    if config.unlabeled_ratio is not None and not script.unlabeled:
        raise ValueError("unlabeled_ratio says how many unlabeled images a batch has. Give them: --unlabeled FOLDER.")


def check_classes(model: PreTrainedModel, labels: tuple[str, ...], who: str) -> None:
    """Check that a model's classes are the dataset's, in the dataset's order.

    A model whose config holds only placeholder names (`LABEL_0`) is compared by number alone.

    Raises:
        ValueError: If the numbers or the names disagree; both lists are shown.
    """
    names = class_names(model.config)
    if len(names) == len(labels) and (placeholders(names) or [*map(normal, names)] == [*map(normal, labels)]):
        return
    raise ValueError(
        f"The {who}'s classes disagree with the dataset's.\n"
        f"  {who} ({len(names)}): {', '.join(names)}\n  dataset ({len(labels)}): {', '.join(labels)}\n"
        f"Use a {who} trained on the same classes in the same order."
    )


def check_labeled(dataset: Dataset, split: str, ignore_index: int) -> None:
    """Refuse a split without a labeled pixel. Reads images until it finds one, usually in the first.

    Raises:
        ValueError: Names the split.
    """
    for index in range(len(dataset)):
        if bool((dataset[index]["labels"] != ignore_index).any()):
            return
    raise ValueError(
        f"Not one pixel of the {len(dataset)} {split} images is labeled. Check the masks and the label map; test "
        "splits of benchmarks are often published without labels."
    )


def check_run(trainer) -> None:
    """Refuse what would fail in training, or would train nothing.

    Args:
        trainer (`DistillationTrainer`): Ready to train.

    Raises:
        ValueError: Arguments that cannot work, too few images for one step, splits without a labeled pixel, crops that
            the student cannot be trained on, or validation images that it cannot predict.
    """
    args, distiller, evaluated = trainer.args, trainer.model, trainer.eval_dataset
    check_weights(distiller.weights)
    streamed = isinstance(trainer.train_dataset, StreamedSet)
    batch = args.per_device_train_batch_size
    if streamed:
        check_workers(trainer.train_dataset, args.dataloader_num_workers)
    else:
        batch = smallest_batch(len(trainer.train_dataset), batch, args.world_size, args.dataloader_drop_last)
    if not trainer.has_teacher and not streamed:  # with a teacher, images without labels teach too
        check_labeled(trainer.train_dataset, "training", trainer.ignore_index)
    image = None
    if evaluated is not None:
        check_labeled(evaluated, "validation", trainer.ignore_index)
        check_sizes(trainer.student.config, evaluated, args.per_device_eval_batch_size)
        image = evaluated[0]["pixel_values"]
    check_forwards(distiller, batch, trainer.train_size, image)


def check_data(
    dataset: OpenedDataset, how: Literal["sample", "full", "none"] = "sample", skip_unreadable: bool = False
) -> list[int]:
    """Check the files of the training and evaluation split, and that no image is in two splits.

    Unreadable files, masks that do not fit their image, that are color pictures or JPEG, or that hold values outside
    the classes, and images in two splits are refused. Masks without any label, and equal file names of different
    images, are logged as warnings; so are images in two splits of a published dataset, which nobody can mend.

    Args:
        dataset ([`~dataset_builders.opened.OpenedDataset`]): From [`~dataset_builders.open_dataset`].
        how (`str`, *optional*, defaults to `"sample"`): Up to 1000 evenly spread items of each split, all, or none.
        skip_unreadable (`bool`, *optional*, defaults to `False`): Return the unreadable items of the training split,
            all of which are then read, instead of refusing them.

    Returns:
        `list[int]`: Positions in the training split to leave out; empty unless `skip_unreadable`.

    Raises:
        ValueError: If anything is refused; one table lists all of it by file, up to 10 lines of a kind.
    """
    if how == "none" and skip_unreadable:
        raise ValueError("--skip_unreadable needs the check that finds them. Leave out --check_data none.")
    if how == "none":
        return []
    spec, splits = dataset.spec, dataset.raw_splits()
    limit = SAMPLE if how == "sample" else None
    limits = {spec.train_split: None if skip_unreadable else limit, spec.eval_split: limit}
    if dataset.streamed:
        limits.pop(spec.train_split)
    # Drawn datasets have no files; a split that is missing is refused by the one who loads it.
    if not limits.keys() <= splits.keys():
        return []
    problems = find_problems(splits, dataset.label_map, spec.num_labels, limits, dataset.bands)
    problems += find_leaks(splits)
    train = [problem for problem in problems if problem.split == spec.train_split]
    skipped = {problem.index for problem in train if problem.kind == "unreadable"} if skip_unreadable else set()
    if skipped and len(skipped) == len(splits[spec.train_split]):
        raise ValueError(f"All {len(skipped)} images of the {spec.train_split} split are unreadable.")
    problems = [x for x in problems if x.split != spec.train_split or x.index not in skipped]
    mild = {*WARNINGS, "leak"} if dataset.published else {*WARNINGS}
    if warned := [problem for problem in problems if problem.kind in mild]:
        logger.warning("Check these files of the data:\n%s", problem_table(warned))
    if refused := [problem for problem in problems if problem.kind not in mild]:
        raise ValueError(f"The data cannot be trained on:\n{problem_table(refused)}")
    return sorted(skipped)
