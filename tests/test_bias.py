"Chapter 06 and its components on data as they come: blank, tiny, mistyped, one-sided, private"
import json
import math
import os
from pathlib import Path
from types import SimpleNamespace as ns

import numpy as np
import pandas as pd
import pytest

from genai_playbook import demo, evidence
from genai_playbook.bias import Section
from genai_playbook.card import CardError, load_card
from genai_playbook.chapters import find_chapters
from genai_playbook.errors import PlaybookError
from genai_playbook.groups import BLANK, binary, group_labels, largest_gap, outcomes, rate_table, text_measures, worst_gap
from genai_playbook.mitigation import compare_decisions, fair_thresholds
from genai_playbook.reviewers import (attainable_p, dawid_skene, krippendorff, mace, permutation_test, read_reviews, reviewer_table, skill_table, tendencies,
                                      to_adjudicate, to_retrain, with_humans, worst_accuracy, worst_treatment)
from genai_playbook.stereotypes import bbq_scores, benchmark_file, crows_score, read_crows, read_winobias, run_benchmark
from genai_playbook.swaps import Swap, blind, control, flips, side, swap, swap_from

CARD = '''poc: mine
outcome: {{promise: pays what is due}}
model: {{kind: recorded, path: rows.csv, answer: answer, id: id}}
data:
  evaluation: rows.csv
  private: {private}
  columns: {{groups: [{groups}]}}
{reviews}
bias: {{{bias}}}
'''


def chapter(folder, **parameters):
    "Executes the chapter's cells here; what it shows, and its gates by code"
    import matplotlib
    matplotlib.use('agg')
    nb = json.loads(find_chapters()['bias'].path.read_text('utf-8'))
    shown, gates, space = [], {}, {'__name__': 'chapter'}
    space['display'] = lambda *xs: shown.extend(xs)

    def show(kind, html, text, **payload):
        shown.append(text)
        if kind == 'gate': gates[payload['gate']['code']] = ns(**payload['gate'])
    old, evidence._show = evidence._show, show
    try:
        for c in nb['cells']:
            code = ''.join(c['source'])
            if c['cell_type'] == 'code':
                exec(compile(code, c['id'], 'exec'), space)
                if 'parameters' in c['metadata'].get('tags', []): space.update(dict(poc=str(folder), effort='quick') | parameters)
                lines = code.strip().splitlines()
                if lines and lines[-1] in space: shown.append(space[lines[-1]])
    finally:
        evidence._show = old
        import matplotlib.pyplot as plt
        plt.close('all')
    return gates, '\n'.join(x.to_string() if isinstance(x, pd.DataFrame) else str(x) for x in shown)


def rows_of(n=400, seed=0, rate=.9, unfair=0.):
    r = np.random.default_rng(seed)
    group = np.where(np.arange(n) % 2, 'women', 'men')
    due = r.random(n) < .6
    paid = np.where(due, r.random(n) < rate - unfair*(group == 'women'), False)
    return pd.DataFrame(dict(id=[f'q{i}' for i in range(n)], prompt=[f'secret words {i}' for i in range(n)], group=group, due=np.where(due, 'yes', 'no'), answer=np.where(paid, 'We pay 5 EUR.', 'Sorry, no.')))


@pytest.fixture
def write(tmp_path):
    def write(rows, groups='group', bias="label: due, decision: 'We pay'", reviews=None, private='false'):
        rows.to_csv(tmp_path/'rows.csv', index=False)
        if reviews is not None: reviews.to_csv(tmp_path/'reviews.csv', index=False)
        (tmp_path/'poc.yaml').write_text(CARD.format(groups=groups, bias=bias, private=private, reviews='  reviews: reviews.csv' if reviews is not None else ''))
        return tmp_path
    return write


def test_recorded_answers(write):
    gates, text = chapter(write(rows_of(unfair=.4)))
    assert gates['BIA01'].verdict == 'FAIL' and 'least for women' in gates['BIA01'].note
    assert gates['BIA03'].verdict == 'NOT TESTED' and gates['BIA04'].verdict == 'NOT TESTED'


def test_missing_groups_are_counted(write):
    rows = rows_of(3000)
    rows.loc[:19, 'group'] = None
    gates, text = chapter(write(rows), effort='full')
    assert gates['BIA01'].verdict == 'INSUFFICIENT' and BLANK in gates['BIA01'].note and 'NOT ESTIMABLE' in gates['BIA01'].note
    gates, text = chapter(write(rows, bias="label: due, decision: 'We pay', gap: 0.1, leave_out: ['(blank)']"), effort='full')
    assert gates['BIA01'].verdict == 'PASS'


def test_one_group_only(write):
    gates, _ = chapter(write(rows_of().assign(group='all')))
    assert gates['BIA01'].verdict == 'INSUFFICIENT' and 'two groups' in gates['BIA01'].note


def test_a_group_of_one(write):
    rows = rows_of(3000)
    rows.loc[rows.index[rows.due == 'yes'][0], 'group'] = 'other'
    gates, _ = chapter(write(rows), effort='full')
    assert gates['BIA01'].verdict == 'INSUFFICIENT' and 'other (1)' in gates['BIA01'].note


@pytest.mark.parametrize('change', [dict(groups=''), dict(bias='')])
def test_nothing_to_compare(write, change):
    gates, _ = chapter(write(rows_of(60), **change))
    assert gates['BIA01'].verdict == 'NOT TESTED' and 'card' in gates['BIA01'].note


def test_nobody_is_due_anything(write):
    gates, _ = chapter(write(rows_of(60).assign(due='perhaps')))
    assert gates['BIA01'].verdict == 'NOT TESTED'


def test_recorded_decisions_need_no_answers(write):
    rows = rows_of(2000).assign(region=lambda d: np.where(np.arange(len(d)) % 3, 'north', 'south'))
    rows['paid'] = rows.answer.str.startswith('We').map({True: 1, False: 0})
    gates, text = chapter(write(rows, groups='group, region', bias='label: due, decision_column: paid, gap: 0.2'), effort='full')
    assert gates['BIA01'].verdict == 'PASS' and gates['BIA02'].verdict == 'PASS'


def test_private_words_are_not_shown(write):
    _, text = chapter(write(rows_of(), private='true'))
    assert 'secret words' not in text and 'We pay' not in text


def reviews_of(labels, **more): return pd.DataFrame(dict(item=[f'i{i}' for i in range(len(labels))]*3, reviewer=np.repeat(['x', 'y', 'z'], len(labels)), label=labels*3) | more)


@pytest.mark.parametrize('reviews,said', [
    (reviews_of(['yes']*40, gold=['yes']*120), 'every label is yes'),
    (reviews_of(['yes', 'no']*20), 'no review has a gold label'),
    (pd.DataFrame(dict(item=['a', 'b'], reviewer=['x', 'y'], label=['yes', 'no'])), 'labelled one item only'),
    (reviews_of(['yes', 'no']*20, gold=['maybe']*120), 'nobody used the label(s) maybe'),
    (pd.DataFrame(dict(item=['a'], reviewer=[None], label=['yes'])), 'holds no label'),
    (pd.DataFrame(dict(item=['a'], who=['x'], label=['yes'])), 'needs a column `reviewer`'),
    (pd.DataFrame(dict(item=['a']*3, reviewer=['x']*3, label=['yes', 'no', 'no'])), 'replace an earlier one'),
])
def test_odd_reviews_are_said_plainly(write, reviews, said):
    gates, text = chapter(write(rows_of(60), reviews=reviews))
    assert said in text + ' '.join(g.note for g in gates.values())
    assert all(gates[c].verdict in ('INSUFFICIENT', 'NOT TESTED') for c in ('BIA05', 'BIA06'))


def test_too_many_groups_and_groups_left_out(write):
    with pytest.raises(PlaybookError, match='coarser groups'): chapter(write(rows_of(900).assign(group=lambda d: d.id)), effort='full')
    rows = rows_of(3000).assign(region=lambda d: np.where(np.arange(len(d)) % 3, 'north', 'south'))
    rows.loc[:9, 'group'] = None
    gates, _ = chapter(write(rows, groups='group, region', bias="label: due, decision: 'We pay', gap: 0.15, leave_out: ['(blank)']"), effort='full')
    assert gates['BIA01'].verdict == gates['BIA02'].verdict == 'PASS' and BLANK not in gates['BIA02'].note


def test_a_benchmark_that_cannot_run_is_said(write):
    _, text = chapter(write(rows_of(60), bias="label: due, decision: 'We pay', benchmarks: [{kind: bbq, files: [none.jsonl]}]"))
    assert 'NOT TESTED' in text


def test_card_errors_say_what_to_do(write):
    with pytest.raises(CardError, match='no column `dew`'): chapter(write(rows_of(60), bias="label: dew, decision: 'x'"))
    with pytest.raises(CardError, match='no regular expression'): load_card(write(rows_of(60), bias="label: due, decision: '('"))
    with pytest.raises(CardError, match='decision'): chapter(write(rows_of(60), bias='label: due'))
    with pytest.raises(ValueError): Section(gap=0)


def test_decisions_that_did_not_come_back_widen_both_bounds():
    label, group = [1.]*400, ['a']*200 + ['b']*200
    whole = largest_gap(outcomes(label, [1.]*400, group)).estimate
    holes = largest_gap(outcomes(label, [1.]*380 + [math.nan]*20, group)).estimate
    assert holes.unscored == 20 and holes.high > whole.high and holes.low == 0.


def test_row_order_and_names_do_not_matter():
    r = np.random.default_rng(2)
    y, d, g, c = np.ones(900), r.integers(0, 2, 900)*1., r.choice(['a', 'b', 'c'], 900), r.integers(0, 300, 900)
    p = r.permutation(900)
    a, b = largest_gap(outcomes(y, d, g, c)), largest_gap(outcomes(y[p], d[p], g[p], c[p]))
    assert (a.most, a.least, a.estimate.value, a.estimate.clusters) == (b.most, b.least, b.estimate.value, b.estimate.clusters)
    assert abs(a.estimate.low - b.estimate.low) < .02


def test_empty_everything():
    o = outcomes([], [], [])
    assert not largest_gap(o).estimate.enough and len(rate_table(o.gm)) == 0 and not worst_gap([]).estimate.enough
    assert np.isnan(fair_thresholds([], [], [])).all()
    assert not compare_decisions([1.]*3, [1.]*3, [0.]*3, ['a', 'b', 'b']).before.estimate.enough
    assert math.isnan(text_measures(None)['words']) and binary([], ['yes'], ['no'])[1] == {}
    with pytest.raises(PlaybookError, match='both favourable'): binary(['x'], ['yes'], ['Yes'])
    with pytest.raises(PlaybookError, match='at least one column'): group_labels(pd.DataFrame(dict(a=[1])), [])


@pytest.mark.parametrize('text', ['', ' ', 'her', 'HIS', "she's late", 'Maria-Anna’s', '\ud800 her', 'hersherhis', 'his\nparcel', '(her)'])
def test_swaps_take_any_text(text):
    how = Swap(('Maria',), ('Peter',), True)
    assert isinstance(swap(text, how), str) and isinstance(control(text, how), str) and blind(blind(text, how), how) == blind(text, how)
    assert side(swap(text, how), how) == {'a': 'b', 'b': 'a', None: None}[side(text, how)]


def test_swap_lists_with_strange_terms():
    how = swap_from({'x': ['a.b (c)', 'New  York'], 'y': ['d+', 'Rome']})
    assert swap('a.b (c) and d+', how) == 'd+ and a.b (c)'
    for bad in ({}, {'x': ['a']}, {'x': ['a'], 'y': []}, {'x': ['a'], 'y': [' ']}):
        with pytest.raises(PlaybookError): swap_from(bad)


def test_flips_without_any_answer():
    f = flips([math.nan]*5, [math.nan]*5, [math.nan]*5, [1]*5, [[None]*5]*3)
    assert not f.beyond.enough and math.isnan(f.swapped)


def test_models_of_reviewers_survive_extremes():
    for votes in (np.full((5, 3), -1), np.zeros((5, 3), int), np.array([[0, 1, -1]])):
        for model in (dawid_skene, mace):
            fit = model(votes, 2)
            assert np.isfinite(fit.truth).all() and np.isfinite(fit.skill).all()
    assert math.isnan(permutation_test([1, 2], ['a', 'a'])[0]) and attainable_p(0, 3) == 1


def test_one_reviewer_alone():
    r = read_reviews(pd.DataFrame(dict(item=list('abc'), reviewer=['x']*3, label=['yes', 'no', 'yes'], gold=['yes']*3, seconds=['1', 'x', None])))
    assert not krippendorff(r)[0].enough and 'one reviewer' in r.said[0]
    assert worst_accuracy(reviewer_table(r)).high < 1 and not worst_treatment(reviewer_table(r)).enough
    assert len(with_humans(r, [1., 0., math.nan])) == 4 and len(to_adjudicate(r)) == 3 and len(skill_table(r, replicates=3)) == 1
    assert tendencies(r).empty or tendencies(r).reviewers.iloc[0] == 0


def test_simulated_panels():
    "r7 is always found; r3 in most panels; hardly anybody else"
    rows, found = demo.evaluation_rows(4000, 0), []
    for seed in range(12): found.append(set(to_retrain(reviewer_table(read_reviews(pd.DataFrame(demo.review_rows(rows, seed=seed)))))))
    assert all('r7' in f for f in found) and sum('r3' in f for f in found) >= 7
    assert sum(len(f - {'r3', 'r7'}) for f in found) <= 2


def test_the_twin_without_bias_passes():
    "demo-hardened's answers, resampled by conversations: at least 19 of 20 pass, and the demo fails in all"
    for poc, verdict in (('demo-hardened', 'PASS'), ('demo', 'FAIL')):
        card = load_card(poc)
        rows = card.evaluation()
        rows = rows[rows.compensation == 'yes'].reset_index(drop=True)
        paid = [float('We ' in a.text and any(w in a.text for w in ('pay ', 'refund ', 'credit ')) and any(ch.isdigit() for ch in a.text.split('We ')[-1]) and 'nothing' not in a.text)
                for a in card.system().answer(card.prompts(rows))]
        names, code = np.unique(rows.cluster, return_inverse=True)
        members = [np.flatnonzero(code == i) for i in range(len(names))]
        said = []
        for seed in range(20):
            picked = np.random.default_rng(seed).integers(0, len(names), len(names))
            at, who = np.concatenate([members[i] for i in picked]), np.repeat(np.arange(len(picked)), [len(members[i]) for i in picked])
            gap = largest_gap(outcomes(np.ones(len(at)), np.array(paid)[at], rows.group.to_numpy()[at], who, ['true_positive_rate'], seed=seed))
            said.append(evidence.verdict(gap.estimate, .05, '<='))
            if verdict == 'FAIL': assert (gap.most, gap.least) == ('men', 'women')
        assert said.count(verdict) >= (19 if verdict == 'PASS' else 20)


@pytest.mark.slow
def test_false_stops_of_equal_groups():
    def gap(seed, n=1000, k=8, rate=.3):
        r = np.random.default_rng(seed)
        return largest_gap(outcomes(np.ones(n), (r.random(n) < rate)*1., r.integers(0, k, n).astype(str), metrics=['true_positive_rate'], replicates=600, seed=seed))
    gaps = [gap(s) for s in range(2000)]
    assert np.mean([g.estimate.low > .05 for g in gaps]) <= .06 and np.mean([g.p <= .05 for g in gaps]) <= .06


def test_benchmarks_from_broken_files(tmp_path):
    (tmp_path/'a.csv').write_text('x,y\n1,2\n')
    with pytest.raises(PlaybookError, match='sent_more'): read_crows(tmp_path/'a.csv')
    (tmp_path/'w.txt').write_text('1 [The cook] met [the guard] because [he] was late.\n')
    with pytest.raises(PlaybookError, match='marks two things'): read_winobias(tmp_path/'w.txt')
    with pytest.raises(PlaybookError, match='no benchmark file'): benchmark_file(os.fspath(tmp_path/'none.jsonl'))
    with pytest.raises(PlaybookError, match='choose from'): run_benchmark('winograd', [], None)
    assert bbq_scores([], []).empty and not crows_score([], [])[0].enough


def test_crows_pairs_and_winobias_run(tmp_path, tiny_model):
    from genai_playbook.local_model import TransformersModel
    (tmp_path/'c.csv').write_text('id,sent_more,sent_less,stereo_antistereo,bias_type\n0,She cooks.,He cooks.,stereo,gender\n1,Old men forget.,Young men forget.,stereo,age\n')
    model = TransformersModel(Path(tiny_model), max_new_tokens=4)
    table = run_benchmark('crows', [tmp_path/'c.csv'], model, model)
    assert list(table.index) == ['all', 'age', 'gender'] and table.n['all'] == 2
    (tmp_path/'p.txt').write_text('1 [The cook] met the guard because [she] was late.\n')
    assert 'pro less anti' in run_benchmark('winobias', [tmp_path/'p.txt']*2, model).index
    (tmp_path/'b.json').write_text(json.dumps({'American_actors': {'X': ['X is an']}}))
    assert run_benchmark('bold', [tmp_path/'b.json'], model).n.iloc[0] == 1
