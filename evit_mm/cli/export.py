"""The command ``evit-mm export``: a trained model in a file that runs without PyTorch."""

import argparse

from .common import ConfigOptions

__all__ = ['DESCRIPTION', 'add_arguments', 'run']

DESCRIPTION = ('Write a trained model to a file that runs without this package: ONNX, OpenVINO or '
               'torch.export. It takes pixels as OpenCV reads them, and gives boxes and masks, or '
               'a label map.')

# A copy of the tuple in evit_mm.deployment.export.run, whose import takes seconds.
_PRECISIONS = ('fp32', 'fp16', 'bf16', 'int8')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command."""
    parser.add_argument('config', help='config file, or the name of a packaged config such as '
                        'retinanet_evit_m4_coco; m0 to m5 for a backbone')
    parser.add_argument('checkpoint', nargs='?',
                        help='file, address or name of the weights (default: the config\'s '
                        'load_from)')
    parser.add_argument('--out', required=True, metavar='FILE',
                        help='the file to write: .onnx, .xml for OpenVINO, or .pt2 for '
                        'torch.export')
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument('--size', nargs=2, type=int, metavar=('HEIGHT', 'WIDTH'),
                       help='write a file of a fixed size, which images are resized into')
    sizes.add_argument('--dynamic', action='store_const', const=True,
                       help='write a file for images of any size, any number at a time (default '
                       'for segmentors, and if the config\'s test pipeline gives images of '
                       'different sizes)')
    parser.add_argument('--batch-size', type=int, default=1, metavar='N',
                        help='images that a file of a fixed size takes at a time (1)')
    parser.add_argument('--precision', choices=_PRECISIONS, default='fp32',
                        help='fp16 halves the file; bf16 and int8 are for OpenVINO (default: fp32)')
    parser.add_argument('--calibrate', metavar='DIR',
                        help='folder of images like those that the model will see, for int8')
    parser.add_argument('--no-verify', dest='verify', action='store_false',
                        help='do not compare the file with the model in PyTorch')
    parser.add_argument('--image', metavar='FILE',
                        help='the image for this comparison (default: a drawn one)')
    parser.add_argument('--backbone', action='store_true',
                        help='export the backbone of the config\'s model alone')
    parser.add_argument('--cfg-options', nargs='+', action=ConfigOptions, metavar='KEY=VALUE',
                        help='change values of the config, such as model.test_cfg.score_thr=0.2')


def run(args: argparse.Namespace) -> None:
    """Export a model, and print what was compared and written.

    Raises:
        UserError: If it can't be exported, or differs from the model in PyTorch.
    """
    from ..deployment.export import export

    path = export(args.config, args.checkpoint, out=args.out, size=args.size, dynamic=args.dynamic,
                  batch_size=args.batch_size, precision=args.precision, calibrate=args.calibrate,
                  verify=args.verify, image=args.image, backbone=args.backbone,
                  cfg_options=args.cfg_options, report=lambda text: print(text, flush=True))
    print(f'{path}: {path.stat().st_size / 1e6:.1f} MB'
          + (f', and {path.with_suffix(".bin")}' if path.suffix.lower() == '.xml' else ''))
