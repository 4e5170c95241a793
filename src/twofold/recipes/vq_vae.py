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
`restart_examples` is moved onto a vector of the batch at hand. `perplexity`, exp of the entropy of the codes' use, is
logged beside the terms: K if all are used equally.

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
from math import log, prod
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from twofold.game import Game, Phase, Player, Stage, State, Term
from twofold.latents import nearest_code, perplexity, straight_through
from twofold.nets.codebook import AveragedCodebook, Codebook, CodeUsage
from twofold.nets.mlp import MLP
from twofold.recipe import Recipe, option, require
from twofold.rollouts import LikelihoodDecoder, likelihood_for, likelihood_of, reconstruction_term
from twofold.spec import Spec
from twofold.terms.likelihood import LIKELIHOODS, Laplace, Likelihood, Normal
from twofold.terms.matching import single_precision, squared_error


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
    require(config.codes >= 2, f"codes is {config.codes}; a codebook has at least 2")
    require(config.commitment >= 0, f"commitment is {config.commitment}; it starts at 0")
    require(0 <= config.decay < 1, f"decay is {config.decay}; it lies from 0 to below 1")
    require(config.smoothing > 0, f"smoothing is {config.smoothing}; it must be above 0")
    require(config.restart_examples >= 0, f"restart_examples is {config.restart_examples}; it starts at 0")
    require(config.halvings >= 0, f"halvings is {config.halvings}; it starts at 0")
    require(config.blocks >= 0, f"blocks is {config.blocks}; it starts at 0")
    require(config.scale > 0, f"scale is {config.scale}; it must be above 0")
    encoder, decoder, places = networks(config, spec)
    averaged = config.codebook == "ema"
    book: Codebook | AveragedCodebook = (
        AveragedCodebook(config.codes, config.latent, decay=config.decay, epsilon=config.smoothing)
        if averaged
        else Codebook(config.codes, config.latent)
    )

    def rollout(state: State) -> dict[str, Tensor]:
        x = state.batch["x"]
        z = single_precision(state.nets["encoder"](x))
        codebook = cast("Codebook | AveragedCodebook", state.nets["codebook"])
        # What moves codes by other means than gradient sees their vectors as plain numbers.
        vectors = z.detach().movedim(1, -1).flatten(0, -2)
        usage = cast(CodeUsage, state.nets["usage"])
        if config.restart_examples:
            usage.restart(codebook, vectors, after=config.restart_examples, generator=state.generator)
        z_q, indices = quantise(z, codebook)
        usage.note(indices, examples=len(x))
        if isinstance(codebook, AveragedCodebook):
            codebook.update(vectors, indices.flatten())
        params = state.nets["decoder"](straight_through(z, z_q))
        return {"x": x, "z": z, "z_q": z_q, "indices": indices, "params": params}

    adam = partial(torch.optim.Adam, lr=config.learning_rate)
    players = {
        "encoder": Player(encoder, adam, clip_norm=config.clip_norm),
        "decoder": Player(
            decoder, adam, clip_norm=config.clip_norm, ema_half_life_examples=config.ema_half_life_examples
        ),
    }
    distances = {"encoder": config.commitment} | ({} if averaged else {"codebook": 1.0})
    game = Game(
        players=players | ({} if averaged else {"codebook": Player(book, adam)}),
        phases=(
            Phase(
                "autoencoder",
                rollout,
                (
                    Term("quantisation", lambda s: squared_error(s["z"], s["z_q"]).mean(), to=distances),
                    reconstruction_term(),
                ),
                measures={"perplexity": lambda s: perplexity(s["indices"], config.codes)},
            ),
        ),
        memory={"usage": CodeUsage(config.codes)} | ({"codebook": book} if averaged else {}),
    )
    return Recipe((Stage("train", game),), spec, abilities(config, places))


def quantise(z: Tensor, codebook: nn.Module) -> tuple[Tensor, Tensor]:
    """Each vector of z (batch, latent, …) by its nearest code, (batch, latent, …), and that code's index (batch, …)."""
    indices = nearest_code(z.movedim(1, -1), cast(Tensor, codebook.weight))
    return codebook(indices).movedim(-1, 1), indices


def abilities(config: Config, places: tuple[int, ...]) -> dict[str, Callable[..., Any]]:
    """What a trained VQ-VAE can do; `places` is the shape of the map of codes."""
    positions = prod(places)

    def flat(vectors: Tensor) -> Tensor:
        return vectors.movedim(-1, 1).flatten(1)

    def draw(nets: nn.ModuleDict, n: int, *, generator: torch.Generator) -> Tensor:
        device = next(nets["decoder"].parameters()).device
        return flat(nets["codebook"](torch.randint(config.codes, (n, positions), generator=generator, device=device)))

    def encode(nets: nn.ModuleDict, x: Tensor, *, y: None = None) -> Tensor:
        return quantise(nets["encoder"](x), nets["codebook"])[0].flatten(1)

    def decode(nets: nn.ModuleDict, z: Tensor, *, y: None = None) -> Tensor:
        z_q, _ = quantise(z.unflatten(1, (config.latent, *places)), nets["codebook"])
        return likelihood_of(nets).mean(nets["decoder"](z_q))

    def elbo(nets: nn.ModuleDict, x: Tensor, *, y: None = None, generator: torch.Generator) -> dict[str, Tensor]:
        z_q, _ = quantise(nets["encoder"](x), nets["codebook"])
        nats = likelihood_of(nets).nll(nets["decoder"](z_q), x)
        return {"rate_nats": torch.full_like(nats, positions * log(config.codes)), "distortion_nats": nats}

    return {
        "prior": draw,
        "encode": encode,
        "decode": decode,
        "reconstruct": lambda nets, x, *, y=None: decode(nets, encode(nets, x)),
        "sample": lambda nets, n, *, y=None, generator: decode(nets, draw(nets, n, generator=generator)),
        "elbo": elbo,
    }


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
    sizes = [spec.shape[1:]]
    for done in range(config.halvings):
        require(
            max(sizes[-1]) > 1,
            f"halvings is {config.halvings}; an image of {spec.shape[1]}×{spec.shape[2]} is one place after {done}",
        )
        sizes.append(tuple((n + 1) // 2 for n in sizes[-1]))
    width = config.width or 64
    inner = config.width_residual or max(1, width // 2)
    encoder = ConvEncoder(spec.shape[0], config.latent, width, inner, config.blocks, config.halvings)
    decoder = ConvDecoder(outputs, config.latent, width, inner, config.blocks, sizes)
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


class Residual(nn.Module):
    """h + conv1×1(relu(conv3×3(relu(h))))."""

    def __init__(self, width: int, inner: int):
        super().__init__()
        self.net = nn.Sequential(nn.ReLU(), nn.Conv2d(width, inner, 3, 1, 1), nn.ReLU(), nn.Conv2d(inner, width, 1))

    def forward(self, h: Tensor) -> Tensor:
        return h + self.net(h)


class Halve(nn.Module):
    """A 4×4 convolution with stride 2 that takes odd sides up: n to ⌈n / 2⌉."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 4, 2, 1)

    def forward(self, h: Tensor) -> Tensor:
        return F.relu(self.conv(F.pad(h, (0, h.shape[3] % 2, 0, h.shape[2] % 2))))


class Double(nn.Module):
    """A 4×4 transposed convolution with stride 2, cut to `size`: the way back from `Halve`."""

    def __init__(self, inputs: int, outputs: int, size: tuple[int, ...]):
        super().__init__()
        self.conv = nn.ConvTranspose2d(inputs, outputs, 4, 2, 1)
        self.size = size

    def forward(self, h: Tensor) -> Tensor:
        return self.conv(h)[:, :, : self.size[0], : self.size[1]]


class ConvEncoder(nn.Sequential):
    """Halvings, the first ones at half the channels, then a 3×3 convolution, residual blocks and the 1×1 head."""

    def __init__(self, channels: int, latent: int, width: int, inner: int, blocks: int, halvings: int):
        widths = [channels, *([max(1, width // 2)] * (halvings - 1)), *([width] if halvings else [])]
        super().__init__(
            *(Halve(a, b) for a, b in zip(widths[:-1], widths[1:], strict=True)),
            nn.Conv2d(widths[-1], width, 3, 1, 1),
            *(Residual(width, inner) for _ in range(blocks)),
            nn.ReLU(),
            nn.Conv2d(width, latent, 1),
        )


class ConvDecoder(nn.Module):
    """The way back: a 3×3 convolution, residual blocks, and transposed convolutions that retrace `sizes`."""

    def __init__(self, outputs: int, latent: int, width: int, inner: int, blocks: int, sizes: list[tuple[int, ...]]):
        super().__init__()
        halvings = len(sizes) - 1
        widths = [width, *([max(1, width // 2)] * (halvings - 1)), *([outputs] if halvings else [])]
        layers: list[nn.Module] = [nn.Conv2d(latent, width, 3, 1, 1), *(Residual(width, inner) for _ in range(blocks))]
        layers.append(nn.ReLU())
        for k, (a, b) in enumerate(zip(widths[:-1], widths[1:], strict=True), 1):
            layers += [Double(a, b, sizes[halvings - k]), *([nn.ReLU()] if k < halvings else [])]
        if not halvings:
            layers.append(nn.Conv2d(width, outputs, 1))
        self.net = nn.Sequential(*layers)

    def forward(self, z: Tensor, y: None = None) -> Tensor:
        return self.net(z)
