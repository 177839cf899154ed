"""A workspace beside the card, opened in JupyterLab: start_here and the chapters as copies that point at it

The notebooks of the playbook are never opened themselves, so nothing that is done in the workspace changes what `genai-playbook run` executes. A copy that somebody changed is never
written again; one that was only executed, or that nobody touched, follows the playbook."""
import ast
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from urllib.parse import quote

from genai_playbook.card import find_card
from genai_playbook.chapters import find_chapters, notebooks_folder
from genai_playbook.errors import PlaybookError

__all__ = ['FOLDER', 'START', 'Workspace', 'workspace_folder', 'pointed_at', 'prepare', 'lab_command', 'open_lab']

FOLDER, START = 'playbook-lab', 'start_here.ipynb'
_WROTE = '.written.json'  # digest of each copy's sources as they were written
_ALONE = ('--LabApp.news_url=None', '--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate')  # it asks no server for news


@dataclass
class Workspace:
    "A folder with copies"
    folder: Path
    root: Path  # what JupyterLab shows: the folder that holds the card, so that card and data can be opened, too
    poc: str    # what the copies call the card: a bundled name, or its path as seen from the workspace
    written: list[str] = field(default_factory=list)  # copies that are new or were brought up to date
    kept: list[str] = field(default_factory=list)     # copies that somebody changed


def workspace_folder(
    poc: str|Path,  # a card, its folder, or a bundled name; the card need not be valid: the form is where it is mended
    here: Path|None = None,  # where the workspace of a bundled card is made; the current folder when None
) -> Workspace:
    "Where the workspace of a card lies: beside it; a second card of the same folder, and a bundled one, get a folder of their own in it"
    path, bundled = find_card(poc)
    root = (here or Path.cwd()).resolve() if bundled else path.parent.resolve()
    own = [path.parent.name] if bundled else [] if path.name == 'poc.yaml' else [path.stem]
    folder = root.joinpath(FOLDER, *own)
    return Workspace(folder, root, path.parent.name if bundled else Path(os.path.relpath(path.resolve(), folder)).as_posix())


def _with_value(src: str, name: str, value: str) -> str:
    "Source with another literal behind `name`"
    for o in ast.parse(src).body:
        target = o.target if isinstance(o, ast.AnnAssign) else o.targets[0] if isinstance(o, ast.Assign) else None
        if isinstance(target, ast.Name) and target.id == name:
            lines, v = src.splitlines(keepends=True), o.value
            at = lines[v.lineno-1].encode()  # ast counts bytes
            lines[v.lineno-1] = (at[:v.col_offset] + json.dumps(value, ensure_ascii=False).encode() + at[v.end_col_offset:]).decode()
            return ''.join(lines)
    return src


def pointed_at(
    nb: Mapping,  # a notebook as JSON data
    poc: str,  # what its parameter `poc` shall be
) -> dict:
    "A copy whose parameter `poc` names another card; outputs of another card do not come along"
    nb = json.loads(json.dumps(nb))
    cell = next((c for c in nb['cells'] if 'parameters' in c['metadata'].get('tags', [])), None)
    if cell is None: return nb
    src = ''.join(cell['source'])
    if (new := _with_value(src, 'poc', poc)) == src: return nb
    cell['source'] = new.splitlines(keepends=True)
    for c in nb['cells']:
        if c['cell_type'] == 'code': c.update(outputs=[], execution_count=None)
    nb['metadata'].pop('widgets', None)
    return nb


def _sources(data: bytes) -> str:
    "Digest of what is written in a notebook; outputs come and go by executing it, and are no change"
    try: cells = [(c['cell_type'], ''.join(c['source'])) for c in json.loads(data)['cells']]
    except (ValueError, TypeError, KeyError): return ''  # no notebook: somebody's own
    return sha256(json.dumps(cells).encode()).hexdigest()


def _written(folder: Path) -> dict[str, str]:
    try: known = json.loads((folder/_WROTE).read_text(encoding='utf-8'))
    except (OSError, ValueError): return {}  # then every copy counts as changed
    return known if isinstance(known, dict) else {}


def prepare(
    poc: str|Path,  # a card, its folder, or a bundled name
    here: Path|None = None,  # for a bundled card; the current folder when None
) -> Workspace:
    "Write the copies that are missing or that nobody changed; raises PlaybookError where the folder cannot be written"
    from genai_playbook.report import write_whole
    ws = workspace_folder(poc, here)
    try:
        ws.folder.mkdir(parents=True, exist_ok=True)
        known = _written(ws.folder)
        for p in [notebooks_folder()/START, *(c.path for c in find_chapters().values())]:
            data, there = _text(p, ws.poc), ws.folder/p.name
            old, new = _sources(there.read_bytes()) if there.exists() else None, _sources(data)
            if old is not None and old not in (new, known.get(p.name)): ws.kept.append(p.name)
            elif old != new:
                write_whole(there, data)
                ws.written.append(p.name)
            if old in (None, new, known.get(p.name)): known[p.name] = new
        write_whole(ws.folder/_WROTE, json.dumps(known, indent=1))
    except OSError as e: raise PlaybookError(f'The workspace {ws.folder} cannot be written ({e.strerror}): copy the card to a folder where you may write.') from None
    return ws


def _text(path: Path, poc: str) -> bytes:
    nb = pointed_at(json.loads(path.read_text(encoding='utf-8')), poc)
    nb['metadata'].setdefault('kernelspec', dict(display_name='Python 3 (ipykernel)', language='python', name='python3'))  # else JupyterLab asks for a kernel
    return (json.dumps(nb, indent=1, ensure_ascii=False) + '\n').encode()


def lab_command(
    ws: Workspace,
    browser: bool = True,
    port: int|None = None,  # None: JupyterLab's own choice
) -> list[str]:
    "How JupyterLab is started so that it opens on `start_here`; raises PlaybookError where it is not installed"
    from importlib.util import find_spec
    if find_spec('jupyterlab') is None: raise PlaybookError('JupyterLab is not installed here: pip install "genai_playbook[lab]", or open the notebooks of the workspace with another editor.')
    url = '/lab/tree/' + quote((ws.folder.relative_to(ws.root)/START).as_posix())
    return [sys.executable, '-m', 'jupyterlab', f'--ServerApp.root_dir={ws.root}', f'--LabApp.default_url={url}', *_ALONE, *([f'--ServerApp.port={port}'] if port is not None else []), *([] if browser else ['--no-browser'])]


def open_lab(
    command: list[str],  # of `lab_command`
):
    "Become JupyterLab: signals, standard output and exit code are its own"
    sys.stdout.flush()
    os.execv(command[0], command)
