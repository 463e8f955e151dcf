"""The discriminators: the specified network, and logits that depend on both images."""

from __future__ import annotations

import pytest
import torch

from unscanned.errors import SettingsError
from unscanned.models.discriminators import NieDiscriminator, build


def test_the_parameter_count_is_that_of_the_specification() -> None:
    assert sum(parameter.numel() for parameter in NieDiscriminator().parameters()) == 9_618_785


@pytest.mark.parametrize("patch", [8, 16])
def test_it_gives_one_logit_for_each_pair(patch: int) -> None:
    images = torch.randn(3, 1, patch, patch, patch)
    assert build("small", patch=patch)(images, images).shape == (3, 1)


def test_logits_depend_on_source_and_target_and_on_their_order() -> None:
    torch.manual_seed(0)
    discriminator = build("small", patch=8).eval()
    a, b = torch.randn(2, 1, 1, 8, 8, 8)
    logits = [discriminator(*pair).item() for pair in ((a, b), (b, a), (a, a), (b, b))]
    assert len(set(logits)) == 4


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(SettingsError, match="nie"):
        build("patchgan")
