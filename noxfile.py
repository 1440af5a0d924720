"""
The checks of the project: ``nox`` runs those that a pull request needs, ``nox -s NAME`` one check.

Each run builds the wheel once. All checks that import the package import that wheel.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from itertools import chain
from pathlib import Path

import nox

PYPROJECT = nox.project.load_toml("pyproject.toml")
PYTHONS = nox.project.python_versions(PYPROJECT)
DIST = Path(".nox/dist").absolute()
# Extras whose lowest versions are tested. The bounds of the other extras are those of the versions
# that they were written with.
OLD_EXTRAS = ("cli-config", "fastapi", "file", "keyring", "redis")
# These tests take half of the suite's time: they run whole processes and thousands of tasks. Only
# nox's own Python runs them, and any other one with `nox -s tests-3.13 -- tests`.
HEAVY = (
    *("tests/edges/test_servers.py", "tests/faults/test_matrix.py", "tests/storms/test_scale.py"),
    *("tests/stores/test_fleet.py", "tests/stores/test_kills.py"),
)
# Tests that take three times as long under coverage, and add no coverage of their own.
UNMEASURED = (*HEAVY, "tests/storms")
# Tests that have a long form.
LONG = (
    *("tests/stores", "tests/storms/test_lines.py", "tests/storms/test_machine.py"),
    *("tests/storms/test_scale.py", "tests/storms/test_signals.py", "tests/test_fuzz.py"),
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


@nox.session(requires=["build"])
def typing(session: nox.Session) -> None:
    """Check the types of all code, and that each public name of the wheel has one."""
    session.install(wheel(), *group("typing"))
    session.run("mypy", "--num-workers", "2")
    session.run("pyright")
    session.chdir(session.create_tmp())  # away from the checkout, which would hide the wheel
    session.run("pyright", "--verifytypes", "koyeb_session", "--ignoreexternal")


@nox.session(python=PYTHONS, requires=["build"])
def tests(session: nox.Session) -> None:
    """Run the tests on the wheel; nox's own Python runs all. pytest gets arguments after ``--``."""
    session.install(wheel(), *group("tests"))
    if session.python == OWN and not session.posargs:
        session.run("coverage", "erase")
        session.run("coverage", "run", *SPREAD, *without(UNMEASURED), env=WHEEL_ONLY)
        session.run("python", *SPREAD, *UNMEASURED, env=WHEEL_ONLY)
    else:
        session.run("python", *SPREAD, *(session.posargs or without(HEAVY)), env=WHEEL_ONLY)


@nox.session(requires=["build"])
def faults(session: nox.Session) -> None:
    """Run only the fault matrix, and print it as a table."""
    session.install(wheel(), *group("tests"))
    session.run(
        *("pytest", "--quiet", "--fault-table", "tests/faults", *session.posargs), env=WHEEL_ONLY
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
    session.run("python", *SPREAD, *(session.posargs or without(HEAVY)), env=WHEEL_ONLY)


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
def naive(session: nox.Session) -> None:
    """Run the tests of the pitfalls on naive versions of the package, which all must fail."""
    session.install("-e", ".", *group("tests"))
    session.run("python", "-m", "tests.naive", *session.posargs)


@nox.session
def mutation(session: nox.Session) -> None:
    """
    Run the tests of the engine on mutants of it, and fail if more than a tenth survive.

    It takes ten minutes; arguments after ``--`` are names of mutants, or patterns of them.
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
