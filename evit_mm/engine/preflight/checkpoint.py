"""A checkpoint against the model that is to take it."""

import logging
from collections.abc import Mapping

from mmengine.logging import print_log
from mmengine.runner import CheckpointLoader
from torch import Tensor, nn

from ...checkpoint import describe_weights, strip_containers, translate_backbone_state
from ...errors import CheckpointError
from ...models import EfficientViT

__all__ = ['check_checkpoint']


def check_checkpoint(model: nn.Module, source: str, *, purpose: str) -> None:
    """Check that a checkpoint is one of this model, before anything is loaded.

    Args:
        model: A detector or segmentor.
        source: File or address.
        purpose: ``'test'`` and ``'resume'`` need every tensor; ``'finetune'`` lets parts outside
            the backbone differ, and says which.

    Raises:
        CheckpointError: If it can't be read, holds another model, or can't be resumed from.
    """
    checkpoint = CheckpointLoader.load_checkpoint(source, map_location='cpu', logger='silent')
    state = strip_containers(checkpoint, source)
    if purpose == 'resume':
        lacking = [key for key in ('meta', 'message_hub', 'optimizer') if key not in checkpoint]
        if lacking:
            raise CheckpointError(f'{source} can\'t be resumed from, as it has no '
                                  f'{", ".join(lacking)}: it holds weights only; start from them '
                                  f'with --cfg-options load_from={source}')
    wanted = model.state_dict()
    for path, module in model.named_modules():
        if isinstance(module, EfficientViT):
            state = _checked_backbone(module, f'{path}.' if path else '', state, source, purpose)
    differences = _differences(state, wanted)
    if differences and purpose != 'finetune':
        raise CheckpointError(
            f'{source} is not a checkpoint of this config\'s model: {differences}')
    if not any(key in wanted and wanted[key].shape == state[key].shape for key in state):
        raise CheckpointError(f'{source} has nothing in common with this config\'s model: '
                              f'{differences}')
    if differences:
        print_log(f'{source} fits in part, the rest starts anew: {differences}', logger='current',
                  level=logging.WARNING)


def _checked_backbone(backbone: EfficientViT, prefix: str, state: dict[str, Tensor], source: str,
                      purpose: str) -> dict[str, Tensor]:
    """The state with the backbone's part under our names.

    Raises:
        CheckpointError: If that part is of another backbone, or missing.
    """
    part = {key.removeprefix(prefix): value for key, value in state.items()
            if key.startswith(prefix)}
    translated, report = translate_backbone_state(part, backbone.state_dict(), source)
    if not part and describe_weights(state) != 'another model':
        raise CheckpointError(
            f'{source} holds a backbone alone ({describe_weights(state)}), not a whole model: '
            'name it in model.backbone.init_cfg.checkpoint')
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


def _differences(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str:
    lists = {
        'missing': [key for key in wanted if key not in state
                    and not key.endswith('num_batches_tracked')],
        'unexpected': [key for key in state if key not in wanted],
        'of another shape': [f'{key} {tuple(state[key].shape)} for {tuple(wanted[key].shape)}'
                             for key in state if key in wanted
                             and state[key].shape != wanted[key].shape],
    }
    return '; '.join(f'{len(keys)} tensors {what} ({", ".join(keys[:3])}'
                     f'{", ..." if len(keys) > 3 else ""})' for what, keys in lists.items() if keys)
