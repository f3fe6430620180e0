"""What the losses draw: from the run's seed, each loss apart."""

import pytest
import torch

from helpers.loss_cases import setup
from helpers.tiny import TinyScenes
from hf_segkd.losses import LOSSES, build_losses
from hf_segkd.losses.draws import SeededDraws
from hf_segkd.training.config import DistillationConfig
from hf_segkd.training.trainer import DistillationTrainer


def draw(loss):
    """The next draw of each generator of a loss."""
    return [part.uniform((4,)) for part in loss.modules() if isinstance(part, SeededDraws)]


def train(student, teacher, output_dir, seed):
    args = DistillationConfig(
        losses={"task": {}, "mgd": {}},
        output_dir=str(output_dir),
        use_cpu=True,
        eval_strategy="no",
        load_best_model_at_end=False,
        seed=seed,
    )
    trainer = DistillationTrainer(student, teacher, args=args, train_dataset=TinyScenes())
    return draw(trainer.model.losses["mgd"])[0]


def test_draws_follow_the_seed_of_the_run(tmp_path, tiny_student, tiny_teacher):
    """Repeats with several seeds would otherwise share their masks, and their spread would be too small."""
    first, again, other = (train(tiny_student, tiny_teacher, tmp_path, seed) for seed in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_two_losses_of_one_method_draw_apart():
    """Two layers whose masks are the same are masked twice at the same places."""
    losses, _ = build_losses({"a": {"type": "mgd"}, "b": {"type": "mgd"}}, setup("mgd"))
    assert not torch.equal(draw(losses["a"])[0], draw(losses["b"])[0])


def test_parts_of_one_loss_draw_apart():
    """CIRKDv2's queues of pixels and of channels would otherwise be filled and read in the same order."""
    first, second = draw(LOSSES["cirkdv2"](setup("cirkdv2")))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("name", LOSSES)
def test_no_loss_has_a_seed_of_its_own(name):
    """A second seed in the recipe would make `seed: 1` repeat half of a run."""
    with pytest.raises(ValueError, match=f"Unknown option losses.{name}.seed"):
        build_losses({name: {"seed": 1}}, setup(name))
