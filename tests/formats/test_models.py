"""A list of models, a card and weights in half precision that an older release wrote."""

from pathlib import Path

import safetensors.torch
import torch

from unscanned.synthesis.model_file import load_model
from unscanned.synthesis.shelf import find_model

STORED = Path(__file__).parent / "models-2026-11-26"


def test_a_stored_list_card_and_model_in_half_precision_are_read():
    found = find_model("pd-t2", STORED)
    found.check()
    assert found.card is not None
    assert found.card.licence == "Apache-2.0"
    assert {score.metric for score in found.card.scores} >= {"mae", "psnr", "ssim"}
    stored = safetensors.torch.load_file(found.folder / "model.safetensors").values()
    assert torch.float16 in {tensor.dtype for tensor in stored}
    packed, whole = load_model("pd-t2", models_in=STORED), load_model(STORED.parent / "2026-11-26" / "expected" / "run")
    assert packed.provenance["packed"]["from_sha256"] == whole.sha256
    for one, other in zip(packed.generators[0].parameters(), whole.generators[0].parameters(), strict=True):
        assert one.dtype == torch.float32
        assert torch.equal(one, other.half().float())
