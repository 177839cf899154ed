"""Whatever is killed, full or out of memory: finished chapters stay whole, `--resume` repeats nothing that is valid, and nothing is left running

`make test` kills a few times, the scheduled workflow fifty times."""
import json
import os
import random
import signal
import subprocess
import sys
import time

import nbformat
import psutil
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from genai_playbook.chapters import find_chapters
from genai_playbook.errors import PlaybookError
from genai_playbook.runner import load_run, newest_run, run

pytestmark = pytest.mark.skipif(sys.platform != 'linux', reason='signals and /proc')
PARAMS = 'poc: str = "demo"  # the card\neffort: str = "quick"  # how much'
PAUSE = 'import time; [time.sleep(.02) for _ in range(5)];'


def chapters(folder, marks, n=5, **cells):
    "n short chapters that each note down when they ran, the last one after all others; `cells` replaces the code of some"
    folder.mkdir(exist_ok=True)
    for i in range(1, n+1):
        name = f'c{i}'
        code = cells.get(name) or [PAUSE, f'open({str(marks)!r}, "a").write("{name}\\n");', PAUSE]
        nb = new_notebook(cells=[new_markdown_cell(f'# Chapter {i}\n\n> Is it {i}?'), new_code_cell(PARAMS, metadata={'tags': ['parameters']}), *map(new_code_cell, code)])
        nb.metadata.update(kernelspec=dict(name='python3', display_name='Python 3', language='python'), genai_playbook=dict(chapter=name, needs=['all'] if i == n else []))
        for k, c in enumerate(nb.cells): c['id'] = f'{name}-{k}'
        nbformat.write(nb, folder/f'{i:02}_{name}.ipynb')
    find_chapters.cache_clear()
    return folder


@pytest.fixture
def few(tmp_path, monkeypatch):
    "Five chapters, and a card beside them whose model loads nothing"
    monkeypatch.setenv('GENAI_PLAYBOOK_PRELOAD', 'ipykernel.kernelapp')  # kernels that compute nothing need no torch
    (tmp_path/'answers.py').write_text('def echo(prompt): return prompt\n')
    (tmp_path/'rows.csv').write_text('id,prompt,reference\n1,hello,hello\n')
    (tmp_path/'poc.yaml').write_text('poc: mine\noutcome: {promise: answers}\nmodel: {kind: python, target: "answers:echo"}\ndata: {evaluation: rows.csv, columns: {prompt: prompt, reference: reference}}\n')
    yield chapters(tmp_path/'nbs', tmp_path/'marks')
    find_chapters.cache_clear()


def start(nbs, out, resume=False):
    "The runner as a process of its own"
    code = f'from pathlib import Path; from genai_playbook.runner import run; run({str(nbs.parent/"poc.yaml")!r}, out={str(out)!r}, notebooks=Path({str(nbs)!r}), effort="quick", resume={resume}, jobs=2)'
    return subprocess.Popen([sys.executable, '-c', code], start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def family(pid):
    "The runner's descendants; kernels and what they are forked from have sessions of their own"
    try: return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess: return []


def ended(processes, seconds=20):
    alive = lambda p: p.is_running() and p.status() != psutil.STATUS_ZOMBIE
    for _ in range(seconds*10):
        try:
            if not any(map(alive, processes)): return True
        except psutil.NoSuchProcess: continue
        time.sleep(.1)


def whole(folder):
    "Every file that is not work in progress can be read to its end, and every finished chapter is there"
    for p in folder.glob('*.json'): json.loads(p.read_text())
    for p in folder.glob('*.ipynb'): nbformat.validate(nbformat.read(p, 4))
    for p in folder.glob('*.html'): assert p.read_text().rstrip().endswith('</html>')
    state = load_run(folder)
    for c in state.chapters:
        if c.status == 'done': assert (folder/c.notebook).exists() and (folder/c.html).exists()
    return {c.name for c in state.chapters if c.status == 'done'}


def kill_one(process, who, seen):
    "`kill -9` of the runner, of what kernels are forked from, or of a kernel"
    seen += family(process.pid)
    nursery = [p for p in family(process.pid) if p.ppid() == process.pid]
    kernels = [p for p in family(process.pid) if p.ppid() != process.pid]
    targets = dict(runner=[psutil.Process(process.pid)], nursery=nursery, kernel=kernels)[who]
    for p in targets[:1]:
        try: p.kill()
        except psutil.NoSuchProcess: pass


def crash(nbs, tmp_path, after, who):
    "Kill once, resume, and look"
    out, marks, seen = tmp_path/'evidence', tmp_path/'marks', []
    p = start(nbs, out)
    for _ in range(1200):  # imports done, the run has begun
        if list(out.glob('mine/*/state.json')) or p.poll() is not None: break
        time.sleep(.05)
    time.sleep(after)
    if p.poll() is None: kill_one(p, who, seen)
    try: p.communicate(timeout=120)
    finally: p.kill()
    assert ended(seen), (who, after)
    folder = newest_run('mine', out).folder
    kept, ran = whole(folder), marks.read_text().split() if marks.exists() else []
    for c in load_run(folder).chapters:
        if c.status == 'broke': assert 'kernel' in c.error and ('died' in c.error or 'did not start' in c.error), c.error
    if len(kept) < 5: kept.discard('c5')  # it looks at all the others
    was_whole = newest_run('mine', out).whole
    q = start(nbs, out, resume=True)
    err = q.communicate(timeout=240)[1]
    assert q.returncode == 0, err
    again = (marks.read_text().split() if marks.exists() else [])[len(ran):]
    if not was_whole:
        assert newest_run('mine', out).folder == folder and not set(again) & kept, (who, after, kept, again)
        assert whole(folder) == {'c1', 'c2', 'c3', 'c4', 'c5'} and load_run(folder).whole
    assert not [p for p in folder.rglob('*') if p.name.startswith('.') and p.name != '.lock']
    assert json.loads((folder/'evidence.json').read_text())['chapters']


@pytest.mark.parametrize('seed', range(4))
def test_kill_9_at_any_moment(few, tmp_path, seed):
    r = random.Random(seed)
    crash(few, tmp_path, r.uniform(0, 4), ('runner', 'kernel', 'nursery')[seed % 3])


@pytest.mark.slow
@pytest.mark.parametrize('seed', range(100, 150))
def test_kill_9_at_fifty_moments(few, tmp_path, seed):
    r = random.Random(seed)
    crash(few, tmp_path, r.uniform(0, 5), r.choice(('runner', 'kernel', 'nursery')))


def test_a_run_that_was_killed_while_its_report_was_written_only_writes_it_again(few, tmp_path, monkeypatch):
    import genai_playbook.report as report
    monkeypatch.setattr(report, 'index_html', lambda *a: os._exit(9))
    pid = os.fork()
    if not pid:
        try: run(tmp_path/'poc.yaml', out=tmp_path/'evidence', notebooks=few)
        finally: os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
    monkeypatch.undo()
    cut = newest_run('mine', tmp_path/'evidence')
    assert cut.finished and not cut.ended and len(whole(cut.folder)) == 5
    ran = (tmp_path/'marks').read_text()
    ev = run(tmp_path/'poc.yaml', out=tmp_path/'evidence', notebooks=few, resume=True)
    assert ev.folder == cut.folder and (tmp_path/'marks').read_text() == ran and load_run(cut.folder).whole


def test_only_what_changed_is_run_again(few, tmp_path):
    go = lambda **kw: run(tmp_path/'poc.yaml', out=tmp_path/'evidence', notebooks=few, **kw)
    marks = lambda: sorted((tmp_path/'marks').read_text().split())
    ev = go()
    (ev.folder/'manifest.json').unlink()                         # as if it had been cut off
    find_chapters.cache_clear()
    path = few/'02_c2.ipynb'
    path.write_text(path.read_text().replace('Is it 2?', 'Is it two?'))   # another notebook: it, and the chapter that needs it
    with open(ev.folder/'03_c3.ipynb', 'a') as f: f.write(' ')    # a result that somebody edited
    go(resume=True)
    assert marks() == sorted(['c1', 'c4', *2*['c2', 'c3', 'c5']])
    (ev.folder/'manifest.json').unlink()
    (tmp_path/'rows.csv').write_text('id,prompt,reference\n1,bye,bye\n')   # other data: everything
    go(resume=True)
    assert marks() == sorted([*2*['c1', 'c4'], *3*['c2', 'c3', 'c5']])


@pytest.mark.parametrize('cell, timeout, says', [
    ('raise MemoryError("cannot allocate 8 GiB")', 60, 'MemoryError: cannot allocate'),
    ('import resource; resource.setrlimit(resource.RLIMIT_AS, (2**31, 2**31)); bytearray(2**34)', 60, 'MemoryError'),
    ('import os, signal; os.kill(os.getpid(), signal.SIGKILL)', 60, 'died by SIGKILL; somebody ended it, or the memory ran out'),
    ('import ctypes; ctypes.string_at(0)', 60, 'died by SIGSEGV in native code'),
    ('import os; os._exit(3)', 60, 'died with exit code 3'),
    ('import time; time.sleep(600)', 2, 'took longer than 2 s'),
    ('import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)', 2, 'took longer than 2 s'),
    ('1/0', 60, 'ZeroDivisionError')])
def test_a_broken_chapter_says_why_and_the_others_go_on(few, tmp_path, cell, timeout, says):
    chapters(few, tmp_path/'marks', 3, c1=[cell])
    for name in ('04_c4', '05_c5'): (few/f'{name}.ipynb').unlink()
    ev = run(tmp_path/'poc.yaml', out=tmp_path/'evidence', notebooks=few, timeout=timeout)
    assert says in ev.chapters.error['c1'] and list(ev.chapters.status) == [ev.chapters.status['c1'], 'done', 'done']
    assert ev.chapters.status['c1'] in ('broke', 'timed out') and whole(ev.folder) == {'c2', 'c3'}
    chapters(few, tmp_path/'marks', 3)
    assert run(tmp_path/'poc.yaml', out=tmp_path/'evidence', notebooks=few, resume=True).folder == ev.folder
    assert sorted((tmp_path/'marks').read_text().split()) == ['c1', 'c2', 'c3', 'c3']


def test_the_kernel_that_the_system_killed_for_want_of_memory_says_so(monkeypatch):
    from types import SimpleNamespace
    import genai_playbook.executing as executing
    kernel = lambda code: [SimpleNamespace(process=SimpleNamespace(poll=lambda: code))]
    monkeypatch.setattr(executing, '_oom_kills', lambda: 4)
    assert 'want of memory' in executing._why_dead(kernel(-9), 3)
    assert 'somebody ended it' in executing._why_dead(kernel(-9), 4) and 'SIGSEGV' in executing._why_dead(kernel(-11), 3)


def test_ctrl_c_ends_at_once_and_keeps_what_is_finished(few, tmp_path):
    chapters(few, tmp_path/'marks', 5, c2=['import time; time.sleep(600)'])
    p = start(few, tmp_path/'evidence')
    for _ in range(1200):
        if (tmp_path/'marks').exists() and len((tmp_path/'marks').read_text().split()) == 3: break
        assert p.poll() is None
        time.sleep(.1)
    seen = family(p.pid)
    p.send_signal(signal.SIGINT)
    assert 'KeyboardInterrupt' in p.communicate(timeout=60)[1] and ended(seen)
    cut = newest_run('mine', tmp_path/'evidence')
    assert not cut.ended and cut.chapter('c2').status == 'not run' and whole(cut.folder) >= {'c1', 'c3'}


def test_a_full_disk_is_one_sentence_and_nothing_is_half_written(few, tmp_path, monkeypatch):
    import errno
    import genai_playbook.report as report
    real, left = report.write_whole, iter(range(4))
    def full(path, data):
        if next(left, None) is None: raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return real(path, data)
    monkeypatch.setattr(report, 'write_whole', full)
    with pytest.raises(PlaybookError, match='No space left.*--resume'): run(tmp_path/'poc.yaml', out=tmp_path/'evidence', notebooks=few, jobs=1)
    monkeypatch.undo()
    folder = newest_run('mine', tmp_path/'evidence').folder
    kept = whole(folder)
    ev = run(tmp_path/'poc.yaml', out=tmp_path/'evidence', notebooks=few, resume=True)
    assert ev.folder == folder and kept and load_run(folder).whole
    assert len((tmp_path/'marks').read_text().split()) <= 6       # at most the one that could not be written ran twice


def test_a_file_that_may_not_grow_stops_the_run_and_not_the_evidence(few, tmp_path):
    big = ['print("x"*3_000_000)']
    chapters(few, tmp_path/'marks', 3, c2=big)
    code = f'''import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from pathlib import Path; from genai_playbook.runner import run
from genai_playbook.errors import PlaybookError
resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))
try: run({str(tmp_path/"poc.yaml")!r}, out={str(tmp_path/"evidence")!r}, notebooks=Path({str(few)!r}), jobs=1)
except PlaybookError as e: print(e)'''
    said = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert 'File too large' in said.stdout and '--resume' in said.stdout, said.stdout + said.stderr
    whole(newest_run('mine', tmp_path/'evidence').folder)


@pytest.mark.skipif(os.geteuid() == 0, reason='root may write everywhere')
def test_a_folder_that_is_read_only(few, tmp_path):
    (tmp_path/'evidence').mkdir(mode=0o500)
    with pytest.raises(PlaybookError, match='Permission denied.*--out'): run(tmp_path/'poc.yaml', out=tmp_path/'evidence', notebooks=few)


def test_a_file_system_that_turns_read_only(few, tmp_path, monkeypatch):
    import errno
    from pathlib import Path
    def refuse(self, *a, **kw): raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(self))
    monkeypatch.setattr(Path, 'mkdir', refuse)
    with pytest.raises(PlaybookError, match='Read-only file system.*--out'): run(tmp_path/'poc.yaml', out=tmp_path/'evidence', notebooks=few)


def test_two_runs_never_write_into_one_folder(few, tmp_path):
    from genai_playbook.runner import _held
    (tmp_path/'f').mkdir()
    with _held(tmp_path/'f'), pytest.raises(PlaybookError, match='another run'):
        with _held(tmp_path/'f'): pass


@pytest.mark.slow
def test_two_hundred_kernels_start_side_by_side(tmp_path):
    from concurrent.futures import ThreadPoolExecutor
    from genai_playbook.executing import execute_chapter
    few = chapters(tmp_path/'nbs', tmp_path/'marks', 1)
    (tmp_path/'out').mkdir()
    with ThreadPoolExecutor(200) as pool:
        said = list(pool.map(lambda i: execute_chapter(few/'01_c1.ipynb', tmp_path/f'out/{i}.ipynb', dict(poc='demo', effort='quick'), 600), range(200)))
    assert said == 200*[('done', '')] and len(list((tmp_path/'out').glob('*.ipynb'))) == 200
