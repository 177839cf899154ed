"Functions, logs and systems: whatever goes wrong with one prompt stays with that prompt"
import asyncio
import pickle
import subprocess
import sys
import textwrap
import threading

import pandas as pd
import pytest

from genai_playbook.errors import PlaybookError
from genai_playbook.models import Answer, BadPrompt, Chunk, Model, PythonModel, RowPrompt, as_messages, digest_of, failed, resolve, scrub, wait
from genai_playbook.recorded_model import RecordedModel
from genai_playbook.system import System, passes


def write(folder, name, text):
    (folder/name).write_text(textwrap.dedent(text))
    return folder


def test_imports_are_cheap():
    heavy = 'torch', 'transformers', 'aiohttp', 'pandas', 'numpy', 'sqlite3'
    code = f'''import sys
from genai_playbook import models, recorded_model, system, local_model, endpoint
print([m for m in {heavy!r} if m in sys.modules])'''
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=60).stdout.strip()=='[]'


# --- prompts ------------------------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('bad', [None, 7, b'x', [], [1], [{}], [{'role': 'user'}], [{'role': 'user', 'content': None}], '', ' \n', [{'role': 'system', 'content': 'only this'}], {'role': 'user'}])
def test_bad_prompts(bad):
    with pytest.raises(BadPrompt): as_messages(bad)


def test_row_prompt_survives_a_pickle():
    p = pickle.loads(pickle.dumps(RowPrompt('where?', 'r1')))
    assert (p, p.id)==('where?', 'r1')


def test_digest_takes_what_unicode_cannot():
    assert len(digest_of('\ud800', float('nan')))==64


# --- secrets ------------------------------------------------------------------------------------------------------------------------------------

def test_scrub(monkeypatch):
    monkeypatch.setenv('SOME_API_KEY', 'abcdefgh-1')
    monkeypatch.setenv('SOME_PASSWORD', 'abcdefgh-1-longer')
    monkeypatch.setenv('SOME_KEY_SHORT', 'no')
    assert scrub('abcdefgh-1-longer and abcdefgh-1, no')=='*** and ***, no'
    assert 'tok123' not in scrub('authorization: Bearer tok123456')
    assert len(scrub('x'*10_000))==500
    assert failed(ValueError()).error=='ValueError'


def test_a_function_cannot_leak_its_key_or_the_prompt(monkeypatch):
    monkeypatch.setenv('BOT_TOKEN', 'hush-hush-hush')
    def bot(prompt): raise RuntimeError(f'cannot send {prompt!r} with hush-hush-hush')
    a, = PythonModel(bot).answer(['my "private" diagnosis\nis secret'])
    assert 'hush' not in a.error and 'diagnosis' not in a.error


# --- targets ------------------------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('target, says', [('bot', 'names no function'), ('bot:', 'names no function'), ('a b:c', 'names no function'), (7, 'names no function'), ('nowhere_at_all:f', 'no module `nowhere_at_all` in '),
    ('bot:f.missing', 'has no'), ('bot:anwser', 'did you mean `answer`'), ('bot:NUMBER', 'is int, not a function'), ('needy:f', 'imports `not_installed_lib`, which is not installed'),
    ('broken:f', 'ZeroDivisionError'), ('quitter:f', 'SystemExit'), ('unparsable:f', 'SyntaxError'), ('pack.nowhere:f', 'no module `pack.nowhere`')])
def test_targets_that_cannot_be_used(tmp_path, target, says):
    write(tmp_path, 'bot.py', 'NUMBER = 7\ndef answer(p): return p\ndef f(p): return p')
    write(tmp_path, 'needy.py', 'import not_installed_lib')
    write(tmp_path, 'broken.py', '1/0')
    write(tmp_path, 'quitter.py', 'raise SystemExit(3)')
    write(tmp_path, 'unparsable.py', 'def f(:')
    (tmp_path/'pack').mkdir()
    write(tmp_path/'pack', '__init__.py', '')
    with pytest.raises(PlaybookError, match=says.replace('(', r'\(')) as e: PythonModel(target, tmp_path)
    assert '\n' not in str(e.value) and str(tmp_path) not in sys.path


def test_two_cards_with_a_module_of_one_name(tmp_path):
    for name in 'ab':
        (tmp_path/name).mkdir()
        write(tmp_path/name, 'same_bot.py', f'from same_words import WORD\ndef answer(p): return "{name}"')
        write(tmp_path/name, 'same_words.py', 'WORD = 1')
    a, b = (PythonModel('same_bot:answer', tmp_path/n) for n in 'ab')
    assert [m.answer(['?'])[0].text for m in (a, b)]==['a', 'b'] and a.digest!=b.digest


def test_a_missing_module_is_missing_though_another_card_has_it(tmp_path):
    for name in 'ab': (tmp_path/name).mkdir()
    write(tmp_path/'a', 'only_in_a.py', 'def answer(p): return "a"')
    assert resolve('only_in_a:answer', tmp_path/'a')('?')=='a'
    with pytest.raises(PlaybookError, match='there is no module `only_in_a` in b/'): resolve('only_in_a:answer', tmp_path/'b')


def test_an_installed_function(): assert PythonModel('textwrap:dedent').answer(['  hello'])[0].text=='hello'


# --- functions ----------------------------------------------------------------------------------------------------------------------------------

async def coroutine(p): await asyncio.sleep(0); return p+'!'
async def async_pieces(p):
    for c in p: yield c
def as_dict(p): return dict(text=p, tokens_in=3, tokens_out=4, finish_reason='length', unknown=1)


class Callable_:
    def __call__(self, p): return p+'?'


@pytest.mark.parametrize('fn, text', [(coroutine, 'ab!'), (async_pieces, 'ab'), (lambda p: iter(p), 'ab'), (as_dict, 'ab'), (Callable_(), 'ab?')])
def test_kinds_of_functions(fn, text):
    m = PythonModel(fn)
    assert m.answer(['ab'])[0].text==text and m.answer(['ab'])[0].error is None and len(m.digest)==64
    assert ''.join(c.text for c in m.stream('ab'))==text


def test_token_counts_of_a_function(): assert PythonModel(as_dict).answer(['ab'])[0].tokens_out==4


@pytest.mark.parametrize('given', [None, 7, b'x', ['a', 'b'], dict(answer='x')])
def test_functions_that_give_no_text(given):
    a, b = PythonModel(lambda p: given if p=='bad' else p).answer(['bad', 'good'])
    assert 'expected' in a.error and b.text=='good'


def test_order_and_progress_with_threads():
    seen, gate = [], threading.Barrier(3)
    def bot(p):
        if p in ('0', '1', '2'): gate.wait(20) # three at once, or this never ends
        return p
    answers = PythonModel(bot, concurrency=3).answer([str(i) for i in range(20)], lambda done, total: seen.append((done, total)))
    assert [a.text for a in answers]==[str(i) for i in range(20)] and seen==[(i+1, 20) for i in range(20)]


def test_a_generator_that_breaks_keeps_what_it_said():
    def bot(p): yield 'so far '; raise OSError('line cut')
    *chunks, last = PythonModel(bot).stream('x')
    assert [c.text for c in chunks]==['so far '] and last.answer.error=='OSError: line cut' and last.answer.text=='so far '


def test_inside_a_running_loop():
    async def notebook(): return PythonModel(coroutine).answer(['a'])[0].text
    assert asyncio.run(notebook())=='a!'


# --- logs ---------------------------------------------------------------------------------------------------------------------------------------

LOG = pd.DataFrame(dict(id=['1', '2', '3'], prompt=['a  b', 'c', 'd'], answer=['A', 'C', None], seconds=['.5', 'soon', ''], tokens_out=['3', '4', ''], error=[None, None, 'timed out']))


@pytest.mark.parametrize('kind', ['csv', 'jsonl', 'parquet'])
def test_a_log_file(tmp_path, kind):
    path = tmp_path/f'log.{kind}'
    if kind=='csv': LOG.to_csv(path, index=False)
    elif kind=='jsonl': LOG.to_json(path, orient='records', lines=True)
    else: LOG.to_parquet(path)
    m = RecordedModel(path, prompt='prompt')
    a, b, c = m.answer(['a b\n', [dict(role='system', content='s'), dict(role='user', content='c')], 'd'])
    assert (a.text, a.seconds, a.tokens_out, b.text, b.seconds, c.error)==('A', .5, 3, 'C', None, 'timed out') and not m.live
    assert RecordedModel(path, prompt='prompt').digest==m.digest
    path.write_bytes(path.read_bytes()+(b'' if kind=='parquet' else b'\n'))
    assert (RecordedModel(path, prompt='prompt').digest==m.digest)==(kind=='parquet')


def test_join_by_id_goes_before_the_prompt():
    m = RecordedModel(LOG, id='id', prompt='prompt')
    assert [a.text for a in m.answer([RowPrompt('c', '1'), 'c'])]==['A', 'C']


def test_unmatched_and_doubled_rows_are_said():
    with pytest.warns(UserWarning, match='1 answers replace an earlier one with the same prompt, the first in row 4'): m = RecordedModel(pd.concat([LOG, LOG[:1].assign(answer='A2')]), prompt='prompt')
    with pytest.warns(UserWarning, match='2 of 3 prompts have no recorded answer, among them number 2, 3') as said: answers = m.answer(['a b', 'secret prompt', 'y'])
    assert [a.error for a in answers]==[None, 'no recorded answer', 'no recorded answer'] and answers[0].text=='A2' and m.unmatched==[1, 2]
    assert 'secret' not in str(said[0].message)


def test_logs_that_cannot_be_used(tmp_path):
    with pytest.raises(PlaybookError, match='did you mean `answer`'): RecordedModel(LOG, answer='anwser', id='id')
    with pytest.raises(PlaybookError, match='at least one column'): RecordedModel(LOG)
    with pytest.raises(PlaybookError, match='cannot be read'): RecordedModel(tmp_path/'none.csv', id='id')
    with pytest.raises(PlaybookError, match='live model'): RecordedModel(LOG, id='id').stream('x')
    assert RecordedModel(LOG, id='id').answer([None])[0].error.startswith('a prompt is')


# --- systems ------------------------------------------------------------------------------------------------------------------------------------

class Fixed(Model):
    "Gives these answers, and notes what it was asked"
    name, about, digest = 'fixed', dict(kind='fixed'), '0'*64
    def __init__(self, *answers): self.answers, self.asked = answers, []
    def answer(self, prompts, progress=None): self.asked += prompts; return list(self.answers[:len(prompts)])
    def stream(self, prompt):
        a, = self.answer([prompt])
        for w in a.text.split(): yield Chunk(w+' ', .1, 1)
        yield Chunk('', .2, 0, a)


def test_a_text_stays_a_text_and_a_system_prompt_goes_first():
    m = Fixed(Answer('x'))
    System(m).answer([RowPrompt('a', 'r1')])
    System(m, 'Be kind.', guards_in=[str.upper]).answer([RowPrompt('b', 'r2')])
    assert m.asked[0]=='a' and m.asked[0].id=='r1'
    assert m.asked[1]==[dict(role='system', content='Be kind.'), dict(role='user', content='B')] and m.asked[1][1]['content'].id=='r2'


def raising(text): raise KeyError(text)


@pytest.mark.parametrize('broken', [raising, lambda t: 7, lambda t: None, lambda t: True, lambda: 'x'])
@pytest.mark.parametrize('side', ['guards_in', 'guards_out'])
def test_guards_fail_closed(broken, side):
    m = Fixed(Answer('unsafe'))
    a, = System(m, **{side: [broken]}).answer(['unsafe'])
    assert (a.text, a.tier)==('', 'guard') and 'blocked' in a.error
    assert not any('unsafe' in c.text for c in System(m, **{side: [broken]}).stream('unsafe'))
    assert side=='guards_out' or not m.asked


def test_every_message_of_the_user_is_guarded():
    talk = [dict(role='user', content='attack'), dict(role='assistant', content='no'), dict(role='user', content='please')]
    m = Fixed(Answer('x'))
    assert System(m, guards_in=[lambda t: None if 'attack' in t else t]).answer([talk])[0].tier=='guard' and not m.asked


def test_tiers_and_order():
    m = Fixed(Answer('fine'), Answer(error='HTTP 500'), Answer('  '), Answer('bad word'))
    s = System(m, guards_in=[lambda t: None if t=='b' else t], guards_out=[lambda t: None if 'bad' in t else t], fallbacks=['', 'a bad text', 'Call us.'])
    answers = s.answer(['a', 'b', 'c', 'd', 'e', ''])
    assert [(a.tier, a.text) for a in answers[:5]]==[('model', 'fine'), ('guard', 'Call us.'), ('fallback', 'Call us.'), ('fallback', 'Call us.'), ('guard', 'Call us.')]
    assert [a.error for a in answers]==[None]*5+['the prompt is empty']
    assert m.answers[1].error=='HTTP 500' # what the model gave is left alone: it may be a cache's


def test_without_fallbacks_errors_stay():
    a, b = System(Fixed(Answer(error='HTTP 500'), Answer(''))).answer(['a', 'b'])
    assert a.error=='HTTP 500' and (b.text, b.error)==('', None)


def test_streaming_through_a_system():
    def streamed(answer, **kw): return [(c.text, c.answer and c.answer.tier) for c in System(Fixed(answer), **kw).stream('x')]
    assert streamed(Answer('a b'))==[('a ', None), ('b ', None), ('', 'model')]
    assert streamed(Answer('a b'), guards_out=[str.upper])==[('A B', 'model')]
    assert streamed(Answer(error='gone'), fallbacks=['Call us.'])==[('Call us.', 'fallback')]
    last = list(System(Fixed(Answer('half of', error='the connection broke')), fallbacks=['Call us.']).stream('x'))[-1]
    assert last.answer.error=='the connection broke' # a word that was shown is not replaced


def test_the_digest_covers_all_parts():
    m = Fixed()
    systems = [System(m), System(m, 's'), System(m, guards_in=[str.upper]), System(m, guards_out=[str.upper]), System(m, guards_in=[str.lower]), System(m, fallbacks=['f'])]
    assert len({s.digest for s in systems})==6 and System(m).digest==System(m).digest


def test_guards_by_name(tmp_path):
    write(tmp_path, 'my_guard.py', 'def no(text): return None')
    assert System(Fixed(Answer('x')), guards_in=['my_guard:no'], folder=tmp_path).answer(['a'])[0].tier=='guard'
    with pytest.raises(PlaybookError, match='has no `nope`'): System(Fixed(), guards_in=['my_guard:nope'], folder=tmp_path)


def test_wait_passes_errors_on():
    async def boom(): raise KeyError('x')
    with pytest.raises(KeyError): wait(boom())
    assert resolve('textwrap:dedent')(' a')=='a' and passes([], 'a')=='a'
