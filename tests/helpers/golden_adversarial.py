"""How the golden vectors of the discriminator and of adversarial training are run."""

import torch

from helpers.golden_folder import rule
from hf_segkd.losses import LossSetup
from hf_segkd.losses.adversarial import OBJECTIVES, AdversarialLoss
from hf_segkd.losses.discriminator import Discriminator
from hf_segkd.models import SegmentationOutput

# Names of our discriminator's parameters and buffers in the original.
MODULES = {
    "preprocess": "preprocess_additional",
    **{f"conv{index}": f"l{index}.0.module" for index in range(1, 5)},
    "attention1": "attn1",
    "attention2": "attn2",
    "score": "last.0",
}
SPECTRAL = {"weight": "weight_bar", "u": "weight_u", "v": "weight_v"}
PROJECTIONS = {name: f"{name}_conv" for name in ("query", "key", "value")}
PREPROCESSING = {1: "batch_norm", 2: "tanh", 3: "image"}
DETFILL = rule("losses/detfill.py")
ORDERS = {"teacher": "teacher_first", "student": "student_first"}


def original_name(key: str) -> str:
    module, rest = key.split(".", 1)
    first, *others = rest.split(".")
    inner = SPECTRAL if module.startswith("conv") else PROJECTIONS
    return ".".join([MODULES[module], inner.get(first, first), *others])


def drawn(tag, shape, hparams, dtype, scale=1.0):
    return (torch.from_numpy(DETFILL.det_normal(tag, shape, hparams["salt"])) * scale).to(dtype)


def fill(discriminator: Discriminator, hparams, dtype) -> Discriminator:
    """Give a discriminator the parameters and buffers that the original had."""
    value, salt = DETFILL.det_value, hparams["salt"]
    state = discriminator.to(dtype).state_dict()
    filled = {key: torch.from_numpy(value(original_name(key), x.shape, salt)) for key, x in state.items()}
    discriminator.load_state_dict({key: x.reshape(state[key].shape) for key, x in filled.items()}, strict=True)
    return discriminator


def sampled(x: torch.Tensor, key: str) -> dict[str, torch.Tensor]:
    return {f"{key}.l2": x.double().norm().to(x.dtype), f"{key}.head": x.flatten()[:4]}


def parameter_gradients(discriminator: Discriminator) -> dict[str, torch.Tensor]:
    found = {}
    for key, parameter in discriminator.named_parameters():
        if parameter.grad is not None:
            found |= sampled(parameter.grad, f"out.grad_param.{original_name(key)}")
    return found


def state(discriminator: Discriminator) -> dict[str, torch.Tensor]:
    return {f"after.{original_name(key)}": x for key, x in discriminator.state_dict().items()}


def losses(tensors, hparams):
    student, teacher = tensors["in.d_out_s"], tensors["in.d_out_t"]
    values = {"d_loss": OBJECTIVES[hparams["type"]](student, teacher), "g_loss": -student.mean()}
    (values["d_loss"] + 3 * values["g_loss"]).backward()
    found = {f"out.{name}": x.detach() for name, x in values.items()}
    return found | {"grad.in.d_out_s": student.grad, "grad.in.d_out_t": teacher.grad}


def discriminator(tensors, hparams):
    dtype = tensors["out.d_out"].dtype
    module = fill(Discriminator(hparams["C"], PREPROCESSING[hparams["preprocess_GAN_mode"]]), hparams, dtype)
    module.train(hparams["train"])
    x = drawn("x", hparams["shape"], hparams, dtype).requires_grad_()
    found = {}
    for name in ("attention1", "attention2"):
        watch_attention(module.get_submodule(name), name.replace("attention", "out.attn"), found)
    for _ in range(hparams["forwards"]):
        scores = module(x)
    scores.sum().backward()
    maps = {"out.attn1.sub": found.pop("out.attn1")[:, ::17, ::13], "out.attn2": found.pop("out.attn2")[:, ::3, ::2]}
    found = {"out.d_out": scores.detach(), "out.grad_x.sub": x.grad[..., ::7, ::5], "out.grad_x.sum": x.grad.sum()}
    return found | {"out.grad_x.l2": x.grad.norm()} | maps | parameter_gradients(module) | state(module)


def watch_attention(module, key, found):
    """Keep the attention matrix of the latest forward, formed from what the query and key layers return."""
    kept = {}

    def keep(layer, inputs, output):
        kept[layer] = output.detach().flatten(2)
        if module.query in kept and module.key in kept:
            found[key] = (kept[module.query].transpose(1, 2) @ kept[module.key]).softmax(dim=-1)

    for layer in (module.query, module.key):
        layer.register_forward_hook(keep)


def loss_for(student, teacher, hparams, **options):
    setup = LossSetup({"logits": student.shape}, num_labels=student.shape[1], teacher={"logits": teacher.shape})
    preprocessing = PREPROCESSING[hparams.get("preprocess_GAN_mode", 1)]
    loss = AdversarialLoss(setup, gradient_penalty=hparams["lambda_gp"], preprocessing=preprocessing, **options)
    fill(loss.discriminator, hparams, student.dtype)
    return loss


def penalty(tensors, hparams):
    dtype = tensors["out.loss"].dtype
    student = drawn("fake", hparams["shape"], hparams, dtype)
    teacher = drawn("real", hparams["shape"], hparams, dtype, 1.5)
    loss = loss_for(student, teacher, hparams)
    loss.train(hparams["train"])
    loss.draw_shares = lambda batch: tensors["rand.alpha"]
    value = loss.gradient_penalty * loss.penalty(student, teacher)
    value.backward()
    return {"out.loss": value.detach()} | parameter_gradients(loss.discriminator) | state(loss.discriminator)


def training(tensors, hparams):
    """Two players trained on a toy student; the one backward per step is that of the Distiller."""
    dtype, size = tensors["param.student.weight"].dtype, hparams["hw"]
    student = torch.nn.Conv2d(*tensors["param.student.weight"].shape[1::-1], kernel_size=1).to(dtype)
    student.load_state_dict({name: tensors[f"param.student.{name}"] for name in ("weight", "bias")})
    shape, found = (hparams["B"], hparams["C"], *size), {}
    options = {"objective": hparams["type"], "order": ORDERS[hparams.get("d_first", "student")]}
    decay = hparams["wd"] if hparams["d_optimizer"] == "sgd" else 0.0
    options |= {"optimizer": hparams["d_optimizer"], "learning_rate": hparams["lr_d"], "weight_decay": decay}
    loss = loss_for(torch.empty(shape, dtype=dtype), torch.empty(shape), hparams, **options)
    players = [torch.optim.SGD(student.parameters(), hparams["lr_g"], momentum=0.9, weight_decay=hparams["wd"])]
    players.append(loss.optimizer())
    for step in range(hparams["steps"]):
        loss.draw_shares = lambda batch, step=step: tensors[f"rand.alpha{step}"]
        logits = student(drawn(f"x{step}", (hparams["B"], student.in_channels, *size), hparams, dtype))
        teacher = drawn(f"t{step}", shape, hparams, dtype, 2.0)
        terms = loss(SegmentationOutput(logits=logits), SegmentationOutput(logits=teacher), None)
        # The original logs both sides' whole objectives, weights included.
        student_side = logits.square().mean() + hparams["lambda_adv"] * terms["student"]
        other_side = hparams["lambda_d"] * terms["discriminator"]
        (student_side + other_side).backward()
        for player in players:
            player.step()
            player.zero_grad()
        found |= {f"out.g_loss{step}": student_side.detach(), f"out.d_loss{step}": other_side.detach()}
    found |= {f"after.student.{name}": x.detach() for name, x in student.named_parameters()}
    for key, x in loss.discriminator.state_dict().items():
        found |= sampled(x, f"after.D.{original_name(key)}")
    return found


RUNS = {
    "adv_losses": losses,
    "sagan_d": discriminator,
    "sagan_gp": penalty,
    "adv_train_steps_true_gradient": training,
}
