"""Models by name. A shelf is a folder with a folder for each model, and models.json, which has the hash of each file.

Two shelves are looked at: the one that comes with the package, and the one of the user, which `fetch_model` fills.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import platformdirs

from unscanned.display import warn
from unscanned.errors import CheckpointError, SettingsError, in_words, listed
from unscanned.files import read_json, sha256, write_json
from unscanned.formats.card import CardRecord
from unscanned.formats.model import ModelRecord, read_model_record
from unscanned.formats.shelf import Entry, ShelfRecord
from unscanned.schema import near
from unscanned.settings import Settings, read_settings

__all__ = [
    "SHIPPED",
    "ShelvedModel",
    "check_name",
    "find_model",
    "list_models",
    "model_files",
    "place_of",
    "read_list",
    "shelve",
    "there_are",
    "user_shelf",
]

SHIPPED = Path(__file__).parents[1] / "shipped"
"Shelf of the models that come with the package."

WITH_PACKAGE, FETCHED = "comes with unscanned", "fetched"

_LIST = "models.json"
_NAME = re.compile(r"[a-z0-9][a-z0-9._+-]{0,99}")
_NEEDED = ("model.json", "model.safetensors")
_NOT_A_LIST = "Give a folder that unscanned fetch model -o made, or name the folder of the model itself."


@dataclass(frozen=True, eq=False)
class ShelvedModel:
    """A model on a shelf. Nothing of it has been read yet.

    Attributes:
        name: Such as t1w-t2w.
        folder: Its own.
        origin: Where it came from, in words.
        entry: Its files with their hashes, and where it was fetched.
    """

    name: str
    folder: Path
    origin: str
    entry: Entry

    @cached_property
    def record(self) -> ModelRecord:
        """What its model.json says."""
        return self._facts[0]

    @property
    def sha256(self) -> str:
        """Of all that decides what it makes, as sidecars name it."""
        return self._facts[1]

    @cached_property
    def settings(self) -> Settings:
        """Of its training."""
        return read_settings(self.record.settings, where=str(self.folder / "model.json"), error=CheckpointError)

    @cached_property
    def card(self) -> CardRecord | None:
        """What its card.json says; None where it has none.

        Raises:
            CheckpointError: It cannot be read, or it is another model's.
        """
        if "card.json" not in self.entry.files:
            return None
        path = self.folder / "card.json"
        try:
            card = CardRecord.load(read_json(path), where=path, error=CheckpointError)
        except (OSError, ValueError) as error:
            raise self._refusal("the card of the model cannot be read", path, error) from error
        if card.model_sha256 != self.sha256:
            raise CheckpointError(
                "the card is another model's",
                where=path,
                found=f"sha256 {card.model_sha256[:12]}…",
                expected=f"{self.sha256[:12]}…",
                do=self._again,
            )
        return card

    @property
    def size_bytes(self) -> int:
        """Of all its files."""
        return sum((self.folder / name).stat().st_size for name in self.entry.files)

    def check(self) -> None:
        """Refuse a model whose files are not those that it was listed with.

        Raises:
            CheckpointError: A file is missing, or has another hash.
        """
        for name in dict.fromkeys([*_NEEDED, *self.entry.files]):
            path, wanted = self.folder / name, self.entry.files.get(name)
            try:
                found = sha256(path)
            except OSError as error:
                raise self._refusal("a file of the model cannot be read", path, error) from error
            if found != wanted:
                raise CheckpointError(
                    "not the file that belongs to the model",
                    where=path,
                    found=f"sha256 {found[:12]}…",
                    expected=f"{wanted[:12]}…" if wanted else f"a hash in {_LIST}",
                    do=self._again,
                )

    @cached_property
    def _facts(self) -> tuple[ModelRecord, str]:
        try:
            return read_model_record(self.folder)
        except (OSError, ValueError) as error:
            raise self._refusal("the model cannot be read", self.folder / "model.json", error) from error

    def _refusal(self, what: str, path: Path, error: Exception) -> CheckpointError:
        return CheckpointError(what, where=path, found=error, do=self._again)

    @property
    def _again(self) -> str:
        if self.origin == WITH_PACKAGE:
            return "Install unscanned again."
        if self.entry.url is not None:
            return (
                f"Remove {self.folder} and fetch it again: unscanned fetch model {shlex.quote(self.entry.url)} "
                f"--sha256 {self.entry.archive_sha256}"
            )
        return "Copy the model again from where it came."


def user_shelf() -> Path:
    """Return the folder that fetched models are put into: of the user's data, as the platform has it."""
    return platformdirs.user_data_path("unscanned", appauthor=False) / "models"


def list_models(models_in: str | Path | None = None) -> list[ShelvedModel]:
    """Return all models that have a name.

    Args:
        models_in: A shelf to look at in place of the package's and the user's.

    Warns:
        UserWarning: The user's shelf cannot be read; the package's can.

    Raises:
        CheckpointError: Another shelf cannot be read.
    """
    if models_in is not None:
        return _on_shelf(Path(models_in), str(models_in))
    models = _on_shelf(SHIPPED, WITH_PACKAGE)
    own = user_shelf()
    try:
        models += _on_shelf(own, FETCHED) if (own / _LIST).exists() else []
    except (OSError, CheckpointError) as error:
        warn(f"{own}: fetched models are passed over: {in_words(error)}")
    return models


def find_model(name: str, models_in: str | Path | None = None) -> ShelvedModel:
    """Return the model of a name.

    Args:
        name: In whatever case.
        models_in: As for `list_models`.

    Raises:
        CheckpointError: There is none, which says what there is; or there are two.
    """
    models = list_models(models_in)
    found = [model for model in models if model.name == name.lower()]
    if not found:
        raise CheckpointError(
            "no model of this name",
            where=name,
            found=there_are(models),
            expected="the name of a model, or a folder with model.json and model.safetensors",
            do=near(name.lower(), [model.name for model in models]),
        )
    if len(found) > 1:
        raise CheckpointError(
            "two models have this name",
            where=name,
            found=" and ".join(str(model.folder) for model in found),
            do="Give the folder of the one that you mean.",
        )
    return found[0]


def there_are(models: Sequence[ShelvedModel]) -> str:
    """Return in words which models there are."""
    return listed([model.name for model in models]) or "no models: none is on the shelf, and none was fetched"


def place_of(model: str | Path | ShelvedModel, models_in: str | Path | None = None) -> Path | ShelvedModel:
    """Return where a model is: a folder that holds one, and otherwise the model of that name.

    Args:
        model: A folder, that of the run that made the model, a name, or what `find_model` or `list_models` returned.
        models_in: As for `list_models`.

    Returns:
        The folder itself, which need not hold a model where it is no name; or the model on its shelf, whose files are
        those that it was listed with.

    Warns:
        UserWarning: A model has the name of the folder that is taken.

    Raises:
        CheckpointError: As for `find_model` and `ShelvedModel.check`.
    """
    if isinstance(model, ShelvedModel):
        model.check()
        return model
    path = Path(model)
    is_name = str(model) == path.name and _NAME.fullmatch(path.name.lower()) is not None
    for folder in (path, path / "model"):
        if (folder / "model.json").is_file():
            if is_name and any(shelved.name == path.name.lower() for shelved in list_models(models_in)):
                warn(f"the folder {path} is taken, not the model of that name")
            return folder
    if not is_name or path.is_file():
        return path
    found = find_model(path.name, models_in)
    found.check()
    return found


def read_list(shelf: Path) -> ShelfRecord:
    """Return which models a shelf holds; none where there is no list.

    Raises:
        CheckpointError: The list cannot be read.
    """
    path = shelf / _LIST
    if not path.exists():
        return ShelfRecord()
    try:
        return ShelfRecord.load(read_json(path), where=path, error=CheckpointError)
    except (OSError, ValueError) as error:
        raise CheckpointError("the list of models cannot be read", where=path, found=error, do=_NOT_A_LIST) from error


def shelve(shelf: str | Path, name: str, *, url: str | None = None, archive_sha256: str | None = None) -> ShelvedModel:
    """Put a model that lies in its folder on a shelf into the shelf's list, with the hashes of its files as they are.

    Args:
        shelf: Holds the folder `name`.
        name: Of the model.
        url: Where it was fetched from.
        archive_sha256: Of the archive that it came in.

    Raises:
        CheckpointError: The folder holds no model, or the list cannot be read.
        SettingsError: It is no name for a model.
        ResourceError: The disk is full.
    """
    shelf = Path(shelf)
    check_name(name)
    entry = Entry(files=model_files(shelf / name), url=url, archive_sha256=archive_sha256)
    model = ShelvedModel(name, shelf / name, str(shelf), entry)
    model.check()
    record = read_list(shelf)
    models = {**record.models, name: entry}
    write_json(shelf / _LIST, record.model_copy(update={"models": dict(sorted(models.items()))}).to_json())
    return model


def model_files(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file of a model's folder by its path in it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256(path) for path in files}


def check_name(name: str) -> None:
    """Refuse what cannot be the name of a model.

    Raises:
        SettingsError: It can not.
    """
    if not _NAME.fullmatch(name):
        raise SettingsError(
            "not a name for a model",
            where="name",
            found=repr(name),
            expected="small letters, digits and . _ + -, such as t1w-t2w",
        )


def _on_shelf(shelf: Path, origin: str) -> list[ShelvedModel]:
    if not (shelf / _LIST).is_file():
        raise CheckpointError("no list of models is there", where=shelf / _LIST, do=_NOT_A_LIST)
    models = read_list(shelf).models
    for name in models:
        if not _NAME.fullmatch(name):
            raise CheckpointError("a name in the list of models", where=shelf / _LIST, found=repr(name), do=_NOT_A_LIST)
    # A model whose folder is gone was removed by the user; one of the package is missing.
    return [
        ShelvedModel(name, shelf / name, origin, entry)
        for name, entry in models.items()
        if origin == WITH_PACKAGE or (shelf / name).exists()
    ]
