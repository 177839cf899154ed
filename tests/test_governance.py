"Chapter 10 and the papers it writes: no answer given, hostile words on the card, numbers that somebody improved"
import json
import random
import re
from types import SimpleNamespace

import pytest

from genai_playbook.card import load_card
from genai_playbook.chapters import DIMENSIONS, find_chapters
from genai_playbook.compliance import OPEN, load_catalogues, matrix
from genai_playbook.dossier import DRAFTS, documents, dossier, eval_results, model_card, render, untraced
from genai_playbook.errors import PlaybookError
from genai_playbook.evidence import FAIL, INSUFFICIENT, NOT_TESTED, PASS, Gate
from genai_playbook.governance import GATES, Section, explore, ledger_state, matrix_table, plot_matrix, plot_timeline, timeline
from genai_playbook.ledger import Entry, Ledger
from genai_playbook.lineage import lineage_of
from genai_playbook.witness import keep_receipt, record_run

CARD = '''poc: {name}
outcome: {{promise: "{promise}"}}
model: {model}
data: {{evaluation: rows.csv}}
owners: {{product: "{owner}"}}
'''
MODELS = dict(python='{kind: python, target: "answers:echo", deterministic: true}', recorded='{kind: recorded, path: log.csv}', openai='{kind: openai, base_url: "http://127.0.0.1:9/v1", model: m}')


@pytest.fixture
def card(tmp_path):
    def write(model='python', promise='it works', owner='Somebody', more=''):
        (tmp_path/'answers.py').write_text('def echo(prompt): return prompt\n')
        (tmp_path/'rows.csv').write_text('id,prompt,reference\n1,hello,hello\n2,write to a@b.de,ciao\n')
        (tmp_path/'log.csv').write_text('id,prompt,answer\n1,hello,hello\n2,write to a@b.de,ciao\n')
        (tmp_path/'poc.yaml').write_text(CARD.format(name='mine', promise=promise, owner=owner, model=MODELS[model]) + more)
        return load_card(tmp_path)
    return write


def gate(code='SUC01', verdict=PASS, value=.95, cell='c1', n=400, name='a gate', note=''):
    return Gate(code, DIMENSIONS[code[:3]], name, 'share', value, value-.01, value+.01, .95, n, 'share', .9, '>=', verdict, True, 'exact', cell, note)


CHAPTERS = [dict(name=d, status='done', notebook=f'{d}.ipynb', html=f'{d}.html') for d in DIMENSIONS.values()]
def record(card, *gates, **kw): return dossier(card, gates, CHAPTERS, lineage_of(card), '2026-03-02T09:00:00+00:00', **kw)


# --- cards and drafts ---------------------------------------------------------------------------
@pytest.mark.parametrize('model', MODELS)
def test_every_draft_is_written_when_nothing_is_known(card, model):
    docs = documents(record(card(model)))
    assert set(docs) == {'huggingface_card.md', *(f'{n}.md' for n in DRAFTS)}
    for n, t in docs.items():
        assert '{{' not in t and '{%' not in t and 'None' not in t, (n, t)
        if n != 'huggingface_card.md': assert 'To be written' in t and re.search(r'Somebody|owner \(nobody is named\)', t), n


def test_words_on_the_card_cannot_break_a_table_or_smuggle_html(card):
    c = card(promise='a | b <script>alert(1)</script> # x', owner='<b>P</b> | Q')
    docs = documents(record(c, gate('SUC01', FAIL, .5, name='x | y <img src=x>', note='`a` | <i>b</i>')))
    for n, t in docs.items():
        body = t.split('---', 2)[-1] if n == 'huggingface_card.md' else t
        assert '<script' not in body and '<img' not in body and '<b>' not in body, n
    row = next(line for line in docs['risk_register.md'].splitlines() if 'SUC01' in line)
    assert len(re.findall(r'(?<!\\)\|', row)) == 6


def test_the_model_card_comes_back_as_it_was_and_holds_only_measured_gates(card):
    from huggingface_hub import ModelCard
    gates = [gate(), gate('LAT01', FAIL, 812.), gate('BIA01', NOT_TESTED, float('nan'), '', 0), gate('COS01', INSUFFICIENT, -3.5)]
    made = model_card(record(card(), *gates))
    back = ModelCard(str(made))
    assert back.data.eval_results == made.data.eval_results == eval_results(record(card(), *gates))
    assert [r.metric_args['gate'] for r in back.data.eval_results] == ['SUC01', 'LAT01', 'COS01'] and back.data.eval_results[0].metric_args['cell'] == 'c1'
    assert untraced(str(made), [g.to_dict() for g in gates]) == []


def test_a_number_without_a_cell_stops_the_build(card):
    with pytest.raises(PlaybookError, match='LAT01 has a number .* no notebook cell made'): documents(record(card(), gate(), gate('LAT01', cell='')))
    r = record(card(), gate())
    with pytest.raises(PlaybookError, match='no notebook cell'): model_card(r | dict(chapters=[]))


def test_improved_numbers_are_found(card):
    "Fifty digits of the results changed, one at a time"
    gates, rnd, missed = [gate(), gate('LAT01', FAIL, .8123), gate('TRU01', PASS, .0042)], random.Random(2), 0
    text, d = str(model_card(record(card(), *gates))), [g.to_dict() for g in gates]
    head = text.index('metrics:'), text.index('\n---', 10)
    spots = [m.start(1) for m in re.finditer(r'(?:value|low|high|n): -?[\d.e-]*?(\d)', text[:head[1]]) if m.start() > head[0]]
    for _ in range(50):
        i = rnd.choice(spots)
        changed = text[:i] + str((int(text[i])+rnd.randint(1, 9)) % 10) + text[i+1:]
        missed += not untraced(changed, d)
    assert missed == 0


def test_own_gates_stand_in_the_drafts_and_not_in_the_model_card(card):
    docs = documents(record(card(), gate()), [gate('GOV03', FAIL, 2., cell='')])
    assert 'GOV03' in docs['risk_register.md'] and 'GOV03' in docs['dpia.md'] and 'GOV03' not in docs['huggingface_card.md']


# --- tables and pictures ------------------------------------------------------------------------
def test_tables_and_pictures_of_nothing_and_of_much():
    assert len(timeline([])) == 0 and len(matrix_table([])) == 0
    rows = matrix(load_catalogues(), [], [], __import__('datetime').date(2026, 6, 1))
    assert len(matrix_table(rows)) == len(rows) and set(matrix_table(rows).state) == {OPEN}
    entries = [Entry(i, f'2026-03-0{i+1}T09:00:00+00:00', k, 'x', 'w', 'y', {}, {}) for i, k in enumerate(['run', 'decision', 'waiver', 'attest', 'incident', 'rollback'])]
    assert list(timeline(entries).what) == ['rollback', 'incident', 'attest', 'waiver', 'decision', 'run']
    import matplotlib.pyplot as plt
    for fig in plot_matrix(rows), plot_timeline(entries), plot_timeline(entries[:1]): plt.close(fig)
    explore(rows)


def test_a_ledger_that_is_gone_or_cut_is_held_against_the_receipts_of_all_runs(tmp_path):
    log, runs = Ledger(tmp_path/'ledger.sqlite'), tmp_path/'runs'
    assert ledger_state(log, None) == ([], 0)
    for i in range(3):
        (runs/f'r{i}').mkdir(parents=True)
        keep_receipt(runs/f'r{i}', log, log.append('run', 'me', f'run {i}', 'demo'))
    assert ledger_state(log, runs) == ([], 6)
    log.path.rename(tmp_path/'away.sqlite')
    assert ledger_state(log, runs)[0] == ['3 receipts speak of a ledger that is gone']
    for i in range(3): log.append('run', 'me', f'forged {i}', 'demo')
    assert any('not those of the checkpoint' in w for w in ledger_state(log, runs)[0])


@pytest.mark.parametrize('change', ['governance: {risk: {area: nowhere}}', 'governance: {retention: {prompts: soon}}', 'governance: {contacts: [{who: me}]}', 'governance: {colour: blue}'])
def test_mistakes_in_the_section_are_named(card, change):
    with pytest.raises(PlaybookError, match='governance'): card(more=change+'\n')


def test_codes_and_defaults():
    assert [g.code for g in GATES] == [f'GOV0{i}' for i in range(1, 9)] and [g.hard for g in GATES] == [True]*4+[False]*4
    assert not {g.key.split('.')[1] for g in GATES} & set(Section.model_fields)  # a key of the section is no threshold
    assert all(g.default == 0 and g.direction == '<=' for g in GATES)


# --- the chapter --------------------------------------------------------------------------------
def test_the_chapter_runs_without_any_answer_and_its_papers_verify(card, tmp_path, own_cache):
    from genai_playbook.runner import run
    from genai_playbook.verifying import verify
    find_chapters.cache_clear()
    c = card('recorded')
    ev = run(c.folder, chapters=['governance'], effort='quick', out=tmp_path/'evidence')
    assert [x['error'] for x in ev['chapters'] if x['name'] == 'governance'] == ['']
    found = {g['code']: g for g in ev['gates'] if g['code'].startswith('GOV')}
    assert {k: g['verdict'] for k, g in found.items()} == dict(GOV01=PASS, GOV02=PASS, GOV03=FAIL, GOV04=PASS, GOV05=NOT_TESTED, GOV06=NOT_TESTED, GOV07=NOT_TESTED, GOV08=NOT_TESTED)
    assert found['GOV03']['note'] == 'undeclared in: prompts'
    folder = tmp_path/'evidence'/'mine'/ev['folder'].rsplit('/', 1)[1]
    record_run(ev)
    assert verify(folder).exit_code == 0
    names = ['huggingface_card.md', *(f'{n}.md' for n in DRAFTS), 'bom.cdx.json', 'statement.intoto.json']
    assert all((folder/n).stat().st_size > 100 for n in names)
    assert not any(re.search(r'\bcompliant\b', p.read_text(), re.I) for p in folder.iterdir() if p.suffix in ('.md', '.html', '.json', '.ipynb', '.xml'))
    assert 'a@b.de' not in (folder/'10_governance.ipynb').read_text()
    rec = ev['records']['governance']
    assert rec['first_steps'] and all(c['attested'] == 0 for c in rec['coverage'].values())
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str((folder/'bom.cdx.json').read_text()) is None
    assert json.loads((folder/'statement.intoto.json').read_text())['predicate']['result'] == 'WARNED'
    with pytest.raises(PlaybookError, match='GO cannot be signed'):
        from genai_playbook.signing import sign
        sign(folder, True, 'me', 'fine')


def test_render_needs_no_card(card):
    assert 'Whom to call' in render('incident_contacts', record(card(), stated=dict(contacts=[SimpleNamespace(when='a | b', who='c', how='d')])))
