"""PixelCNN's nats and PixelGAN's codes, measured on held-out images.

    python bench/pixels.py pixelcnn --data mnist.npz --out runs/pixels --examples 60000 --batch-size 16
    python bench/pixels.py pixelgan pixelgan-clustering --data mnist.npz --size 14 --out runs/pixels --examples 300000

Images are binarised dynamically: each grey value is the probability of white, drawn anew at every presentation, and
once (seed 0) for the test images. Trains what is missing (a finished run is read, a cut-off one resumed) and prints for
each recipe and seed:

- pixelcnn: test nats and bits per dimension, exact;
- pixelgan, pixelgan-clustering: test nats given the image's own code and given another image's, and how well a new
  discriminator (logistic regression on the code, its squares and products, half of the test codes to learn, half to
  judge) tells codes from draws of the prior: 0.5 is not at all;
- pixelgan-clustering: accuracy of clusters. Each cluster gets the label most common in it among 10,000 training
  images; accuracy is on the test images. And how many clusters are used;
- seconds of processor time of training, where this call trained.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch

import twofold
from twofold.data import Data, from_model, load, to_model
from twofold.display import Bar
from twofold.model import Model, evaluating


def images(data: Data, split: str, count: int) -> tuple[torch.Tensor, np.ndarray]:
    """The first images of a split as models see them, and their labels."""
    part = getattr(data, split)
    chosen = torch.arange(min(count, len(part)))
    return to_model(part.x[chosen], data.spec), part.y[chosen].numpy()


def codes_of(model: Model, x: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(model.encode(from_model(x, model.spec)))


def told_apart(codes: np.ndarray, draws: np.ndarray) -> float:
    """Accuracy on unseen codes of a logistic regression with squares and products."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import PolynomialFeatures, StandardScaler

    x = np.concatenate([codes, draws])
    y = np.repeat([0, 1], [len(codes), len(draws)])
    order = np.random.default_rng(0).permutation(len(x))
    learn, judge = order[: len(x) // 2], order[len(x) // 2 :]
    judge_of_codes = make_pipeline(PolynomialFeatures(2), StandardScaler(), LogisticRegression(max_iter=500))
    return float(judge_of_codes.fit(x[learn], y[learn]).score(x[judge], y[judge]))


def given_codes(model: Model, x: torch.Tensor) -> dict[str, float]:
    """Nats of the images given their own codes, and given those of the next images."""
    from twofold.autoregressive import Pixels

    config = argparse.Namespace(**model.run.config["config"])
    pixels = Pixels.of(config, model.spec)
    tokens = pixels.tokens(x, generator=torch.Generator().manual_seed(0))
    codes = codes_of(model, x)
    nats: dict[str, list[torch.Tensor]] = {"own_code_nats": [], "other_code_nats": []}
    with evaluating(model.nets):
        for k in range(0, len(x), 256):
            for name, z in (("own_code_nats", codes), ("other_code_nats", codes.roll(1, 0))):
                nats[name].append(model.nets["decoder"](tokens[k : k + 256], z[k : k + 256]))
    return {name: float(torch.cat(parts).mean()) for name, parts in nats.items()}


def clusters(model: Model, data: Data, x: torch.Tensor, y: np.ndarray) -> dict[str, float]:
    """Accuracy of the clusters named by their most common label, and how many are used."""
    x_train, y_train = images(data, "train", 10_000)
    chosen_train, chosen = (model.classify(from_model(part, model.spec)).argmax(1) for part in (x_train, x))
    names = np.full(int(max(chosen_train.max(), chosen.max())) + 1, -1)
    for cluster in np.unique(chosen_train):
        names[cluster] = np.bincount(y_train[chosen_train == cluster]).argmax()
    return {"accuracy": float((names[chosen] == y).mean()), "clusters_used": float(len(np.unique(chosen)))}


def measure(model: Model, data: Data, count: int) -> dict[str, float]:
    x, y = images(data, "test", count)
    if "log_prob" in model.abilities:
        exact = model.log_prob(from_model(x, model.spec), seed=0)
        return {"nats": -float(exact["log_prob_nats"].mean()), "bits_per_dim": float(exact["bits_per_dim"].mean())}
    out = given_codes(model, x)
    if "classify" in model.abilities:
        return out | clusters(model, data, x, y)
    return out | {"codes_from_prior_accuracy": told_apart(codes_of(model, x).numpy(), model.draw_codes(len(x)))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="+")
    parser.add_argument("--data", required=True)
    parser.add_argument("--size", type=int)
    parser.add_argument("--out", type=Path, default=Path("runs/pixels"))
    parser.add_argument("--examples", type=int, default=60_000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--count", type=int, default=10_000, help="test images that are measured")
    parser.add_argument("--device", default=None)
    parser.add_argument("--options", type=json.loads, default={}, help="options of the recipe, as JSON")
    arguments = parser.parse_args()
    read = {} if arguments.size is None else {"size": arguments.size}
    data = load(arguments.data, **read)
    record = []
    for name in arguments.recipes:
        for seed in range(arguments.seeds):
            start = time.process_time()
            model = twofold.train(
                name,
                data=arguments.data,
                data_options=read,
                out=arguments.out / f"{name}-seed{seed}",
                examples=arguments.examples,
                batch_size=arguments.batch_size,
                seed=seed,
                device=arguments.device,
                resume=True,
                watch=Bar(),
                **{"binarise": True, **arguments.options},
            )
            seconds = time.process_time() - start
            record.append({"recipe": name, "seed": seed, "processor_seconds": seconds})
            record[-1] |= measure(model, data, arguments.count)
            print(record[-1], flush=True)
            (arguments.out / "results.json").write_text(
                json.dumps(vars(arguments) | {"results": record}, default=str, indent=2)
            )


if __name__ == "__main__":
    main()
