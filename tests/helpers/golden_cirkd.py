"""How the golden vectors of CIRKD and CIRKDv2 are run: several steps on one module, with the recorded draws."""

import torch

import hf_segkd.losses.cirkd as cirkd
from helpers.golden_folder import rule
from hf_segkd.losses import LossSetup
from hf_segkd.losses.cirkd import CIRKDMemoryLoss, CIRKDMiniBatchLoss
from hf_segkd.losses.cirkdv2 import ChannelRelations, CIRKDv2Loss, ContextBlock
from hf_segkd.losses.kd import KDLoss
from hf_segkd.models import SegmentationOutput

# Names of the original's parameters, buffers and outputs in our modules.
MEMORY = {
    "project_head": "head",
    "teacher_segment_queue": "region_queue",
    "segment_queue_ptr": "region_pointer",
    "teacher_pixel_queue": "pixel_queue",
    "pixel_queue_ptr": "pixel_pointer",
}
CHANNEL = {"project_head": "head", "teacher_channel_queue": "queue", "channel_queue_ptr": "pointer"}
CONTEXT = {"node_q": "query", "node_k": "key", "node_v": "value", "conv1": "context", "out_conv": "fuse"}
PIPELINE = (
    {f"gcn.{old}": f"context.{new}" for old, new in CONTEXT.items()}
    | {"fitnet.conv": "projector"}
    | {f"memory.{old}": f"memory.{new}" for old, new in MEMORY.items()}
    | {f"channel.{old}": f"channel.{new}" for old, new in CHANNEL.items()}
)
CHANNEL_TERMS = {"minibatch": "minibatch_channel", "memory": "memory_channel", "mse": "channel_kd"}


def setup(tensors, hparams, student="in.step0.feat_s", teacher="in.step0.feat_t") -> LossSetup:
    return LossSetup(
        {"features": tensors[student].shape},
        num_labels=hparams.get("classes", 1),
        teacher={"features": tensors[teacher].shape},
        ignore_index=hparams.get("ignore_index", -1),
    )


def own_name(key: str, names: dict[str, str]) -> str:
    old = next(old for old in names if key == old or key.startswith(f"{old}."))
    return names[old] + key.removeprefix(old)


def prepare(module, tensors, names):
    """Load parameters and buffers of the golden file; return the golden names of all of ours that it has."""
    dtype = next(x.dtype for key, x in tensors.items() if x.is_floating_point())
    module.to(dtype)
    golden = [key for key in tensors if key.startswith(("param.", "buf."))]
    state = {own_name(key.split(".", 1)[1], names): tensors[key].detach() for key in golden}
    known = module.state_dict()
    assert all(known[name].shape == x.shape for name, x in state.items())
    module.load_state_dict(state | {key: x for key, x in known.items() if key not in state}, strict=True)
    return module


def gradients(module, tensors, prefix, names, inputs="in."):
    """Gradients that the golden file has under `prefix`, by golden key; the module's are cleared afterwards."""
    own, found = dict(module.named_parameters()), {}
    for key in tensors:
        if key.startswith(f"{prefix}.param."):
            parameter = own[own_name(key.removeprefix(f"{prefix}.param."), names)]
            found[key] = parameter.grad.clone()
        elif key.startswith(f"{prefix}."):
            found[key] = tensors[key.removeprefix(f"{prefix}.").replace("in.", inputs, 1)].grad
    module.zero_grad()
    return found


def after(module, tensors, names, prefix="after."):
    state = module.state_dict()
    return {key: state[own_name(key.removeprefix(prefix), names)] for key in tensors if key.startswith(prefix)}


def priorities(labels, permutation, classes):
    """Numbers that make our sort take the pixels in the recorded order; `permutation(image, class)` may be `None`."""
    values = torch.zeros(labels.shape)
    for image, row in enumerate(labels):
        for k in [int(k) for k in row.unique() if k < classes]:
            positions, order = (row == k).nonzero().flatten(), permutation(image, k)
            values[image, positions[order]] = torch.arange(len(order)) / len(order)
    return values


def memory_loss(shapes, hparams, sampling):
    return CIRKDMemoryLoss(
        shapes,
        pixel_memory=hparams["pixel_memory"],
        region_memory=hparams["region_memory"],
        pixel_samples=hparams["pixel_contrast"],
        region_samples=hparams["region_contrast"],
        temperature=hparams["contrast_temperature"],
        kd_temperature=hparams["contrast_kd_temperature"],
        sampling=sampling,
    )


def replay(loss, tensors, prefix):
    """Let a memory loss draw what the original drew in the step under `prefix`."""

    def draw_priorities(labels):
        order = lambda image, k: tensors[f"{prefix}.enqueue.image{image}.class{k}"]  # noqa: E731
        return priorities(labels, order, loss.setup.num_labels)

    loss.draw_priorities = draw_priorities
    loss.draw_slots = lambda name, size: tensors[f"{prefix}.{name}_index"]


def memory(sampling):
    def run(tensors, hparams, monkeypatch):
        loss, found = memory_loss(setup(tensors, hparams), hparams, sampling), {}
        prepare(loss, tensors, MEMORY)
        for step in range(hparams["steps"]):
            replay(loss, tensors, f"rand.step{step}")
            student, teacher, labels = (tensors[f"in.step{step}.{x}"] for x in ("feat_s", "feat_t", "labels"))
            terms = loss(SegmentationOutput(features=student), SegmentationOutput(features=teacher), labels)
            sum(w * terms[name] for w, name in zip(hparams["w"], ("pixel", "region"), strict=True)).backward()
            found |= {f"out.step{step}.{name}": x.detach() for name, x in terms.items()}
            found |= gradients(loss, tensors, f"grad.step{step}", MEMORY)
        return found | after(loss, tensors, MEMORY)

    return run


def memory_ranks(tensors, hparams, monkeypatch):
    """Each process of the original drew for all gathered images itself, so ours replays those draws for its peers."""
    ranks, found = sorted({key.split(".")[1] for key in tensors if key.startswith("in.rank")}), {}
    for rank in ranks:
        shapes = setup(tensors, hparams, f"in.{rank}.feat_s", f"in.{rank}.feat_t")
        loss = prepare(memory_loss(shapes, hparams, "original"), tensors, MEMORY)
        sent = [replayed_choice(loss, tensors, rank, peer, ranks) for peer in ranks]
        gathered = iter([torch.cat(parts) for parts in zip(*sent, strict=True)])
        monkeypatch.setattr(cirkd, "gather", lambda x, gathered=gathered: next(gathered))
        loss.draw_priorities = lambda labels: torch.zeros(labels.shape)
        loss.draw_slots = lambda name, size, rank=rank: tensors[f"rand.{rank}.{name}_index"]
        student, teacher, labels = (tensors[f"in.{rank}.{x}"] for x in ("feat_s", "feat_t", "labels"))
        terms = loss(SegmentationOutput(features=student), SegmentationOutput(features=teacher), labels)
        sum(w * terms[name] for w, name in zip(hparams["w"], ("pixel", "region"), strict=True)).backward()
        found |= {f"out.{rank}.{name}": x.detach() for name, x in terms.items()}
        found |= gradients(loss, tensors, f"grad.{rank}", MEMORY, f"in.{rank}.")
        found |= after(loss, tensors, MEMORY, f"after.{rank}.")
    return found


def replayed_choice(loss, tensors, rank, peer, ranks):
    """What `peer` sends, chosen with the draws that `rank` made; calls are numbered by image and class over all."""
    size, classes = tensors[f"in.{peer}.feat_t"].shape[-2:], loss.setup.num_labels
    recorded, orders = iter(sorted(key for key in tensors if key.startswith(f"rand.{rank}.enqueue."))), {}
    for other in ranks:
        for image, row in enumerate(loss._labels_of(tensors[f"in.{other}.labels"], size)):
            present = [int(k) for k in row.unique() if k < classes]
            orders |= {(other, image, k): tensors[next(recorded)] for k in present}
    loss.draw_priorities = lambda labels: priorities(labels, lambda *at: orders[(peer, *at)], classes)
    labels = loss._labels_of(tensors[f"in.{peer}.labels"], size)
    return loss.choose(cirkd.unit_pixels(tensors[f"in.{peer}.feat_t"]), labels)


def channel(tensors, hparams, monkeypatch):
    module = ChannelRelations(
        setup(tensors, hparams),
        hparams["channel_memory"],
        hparams["channel_contrast"],
        hparams["contrast_temperature"],
        hparams["contrast_kd_temperature"],
    )
    prepare(module, tensors, CHANNEL)
    found = {}
    for step in range(hparams["steps"]):
        module.draw_rows = lambda size, step=step: tensors[f"rand.step{step}.enqueue"]
        module.draw_slots = lambda size, step=step: tensors[f"rand.step{step}.channel_index"]
        terms = module(tensors[f"in.step{step}.feat_s"], tensors[f"in.step{step}.feat_t"])
        sum(w * terms[name] for w, name in zip(hparams["w"], CHANNEL_TERMS.values(), strict=True)).backward()
        found |= {f"out.step{step}.{old}": terms[new].detach() for old, new in CHANNEL_TERMS.items()}
        found |= gradients(module, tensors, f"grad.step{step}", CHANNEL)
    return found | after(module, tensors, CHANNEL)


def context(tensors, hparams, monkeypatch):
    block = prepare(ContextBlock(hparams["plane"]), tensors, CONTEXT).train(hparams["train"])
    y = block(tensors["in.x"])
    (y * tensors["in.cotangent"]).sum().backward()
    return {"out.y": y.detach()} | gradients(block, tensors, "grad", CONTEXT) | after(block, tensors, CONTEXT)


def pipeline(tensors, hparams, monkeypatch):
    weights, shapes = hparams["lambdas"], setup(tensors, hparams, "in.feat_s", "in.feat_t")
    loss = CIRKDv2Loss(
        shapes,
        pixel_memory=hparams["pixel_memory"],
        region_memory=hparams["region_memory"],
        pixel_samples=hparams["pixel_contrast"],
        region_samples=hparams["region_contrast"],
        channel_memory=hparams["channel_memory"],
        channel_samples=hparams["channel_contrast"],
        temperature=hparams["contrast_temperature"],
        kd_temperature=hparams["contrast_kd_temperature"],
        sampling="original",
    )
    prepare(loss, tensors, PIPELINE)
    if not weights["fitnet"]:
        loss.context = torch.nn.Identity()
    replay(loss.memory, tensors, "rand")
    loss.channel.draw_rows = lambda size: tensors["rand.channel_enqueue"]
    loss.channel.draw_slots = lambda size: tensors["rand.channel_index"]
    fields = {"logits": "logits", "features": "feat"}
    student, teacher = (
        SegmentationOutput(**{field: tensors[f"in.{name}_{side}"] for field, name in fields.items()}) for side in "st"
    )
    logits = LossSetup({"logits": student.logits.shape}, hparams["classes"], {"logits": teacher.logits.shape})
    terms = {"kd": KDLoss(logits)(student, teacher, None)} | loss(student, teacher, tensors["in.labels"])
    total = sum(weights[name] * x for name, x in terms.items())
    total.backward()
    found = {f"out.{name}": x.detach() for name, x in (terms | {"total": total}).items() if weights.get(name, 1)}
    return found | gradients(loss, tensors, "grad", PIPELINE)


def minibatch(tensors, hparams, monkeypatch):
    """Value and gradient of a mini-batch case; of big ones the strided sample and norm that were kept."""
    if hparams.get("formula"):
        student, teacher = formula_maps(tensors["out.loss"].dtype, hparams)
        tensors["in.feat_s"], tensors["in.feat_t"] = student.requires_grad_(), teacher
    student, teacher = tensors["in.feat_s"], tensors["in.feat_t"]
    pooling = "auto" if hparams["variant"] == "cirkd" else 2 if hparams.get("pooling") else 1
    shapes = setup(tensors, hparams, "in.feat_s", "in.feat_t")
    loss = CIRKDMiniBatchLoss(shapes, hparams["temperature"], pooling)
    value = loss(SegmentationOutput(features=student), SegmentationOutput(features=teacher), None)
    value.backward()
    grad = tensors["in.feat_s"].grad
    values = {"out.loss": value.detach(), "grad.in.feat_s": grad}
    values |= {"out.grad_s.sub": grad[..., ::37, ::29], "out.grad_s.l2": grad.norm()}
    return {key: x for key, x in values.items() if key in tensors}


def formula_maps(dtype, hparams):
    """The inputs that are stored as a formula, made by the golden folder's own script."""
    detfill = rule("losses/detfill.py")
    shapes = ((tag, (hparams["B"], hparams[f"C{tag}"], *hparams["hw"])) for tag in "st")
    return [torch.from_numpy(detfill.det_normal(tag, shape, hparams["salt"])).to(dtype) for tag, shape in shapes]


RUNS = {
    "cirkd_minibatch": minibatch,
    "cirkd_memory": memory("original"),
    "cirkd_memory_own_pixels": memory("own"),
    "cirkd_memory_2ranks": memory_ranks,
    "cirkdv2_channel": channel,
    "gcn": context,
    "cirkdv2_pipeline": pipeline,
}
