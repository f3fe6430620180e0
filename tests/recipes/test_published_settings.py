"""The shipped recipes say what the originals' scripts say: weights of the losses, schedules."""

import pytest

from helpers.shipped_recipes import read, recipe

KD = {"weight": 1.0, "temperature": 1.0}
HINGE = {"weight": {"student": 0.001, "discriminator": 0.1}, "constant_learning_rate": True}
WGAN_GP = {"weight": {"student": 0.001, "discriminator": 0.1}, "objective": "wgan-gp"}
CIRKDV2 = {
    **{"fitnet": 1.0, "minibatch_pixel": 1.0, "memory_pixel": 0.1, "memory_region": 0.1},
    **{"minibatch_channel": 1.0, "memory_channel": 0.1, "channel_kd": 100.0},
}


def cwd(layer: str, weight: float, temperature: float = 4.0, **options) -> dict:
    return {"type": "cwd", "layer": layer, "weight": weight, "temperature": temperature, **options}


# Weights of the originals' scripts. CIRKD's train_kd family first, then its own methods, CSKD, Structured KD, CWD.
WEIGHTS = {
    "baseline": {},
    "kd": {"kd": KD},
    "skd": {"kd": KD, "skd_pairwise": {"weight": 10.0, "pooling": "max2"}, "adversarial": HINGE},
    "ifvd": {"kd": KD, "ifvd": {"weight": 20.0}, "adversarial": HINGE},
    "cwd": {
        **{"kd": KD, "cwd_features": cwd("features", 50.0), "cwd_logits": cwd("logits", 3.0), "adversarial": HINGE},
    },
    "cwd_segformer": {
        "kd": KD,
        "cwd_features": cwd("features", 5.0),
        "cwd_logits": cwd("logits", 0.3),
        "adversarial": HINGE,
    },
    "fitnet": {"kd": KD, "fitnet": {"weight": 10.0}},
    "at": {"kd": KD, "at": {"weight": 10000.0}},
    "dsd": {"dsd": {"weight": {"psd": 1000.0, "csd": 10.0}, "temperature": 4.0}},
    "cirkd": {
        **{"kd": KD, "cirkd_minibatch": {"weight": 1.0}, "cirkd_memory": {"weight": {"pixel": 0.1, "region": 0.1}}},
    },
    "cirkdv2": {"kd": KD, "cirkdv2": {"weight": CIRKDV2}},
    "cirkdv2_segformer": {"kd": KD, "cirkdv2": {"context": False, "pixel_memory": 2000, "weight": CIRKDV2}},
    "cskd": {
        **{"cwd_logits": cwd("logits", 3.0, 2.0), "cskd": {"weight": {"cam": 0.3, "pam": 0.8}, "temperature": 2.0}},
    },
    "skd_original": {
        "kd": {"weight": 10.0, "reduction": "cross_entropy_sum"},
        "skd_pairwise": {"weight": 0.5, "pooling": 0.5},
        "adversarial": {
            **{"weight": {"student": 0.1, "discriminator": 0.1}, "objective": "wgan-gp", "order": "teacher_first"},
            **{"optimizer": "sgd", "weight_decay": 5e-4},
        },
    },
    "cwd_logits": {"cwd_logits": cwd("logits", 3.0)},
    "holistic": {"adversarial": WGAN_GP},
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_method_has_the_weights_of_the_originals_script(name):
    """A weight ten times off trains, and the method looks bad."""
    assert recipe("methods", name)["losses"] == {"task": {"weight": 1.0}, **WEIGHTS[name]}


# Optimizer, learning rate, weight decay, crop, images per step, steps, scales, flip.
SCHEDULES = {
    "cityscapes_40k": ("sgd", 0.02, 1e-4, [512, 1024], 16, 40000, [0.5, 2.0], 0.5),
    "cityscapes": ("sgd", 0.01, 1e-4, [512, 1024], 8, 80000, [0.5, 2.0], 0.5),
    "cityscapes_mobilevit": ("adamw_torch", 9e-4, 0.01, [512, 1024], 8, 80000, [0.5, 2.0], 0.5),
    "cityscapes_segformer": ("adamw_torch", 2e-4, 1e-4, [1024, 1024], 8, 160000, [0.5, 2.0], 0.5),
    "voc_aug": ("sgd", 0.02, 1e-4, [512, 512], 16, 80000, [0.5, 2.0], 0.5),
    "ade20k": ("sgd", 0.02, 1e-4, [512, 512], 16, 80000, [0.5, 2.0], 0.5),
    "coco_stuff_164k": ("sgd", 0.02, 1e-4, [512, 512], 16, 80000, [0.5, 2.0], 0.5),
    "voc_aug_40k": ("sgd", 0.02, 1e-4, [512, 512], 16, 40000, [0.5, 2.0], 0.5),
    "camvid_40k": ("sgd", 0.02, 1e-4, [360, 360], 16, 40000, [0.5, 2.0], 0.5),
    "cityscapes_skd": ("sgd", 0.01, 5e-4, [512, 512], 8, 40000, [0.7, 2.1], 0.5),
    "cityscapes_torchdistiller": ("sgd", 0.01, 5e-4, [512, 512], 8, 40000, [1.0, 1.0], 0.0),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_dataset_has_the_schedule_of_the_originals_script(name):
    """Half the steps or twice the learning rate is another row of the table; defaults count as much as keys."""
    script, config, _ = read({"dataset": name, "pair": "pspnet-r101_pspnet-r18", "method": "baseline"})
    augmentation = (script.scale_range, script.flip)
    batch = config.per_device_train_batch_size * config.gradient_accumulation_steps
    found = (config.optim, config.learning_rate, config.weight_decay, script.crop_size, batch, config.max_steps)
    assert (*found, *augmentation) == SCHEDULES[name]
    assert (config.lr_scheduler_type, config.lr_scheduler_kwargs) == ("polynomial", {"power": 0.9, "lr_end": 0.0})
    assert (config.max_grad_norm, config.warmup_steps) == (0.0, 0)
    assert config.eval_steps == (200 if name == "cityscapes_skd" else 800)
    assert config.optim != "sgd" or config.optim_args == "momentum=0.9"
