"""Batches of labeled and unlabeled images."""

from __future__ import annotations

from torch.utils.data import Sampler
from transformers import Trainer

from hf_segkd.data.streaming import StreamedSet
from hf_segkd.data.unlabeled import JoinedRows, MixedSampler


class MixesUnlabeled(Trainer):
    """The part of [`~hf_segkd.training.trainer.DistillationTrainer`] that orders the training images."""

    def image_counts(self) -> dict[str, int | None]:
        """Training images of the dataset, `None` where they are streamed, and those beside it that have no labels."""
        if isinstance(self.train_dataset, StreamedSet):
            return {"dataset": None, "unlabeled": 0}
        rows = getattr(self.train_dataset, "dataset", None)
        if isinstance(rows, JoinedRows):
            return {"dataset": len(rows.labeled), "unlabeled": len(rows.unlabeled)}
        return {"dataset": len(self.train_dataset), "unlabeled": 0}

    def _get_train_sampler(self, *args) -> Sampler | None:
        if self.args.unlabeled_ratio is None:
            return super()._get_train_sampler(*args)
        counts = self.image_counts()
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return MixedSampler(
            counts["dataset"], counts["unlabeled"], self.args.train_batch_size, self.args.unlabeled_ratio, seed
        )
