"""Every mechanism learns 64 photographs by heart: data, model, loss, optimiser and evaluation agree."""

import tarfile

import pytest
import torch
from image_files import real

import attention_zoo
from attention_zoo import create_model
from runners.data.loading import make_data
from runners.train.accuracy import train_and_evaluate
from runners.train.recipe import Recipe

IMAGES, STEPS = 64, 120
QUICK = {"bra"}


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """64 images of CIFAR-10, some of each class, for training and test alike."""
    folder = tmp_path_factory.mktemp("photographs")
    with tarfile.open(real("cifar10_val.tar")) as tar:
        of_class = {}
        for member in tar:
            if member.isfile():
                of_class.setdefault(member.name.split("/")[-2], []).append(member)
        chosen = [member for members in of_class.values() for member in members[:7]][:IMAGES]
        for member in chosen:
            place = folder / member.name.split("/")[-2]
            place.mkdir(exist_ok=True)
            (place / member.name.split("/")[-1]).write_bytes(tar.extractfile(member).read())
    return f"imagefolder:train={folder},val={folder}"


@pytest.mark.slow
@pytest.mark.parametrize(
    "attn",
    [pytest.param(name, marks=() if name in QUICK else pytest.mark.exhaustive) for name in attention_zoo.names()],
)
def test_64_photographs_are_learned_by_heart(photographs, one_thread, attn):
    recipe = Recipe(lr=2e-3, warmup_share=0.1, weight_decay=0.0)
    data = make_data(photographs, 32, 32, IMAGES, recipe, workers=0)
    assert len(data.folders.train_indices) == IMAGES and data.num_classes == 10
    torch.manual_seed(0)
    model = create_model("small32", attn=attn, num_classes=10)
    row, _ = train_and_evaluate(model, data, steps=STEPS, seed=0, device=torch.device("cpu"), recipe=recipe)
    assert (row["acc1"], row["n_eval"]) == (100, IMAGES)
