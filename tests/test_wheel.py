"The wheel, in an empty environment and an empty folder: it holds the notebooks, the demo models and the templates"
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    out = tmp_path_factory.mktemp('dist')
    subprocess.run([sys.executable, '-m', 'build', '--outdir', str(out), str(ROOT)], check=True, capture_output=True)   # sdist, and the wheel from that sdist
    return next(out.glob('*.whl'))


def test_the_wheel_holds_everything_that_a_run_needs(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for p in [*ROOT.glob('nbs/**/*.ipynb'), *ROOT.glob('genai_playbook/data/**/*'), *ROOT.glob('genai_playbook/templates/**/*'), *ROOT.glob('genai_playbook/*.json'), *ROOT.glob('genai_playbook/*.py')]:
        if p.is_dir() or '.ipynb_checkpoints' in p.parts: continue
        rel = p.relative_to(ROOT).as_posix()
        assert (f'genai_playbook/{rel}' if rel.startswith('nbs/') else rel) in names, rel
    assert 'genai_playbook/py.typed' in names
    points = zipfile.ZipFile(wheel).read(next(n for n in names if n.endswith('entry_points.txt'))).decode()
    assert '[jupyter_client.kernel_provisioners]\ngenai-playbook = genai_playbook.forking:ForkedProvisioner' in points


@pytest.fixture(scope='module')
def empty(wheel, tmp_path_factory):
    "An empty folder and a new environment with nothing but the wheel: runs a command there"
    home = tmp_path_factory.mktemp('home')
    venv, empty = home/'venv', home/'empty'
    empty.mkdir()
    clean = {k: v for k, v in os.environ.items() if not k.startswith(('PYTHON', 'VIRTUAL_ENV'))} | {'GENAI_PLAYBOOK_CACHE': str(home/'cache'), 'GENAI_PLAYBOOK_DATA': str(home/'data'), 'HF_HUB_OFFLINE': '1'}
    call = lambda *a: subprocess.run([*map(str, a)], cwd=empty, env=clean, capture_output=True, text=True)
    assert call(sys.executable, '-m', 'venv', venv).returncode == 0
    torch = next(line for line in (ROOT/'constraints.txt').read_text().splitlines() if line.startswith('torch=='))
    r = call(venv/'bin/python', '-m', 'pip', 'install', '-q', '-c', ROOT/'constraints.txt', torch, wheel)
    assert r.returncode == 0, r.stderr[-3000:]
    return empty, lambda *a: call(venv/'bin/genai-playbook', *a)


@pytest.mark.parametrize('chapters', [['--chapters', 'success,trust,bias,cost,robustness,security,monitoring,governance,decision'], pytest.param([], marks=pytest.mark.slow)], ids=['but those that measure time', 'all'])
def test_an_empty_environment_runs_the_demo(empty, chapters):
    folder, playbook = empty
    r = playbook('run', 'demo', '--effort', 'quick', *chapters)
    assert r.returncode == 1, r.stdout[-3000:] + r.stderr[-3000:]   # NO-GO: the demo's flaws are real
    assert 'NO-GO' in r.stdout and 'chapter broke' not in r.stdout and 'chapters broke' not in r.stdout and next(folder.glob('evidence/*/*/index.html')).exists()
