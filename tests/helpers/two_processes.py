"""What test_distributed.py lets two processes do: torchrun --nproc_per_node 2 tests/two_processes.py FOLDER"""

import sys
from pathlib import Path

import torch
from accelerate import PartialState
from torch.nn.parallel import DistributedDataParallel

from helpers.loss_cases import IGNORE, STUDENT_CHANNELS, TEACHER_CHANNELS, K, TinyNet, build, freeze_batch_norm
from helpers.tiny import LABELS, TINY, TinyScenes
from hf_segkd.distributed import gather, gather_with_gradient, rank, world_size
from hf_segkd.loading.any_model import load_model
from hf_segkd.losses import LOSSES
from hf_segkd.training.config import DistillationConfig
from hf_segkd.training.distiller import Distiller
from hf_segkd.training.trainer import DistillationTrainer

STEPS, SMALL = 6, 4  # two steps on maps of more than 4x4: a discriminator takes a second for each
# 4x4 maps have 16 pixels, so that all pixels of a class enter its queue; queues that no step fills, all of it keys.
WHOLE_MEMORY = {"pixel_memory": 1500, "pixel_samples": 1500, "region_memory": 150, "region_samples": 150}
CASES = {name: (name, {}) for name in LOSSES} | {
    "kd, cross_entropy_sum": ("kd", {"reduction": "cross_entropy_sum"}),
    "cirkd_minibatch, gather": ("cirkd_minibatch", {"gather": True}),
    "cirkd_minibatch, gather and rows": ("cirkd_minibatch", {"gather": True, "temperature": 0.01}),
    "cirkd_memory, whole": ("cirkd_memory", WHOLE_MEMORY),
    "cirkdv2, gather and whole": (
        "cirkdv2",
        {**WHOLE_MEMORY, "channel_memory": 1000, "channel_samples": 1000, "gather": True},
    ),
    "cskd, gather": ("cskd", {"gather": True}),
    "pkd, batch": ("pkd", {"statistics": "batch"}),
    "cskd, mse": ("cskd", {"comparison": "mse"}),
}


def local_images(case: str) -> int:
    name, options = CASES[case]
    return 2 if options else max(2, LOSSES[name].min_batch)


def batches(case: str, size: int):
    """The batches of all processes together: as many labeled pixels in each image."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(STEPS if size == SMALL else 2):
        shape = (2 * local_images(case), 3, size, size)
        pixel_values = torch.randn(shape, generator=generator, dtype=torch.float64)
        labels = torch.randint(0, K, (len(pixel_values), 4 * size, 4 * size), generator=generator)
        labels[:, :size] = IGNORE
        yield pixel_values, labels


def train(case: str, accumulation: int = 1) -> dict[str, dict[str, torch.Tensor]]:
    """Some steps of SGD in float64 on this process's part of each batch; what student and losses hold then.

    With `accumulation`, a batch is taken in that many parts, whose gradients are averaged before the step.
    """
    name, options = CASES[case]
    size = max(SMALL, LOSSES[name].min_side)
    student, teacher = TinyNet(STUDENT_CHANNELS, seed=1).double(), TinyNet(TEACHER_CHANNELS, seed=2).double()
    losses = {"task": build("task", size=size), name: build(name, size=size, **options)}
    distiller = freeze_batch_norm(Distiller(student, losses).double())
    model = distiller
    if world_size() > 1:
        model = DistributedDataParallel(distiller, broadcast_buffers=False)
    optimizer = torch.optim.SGD(distiller.parameters(), lr=0.01, momentum=0.9)
    for pixel_values, labels in batches(case, size):
        own = part(len(pixel_values))
        optimizer.zero_grad()
        for images, targets in zip(
            pixel_values[own].chunk(accumulation), labels[own].chunk(accumulation), strict=True
        ):
            with torch.no_grad():
                output = teacher(images)
            (model(images, targets, output).loss / accumulation).backward()
        optimizer.step()
    return {"parameters": dict(distiller.named_parameters()), "buffers": dict(distiller.named_buffers())}


def part(count: int) -> slice:
    share = count // world_size()
    return slice(rank() * share, (rank() + 1) * share)


def run_trainer(folder: Path) -> tuple[DistillationTrainer, dict[str, dict[str, torch.Tensor]]]:
    """Six steps of the real trainer; weights and queues, without the running statistics that only CUDA shares."""
    torch.manual_seed(0)
    student = load_model(TINY, id2label=LABELS)[0]
    teacher = load_model({**TINY, "hidden_sizes": [4, 10, 15]}, id2label=LABELS)[0]
    sizes = {"pixel_memory": 40, "region_memory": 12}
    arguments = {
        **{"output_dir": str(folder / "run"), "use_cpu": True, "disable_tqdm": True, "max_steps": 6},
        **{"per_device_train_batch_size": 2, "learning_rate": 0.01, "eval_strategy": "no", "save_strategy": "no"},
        **{"load_best_model_at_end": False, "logging_steps": 1},
    }
    losses = {"task": {}, "kd": {}, "cirkd_memory": sizes, "cirkdv2": {**sizes, "channel_memory": 50, "gather": True}}
    args = DistillationConfig(losses=losses, **arguments)
    data = TinyScenes(24, size=64)
    trainer = DistillationTrainer(student, teacher, args=args, train_dataset=data, eval_dataset=data)
    before = weights_and_queues(trainer)
    trainer.train()
    return trainer, {"before": before, "after": weights_and_queues(trainer)}


def weights_and_queues(trainer: DistillationTrainer) -> dict[str, torch.Tensor]:
    state = trainer.accelerator.unwrap_model(trainer.model).state_dict()
    return {key: x.clone() for key, x in state.items() if not key.endswith(("running_mean", "running_var"))}


def gradient_of_gather() -> dict[str, torch.Tensor]:
    """Each process weighs the gathered rows by its own factors; what comes back to its two rows."""
    x = (torch.arange(2.0) + 2 * rank()).requires_grad_()
    gathered = gather_with_gradient(x)
    (gathered * torch.arange(4.0) * (10.0 if rank() else 1.0)).sum().backward()
    return {"value": gathered.detach(), "gradient": x.grad, "without": gather(x)}


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    # Before any other use, so that Trainer finds the gloo group that the rest runs in.
    PartialState(cpu=True)
    if world_size() != 2:
        raise RuntimeError(f"Expected two processes, got {world_size()}.")
    states = {case: train(case) for case in CASES} | {"gather": gradient_of_gather()}
    trainer, states["trainer"] = run_trainer(folder)
    torch.save(states, folder / f"rank{rank()}.pt")
    trainer.end()  # waits for the other process and closes the group


if __name__ == "__main__":
    main(Path(sys.argv[1]))
