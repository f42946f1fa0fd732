"""Tables are Markdown whose columns line up."""

import pytest

from evit_mm.benchmark.tables import format_table


def test_columns_line_up():
    assert format_table(['model', 'ms'], [['m4', '1.25'], ['timm://swin', 10], ['a|b', None]]) == (
        '| model       |   ms |\n'
        '| ----------- | ---: |\n'
        '| m4          | 1.25 |\n'
        '| timm://swin |   10 |\n'
        '| a\\|b        |      |')


def test_alignment_can_be_chosen():
    assert format_table(['a', 'b'], [['x', 'y']], align='rl').splitlines()[1:] == [
        '| --: | --- |', '|   x | y   |']


def test_rows_of_different_lengths_are_rejected():
    with pytest.raises(ValueError, match='columns'):
        format_table(['a', 'b'], [['x']])
    with pytest.raises(ValueError, match='letters'):
        format_table(['a', 'b'], [], align='lc')
