"""What caches save: the time of drawing tokens with and without, in one run.

    python bench/decode.py --out runs/decode

A gated PixelCNN (8 layers of 64 channels, 28×28 binary images) and a GPT (8 layers of 256 units, 256 tokens), random
weights, on the CPU and one thread. For each batch size: the seconds of `generate` with the cache, and of the same call
through `Uncached`, which runs the whole network for every token; whether both drew the same tokens; the ratio. Without
the cache `--share` of the tokens is drawn, spread evenly over the places, and their mean taken for all. Then the time
against the number of tokens, fitted by a straight line on a log-log scale: a slope of 1 is time linear in tokens.

With `--peers`, in an environment that has Hugging Face's `transformers`: a GPT-2 of the same size with their cache, and
a loop in the manner of nanoGPT, which runs the whole pass for every token (here with our network).

Processor time of one thread, in `--turns` turns in which everything compared is timed once: medians, and of the ratios
within a turn the quartiles too. On a machine that does other work the memory is shared all the same, and only figures
of one turn may be divided by one another.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import seconds_of
from torch import nn

from twofold.decode import Uncached, generate, row_seeds
from twofold.nets.pixelcnn import PixelCNN
from twofold.nets.transformer import GPT

GPT_TITLE = "GPT 8×256, 256 tokens"


def scattered(net: nn.Module) -> nn.Module:
    """`net` with weights large enough that its tokens depend on one another."""
    generator = torch.Generator().manual_seed(0)
    for weight in net.parameters():
        if weight.ndim > 1:
            nn.init.normal_(weight, std=(1 / weight[0].numel()) ** 0.5, generator=generator)
    return net.eval()


def quartiles(above: list[float], below: list[float]) -> list[float]:
    """Median and quartiles of the ratios, turn by turn."""
    return [float(np.quantile(np.divide(above, below), q)) for q in (0.5, 0.25, 0.75)]


def shown(ratio: list[float]) -> str:
    digits = 0 if ratio[0] >= 20 else 1
    return "{:.{d}f} ({:.{d}f} to {:.{d}f})".format(*ratio, d=digits)


def spread_over(length: int, share: float) -> list[int]:
    """The numbers of tokens at which a pass is timed where each token has one."""
    return [int(n) for n in np.linspace(1, length, max(2, round(share * length))).round()]


@torch.inference_mode()
def naive_seconds(model: Uncached, length: int, rows: int, share: float) -> float:
    """Of drawing `length` tokens with a whole pass each, from passes at evenly spread places."""
    tokens = torch.zeros(rows, length, dtype=torch.int64)
    return length * float(np.mean([seconds_of(partial(model, tokens[:, :n])) for n in spread_over(length, share)]))


def measure(model: nn.Module, length: int, rows: int, turns: int, share: float) -> dict[str, Any]:
    """One line of the table."""
    seeds = row_seeds(rows, generator=torch.Generator().manual_seed(0))
    lengths = [length // 8, length // 4, length // 2, length]
    few = lengths[0]
    same = torch.equal(generate(model, few, seeds=seeds), generate(Uncached(model), few, seeds=seeds))
    cached, naive = [], []
    for _ in range(turns):
        cached.append([seconds_of(partial(generate, model, n, seeds=seeds)) for n in lengths])
        naive.append(naive_seconds(Uncached(model), length, rows, share))
    times = np.median(cached, axis=0)
    return {
        "cached_seconds": float(times[-1]),
        "naive_seconds": float(np.median(naive)),
        "ratio": quartiles(naive, [turn[-1] for turn in cached]),
        "same_tokens": same,
        "log_log_slope": float(np.polyfit(np.log(lengths), np.log(times), 1)[0]),
        "tokens_per_second": rows * length / float(times[-1]),
    }


@torch.no_grad()
def peers(net: GPT, length: int, rows: int, turns: int, share: float) -> dict[str, tuple[float, list[float]]]:
    """Drawing `length` tokens, a peer each: seconds, and how many times ours."""
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"n_positions": length, "n_embd": 256, "n_layer": len(net.blocks), "n_head": 8}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=net.vocabulary, bos_token_id=0, eos_token_id=None, **sizes)).eval()
    start = torch.ones(rows, 1, dtype=torch.int64)
    draw = partial(model.generate, start, do_sample=True, top_k=0, max_length=length, pad_token_id=0, use_cache=True)
    ours = partial(generate, net, length, seeds=row_seeds(rows, generator=torch.Generator().manual_seed(0)))

    def whole_pass(k: int) -> None:
        logits = net(torch.zeros(rows, k, dtype=torch.int64))[:, -1]
        torch.multinomial(logits.softmax(-1), 1)

    for warming in (draw, ours, partial(whole_pass, length)):
        warming()
    times: dict[str, list[float]] = {"ours": [], "transformers": [], "nanoGPT-style loop": []}
    for _ in range(turns):
        times["ours"].append(seconds_of(ours))
        times["transformers"].append(seconds_of(draw))
        passes = [seconds_of(partial(whole_pass, k)) for k in spread_over(length, share)]
        times["nanoGPT-style loop"].append(length * float(np.mean(passes)))
    ours_seconds = times.pop("ours")
    return {name: (float(np.median(theirs)), quartiles(theirs, ours_seconds)) for name, theirs in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/decode"))
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--share", type=float, default=0.1)
    parser.add_argument("--peers", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    side = 28
    models = {
        "PixelCNN 8×64, 28×28": (scattered(PixelCNN(1, side, side, levels=2, width=64, layers=8)), side * side),
        GPT_TITLE: (scattered(GPT(512, 256, width=256, layers=8, heads=8)), 256),
    }
    record = [
        {"model": name, "rows": rows} | measure(model, length, rows, arguments.turns, arguments.share)
        for name, (model, length) in models.items()
        for rows in arguments.batches
    ]
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "decode.json").write_text(json.dumps(record, indent=2, ensure_ascii=False))
    print("| model | rows | with cache, s | without, s | ratio | same tokens | slope | tokens/s |\n|" + "---|" * 8)
    for r in record:
        print(
            f"| {r['model']} | {r['rows']} | {r['cached_seconds']:.2f} | {r['naive_seconds']:.1f} | "
            f"{shown(r['ratio'])} | {r['same_tokens']} | {r['log_log_slope']:.2f} | {r['tokens_per_second']:.0f} |"
        )
    if arguments.peers:
        gpt, length = models[GPT_TITLE]
        for rows in arguments.batches:
            for name, (spent, ratio) in peers(gpt, length, rows, arguments.turns, arguments.share).items():
                print(f"{name}, {rows} rows: {spent:.2f} s, {shown(ratio)} times ours")


if __name__ == "__main__":
    main()
