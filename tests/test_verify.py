"Run folders that were changed, cut off, made stale or signed by the wrong people; waivers; a second execution"
import json
import random
import re
import shutil
from datetime import datetime, timedelta, timezone
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from genai_playbook.chapters import DIMENSIONS, find_chapters
from genai_playbook.errors import PlaybookError
from genai_playbook.ledger import Ledger, approval, ledger_path
from genai_playbook.signing import attest, sign, waive
from genai_playbook.verifying import NOT_REPRODUCED, NOT_RERUN, REPRODUCED, WITHIN, compare_gates, rerun, verify
from genai_playbook.witness import RECEIPTS, keep_receipt, record_run, run_digests, waivers_for

CODE = '''from genai_playbook.evidence import GateSpec, gate, record
from genai_playbook.stats import proportion
from genai_playbook.card import load_card
card = load_card(poc)
_ = gate(GateSpec('SUC01', 'cases that are solved', 'share', 'success.target', .9), proportion([1]*good + [0]*bad), card, note='an example')
record('numbers', dict(good=good, half=good/2))
print('said 1234 in passing')
card'''
CARD = '''poc: tiny
outcome: {promise: it echoes}
model: {kind: python, target: answers:echo}
data: {evaluation: rows.csv}
risk_tier: RISK
owners: {product: Somebody}
success: {target: 0.9}
exemptions:
'''


def make(folder, good=400, bad=2, risk='limited'):
    "A finished and recorded run of a one-chapter playbook"
    from genai_playbook.runner import run
    poc, nbs = folder/'poc', folder/'nbs'
    for f in poc, nbs: f.mkdir(parents=True)
    (poc/'answers.py').write_text('def echo(prompt): return prompt\n')
    (poc/'rows.csv').write_text('id,prompt,reference\n1,hello,hello\n2,ciao,ciao\n')
    (poc/'poc.yaml').write_text(CARD.replace('RISK', risk) + ''.join(f'  - {{chapter: {d}, owner: me, reason: a test}}\n' for d in DIMENSIONS.values() if d != 'success'))
    params = new_code_cell(f'poc: str = "demo"  # card\neffort: str = "full"  # how much\ngood: int = {good}  # solved\nbad: int = {bad}  # not', metadata=dict(tags=['parameters']))
    nb = new_notebook(cells=[new_markdown_cell('# A chapter\n\n> A question?'), params, new_code_cell(CODE)])
    nb.metadata.update(kernelspec=dict(name='python3', display_name='Python 3', language='python'), genai_playbook=dict(chapter='success'))
    nbformat.write(nb, nbs/'01_tiny.ipynb')
    find_chapters.cache_clear()
    ev = run(poc, out=folder/'evidence', notebooks=nbs)
    record_run(ev)
    return Path(ev['folder'])


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    "Runs that are made once: good, bad (its gate fails), high (good, high risk)"
    base = tmp_path_factory.mktemp('verify')
    runs = dict(good=make(base/'good'), bad=make(base/'bad', 300, 200), high=make(base/'high', risk='high'))
    shutil.copytree(base, base.with_name('kept'), dirs_exist_ok=True)
    yield base, base.with_name('kept'), runs
    find_chapters.cache_clear()


@pytest.fixture
def runs(saved):
    "The runs as they were made, whatever the last test did"
    base, kept, runs = saved
    shutil.rmtree(base)
    shutil.copytree(kept, base)
    find_chapters.cache_clear()
    return runs


def log_of(run): return Ledger(run.parents[2]/'poc'/'ledger.sqlite')
def said(v): return {c.name: c.said for c in v.wrong}
def later(days=1): return lambda: datetime.now(timezone.utc)+timedelta(days=days)


def test_what_was_just_made_holds(runs):
    for r in runs.values():
        v = verify(r)
        assert (v.wrong, v.stale, v.exit_code) == ([], [], 0) and {c.name for c in v.checks if c.ok} == {'files', 'numbers', 'decision', 'faces', 'pages', 'ledger', 'receipts'}
    assert json.loads((runs['good']/'evidence.json').read_text())['decision']['verdict'] == 'GO'


# --- planted edits ------------------------------------------------------------------------------
def digit_edits(text, rnd):
    "The text with one digit changed, somewhere"
    spots = [m.start() for m in re.finditer(r'\d', text)]
    i = rnd.choice(spots)
    return text[:i] + str((int(text[i])+rnd.randint(1, 9)) % 10) + text[i+1:]


def mend_manifest(run):
    import hashlib
    m = json.loads((run/'manifest.json').read_text())
    for n in m['files']:
        data = (run/n).read_bytes()
        m['files'][n] = dict(sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))
    (run/'manifest.json').write_text(json.dumps(m))


SHOWN = ['01_tiny.ipynb', '01_tiny.html', 'index.html', 'evidence.json', 'junit.xml', 'summary.md', 'model_card.md', 'state.json']


@pytest.mark.parametrize('mended', [False, True])
def test_no_planted_edit_passes(runs, mended):
    "Fifty changed digits, with the manifest left alone and with it mended"
    run, rnd, passed = runs['good'], random.Random(11), []
    for k in range(50):
        name = SHOWN[k % len(SHOWN)]
        before, manifest = (run/name).read_text(), (run/'manifest.json').read_text()
        (run/name).write_text(digit_edits(before, rnd))
        if mended: mend_manifest(run)
        try: ok = verify(run).exit_code == 0
        except PlaybookError: ok = False
        if ok: passed.append((k, name))
        (run/name).write_text(before)
        (run/'manifest.json').write_text(manifest)
    assert passed == [] and verify(run).exit_code == 0


def forge(run):
    "Manifest and receipts made anew by somebody who has the folder but not the ledger"
    mend_manifest(run)
    e = json.loads((run/RECEIPTS).read_text())[0]['entry']
    (run/RECEIPTS).unlink()
    log = Ledger(run.parent/'forged.sqlite')
    made = log.append('run', e['who'], e['why'], e['poc'], {**e['digests'], **run_digests(run)}, **e['facts'])
    keep_receipt(run, log, made)
    (run.parent/'forged.sqlite').unlink()


def number_edits(nb, rnd):
    "One number of one output changed: what a gate holds, what it shows, what a record holds, what was printed"
    outs = [o for c in nb['cells'] for o in c.get('outputs', ())]
    out = rnd.choice([o for o in outs if 'data' in o or 'text' in o])
    if 'text' in out: out['text'] = [digit_edits(''.join(out['text']), rnd)]
    else:
        key = rnd.choice([k for k, v in out['data'].items() if re.search(r'\d', json.dumps(v)) and k != 'text/plain'] or ['text/plain'])
        out['data'][key] = json.loads(digit_edits(json.dumps(out['data'][key]), rnd)) if not isinstance(out['data'][key], list) else [digit_edits(''.join(out['data'][key]), rnd)]


def test_one_edit_with_a_forged_manifest_and_forged_receipts_still_contradicts_the_rest(runs):
    "The ledger is far away; what is shown in one place is shown in another, too"
    run, rnd, passed, tried = runs['good'], random.Random(5), [], 0
    ledger = ledger_path_of(run)
    ledger.unlink()
    texts = {n: (run/n).read_text() for n in ['01_tiny.ipynb', RECEIPTS, 'manifest.json', 'evidence.json', '01_tiny.html', 'index.html', 'summary.md']}
    for k in range(50):
        name = ['01_tiny.ipynb', 'evidence.json', '01_tiny.html', 'index.html', 'summary.md'][k % 5]
        if name.endswith('ipynb'):
            nb = json.loads(texts[name])
            try: number_edits(nb, rnd)
            except ValueError: continue  # a digit whose change is no JSON
            (run/name).write_text(json.dumps(nb))
        elif name == 'evidence.json':
            ev = json.loads(texts[name])
            ev['gates'][0][rnd.choice(['value', 'low', 'high', 'threshold'])] += .01
            (run/name).write_text(json.dumps(ev))
        else: (run/name).write_text(digit_edits(texts[name], rnd))
        forge(run)
        tried += 1
        if verify(run).exit_code == 0: passed.append((k, name))
        for n, t in texts.items(): (run/n).write_text(t)
    assert passed == [] and tried >= 45


def ledger_path_of(run): return log_of(run).path


def test_a_verdict_that_does_not_follow_is_named(runs):
    run = runs['bad']
    ev = json.loads((run/'evidence.json').read_text())
    ev['decision']['verdict'] = 'GO'
    (run/'evidence.json').write_text(json.dumps(ev))
    assert 'does not follow' in said(verify(run))['decision'] and 'evidence' in said(verify(run))['ledger']


def test_files_that_are_missing_or_more(runs):
    run = runs['good']
    (run/'note.txt').write_text('mine')
    assert verify(run).exit_code == 0 and any('note.txt' in c.said for c in verify(run).checks)
    (run/'summary.md').unlink()
    assert 'summary.md' in said(verify(run))['files']
    (run/'evidence.json').unlink()
    with pytest.raises(PlaybookError, match='not a whole run: evidence.json'): verify(run)


def test_receipts_that_were_changed_or_belong_to_another_log(runs):
    run = runs['good']
    slips = (run/RECEIPTS).read_text()
    (run/RECEIPTS).write_text(slips.replace('GO, 1 of', 'GO, 9 of'))
    assert 'receipt of entry 0' in said(verify(run))['receipts']
    shutil.copy(runs['bad']/RECEIPTS, run/RECEIPTS)
    assert 'receipts' in said(verify(run))
    (run/RECEIPTS).write_text('{half')
    with pytest.raises(PlaybookError, match='restore it from a copy'): verify(run)


def test_a_ledger_that_was_cut_or_begun_anew_is_found_by_the_receipts(runs):
    run = runs['good']
    log = ledger_path_of(run)
    log.unlink()
    v = verify(run)
    assert v.exit_code == 0 and any(c.name == 'ledger' and c.ok is None for c in v.checks)
    Ledger(log).append('incident', 'someone', 'a new beginning', 'tiny')
    assert 'not those of the checkpoint' in said(verify(run))['receipts']


@pytest.mark.parametrize('change, match', [
    (lambda r: (r/'state.json').unlink(), 'not a run folder'),
    (lambda r: (r/'state.json').write_text('{'), 'not a run folder'),
    (lambda r: (r/'state.json').write_text(json.dumps(json.loads((r/'state.json').read_text()) | dict(finished=''))), 'half a run'),
    (lambda r: (r/'manifest.json').write_text('[]'), 'no manifest'),
    (lambda r: (r/'evidence.json').write_text('{}'), 'another version'),
    (lambda r: (r/'01_tiny.ipynb').unlink(), 'not a whole run')])
def test_foreign_and_half_written_folders_are_one_sentence_and_nothing_is_written(runs, change, match):
    run = runs['good']
    change(run)
    before = ledger_path_of(run).read_bytes()
    for work in verify, lambda r: sign(r, True, 'me', 'fine'), lambda r: sign(r, False, 'me', 'no'):
        with pytest.raises(PlaybookError, match=match) as e: work(run)
        assert '\n' not in str(e.value)
    assert ledger_path_of(run).read_bytes() == before


def places(d, at=()):
    "Every place in JSON data"
    yield at
    for k, v in d.items() if isinstance(d, dict) else enumerate(d) if isinstance(d, list) else (): yield from places(v, (*at, k))


@pytest.mark.parametrize('name', ['state.json', 'evidence.json', 'manifest.json', RECEIPTS, '01_tiny.ipynb'])
def test_odd_values_anywhere_are_a_finding_or_a_sentence_and_never_a_traceback(runs, name):
    run, rnd, passed = runs['good'], random.Random(4), []
    text = (run/name).read_text()
    d = json.loads(text)
    spots = [p for p in places(d) if p]
    for _ in range(60):
        new, at = json.loads(text), rnd.choice(spots)
        holder = new
        for k in at[:-1]: holder = holder[k]
        old, holder[at[-1]] = holder[at[-1]], rnd.choice([None, 7, -1, 1e400, '', 'x', [], {}, [None], dict(a=1), True])
        if old == holder[at[-1]]: continue
        (run/name).write_text(json.dumps(new))
        try: v = verify(run)
        except PlaybookError as e: assert '\n' not in str(e)
        else:
            if v.exit_code == 0: passed.append(at)
    assert passed == []


# --- stale --------------------------------------------------------------------------------------
@pytest.mark.parametrize('change, names', [
    (lambda p: (p/'poc'/'answers.py').write_text('def echo(prompt): return prompt+"!"\n'), {'model'}),
    (lambda p: (p/'poc'/'rows.csv').write_text('id,prompt,reference\n1,hello,hallo\n'), {'data.evaluation'}),
    (lambda p: (p/'poc'/'poc.yaml').write_text((p/'poc'/'poc.yaml').read_text().replace('target: 0.9', 'target: 0.5')), {'card', 'thresholds'}),
    (lambda p: (p/'poc'/'poc.yaml').write_text((p/'poc'/'poc.yaml').read_text() + 'prompt: {system: be kind}\n'), {'card', 'prompt'}),
    (lambda p: (p/'nbs'/'01_tiny.ipynb').write_text((p/'nbs'/'01_tiny.ipynb').read_text().replace('an example', 'another')), {'chapter 01_tiny.ipynb'})])
def test_stale_evidence_is_marked_and_cannot_support_a_go(runs, change, names):
    run = runs['good']
    change(run.parents[2])
    v = verify(run)
    assert v.wrong == [] and set(v.stale) == names and v.exit_code == 1
    with pytest.raises(PlaybookError, match='stale'): sign(run, True, 'me', 'fine')
    assert sign(run, False, 'me', 'not any more')[1] == 'NO-GO'


def test_owners_and_prose_do_not_make_it_stale(runs):
    card = runs['good'].parents[2]/'poc'/'poc.yaml'
    card.write_text(card.read_text().replace('Somebody', 'Somebody else').replace('it echoes', 'it echoes well'))
    assert verify(runs['good']).stale == []


def test_another_package_is_stale_and_a_new_report_does_not_wash_it(runs, monkeypatch):
    from genai_playbook import verifying, witness
    from genai_playbook.card import load_card
    from genai_playbook.runner import finish, load_run
    run = runs['good']
    monkeypatch.setattr(verifying, 'package_digest', lambda: 'other')
    assert verify(run).stale == ['package']
    monkeypatch.setattr(witness, 'package_digest', lambda: 'other')
    state = load_run(run)
    record_run(finish(state, load_card(state.card)))
    assert verify(run).stale == ['package'] and verify(run).wrong == []


# --- signing ------------------------------------------------------------------------------------
def test_go_over_a_failed_gate_needs_a_waiver(runs):
    run, poc = runs['bad'], runs['bad'].parents[2]/'poc'
    before = log_of(run).path.read_bytes()
    with pytest.raises(PlaybookError, match='GO cannot be signed: the evidence says NO-GO .SUC01 failed.*nothing was written'): sign(run, True, 'me', 'fine')
    assert log_of(run).path.read_bytes() == before
    waive('SUC01', 'Head of risk', 'small, and mended next week', '2999-01-01', poc)
    entry, state, names = sign(run, True, 'Head of service', 'with the waiver')
    assert state == 'GO' and names == ['Head of service'] and entry.digests['evidence'] == run_digests(run)['evidence'] and verify(run).exit_code == 0


def test_a_waiver_that_ran_out_carries_nothing(runs):
    run, poc = runs['bad'], runs['bad'].parents[2]/'poc'
    today = datetime.now(timezone.utc).date()
    waive('SUC01', 'Head of risk', 'for today', today.isoformat(), poc)
    with pytest.raises(PlaybookError, match='GO cannot be signed'): sign(run, True, 'me', 'late', clock=later(2))
    from genai_playbook.card import load_card
    assert [w['code'] for w in waivers_for(load_card(poc))] == ['SUC01'] and waivers_for(load_card(poc), today+timedelta(days=1)) == []


@pytest.mark.parametrize('kw, match', [(dict(code='SUC1'), 'did you mean `SUC01`'), (dict(until='2020-01-01'), 'has passed'), (dict(until='soon'), 'write a day'), (dict(by=' '), '`who` is empty'),
                                       (dict(because=''), '`why` is empty')])
def test_a_waiver_that_says_too_little_is_refused(runs, kw, match):
    log = log_of(runs['bad'])
    before = log.path.read_bytes()
    with pytest.raises(PlaybookError, match=match): waive(**(dict(code='SUC01', by='me', because='so', until='2999-01-01', poc=log.path.parent) | kw))
    with pytest.raises(PlaybookError): attest('GDPR Art. 30', 'me', 'seen', '2020-01-01', log.path.parent)
    assert log.path.read_bytes() == before


def test_four_eyes_where_the_risk_is_high(runs):
    run = runs['high']
    assert sign(run, True, 'Ada', 'fine')[1] == 'waiting'
    assert sign(run, True, ' ada ', 'fine again')[1] == 'waiting'
    assert sign(run, True, 'Ben', 'seen it, too')[1:] == ('GO', ['ada', 'Ben'])
    assert sign(run, False, 'Cleo', 'found a leak')[1] == 'NO-GO'
    assert sign(run, False, 'Ada', 'agree')[1] == 'NO-GO'
    assert verify(run).exit_code == 0


def test_a_clock_that_went_back_signs_nothing(runs):
    with pytest.raises(PlaybookError, match='set the clock'): sign(runs['good'], True, 'me', 'fine', clock=later(-3))


def test_a_signed_receipt_is_checked_with_the_public_key(runs, tmp_path):
    from cryptography.hazmat.primitives import serialization as s
    from cryptography.hazmat.primitives.asymmetric import ed25519
    run, keys = runs['good'], [ed25519.Ed25519PrivateKey.generate() for _ in range(2)]
    (tmp_path/'key.pem').write_bytes(keys[0].private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption()))
    for n, k in ('mine.pem', keys[0]), ('other.pem', keys[1]): (tmp_path/n).write_bytes(k.public_key().public_bytes(s.Encoding.PEM, s.PublicFormat.SubjectPublicKeyInfo))
    assert 'no receipt is signed' in said(verify(run, tmp_path/'mine.pem'))['receipts']
    with pytest.raises(PlaybookError, match='cannot be read'): sign(run, True, 'me', 'fine', tmp_path/'missing.pem')
    sign(run, True, 'me', 'fine', tmp_path/'key.pem')
    assert verify(run, tmp_path/'mine.pem').exit_code == 0 and 'another key' in said(verify(run, tmp_path/'other.pem'))['receipts']


def test_the_last_word_of_each_person_counts():
    from genai_playbook.ledger import Entry
    say = lambda seq, who, go: Entry(seq, str(seq), 'decision', 'x', who, 'w', dict(evidence='e'), dict(go=go))
    assert approval([], 'e') == ('unsigned', [])
    assert approval([say(0, 'A', False), say(1, 'A', True)], 'e')[0] == 'GO'
    assert approval([say(0, 'A', True), say(1, 'B', False)], 'e')[0] == 'NO-GO'
    assert approval([say(0, 'A', True)], 'other')[0] == 'unsigned'


def test_waivers_reach_the_decision_of_the_next_report(runs):
    from genai_playbook.card import load_card
    from genai_playbook.runner import finish, load_run
    run, poc = runs['bad'], runs['bad'].parents[2]/'poc'
    waive('SUC01', 'Head of risk', 'known', '2999-01-01', poc)
    state = load_run(run)
    ev = finish(state, load_card(state.card))
    record_run(ev)
    assert ev['decision']['scope']['waived'] == ['SUC01'] and ev['decision']['verdict'] != 'NO-GO'
    assert verify(run).exit_code == 0


# --- again --------------------------------------------------------------------------------------
def test_a_second_execution_reproduces_and_finds_what_does_not(runs):
    run = runs['good']
    assert [c.label for c in rerun(run)] == [REPRODUCED]
    nb = run.parents[2]/'nbs'/'01_tiny.ipynb'
    nb.write_text(nb.read_text().replace('good: int = 400', 'good: int = 200'))
    find_chapters.cache_clear()
    assert [c.label for c in rerun(run)] == [NOT_REPRODUCED]


def test_labels_of_claims():
    g = dict(code='SUC01', chapter='success', value=.9, low=.88, high=.92, n=10, threshold=.8, verdict='PASS', unscored=0, clusters=None, unit='share', method='Gaffke')
    label = lambda then, now, timing=(), same=True: compare_gates([then], [now] if now else [], set(timing), same)[0].label
    assert label(g, g) == REPRODUCED and label(g, g | dict(value=.902, low=.882, high=.922)) == WITHIN
    assert label(g, g | dict(value=.93)) == label(g, g | dict(verdict='FAIL')) == label(g, None) == NOT_REPRODUCED
    t = g | dict(unit='ms', value=100., low=90., high=110.)
    assert label(t, t | dict(value=180.), ['SUC01']) == WITHIN and label(t, t | dict(value=300.), ['SUC01']) == NOT_REPRODUCED
    assert label(t, t | dict(value=300.), ['SUC01'], False) == label(t, t | dict(value='NaN'), ['SUC01']) == NOT_RERUN
    fact = g | dict(method='exact', n=3)
    assert label(fact, fact | dict(n=9)) == REPRODUCED and label(g, g | dict(n=11)) == WITHIN
    assert label(t | dict(value='NaN', low='NaN'), t | dict(value='NaN', low='NaN')) == REPRODUCED


def test_the_ledger_of_a_card_lies_beside_it_and_that_of_a_bundled_one_in_the_users_data(runs, monkeypatch, tmp_path):
    from genai_playbook.card import bundled_cards, load_card
    monkeypatch.setenv('GENAI_PLAYBOOK_DATA', str(tmp_path/'data'))
    assert ledger_path(load_card(runs['good'].parents[2]/'poc')) == runs['good'].parents[2]/'poc'/'ledger.sqlite'
    for poc in 'demo', bundled_cards()['demo'], bundled_cards()['demo'].parent: assert ledger_path(load_card(poc)) == tmp_path/'data'/'demo'/'ledger.sqlite'


# --- the command line ---------------------------------------------------------------------------
def call(*args, capsys, monkeypatch):
    import sys

    from genai_playbook import cli
    monkeypatch.setattr(sys, 'argv', ['genai-playbook', *map(str, args)])
    with pytest.raises(SystemExit) as e: cli.main()
    out, err = capsys.readouterr()
    return e.value.code, out, err


def test_exit_codes_and_words(runs, capsys, monkeypatch):
    run, poc = runs['bad'], runs['bad'].parents[2]/'poc'
    go = lambda *args: call(*args, capsys=capsys, monkeypatch=monkeypatch)
    code, out, _ = go('verify', run)
    assert code == 0 and 'holds' in out
    code, out, err = go('sign', run, '--go', '--by', 'me', '--because', 'fine')
    assert code == 2 and 'nothing was written' in err and len(err.strip().splitlines()) == 1
    assert go('sign', run, '--by', 'me', '--because', 'fine')[0] == 2
    code, out, _ = go('sign', run, '--no-go', '--by', 'me', '--because', 'it fails')
    assert code == 0 and 'NO-GO by me. The decision on this run is NO-GO' in out
    code, out, _ = go('waive', 'SUC01', '--by', 'me', '--because', 'known', '--until', '2999-01-01', '--poc', poc)
    assert code == 0 and 'waived until 2999-01-01' in out
    assert go('attest', 'GDPR Art. 30', '--by', 'me', '--because', 'seen', '--until', '2999-01-01', '--poc', poc)[0] == 0
    (run/'index.html').write_text('GO')
    code, out, _ = go('verify', run)
    assert code == 1 and 'does not hold' in out and 'index.html' in out
    assert go('verify', poc)[0] == 2
