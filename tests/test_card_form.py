"The form of a card: what it writes, what it refuses, and that no byte beside a change is touched"

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genai_playbook.card import bundled_cards, card_template, load_card
from genai_playbook.card_errors import value_at
from genai_playbook.card_form import CardDraft, CardForm
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


@settings(max_examples=40, deadline=None)
@given(TEXT, st.booleans(), st.sampled_from([None, "'", '"']))
def test_text_is_read_back_as_it_was(s, flow, style):
    said = spell_text(s, style, flow)
    assert parse_yaml(f'[{said}, 1]' if flow else f'x: {said} # c').value == ([s, 1] if flow else {'x': s})


@settings(max_examples=40, deadline=None)
@given(VALUE)
def test_values_are_read_back_as_they_were(x): assert parse_yaml(f'x: {spell(x)}').value == {'x': x}


@settings(max_examples=25, deadline=None)
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
    if (top,) not in section:  # it stands behind the last key, before comments that end the card
        found = iter(new.splitlines())
        assert all(line in found for line in lines)
        return
    first = section[top,]
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


# --- drafts and the form ------------------------------------------------------------------------
CARD = '''# a card of ours
poc: mine
outcome: {promise: "it <b>works</b>"}   # said in May
model: {kind: python, target: "answers:echo"}
data: {evaluation: rows.csv}
success:
  target: 0.9   # a tenth may fail
'''


@pytest.fixture
def path(tmp_path):
    (tmp_path/'answers.py').write_text('def echo(prompt): return prompt\n')
    (tmp_path/'rows.csv').write_text('id,prompt,reference\n1,hello,hello\n')
    (tmp_path/'poc.yaml').write_text(CARD)
    return tmp_path/'poc.yaml'


def put(draft, key, s): draft.put({p.key: p for p in draft.places()}[key], s)


def saves(draft): return lambda: put(draft, 'success.target', '0.95') or draft.save()


def test_one_change_is_one_line(path):
    draft = CardDraft(path)
    assert saves(draft)() == 'poc.yaml is saved, 1 line(s) changed.' and path.read_text() == CARD.replace('0.9 ', '0.95 ')
    assert load_card(path).section('success').target == .95


@pytest.mark.parametrize('made,want', [(lambda t: '\ufeff'.encode()+t, lambda t: t), (lambda t: t.replace(b'\n', b'\r\n'), lambda t: t), (lambda t: t[:-1], lambda t: t)])
def test_marks_and_line_ends_stay(path, made, want):
    path.write_bytes(made(CARD.encode()))
    saves(CardDraft(path))()
    assert path.read_bytes() == made(CARD.replace('0.9 ', '0.95 ').encode())


def test_a_link_stays_a_link_and_rights_stay(path, tmp_path):
    real = path.rename(tmp_path/'real.yaml')
    real.chmod(0o640)
    path.symlink_to(real)
    saves(CardDraft(path))()
    assert path.is_symlink() and '0.95' in real.read_text() and real.stat().st_mode & 0o777 == 0o640


def test_a_card_that_changed_meanwhile_is_not_written_over(path):
    draft = CardDraft(path)
    path.write_text(CARD + '# a colleague\n')
    with pytest.raises(PlaybookError, match='changed by somebody else .* press Reload'): saves(draft)()
    assert path.read_text() == CARD + '# a colleague\n'
    draft.load()
    saves(draft)()
    assert path.read_text() == CARD.replace('0.9 ', '0.95 ') + '# a colleague\n'


def test_a_card_that_may_not_be_written_is_not(path, monkeypatch):
    path.chmod(0o444)
    with pytest.raises(PlaybookError, match='write-protected; nothing was written'): saves(CardDraft(path))()
    path.chmod(0o644)
    monkeypatch.setattr('genai_playbook.card_form.write_whole', lambda *a: (_ for _ in ()).throw(OSError(28, 'No space left on device')))
    with pytest.raises(PlaybookError, match='No space left'): saves(CardDraft(path))()
    assert path.read_text() == CARD


def test_a_card_that_vanished_is_said(path):
    draft = CardDraft(path)
    path.unlink()
    with pytest.raises(PlaybookError, match='cannot be read'): saves(draft)()


@pytest.mark.parametrize('data,said', [(b'', 'empty'), (b'poc: "half', 'never closed'), (b'a: [1, 2', 'never closed'), (b'- 1\n- 2\n', 'a card is a mapping'), (b'\xff\xfep\0', 'UTF-16'), (b'poc: \xe9\n', 'not UTF-8'),
                                       (b'a: &a [*a, *a]\n', 'nested or repeated'), (b'[' * 2000, 'nested or repeated'), (b'!!python/object:os.system {}\n', 'tags')])
def test_what_cannot_be_read_is_said_and_never_written(path, data, said):
    path.write_bytes(data)
    form = CardForm(path)
    assert said in form.problems.value and form.save.disabled and not form.fields
    with pytest.raises(PlaybookError, match='nothing was written'): form.draft.save()
    assert path.read_bytes() == data
    path.write_text(CARD)
    form.reload.click()
    assert not form.problems.value and form.fields


def test_a_huge_card_is_refused(path):
    path.write_text(CARD + '#'*300_000)
    with pytest.raises(PlaybookError, match='a card has at most'): CardForm(path)


def test_mistakes_stand_beside_their_field_and_on_top(path):
    form = CardForm(path)
    form.section.value = 'outcome'
    form.fields['outcome.baseline'].value = '80%'
    assert '✗' in form.notes['outcome.baseline'].value and 'write 0.8 for 80%' in form.notes['outcome.baseline'].value and 'outcome.baseline' in form.problems.value and form.save.disabled
    form.fields['outcome.baseline'].value = ''
    assert not form.problems.value and form.save.disabled and not form.changes.value  # nothing to write either
    form.fields['outcome.promise'].value = ''
    assert 'this key is missing' in form.notes['outcome.promise'].value


def test_lists_are_yaml_and_half_a_list_is_not_lost(path):
    form = CardForm(path)
    form.section.value = 'success'
    form.fields['success.good'].value = '[resolved'
    assert 'never closed' in form.problems.value and form.save.disabled and 'good' not in path.read_text()
    form.fields['success.good'].value = '- resolved\n- refunded'
    form.save.click()
    assert load_card(path).section('success').good == ['resolved', 'refunded'] and path.read_text().startswith(CARD[:-1])


def test_another_kind_of_model_asks_for_other_keys(path):
    form = CardForm(path)
    form.section.value = 'model'
    form.fields['model.kind'].value = 'recorded'
    assert 'model.path' in form.fields and 'model.target' not in form.fields and form.section.value == 'model'
    form.fields['model.path'].value = 'rows.csv'
    form.fields['model.answer'].value = 'reference'
    form.save.click()
    assert load_card(path).model_spec.kind == 'recorded' and '# said in May' in path.read_text()


def test_nothing_typed_becomes_html_or_a_secret_on_the_page(path):
    form = CardForm(path)
    form.section.value = 'poc'
    form.fields['poc'].value = '<script>alert(1)</script>'
    assert '<script' not in form.problems.value + form.notes['poc'].value + form.changes.value
    form.section.value = 'model'
    form.fields['model.kind'].value = 'openai'
    form.fields['model.base_url'].value = 'http://localhost:1/v1'
    form.fields['model.model'].value = 'm'
    form.fields['model.api_key_env'].value = 'sk-abcdefghijklmnopqrstuvwxyz123456'
    assert 'abcdefghijkl' not in form.problems.value + form.notes['model.api_key_env'].value + form.changes.value and form.save.disabled


def test_the_demo_is_shown_and_stays_as_it_is():
    form = CardForm('demo')
    form.section.value = 'outcome'
    form.fields['outcome.baseline'].value = '0.5'
    assert form.save.disabled and not form.problems.value and 'create a card of your own' in form.changes.value
    with pytest.raises(PlaybookError, match='stays as it is'): form.draft.save()


def test_every_field_has_a_label_and_says_what_it_means():
    form = CardForm('demo')
    for s in form.section.options:
        form.section.value = s
        assert form.fields
        for k, f in form.fields.items(): assert f.description and f.tooltip and k in f.tooltip and form.notes[k].value.count('.')


def test_the_schema_of_every_section_is_on_a_page(path):
    from genai_playbook.card import card_schema
    form = CardForm(path)
    assert {*form.section.options} >= {*card_schema()['properties']} - {'risk_tier'} and os.access(path, os.W_OK)
