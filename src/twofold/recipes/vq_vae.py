"""VQ-VAE (van den Oord, Vinyals & Kavukcuoglu 2017, "Neural discrete representation learning").

The encoder's output at each position, z_e, is replaced by the nearest of K codes, e = z_q, which the decoder reads. The
three players minimise (their eq. 3, sg holds its argument constant), summed over dimensions and positions and averaged
over the batch,

    -log p(x|z_q)  +  ‖sg[z_e] - e‖²  +  β · ‖z_e - sg[e]‖²

where the gradient of the first part skips the choice: z_e receives what z_q would (straight-through). The two squared
distances are one number, `quantisation`, and what the paper writes as stop-gradients is its routing: the codebook
follows the encoder with weight 1, the encoder commits to its codes with weight β, and neither hears the other's part.

Routing:

    term            encoder  decoder  codebook
    quantisation      +0.25        ·        +1
    reconstruction       +1       +1         ·

With `--codebook ema` the codebook is no player: each code is the moving average of the vectors that chose it (their
appendix A.1, Laplace-smoothed), and `quantisation` reaches the encoder only. A code that no position chose for
`restart_examples` is moved onto a vector of the batch at hand. Logged beside the terms: `perplexity`, exp of the
entropy of the batch's codes, which is K if all are used equally; `codes_used`, the share of codes chosen lately; and
`codes_restarted`.

The prior over codes is uniform: the KL is the constant positions · log K, which `elbo` reports as the rate, and
`sample` draws every position independently. Such samples are not the data's; a prior trained on the codes makes them
so. A code, to `encode` and `decode`, is the chosen vectors of all positions, flattened; `decode` moves each position of
any other code to the nearest of the K.

Presets: `vq-vae-paper` is the CIFAR-10 model of their section 4.1 (256 units, K = 512, Adam with rate 2e-4, batches of
128); `vq-vae-released` the authors' example for 32×32 colour images (128 units, residual 32, moving averages, rate
3e-4, batches of 32).

Deviations: networks as in the authors' example, which halves the channels of the outer convolutions and adds a 3×3
convolution before the residual blocks; any number of halvings, any size of image, and MLPs for vectors. The paper's ten
codes per position are one here. The likelihood's scale is learned; the released example's division by the data's
variance is a fixed scale in its preset.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import log
from typing import Any

import torch
from torch import Tensor, nn

from twofold.codes import Level, Quantiser, code_abilities, quantise, uniform_draw
from twofold.game import Game, Phase, Player, Stage, State
from twofold.nets.mlp import MLP
from twofold.nets.residual import DoublingDecoder, HalvingEncoder, halved
from twofold.recipe import Recipe, option, require
from twofold.rollouts import LikelihoodDecoder, likelihood_for, likelihood_of, reconstruction_term
from twofold.spec import Spec
from twofold.terms.likelihood import LIKELIHOODS, Laplace, Likelihood, Normal


@dataclass(frozen=True)
class Config:
    codes: int = option(128, "K: vectors in the codebook")
    latent: int = option(16, "values of each vector")
    halvings: int = option(2, "how often the encoder halves an image's sides: one code stands for 2^halvings squared")
    positions: int = option(4, "codes for each example of vector data; images have one for each place of the small map")
    codebook: str = option("loss", "how the codebook learns: from its loss, or as averages", choices=("loss", "ema"))
    commitment: float = option(0.25, "β: how strongly the encoder stays with its codes")
    decay: float = option(0.99, "of the moving averages, per batch")
    smoothing: float = option(1e-5, "ε of the averages' Laplace smoothing")
    restart_examples: int = option(2_000, "move a code that was not chosen for this many examples; 0: never")
    likelihood: str = option("normal", "p(x|z)", choices=LIKELIHOODS)
    likelihood_scale: str = option(
        "scalar",
        "scale of a Normal or Laplace likelihood: fixed, one learned number, or one per value",
        choices=("fixed", "scalar", "output"),
    )
    scale: float = option(1.0, "the fixed scale, or the start of the learned one")
    width: int | None = option(None, "channels of the residual blocks (none: 64) or units of an MLP's layers (256)")
    width_residual: int | None = option(None, "channels inside the residual blocks; none: half of width")
    blocks: int = option(2, "residual blocks in encoder and decoder")
    depth: int = option(2, "hidden layers of an MLP")
    learning_rate: float = option(1e-3, "Adam's learning rate")
    clip_norm: float | None = option(None, "largest norm of each network's gradient")
    ema_half_life_examples: float | None = option(None, "sample from an average of the decoder with this half-life")


def paper() -> Config:
    """van den Oord et al. 2017, section 4.1, CIFAR-10. It does not give the vectors' length; 64 is the example's."""
    return Config(codes=512, latent=64, restart_examples=0, width=256, width_residual=256, learning_rate=2e-4)


def released() -> Config:
    """The authors' example. Its loss is the mean squared error over the data's variance plus mean squared distances:
    a Normal with variance 3072 · var / (2 · 64 · 64) in sums, var = 0.253 for CIFAR-10 in [-1, 1]."""
    return Config(
        codes=512,
        latent=64,
        codebook="ema",
        restart_examples=0,
        likelihood_scale="fixed",
        scale=0.308,
        width=128,
        width_residual=32,
        learning_rate=3e-4,
    )


def build(config: Config, spec: Spec) -> Recipe:
    """The recipe for data that looks like `spec`."""
    require(config.halvings >= 0, f"halvings is {config.halvings}; it starts at 0")
    require(config.blocks >= 0, f"blocks is {config.blocks}; it starts at 0")
    require(config.scale > 0, f"scale is {config.scale}; it must be above 0")
    quantiser = Quantiser.of(config)
    encoder, decoder, places = networks(config, spec)
    book = quantiser.build()

    def rollout(state: State) -> dict[str, Tensor]:
        x = state.batch["x"]
        out = quantiser.learn(state, state.nets["encoder"](x))
        return {"x": x, **out, "params": state.nets["decoder"](out["codes"])}

    adam = partial(torch.optim.Adam, lr=config.learning_rate)
    players = {
        "encoder": Player(encoder, adam, clip_norm=config.clip_norm),
        "decoder": Player(
            decoder, adam, clip_norm=config.clip_norm, ema_half_life_examples=config.ema_half_life_examples
        ),
    }
    game = Game(
        players=players | quantiser.players(book, adam),
        phases=(
            Phase("autoencoder", rollout, (quantiser.term(), reconstruction_term()), measures=quantiser.measures()),
        ),
        memory=quantiser.memory(book),
    )
    return Recipe((Stage("train", game),), spec, abilities(Level(quantiser, places)))


def abilities(level: Level) -> dict[str, Callable[..., Any]]:
    """What a trained VQ-VAE can do."""

    def codes(nets: nn.ModuleDict, x: Tensor) -> tuple[Tensor, Tensor]:
        return quantise(nets["encoder"](x), nets["codebook"])

    def elbo(nets: nn.ModuleDict, x: Tensor, *, y: None = None, generator: torch.Generator) -> dict[str, Tensor]:
        nats = likelihood_of(nets).nll(nets["decoder"](codes(nets, x)[0]), x)
        rate = level.positions * log(level.quantiser.codes)
        return {"rate_nats": torch.full_like(nats, rate), "distortion_nats": nats}

    return code_abilities(
        [level],
        encode=lambda nets, x: [codes(nets, x)[1]],
        picture=lambda nets, vectors: likelihood_of(nets).mean(nets["decoder"](vectors[0])),
        draw=uniform_draw([level]),
    ) | {"elbo": elbo}


# Networks.


def networks(config: Config, spec: Spec) -> tuple[nn.Module, LikelihoodDecoder, tuple[int, ...]]:
    """Encoder to (batch, latent, …), decoder from it, and the sizes of the map of codes between them."""
    likelihood = _likelihood(config, spec)
    outputs = likelihood.outputs(spec.shape[0])
    if spec.kind == "vector":
        require(config.positions >= 1, f"positions is {config.positions}; it starts at 1")
        units = (config.width or 256,) * config.depth
        size = config.latent * config.positions
        encoder: nn.Module = nn.Sequential(
            MLP(spec.size, units, size), nn.Unflatten(1, (config.latent, config.positions))
        )
        return encoder, LikelihoodDecoder(FromVectors(MLP(size, units, outputs)), likelihood), (config.positions,)
    sizes = halved(spec.shape[1:], config.halvings)
    width = config.width or 64
    inner = config.width_residual or max(1, width // 2)
    encoder = HalvingEncoder(spec.shape[0], config.latent, width, inner, config.blocks, config.halvings)
    decoder = DoublingDecoder(outputs, config.latent, width, inner, config.blocks, sizes)
    return encoder, LikelihoodDecoder(decoder, likelihood), sizes[-1]


def _likelihood(config: Config, spec: Spec) -> Likelihood:
    bounded, start = spec.kind == "image", log(config.scale)
    if config.likelihood == "normal":
        return Normal(bounded, scale=config.likelihood_scale, log_std=start)
    if config.likelihood == "laplace":
        return Laplace(bounded, scale=config.likelihood_scale, log_scale=start)
    require(config.scale == 1.0, f"scale is {config.scale}; a {config.likelihood} likelihood has none, leave it out")
    return likelihood_for(config, spec)


class FromVectors(nn.Module):
    """An MLP on codes (batch, latent, positions); takes no labels."""

    def __init__(self, net: MLP):
        super().__init__()
        self.net = net

    def forward(self, z: Tensor, y: None = None) -> Tensor:
        return self.net(z.flatten(1))
