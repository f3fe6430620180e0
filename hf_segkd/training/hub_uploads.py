"""How the trainer pushes: checkpoints while it trains, the finished folder at the end."""

from pathlib import Path

from transformers import Trainer, TrainerCallback

from hf_segkd.hub import CheckpointUploads, open_repository, push_folder
from hf_segkd.training.checkpoints import PREFIX


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
