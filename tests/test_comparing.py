"foundations/comparing, estimating, cells and sequential: bad input, odd shapes, order of rows, error rates"
import dataclasses
import math

import numpy as np
import pandas as pd
import pytest

from genai_playbook.cells import METRICS, gap, group_metrics
from genai_playbook.comparing import (CANNOT_TELL, benjamini_hochberg, cohens_d, cohens_h, equivalent, holm, mcnemar, n_equivalent, n_not_worse, p_from_bound,
                                      newcombe, verdict)
from genai_playbook.errors import PlaybookError
from genai_playbook.estimating import Judge, calibrate, estimate, judge_corrected, noise
from genai_playbook.sequential import confidence_sequence, normal_mixture, so_far
from genai_playbook.stats import Estimate, clopper_pearson, mean, paired_difference, proportion

rng = np.random.default_rng(3)


def same(a, b): return all(x == y or (x != x and y != y) for x, y in zip(dataclasses.astuple(a), dataclasses.astuple(b)))


def rate(k, n, level=.95): return Estimate(k/n, *map(float, clopper_pearson(k, n, 2*level - 1)), n, 'Clopper-Pearson', level)


# comparing

@pytest.mark.parametrize('b, c', [(0, 0), (1, 1), (3, 9), (40, 40), (0, 30), (86, 150)])
def test_mcnemar_is_the_sign_test(b, c):
    from scipy.stats import binomtest
    a = mcnemar([1]*b + [0]*c + [1, 0], [0]*b + [1]*c + [1, 0])
    assert a.p == pytest.approx(binomtest(b, b + c, .5).pvalue if b + c else 1) and (a.only_a, a.only_b, a.n) == (b, c, b + c + 2)


def test_mcnemar_edges():
    for e in (mcnemar([], []), mcnemar([None], [1]), mcnemar([], [], []), mcnemar([1, 0], [0, 1], [1, 1]), mcnemar([1]*40, [1]*40, range(40)), mcnemar([None]*3, [1]*3, [1, 2, 3])): assert e.p == 1
    few = mcnemar([1, 1, 0, 1, 1, 1], [0, 1, 1, 1, 0, 0], np.arange(6)//2)
    assert not few.enough and 'needs 30' in few.note
    assert mcnemar([1, None, 0, 1], [0, 1, None, 1]).unscored == 2
    a, b, c = rng.random(300) < .8, rng.random(300) < .7, rng.integers(0, 60, 300)
    order = rng.permutation(300)
    assert same(mcnemar(a, b, c), mcnemar(a[order], b[order], c[order])) and same(mcnemar(a, b), mcnemar(a[order], b[order]))


@pytest.mark.parametrize('call, says', [
    (lambda: mcnemar([1], [1, 0]), 'A has 1 and B has 2'), (lambda: mcnemar([.5], [1]), 'paired_difference'), (lambda: mcnemar([1, 0], [1, 0], [1]), 'cluster label'), (lambda: newcombe(3, 2, 1, 2), 'count'), (lambda: cohens_h(1.1, .5), 'share'),
    (lambda: verdict(proportion([1]), 0), 'margin'), (lambda: verdict(proportion([1]), -.1), 'margin'), (lambda: equivalent(proportion([1]), math.inf), 'margin'), (lambda: n_not_worse(0, .1), 'variance'),
    (lambda: n_not_worse(1, .1, -.1), 'within the margin'), (lambda: holm([.1, 2]), 'between 0 and 1'), (lambda: holm(['x']), 'numbers'),
    (lambda: estimate([1, 0], [1]), '2 rows'), (lambda: estimate([1, .5], judge=JUDGE), 'right and wrong first'), (lambda: estimate([1, 0], weights=[1]), '2 rows'), (lambda: estimate([1, 0], weights=[1, 0]), 'above 0'), (lambda: estimate([1, 0], weights=[1, None]), 'above 0'),
    (lambda: estimate([1, 2], bounds=(0, 1)), 'between 0 and 1'), (lambda: estimate([1, 0], prompt=[1, 1], weights=[1, 2]), 'same weight'), (lambda: estimate([1, 0], prompt=[1, 1], clusters=[1, 2]), 'same cluster'),
    (lambda: estimate([1, 0], prompt=[1]), 'label'), (lambda: estimate([1, 0], clusters=[1, None]), 'missing'), (lambda: calibrate([1], [1, 0]), 'both labels'), (lambda: calibrate([.5], [1]), "1 \\(right\\)"), (lambda: calibrate([1], [.5]), '0 or 1'),
    (lambda: judge_corrected(rate(5, 9, .9), Judge(rate(90, 100), rate(90, 100))), 'at the level of the estimate'),
    (lambda: group_metrics([1], [1], ['a'], ['accuracies']), "no metric 'accuracies'"), (lambda: group_metrics([1, 0], [1], ['a']), 'each row needs'), (lambda: group_metrics([2], [1], ['a']), '0 or 1'), (lambda: group_metrics([1], [1], [None]), 'no group'),
    (lambda: gap(group_metrics([1], [1], ['a']), 'precision'), 'not computed'), (lambda: confidence_sequence([2]), 'between 0 and 1'), (lambda: confidence_sequence([1], method='x'), 'Bernstein'), (lambda: normal_mixture(1, 0), 'rho')])
def test_wrong_input_is_one_clear_sentence(call, says):
    with pytest.raises(PlaybookError, match=says) as e: call()
    assert '\n' not in str(e.value) and len(str(e.value)) < 250


def test_corrections_keep_order_and_missing_tests():
    p = np.array([.04, math.nan, .005, .03, .01])
    np.testing.assert_allclose(holm(p), [.09, math.nan, .025, .09, .04], rtol=1e-12)  # the missing test counts as looked at
    np.testing.assert_allclose(benjamini_hochberg(p), [.05, math.nan, .025, .05, .025], rtol=1e-12)
    assert len(holm([])) == 0 and np.isnan(holm([None, None])).all() and (holm([0., 1., 1.]) <= 1).all()
    from scipy.stats import false_discovery_control
    q = rng.random(50)
    np.testing.assert_allclose(benjamini_hochberg(q), false_discovery_control(q), rtol=1e-12)


def test_verdict_never_passes_without_enough():
    assert verdict(mean([]), .1) == verdict(mean([1.]*5), .1) == CANNOT_TELL and not equivalent(mean([0.]*5), 1)


def test_effect_sizes_and_newcombe_edges():
    assert newcombe(0, 0, 1, 2) == (-1, 1) and math.isnan(cohens_d([1], [2])) and math.isnan(cohens_d([1, 1], [1, 1])) and cohens_h(0, 1) == pytest.approx(-math.pi)
    low, high = newcombe(10, 10, 0, 10)
    assert low < 1 and high == 1


def test_planned_comparisons_have_their_power():
    n = n_not_worse(.1, .05)
    draw = lambda: rng.choice([-1., 0, 1], n, p=[.05, .9, .05])
    assert abs(np.mean([paired_difference(draw(), np.zeros(n)).low > -.05 for _ in range(1500)]) - .8) < .04
    n = n_equivalent(.1, .05)
    assert abs(np.mean([equivalent(paired_difference(draw(), np.zeros(n)), .05) for _ in range(1500)]) - .8) < .04


# estimating

ROWS = pd.DataFrame(dict(conv=rng.integers(0, 80, 200))).assign(prompt=lambda d: np.arange(len(d)), w=rng.choice([.5, 1, 3.3], 200))
ROWS = ROWS.loc[ROWS.index.repeat(3)].reset_index(drop=True).assign(a=lambda d: rng.beta(5, 2, len(d)), b=lambda d: rng.beta(5, 3, len(d)))
HOLES = ROWS.assign(a=ROWS.a.where(rng.random(len(ROWS)) > .03))
JUDGE = calibrate([1]*200 + [0]*200, [1]*180 + [0]*20 + [1]*20 + [0]*180)
COMBINATIONS = [dict(other=o, prompt=p, clusters=c, weights=w, bounds=b) for o in (None, 'b') for p in (None, 'prompt') for c in (None, 'conv') for w in (None, 'w') for b in (None, (0, 1))]


def run(df, kw): return estimate(df.a, **{k: df[v] if isinstance(v, str) else v for k, v in kw.items()})


@pytest.mark.parametrize('kw', COMBINATIONS)
def test_every_combination_in_any_order(kw):
    for df in (ROWS, HOLES):
        e = run(df, kw)
        assert e.low < e.value < e.high and (e.enough or df is HOLES) and e.n + e.unscored == len(df)
        for _ in range(3): assert same(e, run(df.sample(frac=1, random_state=int(rng.integers(1e9))), kw))


@pytest.mark.parametrize('pair', [False, True])
def test_missing_verdicts_move_a_judged_estimate_by_all_they_could(pair):
    a, b = (ROWS[c] > .6 for c in 'ab')
    holes, other = a.astype(float).where(rng.random(len(a)) > .1), b.astype(float) if pair else None
    kw = dict(other=other, prompt=ROWS.prompt, clusters=ROWS.conv, weights=ROWS.w, judge=JUDGE)
    e, worst, best = (estimate(v, **kw) for v in (holes, holes.fillna(0), holes.fillna(1)))
    assert e.low <= worst.low + 1e-9 and e.high >= best.high - 1e-9 and e.enough
    order = rng.permutation(len(a))
    assert same(e, estimate(holes.iloc[order], **{k: v.iloc[order] if hasattr(v, 'iloc') else v for k, v in kw.items()}))
    human = np.r_[np.ones(100), np.zeros(100)]
    said = np.r_[np.ones(90), np.zeros(5), np.full(5, np.nan), np.zeros(85), np.ones(10), np.full(5, np.nan)]
    silent = estimate(holes, **kw | dict(judge=calibrate(human, said)))
    for fill in (0, 1):
        known = estimate(holes, **kw | dict(judge=calibrate(human, np.where(np.isnan(said), fill, said))))
        assert silent.low <= known.low + 1e-9 and silent.high >= known.high - 1e-9


def test_one_complication_alone_is_what_stats_says():
    x, label = ROWS.a, ROWS.conv
    for kw, ref in [({}, mean(x)), (dict(bounds=(0, 1)), mean(x, bounds=(0, 1))), (dict(clusters=label), mean(x, label)), (dict(clusters=label, bounds=(0, 1)), mean(x, label, bounds=(0, 1))),
                    (dict(other=ROWS.b), paired_difference(x, ROWS.b)), (dict(other=ROWS.b, bounds=(0, 1)), paired_difference(x, ROWS.b, bounds=(0, 1)))]:
        e = estimate(x, **kw)
        assert (e.value, e.low, e.high) == pytest.approx((ref.value, ref.low, ref.high), abs=1e-12) and e.method == ref.method and e.clusters == ref.clusters
    heavy = estimate(x, weights=np.full(len(x), 7.), bounds=(0, 1))  # a weight that all rows share changes nothing
    assert (heavy.low, heavy.high) == pytest.approx((estimate(x, bounds=(0, 1)).low, estimate(x, bounds=(0, 1)).high), abs=1e-9)


def test_estimate_of_nothing():
    for e in (estimate([]), estimate([None], bounds=(0, 1)), estimate([], prompt=[], clusters=[], weights=[]), estimate([1, None], [None, 1]), estimate([1.]), estimate([1.]*40), estimate([None]*3, prompt=[1, 1, 2], judge=JUDGE), estimate([1, None], [None, 1], prompt=['a', 'b'])):
        assert not e.enough and e.low < e.high and e.note


def test_repeats_do_not_pretend_to_be_prompts():
    once = estimate(np.repeat([1, 0], [95, 5]), bounds=(0, 1))
    ten = estimate(np.repeat([1, 0], [950, 50]), prompt=np.arange(1000)//10, bounds=(0, 1))
    assert (ten.value, ten.low, ten.high) == pytest.approx((once.value, once.low, once.high), abs=1e-9) and ten.clusters == 100


def test_judge_corrected_is_right_often_enough():
    for p, sens, spec, m in ((.9, .95, .95, 100), (.7, .9, .7, 400), (.95, .99, .9, 30)):
        k = rng.binomial(300, p*sens + (1 - p)*(1 - spec), 400)
        es = [judge_corrected(rate(a, 300), Judge(rate(b, m), rate(c, m))) for a, b, c in zip(k, rng.binomial(m, sens, 400), rng.binomial(m, spec, 400))]
        assert all(e.low < e.high for e in es)
        assert max(np.mean([e.enough and e.low > p for e in es]), np.mean([e.enough and e.high < p for e in es])) <= .05 + 2*math.sqrt(.05*.95/400)


@pytest.mark.parametrize('called, right, wrong', [((270, 300), (16, 20), (19, 20)), ((30, 300), (19, 20), (16, 20)), ((300, 300), (10, 20), (20, 20)), ((150, 300), (50, 100), (50, 100)), ((0, 300), (99, 100), (80, 100)), ((2900, 3000), (800, 1000), (950, 1000))])
def test_nonsense_of_a_judge_is_never_evidence(called, right, wrong):
    e = judge_corrected(rate(*called), Judge(rate(*right), rate(*wrong)))
    assert not e.enough and e.low < e.high and e.note


def test_perfect_judge_changes_little():
    raw, perfect = rate(900, 1000), judge_corrected(rate(900, 1000), Judge(rate(10_000, 10_000), rate(10_000, 10_000)))
    assert (perfect.value, perfect.low, perfect.high) == pytest.approx((raw.value, raw.low, raw.high), abs=1e-3)
    assert math.isnan(judge_corrected(proportion([]), JUDGE).value) and not judge_corrected(raw, calibrate([1, 1], [1, 1])).enough


def test_noise_edges_and_recovery():
    assert all(map(math.isnan, noise([], []))) and all(map(math.isnan, noise([1, 2], [1, 2]))) and all(map(math.isnan, noise([1, 2], [1, 1])))
    prompt = np.repeat(np.arange(3000), 4)
    between, within = noise(rng.normal(0, 2, 3000)[prompt] + rng.normal(0, 1, len(prompt)), prompt)
    assert between == pytest.approx(4, rel=.1) and within == pytest.approx(1, rel=.1)


@pytest.mark.parametrize('n', [30, 100, 500, 3000])
def test_p_read_off_an_exact_bound_is_not_too_small(n):
    from scipy.stats import binom
    for k in range(n//2, n + 1, max(1, n//40)):
        low, level = clopper_pearson(k, n, .9)[0], .05
        for t in np.linspace(.05, low, 9):
            exact = binom.sf(k - 1, n, t)
            assert p_from_bound(k/n, low, t, share=True) >= exact*.999 or exact > level or exact < 1e-300
        assert p_from_bound(k/n, low, low, share=True) == pytest.approx(level)


def test_p_from_a_bound_at_the_edges():
    assert p_from_bound(.9, .8, .95) == 1 and p_from_bound(.9, .8, .9) == 1 and p_from_bound(.9, .9, .5) == 0 and p_from_bound(.9, .9, .9) == 1
    assert p_from_bound(.1, .2, .3, share=True) < .05 < p_from_bound(.1, .2, .15, share=True)  # from above
    assert p_from_bound(1., .95, 0., share=True) == 0 and p_from_bound(0., .05, 1., share=True) == 0
    assert p_from_bound(.5, .4, .4, level=.975) == pytest.approx(.025) and 0 < p_from_bound(1e6, 0., -1e6) < .001


# cells

def test_metrics_equal_fairlearn_and_sklearn():
    from fairlearn.metrics import MetricFrame, false_negative_rate, true_negative_rate
    from sklearn.metrics import accuracy_score, precision_score
    y, d, g = rng.integers(0, 2, 500), rng.integers(0, 2, 500), rng.choice(['x', 'y', 'z'], 500)
    h = rng.choice([1, 2], 500)
    ref = MetricFrame(metrics=dict(accuracy=accuracy_score, precision=precision_score, true_negative_rate=true_negative_rate, false_negative_rate=false_negative_rate), y_true=y, y_pred=d, sensitive_features=pd.DataFrame(dict(g=g, h=h)))
    gm = group_metrics(y, d, dict(g=g, h=h), list(ref.by_group.columns), replicates=200)
    assert gm.groups == list(ref.by_group.index)
    np.testing.assert_allclose(gm.values, ref.by_group.to_numpy(dtype=float), atol=1e-15)


def test_group_metrics_in_any_order_and_edges():
    y, d, g = rng.integers(0, 2, 500), rng.integers(0, 2, 500), rng.choice(['x', 'y', 'z'], 500)
    order = rng.permutation(500)
    a, b = group_metrics(y, d, g, list(METRICS)), group_metrics(y[order], d[order], pd.Series(g)[order], list(METRICS))
    assert all(same(gap(a, m), gap(b, m)) for m in METRICS) and (a.draws == b.draws).all()
    for gm in (group_metrics([], [], []), group_metrics([None], [1], ['a']), group_metrics([1]*100, [1]*100, ['a']*100), group_metrics([1, 0]*40, [1, 0]*40, ['a']*75 + ['b']*5), group_metrics([1, 0]*50 + [None], [1, 0]*50 + [1], list('ab')*50 + ['a'])):
        e = gap(gm, 'selection_rate', ratio=True)
        assert not e.enough and e.low < e.high and e.note
    never = group_metrics([0]*200, [0]*200, list('ab')*100)
    assert gap(never, 'selection_rate').high > .02 and not gap(never, 'selection_rate', ratio=True).enough and not gap(never, 'true_positive_rate').enough
    always = gap(group_metrics([1]*200, [1]*200, list('ab')*100), 'selection_rate')
    assert always.enough and always.value == always.low == 0 and always.high > .02


def test_equal_groups_are_seldom_accused():
    accused = 0
    for i in range(300):
        d = rng.random(800) < .9
        accused += gap(group_metrics(d, d, np.arange(800) % 4, ['selection_rate'], replicates=500, seed=i), 'selection_rate').low > 0
    assert accused/300 <= .05 + 2*math.sqrt(.05*.95/300)


def test_gaps_of_clustered_rows():
    y, d, g, c = rng.integers(0, 2, 900), rng.integers(0, 2, 900), rng.choice(['x', 'y', 'z'], 900), rng.integers(0, 300, 900)
    order = rng.permutation(900)
    a, b = group_metrics(y, d, g, list(METRICS), clusters=c), group_metrics(y[order], d[order], pd.Series(g)[order], list(METRICS), clusters=[f'customer {i}' for i in c[order]])
    assert all(same(gap(a, m, ratio=r), gap(b, m, ratio=r)) for m in METRICS for r in (False, True))
    alone, apart = (group_metrics(d, d, g, ['selection_rate'], clusters=k) for k in (np.arange(900), None))
    e, f = gap(alone, 'selection_rate'), gap(apart, 'selection_rate')
    assert e.clusters == 900 and f.clusters is None and e.value == f.value
    assert e.low == pytest.approx(f.low, abs=.01) and e.high == pytest.approx(f.high, abs=.01)
    few = gap(group_metrics(d, d, g, ['selection_rate'], clusters=c % 20), 'selection_rate')
    assert not few.enough and 'clusters' in few.note and (few.low, few.high) == (0, 1)
    whole = gap(group_metrics([1]*200, [1]*200, list('ab')*100, ['selection_rate'], clusters=np.arange(200)//4*2 + np.arange(200) % 2), 'selection_rate')
    assert whole.enough and whole.value == whole.low == 0 and whole.high > .05  # fifty clusters in each group, not a hundred rows
    none = group_metrics([], [], [], clusters=[])
    assert not gap(none, 'selection_rate').enough
    with pytest.raises(PlaybookError, match='cluster labels'): group_metrics(d, d, g, clusters=c[:5])


def test_equal_groups_in_clusters_are_seldom_accused():
    found = []
    for i in range(300):
        c = np.repeat(np.arange(200), 4)
        d = np.where((rng.random(200) < .7)[c], (rng.random(200) < .8)[c], rng.random(800) < .8)  # most clusters are right or wrong as a whole
        found.append([gap(group_metrics(d, d, c % 4, ['selection_rate'], replicates=500, seed=i, clusters=k), 'selection_rate').low > 0 for k in (c, None)])
    robust, naive = np.mean(found, axis=0)
    assert robust <= .05 + 2*math.sqrt(.05*.95/300) and naive > .2


# sequential

@pytest.mark.parametrize('method', ['empirical Bernstein', 'normal mixture'])
def test_bounds_hold_at_all_moments(method):
    for draw, mu in ((lambda: (rng.random(800) < .95)*1., .95), (lambda: rng.beta(2, 5, 800), 2/7)):
        out = np.array([(low > mu, high < mu) for low, high in ((s[0][-1], s[1][-1]) for s in (confidence_sequence(draw(), method=method) for _ in range(300)))]).mean(0)
        assert out.max() <= .05 + 2*math.sqrt(.05*.95/300)


def test_sequence_by_hand_and_edges():
    low, high = confidence_sequence([1], level=.95)
    half = (-math.log(.05) + .25*(math.log(2) - .5))/.5  # the first bet is one half and its surprise is one half
    assert (low[0], high[0]) == (0, 1) and half > 1
    low, high = confidence_sequence(rng.random(200)*4 + 1, bounds=(1, 5))
    assert (np.diff(low) >= 0).all() and (np.diff(high) <= 0).all() and low[-1] > 1 and high[-1] < 5
    full, holes = np.ones(300), np.r_[np.ones(280), [np.nan]*20]
    assert confidence_sequence(holes)[0][-1] <= confidence_sequence(full)[0][-1] and so_far(holes).unscored == 20
    assert not so_far([]).enough and not so_far([None]).enough and len(confidence_sequence([])[0]) == 0
    drift = so_far(np.r_[np.zeros(3000), np.ones(30_000)])
    assert not drift.enough and 'contradict' in drift.note and drift.low < drift.high
