"""Relations between pixels, written out with whole maps."""

import torch
import torch.nn.functional as F


def units(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=generator, dtype=dtype), dim=-1)


def whole_pairs(student, teacher, temperature):
    total = 0.0
    for i in range(len(student)):
        for j in range(len(student)):
            log_s, log_t = ((x[i] @ x[j].T / temperature).log_softmax(dim=1) for x in (student, teacher))
            total = total + F.kl_div(log_s, log_t, log_target=True, reduction="sum")
    return total / (len(student) ** 2 * student.shape[1])


def whole_bank(student, teacher, keys, weights, temperature):
    log_s, log_t = ((x @ keys.T / temperature).log_softmax(dim=1) for x in (student, teacher))
    return (weights * (log_t.exp() * (log_t - log_s)).sum(dim=1)).sum()
