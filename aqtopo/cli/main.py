"""The `aqtopo` command: assembles the command groups and turns a user's error into one paragraph."""

import sys
import textwrap

import typer

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)

EXIT_BAD_INPUT = 2


def main() -> None:
    """Run the command line; a `ValueError` becomes one paragraph on stderr and exit code 2."""
    try:
        app()
    except ValueError as error:
        paragraph = textwrap.fill(f"aqtopo: {error}", width=100, break_long_words=False, break_on_hyphens=False)
        print(paragraph, file=sys.stderr)  # noqa: T201
        sys.exit(EXIT_BAD_INPUT)


if __name__ == "__main__":
    main()
