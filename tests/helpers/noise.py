"""Pictures without structure, in which a shift by one pixel shows."""

import datasets
import torch
from PIL import Image


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(height: int, width: int, num_labels: int = 10) -> dict:
    """Image and labels without any structure, in which a shift by one pixel shows."""
    image = torch.randint(256, (height, width, 3), dtype=torch.uint8, generator=generator(height))
    labels = torch.randint(num_labels, (height, width), dtype=torch.uint8, generator=generator(width))
    return {"image": image.permute(2, 0, 1), "annotation": labels, "image_id": "noise"}


def rows(count: int = 6) -> datasets.Dataset:
    columns = {
        "image": datasets.Image(mode="RGB"),
        "annotation": datasets.Image(),
        "image_id": datasets.Value("string"),
    }
    examples = []
    for index in range(count):
        example = noise(40 + index, 48)
        image = Image.fromarray(example["image"].permute(1, 2, 0).numpy())
        labels = Image.fromarray(example["annotation"].numpy())
        examples.append({"image": image, "annotation": labels, "image_id": f"{index}"})
    return datasets.Dataset.from_list(examples, features=datasets.Features(columns))
