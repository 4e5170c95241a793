"""VQ-VAE, VQGAN and VQ-VAE-2 with their priors on small colour images, at equal bits for each image.

    python bench/two_stage.py --data cifar10.npz --out runs/two-stage --examples 120000 --seeds 1

Trains what is missing (a finished run is read, a cut-off one resumed). `--examples` is the length of the autoencoder's
stage; each prior sees half as many. VQ-VAE is VQGAN without its discriminator: the same networks, loss, codebook and
prior, 8×8 codes of 1,024 for 32×32 images. VQ-VAE-2 has 4×4 and 8×8 codes of 256: also 640 bits.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import twofold
from twofold.display import Bar
from twofold.model import Model

SHARED: dict[str, Any] = {"width": 64, "latent": 32, "prior_share": 0.5, "conditional": True}
ONE_LEVEL = {**SHARED, "arch": "halving", "blocks": 2, "codes": 1024, "patch_layers": 2}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "vq-vae": ("vqgan", {**ONE_LEVEL, "adversarial_weight": 0.0}),
    "vqgan": ("vqgan", ONE_LEVEL),
    "vq-vae-2": ("vq-vae-2", {**SHARED, "codes": 256, "prior_share_bottom": 0.5}),
}
"""Name → recipe and options. The discriminator's ramp is from a quarter to half of the autoencoder's stage."""


def options_of(variant: str, examples: int) -> dict[str, Any]:
    """The recipe's options for an autoencoder stage of so many examples."""
    _, options = VARIANTS[variant]
    if options.get("adversarial_weight", 0.8) and "arch" in options:
        options = options | {"adversarial_begin": examples // 4, "adversarial_ramp": examples // 4}
    return options


def trained(variant: str, *, data: str, out: Path, examples: int, seed: int) -> Model:
    """The run of one variant and seed, trained as far as it is not."""
    recipe, options = VARIANTS[variant]
    shares = 1 + sum(value for name, value in options.items() if name.startswith("prior_share"))
    return twofold.train(
        recipe,
        data=data,
        out=out / f"{variant}-seed{seed}",
        examples=round(examples * shares),
        seed=seed,
        device="cpu",
        resume=True,
        watch=Bar(),
        **options_of(variant, examples),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/two-stage"))
    parser.add_argument("--examples", type=int, default=120_000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    arguments = parser.parse_args()
    for seed in arguments.seeds:
        for variant in arguments.variants:
            trained(variant, data=arguments.data, out=arguments.out, examples=arguments.examples, seed=seed)


if __name__ == "__main__":
    main()
