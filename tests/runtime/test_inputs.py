"""What inputs stand for, and the names that keep their outputs apart."""

import http.server
import threading
from functools import partial
from pathlib import Path

import pytest

from evit_runtime import inputs
from evit_runtime.errors import UserError
from evit_runtime.inputs import find_sources, local_file, read_content


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A folder of empty files, which is the current one."""
    for name in ('photos/1.jpg', 'photos/2.PNG', 'photos/notes.txt', 'photos/.hidden.jpg',
                 'photos/day/1.jpg', 'photos/day/clip.mp4', 'photos/.cache/3.jpg', 'more/1.jpg',
                 'more/1.png', '7'):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b'content')
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(*given, **options):
    return [source.name for source in find_sources(given, **options)]


def test_a_folder_with_its_subfolders(tree):
    sources = find_sources(['photos'])
    assert [(source.kind, source.name) for source in sources] == [
        ('picture', '1.jpg'), ('picture', '2.PNG'), ('picture', 'day/1.jpg'),
        ('video', 'day/clip.mp4')]
    assert [source.stem for source in sources] == ['1', '2', 'day/1', 'day/clip']
    assert sources[2].location == str(tree / 'photos/day/1.jpg')


def test_files_and_folders_together_keep_equal_names_apart(tree):
    assert names('photos', 'more') == ['photos/1.jpg', 'photos/2.PNG', 'photos/day/1.jpg',
                                       'photos/day/clip.mp4', 'more/1.jpg', 'more/1.png']
    assert names('photos/day/1.jpg', 'more/1.jpg') == ['photos/day/1.jpg', 'more/1.jpg']
    assert names('photos/notes.txt') == ['notes.txt']  # whoever names a file means it


def test_each_once(tree):
    assert names('photos/1.jpg', 'photos', './photos/1.jpg')[:2] == ['1.jpg', '2.PNG']
    assert len(names('photos/1.jpg', 'photos')) == 4


def test_endings_keep_stems_apart(tree):
    assert [source.stem for source in find_sources(['more'])] == ['1.jpg', '1.png']
    Path('more/1.JPG').touch()
    assert len({source.stem.casefold() for source in find_sources(['more'])}) == 3


def test_patterns(tree):
    assert names('photos/*') == ['1.jpg', '2.PNG', 'day/1.jpg', 'day/clip.mp4']
    assert names('photos/**/*.jpg') == ['1.jpg', 'day/1.jpg']
    assert names('*/1.jpg') == ['more/1.jpg', 'photos/1.jpg']
    Path('[1].jpg').touch()
    assert names('[1].jpg') == ['[1].jpg']


def test_webcams_and_addresses(tree):
    given = ['0', 'https://a.b/x/cat%201.jpg?size=2', 'http://a.b/cat%201.jpg', 'HTTP://a/b.mp4',
             'https://a.b', '7']
    assert [(source.kind, source.name, source.stem) for source in find_sources(given)] == [
        ('webcam', 'webcam_0', 'webcam_0'), ('picture', 'cat 1.jpg', 'cat 1.jpg'),
        ('picture', 'cat 1.jpg', 'cat 1.jpg_2'), ('video', 'b.mp4', 'b'),
        ('picture', 'picture', 'picture'), ('picture', '7', '7')]


def test_the_folder_of_outputs_is_left_out(tree):
    assert names('photos', exclude=tree / 'photos/day') == ['1.jpg', '2.PNG']


@pytest.mark.parametrize('given, message', [
    ('gone.jpg', '^no such file or folder: gone.jpg$'), ('a*.jpg', 'matches the pattern a..jpg$'),
    ('photos/none', '^no such file or folder'), ('empty', '^no pictures or videos in empty')])
def test_nothing_found(given, message, tree):
    Path('empty').mkdir()
    with pytest.raises(UserError, match=message):
        find_sources([given])


@pytest.fixture
def server(tree):
    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), partial(
            Handler, directory=str(tree))) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f'http://127.0.0.1:{running.server_address[1]}'
        running.shutdown()
        thread.join()


def test_addresses_are_fetched(server, monkeypatch):
    [picture, video] = find_sources([f'{server}/photos/1.jpg', f'{server}/photos/day/clip.mp4'])
    assert read_content(picture) == b'content'
    with local_file(video) as path:
        assert Path(path).read_bytes() == b'content' and path.endswith('.mp4')
    assert not Path(path).exists()
    with pytest.raises(UserError, match='the server answers 404 '):
        read_content(find_sources([f'{server}/gone.jpg'])[0])
    monkeypatch.setattr(inputs, '_LARGEST_DOWNLOAD', 3)
    with pytest.raises(UserError, match='has more than 0 MB'):
        read_content(picture)


@pytest.mark.parametrize('address', ['http://127.0.0.1:9/a.jpg', 'http://[/a.jpg', 'http:///a.jpg'])
def test_addresses_that_can_not_be_fetched(address, tree):
    with pytest.raises(UserError, match="^can't fetch http") as caught:
        read_content(find_sources([address])[0])
    assert '\n' not in str(caught.value)
