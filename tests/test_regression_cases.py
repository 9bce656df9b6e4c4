"""Every mechanism still computes what its oracle once wrote down; see regression_cases.py for what is stored."""

import pytest
import torch
from regression_cases import CASES, FOLDER, build, evaluate, header_of, path_of, read, write

import attention_zoo
from attention_zoo.published.cases import implementations

NEEDS_A_COMPILER = {"flex"}
TOLERANCE = {"rtol": 1e-9, "atol": 1e-10}


def test_every_mechanism_has_a_case():
    named = {
        name for name in attention_zoo.names() if attention_zoo.resolve(name).__module__.startswith("attention_zoo")
    }
    assert named == {mechanism for mechanism, _ in CASES.values()}


def test_the_files_are_those_of_the_table_and_small():
    files = sorted(FOLDER.glob("*.safetensors"))
    assert files == [path_of(name) for name in sorted(CASES)]
    assert sum(file.stat().st_size for file in files) < 300_000


@pytest.mark.parametrize("name", CASES)
def test_each_implementation_gives_what_is_stored(name):
    header, tensors = read(name)
    assert header == header_of(name)
    weights = {key.removeprefix("weights/"): t for key, t in tensors.items() if key.startswith("weights/")}
    ways = ["auto", *implementations(build(name))]
    assert "reference" in ways and len(ways) >= 3
    for impl in ways:
        if impl in NEEDS_A_COMPILER:
            continue
        attention = build(name, impl=impl)
        attention.load_state_dict(weights)
        for key, found in evaluate(attention, tensors["input"]).items():
            torch.testing.assert_close(found, tensors[key], **TOLERANCE, msg=lambda text, way=impl: f"{way}: {text}")


def test_the_writer_gives_what_is_stored(tmp_path, monkeypatch):
    monkeypatch.setattr("regression_cases.FOLDER", tmp_path)
    write("swin_shifted")
    _, written = read("swin_shifted")
    monkeypatch.undo()
    _, stored = read("swin_shifted")
    assert written.keys() == stored.keys()
    for key, found in written.items():
        torch.testing.assert_close(found, stored[key], **TOLERANCE)
