"The five mistakes of a published demonstration, each as a gate of a real card; and what must not be complained of"
import math

import pandas as pd
import pytest
from pydantic import BaseModel

from genai_playbook.card import load_card, parse_card
from genai_playbook.chapters import chapter_gates, find_chapters
from genai_playbook.evidence import GateSpec
from genai_playbook.linter import Finding, Planned, best_case, better, lint, lint_columns, lint_direction, lint_n, lint_p_value, lint_slices, lint_threshold, planned, range_of, words


class Success(BaseModel):
    metric: str = 'exact_match'
    target: float = .5


def spec(metric='share solved', default=.9, direction='>=', code='SUC01', **more): return GateSpec(code, more.pop('name', 'As promised'), metric, more.pop('key', 'success.none'), default, direction, **more)


@pytest.fixture
def card(tmp_path):
    def card(rows, *specs, more='', columns=''):
        pd.DataFrame(rows).to_csv(tmp_path/'cases.csv', index=False)
        text = f'poc: demo\noutcome: {{promise: answers}}\nmodel: {{kind: python, target: "bot:answer"}}\ndata: {{evaluation: cases.csv, columns: {{{columns}}}}}\n{more}'
        return parse_card(text, tmp_path/'poc.yaml', sections=dict(success=Success), gates=specs)
    return card


def rows(n=12, **more): return dict(id=list(range(n)), prompt=[f'Review {i}' for i in range(n)], reference=['good', 'bad', 'fair'] * (n//3) + ['good'] * (n % 3)) | more


def run(card, *specs): return lint(specs, card, card.evaluation())


def codes(found, level='error'): return [f.code for f in found if f.level == level]


# --- the five mistakes of the MLTE demonstration ---------------------------------------------------
MISMATCH = spec('mismatch share', .95, code='ROB01', name='Labels that differ between runs')
ALIKE = spec('similarity score', 1., code='ROB02', name='Explanations stay alike', range=(0, 1), unit='score')
ANOVA = spec('ANOVA p', .05, code='BIA01', name='Groups are treated alike')
RIGHT = spec('share correct', .95, name='Right answers')
FAST = spec('seconds for an answer', 10., '<=', code='LAT01', name='Fast enough', unit='s')
MLTE = [MISMATCH, ALIKE, ANOVA, RIGHT, FAST]


@pytest.mark.parametrize('gate, why', [(MISMATCH, 'mismatch share.*worst system would pass'), (ALIKE, 'can never be met: no sample proves that similarity score is 1'), (ANOVA, 'large p-value is no proof'),
                                       (RIGHT, '12 rows, even without one failure, prove only ≥ 0.779; it takes at least 59 rows')])
def test_each_mistake_alone(card, gate, why):
    found = run(card(rows(), gate), gate)
    assert codes(found) == [gate.code] and pd.Series([found[0].text]).str.contains(why, regex=True).all(), found


def test_a_latency_of_the_last_row(card):
    found = run(card(rows(seconds=[None]*11 + [1.3]), FAST), FAST)
    assert codes(found) == ['data'] and '`seconds` is filled in 1 of 12 rows' in found[0].text


def test_all_five_together_and_the_same_gates_mended(card):
    found = run(card(rows(seconds=[None]*11 + [1.3]), *MLTE), *MLTE)
    assert sorted(codes(found)) == ['BIA01', 'ROB01', 'ROB02', 'SUC01', 'data']
    good = [spec('mismatch share', .05, '<=', code='ROB01'), spec('similarity score', .9, code='ROB02', range=(0, 1), unit='score'), spec('difference between groups', .1, '<=', code='BIA01'), RIGHT, FAST]
    assert run(card(rows(60, seconds=[1.3]*60), *good), *good) == []


@pytest.mark.parametrize('n', range(7, 15))
def test_seven_to_fourteen_rows_cannot_show_95(card, n):
    assert codes(run(card(rows(n), RIGHT), RIGHT)) == ['SUC01']


@pytest.mark.parametrize('poc', ['demo', 'demo-hardened', 'demo-regressed'])
def test_the_bundled_cards_have_no_error(poc):
    card = load_card(poc)
    assert not codes(lint([g for c in find_chapters().values() for g in chapter_gates(c)], card, card.evaluation()))


# --- thresholds and ranges --------------------------------------------------------------------------
@pytest.mark.parametrize('gate, why', [
    (spec(default=1.01), 'never be met'), (spec(default=1.), 'never be met'), (spec(default=0.), 'never fail'), (spec(default=-.1), 'never fail'), (spec(default=math.nan), 'no threshold'), (spec(default=.99), ''),
    (spec('share unscored', 0., '<='), 'never be met'), (spec('share unscored', 1., '<='), 'never fail'), (spec('share unscored', .01, '<='), ''), (spec('share unscored', math.inf, '<='), 'never fail'),
    (spec('share solved, minus today', 0.), ''), (spec('share solved, minus today', 1.), 'never be met'), (spec('latency', -5, '<=', unit='ms'), 'never be met'), (spec('latency', 500, '<=', unit='ms'), ''),
    (spec('rubric grade', 5, unit='grade', range=(1, 5)), 'never be met'), (spec('rubric grade', 1, unit='grade', range=(1, 5)), 'never fail'), (spec('rubric grade', 4, unit='grade', range=(1, 5)), ''),
    (spec('documents there', 1, unit='count', range=(0, 1)), ''), (spec('documents there', 2, unit='count', range=(0, 1)), 'never be met'), (spec('leaks', 0, '<=', unit='count'), ''), (spec('perplexity', 9e9, '<=', unit='nats'), '')])
def test_thresholds(gate, why):
    found = lint_threshold(gate, gate.default)
    assert [why in f.text for f in found] == [True] if why else found == []


def test_the_cards_threshold_counts_not_the_default(card):
    gate = spec(default=.9, key='success.target')
    assert '≥ 1.5' in run(card(rows(60), gate, more='success: {target: 1.5}'), gate)[0].text
    assert range_of(spec()) == (0, 1) and range_of(spec('gap between groups')) == (-1, 1) and range_of(spec(unit='grade')) == (-math.inf, math.inf)


# --- direction and p-values ---------------------------------------------------------------------------
@pytest.mark.parametrize('name, way', [('mismatch_rate', '<='), ('exactMatch', '>='), ('p95 latency', '<='), ('cost per answer', '<='), ('personal data leaked', '<='), ('errorRate', '<='), ('ROUGE-L', '>='), ('F1', '>='), ('WER', '<='),
                                       ('attack success', None), ('failures answered by the fallback', None), ('error-free answers', None), ('match error', None), ('quality lost', None), ('false match rate', None), ('difference in accuracy', None), ('', None), ('rematching', None)])
def test_which_way_is_better(name, way): assert better(name) == way


def test_directions():
    assert not lint_direction(spec('error rate', .1, '<=')) and not lint_direction(spec('accuracy')) and not lint_direction(spec('grade', name='Nice'))
    assert lint_direction(spec('accuracy', .9, '<='))[0].level == 'error' and lint_direction(spec('grade', name='Latency'))[0].level == 'warning'
    assert not lint_direction(spec('accuracy', name='Errors'))   # the metric is the better witness
    assert words('word_error_rate') == ['word', 'error', 'rate'] and words('p95Latency') == ['p95', 'latency']


@pytest.mark.parametrize('metric, bad', [('p-value', 1), ('p_value of the KS test', 1), ('pValue', 1), ('ANOVA p', 1), ('significance', 1), ('p95', 0), ('pass@k', 0), ('significance level', 0)])
def test_p_values(metric, bad):
    assert len(lint_p_value(spec(metric, .05))) == bad and not lint_p_value(spec(metric, .05, '<='))


def test_a_metric_chosen_in_the_card_has_a_direction_too(card):
    gate = spec(default=.5)
    assert [run(card(rows(60), gate, more=f'success: {{metric: {m}}}'), gate) != [] for m in ('exact_match', 'wer', 'p_value', 'bleurt')] == [False, True, True, False]


# --- n --------------------------------------------------------------------------------------------------
def test_59_rows_are_enough_and_58_are_not(card):
    assert [codes(run(card(rows(n), RIGHT), RIGHT)) for n in (58, 59)] == [['SUC01'], []]
    few = spec('share unscored', .05, '<=')
    assert ['prove only ≤ 0.0503' in f.text for f in run(card(rows(58), few), few)] == [True] and run(card(rows(59), few), few) == []


def test_clusters_count_not_rows(card):
    data = rows(120)
    found = run(card(data | dict(cluster=[i//10 for i in range(120)]), RIGHT), RIGHT)
    assert '120 rows in 12 clusters' in found[0].text and '59 clusters' in found[0].text
    assert run(card(data | dict(cluster=[i//2 for i in range(120)]), RIGHT), RIGHT) == []


@pytest.mark.parametrize('size, rows_, clusters', [(1, 554, 59), (2, 610, 59), (10, 1053, 59), (120, 7147, 59)])
def test_a_plan_counts_clusters_too(size, rows_, clusters):
    gate = spec('accuracy', .95, plan=lambda t: 554)
    data = pd.DataFrame(dict(prompt=['?']*120, cluster=[i//size for i in range(120)]))
    assert planned(gate, .95, data) == Planned(rows_, clusters) and planned(gate, .95, data, rho=0).rows == 554
    assert planned(gate, .95, data.drop(columns='cluster')) == planned(spec('latency', 2000, '<=', code='LAT01', plan=lambda t: 554), 2000, data) == Planned(554)
    assert planned(spec('accuracy', .95), .95, data) == Planned(None) and planned(gate, .95, data[:0]) == Planned(554)
    assert planned(spec('leaks', .01, '<=', plan=lambda t: 554), .01, data).clusters == 299 and planned(spec('kappa', .7, unit='ratio', range=(-1, 1), plan=lambda t: 554), .7, data).clusters is None


def test_rows_without_a_reference_cannot_help(card):
    data = rows(60)
    data['reference'][:1] = [None]
    found = run(card(data, RIGHT), RIGHT)
    assert codes(found) == ['SUC01'] and '`reference` is missing in 1 of 60' in found[1].text


def test_what_a_load_generator_counts_is_not_a_row(card):
    gate = spec('availability', .999, code='LOA01')
    assert run(card(rows(), gate), gate) == []


# --- data -------------------------------------------------------------------------------------------------
def test_empty_and_constant_columns(card):
    found = run(card(rows(60, reference=[None]*60, outcome=[None]*60, score=[.5] + [None]*59, context=['x']*20 + [None]*40), RIGHT), RIGHT)
    assert [('`reference` is empty in all 60 rows' in f.text, f.level) for f in found if '`reference`' in f.text] == [(True, 'error')]
    assert any('`outcome` is empty' in f.text and f.level == 'warning' for f in found) and any('`score` is filled in 1' in f.text for f in found) and any('`context` is filled in only 20' in f.text for f in found)
    assert 'one constant answer' in run(card(rows(60, reference=['yes']*60), RIGHT), RIGHT)[0].text
    assert codes(lint_columns(pd.DataFrame(rows(0)))) == ['data']
    assert codes(lint([RIGHT], card(rows(3), RIGHT), pd.DataFrame(dict(prompt=[], reference=[])))) == ['SUC01', 'data']


def test_slices(card):
    data = rows(60, group=['women']*57 + ['men', 'men', ' '], region=['north']*60, channel=[None]*60)
    found = run(card(data, RIGHT, columns='groups: [group], slices: [region, channel]'), RIGHT)
    text = '\n'.join(map(str, found))
    for part in ('error: slice `channel` is empty', 'slice `region` has the one value `north`', 'slice `group` is blank in 1 of 60', '`group`: 2 of 2 values have fewer than the 59 rows', '`men (2)`, `women (57)`'): assert part in text, part
    gone = pd.DataFrame(dict(group=pd.Categorical(['a', 'a'], ['a', 'b'])))
    assert [(f.level, f.text) for f in lint_slices(gone, ['group', 'absent'])] == [('error', 'slice `group` has no row for `b`')]
    each = pd.DataFrame(dict(name=list('abcdefgh'), cluster=list('aabbccdd')))
    assert '8 of 8 values' in lint_slices(each, ['name'], .5)[0].text and 'and 4 more' in lint_slices(each, ['name'], .5)[0].text


# --- the card ------------------------------------------------------------------------------------------------
def test_advisory_gates(card):
    other = spec('accuracy', .9, code='TRU01')
    found = run(card(rows(60), RIGHT, other, more='gates: {SUC01: {hard: false, because: a first trial}}'), RIGHT, other)
    assert [(f.code, f.level) for f in found] == [('SUC01', 'warning')] and 'a first trial' in found[0].text
    found = run(card(rows(60), RIGHT, more='gates: {SUC01: {hard: false, because: a first trial}}'), RIGHT)
    assert [f.level for f in found] == ['error', 'warning'] and 'no gate is hard' in found[0].text
    assert run(card(rows(60))) == []


def test_check_prints_findings_and_still_ends_in_0(tmp_path, capsys, monkeypatch):
    from genai_playbook.checking import check_poc, print_check
    from genai_playbook.cli import _console
    (tmp_path/'log.csv').write_text('id,prompt,reference,answer,region\n' + ''.join(f'{i},Where is {i}?,Here {i}.,Here {i}.,{"north" if i else ""}\n' for i in range(9)))
    (tmp_path/'poc.yaml').write_text('poc: mine\noutcome: {promise: answers}\nmodel: {kind: recorded, path: log.csv}\ndata: {evaluation: log.csv, columns: {slices: [region]}}\nsuccess: {target: 0.95}\n')
    check = check_poc(str(tmp_path/'poc.yaml'))
    assert check.findings[0].code == 'SUC01' and print_check(check, _console()) == 0
    out = capsys.readouterr().out
    assert 'error     SUC01: `share solved` ≥ 0.95 cannot pass: 9 rows' in out and 'warning   data: slice `region`' in out


def test_check_shows_rows_and_clusters(tmp_path, capsys):
    from genai_playbook.checking import check_poc, print_check
    from genai_playbook.cli import _console
    (tmp_path/'log.csv').write_text('id,prompt,reference,answer,talk\n' + ''.join(f'{i},Where is {i}?,Here {i}.,Here {i}.,{i//20}\n' for i in range(1000)))
    (tmp_path/'poc.yaml').write_text('poc: mine\noutcome: {promise: answers}\nmodel: {kind: recorded, path: log.csv}\ndata: {evaluation: log.csv, columns: {cluster: talk}}\nsuccess: {target: 0.95}\n')
    check = check_poc(str(tmp_path/'poc.yaml'))
    need = next(g for g in check.gates if g.code == 'SUC01')
    assert (need.have, need.planned_clusters, need.have_clusters, need.enough) == (1000, 59, 50, False) and need.planned > 1000
    assert any(w.startswith(f'SUC01 plans {need.planned:,} rows, the data has 1,000 and 59 clusters, the data has 50') for w in check.warnings)
    assert print_check(check, _console()) == 0 and 'clusters planned' in capsys.readouterr().out


def test_a_million_rows(card):
    n = 10**6
    df = pd.DataFrame(dict(cluster=[f'c{i//4}' for i in range(n)], prompt='x', reference='y'))
    assert best_case(df) > .9999 and lint_n(RIGHT, .95, df, best_case(df)) == []
    assert str(Finding('data', 'note', 'x')) == 'data note: x'
