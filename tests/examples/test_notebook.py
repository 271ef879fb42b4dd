"""The notebook runs from start to end and learns; its saved outputs are complete and name no machine."""

import re
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[2] / "examples" / "align_and_search.ipynb"


@pytest.fixture
def notebook():
    return pytest.importorskip("nbformat").read(NOTEBOOK, as_version=4)


def printed(notebook):
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    return "".join(output.get("text", "") for output in outputs if output.get("name") == "stdout")


def check_results(notebook):
    """Retrieval and alignment are far above chance, and there is a figure."""
    results = re.findall(r"^For (\d+) % of the .* \(chance: (\d+) %\)\.$", printed(notebook), re.MULTILINE)
    assert len(results) == 2 and all(int(right) > 1.5 * int(chance) for right, chance in results), results
    assert any("image/png" in output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", ()))


def test_the_saved_outputs(notebook):
    check_results(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not re.search(r"/(tmp|home|root|Users|work)\b", "".join(str(cell.outputs) for cell in code))
    assert set(notebook.metadata.language_info) == {"name"}


@pytest.mark.exhaustive
def test_it_runs(notebook, tmp_path):
    client = pytest.importorskip("nbclient").NotebookClient(
        notebook, timeout=600, resources={"metadata": {"path": tmp_path}}
    )
    client.execute()
    check_results(notebook)
