"""How the trainer pushes: checkpoints while it trains, the finished folder at the end."""

import logging
from concurrent.futures import Future, wait
from pathlib import Path

from huggingface_hub import HfApi
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import HubStrategy

from hf_segkd.hub import LAST_CHECKPOINT, STUDENT_FILES, open_repository, push_folder
from hf_segkd.training.checkpoints import PREFIX

logger = logging.getLogger(__name__)


class UploadsToHub(Trainer):
    """[`~transformers.Trainer`] with this library's uploads in place of its own.

    Trainer's own would push half-finished folders, and with a checkpoint its arguments as a pickle, token included.
    """

    def init_hf_repo(self, token=None, private=None):
        if not self.is_world_process_zero():
            return
        args = self.args
        name = args.hub_model_id or Path(args.output_dir).absolute().name
        private = args.hub_private_repo if private is None else private
        self.hub_model_id = open_repository(name, private, args.hub_revision, token or args.hub_token)
        self.push_in_progress = CheckpointUploads(self.hub_model_id, args)

    def push_to_hub(self, **kwargs) -> str:
        """Upload `output_dir` as it is, after `finish_run`; returns the commit's address.

        Raises:
            HubError: With the command that tries again; the folder is complete all the same.
        """
        self._finish_current_push()
        return push_folder(self.args.output_dir, self.hub_model_id, self.args.hub_revision, self.args.hub_token)

    def _push_from_checkpoint(self, checkpoint_folder):
        """Nothing yet: Trainer calls this before the checkpoint is complete. See [`UploadCheckpoints`]."""


class UploadCheckpoints(TrainerCallback):
    """Uploads each checkpoint once it is complete; comes after the callback that completes it."""

    def __init__(self, trainer: UploadsToHub):
        self.trainer = trainer

    def on_save(self, args, state, control, **kwargs):
        if args.push_to_hub and state.is_world_process_zero:
            checkpoint = str(Path(args.output_dir) / f"{PREFIX}{state.global_step}")
            self.trainer.push_in_progress.start(
                checkpoint, state.best_model_checkpoint or checkpoint, state.global_step
            )


class CheckpointUploads:
    """Uploads during training, one after the other in the background; one that fails is logged and training goes on.

    The repository's root always holds the best student so far. `hub_strategy` decides on the training state:
    `"every_save"` uploads none, `"checkpoint"` the newest to `last-checkpoint`, `"all_checkpoints"` all of them.

    Args:
        repo_id (`str`): From [`open_repository`].
        args (`TrainingArguments`): Its `hub_*` fields.
    """

    def __init__(self, repo_id: str, args: TrainingArguments):
        self.api, self.repo_id, self.args = HfApi(token=args.hub_token), repo_id, args
        self.jobs: list[Future] = []

    def start(self, checkpoint: str, best: str, step: int) -> None:
        """Upload the folders `checkpoint` and `best`, unless the last upload still runs."""
        strategy = self.args.hub_strategy
        if strategy == HubStrategy.END or not (self.is_done() or self.args.hub_always_push):
            return
        # Trainer's own upload would hold a pickle of its arguments, with the token in it.
        student = {"allow_patterns": STUDENT_FILES, "ignore_patterns": ["trainer_state.json"]}
        self.jobs = [self._upload(best, None, step, **student)]
        if strategy == HubStrategy.CHECKPOINT:
            self.jobs.append(self._upload(checkpoint, LAST_CHECKPOINT, step))
        elif strategy == HubStrategy.ALL_CHECKPOINTS:
            self.jobs.append(self._upload(checkpoint, Path(checkpoint).name, step))

    def _upload(self, folder: str, path_in_repo: str | None, step: int, **patterns) -> Future:
        job = self.api.upload_folder(
            repo_id=self.repo_id,
            folder_path=folder,
            path_in_repo=path_in_repo,
            revision=self.args.hub_revision,
            commit_message=f"Training in progress, step {step}",
            run_as_future=True,
            **patterns,
        )
        job.add_done_callback(_log_failure)
        return job

    def is_done(self) -> bool:
        return all(job.done() for job in self.jobs)

    def wait_until_done(self) -> None:
        wait(self.jobs)


def _log_failure(job: Future) -> None:
    if job.exception() is not None:
        kind = type(job.exception()).__name__
        logger.warning("An upload during training failed (%s); training goes on.", kind)
