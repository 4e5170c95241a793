"""Codebooks: moving averages against their definition and against K-means, restarts, what the game sees of them."""

from __future__ import annotations

import pytest
import torch

from twofold.errors import InputError
from twofold.game import ALONE
from twofold.latents import code_counts, nearest_code
from twofold.nets.codebook import AveragedCodebook, Codebook, CodeUsage


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def take_in(book: AveragedCodebook, z: torch.Tensor, indices: torch.Tensor) -> None:
    book.update(code_counts(indices, len(book.counts)), book.sums_of(z, indices))


@pytest.mark.parametrize("kind", [Codebook, AveragedCodebook])
def test_look_up_and_start(kind):
    torch.manual_seed(0)
    book = kind(512, 12)
    assert book.weight.shape == (512, 12)
    assert book.weight.abs().max() <= 0.5
    assert book.weight.square().sum(1).mean().item() == pytest.approx(1.0, abs=0.05)
    indices = torch.tensor([[3, 0], [511, 3]])
    assert torch.equal(book(indices), book.weight[indices])
    assert len(list(book.parameters())) == (1 if kind is Codebook else 0)
    for bad in ((0, 3), (3, 0), (2.0, 3)):
        with pytest.raises(InputError, match="whole number"):
            kind(*bad)


def test_averages_are_their_definition():
    """Two updates by hand, in float64, Laplace smoothing included."""
    book = AveragedCodebook(3, 2, decay=0.9, epsilon=0.01).double()
    start = book.weight.clone()
    counts, sums = torch.zeros(3, dtype=torch.float64), torch.zeros(3, 2, dtype=torch.float64)
    for seed in (0, 1):
        z = torch.randn(5, 2, dtype=torch.float64, generator=generator(seed))
        indices = torch.tensor([0, 0, 1, 1, 1])
        take_in(book, z, indices)
        for i in range(3):
            counts[i] = 0.9 * counts[i] + 0.1 * (indices == i).sum()
            sums[i] = 0.9 * sums[i] + 0.1 * z[indices == i].sum(0)
        smoothed = counts.sum() * (counts + 0.01) / (counts.sum() + 3 * 0.01)
        torch.testing.assert_close(book.weight[:2], sums[:2] / smoothed[:2, None])
        assert torch.equal(book.weight[2], start[2])  # never chosen: stays, finite
    assert book.weight.isfinite().all()


def test_averages_come_to_the_k_means_fixed_point():
    """Every code is the mean of the points nearest to it, up to the smoothing."""
    means = torch.tensor([[0.0, 4.0], [4.0, 0.0], [-4.0, -4.0]])
    points = (means[:, None] + 0.5 * torch.randn(3, 200, 2, generator=generator())).flatten(0, 1)
    book = AveragedCodebook(3, 2, decay=0.8)
    book.replace(torch.ones(3, dtype=torch.bool), points[[0, 200, 400]])
    for _ in range(60):
        take_in(book, points, nearest_code(points, book.weight))
    chosen = nearest_code(points, book.weight)
    for i in range(3):
        torch.testing.assert_close(book.weight[i], points[chosen == i].mean(0), rtol=1e-4, atol=1e-4)
    assert sorted(chosen.bincount().tolist()) == [200, 200, 200]


@pytest.mark.parametrize("kind", [Codebook, AveragedCodebook])
def test_dead_codes_move_onto_the_data_and_living_ones_stay(kind):
    torch.manual_seed(0)
    book, usage = kind(4, 2), CodeUsage(4)
    start = book.weight.detach().clone()
    z = 10 + torch.randn(6, 2, generator=generator())
    if kind is AveragedCodebook:
        take_in(book, start[:2], torch.tensor([0, 1]))
        start = book.weight.clone()
    drawn = z[[0, 5, 2, 2]]
    for _ in range(3):
        usage.restart(book, drawn, after=20)
        usage.note(code_counts(torch.tensor([[0, 1], [1, 0]]), 4), examples=8)
        assert torch.equal(book.weight, start)
    assert usage.idle_examples.tolist() == [0, 0, 24, 24]
    usage.restart(book, drawn, after=20)
    assert torch.equal(book.weight[:2], start[:2])
    assert torch.equal(book.weight[2:], z[[2, 2]])
    assert usage.idle_examples.tolist() == [0, 0, 0, 0]
    if kind is AveragedCodebook:  # and from there the averages go on, not from nowhere
        take_in(book, z, nearest_code(z, book.weight))
        assert book.weight[2:].min() > 5


def test_restarts_repeat_under_a_seed_and_leave_the_global_generator_alone():
    books = []
    for _ in range(2):
        torch.manual_seed(0)
        book, usage = Codebook(8, 2), CodeUsage(8)
        before = torch.get_rng_state()
        drawn = ALONE.draw_rows(torch.randn(50, 2, generator=generator()), 8, generator=generator(3))
        usage.restart(book, drawn, after=0)
        assert torch.equal(before, torch.get_rng_state())
        books.append(book.weight.detach().clone())
    assert torch.equal(*books)
