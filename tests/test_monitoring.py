"Chapter 09's machinery: planted faults, anomalies, label-free quality, rules and dashboard, with hostile and missing input"
import json
import math
from types import SimpleNamespace as ns

import numpy as np
import pandas as pd
import pytest
import yaml

from genai_playbook.alerts import BURNS, alarm_threshold, alert_rules, dashboard, expressions_of, metric_names, rules_yaml
from genai_playbook.anomalies import Topics, Usual, bursts
from genai_playbook.drift import NO_DATA, Reference
from genai_playbook.errors import PlaybookError
from genai_playbook.label_free import BROKEN, HOLDS, UNCHECKED, calibration_p, cbpe, labels_to_notice, poisson_binomial
from genai_playbook.models import Answer
from genai_playbook.monitor import Metrics
from genai_playbook.monitoring import distance, late, lines_with_text, windows_to_show
from genai_playbook.planted import FLOORS, Drill, alarm_families, columns_of, family_of, faults, observe, pool_of, recall_table, reshuffled, run_drill, score_table, struck
from genai_playbook.signals import Signals
from genai_playbook.stats import Estimate

LEVELS = ns(availability=.999, latency_p95_ms=2000, ttft_ms=500)


@pytest.fixture(scope='module')
def world():
    "Two thousand requests of four kinds, answered with a number of their facts"
    rng, n = np.random.default_rng(0), 2000
    asks = ['where is my parcel now', 'please refund the fee', 'the parcel is damaged badly', 'change my address please']
    kind = rng.integers(0, 4, n)
    t = pd.DataFrame(dict(message=[asks[i] + ' thanks'*j for i, j in zip(kind, rng.integers(0, 5, n))], source=[f'value: {v} EUR' for v in rng.integers(5, 90, n)],
                          group=rng.choice(['a', 'b'], n), intent=[asks[i] for i in kind], feedback=np.where(rng.random(n) < .3, 1., math.nan)))
    t['answer'] = [Answer(f'We pay {s.split()[1]} EUR.', 30, 8, logprob=-.05*r) for s, r in zip(t['source'], rng.random(n))]
    signals, topics = Signals.fit(list(t['message'])), Topics(list(t['message']), k=4)
    return ns(traffic=t, signals=signals, topics=topics, table=observe(t, signals, topics), clusters=np.arange(n)//5)


@pytest.mark.parametrize('fault, monitor', [('language shift', 'language'), ('longer prompts', 'inputs'), ('broken template', 'quality'), ('quality drop', 'quality'), ('toxic wave', 'safety'), ('PII wave', 'safety'),
                                            ('cost creep', 'cost'), ('topic shift', 'topics'), ('unfair creep', 'groups')])
def test_each_fault_is_seen_by_the_monitor_that_is_there_for_it(world, fault, monitor):
    rng = np.random.default_rng(1)
    found = next(f for f in faults(['a', 'b'], '{context}\n{prompt}') if f.name == fault)
    pool = observe(pool_of(found, world.traffic, rng, lambda sent: [Answer('I do not know.', 30, 5) for _ in sent]), world.signals, world.topics)
    assert run_drill(world.table, world.clusters, rng, 240, found, pool).delay(monitor) < math.inf


def test_recorded_answers_stay_where_nobody_can_be_asked(world):
    toxic = next(f for f in faults() if f.name == 'toxic wave')
    pool = pool_of(toxic, world.traffic, np.random.default_rng(0))
    assert all(a.text.startswith('We pay') for a in pool['answer']) and pool['feedback'].isna().all() and 'unfair creep' not in {f.name for f in faults(['one'])}


def test_faults_without_intents_references_or_groups(world):
    bare = world.traffic.drop(columns='intent').assign(feedback=math.nan, group='everyone')
    for f in faults([]): assert len(pool_of(f, bare, np.random.default_rng(0), n=20))
    table = observe(bare, world.signals, world.topics)
    assert 'feedback' not in columns_of(table) and 'refused in everyone' in columns_of(table)
    assert run_drill(table, world.clusters, np.random.default_rng(0), 120).delay() == math.inf


def test_answers_that_failed_or_were_never_counted(world):
    bad = world.traffic.assign(answer=[Answer(error='timed out')]*len(world.traffic))
    seen = observe(bad, world.signals, world.topics)
    assert set(seen['failed']) == {'yes'} and 'tokens_in' not in columns_of(seen)
    found = Reference(columns_of(world.table), floors=FLOORS).check(columns_of(seen))
    assert {'outputs', 'cost', 'quality'} <= alarm_families(found)


def test_a_window_without_data_is_no_quiet_window(world):
    empty = Reference(columns_of(world.table)).check(columns_of(world.table[:0]))
    assert empty.verdict == NO_DATA and empty.note and alarm_families(empty) == set()
    with pytest.raises(PlaybookError, match='take 8,000 rows'): run_drill(world.table, world.clusters, np.random.default_rng(0), 1000)


def test_reshuffles_keep_conversations_whole():
    clusters = np.repeat(np.arange(50), 3)
    order = reshuffled(clusters, np.random.default_rng(0))
    assert sorted(order) == list(range(150)) and all(len(set(clusters[order[i:i + 3]])) == 1 for i in range(0, 150, 3))


def test_struck_windows_keep_their_size(world):
    rng = np.random.default_rng(0)
    for share in (0, .01, .5, 1):
        hit = struck(world.table[:200], world.table[500:510].assign(words=-1), share, rng)
        assert len(hit) == 200 and (hit['words'] == -1).sum() == round(200*share)
    assert len(struck(world.table[:200], world.table[:0], .5, rng)) == 200
    assert (struck(world.table[:200], world.table[:5].assign(words=-1), .5, rng, np.zeros(200, bool))['words'] == -1).sum() == 0


def test_families_cover_every_feature(world):
    assert {family_of(f) for f in columns_of(world.table)} == {'inputs', 'language', 'topics', 'outputs', 'quality', 'safety', 'cost', 'groups'}
    assert family_of('grounded (missing)') == 'quality' and family_of('refused in b (missing)') == 'groups'


def test_scores_count_what_was_never_seen():
    seen, never = Drill('f', (frozenset(), frozenset(['cost']))), Drill('f', (frozenset(),)*2)
    row = score_table([seen, never, never], []).loc['f']
    assert row['recall'] == pytest.approx(1/3) and row['median_delay'] == math.inf and row['seen_by'] == 'nobody' and math.isnan(row['false_alarms'])
    assert late([seen, never]) == [2., 3.] and recall_table([seen]).loc['cost', 'f'] == 1


def test_odd_requests_at_the_stated_rate_whatever_the_distribution():
    rng = np.random.default_rng(2)
    draw = lambda n: pd.DataFrame(dict(a=rng.standard_cauchy(n), b=rng.poisson(.2, n), c=[math.nan]*n, d=['x']*n))
    rates = [Usual.fit(draw(1000), .02).check(draw(1000))['odd'].mean() for _ in range(40)]
    assert .012 < np.mean(rates) < .025
    with pytest.raises(PlaybookError, match='200 usual ones'): Usual.fit(draw(50))
    assert len(Usual.fit(draw(1000)).check(draw(0))) == 0


def test_bursts():
    assert not bursts([], 1.).any()
    with pytest.raises(PlaybookError, match='sort'): bursts([2, 1], 1.)
    with pytest.raises(PlaybookError, match='above 0'): bursts([1], 0)
    assert bursts(np.full(1000, 5.), 1.)[-1]


def test_topics_of_nothing():
    with pytest.raises(PlaybookError, match='share words'): Topics(['', '123'])
    t = Topics(['parcel late'] * 5 + ['refund now'] * 5, k=8)
    assert t.topics([]) == [] and t.vectors([]).shape[0] == 0 and t.topics(['zzz']) == ['no known word'] and len(t.names) == 2


def test_label_free_says_when_not_to_believe_it():
    wrong, missed = [], []
    for s in range(40):
        rng = np.random.default_rng(s)
        c = rng.beta(8, 2, 1500)
        ok = (rng.random(1500) < c).astype(float)
        flipped = np.where((ok[750:] == 1) & (rng.random(750) < .25), 0., ok[750:])
        some = lambda y: np.where(np.arange(750) < 100, y, math.nan)
        wrong.append(cbpe(c[:750], ok[:750], c[750:], some(ok[750:])).status == BROKEN)
        missed.append(cbpe(c[:750], ok[:750], c[750:], some(flipped)).status != BROKEN)
    assert np.mean(wrong) <= .15 and np.mean(missed) <= .1


def test_label_free_with_too_little():
    c, ok = np.full(200, .9), np.ones(200)
    assert cbpe(c, ok, c).status == UNCHECKED
    assert not cbpe(c[:10], ok[:10], c).estimate.enough and not cbpe(c, ok, []).estimate.enough
    assert not cbpe(c, ok, [math.nan]*200).estimate.enough and '1 answers have no confidence' in cbpe(c, ok, [*c, None]).estimate.note
    assert cbpe(c, ok, c, ok).status == HOLDS and not cbpe(c, [None]*200, c).estimate.enough
    with pytest.raises(PlaybookError): labels_to_notice(.9, 0)


def test_poisson_binomial_is_binomial_when_chances_are_equal():
    from scipy.stats import binom
    assert poisson_binomial([.3]*50) == pytest.approx(binom.pmf(np.arange(51), 50, .3))
    assert calibration_p([], []) == 1


def test_thresholds_by_hand():
    assert [alarm_threshold(b.rate(), .999) for b in BURNS] == pytest.approx([.0144, .006, .003, .001])
    rules = {r['alert']: r for r in yaml.safe_load(rules_yaml(LEVELS))['groups'][0]['rules']}
    assert [rules[f'ErrorsBurn{w}']['expr'].count(f'> {t} and') for w, t in (('1h', '0.0144'), ('6h', '0.006'), ('1d', '0.003'), ('3d', '0.001'))] == [2]*4
    for long, short, severity in (('1h', '5m', 'page'), ('6h', '30m', 'page'), ('1d', '2h', 'ticket'), ('3d', '6h', 'ticket')):
        rule = rules[f'SlowAnswersBurn{long}']
        assert f'[{long}]' in rule['expr'] and f'[{short}]' in rule['expr'] and rule['labels']['severity'] == severity and 'le="2.0"' in rule['expr']
    assert 'le="0.5"' in rules['SlowFirstTokenBurn1h']['expr'] and '> 0.72 and' in rules['SlowFirstTokenBurn1h']['expr']
    assert 'absent(' in rules['NoRequests']['expr'] and rules['Drift']['for'] == '5m'
    assert len(rules) == 4*3 + 2


@pytest.mark.parametrize('levels', [LEVELS, ns(availability=None, latency_p95_ms=None, ttft_ms=None), ns(availability=.9, latency_p95_ms=1, ttft_ms=333.3)])
def test_rules_and_panels_name_only_what_is_exported_and_can_fire(levels):
    there = Metrics(['m'], latency=(levels.latency_p95_ms or 0)/1000, ttft=(levels.ttft_ms or 0)/1000)
    for doc in (alert_rules(levels), dashboard(levels)):
        assert metric_names(expressions_of(doc)) and metric_names(expressions_of(doc)) <= there.exported()
        json.dumps(doc, allow_nan=False)
    text = rules_yaml(levels)
    assert yaml.safe_load(text) == alert_rules(levels)
    import re
    assert all(float(t) < 1 for t in re.findall(r'> ([\d.]+) and', text))
    there(dict({'event.name': 'gen_ai.client.inference.operation.details', 'timestamp': 1., 'gen_ai.request.model': 'm', 'genai_playbook.duration': .1}))
    for edge in re.findall(r'duration_seconds_bucket{le="([^"]+)"}', text): assert f'le="{edge}"' in there.text()  # the rule's bucket exists


def test_a_level_without_a_budget_is_refused():
    for level in (0, 1, 1.5):
        with pytest.raises(PlaybookError, match='error budget'): alarm_threshold(14.4, level)


def test_panels_have_places_of_their_own():
    board = dashboard(LEVELS, 'x')
    assert len({(p['gridPos']['x'], p['gridPos']['y']) for p in board['panels']}) == len(board['panels']) == len({p['id'] for p in board['panels']})


def test_what_the_chapter_adds():
    assert windows_to_show(.05) == 59
    d = distance(Estimate(.03, .02, .05, 9, 'x'))
    assert (d.value, d.low, d.high) == (.03, .02, .05) and distance(Estimate(-.03, -.05, -.02, 9, 'x')).low == .02
    assert lines_with_text(['{"x": "Grüße aus Köln"}'], [['Grüße aus Köln']]) == [True]
    assert lines_with_text([json.dumps(dict(x='Grüße aus Köln'))], [['Grüße aus Köln']]) == [True]
