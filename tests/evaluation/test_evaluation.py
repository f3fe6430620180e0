"""Scores of a model on a dataset: protocols, boundaries, several processes, differences between two models."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from helpers.paths import ROOT
from helpers.tiny import LABELS, TinyScenes
from hf_segkd.evaluation.boundary import boundary_counts, boundary_iou
from hf_segkd.evaluation.comparison import paired_bootstrap
from hf_segkd.evaluation.confusion import confusion_matrix, scores
from hf_segkd.evaluation.scoring import Evaluation, evaluate
from hf_segkd.evaluation.segmenter import Segmenter
from hf_segkd.loading.class_map import map_classes
from hf_segkd.loading.pretrained import processor_of


def random_maps(num_labels, shape=(3, 40, 56), ignore_index=255):
    """Predictions and references with a class that is absent from both, and ignored pixels."""
    generator = torch.Generator().manual_seed(0)
    predictions = torch.randint(num_labels - 1, shape, generator=generator)
    references = torch.where(torch.rand(shape, generator=generator) < 0.6, predictions, predictions.flip(0))
    references[torch.rand(shape, generator=generator) < 0.1] = ignore_index
    return predictions, references


def test_boundary_bands_of_a_case_done_by_hand():
    """Image of 8x8: the band is 1 pixel wide, the border counts as contour, and so does the change at column 4.

    Reference: columns 0-3 class 0, columns 4-7 class 1. Prediction: the change is at column 5.
    Band of class 0: the reference's 8x4 region without its 6x2 interior = 20 pixels; predicted 8x5 without 6x3 = 22.
    """
    references = torch.zeros(8, 8, dtype=torch.int64)
    references[:, 4:] = 1
    predictions = torch.zeros(8, 8, dtype=torch.int64)
    predictions[:, 5:] = 1
    counts = boundary_counts(predictions, references, 3)
    assert counts[1].tolist() == [20, 20, 0] and counts[2].tolist() == [22, 18, 0]
    # Class 0: both bands share column 0, rows 0 and 7 of columns 1-3, and nothing of columns 3 and 4 inside.
    assert counts[0].tolist() == [8 + 2 * 3, 8 + 2 * 2, 0]
    assert boundary_iou(counts)[:2].tolist() == pytest.approx([14 / 28, 12 / 26])
    assert boundary_iou(counts)[2].isnan()


@pytest.mark.parametrize("size", [(60, 70), (7, 9)])
def test_boundary_bands_are_regions_minus_their_erosion(size):
    """The paper's definition, one class and one pixel at a time; distances in both axes, image border included."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.randint(3, (1, 1, 5, 6), generator=generator)
    references = torch.nn.functional.interpolate(coarse.float(), size=size)[0, 0].long()
    predictions = references.roll(2, dims=1)
    references[:3, :4] = 255
    counts = boundary_counts(predictions, references, 3)
    distance = max(1, round(0.02 * float(np.hypot(*size))))
    maps = [torch.where(references == 255, 3, x).numpy() for x in (references, predictions)]
    for label in range(3):
        bands = []
        for labels in maps:
            padded = np.pad(labels == label, distance)
            inner = np.ones(size, dtype=bool)
            for dy in range(2 * distance + 1):
                for dx in range(2 * distance + 1):
                    inner &= padded[dy : dy + size[0], dx : dx + size[1]]
            bands.append((labels == label) & ~inner)
        assert counts[:, label].tolist() == [(bands[0] & bands[1]).sum(), bands[0].sum(), bands[1].sum()]


def test_frequency_weighted_iou_of_a_case_done_by_hand():
    """Three pixels of class 0 (IoU 2/3), one of class 1 (IoU 1/2)."""
    matrix = torch.tensor([[2, 1, 0], [0, 1, 0], [0, 0, 0]])
    assert scores(matrix)["frequency_weighted_iou"] == pytest.approx(3 / 4 * 2 / 3 + 1 / 4 * 1 / 2)


def test_scores_equal_torchmetrics():
    """An independent library, on maps with ignored pixels and an absent class."""
    metrics = pytest.importorskip("torchmetrics")
    predictions, references = random_maps(7)
    jaccard = metrics.JaccardIndex(task="multiclass", num_classes=7, ignore_index=255, average=None)
    expected = jaccard(predictions, references).numpy()
    found = scores(confusion_matrix(predictions, references, 7))
    np.testing.assert_allclose(np.nan_to_num(found["per_category_iou"]), expected, atol=1e-6)
    f1 = metrics.F1Score(task="multiclass", num_classes=7, ignore_index=255, average=None)
    np.testing.assert_allclose(np.nan_to_num(found["per_category_dice"]), f1(predictions, references), atol=1e-6)
    accuracy = metrics.Accuracy(task="multiclass", num_classes=7, ignore_index=255, average="micro")
    assert found["overall_accuracy"] == pytest.approx(float(accuracy(predictions, references)), abs=1e-6)


def test_every_score_comes_from_the_images_it_names(tiny_teacher):
    """Per-image counts must add up to the dataset's, or best and worst images are those of another model."""
    dataset = TinyScenes(5)
    evaluation = evaluate(Segmenter(tiny_teacher, processor_of(tiny_teacher)), dataset)
    intersection = evaluation.matrix.diagonal()
    union = evaluation.matrix.sum(0) + evaluation.matrix.sum(1) - intersection
    assert torch.equal(evaluation.per_image.sum(0), torch.stack([intersection, union]))
    assert evaluation.matrix.sum() == 5 * 32 * 32
    single = evaluate(Segmenter(tiny_teacher, processor_of(tiny_teacher)), torch.utils.data.Subset(dataset, [3]))
    assert torch.equal(single.per_image[0], evaluation.per_image[3])
    assert evaluation.image_iou()[3] == pytest.approx(single.scores()["mean_iou"])


def test_a_model_that_knows_more_classes_is_scored_on_those_of_the_dataset(tiny_teacher):
    """Any model of the Hub can be compared, if it knows the dataset's classes among others."""
    names = list(LABELS.values())
    mapped = map_classes(tiny_teacher, [names[3], names[0]])
    scenes = [{**scene, "labels": scene["labels"] % 2} for scene in TinyScenes(2)]
    evaluation = evaluate(Segmenter(mapped, processor_of(tiny_teacher)), scenes, num_labels=2)
    assert evaluation.matrix.shape == (2, 2) and evaluation.matrix.sum() == 2 * 32 * 32


def test_half_precision_and_compiled_models_are_evaluated(tiny_teacher):
    """bf16 must not be cast back silently, nor crash on a float32 image."""
    processor, dataset = processor_of(tiny_teacher), TinyScenes(2)
    plain = evaluate(Segmenter(tiny_teacher, processor), dataset).matrix
    half = evaluate(Segmenter(tiny_teacher.to(torch.bfloat16), processor), dataset).matrix
    assert plain.sum() == half.sum() and not torch.equal(plain, half)


TWO_PROCESSES = """
import sys, torch
sys.path.insert(0, sys.argv[2])
from helpers.tiny import LABELS, TINY, TinyScenes
from accelerate import PartialState
from hf_segkd.evaluation.scoring import evaluate
from hf_segkd.evaluation.segmenter import Segmenter
from hf_segkd.loading.any_model import load_model
from hf_segkd.loading.pretrained import processor_of
state = PartialState(cpu=True)
torch.set_num_threads(1)
torch.manual_seed(0)
model = load_model(TINY, id2label=LABELS)[0]
result = evaluate(Segmenter(model, processor_of(model)), TinyScenes(7))
torch.save(vars(result), f"{sys.argv[1]}/{state.num_processes}_{state.process_index}.pt")
state.wait_for_everyone()
if state.num_processes > 1:
    torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_count_seven_images_once_each(tmp_path):
    """A padded sampler would count the first image twice, as all four original repositories do."""
    (tmp_path / "run.py").write_text(TWO_PROCESSES)
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
    arguments = [str(tmp_path / "run.py"), str(tmp_path), str(ROOT / "tests")]
    subprocess.run([sys.executable, *arguments], check=True, env=environment)
    launch = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "0", "--standalone"]
    subprocess.run([sys.executable, *launch, *arguments], check=True, env=environment, capture_output=True)
    one, *both = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("1_0", "2_0", "2_1"))
    assert one["matrix"].sum() == 7 * 32 * 32
    for result in both:
        assert all(torch.equal(one[key], result[key]) for key in one)


def test_identical_models_do_not_differ():
    """The interval of a model against itself is a point at zero."""
    counts = torch.randint(1, 50, (9, 1, 4), generator=torch.Generator().manual_seed(0))
    counts = torch.cat([counts, counts + 10], dim=1)
    difference = paired_bootstrap(counts, counts, samples=200)
    assert difference.mean_iou == (0, 0, 0) and np.all(difference.per_class_iou == 0)


def test_bootstrap_interval_covers_the_truth_as_often_as_it_says():
    """80 data sets of 40 images with a known difference: about 90 % of the 90 % intervals must cover it."""
    generator = torch.Generator().manual_seed(0)
    covered = 0
    for _ in range(80):
        easy = torch.rand(40, 1, generator=generator) * 0.3
        shares = [0.6 + gain - easy + 0.1 * torch.randn(40, 1, generator=generator) for gain in (0.02, 0.0)]
        union = torch.full((40, 1), 1000)
        first, second = (torch.stack([(1000 * share).long(), union], dim=1) for share in shares)
        _, low, high = paired_bootstrap(first, second, samples=500, level=0.9).mean_iou
        covered += low <= 0.02 <= high
    assert 64 <= covered <= 79


def test_absent_classes_have_no_difference():
    """A class without a pixel in either model is unknown, not equal."""
    counts = torch.tensor([[[5, 0], [10, 0]], [[6, 0], [10, 0]]])
    difference = paired_bootstrap(counts, counts - torch.tensor([[[1, 0], [0, 0]]]), samples=100)
    assert np.isnan(difference.per_class_iou[1]).all()
    assert difference.mean_iou[0] == pytest.approx(0.1)


def test_models_are_compared_on_the_same_images():
    """A pairing of different images would widen or narrow the interval for no reason."""
    with pytest.raises(ValueError, match="on the same images, at least two"):
        paired_bootstrap(torch.ones(3, 2, 4), torch.ones(4, 2, 4))


def test_matrix_in_json_takes_one_line_for_each_class(tmp_path):
    """150 classes would otherwise make metrics.json 22 500 lines long, and unreadable."""
    from hf_segkd.reports.files import write_json

    content = {"name": "a", "matrix": [[1, 2, 3], [4, 5, 6]], "protocol": "scales 0.5, 1", "none": None}
    write_json(content, tmp_path / "metrics.json")
    text = (tmp_path / "metrics.json").read_text()
    assert json.loads(text) == content and "[1, 2, 3]" in text.replace("[ ", "[").replace(" ]", "]")


def test_an_evaluation_without_labels_has_no_score():
    """All pixels ignored: NaN, not a crash or a zero."""
    empty = Evaluation(torch.zeros(2, 2, dtype=torch.int64), torch.zeros(3, 2), torch.zeros(1, 2, 2))
    assert np.isnan(empty.scores()["boundary_iou"]) and empty.image_iou().isnan().all()
