"""Which tests one worker of the suite takes together."""

from pathlib import Path

from jaxfl import zoo

DOZEN = 12  # systems of the matrix that one worker takes together
FILES = sorted(str(p) for p in Path(__file__).parent.glob("*/test_*.py") if "\ndef small():" in p.read_text())
BATCHED = 2  # parts of these files, of which a worker takes one


def together(test):
    """What one worker takes whole: a file, whose tests share what is compiled; of the matrix, what shares a process."""
    file, _, call = test.partition("::")
    case = call.partition("[")[2].removesuffix("]")
    if not file.startswith("tests/matrix/"):
        return file
    if file.endswith("test_claims.py") and case:
        return f"claim {case}"
    if case in (names := list(zoo.systems())):
        return f"systems {names.index(case) // DOZEN}"
    if case in FILES:
        return f"files {FILES.index(case) % BATCHED}"
    return file
