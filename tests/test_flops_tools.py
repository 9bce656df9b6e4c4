"""The page about counters says what the counters say."""

import pytest

from benchmarks import flops_tools
from benchmarks.flops_tools import PAGE, count, rewritten, sizes_table


def between(page, name):
    return page.split(f"<!-- begin: {name} -->\n")[1].split(f"\n<!-- end: {name} -->")[0]


def test_the_table_of_sizes_is_that_of_today():
    assert between(PAGE.read_text(), "sizes") == sizes_table()


def test_fvcore_drops_fused_attention_and_torch_counts_none_on_a_cpu():
    ours = count(flops_tools.by_ours, "vanilla", 64)
    for tool in (flops_tools.by_fvcore, flops_tools.by_torch):
        assert 0.5 * ours < count(tool, "vanilla", 64) < ours


@pytest.mark.slow
def test_the_table_of_tools_is_that_of_today():
    for name in ("ptflops", "thop", "torchinfo"):
        pytest.importorskip(name)
    assert between(PAGE.read_text(), "tools") == flops_tools.tools_table()


def test_a_table_replaces_the_one_between_its_marks_alone():
    page = "a\n<!-- begin: t -->\nold\n<!-- end: t -->\nb"
    assert rewritten(page, "t", "new\\1") == "a\n<!-- begin: t -->\nnew\\1\n<!-- end: t -->\nb"
    with pytest.raises(ValueError, match="once each"):
        rewritten("nothing", "t", "new")
