"""Descriptions of a store's channels, kept among the attributes of its arrays.

CF has one `units` string per variable, but a stacked array needs one for each channel: the attributes
`channel_units`, `channel_long_name` and so on are mappings by channel name. Stores that were written before
lack some of them; channels with the name of one of `aqtopo.variables` then have its description.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from aqtopo.refusal import raise_input_error
from aqtopo.variables import VARIABLES, Variable, VariableKind, Variables, check_name

if TYPE_CHECKING:
    import xarray as xr

MASK = "mask"
"""Static channel of the cells that count, which is not an input."""

_TOPOFLOW = "channel_topoflow"
_NEEDED = ("long_name", "units", "valid_range")
_KEYS = (*_NEEDED, "standard_name", "pollutant", "plausible_level")


def channel_attributes(variables: Iterable[Variable]) -> dict[str, dict[str, Any]]:
    """Return the attributes of a stacked array that describe its channels."""
    described = list(variables)

    def by_name(key: str) -> dict[str, Any]:
        values = {variable.name: getattr(variable, key) for variable in described}
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in values.items()
            if value is not None or key == "plausible_level"  # the default of a known name is not None
        }

    published = {
        variable.name: [variable.topoflow_mean, variable.topoflow_std]
        for variable in described
        if variable.topoflow_mean is not None
    }
    return {**{f"channel_{key}": by_name(key) for key in _KEYS}, _TOPOFLOW: published}


def read_descriptions(
    source: object,
    names: Sequence[str],
    kind: VariableKind,
    attributes: Mapping[str, Any],
    given: Variables | None = None,
) -> dict[str, Variable]:
    """Return the description of each channel but the mask.

    Args:
        source: name of the data in messages.
        names: channels of an array.
        kind: of all channels of the array.
        attributes: of the array; those of a known name complete its default, except for the units.
        given: descriptions that replace the others.

    Raises:
        ValueError: a name cannot be used, or a description is incomplete, contradictory or of a wrong type.
    """
    mappings = {key: attribute_mapping(source, attributes, f"channel_{key}") for key in _KEYS}
    published = attribute_mapping(source, attributes, _TOPOFLOW)
    found = {}
    for name in names:
        if name == MASK and kind == "static":
            continue
        own = {key: mapping[name] for key, mapping in mappings.items() if name in mapping}
        if name in published:
            own["topoflow_mean"], own["topoflow_std"] = _pair(source, name, published[name])
        try:
            found[name] = (given or {}).get(name) or _described(name, kind, own)
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from error
        if found[name].kind != kind:
            array = "fields" if kind == "dynamic" else "static"
            raise_input_error(
                source,
                f"has {name}, which is {found[name].kind}, in `{array}`",
                "Move it to the other array, or rename it",
            )
        known = VARIABLES.get(name)
        if known is not None and found[name].units != known.units:
            raise_input_error(
                source, f"describes {name} in {found[name].units!r}", f"Describe it in {known.units!r}"
            )
    return found


Described = tuple[Sequence[str], Mapping[str, Any]]
"""Channels of an array, and its attributes."""


def channel_variables(store: object, fields: Described, static: Described) -> Variables:
    """Return the description of all channels of a store.

    Raises:
        ValueError: as `read_descriptions`.
    """
    source = f"The data store {store}"
    return {
        **read_descriptions(source, fields[0], "dynamic", fields[1]),
        **read_descriptions(source, static[0], "static", static[1]),
    }


def _described(name: str, kind: VariableKind, own: dict[str, Any]) -> Variable:
    check_name(name)
    if name in VARIABLES:
        own.pop("units", None)  # those of the data, which are converted or refused elsewhere
        return replace(VARIABLES[name], **own)
    missing = [key for key in _NEEDED if key not in own]
    if missing:
        raise ValueError(
            f"there is no {' and no '.join(missing)} of the channel {name}. Write the store with "
            f"`write_store(..., variables=[Variable(name={name!r}, long_name=..., units=..., valid_range="
            f"(low, high))])`, or with `channel_{missing[0]}` among the attributes of its array."
        )
    return Variable(name=name, kind=kind, **own)


def describe_variable(array: "xr.DataArray", **more: Any) -> Variable:
    """Describe a variable by its CF attributes: name, long_name, standard_name, units and valid range.

    Args:
        array: field of another dataset. Its attributes `valid_range`, or `valid_min` and `valid_max`, are in
            its `units`.
        **more: attributes of `Variable` that it lacks, or that are to replace its own.

    Raises:
        ValueError: a needed attribute is missing or of a wrong type; the message names it.
    """
    attrs = array.attrs
    own: dict[str, Any] = {"name": array.name}
    own |= {key: attrs[key] for key in ("long_name", "standard_name", "units") if key in attrs}
    limits = attrs.get("valid_range")
    if limits is None and {"valid_min", "valid_max"} <= attrs.keys():
        limits = (attrs["valid_min"], attrs["valid_max"])
    if limits is not None:
        own["valid_range"] = tuple(map(float, limits))
    own |= more
    missing = [key for key in ("name", *_NEEDED) if own.get(key) is None]
    if missing:
        raise_input_error(
            f"The variable {own.get('name')}",
            f"has no {' and no '.join(missing)}",
            f"Set the attribute, or pass it: `describe_variable(d['{own.get('name')}'], {missing[0]}=...)`",
        )
    return Variable(**own)


def attribute_mapping(source: object, attributes: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Return an attribute that is a mapping by channel; empty if it is missing.

    Raises:
        ValueError: the attribute is not a mapping.
    """
    found = attributes.get(key, {})
    if not isinstance(found, Mapping):
        raise_input_error(source, f"has {key} = {found!r}", "It must be a mapping by channel name")
    return found


def _pair(source: object, name: str, value: Any) -> tuple[Any, Any]:
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise_input_error(
            source, f"has {_TOPOFLOW} of {name} = {value!r}", "It must be a mean and a deviation"
        )
    return value[0], value[1]
