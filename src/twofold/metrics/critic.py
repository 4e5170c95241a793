"""The independent Wasserstein critic (Danihelka et al. 2017; Rosca et al. 2017)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from twofold.errors import InputError
from twofold.game import Game, Phase, Player, State, Term, begin, step
from twofold.metrics.record import require_sets
from twofold.nets.build import build_discriminator
from twofold.spec import Spec
from twofold.terms.penalty import gradient_penalty

WIDTH = {"image": 16, "vector": 64}
BATCH = 64
PENALTY_WEIGHT = 10.0


def critic_scores(
    spec: Spec,
    samples: Tensor,
    real: Tensor,
    samples_test: Tensor,
    real_test: Tensor,
    *,
    steps: int = 500,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Scores f(x) of `real_test` and of `samples_test` by a fresh critic that was trained to tell `real` from
    `samples` under a gradient penalty (Gulrajani et al. 2017). The difference of their means estimates the Wasserstein
    distance from below.

    The data that train the critic were not shown to the generator, and those that it is evaluated on were shown to
    neither: samples that copy the training data, or a few of them, are found out as well as samples of one mode.

    All sets are as models see data, (n, …). Deterministic in `seed`; the caller's random state is left alone.
    """
    require_sets(samples, real, samples_test, real_test, dimensions=None)
    if steps < 1:
        raise InputError(f"steps is {steps}; the critic trains for at least 1")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        critic = build_discriminator(spec, width=WIDTH[spec.kind])
    game = Game(
        {"critic": Player(critic, partial(torch.optim.Adam, lr=1e-3, betas=(0.5, 0.9)))},
        [
            Phase(
                "critic",
                _scored,
                [
                    Term("wasserstein", lambda s: s["fake"].mean() - s["real"].mean(), to={"critic": 1.0}),
                    Term("gradient_penalty", _penalty, to={"critic": PENALTY_WEIGHT}),
                ],
            )
        ],
    )
    progress = begin(game, seed=seed)
    draws = torch.Generator().manual_seed(seed)

    def draw() -> dict[str, Tensor]:
        return {
            "x": real[torch.randint(len(real), (BATCH,), generator=draws)],
            "x_fake": samples[torch.randint(len(samples), (BATCH,), generator=draws)],
        }

    for _ in range(steps):
        step(game, progress, draw)
    critic.eval()
    with torch.no_grad():
        scores = [torch.cat([critic(block) for block in x.split(256)]) for x in (real_test, samples_test)]
    return scores[0], scores[1]


def _scored(state: State) -> Mapping[str, Tensor]:
    critic = state.nets["critic"]
    return {"real": critic(state.batch["x"]), "fake": critic(state.batch["x_fake"])}


def _penalty(state: State) -> Tensor:
    return gradient_penalty(state.nets["critic"], state.batch["x"], state.batch["x_fake"], generator=state.generator)
