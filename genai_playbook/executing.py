"""One chapter in one kernel: executed by papermill, and told apart how it ended"""
import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from pathlib import Path

__all__ = ['DONE', 'BROKE', 'TIMED_OUT', 'execute_chapter', 'execute_far', 'end_kernels']

DONE, BROKE, TIMED_OUT = 'done', 'broke', 'timed out'


def _kernel_class(
    threads: int|None,  # of torch and BLAS; None: as the environment says
    cold: bool,  # start afresh even where a fork is possible
    env: Mapping[str, str]|None,  # its environment; None: this process's
    live: set,  # it is in there while it runs
):  # AsyncKernelManager with `made`, its instances
    "What nbclient starts a kernel by"
    from jupyter_client import AsyncKernelManager
    from jupyter_client.provisioning import LocalProvisioner
    from genai_playbook.forking import ForkedProvisioner, threads_env

    class Kernel(AsyncKernelManager):
        made: list = []

        async def start_kernel(self, **kw):
            self.made.append(self)
            live.add(self)
            self.kernel_id = os.urandom(8).hex()
            self.provisioner = (LocalProvisioner if cold else ForkedProvisioner)(kernel_id=self.kernel_id, kernel_spec=self.kernel_spec, parent=self)
            await super().start_kernel(env=dict(env or os.environ) | (threads_env(threads) if threads else {}), **kw)
            self.process = self.provisioner.process

        async def cleanup_resources(self, restart=False):
            live.discard(self)
            await super().cleanup_resources(restart)
    return Kernel


def end_kernels(
    live: set,  # what `execute_chapter` notes there
):
    "End kernels at once"
    import signal
    for k in list(live):
        try: os.killpg(k.process.pid, signal.SIGKILL)
        except (OSError, AttributeError): pass  # it has ended, or not begun


def _oom_kills() -> int:
    "How often this machine, or this container, ended a process for want of memory; -1 where nobody counts"
    for path, key in (('/sys/fs/cgroup/memory.events', 'oom_kill '), ('/proc/vmstat', 'oom_kill ')):
        try: return next(int(line.split()[1]) for line in Path(path).read_text().splitlines() if line.startswith(key))
        except (OSError, StopIteration, ValueError): continue
    return -1


def _why_dead(kernels: list, ooms: int) -> str:
    process = getattr(kernels[-1], 'process', None) if kernels else None
    code = process.poll() if process else None
    if code == -9 and _oom_kills() > ooms >= 0: return 'its kernel was killed for want of memory; give it a smaller sample (--effort quick) or more memory'
    if code is not None and code < 0:
        import signal
        return f'its kernel died by {signal.Signals(-code).name}' + ('; somebody ended it, or the memory ran out' if code == -signal.SIGKILL else ' in native code') + '; look at the last cell that ran'
    return f'its kernel died with exit code {code}; look at the last cell that ran'


def _gates(cell: Mapping) -> list[dict]:
    from genai_playbook.evidence import MIME
    said = [o.get('data', {}).get(MIME) for o in cell.get('outputs', ())]
    return [d['gate'] for d in said if isinstance(d, dict) and d.get('type') == 'gate']


def _how_it_ended(e: Exception, timeout: float, kernels: list, ooms: int) -> tuple[str, str]:
    from nbclient.exceptions import CellTimeoutError, DeadKernelError
    from papermill.exceptions import PapermillExecutionError
    if isinstance(e, PapermillExecutionError): return BROKE, f'{e.ename}: {e.evalue}'.splitlines()[0][:300]
    if isinstance(e, CellTimeoutError): return TIMED_OUT, f'it took longer than {timeout:,.0f} s; allow more with --timeout'
    if isinstance(e, DeadKernelError): return BROKE, _why_dead(kernels, ooms)
    return BROKE, f'its kernel did not start: {e}'.splitlines()[0][:300]


@contextmanager
def _quiet():
    import warnings
    with warnings.catch_warnings(), tempfile.TemporaryDirectory(prefix='gp-') as sockets:
        warnings.simplefilter('ignore')  # papermill's and nbclient's own deprecations, not the chapter's
        yield sockets


def execute_chapter(
    src: Path,  # the notebook
    dst: Path,  # where the executed notebook goes, whole, also when a cell failed
    params: Mapping,  # every parameter
    timeout: float = 1800.,  # seconds for the whole chapter
    on_cell: Callable[[int, int], None] = lambda done, total: None,
    on_gate: Callable[[dict], None] = lambda gate: None,  # told of each gate as soon as it is judged
    clock: Callable[[], float] = time.monotonic,
    threads: int|None = None,  # of torch and BLAS in its kernel; None: as the environment says
    cold: bool = False,  # start the kernel afresh even where it could be forked
    env: Mapping[str, str]|None = None,  # the kernel's environment; None: this process's
    live: set|None = None,  # holds the kernel while it runs, for `end_kernels`
) -> tuple[str, str]:  # status, and what went wrong in one line
    "Execute one notebook in its own kernel and folder; a cell that never ran counts as broken"
    from nbclient.exceptions import CellTimeoutError
    from papermill import execute_notebook
    from papermill.exceptions import PapermillExecutionError
    from traitlets.config import Config
    partial = dst.parent/'.partial'/f'{os.getpid()}-{dst.name}'  # a worker that was given up may still be writing its own
    partial.parent.mkdir(exist_ok=True)
    total = sum(c['cell_type'] == 'code' for c in json.loads(src.read_text(encoding='utf-8'))['cells']) + 1  # papermill adds the parameters
    seen, deadline, kernel, ooms = iter(range(1, total+1)), clock()+timeout, _kernel_class(threads, cold, env, set() if live is None else live), _oom_kills()

    def told(cell, **kw):
        on_cell(next(seen), total)
        for g in _gates(cell): on_gate(g)
    status, error = DONE, ''
    with _quiet() as sockets:
        ipc = Config(KernelManager=dict(transport='ipc', ip=f'{sockets}/k'))  # no ports to fight over when chapters start side by side
        try:
            nb = execute_notebook(str(src), str(partial), dict(params), kernel_name='python3', progress_bar=False, start_timeout=180, timeout_func=lambda cell: max(1, int(deadline-clock())), config=ipc,
                                  kernel_manager_class=kernel, extra_arguments=['--log-level=CRITICAL'], store_widget_state=True, resources={'metadata': {'path': str(src.parent)}}, on_cell_executed=told)
            skipped = [c.id for c in nb.cells if c.cell_type == 'code' and c.source.strip() and c.metadata.papermill.status != 'completed']
            if skipped: status, error = BROKE, f'{len(skipped)} cells did not run: something ended the notebook early'
        except (PapermillExecutionError, CellTimeoutError, RuntimeError) as e: status, error = _how_it_ended(e, timeout, kernel.made, ooms)
    if partial.exists(): os.replace(partial, dst)
    return status, error


def execute_far(src: Path, dst: Path, params: Mapping, timeout: float, threads: int|None, cold: bool) -> tuple[str, str]:
    "`execute_chapter` as a worker of an executor does it: it cannot report cells, and its kernel has the worker's environment"
    from genai_playbook.forking import chapters_env
    return execute_chapter(src, dst, params, timeout, threads=threads, cold=cold, env=chapters_env())
