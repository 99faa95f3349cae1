"""Execution of the notebook docs/quickstart.ipynb on a small store."""

from pathlib import Path

import pytest
import xarray as xr

from aqtopo.data import write_statistics, write_store

NOTEBOOK = Path(__file__).parents[1] / "docs" / "quickstart.ipynb"


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path, tiny_dataset: xr.Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    write_store(tiny_dataset, tmp_path / "quickstart.zarr")
    write_statistics(tmp_path / "quickstart.zarr", [2016])
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "clear the outputs"
    nbclient.NotebookClient(notebook, timeout=500, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = "\n".join(
        str(output.get("data", {}).get("text/plain", ""))
        for cell in notebook.cells
        for output in cell.get("outputs", [])
    )
    assert "True" in shown  # the forecasts from times and from fields are equal
    assert "<aqtopo.Model quickstart, module:" in shown
    assert sum("image/png" in str(cell.get("outputs")) for cell in notebook.cells) == 2
