"""The tables of the documents are those of the committed results."""

from tools import results


def test_every_table_is_current():
    documents = results.documents()
    assert {path.name for path in documents} == {"evaluation.md", "benchmarks.md"}
    for path in documents:
        text = path.read_text("utf-8")
        assert text == results.written(text), f"{path.name}: run `python -m tools.results`"


def test_another_number_changes_the_table(monkeypatch, tmp_path):
    (tmp_path / "results").mkdir()
    rows = (
        '[{"mode": "ours", "ms_per_step": 1, "times_as_released": 0.5, "peak_gib": 2.25, "error": "0", "bold": true}]'
    )
    (tmp_path / "results" / "steps.json").write_text(f'{{"rows": {rows}}}')
    monkeypatch.setattr(results, "DOCS", tmp_path)
    marked = "<!-- written by `python -m tools.results` from results/steps.json -->\n\nold\n\n<!-- end -->"
    assert "| **ours** | 1 | 0.500 | 2.2 | 0 |  |" in results.written(marked)
