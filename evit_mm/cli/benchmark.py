"""Command line of the benchmark: ``evit-mm benchmark`` and tools/benchmark.py."""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from .common import ConfigOptions

if TYPE_CHECKING:  # its import takes seconds
    from ..benchmark import Row

__all__ = ['DESCRIPTION', 'add_arguments', 'run']

DESCRIPTION = ('Measure time, memory, parameters and multiply-adds of backbones, detectors and '
               'segmentors with random weights, in several forms that take turns in one run.')

# Copies of the keys in evit_mm.benchmark.forms, whose import takes seconds.
_MODES = ('inference', 'train')
_FORMS = ('eager', 'deploy', 'folded', 'efficient', 'compiled')
_PEER_FORMS = ('eager', 'fused', 'compiled')
_DTYPES = ('fp32', 'bf16', 'fp16')
_LAYOUTS = ('contiguous', 'channels-last')
_BACKENDS = ('torch', 'onnxruntime', 'openvino', 'openvino-bf16', 'openvino-int8')
_BACKEND_FLAGS = ('models', 'backend', 'checkpoint', 'shape', 'shapes', 'repeats', 'threads',
                  'seed', 'cfg_options')
_SUITE_FLAGS = ('suite', 'budget', 'out', 'repeats', 'threads', 'device', 'seed')


class _Variant(ConfigOptions):
    """A title and KEY=VALUE pairs; appends one (title, options) pair per use of the flag."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace,
                 values: Any, option_string: str | None = None) -> None:
        title, *pairs = values
        if '=' in title:
            parser.error(f'{option_string} needs a title before the KEY=VALUE pairs, but got '
                         f'{title}')
        parsed = argparse.Namespace()
        super().__call__(parser, parsed, pairs, option_string)
        earlier = getattr(namespace, self.dest) or []
        setattr(namespace, self.dest, [*earlier, (title, getattr(parsed, self.dest))])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the benchmark to a parser."""
    parser.add_argument('models', nargs='*', metavar='MODEL',
                        help='m0 to m5, the path of a config, timm://MODEL, torchvision://resnet50 '
                        'or torchvision://mobilenet_v3_large')

    suite = parser.add_argument_group('a fixed set of measurements instead of MODELs')
    suite.add_argument('--suite', choices=('gpu',),
                       help='gpu: backbones and RetinaNets against timm and ResNet-50 as one table')
    suite.add_argument('--budget', type=float, default=300, metavar='SECONDS',
                       help='time after which nothing more is measured; the most important rows '
                       'come first (default: 300)')
    suite.add_argument('--out', type=Path, default=Path('work_dirs', 'gpu'), metavar='FOLDER',
                       help='folder of benchmark.md and benchmark.json (default: work_dirs/gpu)')

    exported = parser.add_argument_group('runtimes of exported files')
    exported.add_argument('--backend', nargs='+', choices=_BACKENDS, metavar='NAME',
                          help='time MODELs from an image to its boxes in torch, onnxruntime, '
                          'openvino, openvino-bf16 or openvino-int8, which take turns; ratios are '
                          'to the first')
    exported.add_argument('--checkpoint', metavar='FILE',
                          help='weights of the only MODEL (default: random ones, which find few '
                          'objects)')

    what = parser.add_argument_group('what to measure')
    what.add_argument('--mode', choices=_MODES, default='inference',
                      help='inference, or the forward and backward pass of a training step with '
                      'frozen BN statistics (default: inference)')
    what.add_argument('--forms', nargs='+', choices=_FORMS, metavar='FORM',
                      help='eager (as built), deploy (inference: folded), folded (training: frozen '
                      'BN folded into convolutions in each step), efficient (training: the same by '
                      'mmengine\'s efficient_conv_bn_eval), compiled (deploy or folded through '
                      'torch.compile); default: eager, and deploy or folded')
    what.add_argument('--dtype', nargs='+', choices=_DTYPES, default=['fp32'], metavar='DTYPE',
                      help='fp32, bf16, fp16, or several; training runs under autocast (default: '
                      'fp32)')
    what.add_argument('--layouts', nargs='+', choices=_LAYOUTS, default=['contiguous'],
                      metavar='LAYOUT', help='contiguous, channels-last, or both; for images and '
                      'weights (default: contiguous)')
    what.add_argument('--channels-last', dest='layouts', action='store_const',
                      const=['channels-last'], help='short for --layouts channels-last')
    what.add_argument('--cuda-graphs', action='store_true',
                      help='measure each form as a CUDA graph too')
    what.add_argument('--with-neck', action='store_true',
                      help='put RetinaNet\'s neck (256 channels, strides 8 to 128) after backbones')
    what.add_argument('--with-head', action='store_true',
                      help='put RetinaNet\'s neck and head (80 classes) after backbones')
    what.add_argument('--until', choices=('backbone', 'neck'),
                      help='leave out the parts of a config\'s model after this one')
    what.add_argument('--variant', nargs='+', action=_Variant, metavar=('TITLE', 'KEY=VALUE'),
                      help='measure the only MODEL with these values too; can be repeated')
    what.add_argument('--cfg-options', nargs='+', action=ConfigOptions, metavar='KEY=VALUE',
                      help='change values of every config, or arguments of our backbones')

    peers = parser.add_argument_group('what to compare with')
    peers.add_argument('--peers', action='store_true',
                       help='add timm\'s port of each m0 to m5, with the same weights, and '
                       'torchvision\'s ResNet-50 and MobileNetV3-Large')
    peers.add_argument('--peer-forms', nargs='+', choices=_PEER_FORMS, metavar='FORM',
                       default=['eager'], help='forms of the models of timm and torchvision: '
                       'eager, fused (inference: timm\'s reparameterize_model, for timm only), '
                       'compiled (default: eager)')
    peers.add_argument('--reference', metavar='NAME',
                       help='row or model that ratios are relative to (default: timm\'s port of '
                       'the same backbone in eager fp32 if there is one, else the first row)')

    how = parser.add_argument_group('how to measure')
    sizes = how.add_mutually_exclusive_group()
    sizes.add_argument('--shape', nargs=2, type=int, metavar=('HEIGHT', 'WIDTH'),
                       help='size of the images (default: 512 512)')
    sizes.add_argument('--shapes', nargs='+', type=_size, metavar='HxW',
                       help='several sizes, such as 256x256 800x1344; each gives a table')
    how.add_argument('--batch', type=int, default=1, help='images per run (default: 1)')
    how.add_argument('--repeats', type=int, default=30, help='timed runs of each row (default: 30)')
    how.add_argument('--threads', type=int, metavar='N',
                     help='CPU threads (default: torch\'s choice)')
    how.add_argument('--system-malloc', action='store_true',
                     help='keep the default settings of malloc, with which a CPU pays for new '
                     'pages in each run; without this flag freed memory is kept, as in '
                     'tools/train.py and tools/test.py --fast')
    how.add_argument('--device', help='device as torch names it (default: cpu, or cuda with '
                     '--suite gpu)')
    how.add_argument('--seed', type=int, default=0,
                     help='seed of weights, images and the order of runs (default: 0)')
    how.add_argument('--json', type=Path, metavar='FILE', help='write all results to FILE')
    how.add_argument('--plot', type=Path, metavar='FILE.png',
                     help='draw ratios, or time and memory over pixels for several sizes')


def run(args: argparse.Namespace) -> None:
    """Measure, and print a table for each image size as soon as it is done.

    Raises:
        UserError: If an argument can't be used, or, after all tables, if a row failed; peers that
            were not named may fail, and a suite may run out of memory or time.
    """
    from ..benchmark import benchmark

    if args.suite:
        _run_suite(args)
        return
    others = [f'--{name}' for name in ('budget', 'out') if _is_changed(args, name)]
    if others:
        raise UserError(f'{" and ".join(others)} belong to --suite: leave them out')
    if not args.models:
        raise UserError('nothing to measure: name a MODEL, such as m4, or pass --suite gpu')
    shapes = args.shapes or [tuple(args.shape or (512, 512))]
    if args.backend:
        _run_backends(args, shapes)
        return
    if args.checkpoint:
        raise UserError('--checkpoint belongs to --backend: leave it out')
    rows = benchmark(
        args.models, mode=args.mode, forms=args.forms, dtypes=args.dtype, layouts=args.layouts,
        cuda_graphs=args.cuda_graphs, with_neck=args.with_neck, with_head=args.with_head,
        until=args.until, variants=args.variant or (), options=args.cfg_options, peers=args.peers,
        peer_forms=args.peer_forms, reference=args.reference, shapes=shapes, batch=args.batch,
        repeats=args.repeats, threads=args.threads, system_malloc=args.system_malloc,
        device=args.device or 'cpu', seed=args.seed, json=args.json, plot=args.plot, report=print)
    _report_failures(rows, [row for row in rows if row.failure and not (args.peers and row.peer)])


def _run_backends(args: argparse.Namespace, shapes: list[tuple[int, int]]) -> None:
    from ..benchmark.backends import benchmark_backends

    others = [f'--{name.replace("_", "-")}' for name in vars(args)
              if name not in _BACKEND_FLAGS and _is_changed(args, name)]
    if others:
        raise UserError(f'--backend times models as they are exported: leave {", ".join(others)} '
                        'out')
    rows = benchmark_backends(
        args.models, args.backend, shapes=shapes, repeats=args.repeats, threads=args.threads,
        checkpoint=args.checkpoint, seed=args.seed, options=args.cfg_options,
        report=lambda text: print(f'{text}\n', flush=True))
    failed = [row for row in rows if row.failure]
    if failed:
        raise UserError(f'{len(failed)} of {len(rows)} rows failed, the first is '
                        f'{failed[0].model}, {failed[0].backend}: {failed[0].failure}')


def _run_suite(args: argparse.Namespace) -> None:
    from ..benchmark import benchmark_gpu
    from ..benchmark.timing import OUT_OF_MEMORY, OUT_OF_TIME

    others = [name for name in vars(args) if name not in _SUITE_FLAGS and _is_changed(args, name)]
    if others:
        flags = ', '.join('MODEL' if name == 'models' else f'--{name.replace("_", "-")}'
                          for name in others)
        raise UserError(f'--suite {args.suite} has models, forms and sizes of its own: leave '
                        f'{flags} out')
    rows = benchmark_gpu(out=args.out, device=args.device or 'cuda', budget=args.budget,
                         repeats=args.repeats, threads=args.threads, seed=args.seed,
                         report=lambda text: print(text, flush=True))
    _report_failures(rows, [row for row in rows if not row.peer
                            and row.failure not in (None, OUT_OF_MEMORY, OUT_OF_TIME)])


def _is_changed(args: argparse.Namespace, name: str) -> bool:
    """Return whether an argument of the benchmark has another value than its default."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    defaults = vars(parser.parse_args([]))
    return name in defaults and getattr(args, name) != defaults[name]


def _report_failures(rows: Sequence['Row'], failed: Sequence['Row']) -> None:
    if failed:
        raise UserError(f'{len(failed)} of {len(rows)} rows failed, the first is {failed[0]}: '
                        f'{failed[0].failure}')


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r'(\d+)x(\d+)', text)
    if not match:
        raise argparse.ArgumentTypeError(f'{text!r} must be HEIGHTxWIDTH, such as 800x1344')
    return int(match[1]), int(match[2])
