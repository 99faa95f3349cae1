"""Runs benchmarks and writes their results into benchmarks/README.md.

`python -m benchmarks.table [NAME ...] [--OPTION ...]`: options are passed to each benchmark. Without names,
all benchmarks run that need no options. The section between `<!-- NAME -->` and `<!-- end of NAME -->` is
replaced by the result of the benchmark of that name.
"""

import json
import re
import subprocess
import sys
from itertools import groupby
from pathlib import Path
from typing import Any

README = Path(__file__).with_name("README.md")
NAMES = (
    "elevation_attention",
    "error_spread",
    "cpu_attention",
    "cpu_candidates",
    "spinning",
    "local_bias",
    "compiled_kernels",
    "wind_gather",
    "wind_order",
    "embedding",
    "train_step",
    "all_inputs",
    "ddp",
    "loader",
    "encodings",
    "resume",
    "start_up",
    "command_start_up",
    "preflight",
    "regression",
)


def run(name: str, options: list[str]) -> dict[str, Any]:
    """Run a benchmark and return its JSON result."""
    command = [sys.executable, "-m", f"benchmarks.{name}", "--json", *options]
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    result: dict[str, Any] = json.loads(printed[printed.index("{\n") :])
    return result


def section(result: dict[str, Any]) -> str:
    """Markdown of a benchmark's rows, one table for each set of columns."""
    machine = ", ".join(f"{key} {value}" for key, value in result["machine"].items())
    return f"`python -m benchmarks.{result['benchmark']}` on {machine}\n\n{tables(result['rows'])}"


def tables(rows: list[dict[str, Any]]) -> str:
    """Markdown of rows, one table for each set of columns."""
    return "\n\n".join(_table(list(alike)) for _, alike in groupby(rows, key=list))


def _table(rows: list[dict[str, Any]]) -> str:
    """Return a table with one line per row, or one line per figure if there is a single row."""
    if len(rows) == 1:
        lines = [("figure", "value"), ("---", "---"), *((k, _cell(v)) for k, v in rows[0].items())]
    else:
        head = tuple(rows[0])
        lines = [head, ("---",) * len(head), *(tuple(_cell(row[k]) for k in head) for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _cell(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def main() -> None:
    """Run the named benchmarks, or all, and write each result when it is done."""
    given = sys.argv[1:]
    first = next((i for i, argument in enumerate(given) if argument.startswith("-")), len(given))
    for name in given[:first] or NAMES:
        text = README.read_text(encoding="utf-8")
        new = f"<!-- {name} -->\n{section(run(name, given[first:]))}\n<!-- end of {name} -->"
        pattern = rf"<!-- {name} -->.*?<!-- end of {name} -->"
        text, found = re.subn(pattern, lambda _, new=new: new, text, flags=re.DOTALL)
        assert found == 1, f"{README} has {found} sections {name}, expected one"
        README.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
