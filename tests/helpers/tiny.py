"""Small models and data that several tests share."""

import torch

from dataset_builders import DATASETS

LABELS = {index: name for index, name in enumerate(DATASETS["synthetic"].labels)}
TINY = {"model_type": "espnet", "use_decoder": False, "hidden_sizes": [4, 10, 10], "depths": [1, 1]}
# A run of a few seconds.
RECIPE = {
    "dataset": "synthetic",
    "dataset_config": {"num_train": 8, "num_validation": 3, "num_test": 2, "height": 32, "width": 48},
    "student": TINY,
    "crop_size": [32, 32],
    "per_device_train_batch_size": 2,
    "max_steps": 4,
    "eval_steps": 2,
    "save_steps": 2,
    "logging_steps": 1,
    "use_cpu": True,
    "seed": 3,
}


class TinyScenes(torch.utils.data.Dataset):
    """Blocks whose color tells their class, 32x32 pixels, made from the index alone."""

    def __init__(self, count=8, num_labels=10, offset=0, size=32):
        self.count, self.num_labels, self.offset, self.size = count, num_labels, offset, size

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if index >= self.count:  # ends `for item in dataset`
            raise IndexError(index)
        generator = torch.Generator().manual_seed(self.offset + index)
        blocks = torch.randint(0, self.num_labels, (4, 4), generator=generator)
        labels = blocks.repeat_interleave(self.size // 4, 0).repeat_interleave(self.size // 4, 1)
        noise = torch.randint(0, 20, (3, self.size, self.size), generator=generator)
        return {"pixel_values": (labels * 20 + noise).to(torch.uint8), "labels": labels}
