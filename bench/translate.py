"""Labels ↔ photos: figures of runs on one set of pairs, and a picture of their translations side by side.

    python bench/translate.py runs/pix2pix-0 runs/cyclegan-0 … --data camvid --pairs label photo --size 36x48 \
        --ignore 11 --out figures.json --picture figures.png

The runs are trained with `twofold train` on the same source and size; the inputs are label maps with a palette, and
CycleGAN may have read them with `--unpaired`. Each is measured as by `twofold evaluate RUN --data … --metrics …`, which
keeps the segmenter in $TWOFOLD_CACHE.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

import twofold
from twofold.data import load
from twofold.evaluation import chosen_metrics, measure
from twofold.metrics.fcn_score import fcn_score
from twofold.pictures import pair_grid
from twofold.study import SEGMENTER_STEPS, Study, count_for

METRICS = ("fcn_score", "label_score", "l1_to_target", "variant_distance", "cycle_errors", "identity_errors")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--pairs", nargs=2, required=True)
    parser.add_argument("--size", default="64x64")
    parser.add_argument("--ignore", type=int, nargs="*", default=[])
    parser.add_argument("--steps", type=int, default=SEGMENTER_STEPS, help="of the segmenter")
    parser.add_argument("--out", type=Path, default=Path("figures.json"))
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--shown", type=int, nargs="*", default=[0, 40, 80, 120, 160, 200])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    height, _, width = arguments.size.partition("x")
    data = load(arguments.data, pairs=tuple(arguments.pairs), size=(int(height), int(width or height)))
    assert data.spec.input is not None and data.spec.input.palette is not None
    palette, shown = data.spec.input.palette, torch.tensor(arguments.shown)
    figures, rows = {}, []
    for path in arguments.runs:
        ignore, steps = tuple(arguments.ignore), arguments.steps
        study = Study(twofold.load(path), data, count_for(data, None), ignore=ignore, segmenter_steps=steps)
        results = measure(study, chosen_metrics(METRICS), only_possible=True).results
        figures[path.name] = [result.to_json() for result in results]
        print(path.name, *(f"{r.name} {r.value:.3f}" for r in results), sep="\n  ", flush=True)
        rows.append(study.translations[shown])
    real, true = study.real[0], study.classes(study.inputs, palette)
    reference = fcn_score(study.segmenter, real, true, real=real, split=study.split)
    figures["real photos"] = [result.to_json() for result in reference]
    print("real photos", *(f"{r.name} {r.value:.3f}" for r in reference), sep="\n  ")
    arguments.out.write_text(json.dumps(figures, indent=1))
    if arguments.picture:
        grid = pair_grid(study.inputs[shown], real[shown], *rows, columns=len(shown), scale=2)
        grid.save(arguments.picture)


if __name__ == "__main__":
    main()
