"""What the tests of the report share: a folder of results, and the parts of a page."""

from html.parser import HTMLParser
from pathlib import Path

import pytest
from sample_results import write_sample

SAMPLE = next((Path(__file__).parents[1] / "results").glob("digit_vote_cpu-*.csv"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    write_sample(folder)
    return folder


@pytest.fixture(scope="module", autouse=True)
def without_drawn_figures():
    """They have tests of their own, and the one that runs the script draws them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("runners.reporting.page.drawn_figures", lambda rows, published: ([], []))
        yield


class Elements(HTMLParser):
    """Tags with their attributes, and the text of scripts apart from that of the page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self._inside = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self._inside = tag
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        self._inside = ""

    def handle_data(self, data):
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside != "style":
            self.text += data
