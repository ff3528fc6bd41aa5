"""The notebooks run from top to bottom on a finished comparison."""

import json
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_cell_executes_and_shows_something(path, copied, monkeypatch, capsys):
    import matplotlib

    matplotlib.use("Agg")
    notebook = json.loads(path.read_text(encoding="utf-8"))
    sources = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    namespace: dict[str, object] = {}
    for number, source in enumerate(sources, 1):
        exec(compile(source, f"{path.name}, code cell {number}", "exec"), namespace)
    if path.stem == "reading_a_comparison":
        curves = namespace["mean_curves"]
        assert {"scratch", "pretrained"} <= set(curves.columns)
        assert list(curves["scratch"].dropna().index) == [0, 1024, 2048]
        assert namespace["newest"].group == "trial"
    elif path.stem == "public_benchmark":
        assert {"scratch", "pretrained", "clone", "naive", "residual"} <= set(namespace["final"].arm)
    else:
        said = capsys.readouterr().out
        assert [stage for stage in ("train_expert", "promote", "collect", "pretrain", "compare") if stage in said] == [
            "train_expert",
            "promote",
            "collect",
            "pretrain",
            "compare",
        ]


def test_there_are_three_and_they_are_stored_without_outputs():
    assert [path.stem for path in NOTEBOOKS] == ["lineage_and_promotion", "public_benchmark", "reading_a_comparison"]
    for path in NOTEBOOKS:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        assert all(not cell.get("outputs") for cell in cells)
