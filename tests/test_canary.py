"The canary judge on bad input: gaps, duplicates, disorder, nonsense, one arm only, one user only"
import math, random, warnings
from dataclasses import replace

import numpy as np, pytest

from genai_playbook.canary import (CanaryJudge, DEFAULT_LIMITS, Limit, Plan, Release, Seen, Sums, compare_arms, mann_whitney_mode, n_to_decide,
    ratio_mismatch, rolled_back, simulated)
from genai_playbook.errors import PlaybookError

FAILED = [Limit('failed', .01)]

def traffic(canary=.02, baseline=.02, n=1000, seed=0, share=.5, **more):
    "Finished requests of different users, failing with these chances"
    dice = np.random.default_rng(seed)
    for i in range(n):
        arm, p = ('canary', canary) if dice.random() < share else ('baseline', baseline)
        yield Seen(i/100, arm, f'u{i}', bool(dice.random() < p), **dict(seconds=float(dice.lognormal(0, .3)), refused=False, quality=.9, cost=.002, harmful=False, id=str(i)) | more)

def fed(judge, requests):
    for r in requests: judge.see(r)
    return judge

def states(judge): return {r['metric']: r['state'] for r in judge.verdict().rows}

def test_three_times_the_errors_roll_back():
    verdict = fed(CanaryJudge(FAILED, share=.5), traffic(.06, n=1600)).verdict()
    assert verdict.action == 'rollback' and verdict.because.startswith('Failed is worse') and verdict.rows[0]['low'] > 0

@pytest.mark.parametrize('n', [0, 1, 100, 5000])
@pytest.mark.parametrize('arm', ['baseline', 'canary'])
def test_one_arm_without_traffic_waits(arm, n):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        verdict = fed(CanaryJudge(), (replace(r, arm=arm, failed=True) for r in traffic(n=n))).verdict()
    assert verdict.action == 'wait' and 'o traffic in' in verdict.because and verdict.needed == 600
    assert {r['state'] for r in verdict.rows} == {'no data'}

def test_a_canary_that_dies_at_once_is_rolled_back_within_fifteen_of_its_requests():
    judge = CanaryJudge()
    for r in traffic(1., .02, 2000, share=.1):
        judge.see(r)
        if judge.verdict().action == 'rollback': break
    assert judge.verdict().action == 'rollback' and judge.n['canary'] <= 15

def test_a_request_with_an_id_counts_once():
    once, twice = fed(CanaryJudge(), traffic(.06)), CanaryJudge()
    for r in traffic(.06): twice.see(r); twice.see(r)
    assert twice.verdict() == once.verdict()

def test_the_order_and_the_times_do_not_matter():
    requests = list(traffic(.04, n=3000))
    shuffled = [replace(r, at=random.Random(1).uniform(-1e9, 1e9)) for r in random.Random(0).sample(requests, len(requests))]
    a, b = fed(CanaryJudge(share=.5), requests).verdict(), fed(CanaryJudge(share=.5), shuffled).verdict()
    assert (a.action, a.n, [r['state'] for r in a.rows]) == (b.action, b.n, [r['state'] for r in b.rows])
    assert [r['difference'] for r in a.rows] == pytest.approx([r['difference'] for r in b.rows], abs=1e-12)

def test_asking_more_often_changes_nothing():
    asked, quiet = CanaryJudge(share=.5), fed(CanaryJudge(share=.5), traffic())
    for i, r in enumerate(traffic()): asked.see(r); i % 7 or asked.verdict()
    assert asked.verdict() == quiet.verdict()

@pytest.mark.parametrize('value', [math.nan, math.inf, -1., 'fast', None, [1], object()])
def test_what_is_no_number_is_no_measurement(value):
    judge = fed(CanaryJudge(share=.5), traffic(n=3000, seconds=value, quality=value))
    verdict = judge.verdict()
    assert verdict.action == 'wait' and states(judge)['seconds'] == states(judge)['quality'] == 'no data' and 'seconds, quality' in verdict.because

@pytest.mark.parametrize('value', [1e300, 1e-300, 0.])
def test_absurd_numbers_break_nothing_and_pass_nothing_wrongly(value):
    requests = (replace(r, seconds=value if r.arm == 'canary' else r.seconds) for r in traffic(n=3000))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        verdict = fed(CanaryJudge([Limit('seconds', .2, relative=True)], share=.5), requests).verdict()
    assert verdict.action == ('promote' if value < 1 else 'wait')

def test_a_required_metric_without_data_is_never_promoted_and_an_optional_one_does_not_hold_up():
    limits = [Limit('failed', .05), Limit('quality', -.1)]
    assert fed(CanaryJudge(limits, share=.5), traffic(n=3000, quality=None)).verdict().action == 'wait'
    limits[1] = Limit('quality', -.1, required=False)
    assert fed(CanaryJudge(limits, share=.5), traffic(n=3000, quality=None)).verdict().action == 'promote'
    assert fed(CanaryJudge([limits[1]], share=.5), traffic(n=3000)).verdict().action == 'wait'

def test_scores_that_go_missing_in_the_canary_do_not_pass():
    limits = [Limit('quality', -.1)]
    lost = (replace(r, quality=None if r.arm == 'canary' and i % 3 else .9) for i, r in enumerate(traffic(n=3000)))
    assert states(fed(CanaryJudge(limits, share=.5), lost)) == {'quality': 'no data'}
    sampled = (replace(r, quality=None if i % 3 else .9) for i, r in enumerate(traffic(n=3000)))
    assert states(fed(CanaryJudge(limits, share=.5), sampled)) == {'quality': 'fine'}

def test_failing_fast_is_not_being_fast():
    judge = CanaryJudge([Limit('seconds', .2, relative=True)], share=.5)
    fed(judge, (replace(r, failed=r.arm == 'canary' and i % 2 == 0, seconds=.001 if r.arm == 'canary' and i % 2 == 0 else 2. if r.arm == 'canary' else 1.) for i, r in enumerate(traffic(n=2000))))
    assert judge.verdict().action == 'rollback' and judge.verdict().rows[0]['canary'] == pytest.approx(2)

def test_one_user_is_one_user():
    requests = (replace(r, user='ann' if r.arm == 'canary' else r.user, failed=r.arm == 'canary') for r in traffic(n=2000))
    assert fed(CanaryJudge(FAILED, share=None), requests).verdict().action == 'wait'

def test_lost_users_stop_a_promotion_but_no_rollback():
    limits = [Limit('failed', .05)]
    assert fed(CanaryJudge(limits, share=.5), traffic(n=4000)).verdict().action == 'promote'
    lossy = fed(CanaryJudge(limits, share=.5), traffic(n=4000, share=.4)).verdict()
    assert lossy.action == 'wait' and 'split' in lossy.because
    assert fed(CanaryJudge(limits, share=.5), traffic(.2, n=4000, share=.4)).verdict().action == 'rollback'
    assert fed(CanaryJudge(limits, share=None), traffic(n=4000, share=.4)).verdict().action == 'promote'

def test_after_full_promotion_the_baseline_is_remembered():
    judge = fed(CanaryJudge([Limit('failed', .05)], share=.5), traffic(n=4000))
    judge.next_step(1)
    assert judge.verdict().action == 'wait' and judge.n['baseline'] > 1500 and not judge.n['canary']
    fed(judge, (replace(r, arm='canary', id=f'new {r.id}') for r in traffic(.3, .3, n=200)))
    assert judge.verdict().action == 'rollback'
    judge.next_step(.5)
    assert judge.n == dict(baseline=0, canary=0)

def test_every_metric_can_roll_back_alone():
    bad = dict(failed=True, seconds=9., refused=True, quality=.1, cost=.1, harmful=True)
    for metric, value in bad.items():
        judge = fed(CanaryJudge(share=.5), (replace(r, **{metric: value}) if r.arm == 'canary' else r for r in traffic(n=600)))
        assert judge.verdict().action == 'rollback' and states(judge)[metric] == 'worse', metric

@pytest.mark.parametrize('wrong, text', [(dict(metric='latency'), 'failed, seconds'), (dict(worst=0.), 'above 0'), (dict(worst=-.1), 'above 0'), (dict(worst=math.nan), 'above 0'),
    (dict(metric='quality'), 'below 0'), (dict(weight=0.), 'weight')])
def test_a_limit_says_what_is_wrong_with_it(wrong, text):
    with pytest.raises(PlaybookError, match=text): Limit(**dict(metric='failed', worst=.01) | wrong)

@pytest.mark.parametrize('wrong, text', [(dict(limits=[]), 'at least one'), (dict(limits=FAILED*2), 'one limit'), (dict(level=0), 'level'), (dict(level=1), 'level'),
    (dict(share=0), 'share'), (dict(share=1.), 'share'), (dict(planned=0), 'planned'), (dict(least=1), 'least')])
def test_a_judge_says_what_is_wrong_with_its_settings(wrong, text):
    with pytest.raises(PlaybookError, match=text): CanaryJudge(**wrong)

def test_an_unknown_arm_is_refused():
    with pytest.raises(PlaybookError, match='baseline'): CanaryJudge(FAILED).see(Seen(0, 'blue'))

def test_the_judge_says_what_the_arrays_say():
    judge = fed(CanaryJudge(FAILED, share=.5), traffic(.03, n=2000))
    rows = [r for r in traffic(.03, n=2000)]
    by = {arm: [r.failed for r in rows if r.arm == arm] for arm in ('baseline', 'canary')}
    b, c = (Sums.independent(*(np.array([float(x)]) for x in (len(v), sum(v), sum(v)))) for v in by.values())
    x, row = compare_arms(b, c, Plan(FAILED)), judge.verdict().rows[0]
    assert (row['difference'], row['low'], row['high']) == pytest.approx((x.difference[0], x.low[0], x.high[0]), abs=1e-12)

def test_equal_releases_with_long_tails_and_rare_failures_stay():
    for release in (Release(spread=1.3), Release(failed=.002, harmful=1e-4, quality=.995), Release(failed=.3, refused=.4)):
        for steps in ((15, 15), (5, 45), (45, 5)):
            back = np.isfinite(rolled_back(simulated(release, release, runs=600, steps=steps, seed=3)))
            assert back.mean() <= .05+3*math.sqrt(.05*.95/600), (release, steps)

@pytest.mark.slow
def test_the_level_and_the_power_hold_in_twenty_thousand_runs():
    assert np.isfinite(rolled_back(simulated(Release(), runs=20_000, seed=5))).mean() <= .05
    assert np.isfinite(rolled_back(simulated(Release(failed=.06), runs=20_000, seed=6))).mean() >= .95

def test_n_to_decide_grows_with_the_square_of_the_limit():
    one = Sums.independent(*(np.array([x]) for x in (600., 12., 12.)))
    wide, narrow = (n_to_decide(one, one, Plan([Limit('failed', w)]))[0] for w in (.02, .01))
    assert 3 < narrow/wide < 4.5

def test_the_default_limits_are_all_judged():
    judge = fed(CanaryJudge(share=.5), traffic(n=12_000))
    assert judge.verdict().action == 'promote' and set(states(judge)) == {l.metric for l in DEFAULT_LIMITS}

@pytest.mark.parametrize('share', [0, 1, -1, 2, math.nan])
def test_a_split_needs_a_share(share):
    with pytest.raises(PlaybookError, match='share'): ratio_mismatch(1, 9, share)

def test_ratio_checks_of_nothing_find_nothing():
    assert ratio_mismatch(0, 0, .1) == 1 and ratio_mismatch(0, 10**7, .1) < 1e-300

def test_time_series_without_data_do_not_pass():
    series = list(np.random.default_rng(0).normal(100, 5, 50))
    for pair in (([], []), ([], series), (series, []), (series, [math.nan]*50), (series, [math.inf]*50), (series, series[:9])):
        found = mann_whitney_mode(*pair)
        assert found.label == 'Nodata' and not found.passes

def test_time_series_that_are_equal_constant_or_lower():
    series = list(np.random.default_rng(0).normal(100, 5, 50))
    assert mann_whitney_mode(series, series).passes and mann_whitney_mode([5.]*20, [5.]*20).passes and mann_whitney_mode([0.]*20, [0.]*20).passes
    assert mann_whitney_mode(series, [x/2 for x in series]).label == 'Low' and mann_whitney_mode([0.]*20, [1.]*20).label == 'High'
    assert mann_whitney_mode(series, [math.nan, *(2*x for x in series)]).label == 'High'
    with pytest.raises(PlaybookError, match='average'): mann_whitney_mode(series, range(5001))

def test_the_interval_of_a_time_series_covers_the_shift():
    dice = np.random.default_rng(0)
    found = [mann_whitney_mode(dice.normal(0, 1, n), dice.normal(.5, 1, n), confidence=.9) for n in (15, 60) for _ in range(400)]
    assert .86 < np.mean([f.low <= .5 <= f.high for f in found]) < .95
