"""Classes by name or number, and their colours."""

import pytest

from evit_runtime.class_names import class_colours, class_numbers, complete_names
from evit_runtime.errors import UserError

NAMES = ('person', 'traffic light', 'Cat', 'dog', 'cattle', 'x', 'y')


def test_colours():
    palette = [(1, 2, 3), (4, 5, 6)]
    assert class_colours(2, palette) == palette
    assert class_colours(1, palette) == palette[:1]
    assert len(set(class_colours(80, palette))) == 80


def test_classes_by_name_and_number():
    assert class_numbers(['person', 3, 'cat'], NAMES) == {0, 2, 3}
    assert class_numbers('dog', NAMES) == class_numbers(3, NAMES) == {3}
    assert class_numbers([], NAMES) == set()


def test_a_name_as_written_comes_before_one_in_another_case():
    assert class_numbers(['Cat'], ('cat', 'Cat')) == {1}
    assert class_numbers(['CAT'], ('cat', 'Cat')) == {0}


@pytest.mark.parametrize('given, message', [
    ('trafic light', "the model has no class 'trafic light'; did you mean traffic light?"),
    ('cats', "no class 'cats'; did you mean Cat or cattle?"),
    ('zebra', "no class 'zebra'; it has 7: person, traffic light, Cat, dog, cattle and 2 more"),
    (7, 'the model has no class 7; it has 7: '), (-1, 'no class -1')])
def test_an_unknown_class_is_named_with_the_nearest(given, message):
    with pytest.raises(UserError) as caught:
        class_numbers(['person', given], NAMES)
    assert message in str(caught.value)


def test_names_are_completed_or_numbered():
    assert complete_names(['a', 'b'], 2) == ('a', 'b')
    assert complete_names(['a', 'b'], 3) == ('class 0', 'class 1', 'class 2')
