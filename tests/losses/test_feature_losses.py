"""Feature and logit losses: cases that can be computed by hand, and what each variant promises."""

import pytest
import torch

from helpers.paths import ROOT
from hf_segkd.losses import LossSetup, build_losses, check_losses
from hf_segkd.losses import skd as skd_module
from hf_segkd.losses.cskd import cka_loss, position_attention
from hf_segkd.losses.functional.gram import gram
from hf_segkd.models import SegmentationOutput
from hf_segkd.recipe import load_yaml

RECIPES = sorted((ROOT / "hf_segkd/recipes/methods").glob("*.yaml"))
EXACT = {"rtol": 1e-10, "atol": 1e-12}


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def build(name, student, teacher, num_labels=2, **options):
    shapes = [{key: x.shape for key, x in output.items()} for output in (student, teacher)]
    modules, _ = build_losses({name: options}, LossSetup(shapes[0], num_labels=num_labels, teacher=shapes[1]))
    return modules[name].double()


def call(name, student, teacher, labels=None, **options):
    return build(name, student, teacher, **options)(student, teacher, labels)


@pytest.mark.parametrize("size", [(6, 8), (7, 8), (6, 9), (1, 1)])
def test_pooling_is_torchs(size):
    """The short cut for maps without gradient must keep every size and every maximum."""
    x = draw(2, 3, *size).relu()
    expected = torch.nn.functional.max_pool2d(x, 2, ceil_mode=True)
    assert torch.equal(skd_module.max_pool2(x), expected)
    assert torch.equal(skd_module.max_pool2(x.clone().requires_grad_()), expected)


def test_gram_has_the_gradient_of_the_product():
    """One product instead of two is right only for what autograd sends back, which need not be symmetric."""
    x, direction = draw(2, 3, 5).requires_grad_(), draw(2, 3, 3, seed=1)
    found, expected = (torch.autograd.grad(y, x, direction)[0] for y in (gram(x), x @ x.transpose(1, 2)))
    torch.testing.assert_close(found, expected, **EXACT)


def features(*tensors):
    return [SegmentationOutput(features=x) for x in tensors]


def logits(*tensors):
    return [SegmentationOutput(logits=x) for x in tensors]


def largest_saved(function, *inputs):
    """Elements of the largest tensor that autograd keeps for the backward of `function`."""
    sizes = [0]
    with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
        function(*inputs)
    return max(sizes)


def test_fitnet_is_the_mean_square_behind_its_projector_and_trains_it():
    """A sum, or a projector only for unequal channels, would not be the published loss."""
    student, teacher = features(torch.ones(1, 2, 2, 2).double(), torch.full((1, 2, 2, 2), 5.0).double())
    loss = build("fitnet", student, teacher)
    torch.nn.init.dirac_(loss.projector.weight)
    value = loss(student, teacher, None)
    value.backward()
    assert value.item() == 16 and loss.projector.weight.grad.abs().min() > 0


@pytest.mark.parametrize("sign, expected", [(1.0, 0.0), (-1.0, 2.0)])
def test_dist_of_two_classes_sees_only_which_class_is_ahead(sign, expected):
    """Two probabilities always correlate with ±1: confidence must not count, only the order."""
    ahead = torch.tensor([2.0, -1.0]).view(1, 2, 1, 1)
    assert call("dist", *logits(ahead, 1.5 * sign * ahead), gamma=0.0).item() == pytest.approx(expected, abs=1e-6)


def test_dist_temperature_divides_the_logits_and_scales_by_its_square():
    """Without temperature², a warmer softmax would weaken the gradient."""
    a, b = draw(2, 3, 4, 4), draw(2, 3, 4, 4, seed=1)
    cold, warm = call("dist", *logits(a, b)), call("dist", *logits(2 * a, 2 * b), temperature=2.0)
    assert warm.item() == pytest.approx(4 * cold.item(), rel=1e-10)


def test_ifvd_of_two_orthogonal_pixels_and_one_ignored():
    """Center (½, ½), cosine 1/√2 against the teacher's 1; the ignored pixel adds 0 but is counted in the mean."""
    student, teacher = features(torch.eye(2).double().repeat(1, 2)[None, :, None, :3], torch.ones(1, 2, 1, 3).double())
    value = call("ifvd", student, teacher, torch.tensor([[[1, 1, 255]]]))
    assert value.item() == pytest.approx(2 * (1 - 0.5**0.5) ** 2 / 3, rel=1e-5)


def test_ifvd_classes_are_per_image():
    """Centers over the batch would mix images that share a class: here each image is its own center."""
    student, teacher = features(draw(2, 3, 1, 1).expand(2, 3, 4, 4), torch.ones(2, 3, 4, 4).double())
    labels = torch.ones(2, 8, 8, dtype=torch.long)
    assert call("ifvd", student, teacher, labels).item() == pytest.approx(0, abs=1e-12)


def test_pairwise_of_equal_regions_against_orthogonal_ones():
    """All-ones against the identity similarity: 12 of 16 entries differ by 1."""
    orthogonal = torch.eye(4).double().view(1, 4, 2, 2).repeat_interleave(2, 2).repeat_interleave(2, 3)
    student, teacher = features(torch.ones(1, 3, 4, 4).double(), orthogonal)
    assert call("skd_pairwise", student, teacher).item() == pytest.approx(0.75)
    assert call("skd_pairwise", student, teacher, pooling=0.5).item() == pytest.approx(0.75, rel=1e-6)


def test_pairwise_gram_form_equals_the_direct_one(monkeypatch):
    """The cheap form is used for large maps only, where nobody would notice a wrong factor."""
    monkeypatch.setattr(skd_module, "TILE", 16)
    student, teacher = draw(2, 3, 40).requires_grad_(), draw(2, 5, 40, seed=1)
    value = skd_module.mean_squared_difference(student, teacher)
    direct = skd_module._direct(student, teacher) / (2 * 40**2)
    gradients = [torch.autograd.grad(x, student)[0] for x in (value, direct)]
    torch.testing.assert_close(value, direct, **EXACT)
    torch.testing.assert_close(*gradients, **EXACT)


def test_pairwise_is_accurate_for_a_student_that_is_nearly_the_teacher():
    """The three Gram terms cancel: in float32 alone the end of training would see noise, even a negative loss."""
    teacher = torch.nn.functional.normalize(draw(1, 8, 300), dim=1)
    for distance in (1e-1, 1e-2, 1e-3, 1e-4):
        student = torch.nn.functional.normalize(teacher + distance * draw(1, 8, 300, seed=1), dim=1)
        single, double = student.float().requires_grad_(), student.requires_grad_()
        found = skd_module.mean_squared_difference(single, teacher.float())
        exact = skd_module._direct(double, teacher) / 300**2
        # 1e-3: what the switch between the forms allows; the student itself is rounded to float32, too.
        assert found.item() == pytest.approx(exact.item(), rel=1e-3)
        (gradient,), (reference,) = torch.autograd.grad(found, single), torch.autograd.grad(exact, double)
        assert (gradient - reference).abs().max() < 1e-3 * reference.abs().max()


@pytest.mark.parametrize("noise", [1.0, 0.0], ids=["Gram form", "direct form"])
def test_pairwise_keeps_no_similarity_matrix(noise):
    """At 64 x 128 positions the N x N matrices of one batch take gigabytes."""
    teacher = draw(1, 4, 600).float()
    student = (teacher + noise * draw(1, 4, 600, seed=1).float()).requires_grad_()
    assert largest_saved(skd_module.mean_squared_difference, student, teacher) < 600 * 600 // 10


def three_maps(channels, seed, aux=True):
    maps = {"logits": draw(2, 3, 6, 5, seed=seed), "features": draw(2, channels, 6, 5, seed=seed + 1)}
    maps |= {"aux_logits": draw(2, 3, 6, 5, seed=seed + 2)} if aux else {}
    return SegmentationOutput(**{name: x.requires_grad_() for name, x in maps.items()})


def test_dsd_drops_what_one_side_lacks():
    """A teacher's auxiliary head has no counterpart in a mobile student: the rest must be compared as if alone."""
    student, teacher = three_maps(4, 0, aux=False), three_maps(5, 10)
    bare = SegmentationOutput(logits=teacher.logits, features=teacher.features)
    found, expected = call("dsd", student, teacher), call("dsd", student, bare)
    assert found["psd"].item() == expected["psd"].item() and found["csd"].item() == expected["csd"].item()


def test_dsd_original_list_teaches_the_features_only():
    """The original's constant pair drowns the gradient of the logits; its published runs had none."""
    student, teacher = three_maps(4, 0, aux=False), three_maps(5, 10)
    value = call("dsd", student, teacher, missing="original")
    assert value["psd"].item() != call("dsd", student, teacher)["psd"].item()
    sum(value.values()).backward()
    assert student.logits.grad.abs().max() == 0 and student.features.grad.abs().max() > 0


def test_dsd_ignores_the_scale_of_a_map():
    """Attention maps are unit vectors; student and teacher features may differ in size by any factor."""
    x = three_maps(4, 0)
    scaled = SegmentationOutput(logits=x.logits, features=3 * x.features, aux_logits=7 * x.aux_logits)
    assert call("dsd", scaled, x)["psd"].item() == pytest.approx(0, abs=1e-15)


def test_dsd_brings_maps_of_all_sizes_to_the_logits_of_the_student():
    """ESPNet's logits are as large as the image, its features an eighth: the originals need equal sizes."""
    student, teacher = three_maps(4, 0), three_maps(5, 10)
    small = SegmentationOutput(logits=student.logits, features=student.features[..., :3, :3])
    value = call("dsd", small, teacher)
    sum(value.values()).backward()
    assert all(x.isfinite() for x in value.values()) and student.features.grad[..., :3, :3].abs().min() > 0


def test_dsd_without_two_shared_maps_is_refused():
    """With logits alone there is no pair: the loss would be constant zero."""
    alone = SegmentationOutput(logits=draw(1, 3, 4, 4))
    with pytest.raises(ValueError, match="share only logits"):
        call("dsd", alone, alone)


def test_cwd_spatial_is_pixel_wise_kd():
    """Softmax over the classes of each position, with temperature² and a mean over positions: the same loss."""
    student, teacher = logits(draw(2, 3, 4, 5), draw(2, 3, 4, 5, seed=1))
    found = call("cwd", student, teacher, layer="logits", norm="spatial", temperature=2.0)
    torch.testing.assert_close(found, call("kd", student, teacher, temperature=2.0), **EXACT)


def test_cwd_channel_mean_is_the_squared_difference_of_means_at_any_temperature():
    """Dividing by the temperature and multiplying by its square must cancel; the mean is over B and C."""
    student, teacher = features(torch.full((2, 3, 4, 4), 5.0).double(), torch.full((2, 3, 4, 4), 2.0).double())
    for temperature in (1.0, 4.0):
        value = call("cwd", student, teacher, norm="channel_mean", divergence="mse", temperature=temperature)
        assert value.item() == pytest.approx(9)


def test_kd_upsampling_leaves_constant_maps_alone():
    """A sum that grows with the 64 times larger map would change the weight's meaning."""
    student, teacher = logits(draw(2, 3, 1, 1).expand(2, 3, 4, 4), draw(2, 3, 1, 1, seed=1).expand(2, 3, 4, 4))
    for reduction in ("pixel", "element"):
        values = [call("kd", student, teacher, reduction=reduction, upsample=factor) for factor in (1, 8)]
        torch.testing.assert_close(*values, **EXACT)


def test_cka_ignores_rotation_scale_and_offset():
    """Only how images resemble each other counts: otherwise unequal channels could not be compared."""
    x = draw(4, 6)
    rotation = torch.linalg.qr(draw(6, 6, seed=1))[0]
    assert cka_loss(x, 3 * x @ rotation + 2).item() == pytest.approx(0, abs=1e-7)
    assert cka_loss(x, draw(4, 6, seed=2)).item() > 0.01


def test_cskd_of_the_teacher_itself_is_zero_and_gammas_reach_both_sides():
    """Without gamma, the attentions do not count at the start; with it, the fixed projections serve both models."""
    student, teacher = features(draw(3, 8, 6, 7), draw(3, 8, 6, 7))
    loss = build("cskd", student, teacher)
    assert all(value.item() == pytest.approx(0, abs=1e-7) for value in loss(student, teacher, None).values())
    sum(loss(*features(draw(3, 8, 6, 7, seed=1)), teacher, None).values()).backward()
    assert all(gamma.grad.abs().item() > 0 for gamma in loss.gammas.values())


def test_cskd_needs_three_images_for_cka_but_one_for_mse():
    """Two images are always aligned: the loss would be 0 and teach nothing, silently."""
    student, teacher = features(draw(2, 8, 6, 6), draw(2, 9, 6, 6, seed=1))
    with pytest.raises(ValueError, match="at least 3 on each device, got 2"):
        call("cskd", student, teacher)
    assert set(call("cskd", student, teacher, comparison="mse")) == {"cam", "pam"}


def test_cskd_projections_are_fixed_and_saved_learned_or_drawn():
    """Projections that change at a resume would break the alignment that gamma has learned."""
    student, teacher = features(draw(3, 8, 6, 6), draw(3, 9, 6, 6, seed=1))
    fixed, again = (build("cskd", student, teacher) for _ in range(2))
    assert torch.equal(fixed.student_projection, again.student_projection)
    assert {"student_projection", "teacher_projection"} <= set(fixed.state_dict())
    assert not fixed.student_projection.requires_grad
    assert build("cskd", student, teacher, pam_projection="learned").student_projection.requires_grad
    drawn = build("cskd", student, teacher, pam_projection="resample")
    assert list(drawn.state_dict()) == ["gammas.cam", "gammas.pam"]
    torch.nn.init.ones_(drawn.gammas["pam"])
    assert len({drawn(student, teacher, None)["pam"].item() for _ in range(3)}) == 3


def test_cskd_grid_is_five_by_five_or_what_a_small_map_allows():
    """Pieces hold ⌈h/5⌉ rows: 6 rows make 3 pieces, and the mean runs over those that exist."""
    student, teacher = features(draw(3, 8, 6, 10), draw(3, 8, 6, 10, seed=1))
    loss = build("cskd", student, teacher)
    assert [tuple(p.shape[2:]) for p in loss.patches("student", student.features)] == [(2, 2)] * 15


@pytest.mark.parametrize("channels", [16, 13, 21, 4])
def test_position_attention_equals_the_dense_form(channels):
    """Values are cut into heads of the query's width and padded when it does not divide the channels."""
    x, width = draw(2, channels, 3, 4), max(1, channels // 8)
    projection = draw(2 * width + channels, channels + 1, seed=1) / 4
    mixed = projection @ torch.cat([x.flatten(2), torch.ones(2, 1, 12).double()], dim=1)
    query, key, value = mixed.split([width, width, channels], dim=1)
    weights = (query.transpose(1, 2) @ key / 2).softmax(dim=-1)
    dense = 0.5 * (value @ weights.transpose(1, 2)).view_as(x) + x
    torch.testing.assert_close(position_attention(x, projection, torch.tensor(0.5).double(), 2.0), dense, **EXACT)


def test_position_attention_keeps_no_similarity_matrix():
    """On a whole 64 x 128 map the matrix of one image takes 256 MiB."""
    x, projection = draw(1, 16, 20, 30).float().requires_grad_(), draw(20, 17, seed=1).float()
    gamma = torch.ones(1, requires_grad=True)
    assert largest_saved(position_attention, x, projection, gamma, 1.0) < 600 * 600 // 4


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("dist", {"temperature": 0}, "temperature must be positive"),
        ("dsd", {"temperature": 0}, "temperature must be positive"),
        ("dsd", {"missing": "keep"}, "missing must be"),
        ("skd_pairwise", {"pooling": "max4"}, "pooling must be"),
        ("skd_pairwise", {"pooling": 2}, "pooling must be"),
        ("cwd", {"norm": "none"}, "norm must be"),
        ("cwd", {"divergence": "js"}, "divergence must be"),
        ("cwd", {"norm": "channel_mean"}, "has no KL"),
        ("kd", {"upsample": 0.5}, "upsample must be"),
        ("cskd", {"terms": ["cam", "pan"]}, "terms must be"),
        ("cskd", {"grid": 0}, "grid must be"),
        ("cskd", {"comparison": "cosine"}, "comparison must be"),
        ("cskd", {"temperature": -1.0}, "temperature must be positive"),
        ("cskd", {"pam_projection": "random"}, "pam_projection must be"),
    ],
)
def test_wrong_options_are_refused(name, options, message):
    """A typo in a recipe must not train something else."""
    output = three_maps(4, 0)
    with pytest.raises(ValueError, match=message):
        call(name, output, output, **options)


@pytest.mark.parametrize("name", ["dist", "dsd"])
def test_logit_losses_refuse_other_classes(name):
    """Class k of one model is not class k of the other: a correlation would mean nothing, or crash in mid-run."""
    teacher = SegmentationOutput(logits=draw(2, 4, 6, 5), features=draw(2, 4, 6, 5))
    with pytest.raises(ValueError, match="same classes"):
        call(name, three_maps(4, 0), teacher)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_method_recipes_name_existing_losses_and_options(path):
    """A recipe that no test reads fails on the user's machine."""
    text = path.read_text()
    check_losses(load_yaml(text)["losses"])
    assert text.startswith("# ")
