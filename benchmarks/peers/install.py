"""Make the virtual environments of the peers, each from its file of pinned versions.

    python benchmarks/peers/install.py              all of them
    python benchmarks/peers/install.py torch pfl    these

They come to `benchmarks/.venvs/NAME`, from the versions in `NAME.txt`. Needs Python 3.11 and its standard library.
"""

import subprocess
import sys
import time
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
VENVS = HERE.parent / ".venvs"


def python(name: str, venvs: Path = VENVS) -> Path:
    """The interpreter of a peer."""
    return venvs / name / "bin" / "python"


def pinned(name: str) -> list[str]:
    """The requirements of a peer, `package==version`."""
    return (HERE / f"{name}.txt").read_text().split()


def commands(name: str) -> list[list[str]]:
    """What to install a peer by.

    Dependencies are not followed: the file has them all, and torchvision, which some peers name but no workload needs,
    is left out. But torch goes first with its own, for on an accelerator's build those are not in the file.
    """
    pip = [str(python(name)), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    file = str(HERE / f"{name}.txt")
    torch = [requirement for requirement in pinned(name) if requirement.startswith("torch==")]
    return [[*pip, "--constraint", file, *torch]] * bool(torch) + [[*pip, "--no-deps", "--requirement", file]]


def install(name: str) -> str | None:
    """Make the environment of a peer anew; what went wrong, if anything did."""
    venv.create(VENVS / name, clear=True, with_pip=True)
    for command in commands(name):
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
        if done.returncode:
            python(name).unlink()  # what is half made is not installed
            return (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
    return None


def main(names: list[str]) -> int:
    """Install the peers of these names, or all; 1 if any failed."""
    known, failed = sorted(path.stem for path in HERE.glob("*.txt")), []
    unknown = sorted(set(names) - set(known))
    if unknown:
        print(f"unknown peers: {', '.join(unknown)}; there are {', '.join(known)}", file=sys.stderr)
        return 1
    for name in names or known:
        begin = time.perf_counter()
        try:
            wrong = install(name)
        except (OSError, subprocess.SubprocessError) as error:
            wrong = str(error)
        said = f"failed: {wrong}" if wrong else f"installed in {time.perf_counter() - begin:.0f} s"
        print(f"{name}: {said}", flush=True)
        failed += [name] * bool(wrong)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
