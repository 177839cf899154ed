"Chapter 03: its plan, its estimates, and each model kind by hand"
import math
import os

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError

from genai_playbook.capacity import Replica, as_slow_as, capacity_plan, rate_for
from genai_playbook.load import GATES, Bench, Section, fleet_rate, kept_share, long_enough, lost_share, on_cores, over, throughput
from genai_playbook.stats import Estimate

FOUND = Estimate(50., 45., 60., 999, 'search')


@pytest.mark.parametrize('bad', [dict(good=1.5), dict(headroom=-1), dict(overload=1), dict(months=0), dict(nope=1), dict(timeout=0)])
def test_a_section_that_cannot_be(bad):
    with pytest.raises(ValidationError): Section(**bad)


def test_gates_plan_rows_for_their_defaults():
    assert all(g.plan is None or 1 <= g.plan(g.default) < 10_000 for g in GATES)
    assert len({g.code for g in GATES}) == len(GATES)


def test_a_plan_needs_a_rate_that_was_kept():
    assert capacity_plan(Estimate(0., 0., 10., 99, 'search'), None, 5, 3, .3, 1, 1, .95) is None


def test_a_plan_by_division_rounds_up():
    p = capacity_plan(FOUND, None, 45, 2, 0, 1, 1, .95)
    assert (p.expected, p.peak, p.replica) == (1, 2, None) and p.utilisation == pytest.approx(.9)
    assert capacity_plan(FOUND, None, 45.01, 2, 0, 1, 1, .95).expected == 2


def test_the_planned_replica_keeps_what_was_measured_and_no_more():
    one = Replica(.01, .002, .2, 16, 64)
    slow = as_slow_as(one, 100, .3, math.inf, .95)
    assert rate_for(slow, 1, .3) == pytest.approx(100, rel=.05) and slow.fixed > one.fixed
    assert as_slow_as(Replica(1, 1), 100, .3, math.inf, .95) == Replica(1, 1)  # nothing fits: left as it is


def test_more_headroom_never_means_fewer():
    one = Replica(.02, .004, .2, 8, 64)
    peaks = [capacity_plan(FOUND, one, 40, 4, h, .4, math.inf, .95).peak for h in (0, .5, 1)]
    assert peaks == sorted(peaks)


def test_scaled_estimates():
    assert over(fleet_rate(FOUND, 2), 10).low == 9 and fleet_rate(FOUND, 1) is FOUND


def test_long_enough_has_ends():
    assert long_enough(1e-6, 2) == 90 and long_enough(1e6, 2) == 2


def table(n, **kw): return pd.DataFrame(dict(scheduled=np.arange(n)/10, first_token=np.arange(n)/10+.1, last=np.arange(n)/10+.2, status=[200]*n, error=['']*n) | kw)


def test_lost_and_kept():
    assert lost_share(table(400)).value == 0 and not lost_share(table(400), 'late').enough
    assert lost_share(table(10, error=['reset']*10, status=[0]*10)).value == 1
    assert not lost_share(table(3, status=[429]*3, error=['HTTP 429']*3)).enough  # nothing was accepted, so nothing is known
    k = kept_share(table(100), 0, 10, 10, 1, 1)
    assert k.value == pytest.approx(1, abs=.1)
    assert kept_share(table(100, first_token=[np.nan]*100, last=[np.nan]*100, error=['x']*100), 0, 10, 10, 1, 1).value == 0


def test_throughput_of_nothing():
    assert throughput(table(0)) == 0 and throughput(table(2, error=['x', 'y'])) == 0


@pytest.mark.skipif(not hasattr(os, 'sched_getaffinity'), reason='no affinity here')
def test_cores_are_given_back():
    before = os.sched_getaffinity(0)
    with pytest.raises(ZeroDivisionError), on_cores(sorted(before)[:1]):
        assert len(os.sched_getaffinity(0)) == 1
        raise ZeroDivisionError
    assert os.sched_getaffinity(0) == before


def test_a_bench_drives_a_function_through_a_server_and_ends_it(tmp_path):
    from genai_playbook import arrivals
    from genai_playbook.card import load_card
    (tmp_path/'bot.py').write_text('def answer(prompt):\n    yield "hello "\n    yield "there"\n')
    (tmp_path/'rows.csv').write_text('id,prompt,reference\n' + ''.join(f'{i},question {i},hello\n' for i in range(30)))
    (tmp_path/'poc.yaml').write_text('poc: mine\noutcome: {promise: x}\nmodel: {kind: python, target: "bot:answer"}\ndata: {evaluation: rows.csv}\n')
    bench = Bench(load_card(tmp_path/'poc.yaml'), timeout=10)
    try:
        d = bench.drive(arrivals.poisson(30, 1, seed=1))
        assert len(d.requests) and (d.requests['error'] == '').all() and d.requests['last'].notna().all()
        assert bench.server.stats()['accepted'] == len(d.requests)
    finally: bench.close()
    assert bench.server.process.returncode == 0
