"""Execute the notebooks at full size and keep their outputs: python notebooks/execute.py"""

from pathlib import Path
from tempfile import TemporaryDirectory

import jupytext
from nbclient import NotebookClient

for script in sorted(Path(__file__).parent.glob("*.py")):
    if script.name != "execute.py":
        book = jupytext.read(script)
        with TemporaryDirectory() as folder:  # what a notebook writes goes there
            resources = {"metadata": {"path": folder}}
            NotebookClient(book, timeout=1800, kernel_name="python3", resources=resources).execute()
        jupytext.write(book, script.with_suffix(".ipynb"))
        print(script.with_suffix(".ipynb").name)
