"""A checkpoint, compared with the model that loads it."""

import logging
from collections.abc import Mapping

from mmengine.logging import print_log
from torch import Tensor, nn

from ...checkpoint import describe_weights, strip_containers
from ...errors import CheckpointError
from ...models import EfficientViT
from ..initial_checkpoint import read_checkpoint

__all__ = ['check_checkpoint']


def check_checkpoint(model: nn.Module, source: str, *, purpose: str) -> list[EfficientViT]:
    """Check that a checkpoint belongs to a model, before the model loads it.

    The next reader of the same source receives what this function has read.

    Args:
        model: A detector or segmentor.
        source: File, address or name of the checkpoint.
        purpose: ``'test'`` and ``'resume'`` need every tensor; ``'finetune'`` accepts differences
            outside the backbone, and logs them.

    Returns:
        list: The backbones of which the checkpoint has all weights.

    Raises:
        CheckpointError: If it can't be read, belongs to another model, or can't be resumed from.
    """
    checkpoint = read_checkpoint(source)
    state = strip_containers(checkpoint, source)
    if purpose == 'resume':
        lacking = [key for key in ('meta', 'message_hub', 'optimizer') if key not in checkpoint]
        if lacking:
            raise CheckpointError(f'{source} can\'t be resumed from, as it has no '
                                  f'{", ".join(lacking)}: it holds weights only; start from them '
                                  f'with --cfg-options load_from={source}')
    expected = model.state_dict()
    complete = []
    for path, module in model.named_modules():
        if isinstance(module, EfficientViT):
            prefix = f'{path}.' if path else ''
            if any(key.startswith(prefix) for key in state):
                complete.append(module)  # in full, or the next line raises an error
            state = _checked_backbone(module, prefix, state, source, purpose)
    differences = _differences(state, expected)
    if differences and purpose != 'finetune':
        raise CheckpointError(
            f'{source} is not a checkpoint of this config\'s model: {differences}'
            + ('; all else fits, as after a training on another number of classes: set classes and '
               'num_classes of the config to those of the checkpoint'
               if _differ_in_outputs(state, expected) else ''))
    fitting = sum(key in expected and expected[key].shape == state[key].shape for key in state)
    if not fitting:
        raise CheckpointError(f'{source} has nothing in common with this config\'s model: '
                              f'{differences}')
    if differences:
        print_log(f'{source} fits in part: {fitting} of the model\'s {len(expected)} tensors are '
                  f'taken from it, and the others start anew: {differences}',
                  logger='current', level=logging.WARNING)
    return complete


def _checked_backbone(backbone: EfficientViT, prefix: str, state: dict[str, Tensor], source: str,
                      purpose: str) -> dict[str, Tensor]:
    """Return a state dict with the backbone's part under the names of this package.

    Raises:
        CheckpointError: If that part belongs to another backbone, or is missing.
    """
    part = {key.removeprefix(prefix): value for key, value in state.items()
            if key.startswith(prefix)}
    translated, report = backbone.translate_state(part, source)
    if not part and describe_weights(state) != 'another model':
        raise CheckpointError(
            f'{source} holds only a backbone ({describe_weights(state)}), not a whole model: '
            'set model.backbone.init_cfg.checkpoint to it')
    if not report.complete and (part or purpose != 'finetune'):
        raise CheckpointError(
            f'{source} is not a checkpoint of this config\'s model: its backbone looks like '
            f'{describe_weights(part)}, the config\'s is {backbone.arch_name} ({report})')
    if report.resized and purpose == 'resume':
        raise CheckpointError(f'{source} can\'t be resumed from with other window_sizes than it '
                              f'was trained with ({report.resized[0]})')
    if part:
        print_log(f'{source}: backbone: {report}', logger='current')
    return {key: value for key, value in state.items() if not key.startswith(prefix)} | {
        prefix + key: value for key, value in translated.items()}


def _differ_in_outputs(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> bool:
    """Return whether two state dicts differ in the output channels of some layers alone."""
    return all(key in state and state[key].shape[1:] == expected[key].shape[1:]
               for key in expected if not key.endswith('num_batches_tracked')) and all(
        key in expected for key in state)


def _differences(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    """Return the differences between two state dicts in words; empty if there are none."""
    lists = {
        'missing': [key for key in expected if key not in state
                    and not key.endswith('num_batches_tracked')],
        'unexpected': [key for key in state if key not in expected],
        'of another shape': [f'{key} {tuple(state[key].shape)} for {tuple(expected[key].shape)}'
                             for key in state if key in expected
                             and state[key].shape != expected[key].shape],
    }
    return '; '.join(f'{len(keys)} tensors {what} ({", ".join(keys[:3])}'
                     f'{", ..." if len(keys) > 3 else ""})' for what, keys in lists.items() if keys)
