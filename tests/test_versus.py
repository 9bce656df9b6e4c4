"""Two source trees in turns: the same weights, and no ratio of different computations."""

import pytest

from benchmarks.versus import Work, main, measure

TREE = """
import time
from torch import nn

class Model(nn.Sequential):
    def forward(self, x):
        time.sleep({seconds})
        return super().forward(x) * {scale}

def create_model(name, attn=None):
    model = Model(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 1000))
    nn.init.normal_(model[2].weight, std={std})
    return model
"""


@pytest.fixture
def make_tree(tmp_path):
    def make(name, *, seconds=0.0, scale=1.0, std=1.0):
        package = tmp_path / name / "attention_zoo"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text(TREE.format(seconds=seconds, scale=scale, std=std))
        return package.parent

    return make


@pytest.mark.slow
def test_trees_are_timed_with_the_same_weights(make_tree):
    trees = make_tree("this", seconds=0.05), make_tree("other", seconds=0.5, std=3.0)
    samples = measure(Work("any", None, 1), trees, rounds=5, threads=1)
    assert [len(values) for values in samples.values()] == [5, 5]
    assert min(samples["this"]) >= 50
    assert min(samples["other"]) >= 500
    assert min(samples["this"]) < 500


@pytest.mark.slow
def test_a_tree_that_computes_something_else_is_refused(make_tree):
    trees = make_tree("this"), make_tree("other", scale=1.01)
    with pytest.raises(RuntimeError, match=r"logits differ by 9\.9e-03"):
        measure(Work("any", None, 1), trees, rounds=1, threads=1)


@pytest.mark.slow
def test_a_tree_that_cannot_be_imported_is_named(make_tree, tmp_path):
    with pytest.raises(RuntimeError, match="elsewhere cannot run it"):
        measure(Work("any", None, 1, training=True), (make_tree("this"), tmp_path / "elsewhere"), rounds=1, threads=1)


def test_a_folder_without_the_package_is_refused_before_any_work(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main([str(tmp_path / "elsewhere")])
    out, err = capsys.readouterr()
    assert (ended.value.code, out) == (2, "")
    assert "PATH" in err and str(tmp_path / "elsewhere") in err
