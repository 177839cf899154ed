"The views at the end of the chapters, without a browser: values set in Python, what is shown checked"
import math, re
from dataclasses import replace
from types import SimpleNamespace as ns

import numpy as np
import pandas as pd
import pytest

from genai_playbook import bias_explore, exploring, latency_explore, load_explore, robustness_explore, rollback, security_explore, success_explore, trust_explore
from genai_playbook.canary import Judgement
from genai_playbook.capacity import Replica
from genai_playbook.drill import Asked, DrillRun
from genai_playbook.errors import PlaybookError
from genai_playbook.exploring import MARKS, Control, Debounce, View, contrast, live_session, said, slider
from genai_playbook.groups import largest_gap, outcomes, worst_gap
from genai_playbook.models import PythonModel
from genai_playbook.release_faults import BadRelease
from genai_playbook.stats import Estimate, proportion
from genai_playbook.system import System

HOSTILE = '<script>alert(1)</script><img src=x onerror=alert(2)> & "quoted" \u202e\x00'
RATE = proportion([1]*900+[0]*100)

def text_of(html): # what a reader sees
    return re.sub(r'<[^>]*>', ' ', html)

def no_markup_of(html): # nothing of the hostile text became an element
    assert '<script' not in html and '<img' not in html

def answers(n, **more):
    return pd.DataFrame(dict(prompt=[f'Where is parcel {i}?' for i in range(n)], answer=[f'It comes on day {i%7}' for i in range(n)], reference=[f'It comes on day {i%6}' for i in range(n)],
                             solved=[float(i%7==i%6) for i in range(n)], region=['north' if i%3 else 'south' for i in range(n)]) | more)

# every control of every view can be reached and understood

def labelled(view):
    box = view.widget
    assert f'gp-explore-{view.chapter}' in box._dom_classes
    reached = list(box.children[0].children)
    assert reached==list(view.made.values())
    for w in reached:
        assert w.description.strip() and len(w.tooltip)>15, w
    assert len({w.description for w in reached})==len(reached)
    for name,w in view.shown.items(): assert f'gp-{name}' in w._dom_classes
    return view

def test_marks_can_be_read_in_any_theme():
    assert min(contrast(*m) for m in MARKS.values())>=4.5
    assert contrast('#777777', '#ffffff')<4.5<contrast('#767676', '#ffffff')

def test_nobody_is_there_in_a_test(): assert not live_session()

def test_a_kernel_that_may_ask_is_live(monkeypatch):
    import IPython
    monkeypatch.delenv('IN_TEST', raising=False)
    shell = type('Shell', (), dict(kernel=type('Kernel', (), dict(_allow_stdin=True))()))()
    monkeypatch.setattr(IPython, 'get_ipython', lambda: shell)
    assert live_session()
    shell.kernel._allow_stdin = False
    assert not live_session()
    shell.kernel._allow_stdin = True
    monkeypatch.setenv('IN_TEST', '1')
    assert not live_session()

def displayed(monkeypatch, view, live):
    import IPython.display as d
    out = []
    monkeypatch.setattr(exploring, 'live_session', lambda: live)
    monkeypatch.setattr(d, 'display', lambda x, **kw: out.append(x))
    view._ipython_display_()
    return out

def test_without_a_reader_nothing_is_built(monkeypatch):
    view = success_explore.explore(RATE, .9, answers(20))
    monkeypatch.setattr(Control, 'widget', lambda self: pytest.fail('a widget was built'))
    [out] = displayed(monkeypatch, view, False)
    assert set(out)=={'text/html', 'text/plain'} and 'INSUFFICIENT' in out['text/html'] and 'gp-verdict' not in out['text/html']

def test_with_a_reader_the_picture_stays_beside_the_widget(monkeypatch):
    view = success_explore.explore(RATE, .9, answers(20))
    widget,still = displayed(monkeypatch, view, True)
    assert widget is view.widget and still['text/html'].startswith('<details>')

def test_the_picture_is_of_the_start_and_moves_nothing():
    view = success_explore.explore(RATE, .9)
    view.parts(target=.99)
    assert 'FAIL' not in view.still() and view.values['target']==.99

def test_what_fails_is_one_sentence():
    def boom(x): raise ZeroDivisionError('a private prompt')
    def mend(x): raise PlaybookError(f'give a number, not {HOSTILE}')
    for show,words in ((boom, 'ZeroDivisionError'), (mend, 'give a number')):
        view = View('toy', dict(x=slider('x', 1, 0, 2, 'a number to move about')), show, ('verdict', 'more'))
        parts = view.parts()
        assert words in parts['verdict'] and 'private' not in parts['verdict'] and parts['more']=='' and parts['verdict'].count('. ')==0
        no_markup_of(parts['verdict'])
        assert view.widget.children # building it does not raise

def test_a_burst_is_computed_once_for_the_last():
    import asyncio
    seen = []
    view = View('toy', dict(x=slider('x', 0, 0, 100, 'a number to move about', step=1)), lambda x: seen.append(x) or dict(verdict=str(x)), wait=.01)
    async def drag():
        assert view.widget
        del seen[:]
        for i in range(1, 51): view.made['x'].value = i
        assert seen==[]
        while not seen: await asyncio.sleep(.01)
    asyncio.run(drag())
    assert seen==[50]

def test_without_a_loop_it_is_at_once():
    seen = []
    late = Debounce(lambda: seen.append(1), 60)
    late(); late()
    assert seen==[1, 1]

@pytest.mark.parametrize('value, start', [(math.nan, 1.), (0., 1.), (math.inf, 1e5), (5e6, 5e6), (500., 500.)])
def test_a_range_over_orders_of_magnitude_holds_its_start(value, start):
    c = exploring.log_slider('x', value, 1, 1e5, 'a number to move about')
    assert c.value==start and c.widget().value==pytest.approx(start) and c.still()

@pytest.mark.parametrize('value', [math.nan, -5., 7.])
def test_a_range_holds_its_start(value):
    c = slider('x', value, 0, 1, 'a number to move about')
    assert c.widget().value==c.value and c.still()

@pytest.mark.parametrize('x, shown', [(None, '(none)'), (math.nan, '(none)'), (pd.NA, '(none)'), ('nan', 'nan'), ('', '(blank)'), (3, '3'), ('x'*9000, '9,000 characters')])
def test_any_cell_is_text(x, shown): assert shown in said(x)

# chapter 01

def test_success_slider_moves_the_verdict():
    view = labelled(success_explore.explore(RATE, .95, answers(50), ['region']))
    assert 'gp-threshold' in view.made['target']._dom_classes
    shown = {}
    for t in (.85, .9, .95):
        view.made['target'].value = t
        shown[t] = text_of(view.shown['verdict'].value)
    assert [next(v for v in ('PASS', 'FAIL', 'INSUFFICIENT') if v in shown[t]) for t in shown]==['PASS', 'INSUFFICIENT', 'FAIL']

def test_chance_of_go_is_exact():
    from scipy.stats import binom
    for n,t,p in ((1, .5, .4), (29, .9, .85), (59, .95, .95), (1000, .9, .89), (10_000, .999, .998)):
        k = success_explore.fewest_right(n, t)
        assert success_explore.chance_of_go(p, n, t)==pytest.approx(binom.sf(k-1, n, p), abs=1e-12)
        assert success_explore.chance_of_go(t, n, t)<=.05+1e-12

def test_success_rows_move_the_chance():
    view = success_explore.explore(RATE, .9)
    shown = [text_of(view.parts(n=n, truth=.88)['chance']) for n in (20, 200, 5000)]
    assert 'cannot show' in shown[0] and len(set(shown))==3 and 'false GO' in shown[1]
    assert 'deserved' in view.parts(truth=.95)['chance']

def test_success_filters_sorts_and_pages():
    view = success_explore.explore(RATE, .9, answers(100), ['region'])
    count = lambda **k: int(re.search(r'([\d,]+) of 100 answers', view.parts(**k)['answers'])[1])
    assert count(state='all')==100 and count(text='PARCEL 7?')==1 and count(text='', part='region: south')==34
    assert count(part='all', state='no score')==0
    view.parts(state='all', page=99)
    assert 'page 13 of 13' in view.parts()['answers']
    assert view.parts(page=1, order='furthest from the reference')['answers']!=view.parts(order='nearest to it')['answers']

@pytest.mark.parametrize('rows', [answers(0), answers(1), answers(2, solved=pd.array([1, None], dtype='Int64'), answer=pd.array(['x', None], dtype='string')), answers(3, solved=[math.nan]*3, answer=[None]*3, reference=[math.nan]*3), pd.DataFrame(dict(prompt=['x'], answer=['y']))])
def test_success_thin_data(rows):
    view = labelled(success_explore.explore(proportion(rows['solved'] if 'solved' in rows else []), .9, rows, ['region'] if 'region' in rows else []))
    assert view.still() and 'could not' not in view.still()

def test_success_hostile_text():
    rows = answers(3, prompt=[HOSTILE]*3, answer=[HOSTILE, 'fine', None], reference=['fine', HOSTILE, HOSTILE], region=[HOSTILE]*3)
    view = labelled(success_explore.explore(RATE, .9, rows, ['region']))
    for state in ('all', 'solved', 'not solved'): no_markup_of(view.parts(state=state, text='<script>')['answers'])
    no_markup_of(view.still())
    assert 'alert(1)' in view.parts(state='all')['answers']

def test_success_large_data_costs_a_page(monkeypatch):
    view = success_explore.explore(RATE, .9, answers(10_000), ['region'])
    work = dict(diff=0, sort=0, score=0)
    def counted(name, f): return lambda *a, **k: (work.update({name: work[name]+1}), f(*a, **k))[1]
    monkeypatch.setattr(success_explore, "diff_html", counted("diff", success_explore.diff_html))
    monkeypatch.setattr(success_explore.np, 'argsort', counted('sort', success_explore.np.argsort))
    monkeypatch.setattr(success_explore, 'token_f1', counted('score', success_explore.token_f1))
    for change in (dict(target=.8), dict(n=500), dict(text='parcel 99'), dict(order='longest answer'), dict(part='region: south')): view.parts(**change)
    assert work==dict(diff=5*8, sort=0, score=0)

def test_an_estimate_of_nothing_is_insufficient():
    nothing = Estimate(math.nan, math.nan, math.nan, 0, 'not measured', enough=False, note=HOSTILE)
    view = success_explore.explore(nothing, .9)
    assert 'INSUFFICIENT' in view.still()
    no_markup_of(view.still())

# chapter 02

TIMES = [.05+.001*(i%100) for i in range(300)]

def latency(times=TIMES, limit=500., rate=2.):
    from genai_playbook.timing import quantile
    return latency_explore.explore(quantile([1e3*t for t in times]), limit, times, rate)

def test_latency_slider_moves_verdict_and_share():
    view = labelled(latency())
    seen = []
    for ms in (100., 140., 500.):
        view.made['target'].value = ms
        seen.append((text_of(view.shown['verdict'].value), float(re.search(r'([\d.]+)\s%\sof the requests', text_of(view.shown['line'].value))[1])))
    assert 'FAIL' in seen[0][0] and 'PASS' in seen[2][0]
    assert seen[0][1]<seen[1][1]<seen[2][1]

def test_latency_more_traffic_waits_longer_and_more_replicas_less():
    line = latency_explore.Line(TIMES)
    p95 = lambda rate, k: line.at(rate, k)[int(.95*9000)]
    assert p95(1, 1)<p95(5, 1)<p95(9, 1) and p95(9, 4)<p95(9, 2)<p95(9, 1)
    assert 'grows for ever' in latency().parts(rate=10.5)['line'] and 'grows for ever' not in latency().parts(rate=10.5, replicas=2)['line']

def test_latency_line_agrees_with_pollaczek_and_khinchine():
    from genai_playbook.capacity import pollaczek_khinchine
    import numpy as np
    line = latency_explore.Line(TIMES, n=60_000)
    mean,cv = line.alone.mean(), line.alone.std()/line.alone.mean()
    assert line.at(5, 1).mean()-mean==pytest.approx(pollaczek_khinchine(5, mean, cv), rel=.1)
    assert np.all(np.diff(line.at(5, 1))>=0)

@pytest.mark.parametrize('times', [[], [.1], [math.nan]*5, [math.nan, .2, math.inf], [0.]*5])
def test_latency_thin_data(times):
    view = labelled(latency(times))
    assert 'could not' not in view.still() and 'INSUFFICIENT' in view.still()

def test_latency_ten_thousand_calls_cost_one_pass(monkeypatch):
    view = latency(TIMES*34, rate=5.)
    passes = []
    kept = latency_explore.in_line
    monkeypatch.setattr(latency_explore, 'in_line', lambda *a: (passes.append(len(a[0])), kept(*a))[1])
    view.parts(target=120.)
    assert passes==[10_000]

# chapter 03

def load(replica=None, low=90., **k):
    return load_explore.explore(Estimate(100, low, 110, 500, 'search'), replica, **dict(traffic=60., headroom=.3, latency=.5, ttft=math.inf, share=.95) | k)

ONE = Replica(.02, .005, batch=4)

def test_load_moves_with_rate_replicas_and_limit():
    view = labelled(load(ONE))
    def kept(**k):
        for name,v in k.items(): view.made[name].value = v
        return '✓' in view.shown['verdict'].value
    assert kept() and not kept(rate=300.) and kept(replicas=4) and not kept(target=20.)
    assert 'No number of replicas' in view.shown['needs'].value

def test_load_keeps_what_the_plan_needs():
    view = load(ONE)
    for rate in (50., 150., 400.):
        need = int(re.search(r'<strong>(\d+)</strong> replica', view.parts(rate=rate, replicas=1, headroom=0.)['needs'])[1])
        assert '✓' in view.parts(replicas=need+1)['verdict'] and (need==1 or '✗' in view.parts(replicas=max(1, need-1))['verdict'])

def test_load_without_a_simulation_divides():
    view = labelled(load())
    assert set(view.controls)=={'rate', 'replicas', 'headroom'}
    assert '✓' in view.parts(rate=90.)['verdict'] and '✗' in view.parts(rate=91.)['verdict'] and '✓' in view.parts(replicas=2)['verdict']
    assert 'nothing can be planned' in load(low=0.).still()

def test_load_unbounded_levels_and_overload():
    view = load(replace(ONE, queue=4), latency=math.inf, traffic=5000.)
    assert 'could not' not in view.still() and 'refused' in view.still()

def test_load_costs_few_simulations(monkeypatch):
    view = load(ONE)
    sent = []
    kept = load_explore.simulate
    monkeypatch.setattr(load_explore, 'simulate', lambda at, *a, **k: (sent.append(len(at)), kept(at, *a, **k))[1])
    view.parts(rate=100.)
    assert sorted(sent)==[1000]*10+[10_000]

# chapter 05

def trust(n=200, explain=None, nan=False, **k):
    rng = np.random.default_rng(0)
    sure = rng.random(n)
    ok = (rng.random(n)<.5+.5*sure)*1.
    return trust_explore.explore(np.full(n, math.nan) if nan else sure, np.full(n, math.nan) if nan else ok, np.arange(n)//2, .8, .1, explain, **k)

def test_trust_slider_moves_share_and_verdict():
    view = labelled(trust(2000))
    seen = {}
    for share in (.05, 1.):
        view.made['share'].value = share
        seen[share] = text_of(view.shown['verdict'].value)
        assert f'{round(2000*share):,} of 2,000 answers go out' in view.shown['curve'].value
    assert 'PASS' in seen[.05] and 'FAIL' in seen[1.]

@pytest.mark.parametrize('n, nan', [(0, False), (1, False), (3, True)])
def test_trust_thin_data(n, nan):
    view = labelled(trust(n, nan=nan))
    for share in (.02, .5, 1.): assert 'could not' not in view.parts(share=share)['verdict']

def test_trust_ties_go_out_together():
    view = trust_explore.explore([.9]*10, [1.]*9+[0.], None, .9, .1)
    assert '10 of 10 answers go out' in view.parts(share=.5)['curve']

def test_trust_model_that_raises_leaves_the_rest():
    def explain(message): raise RuntimeError('private words')
    parts = trust(100, explain).parts()
    assert 'RuntimeError' in parts['answer'] and 'private' not in str(parts) and 'answers go out' in parts['curve']

def test_trust_tokens_are_told_by_more_than_colour():
    html = trust_explore.sure_html(['sure', 'doubtful', HOSTILE], [.999, .4, .1])
    no_markup_of(html)
    assert '<sub>0.40</sub>' in html and '<sub>1.00' not in html and '4px dotted' in html

def test_trust_large_data_sorts_once(monkeypatch):
    view = trust(10_000)
    sorts = []
    kept = trust_explore.np.argsort
    monkeypatch.setattr(trust_explore.np, 'argsort', lambda *a, **k: (sorts.append(1), kept(*a, **k))[1])
    for share in (.1, .5, .9): view.parts(share=share)
    assert not sorts

# chapter 06

def groups(n=600, names=('north', 'south', 'west'), clusters=True):
    g = pd.Series([names[i%len(names)] for i in range(n)], dtype=object)
    got = np.array([float(i%len(names)!=1 or i%7<3) for i in range(n)])
    out = outcomes(np.ones(n), got, g, np.arange(n)//2 if clusters else None, replicates=500)
    return bias_explore.explore(largest_gap(out, by='region'), .05, dict(region=out))

def test_bias_starts_at_the_worst_pair_and_moves():
    view = labelled(groups())
    assert view.made['b'].value=='region: south' and 'FAIL' in view.shown['pair'].value and 'FAIL' in view.shown['verdict'].value
    view.made['a'].value,view.made['b'].value = 'region: north','region: west'
    assert 'FAIL' not in view.shown['pair'].value and 'FAIL' in view.shown['verdict'].value
    view.made['rate'].value = 'undue favours granted'
    assert 'could not' not in view.shown['pair'].value

@pytest.mark.parametrize('n', [0, 1, 5])
def test_bias_thin_data(n):
    view = labelled(groups(n))
    assert 'INSUFFICIENT' in view.still() and 'could not' not in view.still()

def test_bias_without_groups_or_of_two_kinds():
    assert 'INSUFFICIENT' in bias_explore.explore(worst_gap([]), .05).still()
    a,b = (outcomes(np.ones(100), np.ones(100), pd.Series(['x', 'y']*50), replicates=50) for _ in range(2))
    view = bias_explore.explore(largest_gap(a, by='one'), .05, dict(one=a, two=b))
    assert 'same kind' in view.parts(a='one: x', b='two: y')['pair']

def test_bias_hostile_names_are_text():
    view = labelled(groups(names=(HOSTILE, '<b>x</b>', 'plain')))
    no_markup_of(view.still())
    assert '&lt;b&gt;x' in view.still()

def test_bias_two_groups_are_a_slice_of_the_draws(monkeypatch):
    view = groups(10_000)
    monkeypatch.setattr('genai_playbook.groups.clustered_draws', lambda *a: pytest.fail('drew again'))
    monkeypatch.setattr('genai_playbook.groups._worlds', lambda *a: pytest.fail('drew again'))
    for b in ('region: north', 'region: south', 'region: west'): assert 'could not' not in view.parts(b=b)['pair']

def test_bias_counterfactual_of_hostile_text_and_of_a_model_that_raises():
    versions = {k: HOSTILE+k for k in ('as written', 'swapped', 'control')}
    no_markup_of(bias_explore.sides_html(versions, [HOSTILE, 'x', ''], [True, False, None]))
    def ask(message): raise RuntimeError('private words')
    out = outcomes(np.ones(100), np.ones(100), pd.Series(['x', 'y']*50), replicates=50)
    parts = bias_explore.explore(largest_gap(out, by='g'), .05, dict(g=out), ask).parts()
    assert 'RuntimeError' in parts['swap'] and 'private' not in str(parts) and 'could not' not in parts['verdict']+parts['pair']

# chapter 07

def test_robustness_dial_and_typo():
    asked = []
    view = labelled(robustness_explore.explore(lambda t: asked.append(t) or ('yes' if t=='Where is my parcel?' else HOSTILE)))
    view.made['severity'].value = 0.
    assert '✓' in view.shown['verdict'].value
    view.made['severity'].value = 1.
    assert '✗' in view.shown['verdict'].value
    view.made['typo'].value = 'where is my parcel'
    assert 'typed' in view.shown['verdict'].value
    for c in view.controls['change'].options['options']: no_markup_of(''.join(view.parts(change=c, typo='', message=HOSTILE).values()))
    assert 'Type a message' in view.parts(message='  ')['verdict']

def test_robustness_asks_each_text_once():
    asked = []
    view = robustness_explore.explore(lambda t: asked.append(t) or 'yes')
    for s in (.3, .6, .3, .6): view.parts(severity=s)
    assert len(asked)==len(set(asked))<=3

def test_robustness_model_that_raises_is_one_sentence():
    def ask(t): raise OSError('private words')
    parts = robustness_explore.explore(ask).parts()
    assert 'OSError' in parts['verdict'] and 'private' not in str(parts)

# chapter 08

def attacked_card(answer='A fine day.', guards_in=(), guards_out=(), private=False):
    model = PythonModel(lambda p: answer)
    names = lambda gs: [f'x:{g.__name__}' for g in gs]
    spec = ns(guards=ns(input=names(guards_in), output=names(guards_out)), prompt=ns(system=None), fallbacks=[])
    return ns(spec=spec, data=ns(private=private), folder=None, model=lambda: model, system=lambda: System(model, None, guards_in, guards_out), prompts=lambda df: list(df['prompt']),
              show=lambda t: f'[private, {len(t)} characters]' if private else t)

ROW = pd.Series(dict(id='1', prompt='Where is it?'))

def refuse(text): return None if 'attack' in text else text
def fails(text): raise OSError(text)
def hush(text): return text.replace('fine', 'dull')

def test_security_says_which_guard_stopped_it():
    view = labelled(security_explore.explore(attacked_card(guards_in=[refuse], guards_out=[hush]), ROW))
    assert [c.label for k,c in view.controls.items() if c.value is True]==['before: refuse', 'behind: hush']
    view.made['own'].value = 'an attack'
    assert 'Stopped by refuse' in view.shown['verdict'].value and 'was not asked' in view.shown['steps'].value
    view.made['guard0'].value = False
    assert 'Stopped' not in view.shown['verdict'].value and 'dull' in view.shown['steps'].value
    view.made['guard1'].value = False
    assert 'dull' not in view.shown['steps'].value

def test_security_a_guard_that_fails_has_stopped_it():
    view = security_explore.explore(attacked_card(guards_in=[fails]), ROW)
    assert 'Stopped by fails' in view.parts(own='hello')['verdict']

def test_security_leaks_are_told_and_markup_is_text():
    view = labelled(security_explore.explore(attacked_card(f'Write to ann.smith@mail.example {HOSTILE}'), ROW))
    parts = view.parts(own=HOSTILE)
    no_markup_of(''.join(parts.values()))
    assert 'reached its goal' in parts['verdict'] and 'email' in parts['verdict']
    on = next(k for k,c in view.controls.items() if c.label=='behind: redact_personal_data')
    assert 'reached its goal</strong>' not in view.parts(**{on: True})['verdict']

def test_security_every_attack_under_every_disguise_has_a_way():
    view = security_explore.explore(attacked_card(guards_in=[refuse]), ROW)
    for a in view.controls['attack'].options['options'][::7]:
        for d in view.controls['disguise'].options['options'][::3]: assert 'could not' not in view.parts(attack=a, disguise=d)['verdict']

def test_security_private_data_is_not_shown():
    parts = security_explore.explore(attacked_card('secret words', guards_out=[hush], private=True), ROW).parts(own='private question')
    assert 'secret words' not in str(parts) and 'private question' not in str(parts)

def test_security_model_that_raises_is_told():
    def boom(p): raise RuntimeError('x')
    card = attacked_card()
    card.model = lambda: PythonModel(boom)
    view = security_explore.explore(card, ROW)
    assert 'failed' in view.parts(own='hello')['steps']

# chapters 04, 09 and 10

def test_cost_month_moves():
    from genai_playbook.cost import explore
    from genai_playbook.returns import CASE
    view = labelled(explore({k: (0., v, v) for k,v in zip(CASE, (1000., .9, .05, 3., 9., 3.))} | dict(machines=(0., 100., 200.)), 'EUR'))
    left = lambda **k: float(re.search(r'(-?[\d,]+) EUR', view.parts(**k)['verdict'])[1].replace(',', ''))
    assert left(**{'share solved': 1.})>left(**{'share solved': .5}) and left(**{'cases a month': 0.})==-100
    assert 'share solved: 90.0%' in view.still()

def test_monitoring_says_who_notices(monkeypatch):
    from genai_playbook import monitoring
    seen = []
    def drill(table, clusters, rng, size, fault, pool, windows):
        seen.append((fault.name, fault.shares[0]))
        return ns(alarms=[{'length'} if fault.shares[0]>.5 else set()])
    monkeypatch.setattr(monitoring, 'run_drill', drill)
    monkeypatch.setattr(monitoring, 'replace', lambda f, shares: ns(name=f.name, shares=shares))
    view = labelled(monitoring.explore(None, None, 100, [ns(name='broken'), ns(name='slow')], dict(broken=[], slow=[])))
    assert 'nobody' in view.shown['verdict'].value
    view.made['share'].value,view.made['fault'].value = .9,'slow'
    assert 'length' in view.shown['verdict'].value and seen[-1]==('slow', .9)

def test_governance_filters_the_matrix():
    from datetime import date
    from genai_playbook.compliance import load_catalogues, matrix
    from genai_playbook.governance import explore
    rows = matrix(load_catalogues(), [], [], date(2026, 6, 1))
    view = labelled(explore(rows))
    first,last = (view.controls['catalogue'].options['options'][i] for i in (0, -1))
    assert view.parts(catalogue=first)['matrix']!=view.parts(catalogue=last)['matrix']
    assert 'could not' not in explore([]).still()


# rollback: a drill is played back

def drilled(**more):
    asked = [Asked(i/10, i/10, i/10+.05, 'canary' if i%5==4 else 'baseline', bad=i%5==4 and i>=20) for i in range(40)]+[Asked(3.9)]  # the last got no answer
    return DrillRun('errors', BadRelease('errors', 1., 0), 10., .2, .45, asked, [dict(what='rollback', at=3.)], [], **more)

def test_a_drill_is_played_back_and_forth():
    view = labelled(rollback.explore(dict(errors=drilled(), nobody=replace(drilled(), asked=[]))))
    assert '32 answers of the present version, 8 of the candidate, 4 of those bad' in view.still() and 'everybody is on the version before' in view.still()
    assert view.controls['drill'].options['options']==['errors']  # where nobody was answered there is nothing to play
    half = view.parts(played=.5)
    assert '16 answers of the present version, 4 of the candidate, 0 of those bad' in half['verdict'] and 'the canary has users' in half['verdict'] and '<svg' in half['picture']
    assert 'before the canary' in view.parts(played=0.)['verdict'] and 'nothing to judge yet' in view.parts()['judge']

def test_what_a_judge_says_is_text():
    run = drilled()
    run.looks.append((1., Judgement('wait', HOSTILE, [], {})))
    no_markup_of(rollback.explore(dict(errors=run)).still())
