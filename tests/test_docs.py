"""The site of `make docs`: strict build, names of the reference, links."""

import ast
import inspect
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

import aqtopo
import aqtopo.data
import aqtopo_kernels
from aqtopo.config import schema

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site; a warning fails the build."""
    pytest.importorskip("sphinx", reason="Sphinx is not installed: pip install 'aqtopo[docs]'")
    folder = tmp_path_factory.mktemp("site")
    options = ["-W", "--keep-going", "-q", "-c", "docs", "-d", str(folder / "doctrees")]
    command = [sys.executable, "-m", "sphinx", *options, ".", str(folder / "site")]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return folder / "site"


@pytest.fixture(scope="module")
def kinds(site: Path) -> dict[str, str]:
    """Kind of each name of the reference, such as `py:function`."""
    from sphinx.util.inventory import InventoryFile

    with (site / "objects.inv").open("rb") as file:
        inventory = InventoryFile.load(file, "", lambda base, name: base + name)
    return {name: kind for kind, found in inventory.items() if kind.startswith("py:") for name in found}


def imported_names() -> Iterator[str]:
    """Yield what the pages' Python and the notebook import from aqtopo and its kernels."""
    notebook = json.loads((ROOT / "docs" / "quickstart.ipynb").read_text(encoding="utf-8"))
    blocks = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        blocks += re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    for node in (node for block in blocks for node in ast.walk(ast.parse(block))):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("aqtopo"):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def found(name: str) -> Any:
    """Return the object of a name. An operator of the kernels has the name of its folder."""
    package, *rest = name.split(".")
    value: Any = import_module(package)
    for part in rest:
        value = getattr(value, part) if hasattr(value, part) else import_module(f"{value.__name__}.{part}")
    return value


def test_reference_has_every_public_name(kinds: dict[str, str]) -> None:
    packages = (aqtopo, aqtopo.data, aqtopo_kernels)
    names = {f"{package.__name__}.{name}" for package in packages for name in package.__all__}
    names |= {f"aqtopo.Model.{name}" for name in vars(aqtopo.Model) if not name.startswith("_")}
    assert not names - kinds.keys()


def test_reference_has_every_name_that_the_pages_import(kinds: dict[str, str]) -> None:
    objects = {id(found(name)) for name in kinds if kinds[name] != "py:attribute"}
    names = set(imported_names())
    assert "aqtopo.data.write_store" in names
    assert not [name for name in names if id(found(name)) not in objects]


def test_reference_has_every_key_of_a_configuration(site: Path) -> None:
    page = (site / "docs" / "reference.html").read_text(encoding="utf-8")
    tree = json.loads(schema())
    keys = {key for section in (tree, *tree["$defs"].values()) for key in section["properties"]}
    assert not [key for key in keys if f'<span class="pre">{key}</span>' not in page]


def test_docstrings_of_the_reference_describe_every_argument(kinds: dict[str, str]) -> None:
    missing = []
    for name in (name for name, kind in kinds.items() if kind in ("py:function", "py:method")):
        function = found(name)
        given = [each for each in inspect.signature(function).parameters if each != "self"]
        arguments = (inspect.getdoc(function) or "").partition("Args:\n")[2]
        described = re.findall(r"^    \*{0,2}(\w+): ", arguments, re.MULTILINE)
        if len(given) > 1:
            missing += [f"{name}: {each}" for each in given if each not in described]
    assert not missing


def test_pages_need_no_network_and_no_missing_file(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert not re.findall(r'<(?:script|link|img)[^>]*(?:src|href)="(?:https?:)?//', text), page
        links = {unquote(link) for link in re.findall(r'(?:href|src)="([^"#?]+)', text)}
        local = [link for link in links if not re.match(r"\w+:", link)]
        assert not [link for link in local if not (page.parent / link).exists()], page
