"""Several optimizers behind the interface of one, alone and through the Trainer."""

import copy

import pytest
import torch
from transformers import TrainerCallback, get_polynomial_decay_schedule_with_warmup

from helpers.tiny import LABELS, TINY, TinyScenes
from helpers.trainers import equal, trainer_for, weights
from hf_segkd.loading.any_model import load_model
from hf_segkd.losses import LOSSES, DistillationLoss, LossSetup
from hf_segkd.training.optim import ChainedOptimizer, chain, clip_own_gradients

ADVERSARIAL = {"task": {}, "adversarial": {"objective": "wgan-gp", "weight": {"student": 0.001, "discriminator": 0.1}}}
ONE_RUN = {"load_best_model_at_end": False, "eval_strategy": "no"}


def pair(lr=0.1):
    """Two parameters at 1 with an optimizer each, chained."""
    a, b = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    return a, b, ChainedOptimizer([torch.optim.SGD([a], lr=lr, momentum=0.9), torch.optim.Adam([b], lr=0.01)])


def step(a, b, optimizer, slope=3.0):
    (a.sum() + slope * b.sum()).backward()
    optimizer.step()
    optimizer.zero_grad()


def adversarial_trainer(folder, teacher, losses=ADVERSARIAL, **options):
    torch.manual_seed(0)
    student = load_model({**TINY, "use_decoder": True}, id2label=LABELS)[0]
    return trainer_for(folder, student, teacher, train=TinyScenes(size=64), losses=losses, **options)


def with_options(**options):
    return {**ADVERSARIAL, "adversarial": {**ADVERSARIAL["adversarial"], **options}}


def discriminator_optimizer(trainer):
    chained = trainer.optimizer.optimizer
    assert isinstance(chained, ChainedOptimizer)
    return chained.optimizers[1]


def test_each_optimizer_steps_its_own_parameters_and_all_gradients_are_cleared():
    """SGD moves by lr times gradient, Adam by lr whatever the gradient: a mixed-up rule shows at once."""
    a, b, optimizer = pair()
    step(a, b, optimizer)
    torch.testing.assert_close(a.detach(), torch.full((2,), 0.9))
    torch.testing.assert_close(b.detach(), torch.full((2,), 0.99))
    assert a.grad is None and b.grad is None and set(optimizer.state) == {a, b}


def test_saved_and_loaded_state_continues_with_the_same_bits():
    """Adam's moments and SGD's momentum must both survive, each in its own optimizer."""
    first, second = pair(), pair()
    step(*first)
    with torch.no_grad():
        for source, target in zip(first[:2], second[:2], strict=True):
            target.copy_(source)
    second[2].load_state_dict(copy.deepcopy(first[2].state_dict()))
    # Another gradient than before: at a constant one, Adam without its moments makes the same step.
    step(*first, slope=1.0)
    step(*second, slope=1.0)
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])


def test_schedule_scales_every_learning_rate_by_the_factor_of_the_first():
    """The polynomial schedule divides by `defaults["lr"]`: with another optimizer's it would be another curve."""
    a, b, optimizer = pair()
    schedule = get_polynomial_decay_schedule_with_warmup(optimizer, 0, 4, lr_end=0.02, power=1.0)
    for factor in (0.8, 0.6, 0.4, 0.2):
        step(a, b, optimizer)
        schedule.step()
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.1 * factor, 0.01 * factor])


def test_schedule_still_reaches_the_groups_after_loading():
    """Loading replaces the group dicts; groups copied at construction would be scheduled in vain."""
    a, b, optimizer = pair()
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.param_groups[1]["lr"] = 0.0
    step(a, b, optimizer)
    assert torch.equal(b, torch.ones(2)) and not torch.equal(a, torch.ones(2))


def test_an_overflow_on_one_side_skips_the_step_of_both():
    """In fp16 one loss scale serves both: half a step would leave the players at different times."""
    a, b, optimizer = pair()
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale(a.sum() + float("inf") * b.sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    assert torch.equal(a, torch.ones(2)) and torch.equal(b, torch.ones(2)) and scaler.get_scale() == 2.0
    optimizer.zero_grad()
    scaler.scale(a.sum() + 3 * b.sum()).backward()
    scaler.step(optimizer)
    torch.testing.assert_close(a.detach(), torch.full((2,), 0.9))


def test_added_group_is_stepped_by_the_first():
    """The base class would append it to a list that is thrown away."""
    a, b, optimizer = pair()
    c = torch.nn.Parameter(torch.ones(1))
    optimizer.add_param_group({"params": [c]})
    c.sum().backward()
    optimizer.step()
    assert c.item() == pytest.approx(0.9)


def test_shared_parameters_and_empty_chains_are_refused():
    """A parameter in two optimizers would be stepped twice."""
    a, b, optimizer = pair()
    with pytest.raises(ValueError, match="hold the same parameter"):
        ChainedOptimizer([optimizer.optimizers[0], torch.optim.SGD([a], lr=1.0)])
    with pytest.raises(ValueError, match="at least one"):
        ChainedOptimizer([])


def test_chain_takes_the_others_parameters_out_of_the_first():
    """Weight decay of the recipe would pull on the discriminator, and its momentum would step it twice."""
    a, b = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    first, other = torch.optim.SGD([a, b], lr=0.1, weight_decay=0.5), torch.optim.Adam([b])
    chained = chain(first, [other])
    assert [group["params"] for group in chained.param_groups] == [[a], [b]]
    assert chain(first, []) is first


def test_trainer_gives_the_discriminator_its_own_optimizer_and_the_student_the_recipes(tmp_path, tiny_teacher):
    """In the recipe's SGD, the discriminator would learn at the student's rate and decay."""
    trainer = adversarial_trainer(tmp_path, tiny_teacher, weight_decay=0.1, max_steps=2, **ONE_RUN)
    trainer.train()
    other, model = discriminator_optimizer(trainer), trainer.model
    recipes_own = [x for group in trainer.optimizer.optimizer.optimizers[0].param_groups for x in group["params"]]
    assert {id(x) for x in recipes_own} == {id(x) for x in model.student.parameters()}
    assert {id(x) for x in other.param_groups[0]["params"]} == {id(x) for x in model.losses.parameters()}
    assert other.param_groups[0]["weight_decay"] == 0 and other.param_groups[0]["initial_lr"] == 4e-4


@pytest.mark.parametrize("name", [x for x, loss in LOSSES.items() if loss.optimizer is DistillationLoss.optimizer])
def test_losses_without_an_opponent_keep_the_plain_optimizer(name, tmp_path, tiny_student, tiny_teacher):
    """Projectors learn with the student; nothing may change for the other methods."""
    trainer = trainer_for(tmp_path, tiny_student, tiny_teacher, losses={name: {}})
    assert isinstance(trainer.create_optimizer(), torch.optim.SGD)


def test_polynomial_schedule_of_a_run_scales_the_discriminators_rate(tmp_path, tiny_teacher):
    """As in SKD; CIRKD's stays constant."""
    rates = []

    class Look(TrainerCallback):
        def on_step_end(self, args, state, control, optimizer=None, **kwargs):
            rates.append([group["lr"] for group in optimizer.param_groups if group["params"]])

    trainer = adversarial_trainer(tmp_path, tiny_teacher, callbacks=[Look()], learning_rate=0.02, **ONE_RUN)
    trainer.train()
    factors = [(1 - done / 4) ** 0.9 for done in (1, 2, 3, 4)]
    assert rates == [pytest.approx([0.02 * factor, 4e-4 * factor]) for factor in factors]


def test_accumulated_steps_step_the_discriminator_once(tmp_path, tiny_teacher):
    """Adam stepping at every micro-batch would see half gradients twice as often."""
    trainer = adversarial_trainer(
        tmp_path, tiny_teacher, gradient_accumulation_steps=2, per_device_train_batch_size=1, max_steps=3, **ONE_RUN
    )
    trainer.train()
    steps = {state["step"].item() for state in discriminator_optimizer(trainer).state.values()}
    assert steps == {3.0}


@pytest.mark.parametrize(
    "options",
    [
        {},
        *(
            pytest.param({name: True}, marks=pytest.mark.slow)
            for name in ("constant_learning_rate", "condition_on_image")
        ),
    ],
    ids=lambda x: next(iter(x), "plain"),
)
def test_resumed_game_ends_with_the_same_bits(options, tmp_path, tiny_teacher):
    """Discriminator, its Adam, its singular vectors and the drawn mixtures all belong to the state of a run."""

    def run(folder, resume=None):
        trainer = adversarial_trainer(folder, tiny_teacher, with_options(**options), max_steps=4, **ONE_RUN)
        trainer.train(resume_from_checkpoint=resume)
        return weights(trainer.model), discriminator_optimizer(trainer).state_dict()["state"]

    whole, whole_state = run(tmp_path / "whole")
    resumed, resumed_state = run(tmp_path / "parts", str(tmp_path / "whole" / "checkpoint-2"))
    assert {"losses.adversarial.discriminator.conv1.u", "losses.adversarial.draws.drawn"} <= whole.keys()
    assert equal(whole, resumed) and whole["losses.adversarial.draws.drawn"] == 4
    assert all(equal(whole_state[index], resumed_state[index]) for index in whole_state)


@pytest.mark.slow
def test_discriminators_learning_rate_may_stay_constant(tmp_path, tiny_teacher):
    """In CIRKD's code it does: with the schedule, also with the one that a checkpoint holds, D's steps are smaller."""
    rates = []

    class Watch(TrainerCallback):
        def on_train_begin(self, args, state, control, optimizer=None, **kwargs):
            for one in optimizer.optimizer.optimizers:
                one.register_step_pre_hook(self.note)  # after the loss's own hook

        def note(self, optimizer, *_):
            rates.append(optimizer.param_groups[0]["lr"])

    def run(folder, resume=None):
        rates.clear()
        losses = with_options(constant_learning_rate=True)
        options = {"callbacks": [Watch()], "learning_rate": 0.02, "max_steps": 4, **ONE_RUN}
        adversarial_trainer(folder, tiny_teacher, losses, **options).train(resume_from_checkpoint=resume)

    run(tmp_path / "whole")
    expected = [rate for done in range(4) for rate in (0.02 * (1 - done / 4) ** 0.9, 4e-4)]
    assert rates == pytest.approx(expected)
    run(tmp_path / "parts", str(tmp_path / "whole" / "checkpoint-2"))
    assert rates == pytest.approx(expected[4:])


def test_gradients_of_a_losss_own_parameters_are_clipped_once_per_step():
    """Af-DCD's generator sees a sum over a map: unclipped, its first steps throw it far away."""
    losses = {"af_dcd": LOSSES["af_dcd"](shapes(), max_grad_norm=2.0), "fitnet": LOSSES["fitnet"](shapes())}
    own, other = list(losses["af_dcd"].parameters()), list(losses["fitnet"].parameters())
    optimizer = torch.optim.SGD([*own, *other], lr=0.0)
    clip_own_gradients(optimizer, losses)
    for parameter in [*own, *other]:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert torch.cat([x.grad.flatten() for x in own]).norm().item() == pytest.approx(2.0, rel=1e-5)
    assert all(torch.equal(x.grad, torch.ones_like(x)) for x in other)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_trainer_clips_the_losses_that_ask_for_it(accumulation, tmp_path, tiny_student, tiny_teacher):
    """Once for the sum of all accumulated gradients, not for each part."""
    losses = {"task": {}, "af_dcd": {"max_grad_norm": 1e-3, "pooling": 1, "weight": 10.0}}
    options = {"gradient_accumulation_steps": accumulation, "max_steps": 1, **ONE_RUN}
    trainer = trainer_for(tmp_path, tiny_student, tiny_teacher, losses=losses, **options)
    norms = []
    create = trainer.create_optimizer

    def watched(*args, **kwargs):
        optimizer = create(*args, **kwargs)
        own = list(trainer.model.losses["af_dcd"].parameters())
        optimizer.register_step_post_hook(lambda *_: norms.append(torch.cat([x.grad.flatten() for x in own]).norm()))
        return optimizer

    trainer.create_optimizer = watched
    trainer.train()
    assert norms[0].item() == pytest.approx(1e-3, rel=1e-3) and len(norms) == 1


def shapes():
    maps = {"features": torch.Size((1, 4, 8, 8))}
    return LossSetup(maps, num_labels=2, teacher=maps)


def test_a_run_that_is_all_warmup_trains(tmp_path):
    """`--max_steps 40` on a recipe with 40 steps of warmup ended in a division by zero."""
    student = load_model({**TINY, "use_decoder": False}, id2label=LABELS)[0]
    trainer = trainer_for(tmp_path, student, max_steps=2, warmup_steps=2, lr_scheduler_type="polynomial", **ONE_RUN)
    trainer.train()
    rates = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
    assert rates == pytest.approx([0.0, 0.005])
