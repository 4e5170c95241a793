"""Anomaly detection by training on some classes: every score's AUROC, over seeds.

    python bench/anomalies.py --data digits --classes 0,1,2,3,4 --examples 30000 --seeds 3 --out runs/anomalies

Trains each recipe on the training examples of the given classes, scores the whole test split (`twofold score`), and
prints one table per recipe: mean and standard deviation over seeds, or with one seed the bootstrap's standard error.
Runs that are there already are scored, not trained again. Everything is in OUT/results.json.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import twofold
from twofold.run import write_json

COLUMNS = ("auroc", "aupr", "false_alarm_rate", "detection_rate")


def trained(name: str, arguments: argparse.Namespace, seed: int) -> tuple[twofold.Model, float]:
    path = Path(arguments.out) / f"{name}-{Path(arguments.data).stem}-{arguments.classes.replace(',', '')}-{seed}"
    start = time.process_time()
    sizes = {} if arguments.width is None else {"width": arguments.width}
    model = twofold.train(
        name, data=arguments.data, out=path, examples=arguments.examples, seed=seed, device="cpu", resume=True,
        data_options={"classes": arguments.classes.split(",")}, **sizes,
    )  # fmt: skip
    return model, time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--classes", default="0,1,2,3,4")
    parser.add_argument("--recipes", default="vae,gan,vae-gan")
    parser.add_argument("--scores", help="as of twofold score; default: all cheap ones")
    parser.add_argument("--examples", type=int, default=30_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--width", type=int)
    parser.add_argument("--false-alarm", type=float, default=0.05)
    parser.add_argument("--out", default="runs/anomalies")
    arguments = parser.parse_args()
    results: dict[str, Any] = {"settings": vars(arguments), "runs": []}
    for name in arguments.recipes.split(","):
        found = []
        for seed in range(arguments.seeds):
            model, seconds = trained(name, arguments, seed)
            scores = arguments.scores.split(",") if arguments.scores else None
            record = twofold.score(model, scores=scores, false_alarm=arguments.false_alarm, seed=seed)
            found.append(record["scores"])
            results["runs"].append({"recipe": name, "seed": seed, "training_seconds": seconds, **record})
            write_json(Path(arguments.out) / "results.json", results)
        print(f"\n{name}, {arguments.data}, normal {arguments.classes}, {arguments.examples:,} examples")
        print("| score | " + " | ".join(COLUMNS) + " |\n|---|" + "---|" * len(COLUMNS))
        for column in found[0]:
            print(
                f"| `{column}` | " + " | ".join(cell([run[column] for run in found], c) for c in COLUMNS) + " |",
                flush=True,
            )


def cell(runs: list[dict[str, float]], column: str) -> str:
    values = [run[column] for run in runs]
    if len(values) > 1:
        return f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}"
    error = runs[0].get(f"{column}_se")
    return f"{values[0]:.3f}" + (f" ± {error:.3f}" if error is not None else "")


if __name__ == "__main__":
    main()
