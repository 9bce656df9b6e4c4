"""Reading and changing photographs keeps up with a training."""

import os

import pytest
import torch
from image_files import real

from attention_zoo import create_model
from runners.data.images import ImageData
from runners.data.loading import make_data
from runners.train.accuracy import train
from runners.train.optim import make_optimizer
from runners.train.recipe import DEIT300
from runners.train.resume import Training


@pytest.mark.slow
def test_one_reading_process_keeps_up_with_one_thread_that_trains():
    """`stl` at 224 px, batch 8, with all of DeiT's augmentation: under 5 % of the time is spent waiting."""
    tar = real("imagenet_one_per_class.tar")
    data = make_data(f"imagefolder:train={tar},val={tar}", 224, 224, 8, DEIT300, smoothing=0.1, workers=1)
    assert isinstance(data, ImageData) and data.num_classes == 1000
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        torch.manual_seed(0)
        model = create_model("stl", attn="bra", num_classes=1000)
        training = Training(model, make_optimizer(model, DEIT300, 8))
        train(training, data, steps=6, seed=0, device=torch.device("cpu"), recipe=DEIT300)
    finally:
        torch.set_num_threads(before)
    share = training.waited / training.seconds
    print(f"data_wait_frac {share:.4f} of {training.seconds:.1f} s, load {os.getloadavg()[0]:.1f}")
    assert share < 0.05
