"The workflows that `genai-playbook ci` writes: parsed, and their shell steps run as the forge would"
import os
import re
import shlex
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import genai_playbook
from genai_playbook import cli
from genai_playbook.chapters import DIMENSIONS
from genai_playbook.delivery_ci import EVIDENCE, SUMMARY, keys_of, write_ci
from genai_playbook.errors import PlaybookError

CARD = '''poc: tiny
outcome: {promise: answers that are right}
model: MODEL
data:
  evaluation: rows.csv
  columns: {id: id, prompt: prompt, reference: reference}
exemptions:
''' + ''.join(f'  - {{chapter: {c}, owner: me, reason: a test of the workflow}}\n' for c in DIMENSIONS.values() if c not in ('success', 'decision'))
RECORDED, PAID = '{kind: recorded, path: rows.csv, answer: answer, id: id}', '{kind: openai, base_url: "http://127.0.0.1:9/v1", model: m, api_key_env: LLM_KEY}'


@pytest.fixture
def repo(tmp_path, monkeypatch):
    "A repository with a tiny card, whose recorded answers are right but one in forty"
    def make(wrong=40, model=RECORDED):
        (tmp_path/'.git').mkdir()
        (tmp_path/'poc.yaml').write_text(CARD.replace('MODEL', model))
        (tmp_path/'rows.csv').write_text('id,prompt,reference,answer\n' + ''.join(f'{i},say {i},{i},{i if i % wrong else "no"}\n' for i in range(400)))
        monkeypatch.chdir(tmp_path)
        return tmp_path
    return make


def command(folder, body):
    "Puts `genai-playbook` on a PATH of its own: a shell script in place of what the install step installs"
    (folder/'bin').mkdir()
    tool = folder/'bin'/'genai-playbook'
    tool.write_text(f'#!/bin/sh\n{body}\n')
    tool.chmod(tool.stat().st_mode | stat.S_IEXEC)
    return str(folder/'bin')


def fake(folder, code, summary=True):
    "A playbook that says what it was asked, leaves a summary and ends with `code`"
    wrote = f'mkdir -p {EVIDENCE}/tiny/1 && echo "## the verdict" > {EVIDENCE}/tiny/1/summary.md' if summary else ':'
    return command(folder, f'echo "$@" > asked\n{wrote}\nexit {code}')


def sh(script, bin_, folder, **env):
    "Run a step as both forges do: each line must succeed"
    env = {k: v for k, v in os.environ.items() if not k.startswith(('GITHUB_', 'CI_'))} | dict(PATH=f'{bin_}:{os.environ["PATH"]}') | env
    return subprocess.run(['bash', '-eo', 'pipefail', '-c', script], cwd=folder, env=env, capture_output=True, text=True, timeout=300)


def github(path):
    text = path.read_text(encoding='utf-8')
    flow = yaml.load(text, Loader=yaml.BaseLoader)  # every scalar as text, so that `on` stays `on`, as GitHub reads it
    return flow, {s.get('name', s.get('uses')): s for s in flow['jobs']['playbook']['steps']}


def run_github(path, bin_, folder, event='pull_request'):
    "Exit code of the run, its output, the step summary"
    _, steps = github(path)
    assert 'pip install' in steps['Install']['run']  # the present environment stands in for it
    said = folder/'step_summary.md'
    done = sh(steps['Run the playbook']['run'], bin_, folder, GITHUB_EVENT_NAME=event)
    after = sh(steps['Show the summary']['run'], bin_, folder, GITHUB_STEP_SUMMARY=str(said))
    assert after.returncode == 0, after.stderr
    return done.returncode, done.stdout + done.stderr, said.read_text(encoding='utf-8')


def run_gitlab(path, bin_, folder, event='merge_request_event'):
    "Exit code of the job, its output, the artefact"
    job = yaml.safe_load(path.read_text(encoding='utf-8'))['genai-playbook']
    install, play = job['script']
    assert 'pip install' in install
    done = sh(play, bin_, folder, CI_PIPELINE_SOURCE=event)
    after = sh('\n'.join(job['after_script']), bin_, folder)
    assert after.returncode == 0, after.stderr
    allowed = done.returncode in job.get('allow_failure', {}).get('exit_codes', [])
    return 0 if allowed else done.returncode, done.stdout + done.stderr, (folder/SUMMARY).read_text(encoding='utf-8')


FORGES = dict(github=run_github, gitlab=run_gitlab)


@pytest.mark.parametrize('forge', FORGES)
@pytest.mark.parametrize('fail_on, code, want', [('insufficient', 0, 0), ('insufficient', 1, 1), ('insufficient', 3, 3), ('insufficient', 4, 4), ('no-go', 0, 0), ('no-go', 1, 1), ('no-go', 2, 2), ('no-go', 3, 0), ('no-go', 4, 4), ('no-go', 70, 70), ('no-go', 130, 130)])
def test_exit_codes_reach_the_check(repo, forge, fail_on, code, want):
    folder = repo()
    path, _ = write_ci(forge, fail_on=fail_on)
    got, said, summary = FORGES[forge](path, fake(folder, code), folder)
    assert got == want and summary == '## the verdict\n'
    assert (folder/'asked').read_text().split() == ['run', 'poc.yaml', '--effort', 'full', '--out', EVIDENCE]
    if forge == 'github': assert ('::warning' in said) == (fail_on == 'no-go' and code == 3)


@pytest.mark.parametrize('forge', FORGES)
def test_a_run_that_leaves_no_summary_still_says_something(repo, forge):
    folder = repo()
    code, _, summary = FORGES[forge](write_ci(forge)[0], fake(folder, 2, summary=False), folder)
    assert code == 2 and 'did not come as far as a decision' in summary


@pytest.mark.parametrize('forge, event, effort', [('github', 'pull_request', 'quick'), ('github', 'schedule', 'full'), ('gitlab', 'merge_request_event', 'quick'), ('gitlab', 'schedule', 'full')])
@pytest.mark.parametrize('fail_on', ['insufficient', 'no-go'])
def test_a_change_may_be_quick_but_an_audit_is_full(repo, forge, event, effort, fail_on):
    folder = repo()
    path, _ = write_ci(forge, schedule='0 3 * * 1', effort='quick', fail_on=fail_on)
    assert FORGES[forge](path, fake(folder, 1), folder, event)[0] == 1
    assert (folder/'asked').read_text().split()[2:4] == ['--effort', effort]


@pytest.mark.parametrize('forge, wrong, code, says', [('github', 4, 1, 'NO-GO'), pytest.param('gitlab', 4, 1, 'NO-GO', marks=pytest.mark.slow), pytest.param('github', 40, 0, 'GO', marks=pytest.mark.slow)])
def test_the_steps_run_the_playbook_itself(repo, forge, wrong, code, says):
    folder = repo(wrong)
    path, _ = write_ci(forge)
    bin_ = command(folder, f'exec {sys.executable} -m genai_playbook.cli "$@"')
    os.environ.setdefault('PYTHONPATH', os.path.dirname(os.path.dirname(genai_playbook.__file__)))
    got, said, summary = FORGES[forge](path, bin_, folder)
    assert got == code, said
    assert f'{says}: tiny' in summary and 'SUC01' in summary
    assert list(folder.glob(f'{EVIDENCE}/tiny/*/evidence.json')) and list(folder.glob(f'{EVIDENCE}/tiny/*/junit.xml'))


def test_what_github_is_told(repo):
    repo(model=PAID)
    flow, steps = github(write_ci('github', schedule='0 3 * * 1')[0])
    assert set(flow) == {'name', 'on', 'permissions', 'concurrency', 'jobs'} and flow['permissions'] == dict(contents='read')
    assert flow['on'] == dict(pull_request='', workflow_dispatch='', schedule=[dict(cron='0 3 * * 1')])
    assert steps['Run the playbook']['env'] == dict(LLM_KEY='${{ secrets.LLM_KEY }}')
    for name in ('Show the summary', 'Keep the evidence'): assert steps[name]['if'] == 'always()'
    assert steps['Keep the evidence']['with'] == dict(name='evidence', path=EVIDENCE)
    assert steps['Install']['run'] == f"python -m pip install 'genai-playbook=={genai_playbook.__version__}'"


def test_what_gitlab_is_told(repo):
    repo(model=PAID)
    path = write_ci('gitlab', schedule='*/30 3 * * 1')[0]
    job = yaml.safe_load(path.read_text())['genai-playbook']
    assert [r['if'] for r in job['rules']] == ['$CI_PIPELINE_SOURCE == "merge_request_event"', '$CI_PIPELINE_SOURCE == "schedule"']
    assert job['artifacts']['when'] == 'always' and job['artifacts']['paths'] == [SUMMARY, f'{EVIDENCE}/'] and job['artifacts']['expose_as']
    assert 'LLM_KEY' in path.read_text() and '--cron "*/30 3 * * 1"' in path.read_text()
    assert 'allow_failure' not in job


@pytest.mark.parametrize('forge', FORGES)
@pytest.mark.parametrize('name', ['my poc/poc.yaml', "it's; echo $HOME/poc.yaml", 'größe/poc.yaml'])
def test_paths_that_a_shell_would_trip_over(repo, forge, name):
    folder = repo()
    (folder/name).parent.mkdir(parents=True)
    for f in 'poc.yaml', 'rows.csv': (folder/f).rename((folder/name).with_name(f))
    assert FORGES[forge](write_ci(forge, name)[0], fake(folder, 0), folder)[0] == 0
    assert (folder/'asked').read_text() == f'run {name} --effort full --out {EVIDENCE}\n'


def test_from_a_folder_inside_the_repository(repo, monkeypatch):
    folder = repo()
    (folder/'requirements.txt').write_text('numpy\n')
    (folder/'deep/er').mkdir(parents=True)
    monkeypatch.chdir(folder/'deep/er')
    path, _ = write_ci('github', '../../poc.yaml')
    assert path == folder/'.github/workflows/genai-playbook.yml'
    _, steps = github(path)
    assert 'run poc.yaml ' in steps['Run the playbook']['run'] and steps['Install']['run'].endswith(' -r requirements.txt')


def call(*args, capsys, monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['genai-playbook', 'ci', *map(str, args)])
    with pytest.raises(SystemExit) as e: cli.main()
    return e.value.code, *capsys.readouterr()


def test_a_changed_file_is_never_overwritten_unasked(repo, capsys, monkeypatch):
    folder = repo()
    path = folder/'.github/workflows/genai-playbook.yml'
    run = lambda *args: call('github', *args, capsys=capsys, monkeypatch=monkeypatch)
    assert run()[0] == 0 and 'Wrote' in run('--force', '--fail-on', 'no-go')[1]
    written = path.read_text()
    assert 'as it should be' in run('--fail-on', 'no-go')[1]
    path.write_text(written + '# mine\n')
    code, _, err = run('--fail-on', 'no-go')
    assert code == 2 and 'exists and differs' in err and path.read_text().endswith('# mine\n')
    other = folder/'else.yml'
    assert run('--out', other)[0] == 0 and other.exists()
    assert run('--force')[0] == 0 and '# mine' not in path.read_text()
    assert not [p for p in path.parent.iterdir() if p != path]


@pytest.mark.parametrize('args, says', [
    (['svn'], 'github or gitlab'), (['gitub'], 'did you mean `github`'), (['github', '--schedule', 'daily'], 'five'), (['github', '--schedule', '0 25 * * *'], 'no hour'), (['github', '--schedule', ''], '0 fields'),
    (['github', '--fail-on', 'never'], 'insufficient or no-go'), (['github', '--effort', 'huge'], 'quick or full'), (['github', '--poc', 'no.yaml'], 'no.yaml'), (['github', '--poc', '/etc/hostname'], ''),
    (['github', '--out', '.'], 'Cannot write'), (['github', '--out', 'rows.csv/x.yml'], 'Cannot write'), (['github', '--out', 'binary'], 'holds no text')])
def test_bad_input_is_one_sentence_and_exit_code_2(repo, args, says, capsys, monkeypatch):
    folder = repo()
    (folder/'binary').write_bytes(b'\xff\xfe\x00')
    code, out, err = call(*args, capsys=capsys, monkeypatch=monkeypatch)
    assert code == 2 and says in err and len(err.strip().splitlines()) == 1 and 'Traceback' not in err, out + err
    assert not (folder/'.github').exists()


def test_a_card_outside_the_repository(repo, tmp_path_factory):
    folder = repo()
    away = tmp_path_factory.mktemp('away')/'poc.yaml'
    away.write_text((folder/'poc.yaml').read_text())
    with pytest.raises(PlaybookError, match='outside the repository'): write_ci('github', away)


def test_every_key_that_a_card_names():
    assert keys_of(dict(a=[dict(api_key_env='B'), dict(b=dict(api_key_env='A'))], c=dict(api_key_env=None), d='api_key_env')) == ['A', 'B']


def test_the_recipes_compile_and_name_commands_that_exist():
    docs = Path(__file__).parents[1]/'docs/delivery.md'
    blocks = re.findall(r'^```(\w*)\n(.*?)^```', docs.read_text(encoding='utf-8'), re.M | re.S)
    for language, code in blocks:
        if language == 'python': compile(code, docs.name, 'exec')
    assert sum(language == 'python' for language, _ in blocks) == 2
    for line in ''.join(code for language, code in blocks if not language).splitlines():
        command = shlex.split(line, comments=True)
        assert command[:2] == ['genai-playbook', 'ci'] and command[2] in FORGES
