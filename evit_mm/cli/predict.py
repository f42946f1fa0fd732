"""The command predict: tools/predict.py and ``evit-mm predict``."""

import argparse
from typing import Any

from evit_runtime.cli import INPUT_HELP, PREDICT, add_predict_arguments, run_predict

from ..errors import UserError

__all__ = ['DESCRIPTION', 'add_arguments', 'load', 'run', 'split_words']

DESCRIPTION = PREDICT
_CHECKPOINTS = ('.ckpt', '.pt', '.pth', '.safetensors')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags: those of ``evit-run predict``."""
    parser.add_argument('model', metavar='MODEL',
                        help='config file, name of a packaged config such as '
                        'retinanet_evit_m4_coco, or a file of evit-mm export')
    parser.add_argument('words', nargs='+', metavar='[CHECKPOINT] INPUT',
                        help='file, address or name of the weights, unless MODEL is an exported '
                        f'file; and {INPUT_HELP}')
    add_predict_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Predict as the flags say.

    Raises:
        UserError: If an argument is wrong, or some inputs could not be read.
    """
    checkpoint, inputs = split_words(args.words)
    if not inputs:
        raise UserError('INPUT is missing: ' + INPUT_HELP)
    run_predict(lambda: load(args.model, checkpoint, args.device), inputs, args)


def split_words(words: list[str]) -> tuple[str | None, list[str]]:
    """Return the checkpoint, if the first word is one, and the other words."""
    first = words[0].lower().partition('?')[0] if words else ''
    scheme = first.partition('://')[0] if '://' in first else ''
    if first.endswith(_CHECKPOINTS) or scheme not in ('', 'http', 'https'):
        return words[0], words[1:]
    return None, list(words)


def load(model: str, checkpoint: str | None, device: str) -> Any:
    """Return a model that has been trained.

    Raises:
        UserError: If it can't be loaded, or no checkpoint is named.
    """
    import warnings

    from ..engine.config import load_config
    from ..predict import EXPORTED, load_model

    if checkpoint is None and not model.lower().endswith(EXPORTED) \
            and not load_config(model).get('load_from'):
        raise UserError(f'name a checkpoint after {model}, such as work_dirs/{_stem(model)}/'
                        'epoch_12.pth: a config alone has no trained weights')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # MMSegmentation's, of losses that are not computed here
        return load_model(model, checkpoint, device=device)


def _stem(config: str) -> str:
    return config.rpartition('/')[2].removesuffix('.py')
