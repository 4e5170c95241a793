"""Discriminators of pairs: an example and its code, judged together."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from twofold.nets.build import build_encoder
from twofold.nets.mlp import MLP
from twofold.spec import Spec


class JointDiscriminator(nn.Module):
    """Logits (batch,) of pairs of an example (batch, …) and a code (batch, latent): each goes through its own network,
    and the features of both, side by side, through a third.

    Args:
        x_net: examples → features (batch, …), flattened here.
        z_net: codes → features (batch, …), flattened here.
        joint: (batch, features of both) → (batch, 1).

    >>> pairs = JointDiscriminator(nn.Linear(2, 3), nn.Identity(), nn.Linear(3 + 4, 1))
    >>> pairs(torch.zeros(5, 2), torch.zeros(5, 4)).shape
    torch.Size([5])
    """

    def __init__(self, x_net: nn.Module, z_net: nn.Module, joint: nn.Module) -> None:
        super().__init__()
        self.x_net = x_net
        self.z_net = z_net
        self.joint = joint

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        """Logits (batch,), any real values."""
        features = [self.x_net(x).flatten(1), self.z_net(z).flatten(1)]
        return self.joint(torch.cat(features, dim=1)).squeeze(1)


def build_joint_discriminator(
    spec: Spec,
    latent: int,
    *,
    arch: str = "conv",
    width: int | None = None,
    depth: int = 2,
    hidden: int = 256,
    code_width: int = 256,
    norm: str = "none",
    spectral: bool = False,
) -> JointDiscriminator:
    """A discriminator of the Spec's data with codes (batch, latent).

    Convolutions give `hidden` features of an image, two layers `code_width` features of its code, and two more layers
    of `hidden` units judge both (Dumoulin et al. 2017, table 4, in small). Vectors, and images under "mlp", are laid
    beside their code and go through one MLP.

    Args:
        arch, width, depth, norm, spectral: as in `build_discriminator`; no norm touches the first layer.

    >>> net = build_joint_discriminator(Spec("image", (1, 28, 28)), 16, width=8)
    >>> net(torch.zeros(4, 1, 28, 28), torch.zeros(4, 16)).shape
    torch.Size([4])
    """
    if arch == "mlp" or spec.kind != "image":
        units = (256 if width is None else width,) * depth
        both = MLP(
            spec.size + latent, units, 1, activation="leaky", norm=norm, first_norm=False, spectral=spectral
        )  # fmt: skip
        return JointDiscriminator(nn.Flatten(), nn.Identity(), both)
    features = build_encoder(
        spec, hidden, arch=arch, width=width, norm=norm, first_norm=False, activation="leaky", spectral=spectral
    )
    codes = MLP(latent, (code_width,), code_width, activation="leaky", spectral=spectral)
    judge = MLP(hidden + code_width, (hidden, hidden), 1, activation="leaky", spectral=spectral)
    return JointDiscriminator(features, codes, nn.Sequential(nn.LeakyReLU(0.2), judge))
