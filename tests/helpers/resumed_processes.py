"""What test_checkpoints.py lets two processes do: torchrun --nproc_per_node 2 tests/resumed_processes.py FOLDER"""

import sys
from pathlib import Path

import torch

from helpers.tiny import LABELS, TINY, TinyScenes
from helpers.trainers import trainer_for, weights
from hf_segkd.distributed import rank
from hf_segkd.loading.any_model import load_model
from hf_segkd.training.callbacks import statistics

# Masks and drawn keys use each process's own generator.
LOSSES = {"task": {}, "mgd": {}, "cirkd_memory": {"pixel_memory": 40, "region_memory": 12}}


def run(folder: Path, resume: str | None = None):
    torch.manual_seed(0)
    student = load_model(TINY, id2label=LABELS)[0]
    teacher = load_model({**TINY, "hidden_sizes": [4, 10, 15]}, id2label=LABELS)[0]
    options = {"max_steps": 6, "eval_steps": 3, "save_steps": 3, "load_best_model_at_end": False, "ema_decay": 0.5}
    trainer = trainer_for(
        folder, student, teacher, train=TinyScenes(24), losses=LOSSES, save_total_limit=None, **options
    )
    trainer.train(resume_from_checkpoint=resume)
    trainer.evaluate()
    return trainer


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    whole = run(folder / "run")
    found = {"whole": weights(whole.model), "statistics": list(statistics(whole.model.state_dict()).values())}
    found["rng"] = sorted(path.name for path in (folder / "run" / "checkpoint-3").glob("rng_state*"))
    resumed = run(folder / "run", str(folder / "run" / "checkpoint-3"))
    found["resumed"] = weights(resumed.model)
    torch.save(found, folder / f"rank{rank()}.pt")
    resumed.end()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
