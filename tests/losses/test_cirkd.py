"""CIRKD and CIRKDv2: golden values, gradients and queues over several steps, and the rules of the queues."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from helpers import golden_cirkd as golden
from helpers.golden_losses import assert_reproduced, cases, load
from hf_segkd.distributed import gather, rank, world_size
from hf_segkd.losses import LossSetup, cirkd, draws
from hf_segkd.losses.cirkd import CIRKDMemoryLoss, CIRKDMiniBatchLoss
from hf_segkd.losses.cirkdv2 import ChannelRelations, CIRKDv2Loss, ContextBlock
from hf_segkd.models import SegmentationOutput

K, CHANNELS = 3, 4
SETUP = LossSetup({"features": (1, 2, 8, 8)}, num_labels=K, teacher={"features": (1, CHANNELS, 8, 8)})


def maps(batch=2, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (torch.randn(batch, c, 8, 8, generator=generator, dtype=dtype) for c in (2, CHANNELS))
    return student.requires_grad_(), teacher, torch.randint(0, K, (batch, 32, 32), generator=generator)


def memory(seed=0, **options):
    torch.manual_seed(0)
    sizes = {"pixel_memory": 40, "region_memory": 6, "pixel_samples": 5, "region_samples": 3}
    return CIRKDMemoryLoss(replace(SETUP, seed=seed), **(sizes | options))


def call(loss, student, teacher, labels):
    return loss(SegmentationOutput(features=student), SegmentationOutput(features=teacher), labels)


@pytest.mark.golden
@pytest.mark.parametrize("case", cases(golden.RUNS), ids=lambda case: case["name"])
def test_every_step_has_the_values_gradients_and_state_of_the_original(case, monkeypatch):
    """A queue that is written one slot off trains on, with other keys, and no single step would show it."""
    tensors = load(case)
    for key in tensors:
        if key.startswith("in.") and key.endswith("feat_s"):
            tensors[key].requires_grad_()
    found = golden.RUNS[case["method"]](tensors, case["hparams"], monkeypatch)
    zero = {f"out.{name}" for name, weight in case["hparams"].get("lambdas", {}).items() if not weight}
    assert_reproduced(case, {key: x for key, x in tensors.items() if key not in zero}, found)


@pytest.mark.parametrize(
    "pointer, count, slots, moved",
    [(0, 2, [0, 1], 2), (3, 2, [3, 4], 0), (2, 3, [2, 3, 4], 0), (4, 3, [2, 3, 4], 0)],
    ids=["free", "exact fit", "exact fit of three", "overflow"],
)
def test_a_ring_never_splits_a_block(pointer, count, slots, moved):
    """Exact fits and overflows both fill the last slots and restart, as the original's queues do."""
    queue, pointers = torch.zeros(2, 5, 1), torch.tensor([pointer, 1])
    rows = torch.tensor([1.0, 2.0, 3.0]).view(1, 3, 1).expand(2, -1, -1)
    cirkd.write_rows(queue, pointers, rows, torch.tensor([count, 0]))
    assert queue[0].nonzero()[:, 0].tolist() == slots and queue[0].max() == count
    assert pointers.tolist() == [moved, 1] and not queue[1].any(), "a class without pixels must not change"


def test_a_class_queue_takes_pixels_of_its_class_and_its_mean():
    """CIRKD's code fills the queue of `road` with what lies at the top of the image: sky."""
    _, teacher, labels = maps(batch=1)
    labels[:, :16], labels[:, 16:] = 0, 1
    teacher = torch.zeros_like(teacher)
    teacher[:, 0, :4], teacher[:, 1, 4:] = 1.0, 1.0
    for sampling, axis in (("own", 1), ("original", 0)):
        loss = memory(sampling=sampling)
        call(loss, maps(batch=1)[0], teacher, labels)
        assert torch.equal(loss.pixel_queue[1, :16], F.one_hot(torch.tensor([axis] * 16), CHANNELS).float())
        assert torch.equal(loss.region_queue[1, 0], F.one_hot(torch.tensor(1), CHANNELS).float())
        assert loss.pixel_pointer.tolist() == [16, 16, 0] and loss.region_pointer.tolist() == [1, 1, 0]


def test_memory_loss_without_a_labeled_pixel_is_zero_and_leaves_the_queues():
    """The original returns NaN there, which one unlabeled crop turns into a lost run."""
    loss, (student, teacher, labels) = memory(), maps()
    before = loss.pixel_queue.clone()
    terms = call(loss, student, teacher, torch.full_like(labels, 255))
    sum(terms.values()).backward()
    assert [x.item() for x in terms.values()] == [0.0, 0.0] and not student.grad.any()
    assert torch.equal(loss.pixel_queue, before)


def test_labels_that_are_no_class_are_ignored():
    """A label of K or more would index past the queues."""
    results = []
    for value in (255, K, 200):
        student, teacher, labels = maps()
        labels[:, :16] = value
        results.append(call(memory(), student, teacher, labels)["pixel"].item())
    assert results[0] == results[1] == results[2]


def test_a_class_that_is_ignored_enters_no_queue():
    """The ignore label may lie among the classes; its pixels must be neither keys nor anchors."""
    setup = LossSetup(SETUP.student, num_labels=K, teacher=SETUP.teacher, ignore_index=1)
    loss, (student, teacher, labels) = CIRKDMemoryLoss(setup, pixel_memory=40, region_memory=6), maps()
    call(loss, student, teacher, labels)
    assert loss.region_pointer.tolist() == [2, 0, 2]
    terms = call(loss, student, teacher, torch.ones_like(labels))
    assert [x.item() for x in terms.values()] == [0.0, 0.0]


def test_draws_and_queues_resume_from_the_state_dict():
    """A resumed run that draws other keys is another run."""
    first, (student, teacher, labels) = memory(), maps()
    call(first, student, teacher, labels)
    second = memory(seed=0)
    second.load_state_dict(first.state_dict(), strict=True)
    a, b = call(first, student, teacher, labels), call(second, student, teacher, labels)
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert all(torch.equal(x, second.state_dict()[key]) for key, x in first.state_dict().items())


def test_seed_alone_decides_queues_and_draws():
    """The global generator would tie the keys to dropout, and give each process queues of its own."""
    torch.manual_seed(1)
    a = memory(seed=3)
    torch.rand(5)
    b, c = memory(seed=3), memory(seed=4)
    assert torch.equal(a.pixel_queue, b.pixel_queue) and not torch.equal(a.pixel_queue, c.pixel_queue)
    assert torch.equal(a.draw_slots("pixel", 40), b.draw_slots("pixel", 40))


def test_processes_draw_apart_what_is_theirs_and_together_what_is_shared(monkeypatch):
    """The same masks and pixels in all processes are fewer than the batch suggests; queues that differ never meet."""
    drawn = []
    for process in (0, 1):
        monkeypatch.setattr(draws, "rank", lambda process=process: process)
        source = draws.SeededDraws(seed=0)
        shared = source.unit_rows((2, 5, 4), "float32"), source.permutation(50, shared=True)
        drawn.append((*shared, source.permutation(50), source.uniform((50,))))
    assert [torch.equal(a, b) for a, b in zip(*drawn, strict=True)] == [True, True, False, False]


def test_queues_of_two_processes_stay_equal(monkeypatch):
    """Without the exchange every process would train against its own memory."""
    losses, batches = [memory(), memory()], [maps(seed=1), maps(seed=2)]
    sent = []
    for process, (loss, (_, teacher, labels)) in enumerate(zip(losses, batches, strict=True)):
        monkeypatch.setattr(draws, "rank", lambda process=process: process)
        sent.append(loss.choose(cirkd.unit_pixels(teacher), loss._labels_of(labels, (8, 8))))
    assert not torch.equal(sent[0][0], sent[1][0])
    for loss in losses:
        loss._enqueue(*(torch.cat(x) for x in zip(*sent, strict=True)))
    assert torch.equal(losses[0].pixel_queue, losses[1].pixel_queue)
    assert losses[0].region_pointer.tolist() == losses[1].region_pointer.tolist() == [4, 4, 4]


def test_gather_in_one_process_is_the_tensor_without_graph():
    """Training on one device must need no process group, and no gradient may flow between processes."""
    x = torch.ones(2, 3, requires_grad=True)
    assert torch.equal(gather(x), x) and not gather(x).requires_grad and (world_size(), rank()) == (1, 0)


def test_half_precision_memory_stays_close_and_small():
    """With 150 classes the queues fill a GPU in float32; rounding keys must not change what is learned."""
    student, teacher, labels = maps()
    full, half = memory(), memory(memory_dtype="float16")
    assert half.pixel_queue.dtype == torch.float16
    a, b = call(full, student, teacher, labels), call(half, student, teacher, labels)
    assert all(a[name].item() == pytest.approx(b[name].item(), rel=1e-2) for name in a)


def test_mini_batch_loss_is_zero_for_features_of_equal_angles():
    """Only relations count: scaling and rotating the teacher's space must not matter."""
    teacher = maps()[1].double()
    rotation = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64))[0]
    student = 3 * torch.einsum("dc,bchw->bdhw", rotation, teacher)
    setup = LossSetup({"features": (1, 4, 8, 8)}, num_labels=K, teacher={"features": (1, 4, 8, 8)})
    assert call(CIRKDMiniBatchLoss(setup), student, teacher, None).item() == pytest.approx(0, abs=1e-12)


def test_context_block_equals_the_written_out_attention():
    """SDPA's own scale must be the published 1/sqrt(C/2)."""
    block, x = ContextBlock(4).double().eval(), torch.randn(2, 4, 3, 5, dtype=torch.float64)
    query, key, value = (layer(x).flatten(2) for layer in (block.query, block.key, block.value))
    weights = (query.transpose(1, 2) @ key / 2**0.5).softmax(dim=-1)
    attended = (value @ weights.transpose(1, 2)).view(2, 2, 3, 5)
    assert torch.allclose(block(x), block.fuse(torch.cat([x, block.context(attended)], dim=1)), atol=1e-12)


def test_channel_queue_rounds_odd_sizes_up():
    """The original divides h·w by 16 and crashes for every crop that is not a multiple of 32 pixels."""
    setup = LossSetup({"features": (1, 2, 7, 9)}, num_labels=K, teacher={"features": (1, CHANNELS, 7, 9)})
    channel = ChannelRelations(setup, memory=20, samples=5)
    terms = channel(torch.randn(2, 2, 7, 9), torch.randn(2, CHANNELS, 7, 9))
    assert channel.queue.shape == (20, 6) and channel.pointer.item() == 8 and all(x > 0 for x in terms.values())
    with pytest.raises(ValueError, match="made for maps of 7x9, got 8x8"):
        channel(torch.randn(2, 2, 8, 8), torch.randn(2, CHANNELS, 8, 8))


def test_channel_memory_term_equals_the_written_out_formula():
    """The distillation temperature divides the logits and multiplies the loss by its square."""
    channel = ChannelRelations(SETUP, memory=20, samples=20, kd_temperature=2.0).double().eval()
    student_map, teacher_map, _ = maps(dtype=torch.float64)
    term = channel(student_map, teacher_map)["memory_channel"]
    student, teacher = channel.head(F.avg_pool2d(student_map, 4)), F.avg_pool2d(teacher_map, 4)
    student, teacher = (F.normalize(x.flatten(2), dim=-1).flatten(0, 1) for x in (student, teacher))
    log_s, log_t = ((x @ channel.queue.T / (0.1 * 2.0)).log_softmax(dim=1) for x in (student, teacher))
    assert term.item() == pytest.approx(4 * F.kl_div(log_s, log_t, log_target=True, reduction="batchmean").item())


def test_cirkdv2_names_its_terms_and_reaches_every_parameter():
    """A parameter without gradient stops distributed training; a renamed term loses its weight."""
    loss, (student, teacher, labels) = CIRKDv2Loss(SETUP, pixel_memory=40, region_memory=6), maps()
    terms = call(loss, student, teacher, labels)
    sum(terms.values()).backward()
    names = "fitnet minibatch_pixel memory_pixel memory_region minibatch_channel memory_channel channel_kd"
    assert list(terms) == names.split()
    assert all(x.grad is not None and x.grad.isfinite().all() for x in loss.parameters())


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: CIRKDMiniBatchLoss(SETUP, temperature=0), "temperature must be positive, got 0"),
        (lambda: CIRKDMiniBatchLoss(SETUP, pooling=0), "pooling must be positive, got 0"),
        (lambda: memory(pixel_memory=0), "pixel_memory must be positive, got 0"),
        (lambda: memory(sampling="all"), "sampling must be one of 'own', 'original', got 'all'"),
        (
            lambda: memory(memory_dtype="int8"),
            "memory_dtype must be one of 'float32', 'float16', 'bfloat16', got 'int8'",
        ),
        (lambda: CIRKDv2Loss(SETUP, channel_samples=0), "channel_samples must be positive, got 0"),
    ],
)
def test_wrong_options_are_refused(make, message):
    """Each of these would be a NaN or an index error in the first step."""
    with pytest.raises(ValueError, match=message):
        make()
