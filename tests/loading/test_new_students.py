"""New students: the images they want, the order of their backbone's weights, and how their logits are upsampled."""

import pytest
import torch

from helpers import golden_models
from helpers.tiny import LABELS, TinyScenes
from hf_segkd.conversion import convert, converted_processor, recognize
from hf_segkd.evaluation.confusion import scores
from hf_segkd.evaluation.scoring import evaluate
from hf_segkd.evaluation.segmenter import Segmenter
from hf_segkd.loading.any_model import load_model
from hf_segkd.models import InputNormalization
from hf_segkd.training.config import DistillationConfig
from hf_segkd.training.trainer import DistillationTrainer

NETWORK = "cirkd-psp-resnet18-19"
BGR_BYTES = {
    "do_flip_channel_order": True,
    "do_rescale": False,
    "image_mean": [104.00698793, 116.66876762, 122.67891434],
    "image_std": [1, 1, 1],
}
RGB_BYTES = BGR_BYTES | {"do_flip_channel_order": False, "image_mean": BGR_BYTES["image_mean"][::-1]}
SEGFORMER = {
    **{"model_type": "segformer", "hidden_sizes": [8] * 4, "depths": [1] * 4, "num_attention_heads": [1] * 4},
    **{"decoder_hidden_size": 16, "classifier_dropout_prob": 0.0},
}


@pytest.fixture(scope="module")
def checkpoint():
    """A whole checkpoint of the originals, which read BGR, at a sixteenth of its widths."""
    shapes = dict(key[:2] for key in golden_models.read(NETWORK, golden_models.OWN)["state_dict"])
    small = {key: [x // 16 if x >= 64 and x % 16 == 0 else x for x in shape] for key, shape in shapes.items()}
    fill = golden_models.golden_rule.fill
    return {key: torch.from_numpy(fill(NETWORK, key, shape, 1.2)) for key, shape in small.items()}


def pspnet(whole):
    """Fields of a new student with the backbone of a converted checkpoint."""
    names = ("model_type", "stem", "stem_width", "hidden_sizes", "depths", "layer_type", "first_dilation", "ceil_mode")
    backbone = {name: getattr(whole.config.backbone_config, name) for name in names}
    return {"model_type": "pspnet", "hidden_size": 8, "backbone": backbone}


def backbone_features(model, processor, image):
    with torch.no_grad():
        return model.eval().backbone(InputNormalization.from_processor(processor)(image)).feature_maps


@pytest.mark.parametrize("processor", [BGR_BYTES, RGB_BYTES], ids=["bgr images", "rgb images"])
@pytest.mark.parametrize("order", ["bgr", "rgb"])
def test_a_backbone_file_of_either_order_gives_the_features_of_the_whole_checkpoint(
    checkpoint, order, processor, tmp_path
):
    """Weights for BGR under an RGB image cost points of mIoU, and nothing shows it."""
    whole = convert(checkpoint)
    file = {key.removeprefix("pretrained."): x for key, x in checkpoint.items() if key.startswith("pretrained.")}
    if order == "rgb":  # the same network as later downloads have it
        key = next(key for key in file if file[key].ndim == 4 and file[key].shape[1] == 3)
        file[key] = file[key].flip(1)
    torch.save(file, tmp_path / "resnet18-imagenet.pth")
    spec = {
        **pspnet(whole),
        **{"backbone_weights": str(tmp_path / "resnet18-imagenet.pth"), "backbone_weights_order": order},
        "processor": processor,
    }
    student, student_processor = load_model(spec, LABELS)
    image = torch.randint(256, (1, 3, 40, 56), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    expected = backbone_features(whole, converted_processor(recognize(checkpoint), whole.config), image)
    for ours, theirs in zip(backbone_features(student, student_processor, image), expected, strict=True):
        # Three products summed in another order: float32 rounding of values up to 1e2.
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3)


def test_weights_of_unknown_order_are_left_as_they_are(checkpoint, tmp_path):
    """The originals feed BGR to any file; a guess would change the start of a run in silence."""
    whole = convert(checkpoint)
    file = {key.removeprefix("pretrained."): x for key, x in checkpoint.items() if key.startswith("pretrained.")}
    torch.save(file, tmp_path / "weights.pth")
    spec = pspnet(whole) | {"processor": BGR_BYTES}
    student, processor = load_model(spec | {"backbone_weights": str(tmp_path / "weights.pth")}, LABELS)
    key = next(key for key in file if file[key].ndim == 4 and file[key].shape[1] == 3)
    assert processor.do_flip_channel_order
    assert torch.equal(student.backbone.embedder.layers[0].convolution.weight, file[key])


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"processor": {"mean": [0, 0, 0]}}, "processor has no field 'mean'. Its fields: do_flip_channel_order"),
        ({"processor": "bgr"}, "student.processor must be a mapping"),
        ({"processor": {"image_std": [0, 1, 1]}}, "std must be positive"),
        ({"align_corners": "yes"}, "align_corners must be true or false, got 'yes'"),
        ({"backbone_weights_order": "bgr"}, "are read, which are not given"),
        ({"backbone_weights": "x", "backbone_weights_order": "gbr"}, "must be rgb or bgr, got 'gbr'"),
    ],
    ids=str,
)
def test_what_a_new_student_cannot_be_is_refused(fields, message):
    """A misspelled field would train another start than the recipe says."""
    with pytest.raises(ValueError, match=message):
        load_model(SEGFORMER | fields, LABELS)


SCENES = TinyScenes(count=4, size=56)


def trained(align_corners, tmp_path):
    """A SegFormer as its folder has it after two steps, its processor, and its score in the trainer."""
    torch.manual_seed(0)
    model, processor = load_model(SEGFORMER | {"align_corners": align_corners}, LABELS)
    args = DistillationConfig(
        output_dir=str(tmp_path), use_cpu=True, max_steps=2, per_device_train_batch_size=2, report_to="none"
    )
    args.eval_strategy = args.save_strategy = "no"
    args.load_best_model_at_end = False
    trainer = DistillationTrainer(
        model, args=args, train_dataset=SCENES, eval_dataset=SCENES, processing_class=processor
    )
    trainer.train()
    expected = trainer.evaluate()["eval_mean_iou"]
    trainer.save_model(str(tmp_path / "student"))
    return *load_model(str(tmp_path / "student")), expected


@pytest.mark.parametrize("align_corners", [True, False])
def test_segformer_scores_the_same_everywhere_whichever_way_it_upsamples(align_corners, tmp_path):
    """transformers has no such field: trainer, folder and evaluation could each upsample in their own way."""
    student, saved, expected = trained(align_corners, tmp_path)
    assert student.config.align_corners is align_corners
    assert getattr(saved, "align_corners", False) is align_corners
    assert scores(evaluate(Segmenter(student, saved), SCENES).matrix)["mean_iou"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("align_corners", [True, False])
def test_segformers_file_scores_as_its_folder_whichever_way_it_upsamples(align_corners, tmp_path):
    """A file upsamples by itself, too."""
    pytest.importorskip("onnxscript", reason="needs the extra 'onnx'")
    from hf_segkd.deployment.onnx_export import export_onnx
    from hf_segkd.deployment.onnx_segmenter import OnnxSegmenter

    student, saved, expected = trained(align_corners, tmp_path)
    file = export_onnx(student, saved, tmp_path / "model.onnx")
    # A tie in thousands of pixels may fall the other way in another runtime.
    found = evaluate(OnnxSegmenter(str(file)), SCENES).scores()["mean_iou"]
    assert found == pytest.approx(expected, abs=1e-3)
