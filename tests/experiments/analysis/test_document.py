"""Documents: what stands in them, and how their figures are reached from where they lie."""

from __future__ import annotations

from experiments.analysis import document


def test_a_document_finds_its_figures_wherever_it_is_written(tmp_path):
    """In the run's folder they lie beside it; in docs/ they are copied to a folder of their own."""
    folder, docs = tmp_path / "run", tmp_path / "docs"
    folder.mkdir()
    figure = folder / "study_means.png"
    figure.write_bytes(b"picture")
    text = document.section("Means", "", document.picture("means", figure), "| a |")
    assert document.without_pictures(text) == "## Means\n\n\n| a |"
    document.publish(text, "study", folder, str(docs), [figure])
    assert (folder / "study.md").read_text() == ("## Means\n\n![means](study_means.png)\n\n| a |\n")
    assert "![means](../figures/study_means.png)" in (docs / "results" / "study.md").read_text()
    assert (docs / "figures" / "study_means.png").read_bytes() == b"picture"


def test_without_docs_nothing_is_copied(tmp_path):
    """A tiny form, say, stays in the run's folder."""
    document.publish("# Title", "study", tmp_path, None)
    assert [path.name for path in tmp_path.iterdir()] == ["study.md"]


def test_a_document_says_how_it_was_made():
    """Title, command, and a bullet for each fact."""
    text = document.how_made("Title", "andes-opt study x", ["One.", document.TINY])
    title, command, facts = text.split("\n\n")
    assert title == "# Title"
    assert "`andes-opt study x`" in command
    assert facts.splitlines() == ["- One.", f"- {document.TINY}"]
