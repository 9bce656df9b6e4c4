"""Published accuracies: what the committed table holds, what its reader refuses, and which rows it is joined to."""

from pathlib import Path

import pytest
import timm
import torch
from published_lines import MODEL, rows, table

import attention_zoo
from runners.figures.choices import PUBLISHED
from runners.rows.published import read_published, with_published

ROOT = Path(__file__).parents[1]


# --- the committed table


@pytest.fixture(scope="module")
def committed():
    return read_published(PUBLISHED)


def test_the_committed_table_names_mechanisms_of_the_zoo(committed):
    mechanisms = committed[committed["kind"] == "mechanism"]
    assert {*mechanisms["name"]} <= {*attention_zoo.names()}
    assert {*mechanisms["layout"]} == {"stl"}
    assert not committed["confirmed_in"].str.startswith(("/", "file:")).any()


def test_the_committed_table_has_the_ablation_of_mechanisms(committed):
    ablation = committed[committed["kind"] == "mechanism"].pivot(index="name", columns="metric", values="value")
    assert ablation.astype(object).where(ablation.notna(), None).to_dict("index") == {
        "sliding": {"top1": 81.4, "miou": None},
        "swin": {"top1": 81.3, "miou": 41.5},
        "sep": {"top1": 81.5, "miou": 42.9},
        "axial": {"top1": 81.5, "miou": 39.8},
        "crisscross": {"top1": 81.7, "miou": 43.0},
        "cswin": {"top1": 82.2, "miou": 43.4},
        "dat": {"top1": 82.0, "miou": 42.6},
        "maxvit": {"top1": 81.8, "miou": 42.8},
        "bra": {"top1": 82.7, "miou": 44.8},
    }
    doubtful = committed[~committed["verified"]]
    assert {*zip(doubtful["name"], doubtful["metric"], strict=True)} == {
        *(("dat", metric) for metric in ("top1", "miou")),
        *(("maxvit", metric) for metric in ("top1", "miou")),
        ("bra", "miou"),
        ("maxvit_stl", "top1"),
    }


def test_the_committed_table_names_models_of_timm(committed):
    models = committed.loc[committed["kind"] == "model", "name"]
    named = {name.removeprefix("timm:") for name in models if name.startswith("timm:")}
    assert named and named <= {*timm.list_models()}


@pytest.mark.parametrize("name", ["bra", "biformer_tiny", "biformer_small", "biformer_base"])
def test_published_flops_are_macs(committed, name):
    (line,) = committed[(committed["name"] == name) & (committed["metric"] == "top1")].to_dict("records")
    is_model = line["kind"] == "model"
    config = {} if is_model else {"attn": name, "topk": line["settings"].partition("=")[2]}
    with torch.device("meta"):
        model = attention_zoo.create_model(name if is_model else line["layout"], **config)
    assert model.macs(224, 224).total / 1e9 == pytest.approx(line["gflops"], abs=0.06)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(line["params_m"], abs=0.06)


def test_every_column_of_the_committed_table_is_described(committed):
    section = (ROOT / "results" / "README.md").read_text().partition("| column of it |")[2].partition("\n\n")[0]
    described_columns = [line.split("`")[1] for line in section.splitlines() if line.startswith("| `")]
    assert described_columns == [*committed]


# --- the reader


def test_the_reader_gives_types_and_columns_that_a_file_lacks(tmp_path):
    found = read_published(table(tmp_path / "a.csv", {}, {**MODEL, "name": "swin_tiny", "gflops": "4.5"}))
    assert found["value"].tolist() == [81.3, 81.3] and found["verified"].tolist() == [True, True]
    assert found["gflops"].isna().tolist() == [True, False] and found["params_m"].isna().all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": ""}, "name is empty"),
        ({"source": " "}, "source is empty"),
        ({"kind": "layer"}, "'layer'"),
        ({"metric": "top5"}, "'top5'"),
        ({"metric": "miou"}, "'classification'"),
        ({"resolution": "224"}, "'224'"),
        ({"value": "0.813e3"}, "813"),
        ({"value": "inf"}, "inf"),
        ({"value": ""}, "value is empty"),
        ({"gflops": "-1"}, "gflops"),
        ({"layout": ""}, "layout is empty"),
        ({"kind": "model"}, "layout is stl"),
        ({"verified": ""}, "verified"),
        ({"confirmed_in": ""}, "confirmed_in"),
        ({"verified": "false"}, "confirmed_in"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, change, words):
    path = table(tmp_path / "a.csv", {"name": "bra"}, change)
    with pytest.raises(ValueError, match=r"a\.csv, line 3: ") as error:
        read_published(path)
    assert words in str(error.value)


def test_one_name_has_one_value_of_a_metric(tmp_path):
    with pytest.raises(ValueError, match="lines 2 and 4: the same top1"):
        read_published(table(tmp_path / "a.csv", {}, {"name": "bra"}, {"value": "81.5"}))
    other_settings = {"settings": "window=4", "value": "81.5"}
    assert len(read_published(table(tmp_path / "b.csv", {}, other_settings))) == 2


@pytest.mark.parametrize("text", ["", "name,kind\nswin", "\x00\x00", "name,value\n\xff"])
def test_a_file_of_something_else_is_one_line(tmp_path, text):
    path = tmp_path / "a.csv"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"a\.csv") as error:
        read_published(path)
    assert "\n" not in str(error.value)


def test_a_word_where_a_number_belongs_and_a_missing_column_are_one_line(tmp_path):
    with pytest.raises(ValueError, match="cannot be read as published accuracies"):
        read_published(table(tmp_path / "a.csv", {"value": "high"}))
    with pytest.raises(ValueError, match="lacks the columns confirmed_in"):
        read_published(table(tmp_path / "a.csv", {}, drop=["confirmed_in"]))


# --- the join


def joined(tmp_path, lines, *given):
    found = with_published(rows(*given), read_published(table(tmp_path / "published.csv", *lines)))
    values = found["published"].astype(object).where(found["published"].notna(), None)
    return [*zip(values, found["doubt"], found["gap"], strict=True)]


def test_rows_are_joined_by_mechanism_and_layout_or_by_model(tmp_path):
    lines = [{}, {**MODEL, "name": "swin_tiny", "value": "81.2"}, {**MODEL, "name": "swin", "value": "1"}]
    assert joined(
        tmp_path,
        [*lines, {"metric": "miou", "task": "segmentation", "name": "bra"}],
        {"attention": "swin"},
        {"model": "swin_tiny"},
        # the mechanism of a model is not what was published of the mechanism
        {"model": "swin_small", "attention": "swin"},
        {"attention": "swin", "layout": "small"},
        {"attention": "swin", "resolution": "64x64"},
        {"attention": "bra"},
    ) == [
        (81.3, "", ""),
        (81.2, "", ""),
        (None, "", "nothing published"),
        (None, "", "published in layout stl"),
        (None, "", "published at 224x224, measured at 64x64"),
        (None, "", "nothing published"),
    ]


def test_what_is_unverified_is_in_doubt(tmp_path):
    lines = [{"verified": "false", "confirmed_in": ""}]
    assert joined(tmp_path, lines, {"attention": "swin"}) == [(81.3, "not confirmed", "")]


def test_settings_are_joined_to_equal_settings(tmp_path):
    lines = [{"name": "bra", "settings": "topk=1-4-16-full;lepe=false"}]
    published = {"attention": "bra", "settings": "lepe=false;topk=1-4-16-full", "topk_schedule": "1-4-16-full"}
    words = "published with topk=1-4-16-full;lepe=false"
    default, others = {"attention": "bra", "topk": 4}, {"attention": "bra", "settings": "topk=8", "topk": 8}
    assert joined(tmp_path, lines, published, default, others) == [
        (81.3, "", ""),
        (None, "", words),
        (None, "", words),
    ]
    # without a row of these settings the default stands in, in doubt
    assert joined(tmp_path, lines, default, others) == [(81.3, words, ""), (None, "", words)]
    # and not where it was published with several
    two = [*lines, {"name": "bra", "settings": "topk=2", "value": "82"}]
    assert joined(tmp_path, two, default)[0][0] is None


def test_a_row_of_settings_does_not_take_the_value_of_defaults(tmp_path):
    given = {"attention": "swin", "settings": "window=4"}
    assert joined(tmp_path, [{}], given) == [(None, "", "published with default settings")]
