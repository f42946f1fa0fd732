"""The code blocks of the documentation, and what running their commands at small scale takes.

A command is run as it is written, in a folder that looks like a checkout. `SMALL` replaces the
places of data and the numbers that make a command long; `FLAGS` appends options that shrink images
and schedules. `NOT_RUN` has the few commands that can't be run, and the reasons.
"""

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

REPOSITORY = Path(__file__).resolve().parents[1]
PAGES = [REPOSITORY / 'README.md', REPOSITORY / 'CONTRIBUTING.md',
         *sorted((REPOSITORY / 'docs').glob('*.md')),
         *sorted((REPOSITORY / 'configs').glob('*.py'))]  # their docstrings have commands too

NOT_RUN = {
    r'(\w+=\S+ )?make ': 'creates an environment, or takes many minutes',
    r'source ': 'activates the environment that make creates',
    r'pip install ': 'installs packages from an index',
    r'(GPUS=\S+ GPUS_PER_NODE=\S+ )?tools/slurm_train\.sh |srun ': 'needs Slurm',
    r'NNODES=2 |torchrun --nnodes 2 ': 'needs two machines',
    r'evit-mm run mmdetection/demo/': 'needs a checkout of MMDetection',
    r'evit-mm predict .*(street\.mp4| 0$)': 'needs a video, or a webcam',
    r'evit-run predict ': 'needs an exported file; tests/runtime/test_cli.py runs it',
    r'evit-mm app ': 'serves until Ctrl-C; tests/runtime/test_page.py opens the page',
    r'evit-mm (export|test .*\.onnx)': 'tests/deployment/export and tests/engine/test_exported.py '
        'export small models and test them',
    r'(PYTHONPATH=tests )?evit-mm benchmark .*--backend':
        'tests/benchmark/test_backends.py times a small model',
    r'evit-mm (train|test) .*(--(train|val)-ann|--data) |evit-mm test runs/first/':
        'tests/engine/test_own_data.py trains and tests with these flags',
    r'evit-mm (train|test) evit_det_[sml]_coco ':
        'tests/engine/test_light.py trains and tests a small one',
    r'PYTHONPATH=tests python -m light\.(curves|segmentors|small_objects) ':
        'takes many minutes; tests/light tests the functions of these programs',
    r'PYTHONPATH=tests python -m light\.times ': 'needs ultralytics',
}

# Run by `make test`, in the process of the tests.
QUICK = r'evit-mm (--help|convert |data |run --list)'

# The start of Python code that is a config or a part of one: test_pages.py builds it.
CONFIG = r'(_base_|custom_imports|init_cfg) = '

# Pattern, replacement. {coco}, {ade} and {images} are generated data.
SMALL = [
    (r'/data/coco\b|\bCOCO\b', '{coco}'),
    (r'(/data/)?\bADEChallengeData2016\b', '{ade}'),
    (r'/data/imagenet/val\b|\bcoco_images\b', '{images}'),
    (r'\bCONFIG CHECKPOINT\b', 'configs/upernet_evit_m4_ade20k.py upernet.pth'),
    (r'\bretinanet_evit_m0_shapes CHECKPOINT\b', 'retinanet_evit_m0_shapes shapes.pth'),
    (r'\bCHECKPOINT\b', 'epoch_12.pth'),
    (r'\biter_160000\b', 'iter_2'),
    (r'(\.(?:py|pth)) 8\b|(--nproc-per-node) 8\b', r'\1\2 2'),  # processes
    (r'--device cuda --batch 64', '--device cpu --batch 2'),
    (r'(timm://.*) --pretrained\b', r'\1'),  # timm downloads
    (r'--(batches|num-images) (64|128)', r'--\1 2'),
    (r'--shape 800 1344', '--shape 64 96'),
    (r'--shapes 512x512 800x1344', '--shapes 224x224 256x224'),
    (r'--repeats (15|20)', '--repeats 1'),
    (r'(data browse .*) -n 24', r'\1'),
]

# Python code. The detector that was trained on eight images is sure of nothing.
SMALL_CODE = [
    (r"/ 'epoch_16\.pth'\)", "/ 'epoch_16.pth', cfg_options={'model.test_cfg.score_thr': 0.0})"),
]

_LOADERS = ' '.join(f'{split}_dataloader.{key}' for split in ('train', 'val', 'test')
                    for key in ('num_workers=0', 'persistent_workers=False'))


def _scales(scale: str, train: int = 2, test: int = 1) -> str:
    return ' '.join(f'{split}_dataloader.dataset.pipeline.{step}.scale={scale}'
                    for split, step in (('train', train), ('val', test), ('test', test)))


# Two images of 64x96 an epoch. A model that has hardly learnt predicts nothing above the usual
# threshold.
_DETECTION = (f'--cfg-options {_LOADERS} {_scales("(96,64)")} train_dataloader.dataset.indices=2 '
              'train_cfg.val_interval=12 default_hooks.checkpoint.interval=12 ')
_RETINANET = _DETECTION + 'model.test_cfg.score_thr=0.0'
_MASK_RCNN = _DETECTION + ('model.test_cfg.rcnn.score_thr=0.0 model.test_cfg.rcnn.max_per_img=5 '
                           'model.test_cfg.rpn.max_per_img=50')
_SHAPES = f'--cfg-options {_LOADERS} {_scales("(96,96)")}'
_SEGMENTATION = (
    f'--cfg-options {_LOADERS} {_scales("(256,64)")} train_cfg.max_iters=2 '
    'train_cfg.val_interval=2 train_dataloader.batch_size=2 default_hooks.checkpoint.interval=2 '
    'train_dataloader.dataset.pipeline.3.crop_size=(64,64) model.data_preprocessor.size=(64,64)')
_MEMORIZE = (f'--cfg-options {_LOADERS} {_scales("(96,96)")} train_cfg.max_iters=2 '
             'train_cfg.val_interval=2 default_hooks.checkpoint.interval=2')
_QUICK_SEARCH = '--tolerance 0.9 --repeats 1 --batch 1 --shape 64 64'

# Pattern of a command, options to append; the first that matches counts.
FLAGS = [
    (r'.*\b(prepare_data\.py|data) shapes', '--num-train 8 --num-val 2 --size 96'),
    (r'.*\btrain\b.*_memorize', _MEMORIZE),
    (r'.*\btrain\b.*upernet_evit_m0_shapes',
     _SHAPES + ' train_cfg.max_iters=2 train_cfg.val_interval=2 '
     'default_hooks.checkpoint.interval=2'),
    (r'.*\btrain\b.*(_shapes|arch_share_0\.27\.py)', _SHAPES),
    (r'.*\btest\b.*(retinanet_evit_m0|evit_det_s)_shapes', _SHAPES),
    (r'.*(train|test)\b.*mask_rcnn_', _MASK_RCNN),
    (r'.*\b(train|test)\b.*upernet_evit_m0_shapes', _SHAPES),
    (r'.*\btrain\b.*upernet_.*--resume', _SEGMENTATION.replace('max_iters=2', 'max_iters=4')),
    (r'.*(train|test)\b.*(upernet_|CONFIG CHECKPOINT)', _SEGMENTATION),
    (r'.*(train|test)\b.*(retinanet_|my_config)', _RETINANET),
    (r'.*browse_dataset\.py my_config\.py',
     '--cfg-options train_dataloader.dataset.data_root={coco}/'),
    (r'.*\bbenchmark\b.*--suite gpu', '--device cpu --budget 5'),
    (r'.*\bbenchmark\b.*--shapes', ''),
    (r'.*\bbenchmark\b.*timm://', '--shape 224 224'),
    (r'.*\bbenchmark\b.*--peers', '--shape 224 224 --repeats 1'),
    (r'.*\bbenchmark\b', '--shape 64 64'),
    (r'.*\banalyze(\.py)? runtime .*timm://', '--shape 224 224'),
    (r'.*\banalyze(\.py)? runtime ', '--shape 64 64 --batch 2'),
    (r'.*\banalyze(\.py)? heads configs/', '--num-images 2 --shape 64 96'),
    # Without published weights, which is another set of options than that of m4 before it.
    (r'.*\banalyze(\.py)? heads timm://', '--num-images 2 --overwrite'),
    (r'.*\banalyze(\.py)? heads ', '--num-images 2'),
    (r'.*\banalyze(\.py)? channels timm://', '--batches 1 --batch-size 2 --steps 1'),
    (r'.*\banalyze(\.py)? channels ',
     f'--batches 1 --batch-size 2 --steps 2 --shape 256 256 '
     f'--cfg-options {_scales("(96,64)")}'),
    (r'.*\banalyze(\.py)? proportion .*--family deit',
     _QUICK_SEARCH.replace('64 64', '32 32')),
    (r'.*\banalyze(\.py)? proportion ', _QUICK_SEARCH),
    (r'evit-mm predict ', ''),
    (r'evit-mm data browse ', '-n 2'),
    (r'(evit-mm (--help|convert|data (convert|check)|run --list)|ls) ?', ''),
]

# Commands that show an error, and what they print.
FAILS = {r'EVIT_MM_TRACEBACK=1 ': 'Traceback (most recent call last)'}

# What commands write, as patterns of files in the folder in which they run; the first match counts.
WRITES = [
    (r'evit-mm train retinanet_evit_m4_coco .*--auto-scale-lr$',
     'work_dirs/retinanet_evit_m4_coco/epoch_12.pth'),
    (r'evit-mm train evit_det_s_shapes .*--work-dir work_dirs/demo',
     'work_dirs/demo/epoch_16.pth'),
    (r'evit-mm train upernet_evit_m4_ade20k .*--work-dir runs/masks', 'runs/masks/iter_2.pth'),
    (r'evit-mm train upernet_evit_m4_ade20k .*--resume',
     'work_dirs/upernet_evit_m4_ade20k/iter_4.pth'),
    (r'evit-mm train upernet_evit_m4_ade20k ', 'work_dirs/upernet_evit_m4_ade20k/iter_2.pth'),
    (r'evit-mm test retinanet.*--show-dir pictures', 'pictures/*.jpg'),
    (r'evit-mm test upernet.*--show-dir pictures', 'pictures/*.png'),
    (r'evit-mm test .*--show-dir work_dirs/demo/pictures', 'work_dirs/demo/pictures/*.jpg'),
    (r'evit-mm predict .*--out (\w+)', r'\1/predictions.json'),
    (r'evit-mm predict ', 'predictions/predictions.json'),
    (r'evit-mm run browse_dataset', 'browse/**/*.jpg'),
    (r'evit-mm convert \S+ (\w+\.\w+)', r'\1'),
    (r'evit-mm data browse .*--out (\w+)', r'\1/*.png'),
    (r'evit-mm data convert .*--to masks --out (\w+)', r'\1/masks/*/*.png'),
    (r'evit-mm data convert .*--out (\w+)', r'\1/**/*.json'),
    (r'.*\bdata shapes --out data/shapes', 'data/shapes/coco/val2017/000000000001.jpg'),
    (r'.*--export-arch m4_narrow\.py', 'm4_narrow.py'),
    (r'.*--export-arch configs/m0_narrow\.py', 'configs/m0_narrow.py'),
    (r'.*analyze(\.py)? (\w+) .*--out (\S+)', r'\3/\2.json'),
    (r'.*analyze(\.py)? (\w+) ', r'work_dirs/analysis/\2/\2.json'),
]


class Block(NamedTuple):
    """A code block of a page: its language and its text."""

    page: Path
    language: str
    text: str


def blocks(page: Path) -> Iterator[Block]:
    """Yield the fenced code blocks of a page, or the indented lines of a config's docstring."""
    text = page.read_text()
    if page.suffix == '.py':
        docstring = ast.get_docstring(ast.parse(text)) or ''
        indented = re.findall(r'^    (.*)', docstring, re.M)
        if indented:
            yield Block(page, 'bash', '\n'.join(indented))
        return
    for language, code in re.findall(r'^```(\w*)\n(.*?)^```$', text, re.M | re.S):
        yield Block(page, language, code)


def commands(block: Block) -> list[str]:
    """Return the lines of a shell block: continuation lines joined, comments left out."""
    if block.language != 'bash':
        return []
    lines = re.sub(r'\s*\\\n\s*', ' ', block.text).splitlines()
    return [line.strip() for line in lines if line.strip() and not line.strip().startswith('#')]


def reason_not_to_run(command: str) -> str | None:
    """Return why a command is only parsed; None if it is run."""
    return next((reason for pattern, reason in NOT_RUN.items() if re.match(pattern, command)),
                None)


def output(command: str) -> str | None:
    """Return the pattern of the file that a command writes; None if `WRITES` has no row for it."""
    matches = ((re.match(pattern, command), path) for pattern, path in WRITES)
    return next((match.expand(path) for match, path in matches if match), None)


def small(command: str, **data: Path) -> str:
    """Return a command as it is run at small scale.

    Options that the command gives values for keep them.

    Args:
        command: The command as documented.
        data: The folders that `SMALL` and `FLAGS` name in braces.

    Raises:
        LookupError: If no rule is for such a command.
    """
    rule = next((flags for pattern, flags in FLAGS if re.match(pattern, command)), None)
    if rule is None:
        raise LookupError(f'no rule says how to run {command!r} at small scale: add one to FLAGS, '
                          'or the reason why it is not run to NOT_RUN')
    flags = [flag for flag in rule.split()
             if '=' not in flag or flag.split('=')[0] + '=' not in command]
    command = re.sub(r'\s+#.*', '', command)
    for pattern, replacement in SMALL:
        command = re.sub(pattern, replacement, command)
    for name, folder in data.items():
        command = command.replace(f'{{{name}}}', str(folder))
        flags = [flag.replace(f'{{{name}}}', str(folder)) for flag in flags]
    return ' '.join([command, *map(shlex.quote, flags)])
