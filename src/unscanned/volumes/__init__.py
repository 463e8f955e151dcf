"""One scan: read and written, its grid, its intensities."""
