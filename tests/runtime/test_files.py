"""Files that are written whole or not at all."""

import os

import pytest

from evit_runtime.errors import UserError
from evit_runtime.files import write_atomically


@pytest.mark.parametrize('is_synced', [True, False])
def test_an_error_keeps_what_was_there(is_synced, tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, 'fsync', synced.append)
    path = tmp_path / 'a.png'
    with write_atomically(path, 'wb', is_synced=is_synced) as file:
        file.write(b'first')
        assert not path.exists()
    assert path.read_bytes() == b'first' and bool(synced) == is_synced
    with pytest.raises(UserError, match="^can't write .*a.png: No space left"), \
            write_atomically(path, 'wb', is_synced=is_synced) as file:
        file.write(b'sec')
        raise OSError(28, 'No space left on device')
    assert path.read_bytes() == b'first' and os.listdir(tmp_path) == ['a.png']


@pytest.mark.parametrize('letter', ['a', 'ü', '物'])
def test_a_name_of_the_greatest_length(letter, tmp_path):
    name = letter * (251 // len(letter.encode())) + '.png'
    with write_atomically(tmp_path / name) as file:
        file.write('text')
    assert os.listdir(tmp_path) == [name]
