"""Crop before scale, jitter, balanced crops, and pixels that depend on seed, epoch and index alone."""

from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from helpers.noise import generator, noise, rows
from helpers.tiny import LABELS, TINY
from hf_segkd.data import EvalTransform, PhotometricJitter, SegmentationDataset, TrainTransform
from hf_segkd.loading.any_model import load_model
from hf_segkd.training.config import DistillationConfig
from hf_segkd.training.trainer import DistillationTrainer


def scaled_as_a_whole(
    example: dict, crop: tuple[int, int], scales: list[Fraction], generator: torch.Generator
) -> dict:
    """The originals' order: resize everything, pad, crop, flip; draws as in `TrainTransform`."""

    def draw(stop):
        return int(torch.randint(stop, (), generator=generator))

    image, labels = example["image"], example["annotation"]
    scale = scales[draw(len(scales))]
    size = [int(length * scale) for length in labels.shape]
    factor = float(scale) * (1 + 1e-12)  # 100 * 0.29 is 28.999... in floating point
    image = F.interpolate(image[None], scale_factor=factor, mode="bilinear", antialias=True)[0]
    nearest = [[int((i + Fraction(1, 2)) / scale) for i in range(length)] for length in size]
    labels = labels[nearest[0]][:, nearest[1]].long()
    top, left = (draw(max(0, length - side) + 1) for length, side in zip(size, crop, strict=True))
    image, labels = (x[..., top : top + crop[0], left : left + crop[1]] for x in (image, labels))
    padding = (0, crop[1] - labels.shape[1], 0, crop[0] - labels.shape[0])
    image, labels = F.pad(image, padding), F.pad(labels, padding, value=255)
    if torch.rand((), generator=generator) < 0.5:
        image, labels = image.flip(-1), labels.flip(-1)
    return {"pixel_values": image, "labels": labels}


def test_two_hundred_draws_equal_the_originals_order_of_operations():
    """A window that begins between two grid points shifts the image against its labels, by less than one can see."""
    transform, worst = TrainTransform((36, 60)), 0
    for seed in range(200):
        example = noise(61 + seed % 7, 97 - seed % 11)
        ours = transform(example, generator(seed))
        plain = scaled_as_a_whole(example, (36, 60), transform.scales, generator(seed))
        assert torch.equal(ours["labels"], plain["labels"])
        worst = max(worst, int((ours["pixel_values"].int() - plain["pixel_values"].int()).abs().max()))
    assert worst <= 1


# ---- photometric jitter ------------------------------------------------------------------------------------------


def test_jitter_of_strength_zero_changes_nothing():
    """A color matrix that is almost the identity would dim every image a little."""
    image = noise(30, 40)["image"]
    assert torch.equal(PhotometricJitter()(image, generator()), image)


def test_jitter_changes_the_image_alone_and_padding_stays_as_it_is():
    """Labels must not move, and padding is no part of the picture."""
    plain, jittered = (TrainTransform((50, 70), scale_range=(1, 1), jitter=j) for j in (None, PhotometricJitter(0.3)))
    a, b = (transform(noise(40, 60), generator(3)) for transform in (plain, jittered))
    assert torch.equal(a["labels"], b["labels"])
    assert not torch.equal(a["pixel_values"][:, :40, :60], b["pixel_values"][:, :40, :60])
    assert torch.equal(a["pixel_values"][:, 40:], b["pixel_values"][:, 40:])


def strengths_of(draws: torch.Tensor, **jitter) -> torch.Tensor:
    return (2 * draws - 1) * torch.tensor([jitter.get(name, 0.0) for name in PROPERTIES])


PROPERTIES = ("brightness", "contrast", "saturation", "hue")


@pytest.mark.parametrize("seed", range(6))
def test_jitter_equals_the_four_changes_one_after_the_other(seed):
    """One matrix for four changes is worth nothing if it is another change."""
    jitter = {"brightness": 0.1, "contrast": 0.3, "saturation": 0.4, "hue": 0.2}
    image = noise(16, 24)["image"] // 3 + 80  # away from 0 and 255, where clipping once or four times differs
    brightness, contrast, saturation, hue = strengths_of(torch.rand(4, generator=generator(seed)), **jitter).tolist()
    expected = np.empty((16, 24, 3))
    pixels = image.permute(1, 2, 0).numpy().astype(float)
    luma = pixels @ [0.299, 0.587, 0.114]
    for row, column in np.ndindex(16, 24):
        red, green, blue = pixels[row, column]
        i = 0.5959 * red - 0.2746 * green - 0.3213 * blue
        q = 0.2115 * red - 0.5227 * green + 0.3112 * blue
        turned = (i + 1j * q) * np.exp(2j * np.pi * hue) * (1 + saturation)
        i, q, y = turned.real, turned.imag, luma[row, column]
        rgb = np.array([y + 0.956 * i + 0.619 * q, y - 0.272 * i - 0.647 * q, y - 1.106 * i + 1.703 * q])
        expected[row, column] = (1 + contrast) * (rgb - luma.mean()) + luma.mean() + 255 * brightness
    found = PhotometricJitter(**jitter)(image, generator(seed)).permute(1, 2, 0).numpy()
    assert np.abs(found - expected.clip(0, 255)).max() < 1.5  # rounding, and YIQ's constants of three digits


def test_full_saturation_jitter_reaches_gray_and_keeps_luma():
    """A saturation that dims the image is a second brightness."""
    image = noise(20, 20)["image"] // 2 + 60
    seed = min(range(300), key=lambda seed: float(torch.rand(4, generator=generator(seed))[2]))
    gray = PhotometricJitter(saturation=1.0)(image, generator(seed)).float()
    assert (gray.amax(0) - gray.amin(0)).max() < 5
    luma = (image.float() * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(0)
    assert (gray.mean(0) - luma).abs().max() < 3


@pytest.mark.parametrize("options", [{"hue": 0.6}, {"contrast": -0.1}, {"brightness": 32}], ids=str)
def test_impossible_jitter_is_refused_at_construction(options):
    """MMSegmentation counts brightness in gray levels: 32 would make every image black or white."""
    with pytest.raises(ValueError, match=next(iter(options))):
        PhotometricJitter(**options)


# ---- balanced crops ----------------------------------------------------------------------------------------------


def corner(ignored: int = 255) -> dict:
    """Class 0 everywhere, class 1 in the lower right quarter, ignored pixels on top."""
    labels = torch.zeros(64, 64, dtype=torch.uint8)
    labels[32:, 32:], labels[:4] = 1, ignored
    return {"image": torch.zeros(3, 64, 64, dtype=torch.uint8), "annotation": labels, "image_id": "corner"}


def share_of_rare_class(ratio: float) -> float:
    transform = TrainTransform((16, 16), scale_range=(1, 1), cat_max_ratio=ratio)
    labels = [transform(corner(), generator(seed))["labels"] for seed in range(100)]
    return sum(bool((x == 0).any() and (x == 1).any()) for x in labels) / len(labels)


def test_crops_of_one_class_are_drawn_again_when_asked():
    """Without redraws most crops of a street are nothing but road."""
    # One draw in seven shows both classes in proportion: eleven draws find one with a chance of about 0.83.
    assert share_of_rare_class(1.0) < 0.4 and share_of_rare_class(0.75) > 0.7


def test_a_crop_that_no_draw_can_balance_is_taken_after_ten_redraws():
    """An image of one class must not hang its worker."""
    example = corner() | {"annotation": torch.full((64, 64), 255, dtype=torch.uint8)}
    state, random = generator(), generator()
    TrainTransform((16, 16), scale_range=(1, 1), cat_max_ratio=0.75)(example, random)
    for _ in range(1 + 2 * 11 + 1):  # scale, eleven times top and left, flip
        torch.randint(2, (), generator=state)
    assert torch.equal(state.get_state(), random.get_state())


def test_ignored_pixels_do_not_count_as_a_class():
    """A crop half road and half ignored would pass for varied."""
    transform = TrainTransform((16, 16), cat_max_ratio=0.75)
    labels = torch.zeros(16, 16, dtype=torch.uint8)
    labels[:8] = 255
    assert not transform._is_varied(labels)
    labels[8:, :8] = 3
    assert transform._is_varied(labels)


def test_the_default_takes_the_first_crop():
    """The published recipes draw once; another number of draws would change every run."""
    with pytest.raises(ValueError, match="cat_max_ratio"):
        TrainTransform((8, 8), cat_max_ratio=1.5)
    seen = [TrainTransform((16, 16), **o)(corner(), generator(1)) for o in ({}, {"cat_max_ratio": 1.0})]
    assert torch.equal(seen[0]["labels"], seen[1]["labels"])


# ---- reproducibility, through the real Trainer -------------------------------------------------------------------


class RecordingTrainer(DistillationTrainer):
    """Keeps what each step sees."""

    def compute_loss(self, model, inputs, *args, **kwargs):
        self.__dict__.setdefault("seen", []).append((inputs["pixel_values"].clone(), inputs["labels"].clone()))
        return super().compute_loss(model, inputs, *args, **kwargs)


def pixels_of_a_run(folder, workers: int, resume: int | None = None, seed: int = 5, **options) -> list[tuple]:
    transform = TrainTransform((32, 32), cat_max_ratio=0.9, jitter=PhotometricJitter(0.1, 0.2, 0.2, 0.05))
    train = SegmentationDataset(rows(), transform, num_labels=10, seed=seed)
    arguments = {
        **{"output_dir": str(folder), "use_cpu": True, "disable_tqdm": True, "max_steps": 8, "save_steps": 1},
        **{"per_device_train_batch_size": 2, "eval_strategy": "no", "load_best_model_at_end": False},
        **{"save_total_limit": None, "seed": seed, "dataloader_num_workers": workers, **options},
    }
    student = load_model(TINY, id2label=LABELS)[0]
    evaluation = SegmentationDataset(rows(1), EvalTransform(), num_labels=10)
    trainer = RecordingTrainer(
        student, args=DistillationConfig(**arguments), train_dataset=train, eval_dataset=evaluation
    )
    trainer.train(resume_from_checkpoint=str(folder / f"checkpoint-{resume}") if resume else None)
    return trainer.seen


def same(a: list[tuple], b: list[tuple]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x, y) for s, t in zip(a, b, strict=True) for x, y in zip(s, t, strict=True)
    )


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Eight steps of two images without workers: two epochs of three steps, and two more steps."""
    folder = tmp_path_factory.mktemp("alone")
    return folder, pixels_of_a_run(folder, workers=0)


def test_every_epoch_shows_other_pixels(alone):
    """Augmentation that repeats itself is no augmentation."""
    _, seen = alone
    assert len(seen) == 8
    epochs = [{tuple(image.flatten().tolist()) for batch, _ in seen[i : i + 3] for image in batch} for i in (0, 3)]
    assert len(epochs[0]) == len(epochs[1]) == 6 and not epochs[0] & epochs[1]


@pytest.mark.parametrize("persistent", [False, True])
def test_a_run_with_workers_sees_the_pixels_of_one_without(alone, tmp_path, persistent):
    """Random state of a worker would make the number of workers a hyper-parameter."""
    seen = pixels_of_a_run(tmp_path, workers=2, dataloader_persistent_workers=persistent)
    assert same(seen, alone[1])


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("step", [3, 5], ids=["between epochs", "within an epoch"])
def test_a_resumed_run_sees_what_the_uninterrupted_one_saw(alone, workers, step):
    """Starting the epoch's augmentation afresh would show some crops twice and others never."""
    folder, seen = alone
    resumed = pixels_of_a_run(folder, workers=workers, resume=step)
    assert same(resumed, seen[step:])


def test_another_seed_sees_other_pixels(alone, tmp_path):
    """Equal pixels for every seed would satisfy all tests above."""
    assert not same(pixels_of_a_run(tmp_path, workers=0, max_steps=1, seed=6), alone[1][:1])


class ThreadsOfWorker(torch.utils.data.Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        return torch.get_num_threads()


def test_workers_use_one_thread_each():
    """Eight workers with a thread per core each would fight over the cores."""
    assert next(iter(DataLoader(ThreadsOfWorker(), num_workers=1))).item() == 1
