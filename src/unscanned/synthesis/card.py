"""The card of a model: what it makes, from what it was trained, how good it was, and what it may be used for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from unscanned.errors import listed
from unscanned.formats.card import DomainScore
from unscanned.settings import Settings

if TYPE_CHECKING:
    from unscanned.synthesis.model import Model
    from unscanned.synthesis.shelf import ShelvedModel

__all__ = ["card", "written_card"]

_USE = "For research only, not for diagnosis. The licence of the training scans holds for the weights too."
_SCORES = {"psnr": "PSNR {:.2f} dB", "mae": "MAE {:.3f} z-scores"}
_SHOWN = ("psnr", "psnr_one_gain", "ssim")
"Metrics of a card that a terminal shows; the files have all."
_UNKNOWN = "not known"


def card(model: Model) -> list[tuple[str, str]]:
    """Return the rows of a model's card: heading and text.

    What the model's file does not say is called not known.
    """
    settings, provenance = model.settings, model.provenance
    environment, stages = provenance.get("environment", {}), provenance.get("stages", [])
    packed = [("weights", _packed(provenance["packed"]))] if "packed" in provenance else []
    training = [case["case"] for case in provenance.get("training_cases", [])]
    return [
        ("makes", f"{model.target} from {model.source}"),
        ("network", _network(model)),
        *packed,
        ("loss", _loss(settings)),
        ("training", _training(settings)),
        *_start(provenance.get("started_from")),
        ("took", "; ".join(map(_took, stages)) or _UNKNOWN),
        ("grid", _grid(settings)),
        ("synthesis", _synthesis(settings)),
        ("training subjects", f"{len(training)}: {listed(training)}" if training else _UNKNOWN),
        ("validation subjects", listed(provenance.get("validation_cases", [])) or "none"),
        ("best epoch", "; ".join(_best(stage.get("best")) for stage in stages) or _UNKNOWN),
        ("made", _made(provenance, environment)),
        ("commit", environment.get("commit") or _UNKNOWN),
        ("sha256", model.sha256 or _UNKNOWN),
        ("folder", str(model.path) if model.path else _UNKNOWN),
        ("use", _USE),
    ]


def written_card(model: ShelvedModel) -> list[tuple[str, str]]:
    """Return the rows of the card.json of a model, and of what its model.json says without one: heading and text."""
    written, provenance = model.card, model.record.provenance
    rows = [("sha256", model.sha256)]
    if model.entry.url is not None:
        rows.append(("fetched from", model.entry.url))
    rows += _start(provenance.get("started_from"))
    if "packed" in provenance:
        rows.append(("weights", _packed(provenance["packed"])))
    if written is None:
        return [*rows, ("card", "none: the model has no card.json"), ("use", _USE)]
    rows += [("for", written.purpose), *(("not for", text) for text in written.not_for)]
    rows += [("licence", written.licence)]
    rows += [("data", str(data)) for data in written.data]
    rows.append(("training", written.command))
    rows += [("score", _score(score)) for score in written.scores if score.metric in _SHOWN]
    rows += [("fails", failure.what) for failure in written.failures]
    if (page := model.folder / "README.md").is_file():
        rows.append(("page", f"{page}: all scores, and a picture of each kind of scan"))
    return [*rows, ("use", "For research only, not for diagnosis.")]


def _start(facts: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """The model that the training started from, if there is one."""
    if not facts:
        return []
    name = f"{facts['name']}, " if facts["name"] else ""
    return [("started from", f"{name}{facts['target']} from {facts['source']}, sha256 {facts['sha256']}")]


def _packed(facts: Mapping[str, Any]) -> str:
    return f"{facts['weights']}, which changes a voxel by at most {facts['largest_error']:.1g} of the intensity scale"


def _score(score: DomainScore) -> str:
    sd = "" if score.sd is None else f" (SD {score.sd:.3g})"
    text = f"{score.domain}: {score.metric} {score.mean:.3g}{' ' * bool(score.unit)}{score.unit}{sd}, n = {score.n}"
    for gain in score.gains:
        interval = "" if gain.low is None else f" [{gain.low:+.3g}, {gain.high:+.3g}]"
        text += f"; minus {gain.against} {gain.difference:+.3g}{interval}"
    return text


def _network(model: Model) -> str:
    generator, count = model.settings.generator, len(model.generators)
    weights = sum(weight.numel() for network in model.generators for weight in network.parameters())
    kind = f"{generator.name}, residual" if generator.residual else generator.name
    chain = f", a chain of {count}" if count > 1 else ""
    return f"{kind}{chain}, {weights:,} weights, preset {model.settings.preset}"


def _loss(settings: Settings) -> str:
    """The terms that count, with their weights."""
    terms = [f"{name} {weight:g}" for name, weight in settings.loss.weights.items() if weight]
    return f"{', '.join(terms)} ({settings.loss.reduction} over voxels)"


def _training(settings: Settings) -> str:
    training = settings.training
    return (
        f"{training.epochs} epochs, {training.batch} patches of {training.patch}³ voxels a step, "
        f"{training.optimizer}, learning rate {training.learning_rate:g}, seed {training.seed}"
    )


def _took(stage: Mapping[str, Any]) -> str:
    if "steps" not in stage:  # it diverged, or the model of another run was taken
        return stage.get("ended", _UNKNOWN)
    return f"{stage['steps']:,} steps, {stage['patches']:,} patches, {stage['seconds']:,.0f} s"


def _grid(settings: Settings) -> str:
    prepare = settings.prepare
    size = "the scan's own size" if prepare.spacing_mm is None else f"{prepare.spacing_mm:g} mm"
    return f"{' x '.join(map(str, prepare.shape))} voxels of {size}"


def _synthesis(settings: Settings) -> str:
    synthesis = settings.synthesis
    return f"patches at stride {synthesis.stride}" if synthesis.mode == "patches" else f"mode {synthesis.mode}"


def _best(best: Mapping[str, Any] | None) -> str:
    if best is None:
        return _UNKNOWN
    scores = [text.format(best[name]) for name, text in _SCORES.items() if name in best]
    return f"epoch {best['epoch']}: {', '.join(scores) or 'the last, as there were no validation subjects'}"


def _made(provenance: Mapping[str, Any], environment: Mapping[str, Any]) -> str:
    if not environment:
        return _UNKNOWN
    software = ", ".join(f"{name} {environment[name]}" for name in ("unscanned", "torch") if name in environment)
    return f"{provenance.get('made', _UNKNOWN)}, {software}, {environment.get('device', _UNKNOWN)}"
