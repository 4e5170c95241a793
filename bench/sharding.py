"""Memory of each process with a whole and with a sharded network: steps of the Transformer of `vqgan`'s codes.

    MALLOC_MMAP_THRESHOLD_=1000000 torchrun --nproc-per-node 2 bench/sharding.py [--shard]

Without the variable glibc keeps freed blocks for itself, and what is resident says little.
"""

from __future__ import annotations

import argparse
import resource
from pathlib import Path

import numpy as np
import torch

from twofold.game import begin, step
from twofold.processes import joined
from twofold.sharding import Shard
from twofold.training import Settings, prepare

SIZES = {"width": 8, "multipliers": "1,2", "codes": 64, "prior_width": 768, "prior_layers": 12, "prior_heads": 12}


def resident() -> float:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def main() -> None:
    """Three steps of 2 examples in each process; prints bytes a parameter beyond what the process had before."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--shard", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with joined("cpu") as processes:
        before = resident()
        data = np.zeros((16, 16, 16), np.uint8)
        settings = Settings(batch_size=2 * processes.count)
        plan = prepare("vqgan", data=data, settings=settings, device="cpu", processes=processes, **SIZES)
        stage = plan.recipe.stages[-1]
        parameters = sum(w.numel() for w in stage.game.players["transformer"].net.parameters())
        if arguments.shard and (shard := Shard.of(stage, processes, plan.device)) is not None:
            stage = shard.stage
        progress = begin(stage.game)
        generator = torch.Generator().manual_seed(processes.rank)
        for _ in range(3):
            codes = torch.randint(64, (2, 64), generator=generator)
            step(stage.game, progress, lambda codes=codes: {"codes": codes}, peers=processes)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(
            f"process {processes.rank}: {parameters:,} parameters, {(resident() - before) / parameters:.1f} bytes each "
            f"after the steps, {(peak - before) / parameters:.1f} at most"
        )


if __name__ == "__main__":
    main()
