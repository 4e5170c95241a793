"""The spectrum metric against signals whose spectrum is known."""

from __future__ import annotations

import math

import pytest
import torch

from twofold.errors import InputError
from twofold.metrics.spectrum import high_frequency_power, high_frequency_power_ratio


def wave(cycles: int, size: int = 32) -> torch.Tensor:
    row = torch.cos(2 * math.pi * cycles * torch.arange(size) / size)
    return row.expand(1, 1, size, size)


@pytest.mark.parametrize(("cycles", "fraction"), [(1, 0.0), (8, 0.0), (9, 1.0), (16, 1.0)])
def test_a_wave_lies_on_its_side_of_the_cutoff(cycles, fraction):
    assert float(high_frequency_power(wave(cycles) + 3)) == pytest.approx(fraction, abs=1e-9)


def test_powers_add_by_amplitude_squared():
    mixed = wave(2) + 0.5 * wave(12)
    assert float(high_frequency_power(mixed)) == pytest.approx(0.25 / 1.25)


def test_white_noise_has_the_fraction_of_frequencies_above_the_cutoff():
    noise = torch.randn(500, 2, 16, 16, generator=torch.Generator().manual_seed(0))
    frequencies = torch.fft.fftfreq(16)
    radius = (frequencies[:, None] ** 2 + frequencies[None] ** 2).sqrt()
    above = (radius > 0.25).sum() / (16 * 16 - 1)
    assert float(high_frequency_power(noise)) == pytest.approx(float(above), abs=0.005)


def test_blur_lowers_the_ratio_and_noise_raises_it():
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(64, 1, 28, 28, generator=generator)
    data = torch.nn.functional.avg_pool2d(data, 3, stride=1, padding=1)
    blurred = torch.nn.functional.avg_pool2d(data, 5, stride=1, padding=2)
    noisy = data + 0.3 * torch.randn(64, 1, 28, 28, generator=generator)
    assert high_frequency_power_ratio(data, data) == 1.0
    assert high_frequency_power_ratio(blurred, data) < 0.5
    assert high_frequency_power_ratio(noisy, data) > 1.2


def test_scale_brightness_and_size_of_the_set_do_not_matter():
    data = torch.randn(8, 1, 9, 14, generator=torch.Generator().manual_seed(1))
    expected = float(high_frequency_power(data))
    assert float(high_frequency_power(5 * data + 2)) == pytest.approx(expected)
    assert float(high_frequency_power(torch.cat([data, data]))) == pytest.approx(expected)


def test_images_without_contrast_or_size_are_refused():
    with pytest.raises(InputError, match="no contrast"):
        high_frequency_power(torch.ones(2, 1, 8, 8))
    with pytest.raises(InputError, match="4×4 or more"):
        high_frequency_power(torch.ones(2, 1, 3, 8))
    with pytest.raises(InputError, match="shape"):
        high_frequency_power(torch.ones(2, 8))
