"Comparing two runs or two POCs: verdicts, exit codes, and what is refused"
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from genai_playbook import cli
from genai_playbook.card import load_card
from genai_playbook.errors import PlaybookError
from genai_playbook.evidence import MIME
from genai_playbook.head_to_head import Side, case_record, cases_that_tell, claim_p, compare, compare_sides, comparison_html, packed, side_of_run, sides_of_cards, unpacked, write_comparison
from genai_playbook.report import plain
from genai_playbook.runner import ChapterRun, Run, run
from genai_playbook.stats import paired_difference


def call(*args, capsys, monkeypatch):
    "Run the command line in this process: exit code, stdout, stderr"
    monkeypatch.setattr(sys, 'argv', ['genai-playbook', *map(str, args)])
    with pytest.raises(SystemExit) as e: cli.main()
    return e.value.code, *capsys.readouterr()


def side(name, right, first=0, **columns):
    n = len(right)
    return Side(name, pd.DataFrame({'id': [f'q{first + i}' for i in range(n)], 'case': 'x', 'score.solved': np.asarray(right, float), 'answer': 'an answer'} | columns), dict(metric='exact_match', solved_from=1.), dict(model=name), 'd')


def write_poc(folder, wrong=0, n=400, data=None, answers=None, extra='', columns=''):
    "A recorded POC that answers all but the first `wrong` of n questions right"
    folder.mkdir()
    rows = data if data is not None else pd.DataFrame(dict(id=[f'q{i}' for i in range(n)], prompt=[f'what is {i} plus one' for i in range(n)], reference=[f'it is {i + 1}' for i in range(n)], topic=['odd' if i % 2 else 'even' for i in range(n)]))
    rows.to_csv(folder/'rows.csv', index=False)
    said = answers or ['no idea' if i < wrong else r for i, r in enumerate(rows.reference)]
    pd.DataFrame(dict(id=rows.id, answer=said)).to_csv(folder/'log.csv', index=False)
    (folder/'poc.yaml').write_text(f'''poc: {folder.name}
outcome: {{promise: answers that are right}}
model: {{kind: recorded, path: log.csv, id: id}}
data: {{evaluation: rows.csv, {extra} columns: {{prompt: prompt, reference: reference, slices: [topic]{columns}}}}}
''', encoding='utf-8')
    return folder


# --- the demo ---------------------------------------------------------------------------------------------
def test_the_hardened_demo_is_better_and_the_reverse_is_worse(tmp_path, capsys, monkeypatch):
    code, out, err = call('compare', 'demo', 'demo-hardened', '--cases', 300, '--out', tmp_path/'out', capsys=capsys, monkeypatch=monkeypatch)
    assert (code, err) == (0, '') and 'BETTER' in out
    found = json.loads((tmp_path/'out'/'compare.json').read_text())
    assert found['verdict'] == 'better' and found['counts'] == dict(shared=300, only_a=0, only_b=0, changed=0)
    assert float(found['comparisons'][0]['low']) > 0 and found['cases']['shown']['wins'][0]['reference']
    page = (tmp_path/'out'/'compare.html').read_text()
    assert '<script' not in page and not re.search(r'(src|href)="https?:', page)
    code, out, _ = call('compare', 'demo-hardened', 'demo', '--cases', 300, '--out', tmp_path/'out', capsys=capsys, monkeypatch=monkeypatch)
    assert code == 1 and 'WORSE' in out
    code, out, _ = call('compare', 'demo', 'demo', '--cases', 300, '--margin', .05, '--out', tmp_path/'out', capsys=capsys, monkeypatch=monkeypatch)
    assert code == 0 and 'NOT WORSE' in out and 'same system' in out
    code, out, _ = call('compare', 'demo', 'demo-hardened', '--cases', 20, '--out', tmp_path/'out', capsys=capsys, monkeypatch=monkeypatch)
    assert code == 3 and 'CANNOT TELL' in out and 'would tell' in out


# --- runs -------------------------------------------------------------------------------------------------
def as_run(poc, base):
    "The run folder of a POC whose chapter 01 has ended, without the half minute that a kernel takes"
    card = load_card(poc)
    rows = card.evaluation()
    folder = base/card.name/'20260101T000000Z-12345678'
    folder.mkdir(parents=True)
    out = dict(output_type='display_data', metadata={}, data={MIME: dict(type='record', name='cases', data=plain(case_record(card, rows, card.system().answer(card.prompts(rows)))))})
    (folder/'01_success.ipynb').write_text(json.dumps(dict(cells=[dict(cell_type='code', id='a', metadata={}, source='', execution_count=None, outputs=[out])], metadata={}, nbformat=4, nbformat_minor=5)))
    Run(folder, card.name, str(card.path), 'full', digests=card.digests(), chapters=[ChapterRun('success', 'Success', status='done', notebook='01_success.ipynb')]).save()
    return str(folder)


@pytest.fixture(scope='module')
def pocs(tmp_path_factory):
    "Four recorded POCs: old, better, on data of which it shares a part, and on others"
    base = tmp_path_factory.mktemp('pocs')
    other = pd.DataFrame(dict(id=[f'q{i}' for i in range(300, 600)], prompt=[f'what is {i} plus one' if i != 300 else 'changed' for i in range(300, 600)], reference=[f'it is {i + 1}' for i in range(300, 600)], topic='odd'))
    strange = pd.DataFrame(dict(id=['a', 'b'], prompt=['x', 'y'], reference=['x', 'y'], topic='odd'))
    return dict(old=write_poc(base/'old', 40), better=write_poc(base/'better', 4), other=write_poc(base/'other', 0, data=other), strange=write_poc(base/'strange', 0, data=strange))


@pytest.fixture(scope='module')
def runs(pocs, tmp_path_factory):
    "A run folder of each"
    return {k: as_run(p, tmp_path_factory.mktemp('evidence')) for k, p in pocs.items()}


def test_a_real_run_leaves_its_cases(pocs, runs, tmp_path):
    folder = run(pocs['old'], ['success'], 'full', out=tmp_path)['folder']
    assert side_of_run(folder).cases.equals(side_of_run(runs['old']).cases)
    assert compare(folder, runs['better'])['verdict'] == 'better'


def test_runs_are_compared_without_asking_again(runs, tmp_path):
    found = compare(runs['old'], runs['better'], out=tmp_path)
    assert found['verdict'] == 'better' and found['exit_code'] == 0
    assert len(found['cases']['wins']) == 36 and found['cases']['losses'] == []
    assert found['cases']['shown']['wins'][0] == dict(id='q4', slices='topic even', prompt='what is 4 plus one', reference='it is 5', a='no idea', b='it is 5')
    assert compare(runs['better'], runs['old'])['exit_code'] == 1
    assert compare(runs['old'], runs['old'])['verdict'] == 'not worse'


def test_pocs_and_their_runs_give_the_same_numbers(pocs, runs):
    one, two = compare(pocs['old'], pocs['better']), compare(runs['old'], runs['better'])
    assert one['comparisons'] == two['comparisons'] and one['cases'] == two['cases']


def test_other_data_only_shared_cases(runs):
    found = compare(runs['old'], runs['other'])
    assert found['counts'] == dict(shared=99, only_a=300, only_b=200, changed=1)
    assert 'different evaluation data' in found['notes'][0] and any('another prompt' in n for n in found['notes'])


def test_a_moved_card_costs_the_prompts_only(runs, tmp_path):
    import shutil
    moved = shutil.copytree(runs['old'], tmp_path/'run')
    state = json.loads((moved/'state.json').read_text())
    (moved/'state.json').write_text(json.dumps(state | dict(card=str(tmp_path/'gone'/'poc.yaml'))))
    shown = compare_sides(replace(side_of_run(moved), texts=None), replace(side_of_run(Path(runs['better'])), texts=None))['cases']['shown']['wins'][0]
    assert side_of_run(moved).texts is None and shown == dict(id='q4', slices='topic even', a='no idea', b='it is 5')


@pytest.mark.parametrize('args, says', [
    (('{old}', '{strange}'), 'share no id'), (('{old}', 'demo'), 'two run folders'), (('{old}/..', '{old}'), 'one of the runs'), (('{tmp}', '{tmp}'), 'neither a run folder nor a POC'),
    (('nowhere', 'demo'), 'nowhere'), (('{old}', '{old}', '--margin', '0'), 'margin'), (('{old}', '{old}', '--cases', '5'), '--cases'), (('{old}', '{old}', '--out', '{old}/state.json'), '--out'),
    (('{broken}', '{old}'), 'not done'), (('{bare}', '{old}'), 'kept no cases'), (('{torn}', '{old}'), 'not a run folder')])
def test_what_cannot_be_compared_is_one_sentence(args, says, runs, tmp_path, capsys, monkeypatch):
    import shutil
    made = {k: shutil.copytree(runs['old'], tmp_path/'copies'/k) for k in ('broken', 'bare', 'torn')}
    (made['broken']/'state.json').write_text((made['broken']/'state.json').read_text().replace('"done"', '"broke"'))
    book = made['bare']/'01_success.ipynb'
    nb = json.loads(book.read_text())
    for c in nb['cells']: c['outputs'] = []
    book.write_text(json.dumps(nb))
    (made['torn']/'state.json').write_text('{')
    (tmp_path/'empty').mkdir()
    args = [a.format(tmp=tmp_path/'empty', **(runs | made)) for a in args]
    args += [] if '--out' in args else ['--out', str(tmp_path/'out')]
    code, out, err = call('compare', *args, capsys=capsys, monkeypatch=monkeypatch)
    assert code == 2 and says in err and len(err.strip().splitlines()) == 1 and 'Traceback' not in out + err


# --- cards ------------------------------------------------------------------------------------------------
def test_private_data_leave_ids_alone(tmp_path):
    a, b = write_poc(tmp_path/'a', 40, extra='private: true,'), write_poc(tmp_path/'b', 0)
    found = compare(a, b, out=tmp_path/'out')
    text = (tmp_path/'out'/'compare.html').read_text() + (tmp_path/'out'/'compare.json').read_text()
    assert found['verdict'] == 'better' and len(found['cases']['wins']) == 40
    assert 'what is' not in text and 'no idea' not in text and 'it is' not in text.replace('it is none', '')
    folder = as_run(a, tmp_path/'evidence')
    assert {'answer', 'case'}.isdisjoint(side_of_run(folder).cases.columns)
    assert compare(folder, folder)['cases']['wins'] == []


def test_private_prompts_reach_no_cache(tmp_path, own_cache):
    "B is public and deterministic, so it would be cached, but its prompts are A's"
    a, b = write_poc(tmp_path/'a', 40, n=20, extra='private: true,'), write_poc(tmp_path/'b', n=20)
    (b/'mine.py').write_text('def answer(prompt): return prompt\n')
    (b/'poc.yaml').write_text((b/'poc.yaml').read_text().replace('kind: recorded, path: log.csv, id: id', 'kind: python, target: "mine:answer", deterministic: true'))
    sides_of_cards(a, b)
    assert not own_cache.exists()
    sides_of_cards(b, b)
    assert own_cache.exists()


def test_each_card_is_judged_by_the_first_ones_success(tmp_path):
    a, b = write_poc(tmp_path/'a', 40), write_poc(tmp_path/'b', 40)
    with open(b/'poc.yaml', 'a') as f: f.write('success: {metric: token_f1, solved_from: .01}\n')
    assert compare(a, b)['comparisons'][0]['value'] == 0
    one, two = (side_of_run(as_run(p, tmp_path/'ev')) for p in (a, b))
    with pytest.raises(PlaybookError, match='define success differently'): compare_sides(one, two)


def test_a_template_that_needs_more_columns_is_refused(tmp_path):
    rows = pd.DataFrame(dict(id=['1'], prompt=['p'], reference=['r'], topic=['t'], extra=['e']))
    a, b = write_poc(tmp_path/'a', n=3), write_poc(tmp_path/'b', data=rows)
    with open(b/'poc.yaml', 'a') as f: f.write('prompt: {template: "{extra} {prompt}"}\n')
    with pytest.raises(PlaybookError, match='extra'): compare(a, b)


# --- arithmetic -------------------------------------------------------------------------------------------
def test_any_order_of_rows_gives_the_same():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 2, 200), rng.integers(0, 2, 200)
    extra = {'slice.s': rng.choice(['u', 'v'], 200), 'cluster': rng.integers(0, 60, 200).astype(str), 'score.token_f1': rng.random(200)}
    one, two = side('a', a, **extra), side('b', b, **(extra | {'score.token_f1': rng.random(200)}))
    mixed = replace(two, cases=two.cases.sample(frac=1, random_state=1))
    assert compare_sides(one, two)['comparisons'] == compare_sides(one, mixed)['comparisons']
    for k in range(3):  # both in another order, a case missing from each
        a_, b_ = (replace(x, cases=x.cases.drop(index=[j]).sample(frac=1, random_state=k + 10*j)) for j, x in enumerate((one, two)))
        again, before = (compare_sides(*pair) for pair in ((a_, b_), (replace(one, cases=one.cases.drop(index=[0])), replace(two, cases=two.cases.drop(index=[1])))))
        for key in ('comparisons', 'counts', 'verdict', 'headline'): assert again[key] == before[key], key


COIN = "import itertools\nn = itertools.count()\ndef answer(prompt): return 'heads' if next(n)//40 % 2 else 'tails'\n"


def test_pass_at_k_and_choices_are_compared_from_runs(tmp_path, own_cache, tiny_model):
    from genai_playbook.asking import ask_repeatedly, metric_inputs, tries_needed
    (tmp_path/'coin_of_compare.py').write_text(COIN)
    (tmp_path/'rows.csv').write_text('id,prompt,reference,options\n' + ''.join(f'{i},say {i},heads,heads|tails\n' for i in range(40)))
    def asked(model, success):
        (tmp_path/'poc.yaml').write_text(f'poc: coin\noutcome: {{promise: half}}\nmodel: {model}\ndata: {{evaluation: rows.csv, columns: {{choices: options}}}}\nsuccess: {{{success}}}\n')
        card = load_card(tmp_path/'poc.yaml')
        rows = card.evaluation()
        tries, _ = ask_repeatedly(card, card.prompts(rows), tries_needed(card, card.section('success')))
        kept = unpacked(case_record(card, rows, tries[0], metric_inputs(card, rows, tries))['csv'])
        return kept, unpacked(case_record(card, rows, tries[0])['csv'])
    coin = '{kind: python, target: "coin_of_compare:answer", concurrency: 1}'
    kept, bare = asked(coin, 'metric: {name: pass_at_k, k: 2, of: exact_match}, also: [exact_match]')
    assert (kept['score.solved'] == 1).all() and (kept.filter(like='score.pass_at_k').iloc[:, 0] == 1).all() and (kept['score.exact_match'] == 0).all() and bare['score.solved'].isna().all()
    with pytest.raises(PlaybookError, match='asks each prompt once'): sides_of_cards(tmp_path, tmp_path)
    kept, bare = asked(f'{{kind: transformers, path: {json.dumps(str(tiny_model))}, max_new_tokens: 2}}', 'metric: choice, also: [exact_match]')
    assert kept['score.solved'].isin([0, 1]).all() and bare['score.solved'].isna().all()
    one, other = sides_of_cards(tmp_path, tmp_path)
    assert one.cases['score.solved'].tolist() == other.cases['score.solved'].tolist() == kept['score.solved'].tolist()


def test_missing_scores_are_bounded_not_dropped():
    right = np.ones(400)
    holes = right.copy()
    holes[:40] = np.nan
    found = compare_sides(side('a', right), side('b', holes))
    first = found['comparisons'][0]
    assert first['unscored'] == 40 and found['verdict'] == 'cannot tell' and found['cases']['unscored'] == 40
    assert compare_sides(side('a', right), side('b', right*np.nan))['exit_code'] == 3


def test_few_rows_cannot_tell():
    for n in (1, 2, 4):  # five of five is already one chance in 32
        for a, b in ((0, 1), (1, 1), (1, 0)): assert compare_sides(side('a', [a]*n), side('b', [b]*n))['verdict'] == 'cannot tell', (n, a, b)


def test_p_values_never_contradict_the_bounds():
    rng = np.random.default_rng(3)
    for bounds in ((0, 1), None):
        for shift in (-.2, -.05, 0, .05, .2):
            a = rng.random(80)
            b = np.clip(a + rng.normal(shift, .2, 80), 0, 1)
            d = lambda level, a=a, b=b, bounds=bounds: paired_difference(b, a, None, level, bounds)
            e = d(.95)
            for threshold in (0., -.05):
                assert (claim_p(d, threshold) <= .05) == (e.low > threshold)
                assert (claim_p(d, threshold, above=False) <= .05) == (e.high < threshold)


@pytest.mark.parametrize('rate', [0, .05, .2])
def test_the_number_that_would_tell_does(rate):
    n = 100
    a = np.ones(n)
    b = np.where(np.arange(n) < rate*n, 1 - a, a)
    a2 = np.where((np.arange(n) >= rate*n) & (np.arange(n) < 2*rate*n), 0, a)
    need = cases_that_tell(a2, b, None, .02, (0, 1))
    k = need/n
    more = lambda v: np.tile(v, int(np.ceil(k*1.15)))
    assert paired_difference(more(b), more(a2), None, .95, (0, 1)).low > -.02
    less = lambda v: np.tile(v, max(1, int(k*.7)))
    assert not paired_difference(less(b), less(a2), None, .95, (0, 1)).low > -.02


def test_equal_systems_rarely_show_a_worse_slice():
    rng, alarms = np.random.default_rng(11), 0
    for _ in range(15):
        a, b = rng.random(400) < .8, rng.random(400) < .8
        s = {'slice.s': rng.choice(list('abcdefgh'), 400)}
        alarms += any(r['verdict'] == 'worse' for r in compare_sides(side('a', a, **s), side('b', b, **s))['comparisons'][1:])
    assert alarms <= 3  # more of 15 would have probability .005


# --- what is stored and shown -----------------------------------------------------------------------------
NASTY = ['', 'plain', 'a,"b"\nc', '\r\n x\r', 'NA', 'null', '1e5', '<script>alert(1)</script>', '𝔘 é\u2028', '=1+1', 'nul\0 byte', '#', '   ']


def test_nasty_text_survives_packing():
    df = pd.DataFrame({'id': NASTY[1:2] + [f'{i}' for i in range(len(NASTY) - 1)], 'slice.NA': NASTY, 'score.solved': [1., np.nan] + [0.]*(len(NASTY) - 2), 'answer': NASTY})
    back = unpacked(packed(df.drop(columns='slice.NA')))
    assert back['answer'].tolist() == [t.replace('\r\n', '\n').replace('\r', '\n').replace('\0', '') for t in NASTY]
    assert back['id'].tolist() == df['id'].tolist() and back['score.solved'].isna().tolist() == df['score.solved'].isna().tolist()


def test_four_thousand_cases_stay_small():
    n = 4000
    df = pd.DataFrame({'id': [f'q{i:04}' for i in range(n)], 'case': 'b077e75d', 'cluster': [f'c{i//2:04}' for i in range(n)], 'slice.intent': 'complaint', 'slice.group': 'women', 'slice.region': 'islands', 'slice.channel': 'mail',
                       'score.solved': 1., 'score.normalised_match': 1., 'score.exact_match': 1., 'score.token_f1': .123456789, 'answer': 'word '*2000})
    assert len(json.dumps(packed(df), ensure_ascii=False)) < 1_500_000


def test_answers_cannot_run_in_the_page(tmp_path):
    evil = '<img src=x onerror=alert(1)><script>alert(1)</script>'
    a, b = side('<b>a</b>', [0.]*9), side('b', [1.]*9, **{'slice.s': evil})
    a = replace(a, cases=a.cases.assign(answer=evil, **{'slice.s': evil}))
    page = comparison_html(compare_sides(a, b))
    assert '<script>' not in page and '<img' not in page and '<b>a' not in page and '&lt;img' in page


def test_the_same_comparison_gives_the_same_bytes(tmp_path):
    one = [write_comparison(compare_sides(side('a', [0, 1]*50), side('b', [1, 1]*50)), tmp_path/d) for d in 'xy']
    for name in ('compare.html', 'compare.json'): assert len({(p.parent/name).read_bytes() for p in one}) == 1


def test_less_is_better_where_the_metric_says_so_and_length_gets_no_verdict():
    n = 400
    rude, long = np.r_[np.ones(60), np.zeros(n-60)], np.full(n, 9.)
    a, b = side('a', np.ones(n), **{'score.refusal': np.zeros(n), 'score.words': long}), side('b', np.ones(n), **{'score.refusal': rude, 'score.words': long*2})
    found = {r['metric']: r for r in compare_sides(a, b)['comparisons']}
    assert found['refusal']['verdict'] == 'worse' and found['refusal']['value'] == pytest.approx(.15) and found['refusal']['low'] < .15 < found['refusal']['high']
    assert found['words']['verdict'] == 'no verdict' and found['words']['value'] == 9 and found['words']['needed'] is None
    back = {r['metric']: r['verdict'] for r in compare_sides(b, a)['comparisons']}
    assert back == dict(solved='not worse', refusal='better', words='no verdict')


def test_a_slice_that_got_worse_is_loud_and_decides_when_asked(tmp_path, capsys, monkeypatch):
    lang = ['de']*150 + ['en']*450
    a = side('a', np.r_[np.ones(150), np.zeros(450)], **{'slice.lang': lang})
    b = side('b', np.r_[np.ones(75), np.zeros(75), np.ones(450)], **{'slice.lang': lang})
    result = compare_sides(a, b)
    assert result['verdict'] == 'better' and result['exit_code'] == 0 and len(result['worse']) == 1 and 'lang = de' in result['worse'][0]
    assert compare_sides(a, b, strict=True)['exit_code'] == 1 and compare_sides(a, a, strict=True)['exit_code'] == 0
    assert 'Worse in places' in comparison_html(result)
    pocs = []
    for name, wrong in (('old', {0, 1}), ('new', set(range(0, 200, 2)))):
        rows = pd.DataFrame(dict(id=[f'q{i}' for i in range(400)], prompt=[f'p{i}' for i in range(400)], reference=[f'r{i}' for i in range(400)], topic=['even' if i < 200 else 'odd' for i in range(400)]))
        good = (lambda i, wrong=wrong, name=name: i not in wrong and not (name == 'old' and 200 <= i < 399))
        pocs.append(write_poc(tmp_path/name, data=rows, answers=[r if good(i) else 'no' for i, r in enumerate(rows.reference)]))
    code, out, _ = call('compare', *pocs, '--out', tmp_path/'c', capsys=capsys, monkeypatch=monkeypatch)
    assert code == 0 and 'WORSE IN PLACES' in out and 'topic = even' in out
    assert call('compare', *pocs, '--strict', '--out', tmp_path/'c', capsys=capsys, monkeypatch=monkeypatch)[0] == 1
