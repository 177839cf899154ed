"Chapter 07 with other kinds of model, other cards, and data that lack what it would like to have"
import json

import pandas as pd
import pytest

from genai_playbook.card import load_card, parse_card
from genai_playbook.edges import edge_inputs, refusal, survived
from genai_playbook.errors import PlaybookError
from genai_playbook.evidence import read_evidence
from genai_playbook.flips import flip_table, flipped
from genai_playbook.mender import Mender, slips_between
from genai_playbook.models import Answer, PythonModel
from genai_playbook.robustness import GATES, Expectation, knocked_out, rows_of, worst_margin
from genai_playbook.stats import proportion
from genai_playbook.system import System

CODES = [g.code for g in GATES]
CODE = '''
def answer(prompt):
    if 'CRASH' in prompt: raise OSError('no')
    return 'yes' if 'parcel' in prompt.lower() else 'no'
def rules(prompt): return 'yes'
'''


def make(folder, model, extra='', rows=80):
    (folder/'bot.py').write_text(CODE)
    df = pd.DataFrame(dict(prompt=[f'Where is the parcel number {i} of my friend?' if i % 2 else f'Tell me a story about the moon and {i} dogs' for i in range(rows)], reference=['yes' if i % 2 else 'no' for i in range(rows)], answer=['yes']*rows))
    df.to_csv(folder/'e.csv', index=False)
    (folder/'poc.yaml').write_text(f'poc: t\noutcome: {{promise: p}}\nmodel: {model}\ndata: {{evaluation: e.csv}}\n{extra}')
    return folder/'poc.yaml'


def run(card, out, **parameters):
    import papermill
    from genai_playbook.chapters import find_chapters
    papermill.execute_notebook(str(find_chapters()['robustness'].path), str(out), parameters=dict(poc=str(card), effort='quick', sample=60, each=10, curve=15, calls=60) | parameters, progress_bar=False, cwd=str(out.parent))
    return read_evidence(out)


def test_a_function_behind_rules(tmp_path):
    card = make(tmp_path, '{kind: python, target: "bot:answer", deterministic: true}', 'fallbacks:\n  - {rules: "bot:rules", floor: 0.9}\n  - text: sorry\nrobustness:\n  expectations:\n    - {name: parcels, when: {prompt: parcel}, expect: yes}\n'.replace('expect: yes', 'expect: "yes"'))
    ev = run(card, tmp_path/'out.ipynb')
    verdicts = {g.code: g.verdict for g in ev.gates}
    assert list(verdicts) and set(verdicts) == set(CODES) and verdicts['ROB03'] == 'PASS' and verdicts['ROB05'] == 'FAIL' # half of the rules' answers are wrong
    assert ev.records['robustness']['tiers'] and json.dumps(ev.records['robustness'])


def test_recorded_answers_say_not_tested(tmp_path):
    ev = run(make(tmp_path, '{kind: recorded, path: e.csv, prompt: prompt}'), tmp_path/'out.ipynb')
    assert {g.code: g.verdict for g in ev.gates} == {c: 'NOT TESTED' for c in CODES} | dict(ROB06='PASS')


def test_private_data_show_no_prompt(tmp_path):
    card = make(tmp_path, '{kind: python, target: "bot:answer"}')
    card.write_text(card.read_text().replace('evaluation: e.csv', 'evaluation: e.csv, private: true'))
    run(card, tmp_path/'out.ipynb')
    outputs = json.dumps([c.get('outputs') for c in json.loads((tmp_path/'out.ipynb').read_text())['cells']])
    assert 'of my friend' not in outputs and 'about the moon' not in outputs


def test_the_three_demos_have_sections():
    for poc in ('demo', 'demo-hardened', 'demo-regressed'): assert len(load_card(poc).section('robustness').expectations) == 6
    assert [t if isinstance(t, str) else (t.name, t.floor) for t in load_card('demo-hardened').system().fallbacks][:2] == [('rules', .95), ('answers', .9)]


@pytest.mark.parametrize('e', [dict(when=dict(nothing='x'), expect='y'), dict(when=dict(a='('), expect='y'), dict(expect='('), dict(change=dict(a=('(', 'x')), expect='y')])
def test_expectations_that_make_no_sense(e):
    with pytest.raises(PlaybookError, match='test of mine'): rows_of(pd.DataFrame(dict(a=['x'])), Expectation(name='test of mine', **e))


def test_a_wrong_key_is_said_with_its_line(tmp_path):
    card = make(tmp_path, '{kind: python, target: "bot:answer"}', 'robustness:\n  los: 0.1\n')
    with pytest.raises(PlaybookError, match='loss'): load_card(card)
    assert parse_card(card.read_text().replace('los:', 'loss:'), card)


def test_changes_apply_to_the_rows_they_name():
    rows = pd.DataFrame(dict(intent=['damage', 'damage', None], context=['status: damaged | photo: yes', 'status: lost | photo: yes', 'photo: yes']))
    e = Expectation(name='x', when=dict(intent='damage', context='damaged'), change=dict(context=('photo: yes', 'photo: no')), expect='photo')
    assert list(rows_of(rows, e)['context']) == ['status: damaged | photo: no'] and list(rows['context'])[0].endswith('yes')


def test_knocked_out_sees_a_dead_tier():
    from genai_playbook.faults import Injector, with_faults
    from genai_playbook.tiers import Rules
    s = System(PythonModel(lambda p: 'fine'), fallbacks=[Rules(lambda p: None), Rules(lambda p: 'ok'), 'sorry'])
    assert knocked_out(s, ['a', 'b'], lambda x: with_faults(x, Injector(1., ('server_error',)))) == {1, 2}
    assert worst_margin({}, []) is None and worst_margin({'a': proportion([])}, [.5]).n == 0


def test_odd_inputs():
    inputs = edge_inputs()
    assert len(inputs) >= 25 and any('\ud800' <= c <= '\udfff' for c in ''.join(inputs.values())) and max(map(len, inputs.values())) == 100_000
    assert refusal('the prompt has 300 tokens, but the model reads at most 256') and not refusal('ValueError: bad') and not refusal('x') and not refusal(None)
    assert survived(Answer('ok', seconds=30.), 20.) == 'hang' and survived(Answer('\u200b'), 20.) == 'nothing'


def test_half_a_surrogate_pair_harms_nobody(tiny_model):
    from genai_playbook.local_model import TransformersModel
    m = TransformersModel(tiny_model, max_new_tokens=4)
    alone = m.answer(['hello'])[0].text
    batch = m.answer(['hello', '\ud800 x', ''])
    assert batch[0].text == alone and not batch[1].error and batch[2].error == 'the prompt is empty'


def test_flips_without_scores():
    nan = float('nan')
    assert flipped([nan, 1, nan], [nan, nan, nan], ['a', 'a', None], ['b', 'a', 'x'])[:2] == [1., 0.]
    table = flip_table([1, 0, nan], ['ocr', 'ocr', 'emoji'], ['x', 'y', 'x'])
    assert list(table.index)[0] == 'ocr' and table.loc['emoji', 'n'] == 0


@pytest.mark.parametrize('text', ['', 'x'*20_000, '\x00\ud800', 'A'*50, '漢字 مرحبا 🙂', '-\n'*5000, ' '*20_000, 'where'*3000, 'é'*5000])
def test_the_mender_takes_anything(text):
    m = Mender.learn(['where is my parcel', 'where is the parcel'])
    assert isinstance(m(text), str) and m(m(text)) == m(text)


def test_distances():
    for a, b, d in (('ab', 'ba', 1), ('abc', 'abc', 0), ('abc', 'axc', 1), ('', '', 0), ('abcdef', 'badcfe', 3), ('a', 'abcd', 3)): assert slips_between(a, b, 3) == slips_between(b, a, 3) == d
