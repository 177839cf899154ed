"""Kernels forked from one process that has imported the heavy libraries, and done nothing else

    JUPYTER_DEFAULT_PROVISIONER_NAME=genai-playbook papermill nbs/01_success.ipynb out.ipynb

Importing torch, transformers, pandas and matplotlib costs each kernel seconds. Here one process, the nursery, imports them once; every kernel is a fork of it, which starts in a fraction
of a second and computes the same. Forking is safe only while nothing but imports has happened: a thread pool does not survive a fork (pytorch #17199), nor does CUDA (pytorch #68861), so the
nursery checks both before each fork. Where forking is not possible, kernels start afresh and `why_cold` says why.

The file is also the nursery's program: it runs as a script, so that it needs neither this package nor the caller's `__main__`."""
import json
import os
import signal
import socket
import sys
import threading

__all__ = ['PRELOAD', 'CHAPTERS', 'ForkedProvisioner', 'Nursery', 'why_cold', 'threads_env', 'chapters_env', 'begin', 'call']  # noqa: F822

AT_START = ('IPython.core.completerlib', 'IPython.core.debugger', 'IPython.core.pylabtools', 'IPython.extensions.storemagic', 'ipykernel.kernelapp', 'ipykernel.ipkernel', 'ipykernel.debugger')  # what a kernel imports as it starts
AT_FIRST_FIGURE = ('matplotlib.pyplot', 'matplotlib.backends.backend_agg', 'PIL.BmpImagePlugin', 'PIL.GifImagePlugin', 'PIL.JpegImagePlugin', 'PIL.PngImagePlugin', 'PIL.PpmImagePlugin')  # not the inline backend itself: it looks for its kernel as it is imported
PRELOAD = ('pandas', 'pyarrow.pandas_compat', 'torch', 'transformers', 'ipywidgets', *AT_START, *AT_FIRST_FIGURE)  # GENAI_PLAYBOOK_PRELOAD, separated by spaces, replaces them
CHAPTERS = (*PRELOAD, 'scipy.stats', 'pydantic', 'sklearn.linear_model', 'transformers.models.auto.modeling_auto', 'transformers.models.auto.tokenization_auto', 'transformers.generation.utils')
POOLS = ('OMP_NUM_THREADS', 'MKL_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'NUMEXPR_NUM_THREADS', 'RAYON_NUM_THREADS')
AT_IMPORT = ('HF_', 'TRANSFORMERS_', 'TORCH', 'PYTHON', 'CUDA', 'LD_', 'MPL', 'XDG_', 'HOME', 'PATH', 'VIRTUAL_ENV', 'LANG', 'LC_', 'TZ', 'GENAI_PLAYBOOK_PRELOAD')  # what libraries read as they are imported
BACKEND = 'module://matplotlib_inline.backend_inline'


def threads_env(
    n: int,  # threads that a kernel may use
) -> dict[str, str]:
    "The environment that holds the thread pools of torch, BLAS and tokenizers to `n`"
    return dict.fromkeys(POOLS, str(n))


def chapters_env() -> dict[str, str]:
    "This process's environment, with which kernels of chapters start: they load models, so more is imported for them"
    return {'GENAI_PLAYBOOK_PRELOAD': ' '.join(CHAPTERS)} | os.environ


# --- the nursery: it starts no thread, opens no ZeroMQ context and computes nothing ---------------
def _preload(parent: int):
    from importlib import import_module
    for name in os.environ.get('GENAI_PLAYBOOK_PRELOAD', ' '.join(PRELOAD)).split():
        if os.getppid() != parent: os._exit(0)  # nobody waits for it any more
        try: import_module(name)
        except ModuleNotFoundError as e:
            if e.name is None or not f'{name}.'.startswith(f'{e.name}.'): raise  # `name` is there and lacks something


def _only_imported() -> str:
    "Why this process may not fork any more; '' while nothing but imports has happened in it"
    torch = sys.modules.get('torch')
    if torch and torch.cuda.is_initialized(): return 'CUDA was initialized while modules were imported'
    name = lambda tid: open(f'/proc/self/task/{tid}/comm').read()
    mine = name(os.getpid())
    pools = sum(name(t) == mine for t in os.listdir('/proc/self/task')) - 1  # a pool's threads bear the process's name, a library's housekeepers their own
    if pools > 0 or threading.active_count() > 1: return f'{max(pools, threading.active_count()-1)} threads were started while modules were imported'
    return ''


def _die_with(parent: int):
    import ctypes
    ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
    if os.getppid() != parent: os._exit(1)               # it had died before


def _reseed():
    "Forks would otherwise all draw the same numbers; Python's `random` reseeds itself"
    for name in ('numpy.random', 'torch'):
        if name in sys.modules: sys.modules[name].seed()


def _use_threads(n: int):
    "What the environment says as libraries are imported has to be said again to those that are"
    if 'torch' in sys.modules: sys.modules['torch'].set_num_threads(n)
    try: from threadpoolctl import threadpool_limits
    except ImportError: return
    threadpool_limits(n)


def _leave(code: int):
    "What Python does at its end, without tidying up memory that is shared with the nursery"
    import atexit
    try:
        threading._shutdown()
        atexit._run_exitfuncs()
        for f in (sys.__stdout__, sys.__stderr__): f and f.flush()
    finally: os._exit(code)


def _kernel(argv: list[str]):
    from ipykernel.kernelapp import IPKernelApp
    sys.argv = ['ipykernel_launcher', *argv]
    IPKernelApp.launch_instance(argv=argv)


def _called(call: dict, out: int):
    "Call a function; what it returns, or why it failed, goes to the file descriptor `out` as JSON"
    from importlib import import_module
    sys.path[:] = call['path']
    module, name = call['target'].split(':')
    try: said = dict(result=getattr(import_module(module), name)(*call['args']))
    except BaseException as e: said = dict(error=str(e), kinds=[k.__name__ for k in type(e).__mro__])
    with os.fdopen(out, 'w') as f: json.dump(said, f)


def _grow_up(req: dict, nursery: int, out: int|None):
    "In the child: shed the nursery's state, then be an ordinary kernel, or call a function"
    os.setsid()
    _die_with(nursery)
    signal.set_wakeup_fd(-1)
    for s in (signal.SIGCHLD, signal.SIGTERM): signal.signal(s, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update({**req['env'], 'JPY_PARENT_PID': str(nursery)})
    os.environ.setdefault('MPLBACKEND', BACKEND)
    os.chdir(req['cwd'])
    _reseed()
    if (n := os.environ.get(POOLS[0], '')).isdigit(): _use_threads(int(n))
    else: _use_threads(len(os.sched_getaffinity(0)))
    _kernel(req['argv']) if out is None else _called(req['call'], out)


class _Children:
    "The kernels of a nursery: a socket for each, on which its caller hears how it ended"
    def __init__(self): self.sockets = {}

    def fork(self, msg: bytes, fds: list[int], mine: list[socket.socket]):
        sock, out = socket.socket(fileno=fds[0]), fds[1] if len(fds) > 1 else None
        if why := _only_imported():
            sock.send(f'! {why}'.encode())
            return sock.close()
        parent, pid = os.getpid(), os.fork()
        if pid:
            self.sockets[pid] = sock
            if out is not None: os.close(out)
            return sock.send(str(pid).encode())
        code = 1
        try:
            for s in (*mine, sock, *self.sockets.values()): s.close()
            _grow_up(json.loads(msg), parent, out)
            code = 0
        except SystemExit as e: code = e.code if isinstance(e.code, int) else bool(e.code)
        except BaseException: sys.excepthook(*sys.exc_info())
        finally: _leave(code)

    def reap(self):
        while self.sockets:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid: return
            self._group(pid)  # what a dead kernel started must not outlive it
            if s := self.sockets.pop(pid, None):
                try: s.send(str(os.waitstatus_to_exitcode(status)).encode())
                except OSError: pass  # its caller is gone
                s.close()

    def _group(self, pid: int):
        try: os.killpg(pid, signal.SIGKILL)
        except OSError: pass  # nobody is left in it

    def end(self):
        for pid in self.sockets: self._group(pid)


def nurse(control: socket.socket, parent: int):
    "Import, then fork whenever `control` asks, until it closes or the parent is gone"
    import gc
    os.environ.setdefault('MPLBACKEND', BACKEND)  # pyplot reads it as it is imported: figures would vanish
    os.environ.setdefault('PYDEVD_DISABLE_FILE_VALIDATION', '1')  # the debugger would warn of frozen modules as it is imported
    os.environ['JPY_PARENT_PID'] = str(os.getpid())  # and ipykernel this: whose end is its own
    os.environ.update(threads_env(1))  # libraries that start a pool at once find it has one thread; each child sets its own number
    try:
        _preload(parent)
        why = _only_imported()
    except BaseException as e: why = f'importing failed with {type(e).__name__}: {e}'
    try: control.send(json.dumps(dict(why=why)).encode())
    except OSError: return
    if why: return
    gc.collect()
    gc.freeze()  # a collection would touch, and so copy, every page that kernels share
    _serve(control, parent)


def _serve(control: socket.socket, parent: int):
    import selectors
    (r, w), sel, children = socket.socketpair(), selectors.DefaultSelector(), _Children()
    for s in (r, w): s.setblocking(False)
    signal.set_wakeup_fd(w.fileno())
    signal.signal(signal.SIGCHLD, lambda *a: None)
    for s in (control, r): sel.register(s, selectors.EVENT_READ)
    try:
        while os.getppid() == parent:
            for key, _ in sel.select(1):
                if key.fileobj is r:
                    r.recv(4096)
                    children.reap()
                    continue
                msg, fds, *_ = socket.recv_fds(control, 1 << 20, 2)
                if not msg: return
                children.fork(msg, fds, [control, r, w])
    finally:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        children.end()
        os._exit(0)


# --- who asks for kernels ------------------------------------------------------------------------
class Child:
    "What `LocalProvisioner` needs of a `Popen`, for a process that is the nursery's child"
    stdin = stdout = stderr = returncode = None

    def __init__(self, sock: socket.socket):
        self.sock, said = sock, sock.recv(1024).decode()
        if not said.isdigit(): raise OSError(said.lstrip('! ') or 'the process that forks kernels has died')
        self.pid = int(said)

    def _hear(self, flags=0):
        try: self.returncode = int(self.sock.recv(64, flags) or -9)  # nothing to read: the nursery died, and its children with it
        except BlockingIOError: return
        except OSError: self.returncode = -9
        self.sock.close()

    def poll(self):
        if self.returncode is None: self._hear(socket.MSG_DONTWAIT)
        return self.returncode

    def wait(self, timeout=None):
        if self.returncode is None: self._hear()
        return self.returncode

    def send_signal(self, n):
        if self.poll() is None: os.kill(self.pid, n)

    def kill(self): self.send_signal(signal.SIGKILL)
    def terminate(self): self.send_signal(signal.SIGTERM)


class Nursery:
    "The process that forks, seen from the one that asks"
    _all: dict[str, 'Nursery'] = {}
    _lock = threading.Lock()

    def __init__(self, env: dict[str, str]):
        import subprocess
        self.owner, self._said, self._asking = os.getpid(), None, threading.Lock()
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            start = 'import sys; sys.path[:] = filter(None, sys.path); import runpy; runpy.run_path(sys.argv[1], run_name="__main__")'  # the caller's folder may hold a torch.py
            self.process = subprocess.Popen([sys.executable, '-c', start, __file__, str(theirs.fileno())], pass_fds=[theirs.fileno()], env=env, stdin=subprocess.DEVNULL, stdout=2, start_new_session=True)  # standard output may be read by a program

    @classmethod
    def of(
        cls,
        env: dict[str, str],  # what kernels are to have; libraries read some of it as they are imported
    ) -> 'Nursery':
        "The nursery for kernels with this environment, started at the first need"
        key = json.dumps(sorted((k, v) for k, v in env.items() if k.startswith(AT_IMPORT)))
        with cls._lock:
            had = cls._all.get(key)
            if had and had.owner == os.getpid() and had.process.poll() is None: return had
            cls._all[key] = new = cls({k: v for k, v in env.items() if k not in POOLS})
            return new

    @classmethod
    def close_all(cls):
        "End every nursery of this process, with the kernels that it forked, and give their memory back"
        with cls._lock:
            mine = [n for n in cls._all.values() if n.owner == os.getpid()]
            cls._all.clear()
        for n in mine:
            n.control.close()
            n.process.wait()

    def why_not(self) -> str:
        "Waits until the imports are done; '' when it can fork, else why it cannot"
        with self._asking:
            if self._said is None:
                try: self._said = json.loads(self.control.recv(1 << 16))['why']
                except (OSError, ValueError): self._said = f'the process that imports them ended with code {self.process.wait()}'
        return self._said

    def fork(
        self,
        request: dict,  # env, cwd, and argv (of a kernel) or call
        *fds: int,
    ) -> Child:
        "A new child; raises OSError when there can be none"
        if why := self.why_not(): raise OSError(why)
        mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs: socket.send_fds(self.control, [json.dumps(request).encode()], [theirs.fileno(), *fds])
        return Child(mine)


def begin(
    env: dict[str, str]|None = None,  # of the kernels; None: this process's
):
    "Start importing, and do not wait for it"
    from contextlib import suppress
    with suppress(OSError):  # `why_cold` says what it was
        if sys.platform == 'linux': Nursery.of(dict(env or os.environ))


def why_cold(
    env: dict[str, str]|None = None,  # of the kernels; None: this process's
) -> str:  # '' when they can be forked
    "Why kernels cannot be forked here, in a few words"
    if sys.platform != 'linux': return f'forking kernels needs Linux, this is {sys.platform}'
    try: return Nursery.of(dict(env or os.environ)).why_not()
    except OSError as e: return f'the process to fork from did not start: {e}'


def call(
    target: str,  # module:function
    *args,  # JSON data, as its result has to be
    env: dict[str, str]|None = None,  # of the fork; None: this process's
):
    "Call a function in a fork, where the heavy libraries are imported already; raises PlaybookError when the function did, OSError when there can be no fork"
    from genai_playbook.errors import PlaybookError
    env, (r, w) = dict(env or os.environ), os.pipe()
    try: child = Nursery.of(env).fork(dict(env=env, cwd=os.getcwd(), call=dict(target=target, args=args, path=[p or os.getcwd() for p in sys.path])), w)
    except BaseException:
        os.close(r)
        raise
    finally: os.close(w)
    try:
        with os.fdopen(r) as f: text = f.read()
    except BaseException:
        child.kill()
        raise
    if not text: raise PlaybookError(f'{target} was cut off: its process ended with code {child.wait()}{", often for want of memory" if child.returncode == -9 else ""}.')
    said = json.loads(text)
    if 'error' in said: raise PlaybookError(said['error']) if 'PlaybookError' in said['kinds'] else RuntimeError(f'{said["kinds"][0]}: {said["error"]}')
    return said['result']


def _this_python(path: str) -> bool:
    "Environments share one interpreter, so the folder counts too"
    return os.path.dirname(path) == os.path.dirname(sys.executable) and os.path.exists(path) and os.path.samefile(path, sys.executable)


def _provisioner():
    import asyncio
    from jupyter_client.provisioning import LocalProvisioner

    class ForkedProvisioner(LocalProvisioner):
        "Starts a Python kernel as a fork; what cannot be forked starts afresh, and the log says why"
        async def launch_kernel(self, cmd, **kw):
            if not _this_python(cmd[0]) or 'ipykernel_launcher' not in cmd: return await super().launch_kernel(cmd, **kw)  # another Python, or none
            request = dict(argv=cmd[cmd.index('ipykernel_launcher')+1:], env=kw['env'], cwd=kw.get('cwd') or os.getcwd())
            fork = lambda: Nursery.of(kw['env']).fork(request)
            try:
                if sys.platform != 'linux': raise OSError(why_cold())
                self.process = await asyncio.get_running_loop().run_in_executor(None, fork)
            except OSError as e:
                self.log.warning('This kernel starts afresh: %s', e)
                return await super().launch_kernel(cmd, **kw)
            self.pid = self.pgid = self.process.pid
            self.cwd = kw.get('cwd', os.getcwd())
            return self.connection_info
    return ForkedProvisioner


def __getattr__(name):
    if name != 'ForkedProvisioner': raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    globals()[name] = made = _provisioner()  # jupyter_client is imported only where a kernel is asked for
    return made


if __name__ == '__main__': nurse(socket.socket(fileno=int(sys.argv[2])), os.getppid())
