"""
The checks of the project: ``nox`` runs those that a pull request needs, ``nox -s NAME`` one check.

Each run builds the wheel once. All checks that import the package import that wheel. Nox's own
Python runs all tests, and the newest one both halves again. The other Pythons run the tests whose
result may differ between Pythons; ``nox -s tests-3.13 -- tests`` runs all of them there. ``nox -s
soak`` runs the long forms.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

import nox

PYPROJECT = nox.project.load_toml("pyproject.toml")
PYTHONS = nox.project.python_versions(PYPROJECT)
DIST = Path(".nox/dist").absolute()
# Extras whose lowest versions are tested. The bounds of the other extras are those of the versions
# that they were written with.
OLD_EXTRAS = ("cli-config", "fastapi", "file", "keyring", "redis")
# Tests of whole processes, of many tasks, and of the architecture. They take three times as long
# under coverage, and add no coverage of their own.
UNMEASURED = (
    *("tests/integrations/test_edge_frames.py", "tests/integrations/test_examples.py"),
    "tests/integrations/test_notebook.py",
    *("tests/integrations/test_servers.py", "tests/faults/test_matrix.py", "tests/stress"),
    *("tests/stores/test_fleet.py", "tests/stores/test_kills.py"),
    *("tests/stores/test_store_examples.py", "tests/test_examples.py"),
    *("tests/test_budgets.py", "tests/test_generate_sync.py"),
)
# Tests whose result may differ from one Python to another: threads, event loops, forks and ends of
# programs, and one test of each integration.
ELSEWHERE = (
    *("tests/_async/test_abandoned.py", "tests/_async/test_closing.py"),
    *("tests/_async/test_exchange.py", "tests/_async/test_single_flight.py"),
    *("tests/_sync/test_abandoned.py", "tests/_sync/test_closing.py"),
    *("tests/_sync/test_exchange.py", "tests/_sync/test_single_flight.py"),
    "tests/integrations/test_aiohttp.py",
    *("tests/integrations/test_fastapi.py", "tests/integrations/test_fastapi_lifespan.py"),
    *("tests/integrations/test_fastapi_threads.py", "tests/integrations/test_httpx2.py"),
    "tests/integrations/test_koyeb_sdk.py",
    *("tests/stores/test_cancelled_stores.py", "tests/stores/test_environment.py"),
    *("tests/stores/test_extras.py", "tests/stress/test_exit.py"),
    *("tests/stress/test_kept_threads.py", "tests/stress/test_places.py"),
    *("tests/test_async_only.py", "tests/test_async_shared_tasks.py", "tests/test_calls.py"),
    *("tests/test_deadlines.py", "tests/test_frames.py", "tests/test_hanging_stores.py"),
    *("tests/test_locks_and_events.py", "tests/test_public_surface.py"),
    *("tests/test_shared_tasks.py", "tests/test_shell.py", "tests/test_shell_sign_in.py"),
    "tests/test_sync_only.py",
    *("tests/test_tls.py", "tests/testing/test_server.py"),
)
# Tests that the newest Python runs as well. It runs those of the async half with the lowest
# versions of the dependencies.
NEWEST = ("tests/_sync", "tests/stress/test_signal_frames.py", "tests/stress/test_signals.py")
# Tests of the dependencies and extras whose lowest versions are tested.
LOWEST = (
    *("tests/_async", "tests/_sync/test_exchange.py", "tests/_sync/test_file_store.py"),
    *("tests/_sync/test_operations.py", "tests/_sync/test_redis_store.py"),
    *("tests/_sync/test_stores.py", "tests/_sync/test_transport.py", "tests/test_proxies.py"),
    *("tests/stores/test_environment.py", "tests/stores/test_extras.py", "tests/test_tls.py"),
    *("tests/integrations/test_aiohttp.py", "tests/integrations/test_fastapi.py"),
    *("tests/integrations/test_httpx2.py", "tests/integrations/test_koyeb_sdk.py"),
    "tests/integrations/test_fastapi_threads.py",
    *("tests/integrations/test_bearer.py", "tests/integrations/test_problems.py"),
    *("tests/integrations/test_whose_fault.py", "tests/stores/test_conformance.py"),
)
# Tests that have a long form.
LONG = (
    *("tests/integrations/test_servers.py", "tests/faults/test_matrix.py", "tests/stores"),
    *("tests/stress", "tests/test_fuzz.py"),
    *("tests/_async/test_redis_faults.py", "tests/_sync/test_redis_faults.py"),
)
# One more than the number of cores, as some tests wait for a socket or a process.
WORKERS = str((os.cpu_count() or 1) + 1)
SPREAD = ("-m", "pytest", "--numprocesses", WORKERS, "--dist", "worksteal")
# Keeps the checkout off sys.path, and lets the first import write the bytecode, as uv does not.
WHEEL_ONLY = {"PYTHONSAFEPATH": "1", "PYTHONDONTWRITEBYTECODE": ""}
# The top level of the sdist; the build back end adds `PKG-INFO` and `.gitignore`.
SDIST = {
    *{".ci", ".github", ".gitignore", "CHANGELOG.md", "LICENSE", "PKG-INFO", "README.md"},
    *{"examples", "koyeb_session", "noxfile.py", "pyproject.toml", "tests"},
}
ALONE = """
from koyeb_session import SessionClient
from koyeb_session.testing import FakeKoyeb

with FakeKoyeb().serve() as url, SessionClient(base_url=url) as session:
    token = session.login("me@example.com", "correct horse")
    assert session.refresh() != token
    assert session.http.get("/v1/apps").status_code == 200
    session.logout()
"""

# Nox's own Python is always installed, so it measures the coverage. The tests run at least once
# even if all other Pythons are missing, and so skipped.
OWN = f"{sys.version_info.major}.{sys.version_info.minor}"
if OWN not in PYTHONS:
    sys.exit(f"Run nox on one of Python {', '.join(PYTHONS)}; this is {OWN}.")


def is_installed(version: str) -> bool:
    """Return whether a Python starts; pyenv also has commands for some that do not."""
    program = shutil.which(f"python{version}")
    return version == OWN or (
        program is not None
        and subprocess.run([program, "-c", ""], capture_output=True, check=False).returncode == 0
    )


INSTALLED = [version for version in PYTHONS if is_installed(version)]

nox.needs_version = ">=2025.5.1"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.download_python = "never"
nox.options.error_on_missing_interpreters = False
nox.options.sessions = [
    "lint",
    "generate",
    "build",
    "typing",
    *(f"tests-{version}" for version in PYTHONS),
    f"minimum-{INSTALLED[-1]}",  # the newest, where old versions are most likely to fail
    "coverage",
]


def group(name: str) -> tuple[str, ...]:
    """Read a dependency group, as pip before 25.1 cannot."""
    return nox.project.dependency_groups(PYPROJECT, name)


def without(paths: tuple[str, ...]) -> list[str]:
    """Return the arguments that make pytest leave tests out."""
    return [f"--ignore={path}" for path in paths]


def wheel() -> str:
    """Return the path of the wheel that the session ``build`` has made in this run."""
    (path,) = DIST.glob("*.whl")
    return str(path)


@nox.session
def lint(session: nox.Session) -> None:
    """Lint the code, and check its format."""
    session.install(*group("lint"))
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def generate(session: nox.Session) -> None:
    """Check that the blocking half is what the generator makes of the async half."""
    session.install(*group("generate"))
    session.run("python", ".ci/generate_sync.py", "--check")


@nox.session
def build(session: nox.Session) -> None:
    """Build sdist and wheel twice, check their contents, and use the wheel on its own."""
    renderer = "readme-renderer[md]"  # without it twine takes any Markdown
    tools = (*PYPROJECT["build-system"]["requires"], "build", "twine", renderer, "virtualenv")
    session.install(*tools)
    again = Path(session.create_tmp()) / "again"
    for place in (DIST, again):
        shutil.rmtree(place, ignore_errors=True)
        session.run("python", "-m", "build", "--no-isolation", "--outdir", str(place))
    session.run("twine", "check", "--strict", *map(str, DIST.iterdir()))
    check_contents(session)
    check_reproducible(session, again)
    for version in INSTALLED:
        use_alone(session, version)


def check_contents(session: nox.Session) -> None:
    """Fail unless the archives contain exactly the listed files."""
    (sdist,) = DIST.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        in_sdist = {Path(*Path(member.name).parts[1:]) for member in archive if member.isfile()}
    with zipfile.ZipFile(wheel()) as archive:
        in_wheel = {Path(name) for name in archive.namelist()}
    package = {
        path
        for path in Path("koyeb_session").rglob("*.*")
        if not any(part == "__pycache__" or part.startswith(".") for part in path.parts)
    }
    for what, names, wanted in (
        ("sdist", {path.parts[0] for path in in_sdist}, SDIST),
        ("sdist", {path for path in in_sdist if path.parts[0] == "koyeb_session"}, package),
        ("wheel", {path for path in in_wheel if "dist-info" not in path.parts[0]}, package),
    ):
        if names != wanted:
            session.error(f"{what}: unlike what is listed: {sorted(map(str, names ^ wanted))}")


def check_reproducible(session: nox.Session, again: Path) -> None:
    """Fail unless a second build has given the same bytes, so that anyone can check a release."""
    first, second = (
        {path.name: path.read_bytes() for path in place.iterdir()} for place in (DIST, again)
    )
    if first != second:
        session.error("two builds of the same sources are not byte-identical")


def use_alone(session: nox.Session, version: str) -> None:
    """Sign in with only the wheel and its dependencies installed."""
    place = Path(session.create_tmp()) / version
    session.run("python", "-m", "virtualenv", "--clear", "--quiet", "--python", version, str(place))
    python = str(place / "bin" / "python")
    session.run(python, "-m", "pip", "install", "--quiet", wheel(), external=True)
    session.run(python, "-I", "-W", "error", "-c", ALONE, external=True)


def together(session: nox.Session, *commands: list[str]) -> None:
    """Run commands of a session at the same time; what each one says comes in one piece."""
    path = os.pathsep.join([session.bin, os.environ["PATH"]])

    def run(command: list[str]) -> subprocess.CompletedProcess[str]:
        env = {**os.environ, "PATH": path, "VIRTUAL_ENV": str(Path(session.bin).parent)}
        return subprocess.run(command, env=env, capture_output=True, text=True, check=False)

    with ThreadPoolExecutor() as pool:
        done = [*pool.map(run, commands)]
    for it in done:
        session.log(f"{' '.join(it.args)}\n{it.stdout}{it.stderr}")
    if any(it.returncode for it in done):
        session.error("mistakes were found")


@nox.session(requires=["build"])
def typing(session: nox.Session) -> None:
    """Check the types of all code, and that each public name of the wheel has one."""
    session.install(wheel(), *group("typing"))
    together(session, ["mypy", "--num-workers", "2"], ["pyright"])
    session.chdir(session.create_tmp())  # away from the checkout, which would hide the wheel
    session.run("pyright", "--verifytypes", "koyeb_session", "--ignoreexternal")


@nox.session(python=PYTHONS, requires=["build"])
def tests(session: nox.Session) -> None:
    """Run the tests on the wheel; arguments after ``--`` go to pytest."""
    session.install(wheel(), *group("tests"))
    if session.python == OWN and not session.posargs:
        session.run("coverage", "erase")
        session.run("coverage", "run", *SPREAD, *without(UNMEASURED), env=WHEEL_ONLY)
        session.run("python", *SPREAD, *UNMEASURED, env=WHEEL_ONLY)
    else:
        newest = NEWEST if session.python == INSTALLED[-1] else ()
        tests = {*ELSEWHERE, *newest}
        session.run("python", *SPREAD, *(session.posargs or sorted(tests)), env=WHEEL_ONLY)


@nox.session(requires=["build"])
def faults(session: nox.Session) -> None:
    """Run only the fault matrix, and print it as a table."""
    session.install(wheel(), *group("tests"))
    session.run(
        *("pytest", "--quiet", "--fault-table", "tests/faults", *session.posargs),
        env={**WHEEL_ONLY, "KOYEB_SESSION_SOAK": "1"},
    )


@nox.session(python=PYTHONS, requires=["build"])
def minimum(session: nox.Session) -> None:
    """Run the tests on the lowest versions that pyproject.toml allows."""
    project = PYPROJECT["project"]
    extras = project["optional-dependencies"]
    bounds = chain(project["dependencies"], *(extras[name] for name in OLD_EXTRAS))
    lowest = [re.sub(r">=([^,]+).*", r"==\1", bound) for bound in bounds]
    constraints = Path(session.create_tmp()) / "lowest.txt"
    constraints.write_text("\n".join(lowest), "utf-8")
    session.install(wheel(), *group("tests"), "--constraint", str(constraints))
    session.run("python", *SPREAD, *(session.posargs or LOWEST), env=WHEEL_ONLY)


@nox.session(requires=[f"tests-{OWN}"])
def coverage(session: nox.Session) -> None:
    """Fail unless the tests have covered every branch of the package."""
    session.install("coverage")
    session.run("coverage", "combine", "--quiet")
    session.run("coverage", "report")


@nox.session(requires=["build"])
def soak(session: nox.Session) -> None:
    """Run the long form of the tests of processes, stores and long runs; it takes minutes."""
    session.install(wheel(), *group("tests"))
    session.run(
        *("pytest", *LONG, *session.posargs),
        env={**WHEEL_ONLY, "KOYEB_SESSION_SOAK": "1"},
    )


@nox.session
def mutants(session: nox.Session) -> None:
    """Run the tests of the pitfalls on naive versions of the package, which all must fail."""
    session.install("-e", ".", *group("tests"))
    session.run("python", "-m", "tests.mutants", *session.posargs)


@nox.session
def mutation(session: nox.Session) -> None:
    """
    Run the tests of the engine on mutants of its blocking half; fail if more than a tenth survive.

    It takes half an hour; arguments after ``--`` are names of mutants, or patterns of them.
    """
    session.install("-e", ".", *group("tests"), "mutmut>=3.8")
    place = Path(session.create_tmp())
    for name in (".ci", "koyeb_session", "tests", "pyproject.toml"):
        copy = shutil.copytree if Path(name).is_dir() else shutil.copy
        copy(name, place / name)
    session.chdir(place)
    session.run("mutmut", "run", *session.posargs)
    session.run("python", "-m", "tests.mutation_scores")


@nox.session
def docs(session: nox.Session) -> None:
    """Write the reference out of the docstrings into .nox/reference; a warning of pdoc fails."""
    session.install("-e", ".", *group("docs"))
    session.run("python", ".ci/make_reference.py", ".nox/reference")


@nox.session
def bench(session: nox.Session) -> None:
    """Measure the checkout beside other libraries; ``-- --quick`` or ``-- hook cold`` for less."""
    session.install("-e", ".", *group("bench"))
    session.run("python", "-m", "tests.benchmarks", *session.posargs)
