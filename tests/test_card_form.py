"The form of a card: what it writes, what it refuses, and that no byte beside a change is touched"
from copy import deepcopy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genai_playbook.card import bundled_cards, card_template
from genai_playbook.card_errors import value_at
from genai_playbook.card_text import spell, spell_text, with_values
from genai_playbook.errors import PlaybookError
from genai_playbook.strict_yaml import parse_yaml

CARDS = {n: p.read_text(encoding='utf-8') for n, p in bundled_cards().items()} | dict(template=card_template())
TEXT = st.text(st.characters(exclude_categories=('Cs',)), max_size=12)
LEAF = st.none() | st.booleans() | st.integers(-10**9, 10**9) | st.floats(allow_nan=False, allow_infinity=False) | TEXT
VALUE = st.recursive(LEAF, lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text('abcd_', min_size=1, max_size=3), x, max_size=3), max_leaves=5)


def containers(x, path=()):
    if not isinstance(x, (dict, list)): return
    yield path
    for k, v in x.items() if isinstance(x, dict) else enumerate(x): yield from containers(v, (*path, k))


PLACES = {n: list(containers(parse_yaml(t).value)) for n, t in CARDS.items()}


@given(TEXT, st.booleans(), st.sampled_from([None, "'", '"']))
def test_text_is_read_back_as_it_was(s, flow, style):
    said = spell_text(s, style, flow)
    assert parse_yaml(f'[{said}, 1]' if flow else f'x: {said} # c').value == ([s, 1] if flow else {'x': s})


@given(VALUE)
def test_values_are_read_back_as_they_were(x): assert parse_yaml(f'x: {spell(x)}').value == {'x': x}


@settings(max_examples=60, deadline=None)
@given(st.data(), st.sampled_from(sorted(CARDS)))
def test_any_change_says_what_was_asked_and_keeps_every_other_line(data, name):
    "Set, add or take away anywhere in a real card: the value is right, and comments outside the place are there"
    text = CARDS[name]
    value = parse_yaml(text).value
    path = data.draw(st.sampled_from(PLACES[name]))
    place, x = value_at(value, path), data.draw(VALUE)
    if isinstance(place, dict):
        key = data.draw(st.sampled_from([*place, 'added']))
        if key in place and len(place) > 1 and data.draw(st.booleans()): del place[key]
        else: place[key] = x
    elif place and data.draw(st.booleans()): place[data.draw(st.integers(0, len(place)-1))] = x
    elif len(place) > 1 and data.draw(st.booleans()): del place[data.draw(st.integers(0, len(place)-1))]
    else: place.append(x)
    new = with_values(text, value)
    assert parse_yaml(new).value == value
    top = path[0] if path else key
    lines, section = text.splitlines(), parse_yaml(text).lines
    first = section.get((top,), len(lines)+1)
    after = min([n for p, n in section.items() if len(p) == 1 and n > first], default=len(lines)+1)
    assert new.splitlines()[:first-1] == lines[:first-1]
    tail = lines[after-1:]
    assert not tail or '\n'.join(tail) in new


@pytest.mark.parametrize('name', CARDS)
def test_what_says_the_same_is_the_same_text(name):
    assert with_values(CARDS[name], parse_yaml(CARDS[name]).value) == CARDS[name]


@pytest.mark.parametrize('text,new,want', [
    ('a: 1', dict(a=2), 'a: 2'),                                              # no line end at the end
    ('a: 1\r\nb: 2\r\n', dict(a=1, b=2, c=dict(d=1)), 'a: 1\r\nb: 2\r\n\r\nc:\r\n  d: 1\r\n'),
    ('a: # why\n  - x\n  # between\n  - y # last\n# end\n', dict(a=['x', 'y', 'z']), 'a: # why\n  - x\n  # between\n  - y # last\n  - z\n# end\n'),
    ('a:\nb: 1\n', dict(a='x', b=1), 'a: x\nb: 1\n'),
    ('a: |\n  two\n  lines\nb: 1\n', dict(a='one', b=1), 'a: one\nb: 1\n'),
    ('a: {b: 1, c: 2} # c\n', dict(a=dict(c=2)), 'a: {c: 2} # c\n'),
    ('a: {}\n', dict(a=dict(b=1)), 'a: {b: 1}\n'),
    ('a: "x"   # q\n', dict(a='y'), 'a: "y"   # q\n'),
    ('a: 1 # gone\nb: 2 # stays\n', dict(b=2), 'b: 2 # stays\n'),
    ('a: 1\nb: 2\n', dict(a=1, c=3, d=4), 'a: 1\nc: 3\nd: 4\n'),
    ('ä: "€ 1"\nb: 1\n', {'ä': '€ 2', 'b': 2}, 'ä: "€ 2"\nb: 2\n')])
def test_small_changes(text, new, want): assert with_values(text, new) == want


@pytest.mark.parametrize('text,new', [('a: &x 1\nb: *x\n', dict(a=2, b=1)), ('a: &x [1]\nb: *x\n', dict(a=[1], b=[1, 2]))])
def test_an_alias_is_no_place_to_write_to(text, new):
    with pytest.raises(PlaybookError, match='edit the file itself; nothing was written'): with_values(text, new)
