"""What the plain functions accept as a model, as data and as a task."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from pydantic import SecretStr, ValidationError

from potstill.config import PrivacyConfig, TeacherConfig
from potstill.config.file import explain
from potstill.data.load import load_dataset
from potstill.data.privacy import Privacy
from potstill.errors import ConfigError
from potstill.models.catalog import ModelRef, find_model
from potstill.models.logprobs import Capture
from potstill.models.workspace import find_models
from potstill.protocols import ChatModel, Task
from potstill.tasks import get_task
from potstill.types import Record

T = TypeVar("T")

Named = ModelRef | TeacherConfig | ChatModel | str | Path
Data = str | Path | Sequence[Any]


@contextlib.asynccontextmanager
async def opened_model(
    model: Named,
    batch_size: int,
    workspace: Mapping[str, Any] | None,
    key: str | None,
    privacy: PrivacyConfig | None = None,
    capture: Capture | None = None,
    *,
    when_asked: bool = False,
) -> AsyncIterator[ChatModel]:
    """The model, ready to be asked, behind a screen where `privacy` says so.

    It is closed afterwards if it was opened here, and only then keeps what `capture` says of
    its probabilities; and reads its weights `when_asked` only, where that is said.
    """
    from potstill.models.private import guarded

    if hasattr(model, "respond"):
        yield guarded(model, screen_of(model, privacy))
        return
    from potstill.models.chat import open_chat_model

    place = model if isinstance(model, TeacherConfig) else ref_of(model, workspace)
    secret = None
    if key and key.startswith(("env:", "file:")) and isinstance(place, ModelRef):
        place = place.model_copy(update={"key": key})
    elif key:
        secret = SecretStr(key)
    opened = open_chat_model(
        place, workspace=workspace, batch_size=batch_size, key=secret, capture=capture,
        when_asked=when_asked,
    )  # fmt: skip
    try:
        yield guarded(opened, screen_of(opened, privacy))
    finally:
        await opened.close()


def screen_of(model: ChatModel, privacy: PrivacyConfig | None) -> Privacy:
    """What is hidden from the model; by default only endpoints are shown less, and only of logs."""
    from potstill.models.endpoint import EndpointModel

    return Privacy(privacy or PrivacyConfig(), leaves=isinstance(model, EndpointModel))


def privacy_of(given: PrivacyConfig | str) -> PrivacyConfig:
    """The settings, or those of a mode.

    Raises:
        ConfigError: If there is no such mode.
    """
    if isinstance(given, PrivacyConfig):
        return given
    try:
        return PrivacyConfig.model_validate({"mode": given})
    except ValidationError as error:
        raise ConfigError(f"privacy.{explain(error)[0]}") from None


def load_model(name: str | Path, *, workspace: Mapping[str, Any] | None = None) -> ModelRef:
    """A model by its name; no weights are read until it is asked or trained.

    Args:
        workspace: Names -> places; those of the nearest potstill.yaml by default.

    Raises:
        ConfigError: If nothing of that name is known; with the nearest names.
    """
    return ref_of(str(name), workspace)


def ref_of(model: Any, workspace: Mapping[str, Any] | None) -> ModelRef:
    if isinstance(model, ModelRef):
        return model
    place = model.place if isinstance(model, TeacherConfig) else str(model)
    return find_model(place, workspace=find_models() if workspace is None else workspace)


def records_of(
    data: Data, task: str | None, columns: Mapping[str, str] | None = None
) -> list[Record]:
    if not isinstance(data, str | Path):
        data = list(data)
        if not data or all(isinstance(row, Record) for row in data):
            return data
    return load_dataset(data, columns=columns, task=task)


def task_of(name: str | None, records: Sequence[Record]) -> Task:
    if name is None:
        labelled = bool(records) and all("labels" in record.metadata for record in records)
        name = "classification" if labelled else "conversation"
    return get_task(name)


@contextlib.contextmanager
def working_folder(given: Path | str | None) -> Iterator[Path]:
    """The folder that was given, or one that is gone afterwards."""
    if given is not None:
        yield Path(given)
        return
    with tempfile.TemporaryDirectory(prefix="potstill-") as folder:
        yield Path(folder)


def wait(coroutine: Coroutine[Any, Any, T]) -> T:
    """Runs asynchronous work to its end, also inside a notebook, which has a loop already."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, coroutine).result()
