"""Observations of one's own: read from a file or an array, checked, assimilated, and scored without a truth.

:mod:`~assim_lib.own.sources` opens what was brought, :mod:`~assim_lib.own.clock` finds the cycles of its times,
:mod:`~assim_lib.own.record` brings both onto the grid of a filter, part by part. :mod:`~assim_lib.own.cycling` runs the
filter along it, :mod:`~assim_lib.own.state` keeps what it carries on to another day,
:mod:`~assim_lib.own.innovations` scores it, and :mod:`~assim_lib.own.output` writes netCDF or Zarr.
"""
