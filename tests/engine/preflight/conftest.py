"""A dataset to break."""

import json
import shutil

import pytest

from evit_mm.engine import config as configure


@pytest.fixture
def copy(shapes, tmp_path, config):
    """A copy of the dataset to break, with the config pointing to it."""
    root = tmp_path / 'copy'
    shutil.copytree(shapes, root)
    configure.set_data_root(config, root)
    return root


@pytest.fixture
def rewrite(copy):
    """Change the content of the copy's annotation file."""
    path = copy / 'annotations' / 'instances_train2017.json'

    def run(change):
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return run
