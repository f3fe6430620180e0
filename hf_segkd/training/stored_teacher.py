"""A teacher that is run once over all training images, and not at all while the student trains."""

from __future__ import annotations

import logging

import torch
from transformers import PreTrainedModel

from dataset_builders.opened import OpenedDataset
from hf_segkd.data.teacher_maps import TeacherMaps, image_keys, own_size
from hf_segkd.data.unlabeled import JoinedRows, UnlabeledRows
from hf_segkd.evaluation.teacher import TeacherDescription
from hf_segkd.evaluation.teacher_cache import TeacherCache, describe
from hf_segkd.loading.bands import check_reads
from hf_segkd.loading.frozen import zero_subnormals
from hf_segkd.loading.native import output_shapes
from hf_segkd.losses import check_logits_only
from hf_segkd.training.checks import check_teacher
from hf_segkd.training.config import DistillationConfig
from hf_segkd.training.inputs import TrainingData
from hf_segkd.training.options import ScriptArguments

logger = logging.getLogger(__name__)


def check_cache(script: ScriptArguments, config: DistillationConfig) -> None:
    """Refuse what a cache cannot do, before anything is read.

    Raises:
        ValueError: Losses that ask for more than logits, `cache_only` without a folder or without a loss that
            needs a teacher.
    """
    if script.cache_only and not script.teacher_cache:
        raise ValueError("--cache_only fills a cache. Give its folder: --teacher_cache FOLDER.")
    if not script.teacher_cache:
        return
    if script.teacher_features is not None:
        raise ValueError("teacher_features: a teacher cache holds logits and nothing else. Leave one of them out.")
    check_logits_only(config.losses, "A teacher cache holds logits and nothing else")
    is_taught = check_teacher(TeacherDescription.from_arguments(script), config.losses)
    if script.cache_only and not is_taught:
        raise ValueError("--cache_only: no loss needs a teacher. Add one such as kd.")


def stored_teacher(
    script: ScriptArguments, config: DistillationConfig, dataset: OpenedDataset, data: TrainingData
) -> TeacherMaps:
    """Open the cache `teacher_cache` and compute what is missing; the teacher is loaded only for that.

    Raises:
        ValueError: If the folder is of another teacher, the disk is too small, or the teacher cannot be loaded.
    """
    spec, bands = dataset.spec, dataset.bands
    teacher = TeacherDescription.from_arguments(script)
    skip = {spec.train_split: data.skipped}
    keys, sizes = image_keys(dataset.split(spec.train_split, skip))
    images = dataset.evaluation_set(spec.train_split, skip=skip)
    if data.unlabeled is not None:
        more_keys, more_sizes = image_keys(data.unlabeled)
        keys, sizes = keys + more_keys, sizes + more_sizes
        images.dataset = JoinedRows(images.dataset, UnlabeledRows(data.unlabeled, spec.ignore_index))
    with config.main_process_first():
        cache = TeacherCache(script.teacher_cache, describe(teacher, spec.labels, config.teacher_dtype, bands))
    if missing := len(cache.missing(keys)):
        if config.should_save:
            logger.info("Teacher cache: %d of %d images are not in it yet; loading the teacher.", missing, len(keys))
        model, processor = teacher.load(spec.labels, trust_remote_code=script.trust_remote_code)
        check_reads(processor, bands, "teacher")
        model = zero_subnormals(model.requires_grad_(False)).to(config.device, getattr(torch, config.teacher_dtype))
        normalized = not teacher.is_plain and teacher.average == "probabilities"
        cache.fill(model, processor, images, keys, sizes, normalized, bands)
    return cache.maps(keys)


def attach(maps: TeacherMaps, data: TrainingData, student: PreTrainedModel) -> None:
    """Let training crops bring their part of the maps, no finer than the student's logits, where losses compare."""
    crop_size = data.train.transform.crop_size
    wanted = output_shapes(student, crop_size)["logits"][-2:]
    own = own_size(maps[0], crop_size)
    maps.size = (min(own[0], wanted[0]), min(own[1], wanted[1]))
    data.train.teacher = maps
