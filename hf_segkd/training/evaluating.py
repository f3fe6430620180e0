"""How the trainer evaluates: confusion matrices instead of logits."""

from __future__ import annotations

import torch
from transformers import Trainer

from hf_segkd.evaluation.confusion import confusion_matrices, scores
from hf_segkd.evaluation.inference import upsampled_argmax


class ScoresByMatrices(Trainer):
    """The part of [`~hf_segkd.training.trainer.DistillationTrainer`] that scores the student.

    Logits of a whole dataset fit into no memory; the confusion matrix of each image does.
    """

    def evaluate(self, *args, **kwargs):
        with self._shared_statistics(), self._averaged(), self.clock.span("pause", on_host=True):
            return super().evaluate(*args, **kwargs)

    def get_eval_dataloader(self, eval_dataset=None):
        # Trainer's drop_last, meant for BatchNorm in training, would also leave out the last evaluation images.
        drop_last, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.args.dataloader_drop_last = drop_last

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        inputs = self._prepare_inputs(inputs)
        labels = inputs["labels"]
        with torch.no_grad(), self.accelerator.autocast():
            logits = self.accelerator.unwrap_model(self.model).predict(inputs["pixel_values"])
        predicted = upsampled_argmax(logits, labels.shape[-2:], self.align_corners)
        matrices = confusion_matrices(predicted, labels, self.num_labels, self.ignore_index)
        return None, matrices, labels.new_zeros(len(labels))

    def _add_to_metrics(self, prediction, compute_result: bool) -> dict[str, float]:
        self.eval_matrix = self.eval_matrix + prediction.predictions.sum(dim=0).cpu()
        if not compute_result:
            return {}
        self.last_matrix = self.eval_matrix
        self.eval_matrix = 0
        self.eval_scores = scores(self.last_matrix)
        return {key: float(value) for key, value in self.eval_scores.items() if not key.startswith("per_category")}
