"Perturbations on texts that nobody expects: what must never happen to them, whatever the dial says"
import random
import unicodedata

import pytest

from genai_playbook.card import load_card
from genai_playbook.errors import PlaybookError
from genai_playbook.perturb import NOTHING, PERTURBATIONS, Dice, facts, in_words, invalid, known, left_out, plain, variants

HOSTILE = ['', ' ', '\n', 'x', 'ab', '?', '...', '\x00', '\u202e abc', '\ud800 lone', 'é'*50, '🙂🙂', 'مرحبا بالعالم', '漢字 だけ', '%s %n {0} {x}', '<b>x</b>', '{"a": [1,2,3]}', '0', '3.14', '12,345 EUR',
           'A', "'", "don't", 'NOT', 'x'*5000, ' '.join(['word']*2000), 'a\tb\rc', 'İstanbul ﬁne ½', 'a@b.c', 'ORDER A17 LOST']
MESSAGES = ['Where is my parcel? I paid 30 EUR, Maria Keller knows.', 'It is not here and I cannot wait 3 days.', 'Hello team, please deliver order A17 to house 12. Thanks.']


@pytest.mark.parametrize('name', PERTURBATIONS)
def test_any_text_at_any_severity(name):
    p = PERTURBATIONS[name]
    for text in HOSTILE:
        assert p(text, 0) == text
        for severity in (1e-9, .3, 1): assert isinstance(p(text, severity, 5), str)
        assert isinstance(invalid(text, p(text, 1.)), str)


@pytest.mark.parametrize('name', PERTURBATIONS)
def test_same_seed_same_text(name):
    p = PERTURBATIONS[name]
    first = [p(t, .5, 7) for t in MESSAGES]
    random.seed(1)
    assert first == [p(t, .5, 7) for t in MESSAGES]


@pytest.mark.parametrize('name', PERTURBATIONS)
def test_most_variants_of_ordinary_messages_are_valid(name):
    made = [v for v in variants(MESSAGES, [name], .3, seed=1) if v.why != NOTHING]
    assert name in ('truncation', 'joined_words') or all(not v.why for v in made), [(v.text, v.why) for v in made if v.why]


@pytest.mark.parametrize('name', [n for n, p in PERTURBATIONS.items() if p.family in ('typing', 'reading', 'style', 'Unicode')])
def test_names_numbers_and_codes_stay(name):
    text = 'Please send order A17 to Maria for 30 EUR, not to maria@example.com at 12.50'
    out = plain(PERTURBATIONS[name](text, 1., 3)).lower()
    for fact in ('a17', 'maria', '30', 'maria@example.com', '12.50'): assert fact in out


def test_there_are_at_least_twenty_and_each_changes_something():
    long = 'Hello team, I am writing because my 3 parcels are not here. Please thank you for what you do in the house today? It is the question you should know.'
    assert len(PERTURBATIONS) >= 20
    for name, p in PERTURBATIONS.items():
        if name != 'expansions': assert p(long, 1.) != long, name
    assert PERTURBATIONS['expansions']("It's what I don't know", 1.) == 'It is what I do not know'


def test_severity_nests():
    words = 'one two three four five six seven eight nine ten eleven'.split()
    touched = [{i for i, w in enumerate(in_words(' '.join(words), Dice(3), s, lambda w, rng: w.upper()).split()) if w.isupper()} for s in (.1, .3, .6, 1.)]
    assert all(a < b for a, b in zip(touched, touched[1:]))


def test_severity_out_of_range_and_unknown_names():
    for bad in (-.1, 1.1, float('nan')):
        with pytest.raises(PlaybookError, match='severity'): PERTURBATIONS['keyboard']('hello', bad)
    with pytest.raises(PlaybookError, match='keyboard'): known('keybord')


def test_validity_sees_what_matters():
    assert invalid('Is it here?', 'Is it not here?') and invalid('Call Maria now', 'Call now') and invalid('I am 3', 'I am 4') and invalid('x', 'x 7')
    assert not invalid('3 days', 'three days') and not invalid("I don't know", 'I do not know') and not invalid('twelve', '12')
    assert invalid('send it to maria', 'send it to mara', frozenset({'maria'})) == 'a name was lost'
    assert facts('').numbers == frozenset() and facts('ALL CAPS TEXT').names == frozenset()


def test_plain_undoes_disguises():
    assert plain('ｐａｒｃｅｌ') == 'parcel' and plain('ра\u200brсеl') == 'parcel' and plain('páŕcel') == 'parcel'
    assert unicodedata.is_normalized('NFKD', plain('ﬁ½'))


def test_left_out_counts_every_variant():
    made = variants(MESSAGES, severity=.4)
    table = left_out(made)
    assert table.to_numpy().sum() == len(made) == len(MESSAGES)*len(PERTURBATIONS)
    assert len(left_out([])) == 0


def test_demo_messages_keep_their_meaning():
    prompts = list(load_card('demo').evaluation(60)['prompt'])
    made = variants(prompts, severity=.3, vocabulary={w for p in prompts for w in p.lower().split()})
    counted = [v for v in made if v.why != NOTHING]
    assert sum(not v.why for v in counted)/len(counted) > .9
