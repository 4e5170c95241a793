"""Differentiable augmentation: each part against its definition, gradient through it, and where recipes apply it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from twofold import recipes
from twofold.errors import InputError
from twofold.game import State
from twofold.nets.augment import POLICIES, augmentation, check_augment
from twofold.spec import Spec

IMAGE = Spec("image", (3, 16, 8), classes=3, layout="CHW")
WITH_AUGMENT = ("gan", "dcgan", "infogan", "vae-gan", "alpha-gan", "hybrid")


def draw(policy: str, x: torch.Tensor, seed: int = 0):
    return augmentation(policy, x, generator=torch.Generator().manual_seed(seed))


def images(n: int = 6, seed: int = 1) -> torch.Tensor:
    return torch.rand(n, 3, 16, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 - 1


def test_none_is_the_identity_and_draws_nothing():
    generator = torch.Generator().manual_seed(3)
    before, x = generator.get_state(), images()
    assert augmentation("none", x, generator=generator)(x) is x
    assert torch.equal(generator.get_state(), before)


def test_translation_moves_whole_images_by_up_to_an_eighth_and_fills_with_zero():
    x = images(64) + 3.0  # no zeros of its own
    seen = draw("translation", x)(x)
    shifts = set()
    for before, after in zip(x, seen, strict=True):
        found = [(dy, dx) for dy in range(-2, 3) for dx in range(-1, 2) if torch.equal(after, shifted(before, dy, dx))]
        assert len(found) == 1
        shifts.add(found[0])
    assert {dy for dy, _ in shifts} == {-2, -1, 0, 1, 2} and {dx for _, dx in shifts} == {-1, 0, 1}


def shifted(image: torch.Tensor, dy: int, dx: int) -> torch.Tensor:
    out = torch.zeros_like(image)
    height, width = image.shape[1:]
    out[:, max(-dy, 0) : height - max(dy, 0), max(-dx, 0) : width - max(dx, 0)] = image[
        :, max(dy, 0) : height + min(dy, 0), max(dx, 0) : width + min(dx, 0)
    ]
    return out


def test_cutout_covers_a_rectangle_of_half_the_sides_that_may_hang_over_the_edge():
    x = torch.ones(512, 1, 16, 8)
    # From one seed both policies draw the same shifts; what is 1 in the difference was cut out after the shift.
    missing = draw("translation", x)(x) - draw("translation-cutout", x)(x)
    for image in missing[:, 0]:
        rows, columns = image.any(1).nonzero(), image.any(0).nonzero()
        if len(rows):
            height, width = int(rows.max() - rows.min()) + 1, int(columns.max() - columns.min()) + 1
            assert height <= 8 and width <= 4
            assert image.sum() == height * width
    assert missing.flatten(1).sum(1).max() == 8 * 4


def test_color_is_brightness_then_saturation_then_contrast():
    x = images()
    generator = torch.Generator().manual_seed(7)
    u = torch.rand(3, 6, 1, 1, 1, generator=generator, dtype=torch.float64)
    bright = x + u[0] - 0.5
    grey = bright.mean(1, keepdim=True)
    saturated = (bright - grey) * u[1] * 2 + grey
    mean = saturated.mean((1, 2, 3), keepdim=True)
    expected = (saturated - mean) * (u[2] + 0.5) + mean
    # The policy goes on to move and to cut out; what it leaves of an image is a shift of the expected colors.
    seen = draw("color-translation-cutout", x, seed=7)(x)
    for after, before in zip(seen, expected, strict=True):
        left = after != 0
        moved = (shifted(before, dy, dx) for dy in range(-2, 3) for dx in range(-1, 2))
        assert left.any() and any(torch.allclose(after[left], m[left], rtol=0, atol=1e-14) for m in moved)


@pytest.mark.parametrize("policy", POLICIES[1:])
def test_real_and_generated_images_meet_the_same_draw_and_gradient_passes(policy):
    x = images().requires_grad_()
    seen = draw(policy, x)
    assert torch.equal(seen(x), seen(x.detach().clone()))
    assert not torch.equal(seen(x)[0] - x[0], seen(x)[1] - x[1])
    weights = torch.randn(x.shape, generator=torch.Generator().manual_seed(2), dtype=x.dtype)
    (gradient,) = torch.autograd.grad((seen(x) * weights).sum(), x)
    step = 1e-6 * torch.randn(x.shape, generator=torch.Generator().manual_seed(4), dtype=x.dtype)
    change = ((seen(x.detach() + step) - seen(x.detach())) * weights).sum()
    assert float(change) == pytest.approx(float((gradient * step).sum()), rel=1e-6)


def test_refusals():
    with pytest.raises(InputError, match=r"unknown augment 'cut'.*translation"):
        check_augment("cut", IMAGE)
    with pytest.raises(InputError, match="augment is translation and this data is vectors"):
        recipes.build("gan", Spec("vector", (2,), layout="D", dtype="float32"), {"augment": "translation"})
    with pytest.raises(InputError, match="augment is translation, but it is for a discriminator of data"):
        recipes.build("hybrid", IMAGE, {"adversarial": "none", "augment": "translation"})


@pytest.mark.parametrize("name", WITH_AUGMENT)
def test_every_image_that_the_discriminator_sees_is_augmented_and_the_routing_stays(name):
    """Recorded at the discriminator's door: real images arrive as one drawn transformation of the batch."""
    torch.manual_seed(0)
    options = {"augment": "translation-cutout"}
    recipe = recipes.build(name, IMAGE, options)[1]
    plain = recipes.build(name, IMAGE)[1]
    game = recipe.stages[0].game
    assert [[(t.name, set(t.to)) for t in p.terms] for p in game.phases] == [
        [(t.name, set(t.to)) for t in p.terms] for p in plain.stages[0].game.phases
    ]
    door = game.nets["trunk" if name == "infogan" else "discriminator"]
    arrived: list[torch.Tensor] = []
    door.register_forward_pre_hook(lambda module, args: arrived.append(args[0].detach()))
    batch = {"x": torch.full((8, 3, 16, 8), 0.9), "y": torch.zeros(8, dtype=torch.int64)}
    for phase in game.phases:
        state = State(game.nets, batch, 0, 0, torch.Generator().manual_seed(5))
        replace(state, rollout=phase.rollout(state))
    seen = torch.cat(arrived)
    # Generated images have no exact zeros in a block; every image at the door has a hole of them.
    assert len(seen) >= 16
    assert ((seen == 0).flatten(1).sum(1) >= 3 * 4 * 2).all()
