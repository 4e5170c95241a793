"""Distances of pixels, features and moments, and the rules shared by all terms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from twofold.terms.likelihood import normal_nll
from twofold.terms.matching import (
    feature_moments,
    feature_reconstruction,
    l1,
    require_same_shape,
    single_precision,
    squared_error,
    sum_per_example,
)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("shape", [(4,), (4, 5), (4, 3, 2, 5)])
def test_distances_are_summed_per_example(shape):
    a, b = random(*shape), random(*shape, seed=1)
    difference = (a - b).numpy().reshape(4, -1)
    np.testing.assert_allclose(l1(a, b), np.abs(difference).sum(1))
    np.testing.assert_allclose(squared_error(a, b), (difference**2).sum(1))
    np.testing.assert_allclose(feature_reconstruction(a, b), 0.5 * (difference**2).sum(1))


def test_feature_reconstruction_is_a_unit_normal_without_its_constant():
    a, b, none = random(4, 6, 2), random(4, 6, 2, seed=1), torch.zeros(4, 6, 2, dtype=torch.float64)
    torch.testing.assert_close(feature_reconstruction(a, b), normal_nll(a, b) - normal_nll(none, none))


@pytest.mark.parametrize("distance", [l1, squared_error, feature_reconstruction])
def test_descending_moves_each_argument_towards_the_other(distance):
    a, b = torch.zeros(2, 3, requires_grad=True), torch.ones(2, 3, requires_grad=True)
    distance(a, b).sum().backward()
    assert (a.grad < 0).all() and torch.equal(b.grad, -a.grad)


def test_feature_reconstruction_gradient_is_the_difference():
    a, b = random(2, 3).requires_grad_(), random(2, 3, seed=1)
    feature_reconstruction(a, b).sum().backward()
    torch.testing.assert_close(a.grad, a.detach() - b)


@pytest.mark.parametrize("distance", [l1, squared_error, feature_reconstruction])
def test_shapes_are_never_broadcast(distance):
    with pytest.raises(ValueError, match=r"shapes must be equal: .* is \(4, 1\), .* is \(4, 3\)"):
        distance(torch.zeros(4, 1), torch.zeros(4, 3))


def test_feature_moments_compare_batch_means():
    fake, real = random(5, 3, 2).requires_grad_(), 1 + random(8, 3, 2, seed=1)
    difference = fake.detach().numpy().mean(0) - real.numpy().mean(0)
    value = feature_moments(fake, real)
    assert value.shape == () and value.item() == pytest.approx((difference**2).sum())
    value.backward()
    np.testing.assert_allclose(fake.grad, np.broadcast_to(2 * difference / 5, (5, 3, 2)))
    # Only the means count: any order and any spread will do.
    assert feature_moments(torch.tensor([[0.0], [4.0]]), torch.tensor([[2.0], [2.0], [2.0]])).item() == 0


def test_feature_moments_need_the_same_features():
    with pytest.raises(ValueError, match=r"features_fake is \(4, 1\), features_real is \(4, 3\)"):
        feature_moments(torch.zeros(4, 1), torch.zeros(4, 3))


def test_the_sum_over_an_example_keeps_channels_last_and_single_values():
    images = random(2, 3, 4, 4).to(memory_format=torch.channels_last)
    torch.testing.assert_close(sum_per_example(images), images.contiguous().reshape(2, -1).sum(1))
    assert torch.equal(sum_per_example(torch.tensor([1.0, 2.0])), torch.tensor([1.0, 2.0]))


def test_single_precision_is_a_floor_and_no_ceiling():
    assert single_precision(torch.zeros(1, dtype=torch.bfloat16)).dtype == torch.float32
    assert single_precision(torch.zeros(1, dtype=torch.float16)).dtype == torch.float32
    for dtype in (torch.float32, torch.float64):
        x = torch.zeros(1, dtype=dtype)
        assert single_precision(x) is x


def test_long_sums_in_bfloat16():
    x = torch.ones(1, 4096, dtype=torch.bfloat16)
    assert l1(x, 0 * x).item() == squared_error(x, 0 * x).item() == 4096
    assert feature_moments(x, 0 * x).item() == 4096


def test_every_differing_shape_is_named():
    with pytest.raises(ValueError, match=r"a is \(1,\), b is \(1,\), c is \(1, 1\)"):
        require_same_shape(a=torch.zeros(1), b=torch.zeros(1), c=torch.zeros(1, 1))
    require_same_shape(a=torch.zeros(2), b=torch.ones(2))
