"The search for the highest rate, and what became of each request, on noise, spoiled runs and odd input"
import math
import os
import time

import numpy as np
import pandas as pd
import pytest

from genai_playbook.capacity import Replica, poisson_times, rate_for, simulate
from genai_playbook.errors import PlaybookError
from genai_playbook.knee import Promise, Step, Watch, find_knee, next_rate, outcomes, phases, pooled, rate_at_slo, recovery, share_of, timeline
from genai_playbook.stats import proportion

ALL = proportion([1]*400)


def fixed(rate, share, n=400, **kw): return Step(rate, proportion([1]*round(share*n)+[0]*(n-round(share*n))), ALL, **kw)


@pytest.mark.parametrize('seed', range(8))
def test_the_search_brackets_the_truth_of_a_batching_server(seed):
    replica = Replica(.02, .004, .2, 16, 64)
    truth, tried = rate_for(replica, 1, .4, requests=30_000, seed=seed), []
    def try_at(rate):
        run = simulate(poisson_times(rate, 1500, 100*seed+len(tried)), replica, seed=100*seed+len(tried))
        tried.append(rate)
        return Step(rate, share_of(run.latency <= .4, run.latency), share_of(~run.refused))
    found = rate_at_slo(find_knee(try_at, replica.most, Promise(.95, .9), rounds=6, limit=replica.most), Promise(.95, .9), 1.2*replica.most)
    assert found.enough and found.low <= 1.05*truth and found.high >= .95*truth
    assert len(tried) <= 6 and max(tried) <= replica.most


@pytest.mark.parametrize('edge', [0, .3, 7, 55, 99, 1000])
def test_a_sharp_edge_is_found_or_bounded(edge):
    steps = find_knee(lambda r: fixed(r, r <= edge), ceiling=100, rounds=8)
    found = rate_at_slo(steps)
    assert found.low <= edge and (found.high >= edge or math.isinf(edge))
    assert len({s.rate for s in steps}) == len(steps) <= 8


def test_a_limit_is_never_exceeded():
    steps = find_knee(lambda r: fixed(r, 1), ceiling=500, rounds=10, limit=30)
    assert max(s.rate for s in steps) == 30 and len(steps) <= 3


def test_spoiled_runs_decide_nothing():
    def late(r): return fixed(r, 1, valid=False, why='the client was late')
    found = rate_at_slo(find_knee(late, 100, rounds=4))
    assert not found.enough and 'late' in found.note
    assert rate_at_slo([]).enough is False
    mixed = rate_at_slo([fixed(10, 1), late(50)])
    assert mixed.enough and mixed.low == 10 and '1 of 2' in mixed.note


def test_noise_that_goes_up_and_down_is_believed_at_its_lowest():
    steps = [fixed(10, 1), fixed(20, .5), fixed(30, 1)]
    assert rate_at_slo(steps).low == 10 and rate_at_slo(steps).high == 20
    r = next_rate(steps, 40, Promise())
    assert r is None or r < 20


def test_nothing_answered_is_said():
    with pytest.raises(PlaybookError, match='does the system answer'): find_knee(lambda r: fixed(r, 1), 0)


def test_too_few_requests_prove_nothing():
    assert rate_at_slo([Step(10, proportion([1]*20), proportion([1]*20))]).low == 0


def test_refusals_count_against_a_rate():
    s = Step(10, ALL, proportion([1]*90+[0]*10))
    assert s.verdict(Promise()) == 'missed' and not s.seems(Promise())


def test_a_share_of_nothing_and_of_constants():
    assert not share_of([]).enough and not pooled([]).enough
    assert share_of([1]*300).low == pytest.approx(proportion([1]*300).low)
    assert share_of([0]*300).high == pytest.approx(proportion([0]*300).high)
    assert share_of([1]*300, [math.nan]*300).value == 1
    clumped = share_of(np.repeat(np.random.default_rng(0).random(20) < .9, 30))
    assert clumped.high-clumped.low > 2*(proportion(np.repeat([1]*18+[0]*2, 30)).high-proportion(np.repeat([1]*18+[0]*2, 30)).low)


def test_pooling_counts_what_runs_are_worth():
    a = share_of(np.ones(200), np.random.default_rng(0).random(200))
    assert pooled([a, a, a]).low > a.low and pooled([a, a]).n == 400


def table(**kw):
    n = len(kw['scheduled'])
    return pd.DataFrame(dict(status=[200]*n, error=['']*n) | kw)


def test_outcomes_by_status_and_error():
    d = table(scheduled=[0., 1, 2, 3, 4], status=[200, 429, 503, 500, 0], error=['', 'HTTP 429', 'HTTP 503', 'HTTP 500', 'refused'])
    assert outcomes(d).tolist() == ['answered', 'refused', 'refused', 'lost', 'lost']


def test_phases_without_requests_and_without_answers():
    d = table(scheduled=[0., .5], first_token=[np.nan]*2, last=[np.nan]*2, error=['reset']*2)
    p = phases(d, [0, 1, 2], ['a', 'b'])
    assert p.loc['a', 'lost'] == 2 and p.loc['a', 'goodput'] == 0 and p.loc['b', 'offered'] == 0 and math.isnan(p.loc['a', 'p95'])


def test_recovery():
    d = table(scheduled=[0., 1, 2, 3], first_token=[.1, 1.9, 2.1, 3.1], last=[.2, 2., 2.2, 3.2])
    assert recovery(d, 0, latency=.5) == 1 and recovery(d, 2, latency=.5) == 0 and recovery(d, 9) == math.inf and recovery(d, 0, latency=.01) == math.inf


def test_a_timeline_has_a_row_for_each_bin_that_was_used():
    d = table(scheduled=[.1, .2, 5.], first_token=[.2, .3, np.nan], last=[.3, .4, np.nan], error=['', '', 'reset'])
    t = timeline(d, 6, 1)
    assert t['seconds'].tolist() == [.5, 5.5] and t['failed'].tolist() == [0, 1]


def test_watching_nobody_and_the_dead():
    with Watch(None) as w: pass
    assert w.table().empty
    with Watch(2**22+1, every=.01) as w: time.sleep(.05)
    assert w.table().empty
    with Watch(os.getpid(), every=.01) as w: time.sleep(.1)
    assert len(w.table()) and (w.table()['memory'] > 1).all()
