"What no reader of foundations/stats wants to see: bad input, odd shapes, order of rows, simulated error rates"
import dataclasses
import math
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from genai_playbook import stats
from genai_playbook.errors import PlaybookError
from genai_playbook.stats import (Estimate, bootstrap, clopper_pearson, exact, intraclass, korn_graubard, mean, n_mean, n_paired, n_proportion,
                                  n_zero_failures, paired_difference, proportion, wilson)

rng = np.random.default_rng(7)
N = 400
OK = np.where(rng.random(N) < .03, np.nan, rng.random(N) < .9)
LABEL = np.array([f'doc {i}' for i in rng.integers(0, 90, N)])
X, Y = np.where(np.isnan(OK), np.nan, rng.beta(8, 2, N)), rng.beta(7, 3, N)
WHOLE = np.nan_to_num(X, nan=.5)


def same(a, b):
    "Equal to the last bit, NaN equal to NaN"
    return all(x == y or (x != x and y != y) for x, y in zip(dataclasses.astuple(a), dataclasses.astuple(b)))


ESTIMATORS = {
    'proportion': lambda i: proportion(OK[i]), 'proportion clustered': lambda i: proportion(OK[i], LABEL[i]),
    'korn_graubard': lambda i: korn_graubard(OK[i], LABEL[i]),
    'mean': lambda i: mean(WHOLE[i]), 'mean unscored': lambda i: mean(X[i]), 'mean bounded': lambda i: mean(X[i], bounds=(0, 1)),
    'mean clustered': lambda i: mean(WHOLE[i], LABEL[i]), 'mean clustered bounded': lambda i: mean(X[i], LABEL[i], bounds=(0, 1)),
    'paired': lambda i: paired_difference(WHOLE[i], Y[i]), 'paired clustered': lambda i: paired_difference(WHOLE[i], Y[i], LABEL[i]),
    'paired bounded': lambda i: paired_difference(X[i], Y[i], LABEL[i], bounds=(0, 1)),
    'bootstrap': lambda i: bootstrap(WHOLE[i]), 'bootstrap median': lambda i: bootstrap(WHOLE[i], np.median, method='percentile'),
    'bootstrap clustered': lambda i: bootstrap(WHOLE[i], clusters=LABEL[i], replicates=200),
    'bootstrap rows': lambda i: bootstrap(np.c_[WHOLE, Y][i], lambda r: r[:, 0].sum()/r[:, 1].sum(), replicates=200),
}


@pytest.mark.parametrize('name', ESTIMATORS)
def test_order_of_rows_changes_no_bit(name):
    f = ESTIMATORS[name]
    first = f(np.arange(N))
    for _ in range(5): assert same(first, f(rng.permutation(N)))


@pytest.mark.parametrize('name', ESTIMATORS)
def test_bounds_surround_the_point_and_plain_python_numbers_come_out(name):
    e = ESTIMATORS[name](np.arange(N))
    assert e.low < e.value < e.high and all(type(v) is float for v in (e.value, e.low, e.high)) and type(e.n) is int and type(e.enough) is bool


def test_names_and_types_of_cluster_labels_do_not_matter():
    codes = pd.factorize(LABEL)[0]
    kinds = [LABEL, codes, list(LABEL), pd.Series(LABEL), pd.Categorical(LABEL), [(c, 1) for c in codes], [c if c % 2 else f'c{c}' for c in codes]]
    for e in [proportion(OK, k) for k in kinds] + [proportion(OK, pd.Series(LABEL, index=range(5, 5 + N)))]: assert same(e, proportion(OK, LABEL))


@pytest.mark.parametrize('x', [[1, 0, 1, None], [True, False, True, None], [1., 0., 1., math.nan], pd.Series([1, 0, 1, pd.NA], dtype='Int64'), pd.Series([True, False, True, None], dtype='boolean'),
                               pd.Series([1, 0, 1, None]), np.array([1, 0, 1, None], dtype=object), (1, 0, 1, math.inf), np.array([1, 0, 1, np.nan], dtype='float16')])
def test_every_spelling_of_a_missing_score(x):
    e = proportion(x)
    assert (e.n, e.unscored) == (3, 1) and e.value == 2/3


@pytest.mark.parametrize('call', [lambda: proportion([]), lambda: proportion([], []), lambda: proportion([None]*3), lambda: proportion([None]*3, [1, 1, 2]), lambda: mean([]), lambda: mean([], []),
                                  lambda: mean([math.nan], bounds=(0, 1)), lambda: mean([math.inf]), lambda: paired_difference([], []), lambda: paired_difference([None], [1]), lambda: bootstrap([]),
                                  lambda: bootstrap([None, math.nan]), lambda: bootstrap([], clusters=[]), lambda: korn_graubard([], []), lambda: exact(3, n=0), lambda: exact(math.nan)])
def test_nothing_is_never_enough(call):
    e = call()
    assert isinstance(e, Estimate) and math.isnan(e.value) and not e.enough and e.note and e.low < e.high


@pytest.mark.parametrize('call', [lambda: mean([5.]), lambda: mean([5.]*100), lambda: mean([1, 2, 3], [1, 1, 1]), lambda: mean(range(29)), lambda: mean([1., math.inf]*50), lambda: mean(range(100), [i % 29 for i in range(100)]),
                                  lambda: mean([0]*99 + [1]), lambda: paired_difference([1]*50, [1]*50), lambda: bootstrap([1.]), lambda: bootstrap([1.]*100), lambda: bootstrap(range(99)),
                                  lambda: bootstrap(range(100), clusters=[1]*100), lambda: bootstrap([1.]*160 + [None]), lambda: bootstrap(np.arange(60.), lambda v: math.nan), lambda: bootstrap(np.arange(60.)-30, lambda v: math.inf),
                                  lambda: korn_graubard([1, 0], [1, 1]), lambda: mean([1e-300]*50), lambda: mean([.1]*50)])
def test_too_little_says_so(call):
    e = call()
    assert not e.enough and e.note and e.low < e.high


@pytest.mark.parametrize('call, says', [
    (lambda: proportion([0, 1, .5]), '0 or 1'), (lambda: proportion(['yes', 'no']), "'yes'"), (lambda: proportion(['1', '0']), 'must be numbers'), (lambda: proportion([1, 'x']), "'x'"), (lambda: proportion([[1, 0]]), 'one column'),
    (lambda: proportion(3), 'one column'), (lambda: proportion([1, 1j]), 'must be numbers'), (lambda: mean([{}, 1]), 'no number'), (lambda: mean(pd.to_datetime(['2026-01-01'])), 'must be numbers'),
    (lambda: proportion([1, 1], [1]), '2 scores but 1 cluster label'), (lambda: proportion([1, 1], [1, None]), 'missing'), (lambda: mean([1, 1], [math.nan, 2]), 'missing'), (lambda: paired_difference([1], [1, 2]), 'A has 1 and B has 2'),
    (lambda: mean([1, 9], bounds=(1, 5)), 'between 1 and 5'), (lambda: mean([1], bounds=(5, 1)), 'lower one first'), (lambda: mean([1], bounds=3), 'lowest and highest'), (lambda: mean([1], bounds=(0, math.inf)), 'finite'),
    (lambda: proportion([1], level=95), 'level'), (lambda: proportion([1], level=.5), 'level'), (lambda: mean([1], level=1), 'level'), (lambda: proportion([1], level='x'), 'level'), (lambda: bootstrap([1], method='bca'), 'BCa'),
    (lambda: bootstrap([1], replicates=3), 'replicates'), (lambda: wilson(3, 2), 'count'), (lambda: clopper_pearson(-1, 2), 'count'), (lambda: clopper_pearson(math.nan, 2), 'count'), (lambda: n_zero_failures(1), 'choose a threshold'),
    (lambda: n_zero_failures(95), 'between 0 and 1'), (lambda: n_proportion(.95, .95), 'equals'), (lambda: n_proportion(.5, 0), 'threshold of 0 or 1'), (lambda: n_proportion(.5, 1), 'threshold of 0 or 1'), (lambda: n_mean(0, 1), 'spread'), (lambda: n_paired(1, 0), 'difference'),
    (lambda: stats.design_effect([], .1), 'clusters'), (lambda: proportion([1, 0], pd.DataFrame({'a': [1, 2]})), 'one column'), (lambda: proportion([1], 7), 'one column')])
def test_wrong_input_is_one_clear_sentence(call, says):
    with pytest.raises(PlaybookError, match=says) as e: call()
    assert '\n' not in str(e.value) and len(str(e.value)) < 250


@pytest.mark.parametrize('k, n', [(0, 1), (1, 1), (7, 7), (19, 20), (0, 50), (500, 1000)])
def test_clusters_of_one_are_clopper_pearson(k, n):
    ok = [1]*k + [0]*(n - k)
    alone, each = proportion(ok), proportion(ok, range(n))
    assert (alone.low, alone.high) == (each.low, each.high) == tuple(clopper_pearson(k, n, 2*.95 - 1))
    graded = mean(ok, bounds=(0, 1))  # the saddlepoint, on the same question
    assert abs(graded.low - alone.low) < 3e-3 and abs(graded.high - alone.high) < 3e-3 and graded.low <= alone.low + 1e-6 and graded.high >= alone.high - 1e-6


@pytest.mark.parametrize('size', [1, 2, 10])
@pytest.mark.parametrize('C', [1, 2, 30, 300])
def test_all_right_counts_clusters(C, size):
    e = proportion(np.ones(C*size), np.repeat(range(C), size))
    assert e.high == 1 and abs(e.low - .05**(1/C)) < 3e-3 and e.low <= .05**(1/C) + 1e-6 and e.enough
    bad = proportion(np.zeros(C*size), np.repeat(range(C), size))
    assert bad.low == 0 and bad.high == pytest.approx(1 - e.low, abs=1e-9)


def test_a_right_answer_never_lowers_a_bound():
    label = rng.integers(0, 25, 120)
    ok, last = np.zeros(120), (0., 0.)
    for i in rng.permutation(120):
        ok[i] = 1
        e = proportion(ok, label)
        assert e.low >= last[0] - 1e-9 and e.high >= last[1] - 1e-9
        last = e.low, e.high


def test_unscored_is_bounded_by_worst_and_best():
    ok = np.array([1.]*90 + [0.]*5 + [np.nan]*5)
    for label in (None, np.arange(100) // 4):
        e, worst, best = (proportion(v, label) for v in (ok, np.nan_to_num(ok, nan=0.), np.nan_to_num(ok, nan=1.)))
        assert (e.low, e.high) == (worst.low, best.high) and e.value == 90/95 and (e.n, e.unscored) == (95, 5)
    m = mean(ok*4, bounds=(0, 4))
    assert m.low == mean(np.nan_to_num(ok*4, nan=0.), bounds=(0, 4)).low and m.high == mean(np.nan_to_num(ok*4, nan=4.), bounds=(0, 4)).high
    d = paired_difference(ok, np.ones(100), bounds=(0, 1))  # B is known where A is not: the difference is 0 at best, -1 at worst
    assert d.high == paired_difference(np.nan_to_num(ok, nan=1.), np.ones(100), bounds=(0, 1)).high and d.unscored == 5


def test_scale_and_sign_are_only_units():
    x = rng.beta(5, 2, 200)
    e, f = mean(x, bounds=(0, 1)), mean(7 - 3*x, bounds=(4, 7))
    assert f.low == pytest.approx(7 - 3*e.high, abs=1e-6) and f.high == pytest.approx(7 - 3*e.low, abs=1e-6)
    e, f = mean(x), mean(-x)
    assert f.low == pytest.approx(-e.high) and f.high == pytest.approx(-e.low)


def test_many_levels_nest():
    lows = [proportion(OK, LABEL, level=q).low for q in (.6, .8, .9, .95, .99, .999)]
    assert lows == sorted(lows, reverse=True)


def test_extreme_shapes_stay_finite():
    for label in (np.r_[np.zeros(10_000), np.arange(1, 50)], np.zeros(10_049), np.arange(10_049)//2):
        for ok in (np.ones(10_049), np.zeros(10_049), np.r_[0., np.ones(10_048)], rng.random(10_049) < .5):
            e = proportion(ok, label)
            assert 0 <= e.low <= e.value <= e.high <= 1 and e.low < e.high
    for x in (np.array([0.]*500 + [1e-12]), np.array([0, 1.]), np.r_[np.full(1000, 1.), 1 - 1e-15]):
        e = mean(x, bounds=(0, 1))
        assert 0 <= e.low <= e.value <= e.high <= 1 and e.low < e.high
    assert mean(np.array([1e308, 1e308, -1e308]*20)).enough in (True, False)


@pytest.mark.filterwarnings('error')
def test_no_warning_escapes():
    for f in ESTIMATORS.values(): f(np.arange(N))
    for ok in ([], [1], [0], [1, 0], [None]): proportion(ok), proportion(ok, range(len(ok))), mean(ok), mean(ok, bounds=(0, 1)), bootstrap(ok), wilson(0, 0), clopper_pearson(0, 0)


def test_a_million_rows():
    n = 1_000_000
    ok, label, x = rng.random(n) < .95, rng.integers(0, 300_000, n), rng.random(n)
    for e in (proportion(ok), proportion(ok, label), mean(x), mean(x, label), mean(x, bounds=(0, 1)), mean(x, label, bounds=(0, 1)), paired_difference(x, ok, label)):
        assert e.enough and e.n == n and e.high - e.low < .003


@pytest.mark.parametrize('clustered', [False, True])
def test_a_million_rows_are_bootstrapped_in_parts(clustered):
    import tracemalloc
    n, calls = 1_000_000, []
    x, label = rng.exponential(size=n), rng.integers(0, 50_000, n) if clustered else None
    tracemalloc.start()
    try: e = bootstrap(x, lambda v: calls.append(len(v)) or float(np.median(v)), label)
    finally: peak, _ = tracemalloc.get_traced_memory()[1], tracemalloc.stop()
    assert e.enough and e.method == 'sectioning' and e.low < math.log(2) + .01 and e.high > math.log(2) - .01 and e.high - e.low < .01
    assert len(calls) == 101 and sum(calls) == 2*n and peak < 40*n*8  # each row is looked at twice; nothing of replicates times rows


def test_parts_of_the_data_do_not_depend_on_its_order(monkeypatch):
    monkeypatch.setattr(stats, 'LARGE', 1)
    x, label, order = rng.exponential(size=30_000), rng.integers(0, 12_000, 30_000), rng.permutation(30_000)
    for labels in (None, label): assert same(bootstrap(x, np.median, labels), bootstrap(x[order], np.median, None if labels is None else labels[order]))
    few = bootstrap(np.r_[np.zeros(29_999), 1.])
    assert few.method == 'sectioning' and not few.enough and 'skewed' in few.note
    means = [bootstrap(v) for v in rng.exponential(size=(300, 10_000))]
    assert max(np.mean([e.low > 1 for e in means]), np.mean([e.high < 1 for e in means])) <= .05 + 2*math.sqrt(.05*.95/300)


@pytest.mark.parametrize('clusters, parts', [(299, 0), (300, 30), (5000, 50), (20_000, 100)])
def test_few_clusters_make_fewer_parts(clusters, parts):
    n, calls = 600_000, []
    x, label = rng.normal(size=n), np.arange(n) % clusters
    e = bootstrap(x, lambda v: calls.append(len(v)) or float(np.median(v)), label, replicates=200)
    assert e.enough and e.clusters == clusters and (e.method == 'sectioning') == (parts > 0)
    if parts: assert len(calls) == parts + 1 and sum(calls) == 2*n and max(calls[1:]) - min(calls[1:]) <= n/clusters + 1


@pytest.mark.parametrize('clusters', [300, 1000])
def test_parts_of_few_clusters_keep_their_word(monkeypatch, clusters):
    monkeypatch.setattr(stats, 'LARGE', 1)
    def one(i):
        label = np.repeat(np.arange(clusters), rng.choice([1, 2, 5, 40], clusters))
        return bootstrap(rng.normal(size=clusters)[label] + rng.normal(size=len(label)), np.median, label, seed=i)
    found = [one(i) for i in range(300)]
    assert max(np.mean([e.enough and e.low > 0 for e in found]), np.mean([e.enough and e.high < 0 for e in found])) <= .05 + 2*math.sqrt(.05*.95/300)


@pytest.mark.parametrize('world', ['graded', 'whole'])
@pytest.mark.parametrize('sizes', [[1, 2, 3, 4], [10]])
def test_clustered_gate_passes_wrongly_at_most_one_time_in_twenty(world, sizes):
    runs, p, C = 4000, .9, 200//len(sizes)
    size = rng.choice(sizes, (runs, C))
    whole = rng.random(size.shape) < .3
    wrong = rng.binomial(size, rng.beta(.1*(1/.3 - 1), .9*(1/.3 - 1), size.shape)) if world == 'graded' else np.where(whole, size*(rng.random(size.shape) < .1), rng.binomial(size, .1))
    code = (size - wrong)*100 + size
    kinds = np.unique(code)
    count = np.stack([(code == c).sum(1) for c in kinds], 1).astype(float)
    z = stats._signed_root(p, (kinds//100).astype(float), (kinds % 100).astype(float), count)  # many evaluations at once, as notebook and benchmark do
    assert (z <= -1.6448536269514722).mean() <= .05 + 2*math.sqrt(.05*.95/runs)
    low = np.array([stats._gaffke((m - w).astype(float), m.astype(float), .95) for m, w in zip(size[:150], wrong)])
    assert ((low >= p) == (z[:150] <= -1.6448536269514722)).all()


def test_saddlepoint_against_simulated_weights():
    total, size = np.array([10, 10, 9, 10, 4, 10, 10, 7.5]), np.array([10, 10, 10, 10, 10, 10, 12, 8.])
    w = rng.exponential(size=(200_000, 9))
    share = (w[:, :8]@total)/(w[:, :8]@size + w[:, 8]*12)
    assert stats._gaffke(total, size, .95) == pytest.approx(np.quantile(share, .05), abs=5e-3)


def test_bca_agrees_with_scipy():
    from scipy.stats import bootstrap as scipys
    x = np.random.default_rng(5).gamma(2, size=80)
    ours = bootstrap(x, np.std, replicates=20_000)
    theirs = scipys((x,), np.std, confidence_level=.9, n_resamples=20_000, method='BCa', rng=np.random.default_rng(1)).confidence_interval
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=.01)


def test_bootstrap_seed_speed_path_and_strangers():
    x = rng.normal(size=100)
    assert same(bootstrap(x, seed=3), bootstrap(x, seed=3)) and not same(bootstrap(x, seed=3), bootstrap(x, seed=4))
    assert same(bootstrap(x, np.mean), bootstrap(x, lambda v, axis=None: np.mean(v, axis=axis)))
    slow = bootstrap(x, lambda v: float(np.mean(v)))
    assert slow.low == pytest.approx(bootstrap(x).low, abs=.03)
    equal = bootstrap(np.r_[x, -x], clusters=np.repeat(range(100), 2))
    assert equal.clusters == 100 and equal.enough
    with pytest.raises(ZeroDivisionError): bootstrap(x, lambda v: 1/0)  # the caller's own bug is shown, not swallowed


def test_clustered_bootstrap_sees_the_clusters():
    label = np.repeat(range(60), 10)
    x = np.repeat(rng.normal(size=60), 10) + .01*rng.normal(size=600)
    iid, byc = bootstrap(x), bootstrap(x, clusters=label)
    assert (byc.high - byc.low) > 2.5*(iid.high - iid.low)
    assert byc.high - byc.low == pytest.approx(mean(x, label).high - mean(x, label).low, rel=.15)


def test_intraclass_edges():
    assert math.isnan(intraclass([], [])) and math.isnan(intraclass([1, 2], [1, 2])) and math.isnan(intraclass([1, 2], [1, 1])) and math.isnan(intraclass([1, 1, 1, 1], [1, 1, 2, 2]))
    assert intraclass([1, 1, 0, 0], [1, 1, 2, 2]) == 1


@pytest.mark.parametrize('p, t', [(.98, .95), (.999, .99), (.93, .9), (.6, .5), (.02, .05), (1, .99), (0, .01)])
def test_planned_n_has_the_power_from_there_on(p, t):
    from scipy.stats import binom
    n0 = n_proportion(p, t)
    power = lambda n: binom.pmf(np.arange(n + 1), n, p)[(clopper_pearson(np.arange(n + 1), n, .9)[0] >= t) if p > t else (clopper_pearson(np.arange(n + 1), n, .9)[1] <= t)].sum()
    assert power(n0 - 1) < .8 and all(power(n) >= .8 for n in range(n0, n0 + 60))


def test_planned_mean_has_the_power():
    n = n_mean(1, .4)
    hits = np.mean([mean(r).low > 0 for r in rng.normal(.4, 1, (1500, n))])
    assert abs(hits - .8) < .05 and n_mean(1, 5) == stats.MIN_MEAN


def test_import_is_light():
    code = "import sys, genai_playbook.stats; print([m for m in ('scipy', 'pandas', 'matplotlib', 'sklearn', 'torch', 'fastcore') if m in sys.modules])"
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip() == '[]'
