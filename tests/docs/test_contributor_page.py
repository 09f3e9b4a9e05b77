"""The templates of the contributor page are files that are proved elsewhere, and the files it names exist."""

import re
from pathlib import Path

import pytest

import jaxfl as fl

HERE = Path(fl.__file__).parent
TEXT = (HERE / "algorithms" / "README.md").read_text()
PLUGINS = Path(__file__).parents[1] / "plugins"


@pytest.mark.parametrize(("place", "name"), [(0, "my_mifa"), (1, "extra")])
def test_its_templates_are_those_that_the_plugins_tests_run(place, name):
    blocks = re.findall(r"```python\n(.*?)```", TEXT, re.S)
    assert len(blocks) == 2
    assert blocks[place] == (PLUGINS / f"{name}.py").read_text()


def test_the_files_it_names_exist():
    named = set(re.findall(r"`((?:learn|exchange|world|gossip|programs)/\w+\.py|jaxfl/\w+\.py)`", TEXT))
    assert len(named) > 8
    for name in named:
        places = (HERE.parent / name, HERE / name, HERE / "algorithms" / name)
        assert any(place.is_file() for place in places), name


def test_what_it_calls_is_there():
    for name in set(re.findall(r"`fl\.(\w+)", TEXT)):
        assert hasattr(fl, name), name
