"""Adversarial distillation: golden values, gradients and state, who learns from which term, and what D keeps."""

import math

import pytest
import torch

from helpers import golden_adversarial as golden
from helpers.golden_losses import assert_reproduced, cases, load
from helpers.tiny import LABELS, TINY, TinyScenes
from helpers.trainers import trainer_for
from hf_segkd.loading.any_model import load_model
from hf_segkd.losses import LossSetup
from hf_segkd.losses.adversarial import AdversarialLoss, hinge, wasserstein
from hf_segkd.losses.discriminator import SelfAttention, SpectralNormConv
from hf_segkd.models import SegmentationOutput
from hf_segkd.training.distiller import Distiller

K = 3
RECIPE = {"task": {}, "kd": {}, "adversarial": {"weight": {"student": 0.001, "discriminator": 0.1}}}


def setup(height=64, width=64, classes=K, seed=0):
    shape = {"logits": (1, K, height, width)}
    return LossSetup(shape, num_labels=K, teacher={"logits": (1, classes, height, width)}, seed=seed)


def build(seed=0, **options):
    torch.manual_seed(0)
    return AdversarialLoss(setup(seed=seed), **options)


def maps(batch=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, batch, K, 64, 64, generator=generator)
    return SegmentationOutput(logits=student.requires_grad_()), SegmentationOutput(logits=3 * teacher)


def gradients(loss, student, total):
    """Gradients of `total` on the student's logits and on D's parameters, `None` where it does not reach."""
    student.logits.grad = None
    loss.zero_grad()
    total.backward()
    return student.logits.grad, [parameter.grad for parameter in loss.discriminator.parameters()]


@pytest.mark.golden
@pytest.mark.parametrize("case", cases(golden.RUNS), ids=lambda case: case["name"])
def test_discriminator_losses_and_training_are_those_of_the_original(case):
    """A stale singular vector or a swapped call trains on, a little off, and no loss curve would show it."""
    tensors = load(case)
    assert_reproduced(case, tensors, golden.RUNS[case["method"]](tensors, case["hparams"]))


@pytest.mark.parametrize("objective", ["hinge", "wgan-gp"])
def test_each_term_reaches_its_own_side_only(objective):
    """A discriminator that learns from the student's term would help the student to deceive it."""
    loss, (student, teacher) = build(objective=objective), maps()
    terms = loss(student, teacher, None)
    passed, judged = gradients(loss, student, terms["student"])
    assert passed.abs().max() > 0 and all(gradient is None for gradient in judged)
    passed, judged = gradients(loss, student, terms["discriminator"])
    assert passed is None and all(gradient is not None and gradient.isfinite().all() for gradient in judged)


def test_one_backward_of_both_terms_gives_each_side_its_own_gradient():
    """The Distiller sums all terms; neither side's gradient may depend on the other's weight."""
    found = []
    for weights in ((1.0, 0.5), (1.0, 0.0), (0.0, 0.5)):
        loss, (student, teacher) = build(objective="wgan-gp"), maps()
        terms = loss(student, teacher, None)
        found.append(gradients(loss, student, weights[0] * terms["student"] + weights[1] * terms["discriminator"]))
    assert torch.equal(found[0][0], found[1][0])
    assert all(torch.equal(a, b) for a, b in zip(found[0][1], found[2][1], strict=True))


def test_objectives_of_scores_by_hand():
    """The hinge is satisfied beyond ±1; the Wasserstein distance never is."""
    student, teacher = torch.tensor([-2.0, 0.5]), torch.tensor([3.0, 0.0])
    assert hinge(student, teacher).item() == pytest.approx(1.5 / 2 + 1 / 2)
    assert wasserstein(student, teacher).item() == pytest.approx(-0.75 - 1.5)


def test_penalty_of_a_linear_discriminator_is_the_squared_distance_of_its_norm_from_one():
    """The norm is over all entries of an image, not per channel or over the batch."""
    loss, (student, teacher) = build(), maps(batch=3)
    slope = torch.full((K, 64, 64), 2 / math.sqrt(K * 64 * 64), requires_grad=True)
    loss.discriminator.forward = lambda x: (slope * x).flatten(1).sum(dim=1)
    value = loss.penalty(student.logits.detach(), teacher.logits)
    value.backward()
    assert value.item() == pytest.approx(1.0, rel=1e-4) and slope.grad.abs().min() > 0


def test_penalty_is_taken_at_mixtures_of_each_image():
    """Share 1 is the teacher, 0 the student; one share for the whole batch would visit fewer points."""
    loss, (student, teacher), seen = build(), maps(), []
    loss.draw_shares = lambda batch: torch.tensor([1.0, 0.0])
    loss.discriminator.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
    loss.penalty(student.logits.detach(), teacher.logits)
    assert torch.equal(seen[0][0], teacher.logits[0]) and torch.equal(seen[0][1], student.logits[1])


def test_shares_resume_from_the_state_dict_and_depend_on_the_seed_alone():
    """A resumed run that draws other mixtures is another run."""
    first = build(seed=3)
    first.draw_shares(2)
    torch.rand(5)
    second = build(seed=4)
    assert not torch.equal(build(seed=3).draw_shares(2), build(seed=4).draw_shares(2))
    second.load_state_dict(first.state_dict(), strict=True)
    second.draws.seed = 3
    a, b = first.draw_shares(4), second.draw_shares(4)
    assert torch.equal(a, b) and len(set(a.tolist())) == 4


def test_order_is_whose_logits_the_discriminator_sees_first():
    """Its BatchNorm and singular vectors remember the last call: the published orders end in different states."""
    for order, expected in (("student_first", ["s", "s", "t"]), ("teacher_first", ["s", "t", "s"])):
        loss, (student, teacher), seen = build(order=order), maps(), []

        def look(module, inputs, student=student, seen=seen):
            seen.append("s" if torch.equal(inputs[0], student.logits) else "t")

        loss.discriminator.register_forward_pre_hook(look)
        loss(student, teacher, None)
        assert seen == expected


def test_spectral_norm_approaches_the_largest_singular_value_in_eval_mode_too():
    """torch's own spectral norm stands still in eval mode, the originals' does not."""
    conv = SpectralNormConv(2, 8).double().eval()
    for _ in range(300):
        conv(torch.zeros(1, 2, 4, 4, dtype=torch.float64))
    estimate = conv.u @ conv.weight.flatten(1) @ conv.v
    assert estimate.item() == pytest.approx(torch.linalg.matrix_norm(conv.weight.flatten(1), 2).item(), rel=1e-6)


def test_gradient_of_a_call_is_not_changed_by_the_next_call():
    """The original's vectors are overwritten while autograd still needs them: a wrong gradient on today's torch."""
    x = torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    found = []
    for more in (0, 3):
        torch.manual_seed(0)
        conv = SpectralNormConv(2, 8)
        value = conv(x).square().sum()
        for _ in range(more):
            conv(x)
        value.backward()
        found.append(conv.weight.grad)
    assert torch.equal(*found)


def test_self_attention_is_the_written_out_formula_and_can_be_differentiated_twice(monkeypatch):
    """The gradient penalty is a gradient of a gradient; fused attention kernels refuse it."""
    monkeypatch.setattr("hf_segkd.losses.functional.attention.CPU_QUERIES", 2)
    torch.manual_seed(0)
    layer, x = SelfAttention(8).double(), torch.randn(1, 8, 1, 3, dtype=torch.float64, requires_grad=True)
    torch.nn.init.constant_(layer.gamma, 0.7)
    query, key, value = (f(x).flatten(2) for f in (layer.query, layer.key, layer.value))
    dense = value @ (query.transpose(1, 2) @ key).softmax(dim=2).transpose(1, 2)
    torch.testing.assert_close(layer(x), x + 0.7 * dense.view_as(x), rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(layer, (x,)) and torch.autograd.gradgradcheck(layer, (x,))


def test_self_attention_keeps_no_matrix_for_backward():
    """On logits of 512 x 1024, as ESPNet's decoder has them, each matrix of one image takes 256 MiB."""
    layer, sizes = SelfAttention(8), [0]
    with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
        layer(torch.randn(1, 8, 20, 30, requires_grad=True))
    assert max(sizes) < 600 * 600 // 10


def test_teacher_logits_of_another_size_are_resized_to_the_students():
    """The penalty mixes both maps; a teacher of another stride must not end the run."""
    loss, (student, teacher) = build(objective="wgan-gp"), maps()
    smaller = SegmentationOutput(logits=teacher.logits[..., :50, :40])
    assert all(value.isfinite() for value in loss(student, smaller, None).values())


def test_optimizer_holds_the_discriminator_with_the_published_settings():
    """Adam's default betas would be another game; D's parameters in no optimizer would be none."""
    loss = build()
    group = loss.optimizer().param_groups[0]
    assert isinstance(loss.optimizer(), torch.optim.Adam) and (group["lr"], group["betas"]) == (4e-4, (0.9, 0.99))
    assert {id(x) for x in group["params"]} == {id(x) for x in loss.parameters()}
    optimizer = build(optimizer="sgd", learning_rate=0.1, weight_decay=5e-4).optimizer()
    group = optimizer.param_groups[0]
    assert isinstance(optimizer, torch.optim.SGD)
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.1, 0.9, 5e-4)


def test_logits_below_64_are_refused_with_the_crop_that_would_do():
    """CamVid's crops have 45 x 60 positions at 1/8: the original fails in the last convolution."""
    with pytest.raises(
        ValueError, match=r"got 45×60. Make crop_size 1.43 times as high and 1.07 times as wide \(512×"
    ):
        AdversarialLoss(setup(45, 60))
    with pytest.raises(ValueError, match=r"got 64×63. Make crop_size 1.02 times as wide \("):
        AdversarialLoss(setup(64, 63))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"objective": "wgan"}, "objective must be one of 'hinge', 'wgan-gp', got 'wgan'"),
        ({"order": "cirkd"}, "order must be one of 'student_first', 'teacher_first', got 'cirkd'"),
        ({"optimizer": "adamw"}, "optimizer must be one of 'adam', 'sgd', got 'adamw'"),
        ({"preprocessing": "relu"}, "preprocessing must be one of 'batch_norm', 'tanh', 'image', got 'relu'"),
        ({"learning_rate": 0}, "learning_rate must be positive, got 0"),
        ({"weight_decay": -1}, "weight_decay must not be negative, got -1"),
        ({"gradient_penalty": float("nan")}, "gradient_penalty must not be negative, got nan"),
    ],
)
def test_wrong_options_are_refused(options, message):
    """A typo in a recipe must not train another game."""
    with pytest.raises(ValueError, match=message):
        build(**options)


def test_models_of_different_classes_are_refused():
    """One discriminator cannot judge both."""
    with pytest.raises(ValueError, match="same classes"):
        AdversarialLoss(setup(classes=K + 1))


@pytest.mark.slow
def test_twenty_steps_train_both_sides_with_finite_terms(tmp_path, tiny_teacher):
    """The whole way through the Trainer: chained optimizers, weights per term, logging."""
    torch.manual_seed(0)
    student = load_model({**TINY, "use_decoder": True}, id2label=LABELS)[0]
    options = {"max_steps": 20, "eval_steps": 20, "save_steps": 20, "load_best_model_at_end": False}
    trainer = trainer_for(tmp_path, student, tiny_teacher, train=TinyScenes(size=64), losses=RECIPE, **options)
    before = {key: x.clone() for key, x in trainer.model.named_parameters()}
    trainer.train()
    still = [key for key, x in trainer.model.named_parameters() if torch.equal(x, before[key])]
    # A softmax ignores what is added to all keys, and the hinge what is added to both scores.
    moot = ("attention1.key.bias", "attention2.key.bias", "score.bias")
    assert not [key for key in still if not key.endswith(moot)]
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    terms = [entry[f"loss_adversarial_{side}"] for entry in logged for side in ("student", "discriminator")]
    assert len(terms) == 40 and all(math.isfinite(term) for term in terms)


def conditioned():
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn(2, K, 64, 64, generator=generator) for _ in range(2)]
    images = torch.randn(2, 3, 128, 128, generator=generator)
    student, teacher = (SegmentationOutput(logits=x) for x in maps)
    return build(condition_on_image=True, objective="wgan-gp"), student, teacher, images


def test_conditioned_discriminator_judges_the_same_logits_by_their_image():
    """In the paper D sees the image too: logits that fit another image must not pass."""
    loss, student, teacher, images = conditioned()
    state = {key: x.clone() for key, x in loss.state_dict().items()}
    first = loss(student, teacher, None, images=images)
    loss.load_state_dict(state)
    second = loss(student, teacher, None, images=-images)
    assert loss.discriminator.conv1.weight.shape[1] == K + 3
    assert not torch.equal(first["student"], second["student"])
    with pytest.raises(ValueError, match="condition_on_image needs the images"):
        loss(student, teacher, None)


def test_distiller_hands_the_images_to_the_losses_that_take_them():
    """Without them a conditioned discriminator could only stop the run."""
    loss, student, teacher, images = conditioned()
    given = []
    loss.register_forward_pre_hook(lambda module, args, kwargs: given.append(kwargs["images"]), with_kwargs=True)

    class Student(torch.nn.Module):
        def forward(self, pixel_values, output_hidden_states):
            return student

    Distiller(Student(), {"adversarial": loss})(images, torch.zeros(2, 128, 128).long(), teacher)
    assert torch.equal(given[0], images)
