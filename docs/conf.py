"""Settings of Sphinx for `make docs`: the pages in Markdown and the reference from the docstrings.

The source folder is the checkout, so that links between README.md, docs/*.md and other files work as on
GitHub. The build needs no network.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

import aqtopo
from aqtopo.config import schema
from aqtopo.config.strict import LARGEST

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("python", "reference", "data", "resume", "evaluation", "monitoring", "clusters", "lumi", "ablation")
LIMITS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
CONTENTS = [":hidden:", "", *(f"docs/{page}" for page in PAGES), "CONTRIBUTING", "CHANGELOG"]

project = "aqtopo"
version = release = aqtopo.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
root_doc = "README"
include_patterns = [f"{document}.md" for document in (root_doc, *CONTENTS[2:])]
# Sphinx would search all folders of the checkout, data and runs too.
exclude_patterns = [path.name for path in ROOT.iterdir() if path.is_dir() and path.name != "docs"]

html_theme = "furo"
html_title = f"aqtopo {version}"

default_role = "code"  # the docstrings have names in single backticks
highlight_language = "none"
myst_heading_anchors = 4
autodoc_default_options = {"members": True}
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_attr_annotations = False
napoleon_use_ivar = True
maximum_signature_line_length = 80


def setup(app: Sphinx) -> None:
    """Connect the changes of pages and docstrings that the build needs."""
    app.connect("source-read", _complete_page)
    app.connect("autodoc-process-docstring", _keep_first_line, priority=499)  # before napoleon, at 500


def _complete_page(_: Sphinx, page: str, text: list[str]) -> None:
    """Add the table of contents to the README, and the configuration to the reference."""
    if page == root_doc:
        text[0] += "\n".join(["\n```{toctree}", *CONTENTS, "```\n"])
    elif page == "docs/reference":
        tree = json.loads(schema())
        text[0] += "\n".join(_configuration(tree, tree))


def _keep_first_line(_: Sphinx, kind: str, *given: Any) -> None:
    """Put a comment before the first line of an attribute, which napoleon takes for "type: description"."""
    if kind in ("attribute", "property", "data"):
        given[-1][:0] = ["..", ""]


def _configuration(tree: dict[str, Any], section: dict[str, Any], path: str = "") -> Iterator[str]:
    """Yield Markdown of an object of the JSON schema `tree`: its table, then those of the objects in it."""
    yield f"\n### {f'`{path}`' if path else 'Sections'}\n\n{section['description']}\n"
    yield "| key | values | default | meaning |\n|---|---|---|---|"
    inner: list[str] = []
    for key, value in section["properties"].items():
        objects = [tree["$defs"][name] for name in _references(value)]
        for each in objects:
            inner += _configuration(tree, each, f"{path}.{key}".lstrip("."))
        given = value.get("default")
        default = "its own" if isinstance(given, dict) else f"`{json.dumps(given)}`"
        default = "required" if key in section.get("required", ()) else default
        meaning = value.get("description") or objects[0]["description"]
        cells = (f"`{key}`", _values(value), default, " ".join(meaning.split()))
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
    yield from inner


def _references(value: dict[str, Any]) -> list[str]:
    """Return the names of the objects that a value may hold."""
    own = [value["$ref"].rsplit("/", 1)[-1]] if "$ref" in value else []
    inner = [value.get("items", {}), *value.get("anyOf", ())]
    return own + [name for each in inner for name in (_references(each) if each else ())]


def _values(value: dict[str, Any]) -> str:
    """Describe the allowed values of a key in words."""
    if "anyOf" in value:
        return " or ".join(map(_values, value["anyOf"]))
    if "const" in value or "enum" in value:
        return ", ".join(f"`{json.dumps(each)}`" for each in value.get("enum", [value.get("const")]))
    if "prefixItems" in value:
        return f"list of {len(value['prefixItems'])}: {_values(value['prefixItems'][0])}"
    if "items" in value:
        return f"list of {_values(value['items'])}"
    limits = [f"{sign} {value[key]}" for key, sign in LIMITS.items() if value.get(key, LARGEST) != LARGEST]
    return ", ".join([value.get("type", "object"), *limits])
