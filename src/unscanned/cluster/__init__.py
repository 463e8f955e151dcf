"""Where the cases of a call are worked on: in this process, or by the workers of a Dask cluster."""
