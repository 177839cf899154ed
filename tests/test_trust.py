"Chapter 05 for models that tell little, for private data, and for data that lacks what it needs"
import csv
import json
from pathlib import Path

import pytest

import genai_playbook
from genai_playbook.errors import PlaybookError
from genai_playbook.runner import run
from genai_playbook.trust import Section, choose_signal, run_statements

DEMO = Path(genai_playbook.__file__).parent/'data/demo'
CARD = '''poc: mine
outcome: {{promise: answers as the rules say}}
model: {model}
prompt: {{template: "{template}"}}
data:
  evaluation: rows.csv
  columns: {{cluster: conversation_id{columns}}}
  private: {private}
'''


def chapter(folder, model, keep=None, n=120, template='{context}\\n{prompt}', columns=', slices: [region]', private='false', **params):
    "Evidence of the chapter on the first rows of the demo"
    with open(DEMO/'evaluation.csv', encoding='utf-8', newline='') as f: rows = [{k: v for k, v in r.items() if not keep or k in keep} for r in csv.DictReader(f)][:n]
    with open(folder/'rows.csv', 'w', encoding='utf-8', newline='') as f:
        w = csv.DictWriter(f, rows[0])
        w.writeheader()
        w.writerows(rows)
    (folder/'poc.yaml').write_text(CARD.format(model=model, template=template, columns=columns, private=private), encoding='utf-8')
    ev = run(folder/'poc.yaml', out=folder/'out', effort='full', chapters=['trust'], params=dict(trust=params))
    assert [(c['status'], c['error']) for c in ev['chapters']] == [('done', '')]
    return {g['code']: g for g in ev['gates']}, rows


@pytest.mark.slow
def test_recorded_answers_without_confidence(tmp_path):
    with open(DEMO/'evaluation.csv', encoding='utf-8', newline='') as f: rows = list(csv.DictReader(f))[:120]
    (tmp_path/'log.jsonl').write_text(''.join(json.dumps(dict(id=r['id'], text=r['answer_today'])) + '\n' for r in rows[:-3]))
    gates, _ = chapter(tmp_path, '{kind: recorded, path: log.jsonl, answer: text, id: id}')
    assert [gates[c]['verdict'] for c in ('TRU01', 'TRU02', 'TRU03', 'TRU05')] == ['NOT TESTED']*4
    assert gates['TRU04']['unscored'] == 3 and 'contact' in gates['TRU07']['note']      # the card does not say how to reach a person
    assert gates['TRU06']['n'] == 120


@pytest.mark.slow
def test_private_data_and_a_function_that_tells_nothing(tmp_path):
    (tmp_path/'mine.py').write_text('def answer(prompt): return "It arrives on Friday." if "zanzibar" not in prompt else 1/0')
    gates, rows = chapter(tmp_path, '{kind: python, target: "mine:answer"}', private='true', n=60, explained=8, draws=2, streamed=2)
    assert gates['TRU01']['verdict'] in ('FAIL', 'INSUFFICIENT') and 'consistency' not in gates['TRU01']['verdict']
    nb = next((tmp_path/'out').rglob('05_trust.ipynb')).read_text()
    html = next((tmp_path/'out').rglob('05_trust.html')).read_text()
    for r in rows[:40]:
        if len(r['prompt']) > 25: assert r['prompt'] not in nb and r['prompt'] not in html


@pytest.mark.slow
def test_data_without_context_reference_or_clusters(tmp_path):
    gates, _ = chapter(tmp_path, f'{{kind: transformers, path: "{DEMO/"model"}", max_new_tokens: 40, dtype: float32}}', keep={'id', 'prompt', 'conversation_id'}, n=30, template='{prompt}', columns='', explained=4, draws=1, streamed=2)
    assert gates['TRU01']['verdict'] == gates['TRU04']['verdict'] == 'NOT TESTED' and 'reference' in gates['TRU01']['note'] and 'context' in gates['TRU04']['note']


def test_signals():
    nan = float('nan')
    assert choose_signal({}) is None and choose_signal(dict(likelihood=[])) is None
    assert choose_signal(dict(likelihood=[nan, .5], column=[.5, .5])) == 'column'
    assert choose_signal(dict(likelihood=[.5], consistency=[1.]), 'consistency') == 'consistency'


def test_statements_of_a_run(tmp_path):
    assert run_statements(tmp_path) == []                  # a run under way
    (tmp_path/'evidence.json').write_text('{half')
    with pytest.raises(PlaybookError, match='run_dir'): run_statements(tmp_path)
    with pytest.raises(PlaybookError, match='run_dir'): run_statements(tmp_path/'none')
    gates = [dict(code=c, name='Cases', chapter='success', verdict='PASS', value=.9, cell='ab') for c in ('SUC01', 'TRU01')]
    (tmp_path/'evidence.json').write_text(json.dumps(dict(gates=gates, chapters=[dict(name='success', html='01_success.html')])))
    assert [s.href for s in run_statements(tmp_path, ['TRU01'])] == ['01_success.html#cell-ab']


@pytest.mark.parametrize('bad', [dict(max_error=0), dict(max_error=1), dict(confidence='gut'), dict(sure=1), dict(grade=-1)])
def test_section_refuses(bad):
    with pytest.raises(ValueError): Section(**bad)
