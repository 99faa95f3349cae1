"""Configuration files that cannot be read, and those that ship with the project."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from aqtopo.config import load_config, schema

CONFIGS = sorted(path for path in Path("ds_configs").glob("*.json") if path.name != "schema.json")
SCHEMA: dict[str, Any] = json.loads(Path("ds_configs/schema.json").read_text(encoding="utf-8"))

Write = Callable[[object], str]


def test_the_runs_that_must_ship_do() -> None:
    assert {path.stem for path in CONFIGS} >= {
        "demo_cpu",
        "lumi_400gpu",
        "lumi_400gpu_bf16",
        "lumi_400gpu_rowmajor",
        "lumi_128gpu_wind",
        "lumi_64gpu_debug",
        "resume_reference",
    }


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_shipped_run_is_valid_for_the_models_and_for_the_schema(path: Path) -> None:
    assert load_config(path).name == path.stem
    document = json.loads(path.read_text(encoding="utf-8"))
    assert document["$schema"] == "schema.json"
    jsonschema.Draft202012Validator(SCHEMA).validate(document)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_what_aqtopo_writes_is_valid_too(path: Path) -> None:
    written = json.loads(load_config(path).to_json())
    assert not list(jsonschema.Draft202012Validator(SCHEMA).iter_errors(written))


def test_the_published_schema_is_that_of_the_models() -> None:
    assert Path("ds_configs/schema.json").read_text(encoding="utf-8") == schema(), (
        "run: aqtopo config schema > ds_configs/schema.json"
    )


def test_the_schema_is_strict_and_describes_every_key() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    for model in (SCHEMA, *SCHEMA["$defs"].values()):
        assert model["additionalProperties"] is False
        for key, field in model["properties"].items():
            meaning = field.get("description") or SCHEMA["$defs"][field["$ref"].split("/")[-1]]["description"]
            assert meaning, f"{model['title']}.{key} says nothing"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"name": "x",}', "run.json: line 1, column 14: not JSON: "),
        (
            '{\n  "name": "x"\n  "data": {}\n}',
            "run.json: line 3, column 3: not JSON: expecting ',' delimiter.",
        ),
        ("", "run.json: line 1, column 1: not JSON: expecting value."),
        ("[1, 2]", "run.json: must hold one JSON object, but holds a list."),
        ('{"name": "x", "name": "y"}', "run.json: name: is a duplicate key; keep one of them"),
        ('{"model": {"dim": 1, "dim": 2}}', "run.json: model.dim: is a duplicate key; keep one of them"),
        ('{"a": [{"b": 1, "b": 2}]}', "run.json: a[0].b: is a duplicate key; keep one of them"),
    ],
)
def test_text_that_is_no_configuration(write: Write, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=r"^run\.json: ") as caught:
        load_config(write(text))
    assert str(caught.value).startswith(message)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.json: cannot be read: No such file or directory\."):
        load_config(tmp_path / "none.json")


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be read: Is a directory"):
        load_config(tmp_path)


def test_a_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text(Path("ds_configs/demo_cpu.json").read_text(encoding="utf-8"), encoding="utf-8-sig")
    assert load_config(path) == load_config("ds_configs/demo_cpu.json")


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_bytes(b'{"name": "\xff"}')
    with pytest.raises(ValueError, match=r"byte 10 is not UTF-8"):
        load_config(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "nested more than 50 deep"),
        ('{"a": ' * 100_000, "nested more than 50 deep"),
        ('{"name": ' + "[" * 300 + "]" * 300 + "}", "nested more than 50 deep"),
        ('{"name": ' + "9" * 5_000_000 + "}", "has a number that is too long"),
    ],
    ids=["lists", "objects", "closed lists", "digits"],
)
def test_text_that_exhausts_the_parser(write: Write, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=rf"^run\.json: .*{message}"):
        load_config(write(text))


@pytest.mark.parametrize("value", ["[" * 100_000, "9" * 5000])
def test_an_override_that_exhausts_the_parser(write: Write, value: str) -> None:
    with pytest.raises(ValueError, match=r"--set name=.*(nested too deeply|4300 digits)"):
        load_config(write("{}"), [f"name={value}"])
