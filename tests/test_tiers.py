"Tiers that fail, lie or hang; cards that name them"
import asyncio
import threading

import pytest

from genai_playbook.card import CardError, parse_card
from genai_playbook.errors import PlaybookError
from genai_playbook.models import Answer, PythonModel, wait
from genai_playbook.system import System
from genai_playbook.tiers import Lookup, Rules, Second, Static, fallback, question_in, read_answers

CARD = """poc: x
outcome: {promise: p}
model: {kind: python, target: 'm:f'}
data: {evaluation: e.csv}
fallbacks:
"""
CODE = 'def f(p): raise OSError\ndef r(p): return "rule" if "a" in p else None\ndef junk(p): return 7\n'


@pytest.fixture
def folder(tmp_path):
    (tmp_path/'e.csv').write_text('prompt,reference\na,b\n')
    (tmp_path/'a.csv').write_text('question,answer\nwhere is it,here\n,empty\nno answer,\n')
    (tmp_path/'m.py').write_text(CODE)
    return tmp_path


def card(folder, fallbacks): return parse_card(CARD+fallbacks+'\n', folder/'poc.yaml', sections={}, gates=[])


def test_a_card_names_tiers(folder):
    s = card(folder, '  - {rules: "m:r"}\n  - {answers: a.csv}\n  - {model: {kind: python, target: "m:r"}}\n  - text: sorry').system()
    assert [(a.tier, a.text, a.error) for a in s.answer(['a', 'where is it?', 'zzz'])] == [('rules', 'rule', None), ('answers', 'here', None), ('fallback', 'sorry', None)]
    assert [c.answer.tier for c in s.stream('a') if c.answer] == ['rules']
    assert [t if isinstance(t, str) else t.name for t in s.fallbacks] == ['rules', 'answers', 'second model', 'sorry']


def test_digests_follow_files_and_rules(folder):
    text = '  - {rules: "m:r"}\n  - {answers: a.csv}'
    def both(): c = card(folder, text); return c.digests()['fallbacks'], c.system().digest
    first = both()
    assert both() == first
    (folder/'a.csv').write_text('question,answer\nwhere is it,there\n')
    second = both()
    (folder/'m.py').write_text(CODE.replace('"a" in', '"b" in'))
    third = both()
    assert len({first[0], second[0], third[0]}) == 3 and len({first[1], second[1], third[1]}) == 3


@pytest.mark.parametrize('bad,said', [('  - {rules: "m:r", text: x}', 'exactly one'), ('  - {floor: .5}', 'exactly one'), ('  - {answers: b.csv}', 'no file'), ('  - {rules: nope}', 'module:function'), ('  - {text: x, floor: 2}', 'floor')])
def test_what_is_wrong_is_said_with_its_line(folder, bad, said):
    with pytest.raises(CardError, match=said) as e: card(folder, bad)
    assert ':6' in str(e.value)


def test_a_file_without_the_columns(tmp_path):
    (tmp_path/'x.csv').write_text('q,a\n1,2\n')
    with pytest.raises(PlaybookError, match='question'): read_answers(tmp_path/'x.csv')
    with pytest.raises(PlaybookError, match='0 questions'): Lookup([], [])


def test_what_a_guard_blocked_reaches_no_tier():
    seen = []
    def spy(p): seen.append(p); return 'from the rules'
    s = System(PythonModel(lambda p: 'fine'), guards_in=[lambda t: None if 'bad' in t else t], guards_out=[lambda t: None if 'rude' in t else t], fallbacks=[Rules(spy), 'sorry'])
    assert [(a.tier, a.text) for a in s.answer(['bad'])] == [('guard', 'sorry')] and not seen
    rude = System(PythonModel(lambda p: 'rude'), guards_out=[lambda t: None if 'rude' in t else t], fallbacks=[Rules(lambda p: 'rude rules'), Rules(spy), 'sorry'])
    assert [(a.tier, a.text) for a in rude.answer(['x'])] == [('rules', 'from the rules')]


def test_tiers_that_raise_hang_or_return_junk_are_passed_over():
    never = threading.Event()
    def hangs(p): never.wait(30)
    try:
        for bad in (lambda p: 1/0, lambda p: 7, lambda p: '', lambda p: '  ', lambda p: None, lambda p: [], hangs):
            s = System(PythonModel(lambda p: ''), fallbacks=[Rules(bad, seconds=.05), 'sorry'])
            assert s.answer(['x'])[0].tier == 'fallback'
    finally: never.set()


def test_a_chain_never_raises_in_any_shape():
    async def afails(p): raise ConnectionError
    async def astreams(p):
        yield 'a '
        yield 'b'
    def streams(p): yield from ('a ', 'b')
    class Model:
        def answer(self, prompts): return [Answer(error='down') for _ in prompts]
    for first in (afails, Model(), PythonModel(lambda p: 1/0), Lookup(['x'], ['y']), lambda p: 7, lambda p: None, lambda p: afails(p)):
        for last, text in ((astreams, 'a b'), (streams, 'a b'), ('sorry', 'sorry'), (Static('sorry'), 'sorry'), (lambda p: astreams(p), 'a b')):
            chain = fallback([('first', first), ('last', last)])
            assert chain('hello there') == wait(chain.ask('hello there')) and chain('hello there').text == text and chain('hello there').tier == 'last'
            assert ''.join(chain.pieces('hello there')) == text == ''.join(wait(collect(chain.apieces('hello there'))))
            assert chain.counts['last answered'] >= 4 and 'hello' not in str(chain.counts)


async def collect(it): return [p async for p in it]


def test_nobody_answers():
    chain = fallback([lambda p: None, lambda p: 1/0])
    assert chain('x').tier is None and list(chain('x').tried.values()) == ['does not know', 'ZeroDivisionError'] and list(chain.pieces('x')) == []
    with pytest.raises(PlaybookError): fallback([])
    with pytest.raises(PlaybookError, match='not int'): fallback([3])


def test_a_stream_that_breaks_off_is_not_replaced():
    def breaks(p):
        yield 'half'
        raise ConnectionError
    got = []
    with pytest.raises(ConnectionError):
        for p in fallback([breaks, 'sorry']).pieces('x'): got.append(p)
    assert got == ['half']


def test_equal_names_are_told_apart():
    assert [n for n, _ in fallback(['a', 'b', ('rules', lambda p: None), Rules(lambda p: None), 'c']).tiers] == ['text', 'text 2', 'rules', 'rules 2', 'text 3']


@pytest.mark.parametrize('template,filled,question', [('{prompt}', 'a\nb', 'a\nb'), ('Facts: {context}. {prompt}', 'Facts: x. hello', 'hello'), ('{{{prompt}}}', '{hello}', 'hello'), ('{context}', 'abc', 'abc'), ('{a} {b} {prompt}', 'x y z', 'z')])
def test_questions_out_of_templates(template, filled, question): assert question_in(template)(filled) == question


def test_hostile_questions():
    faq = Lookup(['Where is it?'], ['here'])
    for t in ('', ' ', '\x00', 'x'*100_000, '\ud800', '?'*999): assert faq.answer([t]) == [None]
    assert faq.answer([]) == [] and faq.answer([[dict(role='system', content='x'), dict(role='user', content='where is it')]]) == ['here']
    assert Second(PythonModel(lambda p: 1/0)).one('x') is None and asyncio.iscoroutine(c := fallback(['x']).ask('y')) and not c.close()
