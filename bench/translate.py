"""Labels ↔ photos: FCN-scores of runs on one set of pairs, and a picture of their translations side by side.

    python bench/translate.py runs/pix2pix-0 runs/cyclegan-0 … --data camvid --pairs label photo --size 36x48 \
        --ignore 11 --out figures.json --picture figures.png

The runs are trained with `twofold train` on the same source and size, inputs being label maps with a palette. A
segmenter is trained on the training photos (and kept in --cache); each run translates every test label map, and its
photos are scored. Runs that translate back (CycleGAN) are scored on photo → labels too, with cycle errors.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch

import twofold
from twofold.data import load, to_model
from twofold.metrics.fcn_score import Settings, classes_of_colors, fcn_score, label_score, trained_segmenter
from twofold.metrics.translation import diversity, map_error
from twofold.pictures import pair_grid


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--pairs", nargs=2, required=True)
    parser.add_argument("--size", default="64x64")
    parser.add_argument("--ignore", type=int, nargs="*", default=[])
    parser.add_argument("--steps", type=int, default=600, help="of the segmenter")
    parser.add_argument("--cache", type=Path, default=Path("runs/segmenters"))
    parser.add_argument("--out", type=Path, default=Path("figures.json"))
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--shown", type=int, nargs="*", default=[0, 40, 80, 120, 160, 200])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    height, _, width = arguments.size.partition("x")
    data = load(arguments.data, pairs=tuple(arguments.pairs), size=(int(height), int(width or height)))
    assert data.test is not None and data.spec.input is not None and data.spec.input.palette is not None
    palette, ignore = data.spec.input.palette, arguments.ignore
    everything = [(s.x[torch.arange(len(s))], s.a[torch.arange(len(s))]) for s in (data.train, data.test)]
    photos, labels = zip(*((to_model(x, data.spec), to_model(a, data.spec.input)) for x, a in everything), strict=True)
    true = [classes_of_colors(a, palette, ignore=ignore) for a in labels]
    start = time.process_time()
    settings = Settings(classes=len(palette), steps=arguments.steps)
    segmenter = trained_segmenter(photos[0], true[0], settings, cache=arguments.cache)
    print(f"segmenter: {time.process_time() - start:.0f} s of processor time", flush=True)
    shown = torch.tensor(arguments.shown)
    figures, rows = {}, [labels[1][shown], photos[1][shown]]
    for path in arguments.runs:
        model = twofold.load(path)
        made = model.translate_tensor(labels[1])[:, 0]
        records = fcn_score(segmenter, made, true[1], real=photos[1])
        few = labels[1][:50]
        records.append({"name": "l1_to_target", "value": map_error(made, photos[1])})
        variants = model.translate_tensor(few, variants=5)
        records.append({"name": "diversity_pixel_50x5", "value": diversity(variants)})
        if "translate_back" in model.abilities:
            back = model.translate_tensor(photos[1], direction="back")[:, 0]
            records += label_score(back, true[1], palette, ignore=ignore)
            there = model.translate_tensor(made, direction="back")[:, 0]
            again = model.translate_tensor(back)[:, 0]
            records.append({"name": "cycle_error_input", "value": map_error(there, labels[1])})
            records.append({"name": "cycle_error_target", "value": map_error(again, photos[1])})
        figures[path.name] = records
        print(path.name, *(f"{r['name']} {r['value']:.3f}" for r in records), sep="\n  ", flush=True)
        rows.append(made[shown])
    reference = fcn_score(segmenter, photos[1], true[1], real=photos[1])
    figures["real photos"] = reference
    arguments.out.write_text(json.dumps(figures, indent=1))
    print("real photos", *(f"{r['name']} {r['value']:.3f}" for r in reference), sep="\n  ")
    if arguments.picture:
        pair_grid(*rows, columns=len(shown), scale=2).save(arguments.picture)


if __name__ == "__main__":
    main()
