"""Whether a scan shows the contrast that a model takes."""
