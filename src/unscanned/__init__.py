"""Unscanned makes the MR contrast that was never scanned.

Train on a dataset of aligned pairs, synthesize the target of a new scan, and score the result:

    import unscanned

    trained = unscanned.train("data/bids", "runs/resgan", preset="resgan", training={"epochs": 3})
    model = unscanned.load_model(trained.model)
    synthetic = model.synthesize(unscanned.read_volume("sub-01_PDw.nii.gz"))
    synthetic.save("synthetic_T2w.nii.gz")
"""

from __future__ import annotations

import lazy_loader

# The names of __init__.pyi, imported when first asked for: torch takes seconds, and the command line starts at once.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
