"""What tools/prepare_data.py does: generate the datasets and say how to go on."""

import argparse
import shlex

from .synthetic.generate import PreparedData, generate_ade, generate_coco

__all__ = ['prepare']

_GENERATORS = {'coco': generate_coco, 'ade': generate_ade}
_NEXT_STEPS = {
    'coco': 'tools/train.py configs/retinanet_evit_m0_shapes.py --data-root {root}',
    'ade': 'tools/train.py configs/upernet_evit_m0_shapes.py --data-root {root}',
}


def prepare(options: argparse.Namespace) -> None:
    """Generate the datasets that the command line asks for, and print what they hold.

    Args:
        options: What `evit_mm.cli.prepare_data_parser` parses.

    Raises:
        UserError: If a number is out of range, or a folder can't or must not be written.
    """
    for layout in _GENERATORS if options.layout == 'both' else [options.layout]:
        _print_summary(_GENERATORS[layout](
            options.out / layout, num_train=options.num_train, num_val=options.num_val,
            image_size=(options.size, options.size), seed=options.seed,
            overwrite=options.overwrite))


def _print_summary(data: PreparedData) -> None:
    root = str(data.root.absolute())
    print(f'{data.layout}: {root} ' + ('(was there already)' if data.reused else '(generated)'))
    for split, images in data.images.items():
        found = f', {data.annotations[split]} annotations' if data.annotations else ''
        print(f'  {split}: {images} images{found}')
    print(f'  classes: {", ".join(data.classes)}')
    print(f'  next: {_NEXT_STEPS[data.layout].format(root=shlex.quote(root))}')
