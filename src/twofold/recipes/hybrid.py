"""The family as a composer: choose how codes meet their prior, what a reconstruction costs, who judges realism and of
what; the routing table follows.

    --match        how q(z|x) meets p(z): kl (times --beta), a critic of codes, mmd, or none
    --likelihood   -log p(x|z): bernoulli, normal or laplace on values, features (Dis_l), or none (no encoder: a GAN)
    --adversarial  any adversarial loss, with any --penalty, or none
    --see          what the discriminator judges beside the data: reconstructions, samples from the prior, or both
    --play         together (all players at once), alternate (encoder and decoder, then the critics), or separate
                   (reconstruction, critics, then what fools or matches)

Published members are points of it, at which it gives the gradients of their own files:

    as_vae()        VAE (Kingma & Welling 2014): kl, normal, no discriminator
    as_aae()        AAE (Makhzani et al. 2015): critic of codes, normal of scale 1, no discriminator, separate
    as_vae_gan()    VAE-GAN (Larsen et al. 2016): kl, features, minimax, γ = 0.01, together
    as_alpha_gan()  α-GAN (Rosca et al. 2017): critic of codes, laplace of scale 1, log ratios, alternate

Others are a few flags away: `--likelihood features --adversarial wasserstein --penalty gradient-penalty` is VAE-GAN
with WGAN-GP, `--match critic --adversarial hinge` an α-GAN with hinge.

The default is a VAE with a hinge discriminator.

Routing:

    term                         encoder  decoder  discriminator
    phase autoencoder
      kl                              +1        ·              ·
      reconstruction                  +1       +1              ·
      adversarial_decoder              ·       +1              ·
    phase critics
      adversarial_discriminator        ·        ·             +1

Rows are those of the published members: likelihood and match never reach a critic, realism reaches the decoder and not
the encoder, codes' realism the encoder and not the decoder. `--likelihood-weight` λ stands in both rows of the
likelihood, `--gamma` γ in the decoder's only.

Several kinds of fakes: cross-entropies (minimax, non-saturating, log-ratio) add them up, as the papers print them; all
other losses weigh them ½ each, so that a Wasserstein critic compares one distribution with one. `--weigh` changes it.
A penalty between real and generated takes reconstructions and samples in turn from example to example.

Deviations: it has no paper of its own; the deviations of its members stand in their files and hold here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from twofold.autoencoders import (
    CODE_PRIORS,
    OPTIMIZERS,
    POSTERIORS,
    CodeCritic,
    Codes,
    Prior,
    Realism,
    Row,
    Training,
    build_code_discriminator,
    build_posterior,
    feature_row,
    feature_variance,
    latent_of,
    mmd_row,
    network_sizes,
    phase,
    require_room,
)
from twofold.game import Game, Phase, Player, Stage, Term
from twofold.nets.augment import POLICIES, check_augment
from twofold.nets.build import Discriminator, build_decoder, build_discriminator
from twofold.recipe import Recipe, option, require
from twofold.rollouts import (
    PENALTIES,
    Generator,
    LikelihoodDecoder,
    Penalty,
    classes_for,
    critic_abilities,
    distortion,
    elbo,
    levels,
    rate,
    warmed_up,
)
from twofold.spec import Spec
from twofold.terms.adversarial import ADVERSARIAL, WEIGH, build_adversarial, how_to_weigh
from twofold.terms.divergence import KERNELS
from twofold.terms.likelihood import build_likelihood

ON_VALUES = ("bernoulli", "normal", "laplace")
KINDS = {"both": ("rec", "fake"), "samples": ("fake",), "reconstructions": ("rec",)}


@dataclass(frozen=True)
class Config:
    match: str = option("kl", "how the posterior meets the prior", choices=("kl", "critic", "mmd", "none"))
    beta: float = option(1.0, "β: weight of the match in the encoder's row")
    match_warmup_examples: int = option(0, "the match's weight rises from 0 over this many examples; 0: no warm-up")
    kernel: str = option("imq", "the MMD's kernel", choices=KERNELS)
    code_adversarial: str | None = option(
        None, "loss of the game over codes; none: non-saturating", choices=tuple(ADVERSARIAL)
    )
    code_penalty: str = option("none", "what keeps the critic of codes smooth", choices=PENALTIES)
    code_penalty_weight: float = option(10.0, "λ of its gradient penalty, γ of R1 and R2")
    likelihood: str = option(
        "normal",
        "p(x|z): on values, on the discriminator's features, or none",
        choices=(*ON_VALUES, "features", "none"),
    )
    likelihood_scale: str = option(
        "scalar",
        "scale of a normal or laplace likelihood: fixed to 1, one learned number, or one per value",
        choices=("fixed", "scalar", "output"),
    )
    likelihood_weight: float = option(1.0, "λ: weight of the likelihood, in encoder's and decoder's rows")
    gamma: float = option(1.0, "γ: another factor of it, in the decoder's row only")
    feature_layer: int | None = option(
        None, "the discriminator's block whose features are compared, counted from 1; none: the last but two"
    )
    feature_std: float | None = option(
        None, "standard deviation of the normal on features; none: that of 16,384 features at 1, in all"
    )
    adversarial: str = option("hinge", "loss of the game over data, or none", choices=("none", *ADVERSARIAL))
    see: str = option("both", "the fakes that the discriminator judges", choices=tuple(KINDS))
    weigh: str | None = option(None, "two kinds of fakes; none: sum for cross-entropies, else mean", choices=WEIGH)
    real_label: float = option(1.0, "the discriminators' target for what is real; below 1: one-sided label smoothing")
    augment: str = option("none", "what the discriminator sees images through (Zhao et al. 2020)", choices=POLICIES)
    penalty: str = option("none", "what keeps the discriminator smooth", choices=PENALTIES)
    penalty_weight: float = option(10.0, "λ of the gradient penalty, γ of R1 and R2")
    penalty_every: int = option(1, "evaluate penalties in every n-th play only, n times as strong")
    weight_limit: float | None = option(None, "clip the discriminator's weights to ± this number")
    play: str = option("alternate", "who moves when", choices=("together", "alternate", "separate"))
    generator_plays: int = option(1, "plays of encoder and decoder, on fresh batches, in a step")
    critic_plays: int = option(1, "plays of the critics, on fresh batches, in a step")
    latent: int | None = option(None, "size of the code z; none: 16, or the data's number of values if that is less")
    posterior: str = option("normal", "q(z|x): a Normal's draw, z = E(x) or E(x, ε)", choices=POSTERIORS)
    prior: str = option("normal", "p(z); mixture and swiss-roll lie in the plane", choices=CODE_PRIORS)
    prior_std: float = option(1.0, "standard deviation of the normal prior")
    arch: str = option("conv", "networks for images; vectors always get an MLP", choices=("conv", "mlp"))
    width: int | None = option(
        None, "channels of the first convolution (none: 32) or units of an MLP's layers (none: 256)"
    )
    depth: int = option(2, "hidden layers of an MLP")
    hidden: int = option(256, "units of a fully connected layer between convolutions and head; 0: none")
    norm: str = option("batch", "normalisation in encoder and decoder", choices=("batch", "group", "layer", "none"))
    norm_discriminator: str = option(
        "none", "the same in the discriminator of data", choices=("batch", "group", "layer", "none")
    )
    spectral: bool = option(False, "spectral normalisation of the discriminator of data (Miyato et al. 2018)")
    spectral_code: bool = option(False, "the same in the critic of codes")
    code_width: int = option(256, "units of the critic's layers")
    code_depth: int = option(2, "hidden layers of the critic of codes")
    optimizer: str = option("adam", "optimizer of all players", choices=OPTIMIZERS)
    learning_rate: float = option(5e-4, "learning rate of encoder and decoder")
    learning_rate_discriminator: float | None = option(None, "of the discriminator of data; none: the same")
    learning_rate_code_discriminator: float | None = option(None, "of the critic of codes; none: the same")
    beta1: float = option(0.5, "Adam's β₁")
    beta2: float = option(0.999, "Adam's β₂")
    clip_norm: float | None = option(None, "largest norm of each network's gradient")
    ema_half_life_examples: float | None = option(None, "sample from an average of the decoder with this half-life")
    conditional: bool = option(False, "condition all networks on the labels")


def as_vae() -> Config:
    """Kingma & Welling 2014."""
    return Config(adversarial="none", beta1=0.9, learning_rate=1e-3)


def as_aae() -> Config:
    """Makhzani et al. 2015."""
    return Config(
        match="critic", posterior="deterministic", likelihood_scale="fixed", adversarial="none", play="separate"
    )


def as_vae_gan() -> Config:
    """Larsen et al. 2016."""
    return Config(
        likelihood="features", gamma=1e-2, adversarial="minimax", play="together", norm_discriminator="batch",
        optimizer="rmsprop", learning_rate=3e-4, latent=32,
    )  # fmt: skip


def as_alpha_gan() -> Config:
    """Rosca et al. 2017."""
    return Config(
        match="critic", posterior="deterministic", likelihood="laplace", likelihood_scale="fixed",
        adversarial="log-ratio", code_adversarial="log-ratio", generator_plays=2, beta2=0.9,
    )  # fmt: skip


def build(config: Config, spec: Spec) -> Recipe:
    """The recipe for data that looks like `spec`. Raises `InputError` for choices that contradict each other."""
    _refuse_ranges(config)
    _refuse_match(config)
    _refuse_game(config)
    _refuse_idle(config)
    classes = classes_for(spec, config.conditional)
    latent = latent_of(config.latent, 16, spec)
    if config.match in ("critic", "mmd"):
        require_room(latent, config.posterior, spec)
    nets = _networks(config, spec, latent, classes)
    prior = Prior(latent, config.prior, config.prior_std, components=classes or 10)
    codes = Codes(
        prior,
        config.posterior,
        frozenset((*nets, "prior") if config.conditional else ()),
        _feature_layer(config, nets),
        check_augment(config.augment, spec),
    )
    game = Game(_players(config, nets), _phases(config, codes, _rows(config, codes)))
    abilities = codes.abilities()
    if config.likelihood == "none":
        abilities = {name: abilities[name] for name in ("prior", "decode", "sample")}
    if config.match == "kl" and config.likelihood in ON_VALUES:
        abilities["elbo"] = elbo
    if "discriminator" in nets:
        abilities |= critic_abilities(nets["discriminator"])
    return Recipe((Stage("train", game),), spec, abilities, config.conditional)


# What contradicts what.


def _refuse_ranges(config: Config) -> None:
    for name in ("beta", "likelihood_weight"):
        require(getattr(config, name) > 0, f"{name} is {getattr(config, name)}; it must be above 0")
    for name in ("gamma", "penalty_weight", "code_penalty_weight"):
        require(getattr(config, name) >= 0, f"{name} is {getattr(config, name)}; it starts at 0")
    require(
        config.gamma > 0 or config.adversarial != "none", "gamma is 0, so that the decoder learns nothing; give more"
    )
    for name in ("generator_plays", "critic_plays", "penalty_every"):
        require(getattr(config, name) >= 1, f"{name} is {getattr(config, name)}; it starts at 1")
    require(config.match_warmup_examples >= 0, f"match_warmup_examples is {config.match_warmup_examples}, below 0")
    for name in ("feature_std", "weight_limit"):
        value = getattr(config, name)
        require(value is None or value > 0, f"{name} is {value}; it must be above 0")


def _refuse_idle(config: Config) -> None:
    """Refuse options that were set but belong to a part which was not chosen."""
    parts = (
        (
            (
                "see",
                "weigh",
                "augment",
                "penalty",
                "weight_limit",
                "spectral",
                "norm_discriminator",
                "learning_rate_discriminator",
            ),
            config.adversarial != "none",
            "a discriminator of data; choose --adversarial",
        ),
        (
            ("code_adversarial", "code_penalty", "spectral_code", "learning_rate_code_discriminator"),
            config.match == "critic",
            f"a critic of codes, but codes meet the prior by {config.match}; use --match critic, and one way only: a "
            "critic beside the KL would count the same divergence twice",
        ),
        (("kernel",), config.match == "mmd", "--match mmd"),
        (("feature_layer", "feature_std"), config.likelihood == "features", "--likelihood features"),
        (("likelihood_scale",), config.likelihood in ("normal", "laplace"), "--likelihood normal or laplace"),
        (("posterior", "gamma", "likelihood_weight"), config.likelihood != "none", "a likelihood; choose --likelihood"),
    )
    default = Config()
    for names, chosen, belongs in parts:
        for name in names:
            given = getattr(config, name) != getattr(default, name)
            require(chosen or not given, f"{name} is {getattr(config, name)}, but it is for {belongs}")


def _refuse_match(config: Config) -> None:
    match, likelihood = config.match, config.likelihood
    require(
        match != "kl" or likelihood == "none" or config.posterior == "normal",
        f"--match kl is in closed form for a normal posterior and {config.posterior} has no density; "
        "use --match critic or mmd, or --posterior normal",
    )
    require(
        match != "kl" or (config.prior == "normal" and config.prior_std == 1),
        "--match kl is to the prior N(0, I); use --match critic or mmd for another prior",
    )
    require(match != "mmd" or config.prior == "normal", "--match mmd has its kernel's scales from a normal prior")
    require(
        likelihood != "none" or match == "none",
        f"--likelihood none leaves the codes nothing to say, and --match {match} would only teach the encoder the "
        "prior; choose a likelihood, or --match none for a GAN",
    )
    require(
        match != "none" or likelihood == "none" or (config.adversarial != "none" and config.see != "reconstructions"),
        "nothing ties the codes to the prior, so that its samples would mean nothing; choose --match kl, critic or "
        "mmd, or an --adversarial loss that sees samples",
    )


def _refuse_game(config: Config) -> None:
    require(
        config.adversarial != "none" or config.likelihood not in ("features", "none"),
        f"--likelihood {config.likelihood} leaves the decoder nothing to learn from without a discriminator; "
        "choose --adversarial, or a likelihood on values",
    )
    require(
        config.likelihood != "none" or config.see == "samples",
        f"--likelihood none makes no reconstructions, but the discriminator is to see {config.see}; use --see samples",
    )
    require(
        config.real_label == 1 or config.adversarial != "none" or config.match == "critic",
        f"real_label is {config.real_label}, but no critic has labels; choose --adversarial or --match critic",
    )
    require(
        config.penalty == "none" or config.norm_discriminator != "batch",
        "a penalty is about single examples and BatchNorm mixes them; use --norm-discriminator layer",
    )
    require(
        config.adversarial != "wasserstein"
        or config.penalty != "none"
        or config.spectral
        or config.weight_limit is not None,
        "a Wasserstein critic needs a bound on its slope; use --penalty gradient-penalty, --spectral or --weight-limit",
    )
    require(
        config.code_adversarial != "wasserstein" or config.code_penalty != "none" or config.spectral_code,
        "a Wasserstein critic of codes needs a bound on its slope; use --code-penalty gradient-penalty or "
        "--spectral-code",
    )
    require(
        config.play != "together" or config.generator_plays == config.critic_plays == 1,
        "--play together moves all players at once; use --play alternate for several plays of one side",
    )
    require(
        config.critic_plays == 1 or config.adversarial != "none" or config.match == "critic",
        f"critic_plays is {config.critic_plays}, but there is no critic; choose --adversarial or --match critic",
    )


# Networks, rows, phases.


def _networks(config: Config, spec: Spec, latent: int, classes: int | None) -> dict[str, nn.Module]:
    sizes: dict[str, Any] = network_sizes(config, spec) | {"classes": classes}
    nets: dict[str, nn.Module] = {}
    if config.likelihood != "none":
        nets["encoder"] = build_posterior(config.posterior, spec, latent, norm=config.norm, **sizes)
    outputs, likelihood = spec.shape[0], None
    if config.likelihood in ON_VALUES:
        likelihood = build_likelihood(
            config.likelihood, bounded=spec.kind == "image", scale=config.likelihood_scale, levels=levels(spec)
        )
        outputs = likelihood.outputs(outputs)
    decoder = build_decoder(spec, latent, outputs=outputs, norm=config.norm, **sizes)
    nets["decoder"] = LikelihoodDecoder(decoder, likelihood) if likelihood else Generator(decoder, spec)
    if config.adversarial != "none":
        nets["discriminator"] = build_discriminator(
            spec, norm=config.norm_discriminator, spectral=config.spectral, **sizes
        )
    if config.match == "critic":
        nets["code_discriminator"] = build_code_discriminator(
            latent, width=config.code_width, depth=config.code_depth, classes=classes, spectral=config.spectral_code
        )
    return nets


def _feature_layer(config: Config, nets: dict[str, nn.Module]) -> int | None:
    if config.likelihood != "features":
        return None
    discriminator = nets["discriminator"]
    assert isinstance(discriminator, Discriminator)
    layer = max(1, discriminator.blocks - 2) if config.feature_layer is None else config.feature_layer
    require(
        1 <= layer <= discriminator.blocks,
        f"feature_layer is {layer}; this discriminator has blocks 1 to {discriminator.blocks}",
    )
    return layer


def _players(config: Config, nets: dict[str, nn.Module]) -> dict[str, Player]:
    training = Training(
        config.optimizer, config.learning_rate, config.beta1, config.beta2, config.clip_norm,
        {"discriminator": config.learning_rate_discriminator,
         "code_discriminator": config.learning_rate_code_discriminator},
    )  # fmt: skip
    own: dict[str, dict[str, Any]] = {
        "decoder": {"ema_half_life_examples": config.ema_half_life_examples},
        "discriminator": {"weight_limit": config.weight_limit},
    }
    return {name: training.player(name, net, **own.get(name, {})) for name, net in nets.items()}


def _rows(config: Config, codes: Codes) -> dict[str, list[Row]]:
    """Rows by what they do: "match" and "deceive" move encoder and decoder, "reconstruct" both, "judge" the critics."""
    rows: dict[str, list[Row]] = {"match": [], "reconstruct": [], "deceive": [], "judge": []}
    weight = warmed_up(config.beta, config.match_warmup_examples)
    if config.match == "kl":
        rows["match"].append(Row(Term("kl", rate, to={"encoder": weight}), ("z",)))
    if config.match == "mmd":
        rows["match"].append(mmd_row(weight, kernel=config.kernel, prior_std=config.prior_std))

    if config.likelihood != "none":
        to = {"encoder": config.likelihood_weight, "decoder": config.likelihood_weight * config.gamma}
        if config.likelihood == "features":
            rows["reconstruct"].append(feature_row(to, variance=feature_variance(config.feature_std)))
        else:
            rows["reconstruct"].append(Row(Term("reconstruction", distortion, to=to), ("x_rec",)))

    if config.adversarial != "none":
        loss = build_adversarial(config.adversarial, real_label=config.real_label)
        realism = Realism(loss, how_to_weigh(config.adversarial, config.weigh), KINDS[config.see])
        rows["deceive"].append(realism.decoder())
        penalty = Penalty(config.penalty, config.penalty_weight, config.penalty_every)
        rows["judge"] += [realism.discriminator(), *realism.penalty(penalty, codes)]
    if config.match == "critic":
        critic = CodeCritic(
            build_adversarial(config.code_adversarial or "non-saturating", real_label=config.real_label)
        )
        rows["match"].append(critic.encoder(weight))
        penalty = Penalty(config.code_penalty, config.code_penalty_weight, config.penalty_every)
        rows["judge"] += [critic.discriminator(), *critic.penalty(penalty, codes)]
    return rows


def _phases(config: Config, codes: Codes, rows: dict[str, list[Row]]) -> list[Phase]:
    match, reconstruct, deceive, judge = rows.values()
    plan = {
        "together": [("all", match + reconstruct + deceive + judge, 1)],
        "alternate": [
            ("autoencoder", match + reconstruct + deceive, config.generator_plays),
            ("critics", judge, config.critic_plays),
        ],
        "separate": [
            ("reconstruction", reconstruct, config.generator_plays),
            ("critics", judge, config.critic_plays),
            ("regularization", match + deceive, 1),
        ],
    }[config.play]
    return [phase(name, codes, chosen, repeats=repeats) for name, chosen, repeats in plan if chosen]
