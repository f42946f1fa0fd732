"""EfficientViT replaces the backbone of any family; docs/families.md tells which ones work."""

import re

import mmdet
import mmseg
import pytest
from families.families import NOT_APPLICABLE, SPECIAL
from families.survey import PAGE, all_families, in_own_process, page
from families.trial import adapted_config, try_family

from evit_mm.models import EfficientViT


@pytest.mark.parametrize('family', ['mmdet/retinanet', 'mmseg/pspnet'])
def test_a_family_trains_and_predicts(family):
    assert try_family(family) == dict(builds=True, trains=True, predicts=True, error='')


def test_the_replacement_keeps_strides_and_adapts_channels():
    model = adapted_config('mmseg/pspnet').model
    backbone = EfficientViT(**{k: v for k, v in model.backbone.items() if k != 'type'})
    assert backbone.out_strides == (4, 8, 16, 32)
    assert (model.decode_head.in_channels, model.auxiliary_head.in_channels) == (128, 64)
    model = adapted_config('mmdet/retinanet').model
    assert model.neck.in_channels == [64, 128, 192] and model.neck.num_outs == 5
    assert model.neck.num_extra_trans_convs == 1  # strides 8 to 128, as the FPN before


def test_the_page_has_every_family():
    page_of = re.search(r'MMDetection ([\d.]+) and MMSegmentation ([\d.]+)', PAGE.read_text())
    if page_of.groups() != (mmdet.__version__, mmseg.__version__):
        pytest.skip(f'the page is about other versions: {page_of.group()}')
    rows = re.findall(r'^\| ([\w.+]+) \|.*$', PAGE.read_text(), re.M)
    names = [family.partition('/')[2] for family in all_families()]
    assert [row for row in rows if row != 'family'] == names
    assert set(SPECIAL) | set(NOT_APPLICABLE) <= set(all_families())
    assert not set(SPECIAL) & set(NOT_APPLICABLE)


@pytest.mark.slow
def test_the_page_tells_what_works():
    results = {family: in_own_process(family) for family in all_families()
               if family not in NOT_APPLICABLE}
    assert page(results) == PAGE.read_text()
