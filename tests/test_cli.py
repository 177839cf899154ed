"The command line: what a user can mend is one clear sentence and exit code 2"
import json
import subprocess
import sys
from pathlib import Path

import pytest

from genai_playbook.errors import PlaybookError
from genai_playbook import cli

CARD = '''poc: mine
outcome: {{promise: answers that are right}}
model: {model}
data:
  evaluation: {data}
  columns: {{prompt: prompt, reference: reference}}
'''
ECHO = '{kind: python, target: "answers:echo"}'


@pytest.fixture
def card(tmp_path):
    "Writes a card with one good data file and one good model, changed as asked"
    def write(model=ECHO, data='rows.csv', rows='id,prompt,reference\n1,hello,hello\n2,ciao,ciao\n', text=None):
        (tmp_path/'answers.py').write_text('def echo(prompt): return prompt\nnot_callable = 3\n')
        if isinstance(rows, bytes): (tmp_path/'rows.csv').write_bytes(rows)
        elif rows is not None: (tmp_path/'rows.csv').write_text(rows, encoding='utf-8')
        path = tmp_path/'poc.yaml'
        path.write_text(text if text is not None else CARD.format(model=model, data=data), encoding='utf-8')
        return path
    return write


def call(*args, capsys, monkeypatch):
    "Run the command line in this process: exit code, stdout, stderr"
    monkeypatch.setattr(sys, 'argv', ['genai-playbook', *map(str, args)])
    with pytest.raises(SystemExit) as e: cli.main()
    out, err = capsys.readouterr()
    return e.value.code, out, err


def refused(*args, capsys, monkeypatch, says):
    code, out, err = call(*args, capsys=capsys, monkeypatch=monkeypatch)
    assert code == 2, out+err
    assert 'Traceback' not in out+err
    assert len(err.strip().splitlines()) == 1, err
    for s in says if isinstance(says, tuple) else (says,): assert s in err, err


@pytest.mark.parametrize('change, says', [
    (dict(text=CARD.format(model=ECHO, data='rows.csv').replace('promise', 'promis')), ('poc.yaml:2', 'promis', 'did you mean')),
    (dict(text=CARD.format(model=ECHO, data='rows.csv') + 'success: {target: ninety}\n'), ('poc.yaml:7', 'success.target', 'ninety')),
    (dict(rows=''), ('rows.csv', 'empty')),
    (dict(rows='id,prompt,reference\n'), ('rows.csv', 'no rows')),
    (dict(rows='id,prmpt,reference\n1,a,b\n'), ('prompt', 'did you mean')),
    (dict(rows='id,prompt,reference\n1,gr\xfcn,b\n'.encode('latin-1')), ('rows.csv', 'UTF-8')),
    (dict(rows=None), 'rows.csv'),
    (dict(model='{kind: openai, base_url: "http://127.0.0.1:9/v1", model: m, api_key_env: NO_SUCH_VARIABLE_HERE}'), 'NO_SUCH_VARIABLE_HERE'),
    (dict(model='{kind: openai, base_url: "http://127.0.0.1:9/v1", model: m}'), 'http://127.0.0.1:9/v1'),
    (dict(model='{kind: python, target: "nowhere:echo"}'), 'nowhere'),
    (dict(model='{kind: python, target: "answers:ecko"}'), 'ecko'),
    (dict(model='{kind: python, target: "answers:not_callable"}'), 'not_callable'),
    (dict(model='{kind: transformers, path: empty}'), 'empty'),
    (dict(text=''), 'poc.yaml'),
    (dict(text='- a\n- b\n'), 'poc.yaml'),
    (dict(text='poc: [\n'), 'poc.yaml'),
])
@pytest.mark.parametrize('command', ['run', 'check'])
def test_bad_input_is_one_sentence_and_exit_code_2(card, change, says, command, capsys, monkeypatch, tmp_path):
    (tmp_path/'empty').mkdir()
    monkeypatch.chdir(tmp_path)
    refused(command, card(**change), capsys=capsys, monkeypatch=monkeypatch, says=says)
    assert not (tmp_path/'evidence').exists()


def test_a_missing_card_and_a_misspelt_demo(tmp_path, capsys, monkeypatch):
    refused('run', tmp_path/'no.yaml', capsys=capsys, monkeypatch=monkeypatch, says='no.yaml')
    refused('run', 'demo-hardend', capsys=capsys, monkeypatch=monkeypatch, says='demo-hardened')


def test_an_output_folder_that_cannot_be_written(card, tmp_path, capsys, monkeypatch):
    (tmp_path/'file').write_text('')
    refused('run', card(), '--out', tmp_path/'file', capsys=capsys, monkeypatch=monkeypatch, says=('Cannot write', '--out'))


@pytest.mark.parametrize('args, says', [(['-p', 'success'], 'chapter.name=value'), (['-p', 'success.wurst=3'], 'did you mean `worst`'), (['-p', 'success.worst=many'], 'takes int'),
                                        (['--chapters', 'sucess'], 'did you mean `success`'), (['--chapters', ','], 'names no chapter'), (['--effort', 'huge'], 'quick or full')])
def test_bad_options(card, args, says, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    refused('run', card(), *args, capsys=capsys, monkeypatch=monkeypatch, says=says)


@pytest.mark.parametrize('args, sent', [(['--yes'], {'load': {'yes': True}}), ([], {}), (['--yes', '--chapters', 'success'], {}), (['--yes', '-p', 'load.budget=5'], {'load': {'yes': True, 'budget': 5}})])
def test_yes_lets_load_spend_beyond_its_budget(card, args, sent, capsys, monkeypatch):
    import genai_playbook.runner as runner
    seen = {}
    def run(poc, **options): seen.update(options); raise PlaybookError('enough seen.')
    monkeypatch.setattr(runner, 'run', run)
    call('run', card(), *args, capsys=capsys, monkeypatch=monkeypatch)
    assert seen['params'] == sent


def test_a_folder_that_is_no_run(tmp_path, capsys, monkeypatch):
    refused('report', tmp_path, capsys=capsys, monkeypatch=monkeypatch, says='not a run folder')


def test_our_own_bug_is_70_and_keeps_its_traceback(capsys, monkeypatch):
    def boom(): raise ZeroDivisionError('ours')
    monkeypatch.setattr(cli, 'app', boom)
    code, _, err = call(capsys=capsys, monkeypatch=monkeypatch)
    assert code == 70 and 'ZeroDivisionError' in err and 'a bug in genai_playbook' in err


def test_an_interrupt_is_130(capsys, monkeypatch):
    def stop(): raise KeyboardInterrupt
    monkeypatch.setattr(cli, 'app', stop)
    code, _, err = call(capsys=capsys, monkeypatch=monkeypatch)
    assert code == 130 and '--resume' in err


def test_being_terminated_is_an_interrupt_too(capsys, monkeypatch):
    import os, signal, time
    before = signal.getsignal(signal.SIGTERM)
    def end():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)
    monkeypatch.setattr(cli, 'app', end)
    try: code, _, err = call(capsys=capsys, monkeypatch=monkeypatch)
    finally: signal.signal(signal.SIGTERM, before)
    assert code == 130 and '--resume' in err


HEAVY = ('torch', 'transformers', 'pandas', 'numpy', 'matplotlib', 'papermill', 'nbconvert', 'evaluate', 'fairlearn', 'scipy', 'sklearn', 'aiohttp', 'ipywidgets', 'IPython')


@pytest.mark.parametrize('args', [['-c', 'import genai_playbook, sys; print(*sys.modules)'],
                                  ['-c', 'import sys; sys.argv=["x","--help"]\nfrom genai_playbook.cli import app\ntry: app()\nexcept SystemExit: print(*sys.modules)']])
def test_importing_and_asking_for_help_load_nothing_heavy(args):
    out = subprocess.run([sys.executable, *args], capture_output=True, text=True, check=True).stdout
    assert not set(out.split()[-2000:]) & set(HEAVY)


def test_every_public_name_exists():
    import genai_playbook
    for name in genai_playbook.__all__: assert getattr(genai_playbook, name) is not None


def test_init_makes_a_card_that_checks_and_is_not_overwritten(tmp_path, capsys, monkeypatch):
    code, out, err = call('init', tmp_path/'my-poc', capsys=capsys, monkeypatch=monkeypatch)
    assert code == 0 and 'genai-playbook run' in out, err
    code, out, err = call('check', tmp_path/'my-poc', capsys=capsys, monkeypatch=monkeypatch)
    assert code == 0, err
    assert 'SUC01' in out and 'rows' in out
    refused('init', tmp_path/'my-poc', capsys=capsys, monkeypatch=monkeypatch, says='my-poc')


def test_chapters_are_listed_with_their_parameters(capsys, monkeypatch):
    code, out, _ = call('chapters', capsys=capsys, monkeypatch=monkeypatch)
    assert code == 0 and 'success' in out and 'worst' in out and 'decision' in out


def test_a_run_by_command_line_ends_in_what_the_rules_say(card, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = 'id,prompt,reference\n' + ''.join(f'{i},hello {i},{"hello" if i % 3 else "no"} {i}\n' for i in range(300))
    code, out, err = call('run', card(rows=rows), '--chapters', 'success,decision', capsys=capsys, monkeypatch=monkeypatch)
    assert code == 1, out+err      # two in three are right, nine in ten were promised
    assert 'NO-GO' in out and 'SUC01' in out and 'index.html' in out
    folder = next((tmp_path/'evidence/mine').iterdir())
    assert json.loads((folder/'evidence.json').read_text())['decision']['verdict'] == 'NO-GO'
    assert Path(folder/'index.html').stat().st_size > 2000
    code, out, err = call('run', card(rows=rows.replace('no', 'hello')), '--chapters', 'success', '--accept-partial', capsys=capsys, monkeypatch=monkeypatch)
    assert code == 0, out+err


def test_programs_read_json_and_the_hurried_one_line(card, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = call('run', card(), '--chapters', 'decision', '--json', capsys=capsys, monkeypatch=monkeypatch)
    events = [json.loads(line) for line in out.splitlines()]
    assert code == 3 and events[0]['event'] == 'start' and events[-1]['event'] == 'decision' and events[-1]['exit_code'] == 3, err
    code, out, err = call('run', card(), '--chapters', 'decision', '--quiet', capsys=capsys, monkeypatch=monkeypatch)
    assert code == 3 and len(out.splitlines()) == 2 and 'index.html' in out, err
    refused('run', card(), '--json', '--quiet', capsys=capsys, monkeypatch=monkeypatch, says='exclude each other')
    refused('run', card(), '--executor', 'dusk', capsys=capsys, monkeypatch=monkeypatch, says='dask:ADDRESS')


def test_a_file_of_prompts_is_answered(card, tmp_path, capsys, monkeypatch):
    poc = card()
    code, out, err = call('answer', poc, tmp_path/'rows.csv', tmp_path/'parts', '--chunk', '1', capsys=capsys, monkeypatch=monkeypatch)
    assert code == 0 and '2 rows' in out and len(list((tmp_path/'parts').iterdir())) == 2, err
    refused('answer', poc, tmp_path/'poc.yaml', tmp_path/'parts', capsys=capsys, monkeypatch=monkeypatch, says='.parquet')
