"""Writes docs/settings.md from the settings themselves: `python tools/settings_reference.py`."""

from __future__ import annotations

import inspect
import json
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo

from unscanned import settings as config
from unscanned.schema import Schema, describe

PAGE = Path(__file__).resolve().parents[1] / "docs" / "settings.md"

_HEAD = """\
# Reference of settings

Written by `python tools/settings_reference.py` from `src/unscanned/settings.py`; a test fails where the two differ.

A run's settings come from a preset, then a TOML file (`--settings FILE`), then options; the later one wins. Where
`--preset` is not given, the file may name it: `preset = "strong"`. An unknown key is an error that names the nearest
known one. `--dry-run` prints the result with
[what it costs](check.md#cost) and stops. The run's folder gets it as `settings.toml`, which can be given as
`--settings` again.

```bash
unscanned train data/heads -o runs/short --preset adv --settings mine.toml --training.epochs 3 --dry-run
```

The same in `mine.toml` and from Python:

```toml
[training]
epochs = 3
```

```python
unscanned.train("data/heads", "runs/short", preset="adv", file="mine.toml", training={"epochs": 3})
```

An option is the key with its table in front and hyphens for underscores: `--training.learning-rate 1e-3`. A switch has
a form that turns it off: `--generator.residual`, `--generator.no-residual`.
"""


def reference() -> str:
    """Return the page as Markdown."""
    parts = [_HEAD, _presets()]
    parts += [_table(name, type(table)) for name, table in config.Settings() if name != "preset"]
    return "\n".join(parts)


def _presets() -> str:
    """Return what each preset is for, and what it changes."""
    plain = _flat(config.to_dict(config.Settings()))
    lines = [
        "## Presets",
        "",
        "| preset | what it is | what it changes from the defaults |",
        "| --- | --- | --- |",
    ]
    for name in config.preset_names():
        text = (resources.files("unscanned") / "presets" / f"{name}.toml").read_text(encoding="utf-8")
        purpose = text.splitlines()[0].removeprefix("#").strip()
        found = _flat(config.to_dict(config.resolve(name)))
        changes = [f"`{key} = {json.dumps(value)}`" for key, value in found.items() if value != plain[key]]
        lines.append(f"| `{name}` | {purpose} | {', '.join(changes) or 'nothing'} |")
    return "\n".join(lines) + "\n"


def _table(name: str, table: type[Schema]) -> str:
    """Return one table of settings."""
    lines = [
        f"## [{name}]",
        "",
        str(inspect.getdoc(table)),
        "",
        "| key | type | default | meaning |",
        "| --- | --- | --- | --- |",
    ]
    for key, field in table.model_fields.items():
        default = "unset" if field.default is None else f"`{json.dumps(field.default)}`"
        lines.append(f"| `{key}` | {describe(field.annotation)}{_bounds(field)} | {default} | {field.description} |")
    return "\n".join(lines) + "\n"


def _bounds(field: FieldInfo) -> str:
    """Return what a number is held to, such as ", above 0"."""
    words = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}
    found = {name: getattr(bound, name) for bound in field.metadata for name in words if hasattr(bound, name)}
    return "".join(f", {words[name]} {bound:g}" for name, bound in found.items())


def _flat(content: dict[str, Any]) -> dict[str, Any]:
    tables = {name: table for name, table in content.items() if isinstance(table, dict)}
    return {f"{name}.{key}": value for name, table in tables.items() for key, value in table.items()}


if __name__ == "__main__":
    PAGE.write_text(reference(), encoding="utf-8")
