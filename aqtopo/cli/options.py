"""Options and arguments that several commands share."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

ConfigFile = Annotated[Path, typer.Argument(help="The run's JSON file.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A.B=VALUE", help="Override a value of the configuration; repeatable."),
]
RunDir = Annotated[Path, typer.Argument(metavar="RUN", help="The run directory.")]
SavedTag = Annotated[str, typer.Option(help="Saved state: best, last, or its name.")]
Json = Annotated[bool, typer.Option("--json", help="Print only JSON on stdout.")]
AllowChange = Annotated[
    list[str] | None,
    typer.Option(metavar="A.B", help="Setting or section that may differ from the saved one; repeatable."),
]
AllowUnexpected = Annotated[
    list[str] | None, typer.Option(metavar="NAME", help="Saved tensor to leave out; repeatable.")
]

Latitudes = Annotated[
    tuple[float, float], typer.Option(help="Southern and northern edge in degrees.", metavar="S N")
]
Longitudes = Annotated[
    tuple[float, float], typer.Option(help="Western and eastern edge in degrees.", metavar="W E")
]
CHINA_LAT = (17.0, 49.0)
CHINA_LON = (72.0, 136.0)


def print_json(value: Any) -> None:
    """Print a value as JSON on stdout."""
    typer.echo(json.dumps(value, indent=2))


class YearsCommand(TyperCommand):
    """Command whose options that end in `years` take one year or several: `--years 2016 2017 2018`.

    Register it with `app.command("name", cls=YearsCommand)`; the type of the option is `list[int]`.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments after `repeat_option`; the type of `ctx` depends on the version of typer."""
        return super().parse_args(ctx, repeat_option(args))


def repeat_option(args: list[str]) -> list[str]:
    """Repeat a `years` option before each further year: `--years 1 2` becomes `--years 1 --years 2`."""
    repeated: list[str] = []
    option = ""
    for previous, argument in zip(["", *args], args, strict=False):
        if not argument.isdecimal():
            option = argument if argument.startswith("--") and argument.endswith("years") else ""
        elif option and previous != option:
            repeated.append(option)
        repeated.append(argument)
    return repeated
