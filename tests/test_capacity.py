"Queues, simulations and plans on odd input, and the plan beside brute force"
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genai_playbook.capacity import (Replica, Scaling, autoscaling_table, curve_of, erlang_c, fit_queue, fit_replica, forecast, in_flight, mmc_wait, plan_case, poisson_times,
                                     pollaczek_khinchine, replicas_for, simulate, step_times)
from genai_playbook.errors import PlaybookError


@pytest.mark.parametrize('seeds, share', [(range(200, 220), .9), pytest.param(range(200), .95, marks=pytest.mark.slow)])
def test_the_plan_is_within_one_replica_of_brute_force(seeds, share):
    cases = [plan_case(s, 6000 if share < .95 else 20_000) for s in seeds]
    assert None not in [x for c in cases for x in c]
    near = [abs(a-b) <= 1 for a, b in cases]
    print(f'{sum(near)} of {len(near)} within one replica, {sum(a == b for a, b in cases)} equal; up to {max(b for _, b in cases)} replicas')
    assert np.mean(near) >= share


@pytest.mark.parametrize('load, servers, rel', [(.5, 1, .1), (.9, 1, .2), (4, 5, .1), (8, 10, .1), (180, 200, .5)])  # with many servers few wait, and those together
def test_m_m_c_through_the_simulator(load, servers, rel):
    r = simulate(poisson_times(load, 100_000, servers), Replica(0, 1, cv=1), servers, 'shared', seed=servers)
    assert (r.wait > 1e-12).mean() == pytest.approx(erlang_c(load, servers), rel=rel)
    assert r.wait.mean() == pytest.approx(mmc_wait(load, 1, servers), rel=rel)
    assert r.busy/r.seconds/servers == pytest.approx(load/servers, rel=.05)


@pytest.mark.parametrize('cv', [0, .5, 1, 1.5])
def test_m_g_1_through_the_simulator(cv):
    r = simulate(poisson_times(6, 150_000, 3), Replica(0, .1, cv=cv), seed=1)
    assert r.wait.mean() == pytest.approx(pollaczek_khinchine(6, .1, cv), rel=.1)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 6), st.sampled_from(['least', 'random', 'shared']), st.integers(1, 8), st.sampled_from([0, 3, math.inf]), st.floats(.1, 3), st.booleans())
def test_what_holds_in_every_simulation(seed, n, balance, batch, queue, load, scales):
    replica = Replica(.01, .01, .3, batch, queue, .5)
    r = simulate(poisson_times(load*n*replica.most, 300, seed), replica, n, balance, Scaling(replica.most, period=.2, delay=.5, cool=1) if scales else None, seed)
    ok = ~r.refused
    assert (r.wait[ok] >= 0).all() and (r.latency[ok] > r.ttft[ok]).all() and (r.ttft[ok] >= r.wait[ok]).all()
    assert (r.size[ok] >= 1).all() and (r.size[ok] <= batch).all() and (r.size[~ok] == 0).all()
    if math.isinf(queue): assert ok.all()  # nothing accepted is lost
    assert r.busy <= r.seconds*max(k for _, k in r.replicas)+1e-9 or scales
    assert in_flight(r.at[ok], (r.at+r.latency)[ok]) == pytest.approx(ok.sum()*r.latency[ok].mean()/(r.seconds-r.at[ok][0]))
    assert 0 <= r.good(.05) <= 1


def test_empty_and_single_arrivals():
    r = simulate([], Replica(0, 1))
    assert r.seconds == 0 and math.isnan(r.good(1)) and math.isnan(in_flight(np.array([]), np.array([])))
    r = simulate([3.], Replica(0, 1))
    assert r.latency.tolist() == [1.] and r.seconds == 4.
    assert simulate([0.]*5, Replica(0, 1, batch=2, queue=2)).refused.tolist() == [False]*3+[True]*2


def test_arguments_that_cannot_be():
    with pytest.raises(PlaybookError): simulate([1.], Replica(0, 1), 0)
    with pytest.raises(PlaybookError): simulate([1.], Replica(0, 1), balance='fair')
    with pytest.raises(PlaybookError): erlang_c(1, 0)
    with pytest.raises(PlaybookError, match='traffic'): replicas_for(0, Replica(0, 1))
    assert erlang_c(0, 3) == 0 and erlang_c(5, 3) == 1 and math.isinf(mmc_wait(5, 1, 3)) and math.isinf(pollaczek_khinchine(5, 1, 0)) and mmc_wait(0, 1, 1, q=.9) == 0


def test_a_service_level_that_one_request_alone_breaks_has_no_plan():
    assert replicas_for(1, Replica(.5, .5), latency=.9) is None
    assert replicas_for(1, Replica(.5, .5, first=.9), ttft=.5) is None


def test_more_traffic_never_needs_fewer():
    plan = [replicas_for(r, Replica(.02, .01, .2, 8, 64), .3, seed=1) for r in (1, 50, 100, 200, 400)]
    assert plan == sorted(plan) and plan[0] == 1
    assert replicas_for(100, Replica(.02, .01, .2, 8, 64), .3, headroom=.5) >= plan[2]


@pytest.mark.parametrize('curve', [{1: [5, 0., 0.]}, {3: [1, .1, .01]}, {1: [10, 1., .1], 8: [10, .5, .025]}, {1: [100, 1e-9, 0], 2: [1, 5., 25.]}, {1: [0, 0, 0], 2: [4, .4, .04]}])
def test_a_fit_of_odd_curves_is_usable(curve):
    r = fit_replica(curve, 8)
    assert r.fixed >= 0 and r.each >= 0 and r.cv >= 0 or math.isnan(r.cv)
    assert all(r.seconds(k) >= 0 for k in (1, 8))


@pytest.mark.parametrize('curve', [{}, {1: [0, 0, 0]}])
def test_nothing_measured_is_no_fit(curve):
    with pytest.raises(PlaybookError, match='load'): fit_replica(curve, 8)


def test_curve_of_counts_batches_not_requests():
    r = simulate([0., .01, .02, .03], Replica(.1, .1, batch=3))
    assert {k: v[0] for k, v in curve_of(r).items()} == {1: 1, 3: 1}


def test_a_queueing_fit_of_too_little_or_noise():
    assert fit_queue([1, 2], [.1, .2]) is None and fit_queue([1, 2, math.nan], [.1, 0, .2]) is None
    rng = np.random.default_rng(0)
    rates = np.linspace(10, 90, 9)
    fit = fit_queue(rates, .05+.02*(rates/100)/(1-rates/100)*rng.lognormal(0, .05, 9))
    assert fit.capacity == pytest.approx(100, rel=.15) and fit.idle == pytest.approx(.05, rel=.15)
    assert math.isinf(fit.latency(fit.capacity*1.01)) and fit.latency(0) == pytest.approx(fit.idle)
    flat = fit_queue([1, 2, 3, 4], [.1, .1, .1, .1])
    assert flat.latency(4) == pytest.approx(.1, rel=.2)


def test_an_autoscaler_follows_and_gives_back():
    at = np.concatenate([step_times(50, 300, 60, 200, 1), 200+poisson_times(50, 20_000, 2)])
    r = simulate(at, Replica(.01, .008, batch=8), 1, scaling=Scaling(60, period=10, delay=20, cool=60))
    assert max(k for _, k in r.replicas) >= 5 and r.replicas[-1][1] == 1 and not r.refused.any()
    assert [t for t, _ in r.replicas] == sorted(t for t, _ in r.replicas)
    t = autoscaling_table(at, Replica(.01, .008, batch=8), 1, Scaling(60, period=10), [0, 60], latency=.5)
    assert t['in_time'].iloc[0] > t['in_time'].iloc[1]


def test_forecast_of_small_traffic():
    t = forecast(.01, 3, .5, 24, Replica(.01, .01, batch=4), every=12, latency=1, n=500)
    assert list(t.index) == [0, 12, 24] and (t['replicas_peak'] >= t['replicas_expected']).all() and t['replicas_expected'].iloc[0] == 1
