"""Options and arguments that several commands share."""

import glob
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

if TYPE_CHECKING:
    from aqtopo.inference.load import LoadedRun
    from aqtopo.inference.weather import Weather

ConfigFile = Annotated[Path, typer.Argument(help="The run's JSON file.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A.B=VALUE", help="Override a value of the configuration; repeatable."),
]
RunDir = Annotated[Path, typer.Argument(metavar="RUN", help="The run directory.")]
ModelDir = Annotated[Path, typer.Argument(metavar="RUN", help="Run directory, or folder of `aqtopo export`.")]
StorePath = Annotated[
    Path | None,
    typer.Option(
        help="Data in place of the training's store: for a run the same data elsewhere, for an exported "
        "model any on its grid."
    ),
]
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


def matching_files(option: str, names: Sequence[str]) -> list[Path]:
    """Return files and those of patterns, the latter in the order of their names.

    Raises:
        ValueError: a pattern matches no file.
    """
    files = []
    for name in names:
        found = sorted(glob.glob(name)) if "*" in name else [name]  # noqa: PTH207  (Path.glob takes no absolute pattern)
        if not found:
            raise ValueError(f"{option} {name!r} matches no file. Correct the pattern.")
        files += [Path(path) for path in found]
    return files


def read_weather(names: Sequence[str], run: "LoadedRun") -> "Weather | None":
    """Open the weather of `--weather`: None without names, `perfect`, or a weather forecast.

    Raises:
        ValueError: the run reads no weather, a file cannot be used, or `perfect` is not alone.
    """
    from aqtopo.inference.weather import PERFECT, check_weather, open_weather

    if not names:
        return None
    check_weather(run.config, PERFECT)
    if list(names) == [PERFECT]:
        return PERFECT
    if PERFECT in names:
        raise ValueError("--weather perfect cannot be combined with files. Give one of them.")
    return open_weather(matching_files("--weather", names), run.store, run.config.data)


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
