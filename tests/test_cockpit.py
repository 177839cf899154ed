"The cockpit and the sign-off without a browser: buttons are clicked, runs are real and small, everything that can go wrong does"
import functools
import shutil
import threading
from datetime import datetime, timedelta, timezone
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from genai_playbook.card import load_card
from genai_playbook.chapters import DIMENSIONS, find_chapters
from genai_playbook.cockpit import Cockpit, Watched, cards_near, home_of, links_md, moved, progress_html, runs_of, so_far
from genai_playbook.errors import PlaybookError
from genai_playbook.evidence import Gate
from genai_playbook.ledger import Ledger
from genai_playbook.runner import ChapterRun, Run, run
from genai_playbook.sign_off import SignOff, standing
from genai_playbook.signing import waive
from genai_playbook.verifying import verify

CARD = '''poc: tiny   # ours
outcome: {promise: it echoes}
model: {kind: python, target: answers:echo}
data: {evaluation: rows.csv}
risk_tier: limited
success: {target: 0.9}
exemptions:
'''
CODE = '''from genai_playbook.evidence import GateSpec, gate
from genai_playbook.stats import proportion
from genai_playbook.card import load_card
card = load_card(poc)
_ = gate(GateSpec('SUC01', 'cases that are solved', 'share', 'success.target', .9), proportion([1]*good + [0]*bad), card)'''
WAITS = '''import time
time.sleep(wait)'''


@pytest.fixture(scope='module')
def world(tmp_path_factory):
    "A card, a playbook of one chapter, and two finished runs of it: good and bad"
    base = tmp_path_factory.mktemp('cockpit')
    poc, nbs = base/'poc', base/'nbs'
    for f in poc, nbs: f.mkdir()
    (poc/'answers.py').write_text('def echo(prompt): return prompt\n')
    (poc/'rows.csv').write_text('id,prompt,reference\n1,hello,hello\n2,ciao,ciao\n')
    (poc/'poc.yaml').write_text(CARD + ''.join(f'  - {{chapter: {d}, owner: me, reason: a test}}\n' for d in DIMENSIONS.values() if d != 'success'))
    params = new_code_cell('poc: str = "demo"  # card\neffort: str = "full"  # how much\ngood: int = 400  # solved\nbad: int = 2  # not\nwait: float = 0.0  # seconds', metadata=dict(tags=['parameters']))
    nb = new_notebook(cells=[new_markdown_cell('# A chapter\n\n> A question?'), params, new_code_cell(CODE), new_code_cell(WAITS)])
    nb.metadata.update(kernelspec=dict(name='python3', display_name='Python 3', language='python'), genai_playbook=dict(chapter='success'))
    nbformat.write(nb, nbs/'01_tiny.ipynb')
    find_chapters.cache_clear()
    yield base
    find_chapters.cache_clear()


@pytest.fixture
def window(world, tmp_path, monkeypatch):
    "A cockpit on a copy of it, in a folder of its own; `params` are those of the one chapter"
    shutil.copytree(world/'poc', tmp_path/'poc')
    monkeypatch.chdir(tmp_path)
    def make(out=None, runner=run, **params): return Cockpit('poc/poc.yaml', out or tmp_path/'evidence', functools.partial(runner, notebooks=world/'nbs', params=dict(success=params)) if runner is run else runner)
    return make


@pytest.fixture(scope='module')
def made(world):
    "One run each, with what they wrote"
    from genai_playbook.witness import record_run
    def go(**params):
        ev = run(world/'poc', out=world/'evidence', notebooks=world/'nbs', params=dict(success=params))
        record_run(ev)
        return Path(ev['folder'])
    return dict(good=go(), bad=go(good=300, bad=200))


def every(widget):
    "All widgets in a tree, in the order of the tabulator key"
    yield widget
    for c in getattr(widget, 'children', ()): yield from every(c)


def press(window):
    window.start.click()
    window.thread.join(60)
    assert not window.thread.is_alive() and not window.start.disabled and window.stop.disabled


# --- runs ---------------------------------------------------------------------------------------
def test_from_one_click_to_a_signed_decision_and_a_second_run_that_differs(window):
    w = window()
    assert w.runs.value == '' and 'press Run' in w.said.value and w.chosen() is None
    press(w)
    assert '✓ GO' in w.said.value and 'done' in w.progress.value and '✓ SUC01' in w.progress.value and 'Changed since' not in w.said.value
    folder = w.runs.value
    assert verify(folder).wrong == [] and '01_tiny.ipynb' in w.links.outputs[0]['data']['text/markdown']
    for link in w.links.outputs[0]['data']['text/markdown'].split('(<')[1:]: assert (Path.cwd()/link.split('>)')[0]).is_file()
    ledger = Ledger(Path('poc/ledger.sqlite'))
    assert [e.kind for e in ledger.entries()] == ['run']
    form = {c: x for x in every(w.widget) for c in x._dom_classes}
    form['gp-sign-by'].value, form['gp-sign-because'].value, form['gp-sign-decision'].value = 'Ada, risk', 'seen it', 'GO'
    form['gp-sign'].click()
    assert 'The decision on this run is GO.' in form['gp-signed'].value and [e.kind for e in ledger.entries()] == ['run', 'decision'] and 'Signed as GO by Ada, risk' in form['gp-standing'].value
    w._run = functools.partial(w._run.func, **w._run.keywords | dict(params=dict(success=dict(good=300, bad=200))))
    press(w)
    assert '✗ NO-GO' in w.said.value and 'Changed since the run before' in w.said.value and '✓ PASS' in w.said.value and len(w.runs.options) == 2
    w.runs.value = folder
    assert '✓ GO' in w.said.value and '✗ FAIL' in w.said.value.split('Changed since')[1]


def test_stopping_keeps_what_ended_and_the_run_can_be_gone_on_with(window):
    w = window(wait=120.)
    w.start.click()
    begun = threading.Event()
    w.watch.changed = lambda: (w.draw(), w.watch.gates and begun.set())
    assert begun.wait(60) and w.card.disabled and not w.stop.disabled and w.go() is None  # a second press does nothing
    assert '>So far<' in w.said.value and 'GO' in w.said.value and 'running' in w.progress.value
    w.stop.click()
    w.thread.join(30)
    assert not w.thread.is_alive() and '■ The run was stopped' in w.said.value and w.resume.value and 'not run' in w.progress.value and not w.start.disabled
    assert w.runs.options == (('no run yet', ''),)
    folders = list(Path('evidence/tiny').iterdir())
    w._run = functools.partial(w._run.func, **w._run.keywords | dict(params=dict(success=dict(wait=0.))))
    press(w)
    assert '✓ GO' in w.said.value and list(Path('evidence/tiny').iterdir()) == folders and not w.resume.value


@pytest.mark.parametrize('error,said', [(PlaybookError('Mend <this>.'), '✗ Mend &lt;this&gt;.'), (ZeroDivisionError('oops'), 'This is a bug in genai_playbook'), (MemoryError(), 'This is a bug in genai_playbook')])
def test_what_goes_wrong_in_the_thread_is_shown_and_the_button_comes_back(window, error, said):
    def runner(*a, **kw): raise error
    w = window(runner=runner)
    press(w)
    assert said in w.said.value and '<this>' not in w.said.value and w.progress.value == ''


def test_a_ledger_that_refuses_does_not_undo_a_run(window, monkeypatch):
    def refuse(*a): raise PlaybookError('The clock says yesterday.')
    monkeypatch.setattr('genai_playbook.witness.record_run', refuse)
    w = window()
    press(w)
    assert '✓ GO' in w.said.value and 'The run is not in the ledger: The clock says yesterday.' in w.progress.value


def test_only_what_is_ticked_runs(window):
    asked = []
    def runner(poc, **kw):
        asked.append((poc, kw['chapters'], kw['effort'], kw['resume']))
        raise PlaybookError('enough')
    w = window(runner=runner)
    w.none.click()
    assert w.go() is None and 'No chapter is ticked' in w.said.value and not asked
    assert [b.description for b in w.chapters.children][:2] == ['success', 'latency (exempt)'] and w.chapters.children[1].disabled
    w.chapters.children[-1].value, w.effort.value, w.resume.value = True, 'full', True
    press(w)
    w.all.click()
    press(w)
    assert [a[1:] for a in asked] == [(['decision'], 'full', True), (None, 'full', False)] and all(load_card(a[0]).name == 'tiny' for a in asked)


# --- cards --------------------------------------------------------------------------------------
def test_a_card_that_cannot_run_says_so_and_is_mended_in_the_form(window):
    path = Path('poc/poc.yaml')
    w = window()
    path.write_text(path.read_text().replace('0.9', '90%'))
    w = window()
    assert '✗ This card has to be mended' in w.card_said.value and 'write 0.9 for 90%' in w.card_said.value
    w.edit.value = True
    form = {c: x for x in every(w.widget) for c in x._dom_classes}
    form['gp-section'].value = 'success'
    field = next(x for x in every(w.form) if getattr(x, 'description', '') == 'target')
    field.value = '0.95'
    form['gp-save'].click()
    assert load_card(path).section('success').target == .95 and '✓ The card is saved' in w.card_said.value and '# ours' in path.read_text()


def test_a_new_card_runs_at_once_and_names_that_are_none_are_refused(window):
    w = window()
    for name, said in (('  ', 'Give the new card a name'), ('poc', 'already has poc.yaml')):
        w.name.value = name
        w.create.click()
        assert said in w.card_said.value
    w.name.value = 'second'
    w.create.click()
    assert w.card.value.endswith('second/poc.yaml') and load_card(w.card.value).name == 'second' and w.form.children and 'press Run' in w.said.value


def test_cards_near_a_workspace(tmp_path):
    for n in ('b', 'a'):
        (tmp_path/n).mkdir()
        (tmp_path/n/'poc.yaml').write_text(CARD)
    assert home_of(tmp_path/'playbook-lab'/'demo') == tmp_path and cards_near(tmp_path) == [str(tmp_path/'a'/'poc.yaml'), str(tmp_path/'b'/'poc.yaml'), 'demo', 'demo-hardened', 'demo-regressed']


def test_a_card_that_is_not_there_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    w = Cockpit('gone/poc.yaml', tmp_path/'evidence')
    assert 'there is no card' in w.card_said.value
    w.edit.value = True
    w.start.click()
    w.thread.join(30)
    assert 'there is no card' in w.said.value and not w.start.disabled


# --- what it shows ------------------------------------------------------------------------------
def test_folders_that_are_no_runs_are_passed_over(made, tmp_path):
    out = tmp_path/'evidence'
    shutil.copytree(made['good'].parents[1], out)
    (out/'tiny'/'29990101T000000Z-half').mkdir()
    (out/'tiny'/'29990101T000000Z-half'/'manifest.json').write_text('{')
    broken = shutil.copytree(made['good'], out/'tiny'/'29990102T000000Z-cut')
    (broken/'evidence.json').write_text('{"decision"')
    assert [f.name for _, f in runs_of('tiny', out)] == sorted((made['good'].name, made['bad'].name), reverse=True) and runs_of('other', out) == []


def test_a_run_that_vanished_is_one_sentence(window, made, world, tmp_path):
    w = window(out=shutil.copytree(world/'evidence', tmp_path/'evidence'))
    other = next(f for _, f in w.runs.options if f != w.runs.value)
    shutil.rmtree(other)
    w.runs.value = other
    assert '✗ This run can no longer be read' in w.said.value and not w.signing.children


def test_links_hold_odd_folders(made, tmp_path):
    odd = shutil.copytree(made['good'], tmp_path/'a (b) & c')
    assert links_md(odd, tmp_path).startswith('[The report](<a (b) & c/index.html>)')


def test_progress_and_the_decision_so_far():
    w = Watched(clock=lambda: 0.)
    assert progress_html(w) == '' and so_far(w) is None
    w.start(Run(Path('r'), 'x', 'x', 'quick', chapters=[ChapterRun('success', 'S'), ChapterRun('<b>', 'T', error='<i>')]))
    assert so_far(w) is None and '<b>' not in progress_html(w) and '<i>' not in progress_html(w)
    gate = GATE
    w.gate(w.run.chapters[0], gate)
    assert so_far(w).verdict == 'NO-GO' and so_far(w, [dict(code='SUC01', by='me', because='x', until='2999-01-01')]).verdict != 'NO-GO'
    assert moved([], [gate]) == [] and moved([gate | dict(verdict='PASS')], [gate]) == [('SUC01', 'PASS', 'FAIL')]


GATE = Gate('SUC01', 'success', 'a gate', 'share', .5, .4, .6, .95, 100, 'share', .9, '>=', 'FAIL', True, 'exact').to_dict()


def test_every_control_has_a_label_and_says_what_it_does(window, made, world):
    import ipywidgets as ip
    w = window(out=world/'evidence')
    w.edit.value = True
    controls = [x for x in every(w.widget) if isinstance(x, (ip.Button, ip.Text, ip.Textarea, ip.Dropdown, ip.Checkbox, ip.RadioButtons, ip.ToggleButton))]
    assert len(controls) > 25
    for c in controls: assert c.description.strip() and c.tooltip, c
    found = [c for x in controls for c in x._dom_classes]
    assert [c for c in found if c in ('gp-card', 'gp-section', 'gp-effort', 'gp-run', 'gp-stop', 'gp-runs', 'gp-sign-by', 'gp-sign-because', 'gp-sign')] == ['gp-card', 'gp-section', 'gp-effort', 'gp-run', 'gp-stop', 'gp-runs', 'gp-sign-by', 'gp-sign-because', 'gp-sign']


def test_colours_of_ours_are_readable_in_both_themes():
    from genai_playbook.cockpit import _STRONG
    from genai_playbook.exploring import contrast
    from genai_playbook.faces import COLOURS
    assert contrast(_STRONG['button_color'], _STRONG['text_color']) >= 4.5 and all(contrast(c, '#ffffff') >= 4.5 for c in COLOURS.values())


def test_a_saved_notebook_shows_a_table(window):
    w = window()
    bundle = w._repr_mimebundle_()
    assert '<table' in bundle['text/html'] and 'Does it deliver' in bundle['text/html'] and not any('widget' in k for k in bundle) and str(Path.cwd()) not in bundle['text/html']


def test_in_a_live_session_the_face_is_folded_behind_the_widget_and_follows_it(window, monkeypatch):
    shown = []
    class Handle:
        def update(self, data, raw): shown.append(data['text/html'])
    monkeypatch.setattr('genai_playbook.exploring.live_session', lambda: True)
    monkeypatch.setattr('IPython.display.display', lambda x, raw=False, display_id=None: shown.append(x['text/html'] if raw else x) or (Handle() if display_id else None))
    w = window()
    w._ipython_display_()
    assert shown[0] is w.widget and shown[1].startswith('<details><summary>') and 'press Run' in shown[1]
    w._say('<p>GO</p>')
    w.keep()
    assert '<p>GO</p>' in shown[2]


# --- sign-off -----------------------------------------------------------------------------------
@pytest.fixture
def signer(made, tmp_path, world, monkeypatch):
    "A form on a copy of a run, whose card and ledger are copies, too"
    def make(which='good', **kw):
        for n in ('poc', 'evidence', 'nbs'): shutil.copytree(world/n, tmp_path/n)
        folder = tmp_path/'evidence'/'tiny'/made[which].name
        monkeypatch.setattr('genai_playbook.sign_off.load_card', lambda p: load_card(tmp_path/'poc'))
        monkeypatch.setattr('genai_playbook.card.load_card', lambda p, *a, _load=load_card: _load(tmp_path/'poc' if str(p) == str(world/'poc'/'poc.yaml') else p, *a))
        form = SignOff(folder, **kw)
        form.by.value, form.because.value = 'Ada, risk', 'seen it'
        return form, tmp_path/'poc'
    return make


def entries(poc): return [e for e in Ledger(poc/'ledger.sqlite').entries('decision')]


def test_go_over_a_failed_gate_is_one_sentence_and_a_waiver_with_an_end_carries_it(signer):
    form, poc = signer('bad')
    assert 'Hard gates that did not pass' in form.stands.value and '✗ FAIL' in form.stands.value and 'SUC01' in form.stands.value
    form.decision.value = 'GO'
    form.button.click()
    assert '✗ GO cannot be signed' in form.said.value and 'nothing was written' in form.said.value and entries(poc) == []
    waive('SUC01', 'Ben <b>', 'mended on Monday', '2999-12-31', poc)
    form.refresh()
    assert 'Set aside' in form.stands.value and '2999-12-31' in form.stands.value and 'Ben &lt;b&gt;' in form.stands.value and 'Hard gates' not in form.stands.value
    form.button.click()
    assert '✓ Entry' in form.said.value and entries(poc)[0].facts['go'] is True


def test_no_go_can_always_be_said(signer):
    form, poc = signer('bad')
    form.decision.value = 'NO-GO'
    form.button.click()
    assert 'NO-GO by Ada, risk' in form.said.value and 'Somebody said NO-GO' in form.stands.value and len(entries(poc)) == 1


def test_stale_evidence_is_shown_before_anybody_signs(signer):
    form, poc = signer()
    (poc/'rows.csv').write_text('id,prompt,reference\n1,hello,hallo\n')
    form.refresh()
    assert 'Stale: changed since the run' in form.stands.value and 'data.evaluation' in form.stands.value
    form.decision.value = 'GO'
    form.button.click()
    assert 'the evidence is stale (data.evaluation changed since)' in form.said.value and entries(poc) == []


def test_a_run_that_was_edited_is_shown_as_such(signer):
    form, poc = signer()
    p = form.folder/'summary.md'
    p.write_text(p.read_text() + 'all is well')
    form.refresh()
    assert 'It does not verify' in form.stands.value
    form.decision.value = 'NO-GO'
    form.button.click()
    assert 'cannot be signed, because it does not verify' in form.said.value and entries(poc) == []


def test_four_eyes_count_down(signer, monkeypatch):
    for m in ('sign_off', 'signing'): monkeypatch.setattr(f'genai_playbook.{m}.signers_needed', lambda card: 2)
    form, poc = signer()
    assert 'Nobody has signed; 2 different people have to say GO.' in form.stands.value
    form.decision.value = 'GO'
    form.button.click()
    assert '1 of 2 signatures: another person has to sign' in form.said.value and '1 person has to say GO still' in form.stands.value
    form.by.value = ' ada,  RISK '
    form.button.click()
    assert '1 of 2 signatures' in form.said.value
    form.by.value = 'Ben, product'
    form.button.click()
    assert 'The decision on this run is GO.' in form.said.value and 'Signed as GO by' in form.stands.value and len(entries(poc)) == 3


@pytest.mark.parametrize('change,said', [(dict(by=' '), 'who'), (dict(because=''), 'why'), (dict(decision=None), 'Choose GO or NO-GO')])
def test_half_a_signature_is_refused(signer, change, said):
    form, poc = signer()
    form.decision.value = 'GO'
    for k, v in change.items(): getattr(form, k).value = v
    form.button.click()
    assert '✗' in form.said.value and said.casefold() in form.said.value.casefold() and entries(poc) == []


def test_a_clock_that_went_back_signs_nothing(signer):
    form, poc = signer(clock=lambda: datetime.now(timezone.utc)-timedelta(days=3))
    form.decision.value = 'NO-GO'
    form.button.click()
    assert 'set the clock' in form.said.value and entries(poc) == []


@pytest.mark.parametrize('spoil', [lambda f: (f/'state.json').unlink(), lambda f: (f/'state.json').write_text('{'), lambda f: (f/'evidence.json').unlink(), lambda f: (f/'manifest.json').write_text('[]'), shutil.rmtree])
def test_a_folder_that_is_no_finished_run_is_one_sentence(signer, spoil):
    form, poc = signer()
    spoil(form.folder)
    form.refresh()
    form.decision.value = 'GO'
    form.button.click()
    assert '✗' in form.said.value and form.stands.value and 'Traceback' not in form.said.value and entries(poc) == []


def test_words_that_are_signed_cannot_become_html(signer):
    form, poc = signer()
    form.by.value, form.decision.value = '<script>alert(1)</script>', 'NO-GO'
    form.button.click()
    assert '<script' not in form.said.value + form.stands.value and entries(poc)[0].who == '<script>alert(1)</script>'
    assert standing(form.folder).state == 'NO-GO'
