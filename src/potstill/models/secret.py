"""Keys of endpoints: where they are is written down, what they are never."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import SecretStr

from potstill.errors import ConfigError

HIDDEN = "[key]"


class Key:
    """The key of an endpoint, by reference (env:NAME, file:PATH) or given in memory.

    It is read when it is first needed; printing or pickling this object shows the reference.
    """

    def __init__(self, given: str | SecretStr | None):
        if isinstance(given, str) and not given.startswith(("env:", "file:")):
            raise ConfigError(
                "key must say where the key is, env:NAME or file:PATH; a key itself is given as "
                "pydantic's SecretStr and never written"
            )
        self._secret = given if isinstance(given, SecretStr) else None
        self.reference = given if isinstance(given, str) else ""

    def __repr__(self) -> str:
        return f"Key({self.label!r})"

    @property
    def label(self) -> str:
        """What messages call it: its reference, never its value."""
        if self.reference:
            return self.reference
        return "no key" if self._secret is None else "the key that was given"

    @property
    def exists(self) -> bool:
        """Whether there is a key at all."""
        return bool(self.reference) or self._secret is not None

    def value(self) -> str:
        """The key; empty where there is none.

        Raises:
            ConfigError: If the variable or file is absent or empty, or holds control characters.
        """
        if self._secret is not None:
            text = self._secret.get_secret_value().strip()
        elif self.reference.startswith("env:"):
            name = self.reference.removeprefix("env:")
            text = os.environ.get(name, "").strip()
            if not text:
                raise ConfigError(
                    f"the environment variable {name} holds no key; export {name}=... in the "
                    f"shell that starts potstill, or name another place with teacher.key"
                )
        elif self.reference:
            path = Path(self.reference.removeprefix("file:")).expanduser()
            try:
                text = path.read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigError(f"the key file {path} cannot be read: {error}") from None
            if not text:
                raise ConfigError(f"the key file {path} is empty; put the key on its first line")
        else:
            return ""
        if not text.isprintable() or not text.isascii():
            raise ConfigError(f"{self.label} is no key: it holds characters no header can carry")
        return text

    def hide(self, text: str) -> str:
        """The text with the key blotted out, should a server have repeated it."""
        value = self.value() if self.exists else ""
        return text.replace(value, HIDDEN) if value else text
