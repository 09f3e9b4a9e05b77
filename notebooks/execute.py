"""Execute the notebooks at full size and keep their outputs: python notebooks/execute.py"""

from pathlib import Path

import jupytext
from nbclient import NotebookClient

for script in sorted(Path(__file__).parent.glob("*.py")):
    if script.name != "execute.py":
        book = jupytext.read(script)
        NotebookClient(book, timeout=1800, kernel_name="python3").execute()
        jupytext.write(book, script.with_suffix(".ipynb"))
        print(script.with_suffix(".ipynb").name)
