"""From a data set as it is distributed to a data store: reading, regridding, terrain, quality."""
