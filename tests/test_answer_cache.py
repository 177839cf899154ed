"The cache is a convenience: its troubles must never become the user's, and it must never answer for another model"
import contextlib
import json
import os
import sqlite3
import subprocess
import sys
import threading
import time
import warnings

import pytest

from genai_playbook.answer_cache import CachedModel, Store, cache_folder, with_cache
from genai_playbook.models import Answer, Model, PythonModel


class Counting(Model):
    "Answers in capitals, and counts"
    name, live = 'counting', True
    def __init__(self, digest='a'*64, deterministic=True, device='cpu', only_here=7):
        self.digest, self.deterministic, self.about, self.asked, self.only_here = digest, deterministic, dict(device=device), [], only_here
    def answer(self, prompts, progress=None):
        self.asked += prompts
        for i in range(len(prompts)): progress and progress(i+1, len(prompts))
        return [Answer(error='no') if p=='bad' else Answer(str(p).upper(), 1, 2, 'stop', .5, logprob=-.1) for p in prompts]
    def stream(self, prompt): yield from ()


def test_hits_keep_everything(own_cache):
    m = Counting()
    first, again = (with_cache(m).answer(['a', 'b', 'a', 'bad', '', 7]) for _ in range(2))
    assert m.asked==['a', 'b', 'bad', '', 7, 'bad', '', 7]
    assert [a.cached for a in first]==[False]*6 and [a.cached for a in again]==[True]*3+[False]*3
    again[0].cached = False
    assert again[0]==first[0]
    again[0].text = 'changed'
    assert again[2].text=='A'


@pytest.mark.parametrize('other', [Counting('b'*64), Counting(device='cuda')])
def test_another_model_is_another_answer(own_cache, other):
    with_cache(Counting()).answer(['a'])
    assert not with_cache(other).answer(['a'])[0].cached


def test_a_text_and_its_conversation_are_different_questions(own_cache):
    m = with_cache(PythonModel(lambda p: type(p).__name__, deterministic=True))
    assert [a.text for a in m.answer(['a', [dict(role='user', content='a')]])]==['str', 'list']


def test_when_nothing_is_kept(own_cache):
    for m, kw in ((Counting(deterministic=False), {}), (Counting(), dict(private=True))): assert with_cache(m, **kw) is m and m.uncached is m
    recorded = Counting()
    recorded.live = False
    assert with_cache(recorded) is recorded and not own_cache.exists()


def test_it_is_the_model_otherwise(own_cache):
    m = Counting()
    c = with_cache(m)
    assert c.uncached is m and c.digest==m.digest and c.only_here==7 and c.name=='counting' and c.live and c.about is m.about
    assert not hasattr(c, 'nothing_of_this_name')


def test_progress_counts_hits(own_cache):
    c, seen = with_cache(Counting()), []
    c.answer(['a', 'b'])
    c.answer(['a', 'x', 'b', 'y'], lambda *at: seen.append(at))
    assert seen[0]==(2, 4) and seen[-1]==(4, 4) and seen==sorted(seen)


def test_an_interrupted_run_keeps_what_it_paid_for(own_cache):
    class Interrupted(Counting):
        def answer(self, prompts, progress=None):
            if len(self.asked)>=1000: raise KeyboardInterrupt
            return super().answer(prompts, progress)
    prompts = [f'p{i}' for i in range(2000)]
    with pytest.raises(KeyboardInterrupt): with_cache(Interrupted()).answer(prompts)
    m = Counting()
    assert sum(a.cached for a in with_cache(m).answer(prompts))==1024 and len(m.asked)==976


def test_neither_prompts_nor_keys_are_stored(own_cache, monkeypatch):
    monkeypatch.setenv('MY_API_KEY', 'hush-hush-hush')
    with_cache(PythonModel(lambda p: 'fine', deterministic=True)).answer(['a private diagnosis'])
    files = b''.join(p.read_bytes() for p in own_cache.rglob('*') if p.is_file())
    assert b'fine' in files and b'diagnosis' not in files and b'hush' not in files


WORKER = '''
import sys, json
from genai_playbook.answer_cache import with_cache
from genai_playbook.models import PythonModel
def bot(p):
    open(sys.argv[1], 'a').write(p+"\\n")
    return p.upper()
m = with_cache(PythonModel(bot, deterministic=True, concurrency=1))
answers = m.answer([f'p{i}' for i in range(300)])
print(json.dumps([a.text for a in answers]))
'''


def test_four_processes(own_cache, tmp_path):
    script, log = tmp_path/'worker.py', tmp_path/'asked.txt'
    script.write_text(WORKER)
    running = [subprocess.Popen([sys.executable, script, log], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    for p in running:
        out, err = p.communicate(timeout=120)
        assert p.returncode==0 and not err and json.loads(out)==[f'P{i}' for i in range(300)]
    assert sorted(log.read_text().split())==sorted(f'p{i}' for i in range(300)) # nobody asked what another one had asked


def test_many_writers_and_no_lock(own_cache):
    stores = [Store(own_cache/'a.sqlite') for _ in range(4)]
    def fill(n):
        for i in range(40): stores[n].put({f'{i}': str(i), f'{n}-{i}': str(i)})
    threads = [threading.Thread(target=fill, args=(n,)) for n in range(4)]
    for t in threads: t.start()
    for t in threads: t.join()
    assert len(Store(own_cache/'a.sqlite').get([f'{i}' for i in range(40)]+[f'{n}-{i}' for n in range(4) for i in range(40)]))==200


def test_a_writer_that_is_in_the_way_is_waited_for(own_cache, monkeypatch): # SQLite itself refuses the switch to WAL at once
    own_cache.mkdir(exist_ok=True)
    with contextlib.closing(sqlite3.connect(own_cache/'a.sqlite', isolation_level=None)) as first:
        first.execute('BEGIN IMMEDIATE')
        monkeypatch.setattr(time, 'sleep', lambda s: first.in_transaction and first.execute('ROLLBACK'))
        store = Store(own_cache/'a.sqlite')
        store.put({'a': '1'})
    assert store.usable and store.get(['a'])=={'a': '1'}


@pytest.mark.parametrize('damage', [lambda b: b'this is no database at all'*100, lambda b: b[:100]+os.urandom(len(b)-100)])
def test_a_damaged_file_is_put_aside(own_cache, damage):
    c = with_cache(Counting())
    c.answer([f'p{i}' for i in range(200)])
    path = own_cache/'answers.sqlite'
    with sqlite3.connect(path) as db: db.execute('PRAGMA wal_checkpoint(TRUNCATE)')
    path.write_bytes(damage(path.read_bytes()))
    with pytest.warns(UserWarning, match='put aside as answers.sqlite.damaged'): assert with_cache(Counting()).answer(['p1'])[0].text=='P1'
    assert with_cache(Counting()).answer(['p1'])[0].cached and len(list(own_cache.glob('*.damaged-*')))==1


def test_foreign_rows_are_no_answers(own_cache):
    c = with_cache(Counting())
    c.answer(['a', 'b', 'c'])
    with sqlite3.connect(own_cache/'answers.sqlite') as db:
        for i, (key,) in enumerate(db.execute('SELECT key FROM answers').fetchall()): db.execute('UPDATE answers SET answer=? WHERE key=?', (['{"text": "old", "gone": 1}', '7', '{'][i], key))
    assert sorted(a.text in ('old', a.text) and a.cached for a in c.answer(['a', 'b', 'c']))==[False, False, True]


@pytest.mark.parametrize('place', ['/proc/no/such/place', '/dev/null/x'])
def test_a_folder_that_cannot_be_written(place, monkeypatch):
    monkeypatch.setenv('GENAI_PLAYBOOK_CACHE', place)
    c = with_cache(Counting())
    with pytest.warns(UserWarning, match='cannot be used') as said: assert [a.text for a in c.answer(['a', 'b'])]==['A', 'B']
    assert len(said)==1
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert c.answer(['a'])[0].text=='A'


def test_a_read_only_folder(own_cache):
    with_cache(Counting()).answer(['a'])
    if os.getuid()==0: pytest.skip('root writes everywhere')
    own_cache.chmod(0o500)
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter('always')
            assert with_cache(Counting()).answer(['a', 'b'])[1].text=='B'
        assert len(said)<=1
    finally: own_cache.chmod(0o700)


def test_where_it_is(monkeypatch, tmp_path):
    monkeypatch.delenv('GENAI_PLAYBOOK_CACHE', raising=False)
    monkeypatch.setattr(sys, 'platform', 'linux')
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    assert cache_folder()==tmp_path/'genai_playbook'
    assert isinstance(with_cache(Counting()), CachedModel)
