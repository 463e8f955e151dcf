"""Whether a scan shows the contrast that a model takes, and is like those that it was trained on."""
