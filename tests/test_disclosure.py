"The page for users, and what it is like to be answered"
import math
import re

import numpy as np
import pytest

from genai_playbook.card import load_card
from genai_playbook.disclosure import LimitsPage, Statement, gate_statement, limits_page, privacy_notice, reading_grade, syllables
from genai_playbook.errors import PlaybookError
from genai_playbook.experience import dead_end, experience, hands_over, repeated, stream_times, way_on
from genai_playbook.models import Answer, Chunk, Model, PythonModel

GATE = dict(code='XYZ01', name='Leaks of <personal> data', verdict='PASS', value=0.)


def test_every_sentence_links_to_its_proof():
    card = load_card('demo')
    page = limits_page(card, [gate_statement(GATE | dict(verdict=v), f'x.html#cell-{v[:3]}') for v in ('PASS', 'FAIL', 'INSUFFICIENT')], '#card', 'Ask for a person.', 'Nothing is kept.')
    for html in (page.html(), page.html(whole=True)):
        items = re.findall(r'<li>.*?</li>', html, re.S)
        assert len(items) == len(page.statements) and all('href="' in i for i in items) and '<personal>' not in html
    assert [s.kind for s in page.statements if 'XYZ' in s.text or 'leaks' in s.text] == ['good', 'bad', 'open']
    assert page.html(whole=True).count('<main') == 1 and 'script' not in page.html(whole=True)


def test_no_statement_without_proof():
    with pytest.raises(PlaybookError, match='names no evidence'): Statement('It is perfect.', '')


@pytest.mark.parametrize('value', [math.nan, None])
def test_not_tested_is_said(value):
    s = gate_statement(GATE | dict(verdict='NOT TESTED', value=value), '#x')
    assert s.kind == 'open' and s.text.startswith('Not tested yet')


@pytest.mark.parametrize('value, said', [(0., 'none of 100'), (.001, 'fewer than 1'), (.999, 'more than 99'), (1., 'all of 100'), (.5, '50 of 100')])
def test_shares_in_plain_numbers(value, said):
    assert said in gate_statement(dict(code='SUC01', name='x', verdict='PASS', value=value), '#x').text.replace('about ', '').replace('gets ', '')


def test_nothing_is_invented(tmp_path):
    (tmp_path/'rows.csv').write_text('prompt,reference\nhi,ho\n')
    (tmp_path/'poc.yaml').write_text('poc: mine\noutcome: {promise: p}\nmodel: {kind: openai, base_url: "https://user.example.com:8443/v1", model: m}\ndata: {evaluation: rows.csv, private: true}\n')
    card = load_card(tmp_path/'poc.yaml')
    notice, missing = privacy_notice(card, None, '#card')
    text = ' '.join(s.text for s in notice)
    assert 'user.example.com' in text and 'private' in text and 'https' not in text and len(missing) == 2
    assert len(limits_page(card, [], '#card').missing) == 3


@pytest.mark.parametrize('text', ['', '   ', '...', '1 2 3', 'ﬃ', '\n\n', 'e'*9999])
def test_grade_of_odd_texts(text):
    g = reading_grade(text)
    assert math.isnan(g) or math.isfinite(g)
    assert math.isnan(LimitsPage('x', {}, []).grade)


def test_syllables_of_common_words():
    words = dict(the=1, people=2, machine=2, answer=2, person=2, questions=2, hundred=2, asked=1, needed=2, use=1, places=2, erased=2, day=1, idea=2, rule=1, goal=1, colleague=2)
    assert sum(syllables(w) == n for w, n in words.items()) >= len(words) - 2


def test_dead_ends_and_ways_on():
    guard = way_on('To reach a person, call us.')
    for text in ('No, that is not possible.', 'I CANNOT HELP', 'Too late'):
        assert dead_end(Answer(text)) and not dead_end(Answer(guard(text)))
    assert guard('It arrives today.') == 'It arrives today.' and dead_end(Answer('x', error='down')) and hands_over(Answer('', tier='fallback'))


def test_repeats_need_another_question_and_the_same_conversation():
    a = [Answer('Yes.')]*3
    assert list(repeated(a, ['x', 'x', 'y'], [1, 1, 1])) == [False, False, True] and not repeated(a, ['x', 'y', 'z'], [1, 2, 3]).any()
    assert not repeated([Answer('')]*2, ['x', 'y'], [1, 1]).any()
    with pytest.raises(ValueError): repeated(a, ['x'], [1, 1, 1])


def test_experience_of_nothing_and_of_mixed_labels():
    assert experience([], [], []).person.n == 0
    e = experience([Answer('ok'), Answer('A colleague will call.')], ['a', 'b'], [1, 'c'])
    assert e.person.value == .5 and e.person.n == 2


def test_streams_that_fail_or_come_in_one_piece():
    def model(p):
        if p == 'broken': raise RuntimeError('x')
        return 'all at once'
    t = stream_times(PythonModel(model), ['fine', 'broken'])
    assert t['words'].tolist() == [3, 0] and np.isnan(t['per_second']).all() and math.isnan(t['first_word'][1]) and t['first_word'][0] >= 0

    class Spaces(Model):
        uncached = property(lambda self: self)
        def stream(self, prompt): yield from [Chunk('  ', .1, 1), Chunk('', .2, 0, Answer('  '))]
    assert math.isnan(stream_times(Spaces(), ['x'])['first_word'][0]) and stream_times(Spaces(), []).empty
