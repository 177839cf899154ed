"The workspace that `genai-playbook lab` opens: copies that point at the card, edits that are kept, files of the package that are not touched"
import ast
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from genai_playbook import lab
from genai_playbook.card import bundled_cards, load_card
from genai_playbook.chapters import find_chapters, notebooks_folder
from genai_playbook.errors import PlaybookError
from genai_playbook.lab import FOLDER, START, lab_command, pointed_at, prepare, workspace_folder

CARD = 'poc: mine\noutcome: {promise: it works}\nmodel: {kind: python, target: "answers:echo"}\ndata: {evaluation: rows.csv}\n'


@pytest.fixture
def card(tmp_path):
    folder = tmp_path/'a folder with "quotes" and ünicode'
    folder.mkdir()
    (folder/'answers.py').write_text('def echo(prompt): return prompt\n')
    (folder/'rows.csv').write_text('id,prompt,reference\n1,hello,hello\n')
    (folder/'poc.yaml').write_text(CARD)
    return folder/'poc.yaml'


def poc_of(path):
    "What the parameter `poc` of a notebook is, as Python reads it"
    nb = json.loads(path.read_text(encoding='utf-8'))
    src = next(''.join(c['source']) for c in nb['cells'] if 'parameters' in c['metadata'].get('tags', []))
    return next(ast.literal_eval(o.value) for o in ast.parse(src).body if getattr(getattr(o, 'target', None), 'id', '') == 'poc')


def edit(path, text='# mine'):
    nb = json.loads(path.read_text(encoding='utf-8'))
    nb['cells'][0]['source'] = [text]
    path.write_text(json.dumps(nb))


def test_every_copy_points_at_the_card_from_where_it_lies(card):
    ws = prepare(card)
    names = {START, *(c.path.name for c in find_chapters().values())}
    assert ws.folder == card.parent.resolve()/FOLDER and {p.name for p in ws.folder.glob('*.ipynb')} == names == set(ws.written) and ws.root == card.parent.resolve()
    for n in names:
        assert load_card(ws.folder/poc_of(ws.folder/n)).name == 'mine'
        assert json.loads((ws.folder/n).read_text(encoding='utf-8'))['metadata']['kernelspec']['name'] == 'python3'


def test_outputs_of_the_demo_do_not_stand_in_a_copy_for_another_card(card):
    ws = prepare(card)
    nb = json.loads((ws.folder/'01_success.ipynb').read_text(encoding='utf-8'))
    assert not any(c.get('outputs') for c in nb['cells']) and 'widgets' not in nb['metadata']
    assert any(c.get('outputs') for c in json.loads((notebooks_folder()/'01_success.ipynb').read_text(encoding='utf-8'))['cells'])


def test_what_was_edited_is_kept_and_what_was_only_executed_follows_the_playbook(card, monkeypatch, tmp_path):
    ws = prepare(card)
    mine, ran, lost = (ws.folder/f'{n}.ipynb' for n in ('01_success', '05_trust', '06_bias'))
    edit(mine)
    kept = mine.read_bytes()
    nb = json.loads(ran.read_text(encoding='utf-8'))
    next(c for c in nb['cells'] if c['cell_type'] == 'code')['outputs'] = [dict(output_type='stream', name='stdout', text=['hello'])]
    ran.write_text(json.dumps(nb))
    executed = ran.read_bytes()
    lost.unlink()
    again = prepare(card)
    assert again.kept == ['01_success.ipynb'] and again.written == ['06_bias.ipynb'] and mine.read_bytes() == kept and ran.read_bytes() == executed
    newer = shutil.copytree(notebooks_folder(), tmp_path/'newer')
    edit(newer/'05_trust.ipynb', '# Trust, second edition')
    edit(newer/'01_success.ipynb', '# Success, second edition')
    find_chapters.cache_clear()
    monkeypatch.setattr(lab, 'notebooks_folder', lambda: newer)
    monkeypatch.setattr(lab, 'find_chapters', lambda: find_chapters(newer))
    third = prepare(card)
    assert third.written == ['05_trust.ipynb'] and third.kept == ['01_success.ipynb'] and mine.read_bytes() == kept and 'second edition' in ran.read_text()


@pytest.mark.parametrize('note', ['', '{', '[]', '{"01_success.ipynb": 3}'])
def test_without_its_notes_a_workspace_loses_nothing(card, note):
    ws = prepare(card)
    edit(ws.folder/'01_success.ipynb')
    kept = (ws.folder/'01_success.ipynb').read_bytes()
    (ws.folder/'.written.json').write_text(note)
    assert prepare(card).kept == ['01_success.ipynb'] and (ws.folder/'01_success.ipynb').read_bytes() == kept


def test_a_file_that_is_no_notebook_is_somebodys_own(card):
    ws = prepare(card)
    (ws.folder/START).write_text('my notes')
    assert prepare(card).kept == [START] and (ws.folder/START).read_text() == 'my notes'


def test_two_cards_of_one_folder_do_not_share_a_workspace(card):
    other = card.with_name('other.yaml')
    other.write_text(CARD.replace('mine', 'other'))
    a, b = prepare(card), prepare(other)
    assert a.folder != b.folder and load_card(b.folder/poc_of(b.folder/START)).name == 'other' and b.root == a.root


def test_a_bundled_card_gets_its_workspace_here_and_the_package_stays_as_it_is(tmp_path):
    before = {p: p.stat().st_mtime_ns for p in [*notebooks_folder().rglob('*'), *bundled_cards()['demo'].parent.rglob('*')]}
    ws = prepare('demo', tmp_path)
    assert ws.folder == tmp_path.resolve()/FOLDER/'demo' and poc_of(ws.folder/START) == 'demo'
    assert {p: p.stat().st_mtime_ns for p in [*notebooks_folder().rglob('*'), *bundled_cards()['demo'].parent.rglob('*')]} == before
    assert any(c.get('outputs') for c in json.loads((ws.folder/'01_success.ipynb').read_text(encoding='utf-8'))['cells'])  # of this very card


def test_a_card_with_mistakes_can_be_opened_because_the_form_is_where_they_are_mended(card):
    card.write_text('poc: "half')
    assert prepare(card).written


def test_a_folder_that_cannot_be_written_is_one_sentence(card, monkeypatch):
    (card.parent/FOLDER).write_text('a file is in the way')
    with pytest.raises(PlaybookError, match='cannot be written .* copy the card to a folder where you may write'): prepare(card)


def test_no_card_is_one_sentence():
    with pytest.raises(PlaybookError, match='there is no card'): prepare('nowhere/poc.yaml')


@pytest.mark.parametrize('value', ['it\'s "so".yaml', '../ä b/poc.yaml', '\\', 'a\nb', '# no comment'])
def test_any_path_is_a_literal(value):
    nb = dict(metadata={}, cells=[dict(cell_type='code', metadata=dict(tags=['parameters']), source=['ü: str = "ß"; poc: str = "demo"  # the card: "demo" or a file\n', 'n: int = 3\n'], outputs=[1])])
    new = pointed_at(nb, value)
    space = {}
    exec(''.join(new['cells'][0]['source']), space)
    assert (space['poc'], space['ü'], space['n'], new['cells'][0]['outputs']) == (value, 'ß', 3, []) and nb['cells'][0]['outputs'] == [1]


def test_jupyterlab_is_started_on_start_here(card):
    ws = workspace_folder(card)
    cmd = lab_command(ws, browser=False, port=8899)
    assert cmd[:3] == [sys.executable, '-m', 'jupyterlab'] and '--no-browser' in cmd and '--ServerApp.port=8899' in cmd
    assert '--LabApp.default_url=/lab/tree/playbook-lab/start_here.ipynb' in cmd and f'--ServerApp.root_dir={card.parent.resolve()}' in cmd
    assert '--no-browser' not in lab_command(ws) and not any('port' in a for a in lab_command(ws))
    ws = prepare('demo', card.parent)
    assert any(a.endswith('/lab/tree/playbook-lab/demo/start_here.ipynb') for a in lab_command(ws))


def test_without_jupyterlab_the_sentence_says_what_to_install(card, monkeypatch):
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    with pytest.raises(PlaybookError, match=r'pip install "genai_playbook\[lab\]"'): lab_command(workspace_folder(card))


def test_the_command_line(card, monkeypatch):
    "The whole command, with a program in JupyterLab's place"
    from typer.testing import CliRunner

    from genai_playbook.cli import app
    started = []
    monkeypatch.setattr(lab, 'open_lab', started.append)
    monkeypatch.chdir(card.parent)
    said = CliRunner().invoke(app, ['lab', '--no-browser', '--allow-root', '--port', '8123'])
    assert said.exit_code == 0 and FOLDER in said.output and started[0][-1] == '--allow-root' and '--ServerApp.port=8123' in started[0]
    edit(card.parent/FOLDER/'01_success.ipynb')
    assert 'Kept as you changed them' in CliRunner().invoke(app, ['lab', 'poc.yaml']).output
    assert CliRunner().invoke(app, ['lab', '--port', '70000']).exit_code == 2
    (card.parent/'sub').mkdir()
    monkeypatch.chdir(card.parent/'sub')
    CliRunner().invoke(app, ['lab'])
    assert (Path(FOLDER)/'demo'/START).is_file()


def test_start_here_is_no_chapter():
    nb = json.loads((notebooks_folder()/START).read_text(encoding='utf-8'))
    assert 'genai_playbook' not in nb['metadata'] and START not in {c.path.name for c in find_chapters().values()} and poc_of(notebooks_folder()/START) == 'demo'


@pytest.mark.slow
def test_start_here_runs_without_a_window(card):
    "Executed by nbconvert, it shows a table without any widget"
    ws = prepare(card)
    subprocess.run([sys.executable, '-m', 'jupyter', 'nbconvert', '--to', 'notebook', '--execute', '--inplace', ws.folder/START], check=True, capture_output=True)
    out = [o['data'] for c in json.loads((ws.folder/START).read_text(encoding='utf-8'))['cells'] for o in c.get('outputs', []) if 'data' in o]
    assert 'Does it deliver' in (html := ''.join(out[-1]['text/html'])) and 'poc.yaml' in html
