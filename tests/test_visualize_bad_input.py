"""visualize.py refuses bad input in one line, before any work and before it imports torch."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from pictured_models import small_model
from PIL import Image

from runners.cells.weights import save_checkpoint
from runners.visualize import main

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    save_checkpoint(folder / "bra.pth", small_model(), "small", attn="bra")
    torch.save(small_model("swin").state_dict(), folder / "swin.pth")
    torch.save([1, 2], folder / "list.pth")
    (folder / "text.pth").write_text("no weights")
    (folder / "text.png").write_text("no image")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(folder / "whole.png")
    (folder / "cut.png").write_bytes((folder / "whole.png").read_bytes()[:2000])
    return folder


SMALL = ["--model", "small"]
REFUSED = {
    "no model": ([], "--model"),
    "unknown model": (
        ["--model", "biformer_tini"],
        "--model: unknown model .*did you mean 'biformer_tiny'.*small.*path",
    ),
    "unknown mechanism": ([*SMALL, "--attn", "bro"], "--model: unknown mechanism 'bro'.*did you mean 'bra'"),
    "unknown field": ([*SMALL, "--set", "top=3"], "--model: unknown field of bra 'top'.*topk"),
    "other field": ([*SMALL, "--set", "swin.window=3"], r"--set swin.window=3: the mechanism is bra, not swin"),
    "malformed setting": ([*SMALL, "--set", "topk"], "--set: 'topk' is not FIELD=VALUE"),
    "misfit": ([*SMALL, "--set", "topk=99"], "topk=99 is above the 16 regions"),
    "fixed model": (["--model", "biformer_tiny", "--attn", "swin"], "takes padding and checkpoint, not attn='swin'"),
    "arch of a name": ([*SMALL, "--arch", "stl"], "arch=stl says what a checkpoint file holds"),
    "no checkpoint": (["--model", "{}/none.pth"], "checkpoint .*none.pth cannot be read: No such file"),
    "text": (["--model", "{}/text.pth"], "checkpoint .*text.pth is refused"),
    "list": (["--model", "{}/list.pth"], "checkpoint .*list.pth holds no weights"),
    "anonymous": (["--model", "{}/swin.pth"], "swin.pth does not say what model it holds.*arch: .*biformer_tiny"),
    "other mechanism": (
        ["--model", "{}/swin.pth", "--arch", "small", "--attn", "bra"],
        "swin.pth is no checkpoint of small, bra: unknown: .*bias_table.*missing: .*lepe",
    ),
    "other model": (["--model", "{}/swin.pth", "--arch", "biformer_tiny"], "is no checkpoint of biformer_tiny"),
    "contradiction": (["--model", "{}/bra.pth", "--attn", "swin"], "holds small, bra, not attn=swin"),
    "settings of a file": (["--model", "{}/bra.pth", "--set", "topk=2"], "takes no other settings, got topk=2"),
    "no image": ([*SMALL, "--image", "{}/none.png"], "--image: .*none.png does not exist.*built in: china"),
    "no picture": ([*SMALL, "--image", "{}/text.png"], "--image: .*text.png cannot be read: no image"),
    "cut image": ([*SMALL, "--image", "{}/cut.png"], "--image: .*cut.png cannot be read: .*truncated"),
    "folder": ([*SMALL, "--image", "{}"], "--image: .* cannot be read: Is a directory"),
    "unknown option of a probe": ([*SMALL, "--image", "digit-vote:jitters=1"], "--image: unknown option 'jitters'"),
    "query outside": ([*SMALL, "--query", "10,64"], "--query 10,64 is outside the image.*64x64.*X is 0 to 63"),
    "malformed query": ([*SMALL, "--query", "10"], "--query: '10' is not Y,X"),
    "negative query": ([*SMALL, "--query=-1,3"], "--query: '-1,3' is not Y,X"),
    "stage": ([*SMALL, "--stage", "5"], "--stage 5: there are stages 1 to 4"),
    "no stage": ([*SMALL, "--stage", "0"], "--stage: '0' is no stage"),
    "block": ([*SMALL, "--block", "3"], "--block 3: there are 1 to 1 at stage 1, .*1 to 2 at stage 3"),
    "head": ([*SMALL, "--stage", "1", "--head", "1,3"], "--head 3: there are 1 to 2 at stage 1"),
    "block and head": ([*SMALL, "--block", "2", "--head", "16"], "no stage has both"),
    "resolution": ([*SMALL, "--resolution", "10"], "--resolution: '10' is not PX or HxW"),
    "out": ([*SMALL, "--out", "{}/text.png"], "--out .*text.png is a file"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_refused_in_one_line_before_work_starts(files, tmp_path, capsys, monkeypatch, case):
    arguments, message = REFUSED[case]
    monkeypatch.setattr("attention_zoo.attention_maps.mixer_inputs", None)
    arguments = [argument.replace("{}", str(files)) for argument in arguments]
    try:
        code = main(["--out", str(tmp_path / "out"), *arguments])
    except SystemExit as ended:
        code = ended.code
    said = capsys.readouterr()
    assert code == 2
    assert not said.out
    assert said.err.count("\n") == 1
    assert said.err.startswith("visualize.py: error: ")
    assert pd.Series(said.err).str.contains(message).all(), said.err
    assert not (tmp_path / "out").exists()


def test_the_script_refuses_before_it_imports_torch(tmp_path):
    command = [sys.executable, "-X", "importtime", "runners/visualize.py", "--model", "small", "--out", str(tmp_path)]
    done = subprocess.run([*command, "--image", "none.png"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "--image: none.png does not exist" in done.stderr
    assert "matplotlib" not in done.stderr
    assert " torch\n" not in done.stderr
