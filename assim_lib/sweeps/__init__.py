"""Sweeps: one notebook at every point of a grid, on one machine or many, once each.

:mod:`~assim_lib.sweeps.grid` expands a grid into points, and :mod:`~assim_lib.sweeps.program` finds them right before
anything runs; :mod:`~assim_lib.sweeps.run` runs what is missing as tasks of dask.distributed;
:mod:`~assim_lib.sweeps.folder` is where results go, a local folder or an object store; :mod:`~assim_lib.sweeps.table`
makes one table of them; :mod:`~assim_lib.sweeps.schedule` says how many workers are worth it. Needs the
extra ``sweep``.
"""

import sys

# To read a notebook is to import jsonschema, which compiles a grammar of addresses if it finds one: most of the time
# that a worker takes to start, and a notebook has none.
sys.modules.setdefault("rfc3987_syntax", None)  # pyright: ignore[reportArgumentType]
