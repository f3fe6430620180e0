"""Features of single pixels and their map."""

import pytest
import torch

from dataset_builders import DATASETS
from helpers.commands import script
from helpers.tiny import LABELS, TINY, TinyScenes
from hf_segkd.evaluation.embeddings import pixel_embeddings, tsne
from hf_segkd.evaluation.segmenter import Segmenter
from hf_segkd.loading.any_model import load_model
from hf_segkd.loading.pretrained import processor_of
from hf_segkd.models import SegmentationOutput
from hf_segkd.reports.figures import plot_embeddings


class PlaceAsFeature(torch.nn.Module):
    """Features that tell where they are: row, column and 1."""

    def __init__(self, config, stride):
        super().__init__()
        self.config, self.stride = config, stride

    def forward(self, pixel_values):
        height, width = (side // self.stride for side in pixel_values.shape[-2:])
        rows = ((torch.arange(height) + 0.5) / height)[:, None].expand(height, width)
        columns = ((torch.arange(width) + 0.5) / width)[None].expand(height, width)
        return SegmentationOutput(features=torch.stack([rows, columns, torch.ones_like(rows)])[None])


def test_features_are_read_at_the_pixels_place_whatever_the_stride(tiny_teacher):
    """A slip of half a stride would mix the classes along every contour."""
    results = []
    for stride in (1, 4):
        model = PlaceAsFeature(tiny_teacher.config, stride)
        results.append(pixel_embeddings(Segmenter(model, processor_of(tiny_teacher)), TinyScenes(3), per_class=3))
    (fine, fine_classes), (coarse, coarse_classes) = results
    assert torch.equal(fine_classes, coarse_classes)
    fine, coarse = (vectors[:, :2] / vectors[:, 2:] for vectors in (fine, coarse))
    inside = ((fine > 2 / 32) & (fine < 30 / 32)).all(dim=1)  # beyond the outermost centers the coarse map is constant
    assert inside.sum() > 20 and torch.allclose(fine[inside], coarse[inside], atol=1e-5)
    assert torch.allclose(fine, coarse, atol=2 / 32)


def test_each_class_gives_at_most_the_wanted_pixels_of_an_image(tiny_teacher):
    """Frequent classes would otherwise hide the rare ones."""
    segmenter = Segmenter(tiny_teacher, processor_of(tiny_teacher))
    vectors, classes = pixel_embeddings(segmenter, TinyScenes(2), per_class=4)
    assert classes.bincount().max() <= 8 and len(classes) == len(vectors)
    assert torch.allclose(vectors.norm(dim=1), torch.ones(len(vectors)), atol=1e-5)
    again, _ = pixel_embeddings(segmenter, TinyScenes(2), per_class=4)
    assert torch.equal(vectors, again)


def test_unlabeled_images_have_no_embeddings(tiny_teacher):
    """An empty map with a legend looks like a result."""
    scenes = [{**scene, "labels": torch.full_like(scene["labels"], 255)} for scene in TinyScenes(2)]
    with pytest.raises(ValueError, match="None of these images has a labeled pixel"):
        pixel_embeddings(Segmenter(tiny_teacher, processor_of(tiny_teacher)), scenes)


def test_map_is_drawn_for_several_models(tmp_path):
    """The whole way from vectors to a picture."""
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    generator = torch.Generator().manual_seed(0)
    classes = torch.arange(60) % 4
    places = tsne(torch.randn(60, 8, generator=generator) + 5 * torch.eye(8)[classes])
    assert places.shape == (60, 2)
    plot_embeddings(
        {"teacher": (places, classes), "student": (places, classes)}, DATASETS["synthetic"], tmp_path / "a.png"
    )
    assert (tmp_path / "a.png").stat().st_size > 10_000


def test_script_draws_teacher_and_student(tmp_path, capsys):
    """As a user runs it."""
    pytest.importorskip("sklearn")
    folders = []
    for name in ("teacher", "student"):
        model = load_model(TINY, id2label=LABELS)[0]
        model.save_pretrained(tmp_path / name)
        processor_of(model).save_pretrained(tmp_path / name)
        folders.append(str(tmp_path / name))
    size = '{"num_train": 1, "num_validation": 3, "num_test": 1, "height": 32, "width": 48}'
    argv = [
        *folders,
        "--dataset",
        "synthetic",
        "--dataset_config",
        size,
        "--output",
        str(tmp_path / "figure" / "a.png"),
    ]
    script("features").main([*argv, "--num_images", "2", "--device", "cpu"])
    assert (tmp_path / "figure" / "a.png").is_file() and "pixels of 2 images" in capsys.readouterr().out
