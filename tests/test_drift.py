"Drift: hostile columns, power in both directions, and false alarms of whole windows"
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genai_playbook.drift import DRIFT, NO_DATA, QUIET, TOO_LITTLE, Reference, Stream, chi_square, ks, mann_whitney, mmd, psi_test, windows
from genai_playbook.errors import PlaybookError
from genai_playbook.stats import clopper_pearson

RNG = np.random.default_rng


def test_false_alarms_of_windows_with_twenty_features():
    "600 windows without drift: the Clopper-Pearson upper 95 % bound of the alarm rate lies under 5 %"
    rng, alarms, naive, runs = RNG(1), 0, 0, 600
    def columns(n):
        cols = {f'x{i}': rng.normal(size=n) for i in range(12)} | {f'n{i}': rng.poisson(3, n) for i in range(4)}
        return cols | {f'c{i}': rng.choice(['a', 'b', 'c'], n, p=[.5, .4, .1]) for i in range(4)}
    for _ in range(runs):
        ref = Reference(columns(500), floors=dict.fromkeys(['ks', 'chi_square'], 0.))  # no floor: the correction alone must hold the rate
        found = ref.check(columns(500))
        alarms += found.verdict == DRIFT
        naive += any(f.p <= .05 for f in found.findings)
    assert clopper_pearson(alarms, runs, .90)[1] < .05, alarms
    assert naive/runs > .4


@pytest.mark.parametrize('shift', [-.5, .5])
@pytest.mark.parametrize('test', ['ks', 'mann_whitney', 'psi'])
def test_both_directions_alarm(test, shift):
    rng = RNG(2)
    ref = Reference(dict(x=rng.normal(size=2000)), tests=dict(x=test))
    assert ref.check(dict(x=rng.normal(shift, 1, 500))).verdict == DRIFT


@pytest.mark.parametrize('test', [ks, mann_whitney])
def test_same_as_scipy(test):
    from scipy import stats
    rng = RNG(3)
    theirs = dict(ks=lambda a, b: stats.ks_2samp(a, b, method='exact' if len(a)*len(b) <= 10_000 else 'asymp'), mann_whitney=lambda a, b: stats.mannwhitneyu(b, a, method='asymptotic'))[test.__name__]
    for n, m, tied in ((90, 110, True), (300, 200, False), (300, 200, True), (5000, 700, True)):
        a, b = (np.sort(rng.poisson(3, k).astype(float) if tied else rng.normal(size=k)) for k in (n, m))
        mine, there = test(a, b), theirs(a, b)
        assert mine.statistic == pytest.approx(there.statistic) and mine.p == pytest.approx(there.pvalue, rel=1e-9, abs=1e-12)


def test_chi_square_as_scipy():
    from scipy.stats import chi2_contingency
    a, b = [50, 30, 20], [30, 40, 30]
    there = chi2_contingency([a, b], correction=False)
    assert chi_square(a, b).p == pytest.approx(there.pvalue) and chi_square(a, b).statistic == pytest.approx(there.statistic)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=60), st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=60))
def test_tests_do_not_know_which_side_is_the_reference(a, b):
    a, b = np.sort(a), np.sort(b)
    for test in (ks, mann_whitney):
        there, back = test(a, b), test(b, a)
        assert 0 <= there.p <= 1 and there.p == pytest.approx(back.p, abs=1e-9) and there.effect == pytest.approx(back.effect, abs=1e-9)


def test_psi_of_one_population_follows_its_limit():
    rng = RNG(4)
    p = [psi_test(np.sort(rng.normal(size=1000)), np.sort(rng.normal(size=500))).p for _ in range(300)]
    assert .02 < np.mean(np.array(p) < .05) < .09


def test_clusters_do_not_raise_false_alarms():
    "Conversations of four alike requests: without the design effect more than 5 % of windows alarm, with it fewer"
    rng, alarms = RNG(12), np.zeros(2)
    def columns(n):
        base = np.repeat(np.arange(n//4), 4)
        return pd.DataFrame({f'x{i}': rng.normal(size=n//4)[base] + .1*rng.normal(size=n) for i in range(5)} | {'c': rng.choice(['a', 'b'], n//4)[base]}), pd.Series(base)
    for _ in range(150):
        (a, labels), (b, _) = columns(400), columns(400)
        alarms += [Reference(a, clusters=c, floors=dict(ks=0., chi_square=0.)).check(b).verdict == DRIFT for c in (None, labels)]
    assert alarms[0]/150 > .2 and clopper_pearson(alarms[1], 150, .90)[0] < .05


def test_size_alone_never_alarms():
    rng = RNG(5)
    ref = Reference(dict(x=rng.normal(size=100_000), c=rng.choice(['a', 'b'], 100_000)))
    found = ref.check(dict(x=rng.normal(.05, 1, 100_000), c=rng.choice(['a', 'b'], 100_000, p=[.52, .48])))
    assert found.verdict == QUIET and all(f.adjusted < 1e-6 for f in found.findings)


@pytest.mark.parametrize('n', [1, 8, 99])
def test_few_rows_are_too_little_even_when_they_differ(n):
    ref = Reference(dict(x=RNG(6).normal(size=1000)))
    assert ref.check(dict(x=[1e3]*n)).verdict == TOO_LITTLE


def test_no_rows_and_no_columns():
    ref = Reference(dict(x=RNG(6).normal(size=1000)))
    assert ref.check(dict(x=[])).verdict == NO_DATA == ref.check({}).verdict == ref.check(pd.DataFrame()).verdict
    with pytest.raises(PlaybookError, match='at least one feature'): Reference({})
    with pytest.raises(PlaybookError, match='no drift test'): Reference(dict(x=[1]), tests=dict(x='t'))
    with pytest.raises(PlaybookError, match='must be numbers'): Reference(dict(x=['a']), tests=dict(x='ks'))


def test_a_feature_that_vanished_is_said():
    ref = Reference(pd.DataFrame(dict(x=RNG(7).normal(size=500), y=1.)))
    found = ref.check(pd.DataFrame(dict(y=[1.]*500)))
    assert found.verdict == DRIFT and found.features == ['x (missing)']
    gone = ref.check(pd.DataFrame(dict(x=[None]*500, y=[1.]*500)))
    assert gone.verdict == DRIFT and gone.features == ['x (missing)']


def test_odd_values():
    x = [float('inf'), float('nan'), None, 5, 5, 5]*50
    ref = Reference(dict(x=x, c=[None, 'a', 1]*100, same=[3]*300))
    assert ref.check(dict(x=x, c=[None, 'a', 1]*100, same=[3]*300)).verdict == QUIET
    assert 'same' in ref.check(dict(x=x, c=[None, 'a', 1]*100, same=[4]*300)).features
    assert 'c' in ref.check(dict(x=x, c=[None, 'never', 'seen']*100, same=[3]*300)).features


def test_mmd_false_alarms_and_power():
    rng = RNG(8)
    p = [mmd(rng.normal(size=(60, 4)), rng.normal(size=(60, 4)), permutations=99, seed=i).p for i in range(120)]
    assert np.mean(np.array(p) <= .05) < .12
    assert mmd(np.zeros((5, 2)), np.zeros((5, 2))).p == 1.0
    ring = rng.normal(size=(300, 2))
    ring /= np.linalg.norm(ring, axis=1, keepdims=True)
    assert mmd(rng.normal(size=(300, 2))*.7, ring, most=300).p <= .02  # same means and variances, another shape


def test_windows_of_a_log_with_holes_and_odd_times():
    times = pd.Series(['2025-01-03', '2025-01-01', None, '2025-01-20', '2025-01-02'])
    cut = windows(pd.to_datetime(times), '7D')
    assert [len(w.rows) for w in cut] == [3, 0, 1] and list(cut[0].rows) == [1, 4, 0]
    assert windows([]) == [] == windows([None])
    ref = Reference(dict(x=RNG(9).normal(size=500)))
    assert [ref.check(dict(x=np.zeros(5)[w.rows])).verdict for w in cut] == [TOO_LITTLE, NO_DATA, TOO_LITTLE]


def test_stream_checks_when_due_and_refuses_what_cannot_decide():
    ref = Reference(dict(x=RNG(10).normal(size=500)))
    with pytest.raises(PlaybookError, match='can decide nothing'): Stream(ref, size=10)
    rng, s = RNG(11), Stream(ref, size=200, step=50)
    due = [i for i in range(400) if s.add(dict(x=rng.normal()))]
    assert due == [199, 249, 299, 349, 399]
    assert s.add({}) is None  # a row that lacks the feature is a missing value, not a crash
