"""Check of the README's file map, configurations and links against the tree."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def mapped_paths() -> list[Path]:
    """Return the paths of the file map: the first word of each line, joined to its parent folders."""
    block = re.search(r"<!-- file map -->\n```\n(.*?)```", README, re.DOTALL)
    assert block, "README.md has no block after <!-- file map -->"
    paths: list[Path] = []
    folders: list[str] = []
    for line in block[1].splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        name = line.split()[0]
        paths.append(Path(*folders[:depth], name))
        folders[depth:] = [name]
    return paths


def test_every_path_of_the_map_exists() -> None:
    missing = [path for path in mapped_paths() if not (ROOT / path).exists()]
    assert not missing


def test_every_module_of_the_packages_is_on_the_map() -> None:
    mapped = set(mapped_paths())
    modules = {
        path.relative_to(ROOT)
        for package in ("aqtopo", "kernels/aqtopo_kernels")
        for path in (ROOT / package).iterdir()
        if path.name not in ("__pycache__", "__init__.py", "__main__.py", "py.typed")
    }
    assert modules <= mapped, f"missing from the README's file map: {sorted(modules - mapped)}"


def test_every_file_of_a_part_is_in_the_table() -> None:
    block = re.search(r"<!-- file table -->\n(.*?)<!-- end of file table -->", README, re.DOTALL)
    assert block, "the README has lost its table of files"
    rows = dict(re.findall(r"^\| `([\w/]+)` \| (.*) \|$", block[1], re.MULTILINE))
    for part, text in rows.items():
        names = {path.stem for path in (ROOT / "aqtopo" / part).glob("*.py")} - {"__init__"}
        missing = {name for name in names if not re.search(rf"\b{name}\b", text)}
        assert not missing, f"not in the README's table: {part}: {sorted(missing)}"
    parts = {path.name for path in (ROOT / "aqtopo").iterdir() if (path / "__init__.py").exists()}
    assert parts <= set(rows)


def test_every_configuration_is_mentioned() -> None:
    names = {path.name for path in (ROOT / "ds_configs").glob("*.json")} - {"schema.json"}
    assert not [name for name in names if name not in README]


def test_every_link_has_a_target() -> None:
    targets = re.findall(r"\]\(((?!https?:)[^)#]+)\)", README)
    assert targets
    assert not [target for target in targets if not (ROOT / target).exists()]
