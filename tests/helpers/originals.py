"""What the original repositories' scripts run, typed from them: one entry for each row of docs/published.yaml."""

BGR = {
    "do_flip_channel_order": True,
    "do_rescale": False,
    "image_mean": [104.00698793, 116.66876762, 122.67891434],
    "image_std": [1, 1, 1],
}
# What all of CIRKD's scripts share; a table's values are laid over it, a row's over those.
COMMON = {
    "scales": [0.5, 2.0],
    "flip": 0.5,
    "interpolation": "opencv",
    "optimizer": "sgd",
    "learning_rate": 0.02,
    "end": 0.0,
    "power": 0.9,
    "weight_decay": 1e-4,
    "clip": 0.0,
    "warmup": 0,
    "every": 800,
    "from": 0,
    "best": True,
    "processor": BGR,
    "align_corners": True,
}
MOBILEVIT = {"optimizer": "adamw_torch", "learning_rate": 9e-4, "weight_decay": 0.01}
SEGFORMER = {
    **{"optimizer": "adamw_torch", "learning_rate": 2e-4, "crop": [1024, 1024]},
    **{"images": 8, "processes": 8, "steps": 160000},
}
DIST = {"weight_decay": 5e-4, "end": 1e-4, "every": 400}
VOC = {"dataset": "voc_aug", "crop": [512, 512], "images": 16, "processes": 8, "steps": 40000}
CAMVID = {"dataset": "camvid", "crop": [360, 360], "images": 16, "processes": 8, "steps": 40000}
CITYSCAPES = {"dataset": "cityscapes", "crop": [512, 1024], "images": 16, "processes": 8, "steps": 40000}
ADE20K = {"dataset": "ade20k", "crop": [512, 512], "images": 16, "processes": 8, "steps": 40000}
COCO = {"dataset": "coco_stuff_164k", "crop": [512, 512], "images": 16, "processes": 8, "steps": 80000}
LAST = {"best": False}
FOUR = {"processes": 4}
SKD = {
    **{"dataset": "cityscapes", "crop": [512, 512], "images": 8, "processes": 1, "steps": 40000},
    **{"learning_rate": 0.01, "weight_decay": 5e-4},
}

# By the table's name: the schedule of its rows.
SCHEDULES = {
    "Cityscapes, CIRKD": CITYSCAPES,
    "Cityscapes, SegFormer, CIRKD": CITYSCAPES | SEGFORMER,
    "Cityscapes, CIRKDv2": CITYSCAPES | {"learning_rate": 0.01, "images": 8, "steps": 80000},
    "Pascal VOC, CIRKD": VOC,
    "Pascal VOC, CIRKDv2": VOC | {"processes": 4, "steps": 80000},
    "CamVid, CIRKD": CAMVID,
    "ADE20K, CIRKD": ADE20K,
    "ADE20K, CIRKDv2": ADE20K | {"steps": 80000},
    "COCO-Stuff 164K, CIRKD": COCO,
    "COCO-Stuff 164K, CIRKDv2": COCO,
    "CSKD": CITYSCAPES | {"processes": 2},
    "Cityscapes, Structured KD": SKD | {"scales": [0.7, 2.1], "from": 39000, "every": 200},
    "Cityscapes, CWD": SKD | {"scales": [1.0, 1.0], "flip": 0.0, "best": False},
    "Teachers": CITYSCAPES,
}
# By table and (student, method), or (student, method, dataset): what its script says otherwise.
ROWS = {
    "Cityscapes, CIRKD": {("DeepLabV3-R18", "dist"): DIST, ("PSPNet-R18", "dist"): DIST},
    "Cityscapes, SegFormer, CIRKD": {
        ("SegFormer-B0", method): {"processes": 2} for method in ("skd", "ifvd", "cwd", "dsd")
    },
    "Cityscapes, CIRKDv2": {
        ("DeepLabV3-R18", "baseline"): FOUR,
        ("UperNet-R18 (lite)", "baseline"): FOUR,
        ("DeepLabV3-MobileNetV3-S", "baseline"): FOUR,
        ("PSPNet-MobileNetV3-S", "baseline"): FOUR,
        ("DeepLabV3-MobileViT-XXS", "baseline"): FOUR | MOBILEVIT,
        ("PSPNet-MobileViT-XXS", "baseline"): FOUR | MOBILEVIT,
        ("DeepLabV3-MobileViT-XXS", "cirkdv2"): MOBILEVIT,
        ("PSPNet-MobileViT-XXS", "cirkdv2"): MOBILEVIT,
        ("SegFormer-B0", "baseline"): SEGFORMER,
        ("SegFormer-B0", "cirkdv2"): SEGFORMER,
    },
    "ADE20K, CIRKD": {("DeepLabV3-R18", "baseline"): {"crop": [512, 1024]}},
    "ADE20K, CIRKDv2": {
        ("DeepLabV3-R18", "baseline"): FOUR,
        ("UperNet-R18 (lite)", "baseline"): FOUR,
        ("DeepLabV3-MobileNetV3-L", "baseline"): FOUR,
        ("PSPNet-MobileNetV3-L", "baseline"): FOUR,
    },
    "COCO-Stuff 164K, CIRKDv2": {
        ("DeepLabV3-R18", "baseline"): FOUR | LAST,
        ("PSPNet-MobileNetV3-S", "baseline"): FOUR | LAST,
        ("DeepLabV3-MobileNetV3-S", "baseline"): FOUR | LAST,
        ("DeepLabV3-MobileNetV3-L", "baseline"): FOUR | LAST,
    },
    "CSKD": {
        ("PSPNet-R18", "cskd", "cityscapes"): {"processes": 4},
        ("DeepLabV3-MobileNetV2", "cskd", "cityscapes"): {"processes": 4},
        ("DeepLabV3-R18", "cskd", "voc_aug"): VOC | {"processes": 2},
        ("PSPNet-R18", "cskd", "voc_aug"): VOC | {"processes": 2},
        ("DeepLabV3-R18", "cskd", "camvid"): CAMVID | {"processes": 2},
        ("PSPNet-R18", "cskd", "camvid"): CAMVID | {"processes": 2},
    },
    "Teachers": {
        ("DeepLabV3-R101", "baseline", "voc_aug"): VOC,
        ("DeepLabV3-R101", "baseline", "camvid"): CAMVID,
        ("DeepLabV3-R101", "baseline", "ade20k"): ADE20K | {"crop": [512, 1024]},
        ("DeepLabV3-R101", "baseline", "coco_stuff_164k"): COCO,
        ("SegFormer-B4", "baseline", "cityscapes"): SEGFORMER,
    },
}

KD = {"weight": 1.0, "temperature": 1.0}
HINGE = {"weight": {"student": 0.001, "discriminator": 0.1}, "constant_learning_rate": True}
WGAN_GP = {"weight": {"student": 0.001, "discriminator": 0.1}, "objective": "wgan-gp"}
PI = {"weight": 10, "reduction": "element"}


def cwd(layer: str, weight: float, temperature: float = 4.0, **options) -> dict:
    """Options of a channel-wise term."""
    return {"type": "cwd", "layer": layer, "weight": weight, "temperature": temperature, **options}


def cirkd(pixel_and_region: float = 0.1, **options) -> dict:
    """CIRKD's losses, with its sampling of the wrong pixels."""
    weight = {"pixel": pixel_and_region, "region": pixel_and_region}
    memory = {"weight": weight, "sampling": "original", **options}
    return {"kd": KD, "cirkd_minibatch": {"weight": 1.0}, "cirkd_memory": memory}


def cirkdv2(fitnet: float, **options) -> dict:
    """CIRKDv2's losses; the weight of FitNet is 1 or 10 without a rule."""
    weight = {"fitnet": fitnet, "minibatch_pixel": 1.0, "memory_pixel": 0.1, "memory_region": 0.1}
    weight |= {"minibatch_channel": 1.0, "memory_channel": 0.1, "channel_kd": 100.0}
    return {"kd": KD, "cirkdv2": {"weight": weight, "sampling": "original", **options}}


def af_dcd(kd: float, feature: float, contrast: float, **options) -> dict:
    """Af-DCD on the last stage of the backbones."""
    weight = {"feature": feature, "contrast": contrast}
    loss = {"weight": weight, "temperature": 0.07, "layer": "hidden_states.3", "max_grad_norm": 15, **options}
    return {"kd": KD | {"weight": kd}, "af_dcd": loss}


def cskd(quirk: bool = True, **weight) -> dict:
    """CSKD's losses, with projections that are drawn anew."""
    options = {"pam_projection": "resample"} if quirk else {}
    loss = {"weight": {"cam": 0.3, "pam": 0.8} | weight, "temperature": 2.0, **options}
    return {"cwd_logits": cwd("logits", 3.0, 2.0), "cskd": loss}


DSD = {"dsd": {"weight": {"psd": 1000.0, "csd": 10.0}, "temperature": 4.0}}
SKD_PI = {"kd": {"weight": 10.0, "reduction": "cross_entropy_sum"}}
SKD_PA = SKD_PI | {"skd_pairwise": {"weight": 0.5, "pooling": 0.5}}
SKD_HO = SKD_PA | {
    "adversarial": {
        **{"weight": {"student": 0.1, "discriminator": 0.1}, "objective": "wgan-gp", "order": "teacher_first"},
        **{"optimizer": "sgd", "weight_decay": 5e-4},
    },
}
# By method; CIRKD's rows have these unless `ROW_LOSSES` says otherwise.
LOSSES = {
    "baseline": {},
    "kd": {"kd": KD},
    "at": {"kd": KD, "at": {"weight": 10000.0}},
    "fitnet": {"kd": KD, "fitnet": {"weight": 10.0}},
    "skd": {"kd": KD, "skd_pairwise": {"weight": 10.0, "pooling": "max2"}, "adversarial": HINGE},
    "ifvd": {"kd": KD, "ifvd": {"weight": 20.0}, "adversarial": HINGE},
    "cwd": {
        "kd": KD,
        "cwd_features": cwd("features", 50.0, denominator="student"),
        "cwd_logits": cwd("logits", 3.0),
        "adversarial": HINGE,
    },
    "dsd": DSD,
    "cirkd": cirkd(),
    "dist": {
        "dist": {"weight": 1.0, "beta": 1.0, "gamma": 1.0, "temperature": 1.0},
        "dist_aux": {"type": "dist", "layer": "aux_logits", "weight": 0.4},
    },
    "cskd": cskd(),
    "cskd without positions": cskd(quirk=False, pam=0),
    "cskd without channels": cskd(cam=0),
    "pixel-wise (Pi)": SKD_PI,
    "Pi + pair-wise (Pa)": SKD_PA,
    "Pi + Pa + holistic (Ho)": SKD_HO,
    "the same, released model": SKD_HO,
    "AT": {"at": {"weight": 10000.0}},
    "Pi": {"kd": KD | PI},
    "Pa": {"skd_pairwise": {"weight": 10.0, "pooling": "max2"}},
    "IFVD": {"ifvd": {"weight": 20.0}},
    "Ho": {"adversarial": WGAN_GP},
    "CWD, features": {"cwd_features": cwd("features", 50.0)},
    "CWD, logits": {"cwd_logits": cwd("logits", 3.0)},
    "CWD, logits, with Pi and Ho": {
        "cwd_logits": cwd("logits", 3.0),
        "kd": PI,
        "adversarial": WGAN_GP,
    },
}
NO_DISCRIMINATOR = {
    (student, method): {name: loss for name, loss in LOSSES[method].items() if name != "adversarial"}
    for student in ("DeepLabV3-R18", "PSPNet-R18")
    for method in ("skd", "ifvd", "cwd")
}
ROW_LOSSES = {
    "Cityscapes, CIRKD": {
        ("DeepLabV3-R18", "af_dcd"): af_dcd(1.0, 2e-6, 0.005),
        ("DeepLabV3-MobileNetV2", "af_dcd"): af_dcd(1.0, 2e-6, 0.005),
        ("DeepLabV3-MobileNetV2", "dsd"): {"dsd": DSD["dsd"] | {"missing": "original"}},
    },
    "Cityscapes, SegFormer, CIRKD": {
        ("SegFormer-B0", "cirkd"): cirkd(pixel_memory=2000),
        ("SegFormer-B0", "cwd"): {
            "kd": KD,
            "cwd_features": cwd("features", 5.0, denominator="student"),
            "cwd_logits": cwd("logits", 0.3),
            "adversarial": HINGE,
        },
    },
    "Pascal VOC, CIRKD": {
        ("DeepLabV3-R18", "cirkd"): cirkd(0.01),
        ("PSPNet-R18", "cirkd"): cirkd(0.01),
        ("DeepLabV3-R18", "af_dcd"): af_dcd(1.0, 1e-6, 0.005),
        ("PSPNet-R18", "af_dcd"): af_dcd(1.0, 1e-6, 0.005),
    },
    "CamVid, CIRKD": {
        **NO_DISCRIMINATOR,
        ("DeepLabV3-R18", "af_dcd"): af_dcd(1.0, 8e-6, 0.01, pooling=1),
        ("PSPNet-R18", "af_dcd"): af_dcd(1.0, 8e-6, 0.01, pooling=1),
    },
    "ADE20K, CIRKD": {("DeepLabV3-R18", "af_dcd"): af_dcd(0.5, 1e-6, 0.04)},
    "COCO-Stuff 164K, CIRKD": {("DeepLabV3-R18", "af_dcd"): af_dcd(0.5, 5e-6, 0.005)},
    "Cityscapes, CIRKDv2": {
        ("DeepLabV3-R18", "cirkdv2"): cirkdv2(1),
        ("UperNet-R18 (lite)", "cirkdv2"): cirkdv2(1),
        ("DeepLabV3-MobileNetV3-S", "cirkdv2"): cirkdv2(1),
        ("PSPNet-MobileNetV3-S", "cirkdv2"): cirkdv2(10),
        ("DeepLabV3-MobileViT-XXS", "cirkdv2"): cirkdv2(10),
        ("PSPNet-MobileViT-XXS", "cirkdv2"): cirkdv2(1),
        ("SegFormer-B0", "cirkdv2"): cirkdv2(1, context=False, pixel_memory=2000),
    },
    "Pascal VOC, CIRKDv2": {
        ("DeepLabV3-MobileNetV3-S", "cirkdv2"): cirkdv2(10),
        ("DeepLabV3-MobileNetV3-L", "cirkdv2"): cirkdv2(10),
        ("PSPNet-MobileNetV3-S", "cirkdv2"): cirkdv2(10),
        ("PSPNet-MobileNetV3-L", "cirkdv2"): cirkdv2(10),
    },
    "ADE20K, CIRKDv2": {
        ("DeepLabV3-R18", "cirkdv2"): cirkdv2(1),
        ("UperNet-R18 (lite)", "cirkdv2"): cirkdv2(10),
        ("DeepLabV3-MobileNetV3-L", "cirkdv2"): cirkdv2(10),
        ("PSPNet-MobileNetV3-L", "cirkdv2"): cirkdv2(1),
    },
    "COCO-Stuff 164K, CIRKDv2": {
        ("DeepLabV3-R18", "cirkdv2"): cirkdv2(10),
        ("PSPNet-MobileNetV3-S", "cirkdv2"): cirkdv2(10),
        ("DeepLabV3-MobileNetV3-S", "cirkdv2"): cirkdv2(1),
        ("DeepLabV3-MobileNetV3-L", "cirkdv2"): cirkdv2(10),
    },
}
# Without a script of the original's: another framework, our own short schedules, examples.
WITHOUT_SCRIPT = (
    "Cityscapes, MMSegmentation's protocol",
    "CamVid, ESPNet",
    "CamVid, ESPNet students that start from the released baselines",
    "Teachers of the Hub",
)


def schedule(table: str, student: str, method: str, dataset: str) -> dict:
    """Everything that the row's script says about data, optimizer and selection."""
    rows = ROWS.get(table, {})
    own = rows.get((student, method, dataset), rows.get((student, method), {}))
    return COMMON | SCHEDULES[table] | own


def losses(table: str, student: str, method: str) -> dict:
    """The row's losses with the original's weights, layers and quirks; the task's cross-entropy is in all."""
    return {"task": {"weight": 1.0}, **ROW_LOSSES.get(table, {}).get((student, method), LOSSES.get(method, {}))}
