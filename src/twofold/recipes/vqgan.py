"""VQGAN with a Transformer (Esser, Rombach & Ommer 2021, "Taming transformers for high-resolution image synthesis").

Stage 1, the autoencoder: encoder, codebook and decoder as in a VQ-VAE, and a discriminator of patches. With z the
encoder's output, z_q the nearest codes and x_rec what the decoder makes of them, encoder and decoder minimise (their
eq. 4-7)

    |x - x_rec|  +  v · perceptual(x, x_rec)  +  β ‖z - sg[z_q]‖²  -  w · λ · D(x_rec)

and the discriminator its hinge loss. λ keeps the adversarial gradient at the decoder's last layer as large as the
reconstruction's (both first terms'): λ = ‖∇ reconstruction‖ / (‖∇ adversarial‖ + 1e-4). It reaches the encoder too, as
in the paper's code. With `--codebook ema` codes are moving averages.

Routing:

    term                       encoder                         decoder  codebook  discriminator
    quantisation                 +0.25                               ·        +1              ·
    reconstruction                  +1                              +1         ·              ·
    adversarial_generator      0→0.8 (20,000…40,000)·guard·λ  0→0.8 (20,000…40,000)·guard·λ  · ·
    adversarial_discriminator        ·                               ·         ·             +1

The switch-on is guarded. The discriminator trains from the first step, while its weight w in the generator's objective
is 0; then w rises in a straight line. `rise` is the reconstruction error's moving average relative to that before the
switch-on, `rise_largest` its largest value so far; the guard takes w away as `rise` comes near `adversarial_limit`.
`discriminator_accuracy` is the share of patches that it tells right. λ is logged as well.

Stage 2, the prior: a GPT on the codes in raster order, by their exact likelihood,

    -Σ_i log p(code_i | code_1 … code_(i-1), y)

with a label (`--conditional`) that is left out for a part of the examples, so that sampling can be guided. The codes of
the training split are computed once and kept in the run, unless pictures are flipped or moved. `rate` gives the codes'
exact negative log-likelihood of an example.

`perceptual` is a distance of a network's layers. The paper's is LPIPS, whose weights are a download; `features` trains a
small classifier on the labels first, in a stage of its own, and takes its layers.

Presets: `vqgan-paper` has the networks of the ImageNet model with 16-fold halving and 1,024 codes, and the 24 layers of
its Transformer.

Deviations: losses are sums over an image's values and not means, which is the same objective at a rate the optimizer
undoes, except that the commitment weighs less by (values of z / values of x); λ's limit is scaled to that. All players
move at once. The ramp and the guard (`adversarial_limit none` leaves it out). Without perceptual loss by default. The
halving networks (`--arch halving`) are the VQ-VAE's, for comparisons at equal networks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from twofold.codes import CodePrior, Level, Quantiser, code_abilities, quantise
from twofold.coefficients import GradientBalance, Guard, Ramp, product
from twofold.game import Batch, Coefficient, Game, Nets, Phase, Player, Stage, State, Term
from twofold.nets.features import FeatureClassifier
from twofold.nets.layers import norm_layer
from twofold.nets.norm import call_together
from twofold.nets.patch import PatchDiscriminator, most_layers
from twofold.nets.residual import DoublingDecoder, HalvingEncoder, halved
from twofold.nets.switch_on import SwitchOn
from twofold.nets.transformer import GPT
from twofold.recipe import Recipe, option, require
from twofold.rollouts import classes_for
from twofold.spec import Spec
from twofold.terms.adversarial import Hinge
from twofold.terms.matching import l1
from twofold.terms.perceptual import perceptual_distance
