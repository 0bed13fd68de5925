"""The loss of transducers."""

from __future__ import annotations

import itertools

import pytest
import torch

from tltasks.tasks.speech.transducer import transducer_losses


def every_way(logits: torch.Tensor, labels: list[int], steps: int) -> torch.Tensor:
    """The loss of a text by going every way: so many moves along the steps, and the tokens somewhere between."""
    spread = logits.log_softmax(-1)
    ways = []
    for moves in set(itertools.permutations([0] * (steps - 1) + [1] * len(labels))):
        step = written = 0
        total = torch.zeros((), dtype=logits.dtype)
        for writes in moves:
            total = total + spread[step, written, labels[written] if writes else 0]
            step, written = step + (not writes), written + writes
        ways.append(total + spread[step, written, 0])
    return -torch.stack(ways).logsumexp(0)


def test_losses_are_those_of_all_ways_and_padding_counts_for_nothing() -> None:
    torch.manual_seed(0)
    logits = torch.randn(3, 4, 4, 5, dtype=torch.float64).requires_grad_()
    labels = torch.tensor([[1, 1, 4], [2, 0, 0], [3, 2, 0]])
    steps, lengths = torch.tensor([4, 3, 1]), torch.tensor([3, 1, 2])
    found = transducer_losses(logits, labels, steps, lengths, blank=0)
    rows = zip(logits, labels.tolist(), lengths.tolist(), steps.tolist(), strict=True)
    expected = torch.stack([every_way(row, ids[:n], step) for row, ids, n, step in rows])
    assert torch.allclose(found, expected, atol=1e-5)
    (own,) = torch.autograd.grad(found.sum(), logits, retain_graph=True)
    (wanted,) = torch.autograd.grad(expected.sum(), logits)
    assert torch.allclose(own, wanted, atol=1e-5)
    for unread in (own[1, 3], own[2, 1:], own[1, :, 2:]):
        assert (unread == 0).all()


def test_losses_are_torchaudios() -> None:
    functional = pytest.importorskip("torchaudio.functional", reason="is no dependency")
    torch.manual_seed(0)
    logits, labels = 3 * torch.randn(3, 60, 24, 30), torch.randint(1, 30, (3, 23))
    steps, lengths = torch.tensor([60, 41, 3]), torch.tensor([23, 11, 20])
    given = [each.int() for each in (labels, steps, lengths)]
    theirs = functional.rnnt_loss(logits, *given, blank=0, reduction="none")
    ours = transducer_losses(logits, labels, steps, lengths, blank=0)
    assert torch.allclose(ours.float(), theirs, rtol=1e-6)
