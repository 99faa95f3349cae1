"""Options that take several years: `--years 2016 2017 2018`, as well as `--years 2016 --years 2017`."""

from typing import Any

from typer.core import TyperCommand


class YearsCommand(TyperCommand):
    """A command whose options that end in `years` are followed by one year or several.

    Register with `app.command("name", cls=YearsCommand)`; the option itself is an ordinary `list[int]`.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse as ever, after each further year has been given its option.

        `ctx` is click's context, which typer takes from the click package or brings along, by its version.
        """
        return super().parse_args(ctx, repeat_option(args))


def repeat_option(args: list[str]) -> list[str]:
    """`--years 2016 2017 OUT` becomes `--years 2016 --years 2017 OUT`; the rest stays as it is."""
    repeated: list[str] = []
    option = ""
    for previous, argument in zip(["", *args], args, strict=False):
        if not argument.isdecimal():
            option = argument if argument.startswith("--") and argument.endswith("years") else ""
        elif option and previous != option:
            repeated.append(option)
        repeated.append(argument)
    return repeated
