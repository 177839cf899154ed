"The error rates that chapter 01 shows: exact rows are computed again, simulated ones must agree with their summary and keep within the bars"
import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binom

import genai_playbook
from genai_playbook.error_rates import error_table, gating, plot_all_gates, rows_for_all, simulated
from genai_playbook.stats import clopper_pearson, n_proportion, n_zero_failures, wilson

RATES = simulated()
BOUNDS = {'point': lambda k, n, level: (k/n, k/n), 'Wilson': wilson, 'Clopper-Pearson': clopper_pearson}


def rows_of(section, method):
    "Settings and rates (enough, false GO, false NO-GO, coverage, runs) of a method"
    i = 1 + [m['method'] for m in section['methods']].index(method)
    return [(row[0], [math.nan if v is None else v for v in row[i][:4]] + [row[i][4] or math.inf]) for row in section['rows'] if row[i] is not None]


def every_gating():
    return [pytest.param(s, m, id=f"{s['title'].split(':')[0]}: {m['method']}") for s in RATES['sections'] for m in s['methods'] if m['gates']]


def bar(runs): return .05 + 2*math.sqrt(.05*.95/runs) + 1e-6


def test_it_is_the_full_run_of_this_version():
    assert RATES['version'] == genai_playbook.__version__ and not RATES['quick'] and RATES['alpha'] == .05
    assert len(RATES['sections']) == 9 and RATES['all_gates']


@pytest.mark.parametrize('method', list(BOUNDS))
def test_exact_rows_are_computed_again(method):
    for (p, n), (enough, go, nogo, coverage, runs) in rows_of(RATES['sections'][0], method):
        k = np.arange(n + 1)
        pmf, bounds = binom.pmf(k, n, p), BOUNDS[method]
        (low, high), (low2, high2) = bounds(k, n, .9), bounds(k, n, .95)
        again = pmf[low >= p].sum(), pmf[high < p].sum(), pmf[(low2 <= p) & (p <= high2)].sum()
        assert (go, nogo, coverage) == pytest.approx(again, abs=2e-6) and enough == 1 and runs == math.inf


@pytest.mark.parametrize('section, method', every_gating())
def test_no_gate_errs_more_often_than_it_may(section, method):
    for setting, (_, go, nogo, _, runs) in rows_of(section, method['method']):
        assert go <= bar(runs) and nogo <= bar(runs), setting


@pytest.mark.parametrize('section, method', every_gating())
def test_intervals_hold_where_they_claim_to(section, method):
    careful = []
    for setting, (enough, _, _, coverage, runs) in rows_of(section, method['method']):
        if enough < RATES['claimed']: continue
        slack = 2*math.sqrt(.05*.95/(runs*enough)) + 1e-6
        assert coverage >= .93 - slack, setting
        if coverage > .97 + slack and not method['exact']: careful.append(setting)
    assert [s for s, what in method['broken'] if 'careful' in what] == careful
    assert len(careful) <= len(section['rows'])/10


@pytest.mark.parametrize('section, method', every_gating())
def test_the_summary_is_that_of_the_rows(section, method):
    rows = rows_of(section, method['method'])
    assert method['rows'] == len(rows)
    for key, i in (('false_go', 1), ('false_nogo', 2)):
        worst = max(r[i] for _, r in rows)
        assert method[key] == pytest.approx(worst) and any(s == method[f'{key}_at'] and r[i] == pytest.approx(worst) for s, r in rows)
    told = [r[3] for _, r in rows if r[0] >= RATES['claimed']]
    assert method['coverage'] == pytest.approx([min(told), max(told)])


def test_methods_that_are_only_compared_do_break_the_bars():
    for s in RATES['sections']:
        for m in s['methods']:
            if not m['gates'] and m['method'] not in ('percentile', 'ratio, clusters'):
                assert any(max(go, nogo) > bar(runs) for _, (_, go, nogo, _, runs) in rows_of(s, m['method'])), m['method']


def test_all_gates_together():
    rows = RATES['all_gates']
    assert [r['n'] for r in rows] == sorted({r['n'] for r in rows}) and {n_proportion(.98, .95, power=p) for p in (.8, .9, .98)} <= {r['n'] for r in rows}
    for r in rows:
        k = np.arange(r['n'] + 1)
        assert r['power'] == pytest.approx(binom.pmf(k, r['n'], .98)[clopper_pearson(k, r['n'], .9)[0] >= .95].sum(), abs=1e-5)
        assert r['own'] == pytest.approx(r['power']**10, abs=4*math.sqrt(.25/r['runs'])) and r['shared'] >= r['own'] - 4*math.sqrt(.5/r['runs'])
        assert r['false_go'] <= bar(r['runs'])
    assert rows_for_all(RATES, .9) >= rows_for_all(RATES, .5) and rows_for_all(RATES, 1.1) is None


def test_near_the_threshold_gates_err_no_more_than_on_it():
    assert len({r['gate'] for r in RATES['near']}) == 7
    for r in RATES['near']:
        below, _, on, _, above = r['verdicts']
        for go, nogo in (below, r['verdicts'][1]): assert go <= bar(r['runs'] or math.inf) and nogo >= go
        for _, nogo in (r['verdicts'][3], above): assert nogo <= bar(r['runs'] or math.inf)
        assert below[0] <= on[0] <= above[0] and below[1] >= on[1] >= above[1]   # the better the system, the more GO


def test_what_a_reader_sees():
    table = error_table(RATES)
    assert len(table) == len(list(gating(RATES))) and table.index.is_unique and not table.isna().any(axis=None)
    assert f'{n_zero_failures(.95)} answers' in table.loc[('A share of independent answers', 'Clopper-Pearson'), 'INSUFFICIENT below']
    fig = plot_all_gates(RATES)
    assert len(fig.axes[0].lines) == 3


def test_the_benchmark_still_simulates_what_is_stored():
    spec = importlib.util.spec_from_file_location('gates_benchmark', Path(__file__).parents[1]/'benchmarks'/'gates.py')
    gates = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(gates)
    *_, gaffke = gates.clusters_of([1, 2, 3, 4], 'whole', .3, .95, 500, np.random.default_rng(5), 400)
    stored = dict((tuple(s), r) for s, r in rows_of(RATES['sections'][1], 'Gaffke'))['1 to 4', 'whole', .3, .95, 500]
    for a, b in zip(gaffke[1:4], stored[1:4]): assert a == pytest.approx(b, abs=4*math.sqrt(.05*.95/400))
