"""The sanitizer build of the core, in a folder of its own, and the environment to run it in.

`python -m tests.fuzz.build [--committed]` builds the checkout as it is now (or its last commit) with AddressSanitizer,
UndefinedBehaviorSanitizer, invariants and bounds checks, and prints the folder. Sources are copied there when their
content differs, so that a second build compiles what has changed and nothing else, and never meets the objects of
another build.
"""
from __future__ import annotations

import fcntl
import hashlib
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
SANITIZERS = "address,undefined"
SUPPRESSIONS = Path(__file__).with_name("leaks.supp")
START = "import runpy, sys; sys.path[:0] = [{lib!r}, {root!r}]; runpy.run_module({module!r}, run_name='__main__')"


def default_folder() -> Path:
    """One for each checkout and each Python."""
    name = hashlib.sha256(f"{ROOT}:{sys.executable}:{sys.version}".encode()).hexdigest()[:12]
    return Path(os.environ.get("DETOUR_FUZZ_BUILD") or Path(tempfile.gettempdir()) / f"detour-sanitized-{name}")


def checkout_sources() -> Iterator[tuple[Path, bytes]]:
    """(name, content) of what the build reads, as it lies in the checkout."""
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        yield Path(name), (ROOT / name).read_bytes()
    for path in (ROOT / "pyext" / "detour").rglob("*"):
        generated = path.suffix == ".c" and path.with_suffix(".pyx").exists()
        if path.is_file() and path.suffix in (".pyx", ".pxd", ".pyi", ".py", ".h", ".c") and not generated:
            yield path.relative_to(ROOT), path.read_bytes()
    for path in (ROOT / "python" / "detour").rglob("*.py"):
        yield path.relative_to(ROOT), path.read_bytes()


def committed_sources() -> Iterator[tuple[Path, bytes]]:
    """The same of the last commit, whatever is being edited."""
    archive = subprocess.run(["git", "archive", "HEAD", "setup.py", "pyproject.toml", "README.md", "LICENSE", "pyext",
                              "python"], cwd=ROOT, capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        for member in tar:
            content = tar.extractfile(member) if member.isfile() else None
            if content is not None:
                yield Path(member.name), content.read()


def copy_sources(tree: Path, committed: bool) -> None:
    """Brings `tree` up to date; a file of the same content keeps its time stamp."""
    wanted = set()
    for name, content in committed_sources() if committed else checkout_sources():
        wanted.add(name)
        place = tree / name
        if not place.exists() or place.read_bytes() != content:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content)
    for path in list(tree.rglob("*")):
        if path.suffix in (".pyx", ".pxd", ".py") and path.relative_to(tree) not in wanted:
            path.unlink()


def build(folder: Path | None = None, *, committed: bool = False, quiet: bool = True) -> Path:
    """Builds into `folder` and answers the folder to import `detour` from."""
    folder = folder or default_folder()
    tree, lib = folder / "tree", folder / "lib"
    tree.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        copy_sources(tree, committed)
        shutil.copytree(tree / "python" / "detour", lib / "detour", dirs_exist_ok=True)
        (lib / "detour" / "core").mkdir(exist_ok=True)
        shutil.copy(tree / "pyext" / "detour" / "core" / "__init__.py", lib / "detour" / "core")
        environment = {**os.environ, "DETOUR_DEBUG": "1", "DETOUR_SANITIZE": SANITIZERS}
        ended = subprocess.run(
            [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", str(lib), "--build-temp",
             str(folder / "objects")], cwd=tree, env=environment, text=True, check=False,
            stdout=subprocess.PIPE if quiet else None, stderr=subprocess.STDOUT if quiet else None)
    if ended.returncode:
        errors = [line for line in (ended.stdout or "").splitlines() if re.search(r":\d+:\d+: (?!.*warning)", line)]
        raise SystemExit("\n".join(["the sanitizer build failed:", *errors[:20], (ended.stdout or "")[-1000:]]))
    return lib


def runtime_library(name: str) -> str:
    """Path of one of gcc's sanitizer runtimes."""
    told = subprocess.run(["gcc", f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    found = told.stdout.strip()
    if not Path(found).exists():
        raise SystemExit(f"gcc has no {name}")
    return str(Path(found).resolve())


def environment() -> dict[str, str]:
    """What the sanitized core needs around it: the runtimes first, malloc for Python's own objects, a leak check."""
    return {**os.environ,
            "LD_PRELOAD": " ".join(runtime_library(name) for name in ("libasan.so", "libubsan.so")),
            "PYTHONMALLOC": "malloc",
            "ASAN_OPTIONS": "detect_leaks=1:abort_on_error=1:allocator_may_return_null=1:"
                            "detect_stack_use_after_return=0:malloc_context_size=12:quarantine_size_mb=64",
            "LSAN_OPTIONS": f"suppressions={SUPPRESSIONS}:print_suppressions=0",
            "UBSAN_OPTIONS": "print_stacktrace=1:abort_on_error=1"}


def command(lib: Path, module: str, arguments: list[str]) -> list[str]:
    """A command that runs a module of the checkout's tests with the core of `lib`."""
    return [sys.executable, "-c", START.format(lib=str(lib), root=str(ROOT), module=module), *arguments]


if __name__ == "__main__":
    print(build(committed="--committed" in sys.argv, quiet=False))
