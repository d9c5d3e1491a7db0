"""The report; of files without content, since what is in it is the workflow's. `.ci/run` makes a real one."""

import json

import pytest

from nme.grid.captions import scale_sentence


@pytest.fixture(scope="module")
def report(finished, tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("report") / "report.html"
    finished.run("snakemake", "--config", "scale=tiny", "--report", str(path), "--", "all")
    return path.read_text()


def test_the_report_has_every_figure_with_its_words(finished, report):
    project = finished.configuration()
    for name, figure in project.figures.items():
        for words in (figure.title, scale_sentence(project, name)):
            assert json.dumps(words)[1:-1] in report
        assert f"figures/{name}.png" in report
        assert f"figures/{name}.pdf</tt>" in report, "the command that makes it"
    assert "scale=tiny" in report
    assert "GELU gains up to some" in report, "a caption"


def test_the_report_has_the_claims_as_a_page(report):
    assert "claims.html" in report
    assert "Which of the paper's claims hold at this scale" in report


def test_the_top_of_a_tall_figure_can_be_reached(report):
    assert "align-items: safe center" in report, "the stylesheet that the profile names"
