"""The tables of the documents are those of the committed results."""

from tools import results


def test_every_table_is_current():
    documents = results.documents()
    assert {path.name for path in documents} == {"evaluation.md", "benchmarks.md", "FantasyIDApply.md"}
    for path, tables in documents.items():
        text = path.read_text("utf-8")
        assert text == results.written(text, tables), f"{path.name}: run `python -m tools.results`"


def test_another_number_changes_the_table(monkeypatch, tmp_path):
    (tmp_path / "results").mkdir()
    rows = (
        '[{"mode": "ours", "ms_per_step": 1, "times_as_released": 0.5, "peak_gib": 2.25, "error": "0", "bold": true}]'
    )
    (tmp_path / "results" / "steps.json").write_text(f'{{"rows": {rows}}}')
    monkeypatch.setattr(results, "DOCS", tmp_path)
    marked = "<!-- written by `python -m tools.results` from results/steps.json -->\n\nold\n\n<!-- end -->"
    assert "| **ours** | 1 | 0.500 | 2.2 | 0 |  |" in results.written(marked)


def test_presets_are_a_table_in_the_docs_and_a_list_in_the_help():
    row = {"preset": "free motion", **{key: i / 10 for i, key in enumerate(results.PRESETS)}}
    assert results.presets([row])[-1] == "| free motion | 0.00 | 0.10 | 0.20 | 0.30 | 0.40 | 0.50 |"
    assert results.preset_list([row])[-1].startswith("- `free motion`: re-identified 0.00, identity similarity 0.10,")
    assert [results.presets([]), results.preset_list([])] == [
        ["Not measured yet."],
        ["Their effect on FantasyID-nano was not measured yet."],
    ]
