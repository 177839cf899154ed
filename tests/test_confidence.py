"Confidence and abstention: what simulations and bad input have to say"
import math

import numpy as np
import pytest

from genai_playbook.card import load_card
from genai_playbook.confidence import (abstention_threshold, accepted_error, asked, aurc, brier, conformal_quantile, consistency, coverage_by_group, ece, one_each, parts, recalibrated,
                                       reliability, risk_coverage, sampled, sequence_likelihood, verbal)
from genai_playbook.errors import PlaybookError
from genai_playbook.models import Answer, PythonModel


def errors(s):
    "Chance that an answer of confidence `s` is wrong; the surest are not the best"
    return np.where(s > .9, .04, np.where(s > .5, .02, .3))


def test_guarantee_holds_though_confidence_is_not_monotone():
    rng, broken, found = np.random.default_rng(1), 0, 0
    for _ in range(300):
        s = rng.random(1500)
        t = abstention_threshold(s, rng.random(1500) > errors(s), rng.random(150), .05)
        if not t.found: continue
        found += 1
        broken += errors(np.linspace(t.value, 1, 4001)).mean() > .05
    assert found > 200                       # it finds thresholds at all
    assert broken <= 300*.05 + 2*math.sqrt(300*.05*.95)


def test_threshold_on_the_edge():
    "All errors at exactly the allowed risk: at most one data set in twenty may be certified"
    rng = np.random.default_rng(2)
    passed = sum(abstention_threshold(s := rng.random(600), rng.random(600) > .05, s[:60], .05).found for _ in range(400))
    assert passed <= 400*.05 + 2*math.sqrt(400*.05*.95)


@pytest.mark.parametrize('shift, truth', [(0., 0.), (.15, .15)])
def test_bounds_of_the_calibration_error(shift, truth):
    rng, low, high = np.random.default_rng(3), [], []
    for seed in range(120):
        c = rng.beta(4, 1.2, 600)
        e = ece(c, rng.random(600) < np.clip(c-shift, 0, 1), replicates=200, seed=seed)
        low.append(e.low > truth + 1e-9), high.append(e.high < truth)
    assert max(np.mean(low), np.mean(high)) <= .05 + 2*math.sqrt(.05*.95/120)


def test_ece_with_clusters_has_wider_bounds():
    rng = np.random.default_rng(4)
    c = np.repeat(rng.random(300), 4)
    ok = np.repeat(rng.random(300) < .6, 4)
    alone, together = ece(c, ok), ece(c, ok, np.repeat(np.arange(300), 4))
    assert together.high > alone.high and together.clusters == 300 and together.value == alone.value


def test_too_little_is_not_enough():
    assert not ece([.9]*10, [1]*10).enough and not ece([], []).enough
    assert ece([.9]*200, [1]*180 + [math.nan]*20).high > ece([.9]*180, [1]*180).high
    assert math.isnan(brier([], []).value) and math.isnan(aurc([], [])) and len(risk_coverage([], [])) == 0 and len(reliability([], [])) == 0
    t = abstention_threshold([.9]*20, [1]*20, [.9]*5, .01)
    assert not t.found and '299' in t.note and t.strictest == .9
    assert not abstention_threshold([], [], [], .01).found


@pytest.mark.parametrize('fn', [ece, brier, reliability, aurc])
def test_bad_numbers(fn):
    with pytest.raises(PlaybookError, match='between 0 and 1'): fn([1.5], [1])
    with pytest.raises(PlaybookError): fn([.5, .5], [1])
    with pytest.raises(PlaybookError): fn([.5], ['right'])


def test_unscored_answers_count_as_wrong_when_certified_and_both_ways_when_measured():
    s = np.linspace(.5, 1, 400)
    ok = np.ones(400)
    assert abstention_threshold(s, ok, s, .01).found
    ok[-20:] = math.nan                      # the surest ones have no score
    assert not abstention_threshold(s, ok, s, .01).found
    e = accepted_error(s, ok, .5)
    assert e.unscored == 20 and e.value == 0 and e.high > .05 and e.low == 0


def test_no_confidence_is_never_accepted():
    c, ok = [math.nan, .9], [0, 1]
    assert accepted_error(c, ok, 0.).n == 1
    assert coverage_by_group(c, ok, ['a', 'a'], 0.).loc['a', 'accepted'] == .5


def test_groups_that_are_missing_alone_or_all_alike():
    t = coverage_by_group([.9]*4, [1]*4, [None, float('nan'), 'only', 'only'], .5)
    assert set(t.index) == {'(blank)', 'only'} and t.loc['only', 'n'] == 2
    assert len(coverage_by_group([], [], [], .5)) == 0


def test_all_confidences_equal():
    "One threshold, everything or nothing"
    t = abstention_threshold([.7]*800, [1]*800, [.7]*100, .01)
    assert t.found and t.value == .7
    assert abs(aurc([.7]*10, [1, 0]*5) - .5) < 1e-12


def test_conformal_quantile_covers():
    rng = np.random.default_rng(5)
    above = [rng.random() > conformal_quantile(rng.random(19), .1) for _ in range(4000)]
    assert abs(np.mean(above) - .1) < .015
    with pytest.raises(PlaybookError): conformal_quantile([1.], 0)


def test_parts_do_not_move_when_rows_are_added():
    a, b = parts([f'c{i}' for i in range(500)]), parts([f'c{i}' for i in range(900)])
    assert (a == b[:500]).all() and abs((a == 1).mean() - .45) < .08
    x = ['c1']*3 + ['c2']
    assert one_each(x).sum() == 2 and not len(one_each([]))


def test_parts_of_a_sample_are_not_empty():
    "A quick run samples conversations by a hash too; the two must not know of each other"
    rows = load_card('demo').evaluation(800)
    assert (np.bincount(parts(rows['cluster']), minlength=3)/len(rows) > [.05, .35, .35]).all()


def test_verbal_reads_nothing_into_other_replies():
    say = ['', '...', 'It arrives on Friday, 14 to 15.', '120%', '-5 %', '50% or 60%', '0.9', '9'*400]
    assert not [v for v in map(verbal, say) if not math.isnan(v)]
    assert verbal('100 %') == 1. and verbal('99,5 %') != 99.5


def test_asked_skips_what_was_not_answered():
    model = PythonModel(lambda messages: '70%' if len(messages) == 3 else 'no')
    got = asked(model, ['a', '', 'c'], [Answer('yes'), Answer('yes'), Answer(error='down')])
    assert got[0] == .7 and np.isnan(got[1:]).all()


def test_likelihood_and_consistency_of_broken_answers():
    assert np.isnan(sequence_likelihood([Answer(error='x', logprob=-.1, tokens_out=3), Answer('a', logprob=-.1), Answer('a', tokens_out=3)])).all()
    assert sequence_likelihood([Answer('a', logprob=1e-9, tokens_out=3)])[0] == 1.
    assert np.isnan(consistency([Answer('a')], [])).all()
    assert consistency([Answer('5 EUR')], [[Answer('5 USD')], [Answer('5 EUR')]])[0] == .5


def test_samples_differ_and_come_back():
    card = load_card('demo')
    prompts = card.prompts(card.evaluation(40))
    one, two = sampled(card, prompts, draws=2, temperature=1.5)
    assert [a.text for a in one] != [a.text for a in two] and [a.text for a in sampled(card, prompts, 1, 1.5)[0]] == [a.text for a in one]


def test_recalibration_of_nothing():
    assert np.isnan(recalibrated([], [], [.5])).all() and len(recalibrated([.5], [1], [])) == 0
    assert math.isnan(recalibrated([.5, .9], [0, 1], [math.nan])[0])


def test_calibration_error_of_a_part():
    "The halves inside must not follow the parts outside, or one of them is empty"
    rng = np.random.default_rng(6)
    g = np.array([f'c{i}' for i in range(2000)])
    new = parts(g) == 2
    e = ece(np.full(new.sum(), .9), rng.random(new.sum()) < .6, g[new])
    assert .2 < e.low < .3 < e.high
