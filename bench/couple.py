"""CoGAN on digits and their negatives, with shared layers and without: do the two images of one code agree?

    python bench/couple.py --out runs/couple --examples 60000 --seeds 1

Pixel agreement of 1,000 pairs, one side turned negative and both cut at mid grey; 0.5 is chance for balanced images;
two digits drawn apart agree as far as all digits do, which is printed as "apart".
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

import twofold
from twofold.data import load, pair


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/couple"))
    parser.add_argument("--examples", type=int, default=60_000)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--width", type=int, default=16)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    digits = load("digits")
    images = digits.train.x[:, 0].double().numpy()
    data = pair(images, 16 - images, paired=False, value_range=(0, 16))
    rows: dict[str, list[float]] = {"shared": [], "not shared": [], "apart": []}
    for seed in range(arguments.seeds):
        for name, share in (("shared", True), ("not shared", False)):
            out = arguments.out / f"{'shared' if share else 'apart'}-{seed}"
            settings = {"examples": arguments.examples, "seed": seed, "width": arguments.width, "share": share}
            model = twofold.train("cogan", data=data, out=out, resume=True, **settings)
            (found,) = twofold.evaluate(model, data=data, metrics="couple_agreement").results
            rows[name].append(found.value)
            if share:
                rows["apart"].append(found.protocol["note"]["of_different_codes"])
            print(f"seed {seed}, {name}: {rows[name][-1]:.3f}", flush=True)
    for name, values in rows.items():
        print(f"{name}: {np.mean(values):.3f} ± {np.std(values):.3f} ({len(values)} seeds)")


if __name__ == "__main__":
    main()
