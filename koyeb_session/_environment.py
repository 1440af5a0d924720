"""What the environment and the Koyeb CLI's own file say about how to sign in."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Final, cast

from ._errors import KoyebSessionError, NotSignedInError
from ._models import PasswordCredentials

_TOKENS: Final = ("KOYEB_TOKEN", "KOYEB_API_TOKEN")
_LOOKED_AT: Final = "KOYEB_TOKEN, KOYEB_API_TOKEN, KOYEB_EMAIL with KOYEB_PASSWORD, KOYEB_CONFIG"
_CLI_FILE: Final = ".koyeb.yaml"


def settings(
    overrides: Mapping[str, Any], environ: Mapping[str, str] = os.environ
) -> dict[str, Any] | KoyebSessionError:
    """Give a client's arguments; ``overrides`` win, and what they make moot is not read."""
    found: dict[str, Any] = {}
    if environ.get("KOYEB_URL"):
        found["base_url"] = environ["KOYEB_URL"]
    if overrides.get("token") is None and overrides.get("credentials") is None:
        how = _from_variables(environ) or _from_cli(environ)
        if isinstance(how, NotSignedInError):
            return how
        if not how and overrides.get("store") is None:
            return NotSignedInError(
                f"nothing to sign in with: looked at {_LOOKED_AT}, and ~/{_CLI_FILE}"
            )
        found = {**how, **found}
    return {**found, **overrides}


def _from_variables(environ: Mapping[str, str]) -> dict[str, Any] | NotSignedInError:
    for name in _TOKENS:
        if token := environ.get(name, "").strip():
            return {"token": token}
    email, password = environ.get("KOYEB_EMAIL"), environ.get("KOYEB_PASSWORD")
    if email and password:
        organization = environ.get("KOYEB_ORGANIZATION") or None
        return {"credentials": PasswordCredentials(email, password, organization)}
    if email or password:
        there, missing = ("EMAIL", "PASSWORD") if email else ("PASSWORD", "EMAIL")
        return NotSignedInError(f"KOYEB_{there} is set, but KOYEB_{missing} is not")
    return {}


def _from_cli(environ: Mapping[str, str]) -> dict[str, Any] | NotSignedInError:
    """Read the file that ``koyeb login`` writes: YAML with ``token``, and maybe ``url``."""
    named = environ.get("KOYEB_CONFIG")
    path = Path(named) if named else _home(environ) / _CLI_FILE
    where = f"{path} (from KOYEB_CONFIG)" if named else str(path)
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        return NotSignedInError(f"{where} is not there") if named else {}
    except (OSError, UnicodeDecodeError) as exc:
        return NotSignedInError(f"{where} cannot be read: {type(exc).__name__}")
    value: object = _yaml(text) if text.strip() else {}
    if not isinstance(value, dict):
        return NotSignedInError(f"{where} is not the YAML file of the Koyeb CLI")
    fields = cast("dict[object, object]", value)
    found = {
        argument: field.strip()
        for name, argument in (("token", "token"), ("url", "base_url"))
        if isinstance(field := fields.get(name), str) and field.strip()
    }
    if "token" not in found:
        return NotSignedInError(f"{where} has no token: run `koyeb login`") if named else {}
    return dict(found)


def _home(environ: Mapping[str, str]) -> Path:
    try:
        return Path(environ["HOME"]) if environ.get("HOME") else Path.home()
    except RuntimeError:  # the system does not know the user, as in some containers
        return Path("/", "~")  # which is not there


def _yaml(text: str) -> Any:
    try:
        yaml = import_module("yaml")
    except ImportError as exc:
        message = "reading the Koyeb CLI's file needs: pip install koyeb-session[cli-config]"
        raise ImportError(message, name="yaml") from exc
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return None  # its message quotes the file
    return {} if value is None else value  # which is empty, but for comments
