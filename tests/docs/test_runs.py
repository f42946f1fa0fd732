"""Commands and Python code of the documentation, run in the order of their page, at small scale.

`make test` runs what takes a second; `make test-slow` runs the pages.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from functools import cached_property
from pathlib import Path

import numpy as np
import pytest
import torch
from documented_commands import (
    CONFIG,
    FAILS,
    PAGES,
    QUICK,
    REPOSITORY,
    SMALL_CODE,
    Block,
    blocks,
    commands,
    output,
    reason_not_to_run,
    small,
)
from PIL import Image
from random_models import randomize

from evit_mm import EfficientViT, convert_checkpoint
from evit_mm.benchmark.model_factory import build_model
from evit_mm.checkpoint import address
from evit_mm.checkpoint.download import cache_path
from evit_mm.cli.main import main
from evit_mm.data import SCENE_CLASSES, generate_ade, generate_coco

# Python code that `make test` runs.
QUICK_CODE = r'\bconvert_checkpoint\b'


class Inputs:
    """Files that commands read, made when the first one needs them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def coco(self) -> Path:
        """Generated images, annotated with the categories of COCO."""
        from mmdet.datasets import CocoDataset

        root = self.folder / 'coco'
        generate_coco(root, num_train=8, num_val=2, image_size=(96, 96), progress=False)
        for file in (root / 'annotations').glob('instances_*.json'):
            content = json.loads(file.read_text())
            content['categories'] = [dict(id=number, name=name) for number, name
                                     in enumerate(CocoDataset.METAINFO['classes'], 1)]
            file.write_text(json.dumps(content))
        return root

    @cached_property
    def ade(self) -> Path:
        root = self.folder / 'ade'
        generate_ade(root, num_train=4, num_val=2, image_size=(96, 96), progress=False)
        return root

    @cached_property
    def shapes(self) -> Path:
        """What `evit-mm data shapes` draws."""
        root = self.folder / 'shapes'
        for generate, layout in ((generate_coco, 'coco'), (generate_ade, 'ade')):
            generate(root / layout, num_train=4, num_val=2, image_size=(96, 96), progress=False)
        return root

    @cached_property
    def labelme(self) -> Path:
        """Images with LabelMe's files next to them."""
        root = self.folder / 'labelme'
        shutil.copytree(self.shapes / 'coco' / 'train2017', root)
        for image in root.glob('*.jpg'):
            width, height = Image.open(image).size
            image.with_suffix('.json').write_text(json.dumps(dict(
                imagePath=image.name, imageWidth=width, imageHeight=height, imageData=None,
                shapes=[dict(label='cat', shape_type='rectangle', points=[[5, 5], [40, 50]])])))
        return root

    @cached_property
    def photos(self) -> Path:
        """Images with a COCO file next to them."""
        root = self.folder / 'photos'
        shutil.copytree(self.shapes / 'coco' / 'train2017', root)
        shutil.copy(self.shapes / 'coco' / 'annotations' / 'instances_train2017.json',
                    root / 'train.json')
        return root

    @cached_property
    def label_maps(self) -> Path:
        """Images, label maps that are numbered from 0 on, and the names of their classes."""
        root, source = self.folder / 'label_maps', self.shapes / 'ade'
        shutil.copytree(source / 'images' / 'training', root / 'photos')
        (root / 'masks').mkdir()
        for path in (source / 'annotations' / 'training').iterdir():
            numbers = np.searchsorted([0, *sorted(SCENE_CLASSES)], np.asarray(Image.open(path)))
            Image.fromarray(numbers.astype(np.uint8)).save(root / 'masks' / path.name)
        names = ['nothing', *(SCENE_CLASSES[number] for number in sorted(SCENE_CLASSES))]
        (root / 'classes.txt').write_text('\n'.join(names))
        return root

    @cached_property
    def voc(self) -> Path:
        root = self.folder / 'VOC2007'
        shutil.copytree(self.shapes / 'coco' / 'train2017', root / 'JPEGImages')
        (root / 'Annotations').mkdir()
        for image in (root / 'JPEGImages').iterdir():
            width, height = Image.open(image).size
            (root / 'Annotations' / f'{image.stem}.xml').write_text(
                f'<annotation><filename>{image.name}</filename><size><width>{width}</width>'
                f'<height>{height}</height><depth>3</depth></size><object><name>cat</name>'
                '<bndbox><xmin>5</xmin><ymin>5</ymin><xmax>40</xmax><ymax>50</ymax></bndbox>'
                '</object></annotation>')
        return root

    @cached_property
    def yolo(self) -> Path:
        root = self.folder / 'yolo'
        shutil.copytree(self.shapes / 'coco' / 'train2017', root / 'images')
        (root / 'labels').mkdir()
        for image in (root / 'images').iterdir():
            (root / 'labels' / f'{image.stem}.txt').write_text('0 0.5 0.5 0.4 0.4\n')
        (root / 'my_data.yaml').write_text(f'path: {root}\ntrain: images\nnames: [cat]\n')
        return root / 'my_data.yaml'

    @cached_property
    def images(self) -> Path:
        """An image in the folder of each of a thousand classes."""
        root = self.folder / 'val'
        pixels = np.random.default_rng(0).integers(0, 255, (80, 100, 3), np.uint8)
        Image.fromarray(pixels).save(self.folder / 'image.jpg')
        for number in range(1000):
            (root / f'n{number:08}').mkdir(parents=True)
            os.link(self.folder / 'image.jpg', root / f'n{number:08}' / 'image.jpg')
        return root

    @cached_property
    def backbone(self) -> Path:
        """M4 in Microsoft's layout."""
        torch.save({'model': randomize(EfficientViT('m4')).state_dict()}, self.folder / 'm4.pth')
        convert_checkpoint(self.folder / 'm4.pth', self.folder / 'efficientvit_m4.pth',
                           to='microsoft')
        return self.folder / 'efficientvit_m4.pth'

    @cached_property
    def timm(self) -> Path:
        convert_checkpoint(self.backbone, self.folder / 'model.safetensors', to='timm')
        return self.folder / 'model.safetensors'

    def trained(self, config: str) -> Path:
        """Return a checkpoint of the whole model of a config."""
        path = self.folder / f'{config}.pth'
        if not path.exists():
            model = randomize(build_model(str(REPOSITORY / 'configs' / f'{config}.py')))
            torch.save({'state_dict': model.state_dict(), 'meta': {}}, path)
        return path

    def link(self, folder: Path, text: str) -> None:
        """Put the files that a command or code names in a folder."""
        files = {
            r'epoch_12\.pth': lambda: self.trained('retinanet_evit_m4_coco'),
            r'shapes\.pth': lambda: self.trained('retinanet_evit_m0_shapes'),
            r'upernet\.pth': lambda: self.trained('upernet_evit_m4_ade20k'),
            r'efficientvit_m4\.pth': lambda: self.backbone,
            r'model\.safetensors': lambda: self.timm,
            r'image\.jpg': lambda: self.images / 'n00000000' / 'image.jpg',
            r'data/shapes(?=/)': lambda: self.shapes,
            r'photos(?= |/\*|/train\.json)': lambda: self.photos,
            r'my_labelme': lambda: self.labelme,
            r'my(?=/masks)': lambda: self.label_maps,
            r'VOC2007': lambda: self.voc,
            r'my_data\.yaml': lambda: self.yolo}
        for name, make in files.items():
            path = folder / re.sub(r'\\|\(.*', '', name)
            if re.search(rf'(?<![\w/]){name}', text) and not path.exists():
                path.parent.mkdir(exist_ok=True)
                path.symlink_to(make())

    def as_run(self, command: str) -> str:
        """Return a command at small scale, with the data that it needs in place."""
        return small(command, **{name: getattr(self, name) for name in ('coco', 'ade', 'images')
                                 if f'{{{name}}}' in small(command)})


@pytest.fixture(scope='session')
def inputs(tmp_path_factory) -> Inputs:
    return Inputs(tmp_path_factory.mktemp('inputs'))


QUICK_COMMANDS = list(dict.fromkeys(
    command for page in PAGES for block in blocks(page) for command in commands(block)
    if re.match(QUICK, command)))


@pytest.mark.parametrize('command', QUICK_COMMANDS)
def test_quick_command(command, inputs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    inputs.link(tmp_path, command)
    program, *arguments = shlex.split(inputs.as_run(command))
    assert program == 'evit-mm'
    try:
        assert main(arguments) == 0, capsys.readouterr().err
    except SystemExit as end:  # --help
        assert end.code == 0
    assert capsys.readouterr().out
    written = output(command)
    assert not written or list(tmp_path.glob(written)), f'{written} is missing'


def code_of(page: Path) -> list[Block]:
    return [block for block in blocks(page) if block.language == 'python'
            and not re.match(CONFIG, block.text)]


@pytest.mark.parametrize('code', [
    pytest.param(block.text, id=page.name) for page in PAGES for block in code_of(page)
    if re.search(QUICK_CODE, block.text)])
def test_quick_code(code, inputs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    inputs.link(tmp_path, code)
    exec(compile(code, 'documentation', 'exec'), {})


class Checkout:
    """A folder like a checkout, in which commands run as a user's do."""

    def __init__(self, folder: Path, inputs: Inputs) -> None:
        self.folder, self.inputs = folder, inputs
        self.done: set[str] = set()
        for name in ('configs', 'tools'):
            shutil.copytree(REPOSITORY / name, folder / name)
        (folder / 'evit_mm').symlink_to(REPOSITORY / 'evit_mm')
        (folder / 'data').mkdir()
        (folder / 'data' / 'ade').mkdir()
        (folder / 'data' / 'ade' / 'ADEChallengeData2016').symlink_to(inputs.ade)
        page = REPOSITORY / 'docs' / 'own-config.md'
        [config, *_] = [block.text for block in blocks(page) if block.language == 'python']
        (folder / 'my_config.py').write_text(config)
        programs = folder / 'bin'
        programs.mkdir()
        for name, start in (('python', ''), ('python3', ''), ('evit-mm', '-m evit_mm '),
                            ('torchrun', '-m torch.distributed.run ')):
            (programs / name).write_text(f'#!/bin/sh\nexec {sys.executable} {start}"$@"\n')
            (programs / name).chmod(0o755)
        self.environment = {
            **os.environ, 'PATH': f'{programs}:{os.environ["PATH"]}', 'PYTHON': sys.executable,
            'PYTHONPATH': str(REPOSITORY), 'TORCH_HOME': str(folder / 'torch'),
            'OMP_NUM_THREADS': '1',
            # A test of the benchmark compiles; here it would take minutes.
            'TORCH_COMPILE_DISABLE': '1'}
        self._publish()

    def _publish(self) -> None:
        """Put random weights where those of the table of published weights are downloaded to."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv('TORCH_HOME', self.environment['TORCH_HOME'])
            for name in ('efficientvit_m4', 'retinanet_efficientvit_m4_fpn_1x_coco',
                         'mask_rcnn_efficientvit_m4_fpn_1x_coco'):
                path = cache_path(address(f'evit://{name}'))
                path.parent.mkdir(parents=True, exist_ok=True)
                path.symlink_to(self.inputs.backbone if name == 'efficientvit_m4' else
                                self.inputs.trained(f'{name.split("_eff")[0]}_evit_m4_coco'))

    def run(self, command: str) -> str:
        """Run a command, unless another page had it.

        Returns:
            What is wrong with its exit status, its output or its files; empty if nothing is.
        """
        if command in self.done:
            return ''
        self.done.add(command)
        text = self.inputs.as_run(command)
        self.inputs.link(self.folder, text)
        done = self._start('bash', '-c', text)
        printed = f'{text}\n{done.stdout}{done.stderr}'
        failure = next((part for pattern, part in FAILS.items() if re.match(pattern, command)),
                       None)
        if failure:
            return '' if done.returncode and failure in printed else f'does not fail: {printed}'
        if done.returncode:
            return printed
        if command.startswith('ls '):  # its comment has the names
            names = command.partition('#')[2].replace('/', '').split()
            return '' if names and set(names) <= set(done.stdout.split()) else printed
        written = output(command)
        if written and not list(self.folder.glob(written)):
            return f'{written} is missing: {printed}'
        return ''

    def execute(self, code: str) -> str:
        """Run Python code, and return what it printed if it failed."""
        for pattern, replacement in SMALL_CODE:
            code = re.sub(pattern, replacement, code)
        self.inputs.link(self.folder, code)
        done = self._start(sys.executable, '-c', code)
        return f'{code}\n{done.stdout}{done.stderr}' if done.returncode else ''

    def _start(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, cwd=self.folder, env=self.environment, text=True,
                              capture_output=True, timeout=1800)


@pytest.fixture(scope='session')
def checkout(tmp_path_factory, inputs) -> Checkout:
    return Checkout(tmp_path_factory.mktemp('checkout'), inputs)


def takes_long(page: Path) -> bool:
    return any(not reason_not_to_run(command) and not re.match(QUICK, command)
               for block in blocks(page) for command in commands(block)) or any(
        not re.search(QUICK_CODE, block.text) for block in code_of(page))


@pytest.mark.slow
@pytest.mark.parametrize('page', [page for page in PAGES if takes_long(page)],
                         ids=lambda page: page.name)
def test_page(page, checkout):
    results = []
    for block in blocks(page):
        results += [checkout.run(command) for command in commands(block)
                    if not reason_not_to_run(command)]
        if block in code_of(page):
            results.append(checkout.execute(block.text))
    failures = [result for result in results if result]
    assert results and not failures, '\n\n'.join(failures)
