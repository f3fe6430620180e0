import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from helpers import golden_folder
from hf_segkd.evaluation.confusion import confusion_matrices, confusion_matrix, scores
from hf_segkd.evaluation.mean_iou import MeanIoU

# The example in the documentation of evaluate's mean_iou, with the values printed there.
PREDICTIONS = [[[1, 2], [3, 4], [5, 255]], [[2, 7], [9, 2], [3, 6]], [[2, 2, 3], [8, 2, 4], [3, 255, 2]]]
REFERENCES = [[[0, 3], [5, 4], [6, 255]], [[1, 7], [9, 2], [3, 6]], [[1, 2, 2], [8, 2, 1], [3, 255, 1]]]
DOCUMENTED = {
    "mean_iou": 0.47750000000000004,
    "mean_accuracy": 0.5916666666666666,
    "overall_accuracy": 0.5263157894736842,
    "per_category_iou": [0.0, 0.0, 0.375, 0.4, 0.5, 0.0, 0.5, 1.0, 1.0, 1.0],
    "per_category_accuracy": [0.0, 0.0, 0.75, 2 / 3, 1.0, 0.0, 0.5, 1.0, 1.0, 1.0],
}


def by_class(predictions: np.ndarray, references: np.ndarray, num_labels: int, ignore_index: int) -> dict:
    """The definitions, one class at a time, on flat arrays."""
    counted = references != ignore_index
    predictions, references = predictions[counted], references[counted]
    iou, accuracy = [], []
    for label in range(num_labels):
        intersection = np.sum((predictions == label) & (references == label))
        union = np.sum((predictions == label) | (references == label))
        area = np.sum(references == label)
        iou.append(intersection / union if union else np.nan)
        accuracy.append(intersection / area if area else np.nan)
    return {
        "mean_iou": np.nanmean(iou),
        "mean_accuracy": np.nanmean(accuracy),
        "overall_accuracy": np.mean(predictions == references),
        "per_category_iou": iou,
        "per_category_accuracy": accuracy,
    }


def random_maps(shape: tuple[int, ...], num_labels: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    predictions = torch.randint(num_labels - 1, shape, generator=generator)  # the last class is never predicted
    references = torch.randint(num_labels + 1, shape, generator=generator)
    references[references == num_labels] = 255
    references[references == 1] = 0  # class 1 is predicted but never there
    return predictions, references


def test_scores_of_a_case_done_by_hand():
    """Swapped rows and columns, or a union that counts the intersection twice, would give other fractions."""
    references, predictions = torch.tensor([[0, 0, 0, 1, 255]]), torch.tensor([[0, 0, 1, 1, 1]])
    matrix = confusion_matrix(predictions, references, 3)
    assert matrix.tolist() == [[2, 1, 0], [0, 1, 0], [0, 0, 0]]
    result = scores(matrix)
    assert result["per_category_iou"][:2].tolist() == [2 / 3, 1 / 2] and np.isnan(result["per_category_iou"][2])
    assert result["per_category_accuracy"][:2].tolist() == [2 / 3, 1] and np.isnan(result["per_category_accuracy"][2])
    assert result["per_category_dice"][:2].tolist() == [4 / 5, 2 / 3] and np.isnan(result["per_category_dice"][2])
    assert result["mean_iou"] == pytest.approx(7 / 12)
    assert result["mean_dice"] == pytest.approx(11 / 15)
    assert result["mean_iou_all"] == pytest.approx(7 / 18)
    assert result["mean_accuracy"] == pytest.approx(5 / 6)
    assert result["overall_accuracy"] == 3 / 4


def test_documented_example_of_evaluate_is_reproduced():
    """Readers compare with evaluate's mean_iou; unequal map sizes and 255 among the predictions are part of it."""
    maps = [[np.array(image) for image in images] for images in (PREDICTIONS, REFERENCES)]
    result = MeanIoU(10).compute(predictions=maps[0], references=maps[1])
    for key, expected in DOCUMENTED.items():
        np.testing.assert_allclose(result[key], expected, atol=1e-12)
    flat = [np.concatenate([image.ravel() for image in images]) for images in maps]
    for key, expected in by_class(*flat, 10, 255).items():
        np.testing.assert_allclose(result[key], expected, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_scores_agree_with_the_definitions_on_random_maps(dtype):
    """uint8 arithmetic would overflow and its comparisons wrap; absent classes must be left out, not count as 0."""
    predictions, references = random_maps((2, 9, 11), 5)
    result = scores(confusion_matrix(predictions.to(dtype), references.to(dtype), 5))
    for key, expected in by_class(predictions.numpy(), references.numpy(), 5, 255).items():
        np.testing.assert_allclose(result[key], expected, atol=1e-12)


def test_batched_matrices_are_those_of_each_image():
    """Distributed evaluation drops padded duplicates image by image: counts must not leak between images."""
    predictions, references = random_maps((3, 8, 8), 4)
    each = [
        confusion_matrix(prediction, reference, 4)
        for prediction, reference in zip(predictions, references, strict=True)
    ]
    matrices = confusion_matrices(predictions, references, 4)
    assert matrices.dtype == torch.int64
    assert torch.equal(matrices, torch.stack(each))


def test_streaming_equals_all_at_once_and_state_is_reset():
    """A second evaluation would otherwise include the first one's images."""
    predictions, references = random_maps((4, 8, 8), 4)
    metric = MeanIoU(4)
    metric.add_batch(predictions=predictions[:2], references=references[:2])
    metric.add(prediction=predictions[2], reference=references[2])
    metric.add_matrix(confusion_matrix(predictions[3], references[3], 4))
    assert torch.equal(metric.confusion_matrix, confusion_matrix(predictions, references, 4))
    streamed = metric.compute()
    assert metric.confusion_matrix.sum() == 0
    np.testing.assert_equal(streamed, metric.compute(predictions=predictions, references=references))


def test_a_metric_without_images_says_so():
    """All-NaN scores would look like a broken model."""
    with pytest.raises(ValueError, match="No image was added"):
        MeanIoU(3).compute()


def test_prediction_at_an_ignored_pixel_counts_nowhere():
    """Counting it in the union would punish models for regions that nobody labeled."""
    references = torch.tensor([[0, 255]])
    for wild in (0, 1, 7, 255):
        assert confusion_matrix(torch.tensor([[0, wild]]), references, 2).tolist() == [[1, 0], [0, 0]]
    inner = confusion_matrix(torch.tensor([[0, 1]]), torch.tensor([[0, 1]]), 2, ignore_index=1)
    assert inner.tolist() == [[1, 0], [0, 0]], "an ignore_index among the classes must be ignored as well"


def test_all_pixels_ignored_gives_nan_without_a_warning(recwarn):
    """One unlabeled image must not crash or flood the log."""
    result = scores(confusion_matrix(torch.zeros(1, 4).long(), torch.full((1, 4), 255), 3))
    assert np.isnan(result["mean_iou"]) and np.isnan(result["overall_accuracy"]) and result["mean_iou_all"] == 0
    assert not recwarn.list


@pytest.mark.parametrize("wrong", [-1, 3, 255])
def test_predictions_outside_the_classes_are_refused(wrong):
    """bincount would silently book them under another reference class."""
    with pytest.raises(ValueError, match=rf"predictions hold the class ids \[{wrong}\], allowed are 0 to 2"):
        confusion_matrix(torch.tensor([[0, wrong]]), torch.tensor([[0, 0]]), 3)


@pytest.mark.parametrize(("wrong", "ignore_index"), [(3, 255), (-1, 255), (255, -1)])
def test_references_outside_the_classes_are_refused(wrong, ignore_index):
    """A dataset with other classes would be scored as if it fitted; uint8 255 must not pass for an ignore_index -1."""
    dtype = torch.uint8 if wrong == 255 else torch.int64
    with pytest.raises(ValueError, match=rf"references hold the class ids \[{wrong}\]"):
        confusion_matrix(torch.zeros(1, 2, dtype=dtype), torch.tensor([[0, wrong]], dtype=dtype), 3, ignore_index)


def test_logits_and_unequal_shapes_are_refused():
    """Broadcasting would count every pair of pixels."""
    with pytest.raises(ValueError, match="argmax"):
        confusion_matrix(torch.rand(1, 4), torch.zeros(1, 4).long(), 3)
    with pytest.raises(ValueError, match="differ in shape"):
        confusion_matrix(torch.zeros(1, 4).long(), torch.zeros(4, 1).long(), 3)


def test_class_names_label_the_result_and_must_fit():
    """A name shifted by one class would be believed."""
    matrix = torch.tensor([[2, 1], [0, 1]])
    metric = MeanIoU(2, id2label={0: "road", 1: "car"})
    metric.add_matrix(matrix)
    result = metric.compute()
    assert (result["iou_road"], result["iou_car"]) == (2 / 3, 1 / 2)
    with pytest.raises(ValueError, match="id2label"):
        MeanIoU(3, id2label={0: "road", 1: "car"})


def golden_cases() -> list[dict]:
    return [case for case in golden_folder.loss_cases() if case["method"] == "metric"]


@pytest.mark.golden
@pytest.mark.parametrize("case", golden_cases(), ids=lambda case: case["name"])
def test_scores_equal_the_original_code(case):
    """mean_iou_all is compared with published tables, so it must be the number their code computes."""
    tensors = load_file(golden_folder.LOSSES / case["file"])
    num_labels, updates = case["hparams"]["classes"], case["hparams"]["updates"]
    metric = MeanIoU(num_labels, ignore_index=case["hparams"]["ignore_index"])
    for update in range(updates):
        logits, labels = tensors[f"in.update{update}.logits"], tensors[f"in.update{update}.labels"]
        metric.add_batch(predictions=logits.argmax(dim=1), references=labels)
    matrix = metric.confusion_matrix
    union = matrix.sum(0) + matrix.sum(1) - matrix.diagonal()
    assert torch.equal(matrix.diagonal().double(), tensors["out.inter"].double())
    assert torch.equal(union.double(), tensors["out.union"].double())
    result, expected = metric.compute(), case["expected"]
    # 1e-6: the original of the float32 cases divides in float32.
    assert result["mean_iou_all"] == pytest.approx(expected["mIoU_original"], abs=1e-6)
    assert result["mean_iou"] == pytest.approx(expected["mIoU_present_classes"], abs=1e-12)
    assert result["overall_accuracy"] == pytest.approx(expected["pixAcc_correct"], abs=1e-12)


def test_golden_metric_cases_exist():
    """An empty parametrization passes silently."""
    assert golden_cases()
