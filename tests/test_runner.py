"The runner: strict about parameters, and nothing is lost when a chapter breaks"
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from genai_playbook.chapters import find_chapters
from genai_playbook.errors import PlaybookError
from genai_playbook.runner import (Progress, effective_parameters, execute_chapter, gather, load_run, newest_run, notebook_parameters, plan, run)
from genai_playbook.scheduling import schedule

PARAMS = 'poc: str = "demo"  # the card\neffort: str = "quick"  # how much\nrate: float = .5  # a share\nn: int = 3  # rows'
GATE = '''from genai_playbook.evidence import GateSpec, gate
from genai_playbook.stats import exact
from genai_playbook.card import load_card
_ = gate(GateSpec('{code}', 'an example', 'share', 'success.target', .9), exact({value}), load_card(poc))'''


def notebook(*cells, params=PARAMS, chapter=None, **meta):
    tagged = [new_code_cell(params, metadata={'tags': ['parameters']})] if params is not None else []
    nb = new_notebook(cells=[new_markdown_cell('# A chapter\n\n> A question?'), *tagged, *map(new_code_cell, cells)])
    nb.metadata['kernelspec'] = dict(name='python3', display_name='Python 3', language='python')
    if chapter: nb.metadata['genai_playbook'] = dict(chapter=chapter, **meta)
    return nb


@pytest.fixture
def folder(tmp_path):
    "Writes notebooks into a folder of chapters"
    def write(**nbs):
        f = tmp_path/'nbs'
        f.mkdir(exist_ok=True)
        for name, nb in nbs.items(): nbformat.write(nb, f/f'{name}.ipynb')
        find_chapters.cache_clear()
        return f
    yield write
    find_chapters.cache_clear()


def test_parameters_are_read_with_their_types_and_comments():
    ps = notebook_parameters(notebook())
    assert list(ps) == ['poc', 'effort', 'rate', 'n']
    assert (ps['rate'].default, ps['rate'].type, ps['rate'].help) == (.5, 'float', 'a share')
    url = notebook_parameters(notebook(params='url = "a?b=c"  # with = inside'))
    assert url['url'].default == 'a?b=c'


@pytest.mark.parametrize('nb, said', [
    (notebook(params=None), '0 cells are tagged'),
    (notebook(params='n = 3\nhalf = n/2'), 'not a literal parameter'),
    (notebook(params='import os'), 'not a literal parameter'),
    (notebook(params='a = b = 3'), 'not a literal parameter')])
def test_a_notebook_that_papermill_would_run_wrongly_is_refused(nb, said):
    with pytest.raises(PlaybookError, match=said): notebook_parameters(nb)


@pytest.mark.parametrize('given, said', [(dict(rat=.9), 'did you mean `rate`'), (dict(zzz=1), 'it takes poc, effort'), (dict(rate='high'), 'takes float'),
                                         (dict(n=True), 'takes int'), (dict(n=2.5), 'takes int')])
def test_unknown_names_and_wrong_types_are_refused(given, said):
    with pytest.raises(PlaybookError, match=said): effective_parameters(notebook_parameters(notebook()), given)


def test_every_effective_parameter_is_recorded_and_an_int_is_a_float_where_one_is_asked():
    assert effective_parameters(notebook_parameters(notebook()), dict(rate=1)) == dict(poc='demo', effort='quick', rate=1., n=3)


def executed(tmp_path, *cells, timeout=60, **kw):
    src, dst = tmp_path/'a.ipynb', tmp_path/'out'/'a.ipynb'
    dst.parent.mkdir()
    nbformat.write(notebook(*cells), src)
    status, error = execute_chapter(src, dst, dict(poc='demo', effort='quick', rate=.9, n=3), timeout, **kw)
    return status, error, json.loads(dst.read_text())


def test_a_chapter_runs_in_its_own_folder_with_its_parameters(tmp_path):
    seen = []
    status, error, nb = executed(tmp_path, 'import os; os.getcwd(), rate', on_cell=lambda done, total: seen.append((done, total)))
    assert (status, error) == ('done', '')
    out = [o['data']['text/plain'] for c in nb['cells'] if c['cell_type'] == 'code' for o in c['outputs']]
    assert str(tmp_path) in ''.join(out[0]) and '0.9' in ''.join(out[0])
    assert seen[-1] == (3, 3)
    assert nb['metadata']['papermill']['parameters'] == dict(poc='demo', effort='quick', rate=.9, n=3)


@pytest.mark.parametrize('cell, status, said', [
    ('1/0', 'broke', 'ZeroDivisionError: division by zero'),
    ('import sys; sys.exit(0)', 'broke', 'did not run|SystemExit'),
    ('import os, signal; os.kill(os.getpid(), signal.SIGKILL)', 'broke', 'kernel died')])
def test_a_broken_chapter_says_why_and_keeps_its_notebook(tmp_path, cell, status, said):
    got, error, nb = executed(tmp_path, '"before"', cell, '"after"')
    assert got == status
    import re
    assert re.search(said, error)
    assert any("'before'" in ''.join(o.get('data', {}).get('text/plain', '')) for c in nb['cells'] for o in c.get('outputs', []))


def test_a_chapter_has_one_deadline_for_all_its_cells(tmp_path):
    ticks = iter(range(0, 10_000, 50))  # a clock that jumps 50 s at every look, against a limit of 100 s
    got, error, _ = executed(tmp_path, 'import time; time.sleep(30)', timeout=100, clock=lambda: next(ticks))
    assert got == 'timed out' and '100 s' in error


def test_chapters_wait_for_what_they_need_and_those_that_measure_time_run_alone():
    from genai_playbook.chapters import ChapterInfo
    import threading
    mk = lambda n, **kw: ChapterInfo(n, '', n, '', Path(n), **kw)
    infos = {c.name: c for c in [mk('last', needs=('all',)), mk('a'), mk('timed', exclusive=True), mk('b', needs=('a',)), mk('c')]}
    running, order, overlaps, lock = set(), [], [], threading.Lock()

    def work(name):
        with lock:
            running.add(name)
            overlaps.append(frozenset(running))
        time.sleep(.05)
        with lock:
            running.discard(name)
            order.append(name)
    schedule(infos, work, 3)
    assert order[-1] == 'last' and order.index('a') < order.index('b')
    assert all(o == {'timed'} for o in overlaps if 'timed' in o)
    assert any(len(o) > 1 for o in overlaps)


def test_chapters_that_need_each_other_are_named():
    from genai_playbook.chapters import ChapterInfo
    infos = {n: ChapterInfo(n, '', n, '', Path(n), needs=(o,)) for n, o in (('a', 'b'), ('b', 'a'))}
    with pytest.raises(PlaybookError, match='need each other'): schedule(infos, lambda n: None, 1)


def infos(**kw):
    from genai_playbook.chapters import ChapterInfo
    return {n: ChapterInfo(n, '', n, '', Path(n), **c) for n, c in kw.items()}


def test_the_longest_chain_starts_first_and_what_measures_time_while_nothing_else_runs():
    c = infos(short=dict(), long=dict(), head=dict(), tail=dict(needs=('head',)), timed=dict(exclusive=True), last=dict(needs=('all',)))
    order = []
    schedule(c, order.append, 1, dict(short=1, long=5, head=2, tail=9, timed=3, last=1))
    assert order == ['timed', 'head', 'tail', 'long', 'short', 'last']


def test_threads_are_divided_among_those_that_run_side_by_side():
    from genai_playbook.scheduling import threads_each
    c = infos(a=dict(), b=dict(), c=dict(), timed=dict(exclusive=True), last=dict(needs=('all',)))
    assert threads_each(c, 2, 8) == dict(a=4, b=4, c=4, timed=8, last=8)
    assert threads_each(c, 16, 8) == dict(a=2, b=2, c=2, timed=8, last=8)
    assert set(threads_each(c, 16, 1).values()) == {1}


def test_earlier_runs_tell_how_long_chapters_take(tmp_path):
    from genai_playbook.scheduling import past_seconds
    def state(name, effort='full', **seconds):
        (tmp_path/'mine'/name).mkdir(parents=True)
        (tmp_path/'mine'/name/'state.json').write_text(json.dumps(dict(effort=effort, chapters=[dict(name=n, seconds=s, status='done' if s else 'broke') for n, s in seconds.items()])))
    state('1', a=5, b=7)
    state('2', a=6, b=0)
    state('3', 'quick', a=1)
    (tmp_path/'mine/4').mkdir()
    (tmp_path/'mine/4/state.json').write_text('{"effort"')
    assert past_seconds(tmp_path, 'mine', 'full') == dict(a=6, b=7) and past_seconds(tmp_path, 'other', 'full') == {}


def test_what_work_raises_ends_the_schedule_when_the_others_were_stopped():
    import threading
    go, stopped = threading.Event(), []
    def work(n):
        if n == 'a': raise ValueError('a')
        go.wait(20)
    with pytest.raises(ValueError): schedule(infos(a=dict(), b=dict()), work, 2, {}, lambda: (stopped.append(1), go.set()))
    assert stopped


def test_a_busy_machine_is_said_before_a_chapter_measures_time(folder, tmp_path, monkeypatch):
    import genai_playbook.runner as runner
    said = []
    class Seen(Progress):
        def note(self, text): said.append(text)
    monkeypatch.setattr(runner, '_busy', lambda: .8)
    nbs = folder(**{'01_timed': notebook(chapter='timed', exclusive=True), '02_other': notebook(chapter='other')})
    run('demo', out=tmp_path/'evidence', notebooks=nbs, effort='quick', progress=Seen())
    assert len(said) == 1 and '80%' in said[0] and 'timed' in said[0]


def test_a_run_is_an_object(folder, tmp_path):
    import pandas as pd
    nbs = folder(**{'01_good': notebook(GATE.format(code='SUC91', value=1.), chapter='good')})
    ev = run('demo', out=tmp_path/'evidence', notebooks=nbs, effort='quick')
    assert ev.decision.verdict == ev['decision']['verdict'] and ev.folder == Path(ev['folder'])
    assert isinstance(ev.gates, pd.DataFrame) and ev.gates.loc['SUC91', 'verdict'] == 'PASS' and ev.chapters.loc['good', 'status'] == 'done'
    assert ev['environment']['kernels'] == 'forked' and ev['environment']['threads']['good'] >= 1
    assert 'partial' not in repr(ev) and 'text/html' in ev._repr_mimebundle_()


def test_a_run_goes_on_after_a_broken_chapter_and_leaves_a_whole_folder(folder, tmp_path):
    nbs = folder(**{'01_good': notebook(GATE.format(code='SUC91', value=1.), chapter='good'), '02_bad': notebook(GATE.format(code='LAT91', value=1.), '1/0', chapter='bad'),
                    '03_ugly': notebook(GATE.format(code='BIA91', value=.2), chapter='ugly')})
    events = []

    class Seen(Progress):
        def end(self, chapter, gates): events.append((chapter.name, chapter.status, [g.code for g in gates]))
    ev = run('demo', out=tmp_path/'evidence', notebooks=nbs, progress=Seen(), effort='quick', jobs=1)
    assert events == [('good', 'done', ['SUC91']), ('bad', 'broke', []), ('ugly', 'done', ['BIA91'])]
    assert ev['decision']['verdict'] == 'NO-GO' and ev['decision']['exit_code'] == 1   # a hard failure outranks the broken chapter
    out = Path(ev['folder'])
    names = {p.name for p in out.iterdir()}
    assert {'01_good.ipynb', '01_good.html', '02_bad.ipynb', '02_bad.html', 'index.html', 'evidence.json', 'junit.xml', 'summary.md', 'model_card.md', 'manifest.json', 'state.json'} <= names
    assert 'ZeroDivisionError' in (out/'02_bad.html').read_text()
    assert json.loads((out/'evidence.json').read_text())['decision'] == ev['decision']
    assert {g.code for g in gather(out)[0]} == {'SUC91', 'LAT91', 'BIA91'}


def test_a_gate_recorded_twice_breaks_its_chapter(folder, tmp_path):
    nbs = folder(**{'01_twice': notebook(GATE.format(code='SUC91', value=1.), GATE.format(code='SUC91', value=0.), chapter='twice')})
    ev = run('demo', out=tmp_path/'evidence', notebooks=nbs, effort='quick')
    assert ev['chapters'][0]['status'] == 'broke' and 'twice' in ev['chapters'][0]['error']
    assert ev['decision']['exit_code'] == 4


def test_chosen_chapters_make_a_partial_run(folder, tmp_path):
    nbs = folder(**{'01_good': notebook(GATE.format(code='SUC91', value=1.), chapter='good'), '02_other': notebook(chapter='other')})
    ev = run('demo', chapters=['good'], out=tmp_path/'evidence', notebooks=nbs, effort='quick')
    assert ev['partial'] and ev['decision']['exit_code'] == 3 and 'partial' in ev['decision']['headline']


@pytest.mark.parametrize('kw, said', [(dict(chapters=['god']), 'did you mean `good`'), (dict(params={'good': {'rat': 1.}}), 'did you mean `rate`'), (dict(effort='huge'), 'quick or full'),
                                      (dict(params={'nope': {}}), 'no chapter `nope`'), (dict(params={'good': {'poc': 'x'}}), 'set by the runner')])
def test_a_bad_request_is_refused_before_anything_runs(folder, tmp_path, kw, said):
    nbs = folder(**{'01_good': notebook(chapter='good')})
    with pytest.raises(PlaybookError, match=said): run('demo', out=tmp_path/'evidence', notebooks=nbs, **kw)
    assert not (tmp_path/'evidence').exists()


def test_an_output_folder_that_cannot_be_written_is_said_in_one_sentence(folder, tmp_path):
    nbs = folder(**{'01_good': notebook(chapter='good')})
    (tmp_path/'file').write_text('not a folder')
    with pytest.raises(PlaybookError, match='Cannot write to .*--out'): run('demo', out=tmp_path/'file', notebooks=nbs)


def test_a_remote_address_without_its_extra_keeps_the_run_and_says_what_to_do(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    nbs = folder(**{'01_good': notebook(chapter='good')})
    with pytest.raises(PlaybookError, match='Cannot write nowhere://'): run('demo', out='nowhere://bucket/x', notebooks=nbs, effort='quick')
    assert newest_run('demo', tmp_path/'evidence', finished=True)


def test_resume_keeps_what_is_valid_after_kill_9(folder, tmp_path):
    stamp = tmp_path/'stamps'
    mark = f'open({str(stamp)!r}, "a").write(poc and "{{}}\\n")'
    nbs = folder(**{'01_one': notebook(mark.format('one'), chapter='one'), '02_two': notebook(mark.format('two'), 'import time, os\nwhile not os.path.exists(' + repr(str(tmp_path/'go')) + '): time.sleep(.1)', chapter='two')})
    out = tmp_path/'evidence'
    code = f'from pathlib import Path; from genai_playbook.runner import run; run("demo", out={str(out)!r}, notebooks=Path({str(nbs)!r}), effort="quick", jobs=1)'
    p = subprocess.Popen([sys.executable, '-c', code], start_new_session=True)
    try:
        for _ in range(1200):
            if stamp.exists() and 'two' in stamp.read_text(): break
            assert p.poll() is None
            time.sleep(.1)
    finally: os.killpg(p.pid, signal.SIGKILL)
    p.wait()
    cut = newest_run('demo', out)
    assert (cut.finished, cut.chapter('one').status, cut.chapter('two').status) == ('', 'done', 'not run')
    assert json.loads((cut.folder/'01_one.ipynb').read_text()) and not (cut.folder/'02_two.ipynb').exists()
    (tmp_path/'go').touch()
    ev = run('demo', out=out, notebooks=nbs, effort='quick', resume=True)
    assert Path(ev['folder']) == cut.folder
    assert stamp.read_text().split() == ['one', 'two', 'two']   # the finished one was not run again
    assert load_run(cut.folder).finished


@pytest.mark.parametrize('text', ['', '{', '[]', '{"folder": null}', '\x00\x01'])
def test_a_folder_that_is_no_run_is_said_in_one_sentence(tmp_path, text):
    (tmp_path/'state.json').write_text(text)
    with pytest.raises(PlaybookError, match='is not a run folder'): load_run(tmp_path)


def test_the_playbooks_own_chapters_are_well_formed():
    infos = find_chapters()
    assert list(infos)[0] == 'success' and list(infos)[-1] == 'decision'
    for c in infos.values():
        ps = notebook_parameters(json.loads(c.path.read_text()), c.path.name)
        assert {'poc', 'effort'} <= set(ps) and all(p.help for p in ps.values()), c.name
        assert c.question.endswith('?'), c.name


def test_exempt_chapters_do_not_run(folder, tmp_path):
    from types import SimpleNamespace
    nbs = folder(**{'01_good': notebook(chapter='good'), '02_other': notebook(chapter='other')})
    infos, _ = plan(SimpleNamespace(path='x', name='x', bundled=False, exempt=lambda: {'other'}), folder=nbs)
    assert list(infos) == ['good']
