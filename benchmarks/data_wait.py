"""How long a training waits for its images: python -m benchmarks.data_wait PHOTOGRAPHS.tar

`stl` around BRA, 224 px, batch 8, one thread and one process that reads, all of DeiT's augmentation. Prints the share
of the time that was spent waiting, and the load of the machine.
"""

import argparse
import os
import sys
from pathlib import Path

import torch

from attention_zoo import create_model
from runners.data.loading import make_data
from runners.train.accuracy import train
from runners.train.optim import make_optimizer
from runners.train.recipes import DEIT300
from runners.train.resume import Training

SIDE, BATCH, STEPS = 224, 8, 20


def waiting_share(images: Path) -> tuple[float, float]:
    """Share of the time of some steps that was spent waiting for images, and that time in seconds."""
    torch.set_num_threads(1)
    spec = f"imagefolder:train={images},val={images}"
    data = make_data(spec, SIDE, SIDE, BATCH, DEIT300, smoothing=DEIT300.smoothing, workers=1)
    torch.manual_seed(0)
    model = create_model("stl", attn="bra", num_classes=data.num_classes)
    training = Training(model, make_optimizer(model, DEIT300, BATCH))
    train(training, data, steps=STEPS, seed=0, device=torch.device("cpu"), recipe=DEIT300)
    return training.waited / training.seconds, training.seconds


def main() -> int:
    """Print the share."""
    parser = argparse.ArgumentParser(prog="benchmarks.data_wait", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("images", type=Path, help="folder or tar with a folder for each class")
    share, seconds = waiting_share(parser.parse_args().images)
    print(f"data_wait_frac {share:.4f} of {seconds:.1f} s for {STEPS} steps; load {os.getloadavg()[0]:.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
