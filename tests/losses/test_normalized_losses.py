"""PKD, CanKD and GKD (Generalizable, CVPR 2026): golden values, gradients and state, and what they promise."""

import pytest
import torch

from helpers import golden_normalized as golden
from helpers.golden_losses import assert_reproduced
from helpers.loss_cases import build, pair
from hf_segkd.losses import LossSetup
from hf_segkd.losses.pkd import PKDLoss
from hf_segkd.models import SegmentationOutput

# Without the skip, z is small enough for its instance norm to amplify the rounding of sums, which differs between
# processors: by vector width and threads the error is up to 50 times the recorded one. Float64 keeps its own limit.
ILL_CONDITIONED = {"cankd/no_skip/float32": 10}


@pytest.mark.golden
@pytest.mark.parametrize("case", golden.cases(), ids=lambda case: case["name"])
def test_loss_has_the_value_gradients_and_state_of_the_original(case):
    """A missing half, a biased deviation or pooling before the convolution changes what a weight means."""
    tensors = golden.load(case)
    module, outputs = golden.METHODS[case["method"]](tensors, case["hparams"])
    objective = outputs["loss"] if "loss" in outputs else (outputs["y"] * tensors["in.cotangent"]).sum()
    objective.backward()
    own, state = dict(module.named_parameters()), module.state_dict()
    found = {f"out.{name}": x.detach() for name, x in outputs.items()}
    for key in tensors:
        if key.startswith("grad."):
            parameter = own.get(golden.own_name(key.removeprefix("grad.")), tensors[key.removeprefix("grad.")])
            found[key] = parameter.grad.reshape(tensors[key].shape)
        if key.startswith("after."):
            found[key] = state[golden.own_name(key)]
    noise = case["float32_relative_noise_vs_float64"] if case["dtype"] == "float32" else {}
    factor = ILL_CONDITIONED.get(case["name"], 1)
    case = case | {"float32_relative_noise_vs_float64": {key: factor * x for key, x in noise.items()}}
    assert_reproduced(case, tensors, found)
    # In float32 what cancels leaves its rounding.
    limit = 1e-9 if case["dtype"] == "float64" else 1e-4
    for key in case["hparams"].get("zero_gradient", []):
        parameter = own.get(golden.own_name(key))
        assert parameter is None or parameter.grad is None or parameter.grad.abs().max() < limit, key


def test_pkd_of_an_image_does_not_depend_on_the_others():
    """Statistics of the batch would tie the weight's meaning to the images per device."""
    student, teacher = pair("pkd", batch=2)
    loss = build("pkd")
    single = [loss(one(student, i), one(teacher, i), None) for i in range(2)]
    torch.testing.assert_close(loss(student, teacher, None), sum(single) / 2)
    coupled = build("pkd", statistics="batch")
    single = [coupled(one(student, i), one(teacher, i), None) for i in range(2)]
    assert abs(coupled(student, teacher, None) - sum(single) / 2) > 1e-4


def one(output, index):
    return SegmentationOutput(features=output.features[index : index + 1])


def test_pkd_refuses_statistics_of_one_value():
    """The deviation of one value is NaN, and would be the loss of the whole run."""
    shapes = {"features": torch.Size((1, 3, 1, 1))}
    maps = SegmentationOutput(features=torch.ones(1, 3, 1, 1))
    with pytest.raises(ValueError, match="are those of one value"):
        PKDLoss(LossSetup(shapes, 2, shapes))(maps, maps, None)


def test_cankd_starts_as_pkd():
    """The branch's norm starts at scale 0: otherwise an untrained attention would be distilled first."""
    student, teacher = pair("cankd")
    cankd, pkd = build("cankd", teacher_channels=4), build("pkd", teacher_channels=4)
    teacher = SegmentationOutput(features=teacher.features[:, :4])
    torch.testing.assert_close(cankd(student, teacher, None), pkd(student, teacher, None))


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("pkd", {"statistics": "channel"}, "statistics must be one of"),
        ("cankd", {"affinity": "cosine"}, "affinity must be one of"),
        ("cankd", {"inter_channels": 0}, "inter_channels must be positive"),
        ("gkd", {"num_heads": 4}, "num_heads must divide the teacher's 6 channels, got 4"),
    ],
)
def test_wrong_options_are_refused(name, options, message):
    """Before any step."""
    with pytest.raises(ValueError, match=message):
        build(name, **options)
