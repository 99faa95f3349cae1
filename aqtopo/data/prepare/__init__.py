"""Conversion of distributed data sets to a data store: reading, regridding, terrain, quality report."""
