"""Options that say where a grid lies."""

from typing import Annotated

import typer

Latitudes = Annotated[
    tuple[float, float], typer.Option(help="Southern and northern edge in degrees.", metavar="S N")
]
Longitudes = Annotated[
    tuple[float, float], typer.Option(help="Western and eastern edge in degrees.", metavar="W E")
]
CHINA_LAT = (17.0, 49.0)
CHINA_LON = (72.0, 136.0)
