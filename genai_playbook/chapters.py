"Finds the chapters: every notebook in nbs/ whose metadata has a `genai_playbook` entry that names its chapter"
import json
import re
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from pathlib import Path

__all__ = ['DIMENSIONS', 'ChapterInfo', 'notebooks_folder', 'chapter_info', 'find_chapters', 'chapter_gates', 'chapter_section']

DIMENSIONS = dict(SUC='success', LAT='latency', LOA='load', COS='cost', TRU='trust', BIA='bias', ROB='robustness', SEC='security',
                  MON='monitoring', GOV='governance', DEL='delivery', ROL='rollback')  # gate-code prefix: the production dimension it speaks of


@dataclass(frozen=True)
class ChapterInfo:
    "What the runner knows of a chapter before anything of it runs"
    name: str                     # key in the card, in `-p name.parameter=value` and in `--chapters`
    module: str                   # what its exported code is imported from; '' when it exports none
    title: str                    # its H1
    question: str                 # its `>` subtitle
    path: Path                    # the notebook
    needs: tuple[str, ...] = ()   # chapters whose evidence it reads; 'all' means every other one
    exclusive: bool = False       # measures time, so it runs alone
    live: bool = False            # needs a model that can be asked, not a log of answers


def notebooks_folder() -> Path:
    "Where the chapters lie: inside the installed package, or beside it in a checkout"
    here = Path(__file__).parent
    inside = here/'nbs'
    return inside if inside.is_dir() else here.parent/'nbs'


def chapter_info(
    path: Path,  # a notebook
) -> ChapterInfo|None:  # None when the notebook does not say that it is a chapter
    "Read a chapter's metadata, title and question"
    nb = json.loads(path.read_text(encoding='utf-8'))
    meta = nb['metadata'].get('genai_playbook', {})
    if 'chapter' not in meta: return None
    head = next((''.join(c['source']) for c in nb['cells'] if c['cell_type'] == 'markdown'), '')
    code = '\n'.join(''.join(c['source']) for c in nb['cells'] if c['cell_type'] == 'code')
    exp = re.search(r'^#\|\s*default_exp\s+(\S+)', code, re.M)
    find = lambda pat: (re.search(pat, head, re.M) or ['', ''])[1].strip()
    return ChapterInfo(meta['chapter'], f'genai_playbook.{exp[1]}' if exp else '', find(r'^# (.+)') or meta['chapter'], find(r'^> (.+)'), path,
                       tuple(meta.get('needs', ())), bool(meta.get('exclusive')), bool(meta.get('live')))


@lru_cache
def find_chapters(
    folder: Path|None = None,  # where to look; the playbook's own notebooks when None
) -> dict[str, ChapterInfo]:  # by name, in the order of their file names
    "Every chapter there is"
    found = [chapter_info(p) for p in sorted((folder or notebooks_folder()).glob('[0-9]*.ipynb'))]
    return {c.name: c for c in found if c}


def chapter_gates(
    chapter: ChapterInfo,
) -> list:  # of `evidence.GateSpec`
    "The gates that a chapter declares, known before it runs"
    return list(getattr(import_module(chapter.module), 'GATES', ())) if chapter.module else []


def chapter_section(
    chapter: ChapterInfo,
):  # pydantic model class, or None
    "The chapter's own section of the card"
    return getattr(import_module(chapter.module), 'Section', None) if chapter.module else None
