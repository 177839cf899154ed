"What a run shows: an estimate that says when it knows nothing, a line for each event in a log, JSON for programs"
import io
import json
from types import SimpleNamespace

from rich.console import Console

from genai_playbook.runner import ChapterRun, Run
from genai_playbook.screen import Estimated, JsonProgress, QuietProgress, ScreenProgress, print_matrix

NAMES = ('a', 'b', 'c')


def a_run(**status): return Run('evidence/mine/1', 'mine', 'poc.yaml', 'full', chapters=[ChapterRun(n, n.upper(), status=status.get(n, 'not run')) for n in NAMES])


def play(progress, tick=lambda s: None):
    "One chapter passes, one breaks, one has not begun"
    run = a_run()
    progress.expect(dict(a=10., b=20., c=30.), 2)
    progress.start(run)
    for name, status, error in (('a', 'done', ''), ('b', 'broke', 'its kernel died')):
        c = run.chapter(name)
        progress.chapter(c)
        tick(4)
        progress.cell(c, 1, 2)
        progress.gate(c, dict(code='SUC01', verdict='PASS', value=1., low=.9, high=1., n=30))
        c.status, c.error, c.seconds = status, error, 4.
        progress.end(c, [SimpleNamespace(code='SUC01', verdict='PASS')])
    progress.note('the disk is nearly full')


def test_what_is_left_is_what_earlier_runs_took_less_what_has_run():
    now = [0.]
    e = Estimated(lambda: now[0])
    e.expect(dict(a=10., b=20., c=30.), 2)
    e.start(a_run())
    assert e.left == 30 and e.times() == '0:00, about 0:30 left'
    e.chapter(ChapterRun('c', ''))
    now[0] = 25.
    assert (e.elapsed, e.left) == (25, 20)
    now[0] = 99.        # slower than ever before: never negative
    e.end(ChapterRun('a', ''), [])
    e.end(ChapterRun('b', ''), [])
    assert e.left == 0
    e.expect(dict(a=1.), 2)
    assert e.left is None and 'left' not in e.times()


def test_a_log_has_one_line_for_each_event():
    out = io.StringIO()
    with ScreenProgress(Console(file=out, width=160)) as p: play(p)
    lines = out.getvalue().splitlines()
    assert len(lines) == 1+3*2+1 and 'about 0:30 by earlier runs' in lines[0]
    assert 'a: started, about 10 s' in lines[1] and 'a: ✓ SUC01 PASS' in lines[2] and 'its kernel died' in lines[6] and 'nearly full' in lines[7]


def test_a_terminal_has_bars_with_cells_and_verdicts():
    out = io.StringIO()
    with ScreenProgress(Console(file=out, width=160, force_terminal=True)) as p:
        p.start(a_run())
        p.chapter(ChapterRun('a', ''))
        p.cell(ChapterRun('a', ''), 1, 2)
        p.gate(ChapterRun('a', ''), dict(code='SUC01', verdict='PASS'))
        p.bars.refresh()
    assert all(s in out.getvalue() for s in ('1/2', 'SUC01', 'chapters to go'))


def test_json_is_one_object_a_line():
    out = io.StringIO()
    with JsonProgress(out) as p:
        play(p)
        p.say('decision', verdict='GO')
    events = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [e['event'] for e in events] == ['start', *2*['chapter', 'cell', 'gate', 'end'], 'note', 'decision']
    assert events[3]['verdict'] == 'PASS' and events[8]['error'] == 'its kernel died' and all('elapsed' in e and 'left' in e for e in events)


def test_quiet_says_only_what_went_wrong():
    out = io.StringIO()
    with QuietProgress(Console(file=out, width=160)) as p: play(p)
    assert out.getvalue().splitlines() == ['b broke: its kernel died', 'the disk is nearly full']


def test_a_matrix_ends_in_its_worst():
    ev = lambda code, verdict: dict(decision=dict(exit_code=code, verdict=verdict), gates=[dict(code='SUC01', hard=True, verdict='FAIL')], folder='x')
    out = io.StringIO()
    console = Console(file=out, width=160)
    assert print_matrix({('a', 'a'): ev(0, 'GO'), ('a', 'b'): ev(3, 'INSUFFICIENT EVIDENCE')}, console) == 3
    assert print_matrix({('a', 'a'): ev(4, 'INSUFFICIENT EVIDENCE'), ('a', 'b'): ev(1, 'NO-GO')}, console) == 1
    assert 'NO-GO' in out.getvalue() and 'SUC01' in out.getvalue()
