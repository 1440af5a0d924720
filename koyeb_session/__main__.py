"""
Sign in to Koyeb once, and use the session in scripts.

commands:
  login     sign in, with a password or an API access token
  status    say whether you are signed in, and until when
  token     print a token that may be used now, and nothing else
  logout    end the session

exit status:
  0     done
  1     not signed in, or refused: sign in again
  2     wrong arguments, no terminal to ask on, or an extra is missing
  3     no answer from the service, or a problem with the file: try again later
  130   interrupted

A session is of one service: name it again, by --url or KOYEB_URL, when it is not Koyeb's own.
The commands use the saved session alone. KOYEB_TOKEN is for programs, and for Koyeb's own CLI.
Nothing is printed in color.

Each command takes --help. A script asks for a token each time it needs one:

  token=$(python -m koyeb_session token) &&
    printf 'Authorization: Bearer %s' "$token" | curl -H @- https://app.koyeb.com/v1/apps

So the token is in no list of processes, and curl does not run without one.
"""

from __future__ import annotations

import argparse
import gc
import getpass
import logging
import os
import re
import shlex
import sys
import warnings
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Final, NoReturn, TextIO, TypeAlias

import attrs
import httpx

from . import (
    AccessTokenCredentials,
    KoyebSessionError,
    NotSignedInError,
    RetryPolicy,
    SessionClient,
    SessionExpiredError,
    Token,
    __version__,
)
from ._api.operations import AS_IT_IS, OTHER_WAYS
from ._core.endings import for_people
from ._core.log import format_duration
from ._core.origins import Origins, origins
from ._core.provenance import foreign_service
from ._core.tokens import is_api_token
from ._environment import SERVICES, named_services
from ._http.failures import transport_error
from .stores import FileTokenStore

DONE: Final = 0
SIGN_IN: Final = 1
USAGE: Final = 2
TRY_AGAIN: Final = 3
INTERRUPTED: Final = 130
BROKEN_PIPE: Final = 141

_NAME: Final = "python -m koyeb_session"
_SERVICE: Final = "https://app.koyeb.com"
_PROFILE: Final = "/v1/account/profile"
_NOTHING: Final = "nothing was entered"
_DEFAULT: Final = "default"

_OPTIONS: Final = {
    ": give AccessTokenCredentials(api_token, organization_id)": "",
    "credentials.api_token": "token",
    "base_url": "--url (or KOYEB_URL)",
    "organization_id": "--organization",
}
"""The words of a program in messages, and those of the shell."""

Renewal: TypeAlias = Callable[[Token | None], Token]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command, and return its exit status, as the module's docstring lists them."""
    options = _parser().parse_args(arguments)
    log = _Log(options)
    logging.basicConfig(format="koyeb_session: %(message)s", level=logging.WARNING, handlers=[log])
    try:
        status: int = options.run(options)
        print(end="", flush=True)  # an error of standard output shows here
    except KoyebSessionError as error:
        return _complain(_advice(error, options), _status_of(error))
    except (ImportError, ValueError) as error:
        return _complain(_for_shell(str(error), options), USAGE)
    except KeyboardInterrupt:
        return INTERRUPTED
    except OSError as error:
        # At its end the interpreter flushes again, which would fail again, with a traceback.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            return BROKEN_PIPE
        return _complain(f"standard output: {error.strerror}", TRY_AGAIN)
    if status == DONE:
        log.print_kept()
    return status


class _Log(logging.StreamHandler[TextIO]):
    """
    Print each warning once, and keep the errors of sessions for a command that succeeds.

    A command that fails reports the same error itself.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__()
        self._options = options
        self._kept: list[logging.LogRecord] = []
        self._printed: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        """Print or keep a record."""
        if record.levelno >= logging.ERROR and hasattr(record, "koyeb_event"):
            self._kept.append(record)
        else:
            self._print(record)

    def format(self, record: logging.LogRecord) -> str:
        """Put a record into the shell's words."""
        return _for_shell(super().format(record), self._options)

    def print_kept(self) -> None:
        """Print the errors: the command did its work all the same."""
        for record in self._kept:
            self._print(record)

    def _print(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if text not in self._printed:
            self._printed.add(text)
            super().emit(record)


class _Parser(argparse.ArgumentParser):
    """A parser that quotes no rejected argument, as it may be a secret given by mistake."""

    def error(self, message: str) -> NoReturn:
        """Print the error, and exit with the status for wrong usage."""
        super().error(re.sub(r"'[^']*'|(?<=unrecognized arguments: ).*", "...", message, count=1))


def _parser() -> argparse.ArgumentParser:
    common = _Parser(add_help=False)
    common.add_argument(
        "--url",
        default=_default_service(),
        help=f"the service (default: {', '.join(SERVICES)}, or {_SERVICE})",
    )
    common.add_argument(
        "--name",
        default=_DEFAULT,
        help="which of your sessions, one for each account (default: %(default)s)",
    )
    common.add_argument(
        "--file", metavar="PATH", help="use this session file in place of the default one"
    )
    parser = _Parser(
        prog=_NAME,
        usage="%(prog)s [--help] [--version] COMMAND ...",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"koyeb-session {__version__}")
    commands = parser.add_subparsers(
        prog=_NAME, metavar="COMMAND", required=True, help=argparse.SUPPRESS
    )

    login = commands.add_parser(
        "login",
        parents=[common],
        description="Sign in, and save the session. A password is asked for and never echoed.",
    )
    login.add_argument("--email", help="your account's address; asked for when it is left out")
    login.add_argument(
        "--api-token",
        action="store_true",
        help="sign in with an API access token; it is the first line of standard input",
    )
    login.add_argument(
        "stdin", nargs="?", metavar="-", type=_standard_input, help="the same as --api-token"
    )
    login.add_argument(
        "--organization",
        metavar="ID",
        help="the organization to act in; with an API access token, the session keeps that token "
        "and issues a short-lived one for the organization whenever one is needed",
    )
    login.set_defaults(run=_login)
    for name, run, description in (
        ("status", _status, "Say whether you are signed in; renew the token if it is due."),
        ("token", _token, "Print a token that may be used now; renew it first if it is due."),
        ("logout", _logout, "End the session. An API access token is removed here, not revoked."),
    ):
        command = commands.add_parser(name, parents=[common], description=description)
        command.set_defaults(run=run)
    return parser


def _default_service() -> str:
    return next((it.url for it in named_services(os.environ)), _SERVICE)


def _command(options: argparse.Namespace, name: str, url: str | None = None) -> str:
    """Return the line that runs a command on the session of these options, or of another URL."""
    given = {
        "--url": url or (None if options.url == _default_service() else options.url),
        "--name": None if options.name == _DEFAULT else options.name,
        "--file": options.file,
    }
    words = [word for option, value in given.items() if value for word in (option, value)]
    return f"{_NAME} {shlex.join([name, *words])}"


def _standard_input(argument: str) -> bool:
    """Reject anything but ``-`` without quoting it, as it may be the secret."""
    if argument != "-":
        message = "a token is read from standard input, and an address is given as --email ADDRESS"
        raise argparse.ArgumentTypeError(message)
    return True


# The commands


def _login(options: argparse.Namespace) -> int:
    store = _store(options)
    _saved(options, store)  # a file or session that is in the way is told before anything is asked
    credentials: Renewal | None = None
    has_token = options.api_token or options.stdin
    if has_token and options.organization is not None:
        credentials = _first_credentials(options, store)
    with _client(options.url, store, credentials) as session:
        if credentials is not None:
            session.refresh()
        elif has_token:
            session.use_token(_given_token(options.url))
        else:
            session.login(
                options.email or _ask("Email: "),
                _ask_secret("Password: "),
                organization_id=options.organization,
            )
    if store.load() != session.token:
        return _complain(f"signed in, but not saved in {store!r}", TRY_AGAIN)
    return _tell("Signed in.")


def _status(options: argparse.Namespace) -> int:
    try:
        token = _current_token(options, check=True)
    except KoyebSessionError as error:
        print(_advice(error, options))
        return _status_of(error)
    print(f"Signed in to {options.url}")
    for name, value in (("user", token.user_id), ("organization", token.organization_id)):
        if value is not None:
            print(f"  {name}: {value}")
    print(f"  token: {_life(token)}")
    return DONE


def _token(options: argparse.Namespace) -> int:
    print(_current_token(options).id)
    return DONE


def _logout(options: argparse.Namespace) -> int:
    store = _store(options)
    saved = _saved(options, store)
    if saved is None:
        store.delete()  # a damaged file, or those of a killed process, may still hold a token
        return _tell("There is no session.")
    if is_api_token(saved):  # other programs may be using it
        store.delete()
        return _tell("Signed out. The API access token is still valid: revoke it at Koyeb.")
    with _client(options.url, store) as session:
        session.logout()
    return _tell("Signed out.")


# The session


def _store(options: argparse.Namespace) -> FileTokenStore:
    try:
        return FileTokenStore(options.file, name=options.name)
    except ValueError as error:
        raise ValueError(f"--file or --name: {error}") from None


def _saved(options: argparse.Namespace, store: FileTokenStore) -> Token | None:
    """Return the saved token; refuse that of another service, which no command touches."""
    saved, here = store.load(), _origin(options)
    service = None if saved is None else foreign_service(saved, here)
    if service is None:
        return saved
    if options.run is _login:
        logout = _command(options, "logout", service)
        other = "--name" if options.file is None else "--file"
        raise ValueError(
            f"the saved session is for {service}, and this login is for {here}: "
            f"end the session first, with {logout}, or keep both, with another {other}"
        )
    raise ValueError(
        f"the saved session is for {service}: add --url {service}, "
        "or keep the sessions of several services apart, with --name"
    )


def _origin(options: argparse.Namespace) -> str:
    match origins(options.url, ()):
        case Origins() as here:
            return here.service
        case wrong:
            raise ValueError(str(wrong))


def _client(url: str, store: FileTokenStore, credentials: Renewal | None = None) -> SessionClient:
    return SessionClient(base_url=url, credentials=credentials, store=store)


def _current_token(options: argparse.Namespace, *, check: bool = False) -> Token:
    store = _store(options)
    saved = _saved(options, store)
    if saved is None:
        raise NotSignedInError("nobody has signed in here")
    credentials = None if saved.renewal is None else _renewal(options.url)
    with _client(options.url, store, credentials) as session:
        token = session.current_token()
        if check:
            _check(session)
    # Closing has waited for a renewal ahead of need, which may have revoked this token.
    return session.token or token


def _given_token(url: str) -> Token:
    """Read a token from standard input."""
    with SessionClient(base_url=url, token=_read_secret()) as session:
        token = session.current_token()
        if is_api_token(token):  # another kind would be renewed if it is refused, and is not saved
            _check(session)
    return token


def _check(session: SessionClient) -> None:
    """Ask Koyeb whether it accepts the token: one that is mistyped or revoked looks like any."""
    try:
        reply = session.http.get(_PROFILE)
    except httpx.HTTPError as error:
        raise transport_error(error, f"no reply to GET {_PROFILE}", str) from None
    if reply.status_code == 401:
        raise NotSignedInError("the API access token is refused: it is mistyped, or was revoked")


def _renewal(url: str) -> Renewal:
    """Return credentials for a session that began with an API access token."""

    def renew(replaced: Token | None) -> Token:
        if replaced is None or replaced.renewal is None or replaced.organization_id is None:
            raise NotSignedInError("another process has ended the session, or begun another one")
        credentials = AccessTokenCredentials(replaced.renewal, replaced.organization_id)
        # Sent once: the session that asks for the token makes the further attempts.
        return _issue(url, credentials, RetryPolicy(attempts=1))

    return renew


def _first_credentials(options: argparse.Namespace, store: FileTokenStore) -> Renewal:
    """Issue the first token of a session, delete the saved one, and return the new one's source."""
    credentials = AccessTokenCredentials(_read_secret(), options.organization)
    first = _issue(options.url, credentials)
    with store.lock():
        store.delete()
    return lambda _: first


def _issue(
    url: str, credentials: AccessTokenCredentials, retry_policy: RetryPolicy | None = None
) -> Token:
    """Issue a token that contains, for the next one, the API access token behind it."""
    with SessionClient(base_url=url, credentials=credentials, retry_policy=retry_policy) as session:
        return attrs.evolve(
            session.current_token(),
            organization_id=credentials.organization_id,
            renewal=credentials.api_token,
        )


def _life(token: Token) -> str:
    """Describe how long a token is good."""
    if is_api_token(token):
        return "an API access token, which does not expire"
    if token.expires_at is None:
        return "good for an unknown time"
    left = (token.expires_at - datetime.now(UTC)).total_seconds()
    return f"good for {format_duration(left)}, until {token.expires_at:%Y-%m-%d %H:%M:%S} UTC"


# Questions and answers. No frame that an exception passes through keeps a secret in a local.


def _ask(prompt: str) -> str:
    print(prompt, end="", file=sys.stderr, flush=True)
    if answer := sys.stdin.readline().strip():
        return answer
    raise ValueError(_NOTHING)


def _ask_secret(prompt: str) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("error", getpass.GetPassWarning)  # rather than echo the secret
        try:
            return getpass.getpass(prompt)
        except getpass.GetPassWarning:
            reason = "there is no terminal to ask on; --api-token reads standard input"
        except EOFError:
            reason = _NOTHING
    raise ValueError(reason)


def _read_secret() -> str:
    if sys.stdin is None:  # the caller has closed it
        raise ValueError("standard input is closed")
    if sys.stdin.isatty():
        return _ask_secret("API access token: ").strip()
    return sys.stdin.readline().strip()


def _status_of(error: KoyebSessionError) -> int:
    return TRY_AGAIN if error.retryable else SIGN_IN


def _advice(error: KoyebSessionError, options: argparse.Namespace) -> str:
    message = _for_shell(error.message, options)
    if isinstance(error, NotSignedInError | SessionExpiredError) and not error.retryable:
        return f"{message}\nSign in with: {_command(options, 'login')}"
    return message


def _for_shell(message: str, options: argparse.Namespace) -> str:
    """Name the options and commands of the shell in place of a program's arguments and calls."""
    other_way = f"an API access token: {_command(options, 'login')} --api-token"
    message = for_people(message)
    for ways in (OTHER_WAYS, AS_IT_IS):
        message = message.replace(ways, other_way)
    for argument, option in _OPTIONS.items():
        message = message.replace(argument, option)
    return message


def _tell(text: str) -> int:
    print(text, file=sys.stderr)
    return DONE


def _complain(text: str, status: int) -> int:
    print(f"koyeb_session: {text}", file=sys.stderr)
    return status


if __name__ == "__main__":
    try:
        sys.exit(main())
    finally:
        gc.freeze()  # the interpreter would look through all objects once more as it ends
