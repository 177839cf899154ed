"`genai-playbook run my/poc.yaml` for each of the four model kinds, on a sample of the demo's data"
import csv
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

import genai_playbook
from genai_playbook.runner import run

DEMO = Path(genai_playbook.__file__).parent/'data/demo'
ROWS = 240
CARD = '''poc: mine
outcome: {{promise: answers as the rules say}}
model: {model}
prompt: {{template: "{{context}}\\n{{prompt}}"}}
data:
  evaluation: rows.csv
  columns: {{cluster: conversation_id, today: answer_today, slices: [region]}}
success: {{target: 0.95}}
'''


@pytest.fixture(params=[['success', 'decision'], pytest.param(None, marks=pytest.mark.slow)], ids=['first chapter', 'whole playbook'])
def chapters(request):
    "What of the playbook runs"
    return request.param


@pytest.fixture
def poc(tmp_path):
    "Writes a card for `model` beside the first rows of the demo's data, and `rows` themselves"
    with open(DEMO/'evaluation.csv', encoding='utf-8', newline='') as f: rows = list(csv.DictReader(f))[:ROWS]
    with open(tmp_path/'rows.csv', 'w', encoding='utf-8', newline='') as f:
        w = csv.DictWriter(f, rows[0])
        w.writeheader()
        w.writerows(rows)

    def write(model):
        (tmp_path/'poc.yaml').write_text(CARD.format(model=model), encoding='utf-8')
        return tmp_path/'poc.yaml', rows
    return write


def success(evidence):
    "The gate SUC01 of a run in which every chapter ended"
    assert [c['status'] for c in evidence['chapters']] == ['done']*len(evidence['chapters']), [(c['name'], c['error']) for c in evidence['chapters']]
    return next(g for g in evidence['gates'] if g['code'] == 'SUC01')


def test_transformers(poc, tmp_path, chapters):
    card, _ = poc(f'{{kind: transformers, path: "{DEMO/"model"}", max_new_tokens: 40, batch_size: 128, dtype: float32}}')
    g = success(run(card, out=tmp_path/'out', effort='quick', chapters=chapters))
    assert g['n'] == ROWS and .7 < g['value'] < .99 and g['clusters'] < ROWS


def test_recorded(poc, tmp_path, chapters):
    card, rows = poc('{kind: recorded, path: log.jsonl, answer: text, id: id}')
    with open(tmp_path/'log.jsonl', 'w', encoding='utf-8') as f:
        for i, r in enumerate(rows[:-3]): f.write(json.dumps(dict(id=r['id'], text=r['reference'] if i % 2 else 'I do not know.')) + '\n')
    g = success(run(card, out=tmp_path/'out', effort='quick', chapters=chapters))
    assert (g['n'], g['unscored'], g['verdict']) == (ROWS-3, 3, 'FAIL')   # rows without an answer are counted, not dropped
    assert g['value'] == pytest.approx(sum(i % 2 for i in range(ROWS-3))/(ROWS-3))


def test_python(poc, tmp_path, chapters):
    card, rows = poc('{kind: python, target: "mine:answer"}')
    (tmp_path/'mine.py').write_text('''import csv, pathlib
here = pathlib.Path(__file__).parent
known = {f"{r['context']}\\n{r['prompt']}": r['reference'] for r in csv.DictReader(open(here/'rows.csv', encoding='utf-8'))}
async def answer(prompt):
    if 'damage' in prompt: raise RuntimeError('backend down')
    return known[prompt]
''')
    g = success(run(card, out=tmp_path/'out', effort='quick', chapters=chapters))
    failed = sum('damage' in f"{r['context']}\n{r['prompt']}" for r in rows)
    assert failed > 0 and (g['n'], g['unscored'], g['value']) == (ROWS-failed, failed, 1.)
    assert g['verdict'] != 'PASS'   # everything that was answered is right, and still the unanswered may all be wrong


@pytest.fixture
def served():
    "`transformers serve` with the demo's model on loopback: its base URL, and the name of the model"
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    p = subprocess.Popen([Path(sys.executable).with_name('transformers'), 'serve', str(DEMO/'model'), '--host', '127.0.0.1', '--port', str(port), '--device', 'cpu', '--dtype', 'float32'],
                         env=os.environ | dict(HF_HUB_OFFLINE='1', TRANSFORMERS_OFFLINE='1'), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        for _ in range(240):
            assert p.poll() is None, p.stdout.read().decode(errors='replace')[-3000:]
            try: urllib.request.urlopen(f'http://127.0.0.1:{port}/health', timeout=2)
            except (urllib.error.URLError, OSError): time.sleep(.5)
            else: break
        yield f'http://127.0.0.1:{port}/v1', str(DEMO/'model')
    finally:
        p.terminate()
        p.wait(30)


def test_openai_endpoint(poc, served, tmp_path, chapters):
    url, name = served
    card, _ = poc(f'{{kind: openai, base_url: "{url}", model: "{name}", max_new_tokens: 40, concurrency: 4}}')
    g = success(run(card, out=tmp_path/'out', effort='quick', chapters=chapters, params=dict(success=dict(sample=40))))
    assert 40 <= g['n'] + g['unscored'] <= 50 and g['unscored'] == 0 and .5 < g['value'] <= 1


def test_papermill_alone(tmp_path):
    "The plain command, from another folder"
    nb = Path(genai_playbook.__file__).parent.parent/'nbs/01_success.ipynb'
    papermill = Path(sys.executable).with_name('papermill')
    subprocess.run([papermill, nb, tmp_path/'out.ipynb', '-p', 'poc', 'demo', '-p', 'effort', 'quick', '-p', 'sample', '100', '--no-progress-bar'], cwd=tmp_path, check=True, capture_output=True)
    assert 'vnd.genai-playbook.evidence+json' in (tmp_path/'out.ipynb').read_text()
    said = subprocess.run([papermill, '--help-notebook', nb], capture_output=True, text=True, check=True).stdout
    for name in ('poc', 'effort', 'sample', 'worst', 'seed'): assert f'{name}:' in said
    assert 'a card (poc.yaml)' in said and 'of the sample' in said
