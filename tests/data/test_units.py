import subprocess
import sys

import numpy as np
import pytest

from aqtopo.data.units import UnitsError, conversion, same_units


@pytest.mark.parametrize(
    ("given", "wanted", "value", "expected"),
    [
        *(
            (units, "ug m-3", 35.0, 35.0)
            for units in (
                "ug/m3",
                "µg m-3",
                "μg m-3",
                "µg/m³",
                "μg/m³",
                "ug m**-3",
                "ug m^-3",
                "microgram m-3",
                "ug.m-3",
                "micrograms per cubic meter",
                "ugm-3",
                "UG/M3",
                "ug m-3  ",
                "1e-9 kg m-3",
            )
        ),
        ("kg m-3", "ug m-3", 35e-9, 35.0),
        ("kg m**-3", "ug m-3", 35e-9, 35.0),
        ("mg m-3", "ug m-3", 0.035, 35.0),
        ("m", "m", 1200.0, 1200.0),
        ("metres", "m", 1200.0, 1200.0),
        ("km", "m", 1.2, 1200.0),
        ("ft", "m", 1000.0, 304.8),
        ("feet", "m", 1000.0, 304.8),
        ("gpm", "m", 1200.0, 1200.0),
        ("gpdm", "m", 120.0, 1200.0),
        ("m**2 s**-2", "m", 9806.65, 1000.0),
        ("m2 s-2", "m", 9806.65, 1000.0),
        ("K", "K", 280.0, 280.0),
        *((units, "K", 6.85, 280.0) for units in ("degC", "C", "c", "celsius", "Celsius", "deg C", "°C")),
        *((units, "K", 6.85, 280.0) for units in ("degrees C", "° C", "Degrees_Celsius")),
        *((units, "K", 280.0, 280.0) for units in ("degrees K", "degree_Kelvin", "degrees Kelvin", "° K")),
        *((units, "K", 44.33, 280.0) for units in ("degF", "deg F", "degrees Fahrenheit")),
        *((units, "m", 1200.0, 1200.0) for units in ("m asl", "masl", "m a.s.l.", "metres above sea level")),
        *((units, "m", 1200.0, 1200.0) for units in ("m AMSL", "m (amsl)", "meters above mean sea level")),
        ("ft amsl", "m", 1000.0, 304.8),
        ("Pa", "Pa", 1e5, 1e5),
        *((units, "Pa", 1000.0, 1e5) for units in ("hPa", "mbar", "mb", "millibar", "HPA")),
        ("%", "%", 40.0, 40.0),
        *((units, "%", 0.4, 40.0) for units in ("1", "fraction", "(0 - 1)")),
        ("m/s", "m s-1", 3.0, 3.0),
        ("m s**-1", "m s-1", 3.0, 3.0),
        ("ms-1", "m s-1", 3.0, 3.0),
        ("knots", "m s-1", 1.0, 0.5144444),
        ("persons/km2", "km-2", 70.0, 70.0),
        ("Persons per square kilometer", "km-2", 70.0, 70.0),
        ("m-2", "km-2", 7e-5, 70.0),
        ("days", "hours", 4.0, 96.0),
        ("seconds", "hours", 345600.0, 96.0),
        ("minutes", "hours", 90.0, 1.5),
        ("nanoseconds", "hours", 3.6e12, 1.0),
    ],
)
def test_units_are_converted_by_their_meaning(given: str, wanted: str, value: float, expected: float) -> None:
    np.testing.assert_allclose(conversion(given, wanted)(value), expected, rtol=1e-6)
    assert not conversion(given, wanted).needs_density


def test_a_ratio_of_masses_needs_air_density() -> None:
    change = conversion("kg kg**-1", "ug m-3")
    assert change.needs_density
    np.testing.assert_allclose(change(3e-8) * 1.2, 36.0)
    np.testing.assert_allclose(conversion("ug/kg", "ug m-3")(30.0) * 1.2, 36.0)


@pytest.mark.parametrize(
    ("given", "wanted", "message"),
    [
        ("K", "ug m-3", r"'K' \(temperature\) cannot be converted to 'ug m-3' \(mass / length \*\* 3\)"),
        ("hPa", "K", "'hPa'.*'K'"),
        ("1", "ug m-3", "'1'.*'ug m-3'"),
        ("count", "km-2", "'count'.*'km-2'"),
        ("ppb", "ug m-3", "ratio of volumes.*'ug m-3'"),
        ("mol mol-1", "ug m-3", "ratio of volumes.*'ug m-3'"),
        ("kg kg-1", "%", "'kg kg-1' cannot be converted to '%'"),
        ("degrees", "%", "'degrees' cannot be converted to '%'"),
        ("nonsense", "K", "'nonsense' are unknown.*'K'"),
        ("(((", "K", "unknown"),
        ("ugr/m3", "ug m-3", "'ugr/m3' are unknown"),
        ("-", "%", "'-' cannot be converted"),
        ("__import__('os')", "K", "unknown"),
    ],
)
def test_other_dimensions_are_refused_with_both_units(given: str, wanted: str, message: str) -> None:
    with pytest.raises(UnitsError, match=message):
        conversion(given, wanted)


def test_same_units() -> None:
    assert same_units("ug m-3", "µg/m³")
    assert not same_units("ug m-3", "kg m-3")
    assert not same_units("ug m-3", "K")


def test_conversion_without_matplotlib_gives_no_warning() -> None:
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from aqtopo.data.units import conversion; conversion('degC', 'K')"
    )
    subprocess.run([sys.executable, "-W", "error::UserWarning", "-c", code], check=True)
