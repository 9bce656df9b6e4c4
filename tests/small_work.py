"""A network so small that a measure of it takes no time, for the tests of measures."""

import torch
from torch import nn

from runners.measure.rounds import Work

CPU = torch.device("cpu")


def tiny():
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 4))


WORK = Work(build=tiny, build_baseline=None, input_shape=(4, 3, 8, 8), threads=1)
