"Forked kernels: the same evidence as cold ones, other random numbers in each, and no process that outlives its parent"
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import psutil
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from genai_playbook import forking
from genai_playbook.errors import PlaybookError
from genai_playbook.executing import execute_chapter

pytestmark = pytest.mark.skipif(sys.platform != 'linux', reason='kernels are forked on Linux only')


def outputs(tmp_path, *cells, name='a', status='done', **kw):
    "What the cells of a notebook display"
    src, dst = tmp_path/f'{name}.ipynb', tmp_path/'out'/f'{name}.ipynb'
    dst.parent.mkdir(exist_ok=True)
    nb = new_notebook(cells=[new_code_cell('x = 1', metadata={'tags': ['parameters']}), *map(new_code_cell, cells)])
    nb.metadata['kernelspec'] = dict(name='python3', display_name='Python 3', language='python')
    nbformat.write(nb, src)
    got, error = execute_chapter(src, dst, dict(x=1), 120, **kw)
    assert got == status, error
    return [o for c in json.loads(dst.read_text())['cells'] for o in c.get('outputs', [])]


def text(output): return ''.join(output['data']['text/plain'])


def test_a_forked_kernel_has_the_libraries_imported_and_a_cold_one_has_not(tmp_path):
    ask = 'import sys; "torch" in sys.modules, "transformers" in sys.modules'
    assert text(outputs(tmp_path, ask)[0]) == '(True, True)'
    assert text(outputs(tmp_path, ask, cold=True)[0]) == '(False, False)'


def test_every_kernel_draws_its_own_numbers_and_keeps_to_its_threads(tmp_path):
    cell = 'import random, numpy, torch; [random.random(), numpy.random.rand(), torch.rand(1).item()], torch.get_num_threads()'
    draws = [eval(text(outputs(tmp_path, cell, name=str(i), threads=1)[0])) for i in range(3)]
    assert all(len({d[0][k] for d in draws}) == 3 for k in range(3)) and {d[1] for d in draws} == {1}
    assert eval(text(outputs(tmp_path, cell, threads=2)[0]))[1] == 2


def test_torch_computes_in_a_fork_on_many_threads_and_figures_appear(tmp_path):
    product, grad, figure = outputs(tmp_path, 'import torch; (torch.ones(600, 600)@torch.ones(600, 600)).sum().item()', 'w = torch.ones(3, requires_grad=True); (w**2).sum().backward(); w.grad.tolist()',
                                    'import matplotlib.pyplot as plt; plt.plot([1, 2]);', threads=2)
    assert (text(product), text(grad)) == ('216000000.0', '[2.0, 2.0, 2.0]') and 'image/png' in figure['data']


def test_what_a_kernel_was_told_to_do_at_its_end_is_done(tmp_path):
    outputs(tmp_path, f'import atexit, pathlib; atexit.register(pathlib.Path({str(tmp_path/"end")!r}).write_text, "done");')
    assert (tmp_path/'end').read_text() == 'done'


def test_papermill_uses_it_by_the_name_of_its_entry_point(tmp_path):
    (tmp_path/'site/x-0.dist-info').mkdir(parents=True)
    (tmp_path/'site/x-0.dist-info/METADATA').write_text('Metadata-Version: 2.1\nName: x\nVersion: 0\n')
    (tmp_path/'site/x-0.dist-info/entry_points.txt').write_text('[jupyter_client.kernel_provisioners]\nforked-here = genai_playbook.forking:ForkedProvisioner\n')
    nb = new_notebook(cells=[new_code_cell('import sys; "torch" in sys.modules')])
    nb.metadata['kernelspec'] = dict(name='python3', display_name='Python 3', language='python')
    nbformat.write(nb, tmp_path/'a.ipynb')
    env = os.environ | {'JUPYTER_DEFAULT_PROVISIONER_NAME': 'forked-here', 'PYTHONPATH': os.pathsep.join([str(tmp_path/'site'), str(Path(forking.__file__).parent.parent)])}
    code = 'import papermill; papermill.execute_notebook("a.ipynb", "b.ipynb", progress_bar=False)'   # a script without a guard for __main__
    (tmp_path/'script.py').write_text(code)
    subprocess.run([sys.executable, 'script.py'], cwd=tmp_path, env=env, check=True, capture_output=True)
    assert text(json.loads((tmp_path/'b.ipynb').read_text())['cells'][0]['outputs'][0]) == 'True'


def test_a_forked_kernel_is_interrupted_restarted_and_shut_down():
    from tempfile import TemporaryDirectory
    from jupyter_client import KernelManager
    with TemporaryDirectory() as tmp:
        km = KernelManager(kernel_name='python3', transport='ipc', ip=f'{tmp}/k')
        km.kernel_id = 'a'
        km.provisioner = forking.ForkedProvisioner(kernel_id='a', kernel_spec=km.kernel_spec, parent=km)
        km.start_kernel(extra_arguments=['--log-level=CRITICAL'])
        kc = km.client()
        kc.start_channels()
        kc.wait_for_ready(60)
        kc.execute(f'open("{tmp}/began", "w").close(); import time; time.sleep(600)')
        for _ in range(300):
            if os.path.exists(f'{tmp}/began'): break
            time.sleep(.1)
        km.interrupt_kernel()
        assert kc.get_shell_msg(timeout=60)['content']['ename'] == 'KeyboardInterrupt'
        first = km.provisioner.pid
        km.restart_kernel(now=True)
        kc.wait_for_ready(60)
        second = km.provisioner.pid
        kc.stop_channels()
        km.shutdown_kernel(now=True)
        assert first != second and gone(first) and gone(second)


@pytest.mark.parametrize('preload, says', [('no_such_library_of_ours', ''), ('broken_here', 'ZeroDivisionError'), ('busy_here', 'threads were started')])
def test_where_a_fork_would_not_be_safe_it_says_why(tmp_path, monkeypatch, preload, says):
    (tmp_path/'broken_here.py').write_text('1/0')
    (tmp_path/'busy_here.py').write_text('import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()')
    why = forking.why_cold(os.environ | {'GENAI_PLAYBOOK_PRELOAD': preload, 'PYTHONPATH': str(tmp_path)})
    assert says in why and bool(says) == bool(why)


def test_a_pool_that_an_operator_started_forbids_the_fork(tmp_path):
    (tmp_path/'operator_ran.py').write_text('import torch\ntorch.set_num_threads(2)\ntorch.ones(2000, 2000)@torch.ones(2000, 2000)')
    assert 'threads were started' in forking.why_cold(os.environ | {'GENAI_PLAYBOOK_PRELOAD': 'operator_ran', 'PYTHONPATH': str(tmp_path)})


def test_a_kernel_starts_afresh_where_it_cannot_be_forked(tmp_path, monkeypatch):
    monkeypatch.setenv('GENAI_PLAYBOOK_PRELOAD', 'broken_here')
    monkeypatch.setenv('PYTHONPATH', os.pathsep.join([str(tmp_path), os.environ.get('PYTHONPATH', '')]))
    (tmp_path/'broken_here.py').write_text('1/0')
    assert text(outputs(tmp_path, 'import sys; "torch" in sys.modules')[0]) == 'False'


def test_a_call_brings_back_what_the_function_said():
    assert forking.call('json:loads', '[1, 2]') == [1, 2]
    with pytest.raises(PlaybookError, match='no.yaml'): forking.call('genai_playbook.runner:_preflight', 'no.yaml')
    with pytest.raises(RuntimeError, match='FileNotFoundError'): forking.call('os:listdir', '/no/such/folder')
    with pytest.raises(PlaybookError, match='was cut off'): forking.call('os:abort')


def gone(pid, seconds=20):
    for _ in range(seconds*10):
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE: return True
        time.sleep(.1)


def test_kernels_and_what_they_started_end_with_whoever_asked_for_them(tmp_path):
    cell = 'import subprocess; p = subprocess.Popen(["sleep", "600"]); import os; open(PIDS, "w").write(f"{os.getpid()} {os.getppid()} {p.pid}"); import time; time.sleep(600)'.replace('PIDS', repr(str(tmp_path/'pids')))
    code = f'''import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_forking import outputs
from pathlib import Path
outputs(Path({str(tmp_path)!r}), {cell!r})'''
    p = subprocess.Popen([sys.executable, '-c', code], env=os.environ | {'GENAI_PLAYBOOK_PRELOAD': 'ipykernel.kernelapp'})
    for _ in range(600):
        if (tmp_path/'pids').exists() and len((tmp_path/'pids').read_text().split()) == 3: break
        assert p.poll() is None
        time.sleep(.1)
    p.send_signal(signal.SIGKILL)
    p.wait()
    assert all(gone(int(pid)) for pid in (tmp_path/'pids').read_text().split())


def test_chapters_find_the_same_in_forked_and_in_cold_kernels(tmp_path, own_cache):
    from genai_playbook import run
    forked, cold = (run('demo', ['success', 'decision'], 'quick', out=tmp_path/str(c), cold=c) for c in (False, True))
    assert (forked['environment']['kernels'], cold['environment']['kernels']) == ('forked', 'cold: --cold')
    assert forked.digest() == cold.digest() and len(forked.gates)
