"Executors, matrices and answers to long files: the same results as one process gives, and nothing lost when a worker dies"
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import pandas as pd
import pytest

from genai_playbook.chapters import find_chapters
from genai_playbook.errors import PlaybookError
from genai_playbook.runner import run
from genai_playbook.scaling import answer_file, executor_for, matrix_cards, run_matrix

from test_runner import GATE, notebook

CARD = 'poc: {name}\noutcome: {{promise: answers}}\nmodel: {{kind: python, target: "{module}:{fn}"}}\ndata: {{evaluation: rows.csv, columns: {{prompt: prompt, reference: reference}}}}\n'
CODE = '''import os
def upper(prompt): return prompt.upper()
def echo(prompt):
    open(os.environ['ASKED'], 'a').write(prompt + '\\n')
    if os.environ.get('DIE_AT') == prompt and not os.path.exists(os.environ['ASKED'] + '.died'):
        open(os.environ['ASKED'] + '.died', 'w').close()
        os._exit(1)
    return prompt
'''


@pytest.fixture
def card(tmp_path, monkeypatch):
    "Writes a card in a folder of its own"
    monkeypatch.setenv('ASKED', str(tmp_path/'asked'))
    def write(name='mine', fn='echo', module='answers'):
        folder = tmp_path/name
        folder.mkdir(exist_ok=True)
        (folder/f'{module}.py').write_text(CODE)
        (folder/'rows.csv').write_text('id,prompt,reference\n1,hello,hello\n')
        (folder/'poc.yaml').write_text(CARD.format(name=name, fn=fn, module=module))
        return folder/'poc.yaml'
    yield write
    find_chapters.cache_clear()


@pytest.fixture
def pool():
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context('spawn')) as pool: yield pool


@pytest.fixture
def nbs(tmp_path):
    import nbformat
    (tmp_path/'nbs').mkdir()
    for i, v in ((1, 1.), (2, .2)): nbformat.write(notebook(GATE.format(code=f'SUC9{i}', value=v), chapter=f'c{i}'), tmp_path/f'nbs/0{i}_c{i}.ipynb')
    find_chapters.cache_clear()
    return tmp_path/'nbs'


def prompts(tmp_path, n, kind='csv'):
    d, path = pd.DataFrame(dict(id=[f'r{i}' for i in range(n)], prompt=[f'p {i}' for i in range(n)])), tmp_path/f'prompts.{kind}'
    dict(csv=lambda: d.to_csv(path, index=False), jsonl=lambda: d.to_json(path, orient='records', lines=True), parquet=lambda: d.to_parquet(path, index=False))[kind]()
    return path


def asked(tmp_path): return (tmp_path/'asked').read_text().splitlines() if (tmp_path/'asked').exists() else []


def test_chapters_that_another_process_runs_find_the_same(card, nbs, pool, tmp_path):
    here, there = (run(card(), out=tmp_path/str(k), notebooks=nbs, executor=e) for k, e in enumerate(('threads', pool)))
    assert here.digest() == there.digest() and list(there.chapters.status) == ['done', 'done']


def test_an_executor_that_breaks_breaks_its_chapters_and_not_the_run(card, nbs, tmp_path):
    class Broken(ProcessPoolExecutor):
        def submit(self, *a, **kw):
            from concurrent.futures import Future
            f = Future()
            f.set_exception(BrokenProcessPool('a worker was killed'))
            return f
    ev = run(card(), out=tmp_path/'a', notebooks=nbs, executor=Broken(1))
    assert set(ev.chapters.error) == {'its worker failed: BrokenProcessPool: a worker was killed'} and ev['decision']['exit_code'] == 4
    assert list(run(card(), out=tmp_path/'a', notebooks=nbs, resume=True).chapters.status) == ['done', 'done']


@pytest.mark.parametrize('what, says', [('dusk', 'use threads'), ('dask:', 'use threads'), ('dask:tcp://127.0.0.1:1', 'distributed|scheduler')])
def test_an_executor_that_does_not_exist_is_one_sentence(card, nbs, tmp_path, what, says):
    with pytest.raises(PlaybookError, match=says): run(card(), out=tmp_path/'a', notebooks=nbs, executor=what)
    assert not (tmp_path/'a').exists()


def test_every_model_meets_every_poc(card, nbs, tmp_path):
    a, b = card('first'), card('second', 'upper', 'others')
    cards = matrix_cards([a, b], tmp_path/'cards')
    assert list(cards) == [('first', 'first'), ('first', 'second'), ('second', 'first'), ('second', 'second')]
    from genai_playbook.card import load_card
    crossed = load_card(cards['first', 'second'])
    assert crossed.name == 'first-with-second' and crossed.system().answer(['hi'])[0].text == 'HI'
    assert load_card(cards['second', 'first']).system().answer(['hi'])[0].text == 'hi'
    res = run_matrix([a, b], out=tmp_path/'evidence', notebooks=nbs, chapters=['c1'])
    assert sorted(p.name for p in (tmp_path/'evidence').iterdir()) == ['cards', 'first', 'first-with-second', 'second', 'second-with-first']
    assert {ev['poc']['name'] for ev in res.values()} == {'first', 'first-with-second', 'second', 'second-with-first'}


def test_the_bundled_pocs_cross_too(tmp_path):
    from genai_playbook.card import load_card
    cards = matrix_cards(['demo', 'demo-regressed'], tmp_path)
    assert load_card(cards['demo', 'demo-regressed']).model().digest == load_card('demo-regressed').model().digest
    assert load_card(cards['demo', 'demo-regressed']).digests()['data.evaluation'] == load_card('demo').digests()['data.evaluation']


def test_what_cannot_be_crossed_is_said(card, tmp_path):
    with pytest.raises(PlaybookError, match='same `poc` name'): matrix_cards([card(), card()], tmp_path/'cards')
    with pytest.raises(PlaybookError, match='same `poc` name'): run_matrix([card(), card()], cross=False, out=tmp_path/'evidence')
    card('first'), card('second', 'upper')
    (tmp_path/'second/answers.py').write_text(CODE + '# another\n')
    with pytest.raises(PlaybookError, match='answers.py lies beside both'): matrix_cards([tmp_path/'first', tmp_path/'second'], tmp_path/'cards')


@pytest.mark.parametrize('kind', ['csv', 'jsonl', 'parquet'])
def test_a_file_of_prompts_is_answered_in_chunks_and_never_twice(card, tmp_path, kind):
    path, out, told = prompts(tmp_path, 25, kind), tmp_path/'parts', []
    assert answer_file(card(), path, out, chunk=10, progress=told.append) == 25
    d = pd.read_parquet(out)
    assert list(d.answer) == list(d.prompt) == [f'p {i}' for i in range(25)] and list(d.id)[:2] == ['r0', 'r1'] and told[-1] == 25
    assert len(list(out.iterdir())) == 3 and len(asked(tmp_path)) == 25
    (out/'part-000001.parquet').write_bytes(b'cut off')
    assert answer_file(card(), path, out, chunk=10) == 25 and len(asked(tmp_path)) == 35
    assert answer_file(card(), prompts(tmp_path, 10, kind), out, chunk=10) == 10
    assert len(pd.read_parquet(out)) == 10 and len(asked(tmp_path)) == 35


def test_a_worker_that_dies_loses_its_chunk_only(card, tmp_path, monkeypatch, pool):
    path, out = prompts(tmp_path, 40), tmp_path/'parts'
    monkeypatch.setenv('DIE_AT', 'p 25')
    with pytest.raises(BrokenProcessPool): answer_file(card(), path, out, chunk=10, executor=pool, jobs=1)
    whole = {p.name for p in out.iterdir()}
    assert whole == {'part-000000.parquet', 'part-000001.parquet'} and len(pd.read_parquet(out)) == 20
    before = len(asked(tmp_path))
    assert answer_file(card(), path, out, chunk=10) == 40 and set(asked(tmp_path)[before:]) == {f'p {i}' for i in range(20, 40)}


def test_results_do_not_depend_on_who_answers(card, tmp_path, pool):
    path = prompts(tmp_path, 40)
    for name, e in (('a', 'threads'), ('b', pool)): answer_file(card(), path, tmp_path/name, chunk=7, executor=e)
    a, b = (pd.read_parquet(tmp_path/n).drop(columns=['answer_seconds']) for n in 'ab')
    pd.testing.assert_frame_equal(a, b)


def test_a_card_that_changed_answers_anew(card, tmp_path):
    path, out = prompts(tmp_path, 5), tmp_path/'parts'
    answer_file(card(), path, out)
    card(fn='upper')
    assert answer_file(card(fn='upper'), path, out) == 5 and list(pd.read_parquet(out).answer)[0] == 'P 0'


def test_no_prompts_are_no_answers(card, tmp_path):
    for name, content in (('a.csv', ''), ('b.csv', 'prompt\n'), ('c.jsonl', '')):
        (tmp_path/name).write_text(content)
        assert answer_file(card(), tmp_path/name, tmp_path/'parts') == 0
    with pytest.raises(PlaybookError, match='There is no file'): answer_file(card(), tmp_path/'d.csv', tmp_path/'parts')


@pytest.mark.parametrize('name, content, says', [('a.txt', 'x', 'csv, .jsonl or .parquet'), ('a.csv', 'prmpt\nx\n', 'no column `prompt`')])
def test_a_file_without_prompts(card, tmp_path, name, content, says):
    (tmp_path/name).write_text(content)
    with pytest.raises(PlaybookError, match=says): answer_file(card(), tmp_path/name, tmp_path/'parts')


@pytest.mark.slow
def test_a_million_prompts_in_bounded_memory(card, tmp_path):
    import psutil
    with open(tmp_path/'p.csv', 'w') as f:
        f.write('prompt\n')
        for i in range(1_000_000): f.write(f'prompt number {i}\n')
    most, me = [], psutil.Process()
    assert answer_file(card(fn='upper'), tmp_path/'p.csv', tmp_path/'parts', progress=lambda n: most.append(me.memory_info().rss)) == 1_000_000
    assert max(most[50:]) < most[10]*1.3 and sum(1 for _ in (tmp_path/'parts').iterdir()) == 100


@pytest.mark.slow
def test_dask_finds_the_same_though_a_worker_is_killed(card, nbs, tmp_path):
    pytest.importorskip('distributed')
    import threading, time
    from distributed import Client
    here = run(card(), out=tmp_path/'here', notebooks=nbs)
    with Client(n_workers=2, threads_per_worker=1, dashboard_address=None) as client:
        pid = client.run(os.getpid)
        threading.Thread(target=lambda: (time.sleep(1), os.kill(next(iter(pid.values())), 9)), daemon=True).start()
        there = run(card(), out=tmp_path/'there', notebooks=nbs, executor=client.get_executor(pure=False, retries=3), jobs=2)
    assert here.digest() == there.digest()
    with executor_for('dask:local', 2) as (pool, n): assert n == 2 and pool.submit(sum, [1, 2]).result() == 3
