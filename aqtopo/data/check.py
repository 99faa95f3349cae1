"""Whether a store fits a run; what is wrong with a store as such is found by `open_store`."""

from aqtopo.config import RunConfig
from aqtopo.data.schema import refuse
from aqtopo.data.statistics import Normalization, normalization_for
from aqtopo.data.store import Store


def check_store(store: Store, config: RunConfig) -> Normalization:
    """Refuse a store whose grid, channels or statistics are not what the run needs.

    Returns:
        The normalisation of the run, which cannot be made from an unfit store.

    Raises:
        ValueError: one paragraph with the store, what does not fit, and the remedy.
    """
    rows, columns = config.data.grid
    if (store.lat.size, store.lon.size) != (rows, columns):
        refuse(
            store.path,
            f"has {store.lat.size} x {store.lon.size} cells, and `data.grid` says {rows} x {columns}",
            f"Set `data.grid` to [{store.lat.size}, {store.lon.size}], or choose the store that was meant.",
        )
    for name in (*config.data.variables, *config.data.targets):
        if name not in store.channels and name not in store.static:
            refuse(store.path, f"lacks the channel {name}", f"Leave {name} out of the run's variables.")
    if not (store.static["mask"] > 0).any():
        refuse(
            store.path,
            "has a mask without a single cell of value 1, so nothing would be learnt or scored",
            "Write the store again with a mask that is 1 where the loss and the scores count.",
        )
    return normalization_for(config, store)
