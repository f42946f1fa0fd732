"""Generating into a folder: create, reuse, replace or refuse, and never touch files of others."""

import pytest

from evit_mm.data import generate_ade, generate_coco
from evit_mm.data.synthetic import folder, layouts
from evit_mm.errors import UserError

TINY = dict(num_train=3, num_val=1, image_size=(64, 64), progress=False)


@pytest.mark.parametrize('generate', [generate_coco, generate_ade])
class TestFolder:
    def test_same_settings_are_reused(self, generate, tmp_path):
        first = generate(tmp_path, **TINY)
        times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob('*')}
        for overwrite in (False, True):
            again = generate(tmp_path, overwrite=overwrite, **TINY)
            assert again.reused
            assert (again.num_images, again.num_annotations) == (
                first.num_images, first.num_annotations)
        assert times == {path: path.stat().st_mtime_ns for path in tmp_path.rglob('*')}

    def test_missing_file_is_generated_again(self, generate, tmp_path, snapshot):
        generate(tmp_path, **TINY)
        before = snapshot(tmp_path)
        next(tmp_path.rglob('*.jpg')).unlink()
        assert not generate(tmp_path, **TINY).reused
        assert snapshot(tmp_path) == before

    def test_other_settings_are_refused(self, generate, tmp_path, snapshot):
        generate(tmp_path, **TINY)
        before = snapshot(tmp_path)
        for change in (dict(num_train=2), dict(seed=9), dict(image_size=(64, 80))):
            with pytest.raises(UserError, match=r'other settings.*--overwrite') as caught:
                generate(tmp_path, **{**TINY, **change})
            assert str(tmp_path) in str(caught.value)
        assert snapshot(tmp_path) == before

    def test_overwrite_replaces_and_leaves_no_old_file(self, generate, tmp_path, snapshot):
        generate(tmp_path / 'a', **TINY)
        (tmp_path / 'a' / 'notes.txt').write_text('mine')
        image_folder = next((tmp_path / 'a').rglob('*.jpg')).parent
        (image_folder / 'mine.jpg').write_text('mine')
        fewer = {**TINY, 'num_train': 2, 'seed': 5}
        assert not generate(tmp_path / 'a', overwrite=True, **fewer).reused
        generate(tmp_path / 'b', **fewer)
        expected = snapshot(tmp_path / 'b')
        expected['notes.txt'] = b'mine'
        expected[(image_folder / 'mine.jpg').relative_to(tmp_path / 'a').as_posix()] = b'mine'
        assert snapshot(tmp_path / 'a') == expected

    def test_dataset_of_the_other_layout(self, generate, tmp_path, snapshot):
        other = generate_ade if generate is generate_coco else generate_coco
        other(tmp_path / 'a', **TINY)
        with pytest.raises(UserError, match='other settings'):
            generate(tmp_path / 'a', **TINY)
        generate(tmp_path / 'a', overwrite=True, **TINY)
        generate(tmp_path / 'b', **TINY)
        assert snapshot(tmp_path / 'a') == snapshot(tmp_path / 'b')
        folders = [{path.relative_to(root) for path in root.rglob('*') if path.is_dir()}
                   for root in (tmp_path / 'a', tmp_path / 'b')]
        assert folders[0] == folders[1]

    def test_non_empty_folder_is_refused(self, generate, tmp_path, snapshot):
        (tmp_path / 'notes.txt').write_text('mine')
        with pytest.raises(UserError, match=r'not empty.*--overwrite'):
            generate(tmp_path, **TINY)
        assert snapshot(tmp_path) == {'notes.txt': b'mine'}
        generate(tmp_path, overwrite=True, **TINY)
        assert snapshot(tmp_path)['notes.txt'] == b'mine'

    @pytest.mark.parametrize('manifest', [
        '{}', '[]', 'no json', '{"generator": "evit_mm.data.shapes", "settings": {"layout": 1}}'])
    def test_manifest_of_another_program(self, generate, tmp_path, manifest, snapshot):
        (tmp_path / 'shapes.json').write_text(manifest)
        with pytest.raises(UserError, match='not made by this generator'):
            generate(tmp_path, **TINY)
        with pytest.raises(UserError, match='shapes.json was not made by this generator'):
            generate(tmp_path, overwrite=True, **TINY)
        assert snapshot(tmp_path) == {'shapes.json': manifest.encode()}

    def test_files_of_others_are_never_replaced(self, generate, tmp_path, snapshot):
        generate(tmp_path / 'sample', **TINY)
        for name in snapshot(tmp_path / 'sample'):
            root = tmp_path / 'foreign' / name.replace('/', '_')
            (root / name).parent.mkdir(parents=True)
            (root / name).write_text('mine')
            with pytest.raises(UserError, match='was not made by this generator'):
                generate(root, overwrite=True, **TINY)
            assert snapshot(root) == {name: b'mine'}

    def test_files_of_others_are_not_replaced_by_more_images(self, generate, tmp_path, snapshot):
        generate(tmp_path, **TINY)
        new = next(tmp_path.rglob('*_train_*3.jpg'), tmp_path / 'train2017' / f'{3:012d}.jpg')
        mine = new.with_name(new.name.replace('3.jpg', '4.jpg'))
        mine.write_text('mine')
        before = snapshot(tmp_path)
        with pytest.raises(UserError, match=mine.name):
            generate(tmp_path, overwrite=True, **{**TINY, 'num_train': 4})
        assert snapshot(tmp_path) == before

    def test_interrupted_generation_is_repeated(self, generate, tmp_path, monkeypatch, snapshot):
        whole = tmp_path / 'whole'
        generate(whole, **TINY)
        real = layouts.write_image
        written = []

        def interrupt(path, image):
            if len(written) == 2:
                raise KeyboardInterrupt
            written.append(path)
            real(path, image)

        root = tmp_path / 'a'
        bigger = {**TINY, 'num_train': 5, 'seed': 8}
        with monkeypatch.context() as patch:
            patch.setattr(layouts, 'write_image', interrupt)
            with pytest.raises(KeyboardInterrupt):
                generate(root, **bigger)
        assert (root / 'shapes.partial').is_file() and not (root / 'shapes.json').exists()
        assert len(written) == 2
        assert not generate(root, **TINY).reused
        assert snapshot(root) == snapshot(whole)

    def test_interrupted_replacement_leaves_no_files_behind(
            self, generate, tmp_path, monkeypatch, snapshot):
        whole, root = tmp_path / 'whole', tmp_path / 'a'
        generate(whole, **TINY)
        generate(root, **{**TINY, 'num_train': 6})

        def interrupt(*args, **kwargs):
            raise KeyboardInterrupt

        for number in (5, 4):  # the second run has to remember the files of the first dataset
            with monkeypatch.context() as patch:
                patch.setattr(folder, '_remove_files', interrupt)
                with pytest.raises(KeyboardInterrupt):
                    generate(root, overwrite=True, **{**TINY, 'num_train': number})
            assert not (root / 'shapes.json').exists()
        generate(root, **TINY)
        assert snapshot(root) == snapshot(whole)

    def test_interruption_between_manifest_and_marker(self, generate, tmp_path, snapshot):
        generate(tmp_path, **TINY)
        before = snapshot(tmp_path)
        (tmp_path / 'shapes.partial').write_text('{"generator": "evit_mm.data.shapes"}')
        assert generate(tmp_path, **TINY).reused
        assert snapshot(tmp_path) == before

    def test_dataset_of_another_format_is_not_reused(self, generate, tmp_path, monkeypatch):
        generate(tmp_path, **TINY)
        monkeypatch.setattr(folder, 'FORMAT', folder.FORMAT + 1)
        with pytest.raises(UserError, match='other settings'):
            generate(tmp_path, **TINY)

    def test_file_in_place_of_the_folder(self, generate, tmp_path):
        (tmp_path / 'file').write_text('mine')
        for root in (tmp_path / 'file', tmp_path / 'file' / 'below' / 'it'):
            with pytest.raises(UserError, match=f"^can't write {root}: .*is a file"):
                generate(root, **TINY)

    def test_full_disk_is_reported(self, generate, tmp_path, monkeypatch):
        def fail(path, image):
            raise OSError(28, 'No space left on device', str(path))

        monkeypatch.setattr(layouts, 'write_image', fail)
        with pytest.raises(UserError, match="^can't write .*: No space left on device"):
            generate(tmp_path, **TINY)
