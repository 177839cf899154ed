"What a run leaves in the ledger beside its card, and the receipts that it keeps of that in its own folder"
import hashlib
import json
import os
from datetime import date
from functools import cache
from pathlib import Path

from genai_playbook.errors import PlaybookError
from genai_playbook.ledger import Entry, Ledger, active_waivers, ledger_path, receipt, utc_now

__all__ = ['RECEIPTS', 'tool', 'package_digest', 'run_digests', 'read_receipts', 'keep_receipt', 'record_run', 'waivers_for']

RECEIPTS = 'ledger.json'  # in the run folder; no part of the manifest, because it grows with every signature


def tool() -> str:
    "How the program signs"
    from genai_playbook import __version__
    return f'genai-playbook {__version__}'


def _sha(data: bytes) -> str: return hashlib.sha256(data).hexdigest()


@cache
def package_digest() -> str:
    "One digest over the program's own source"
    folder = Path(__file__).parent
    return _sha(''.join(f'{p.name} {_sha(p.read_bytes())}\n' for p in sorted(folder.glob('*.py')) if p.name != '_modidx.py').encode())


def run_digests(
    folder: Path,  # a finished run
) -> dict[str, str]:  # evidence, notebooks, manifest; raises PlaybookError when a file is missing
    "What a signature on a run stands for"
    from genai_playbook.runner import load_run
    names = sorted(c.notebook for c in load_run(folder).chapters if c.notebook)
    try: notebooks = ''.join(f'{n} {_sha((folder/n).read_bytes())}\n' for n in names)
    except OSError as e: raise PlaybookError(f'{folder} is not a whole run: {Path(e.filename or "a notebook").name} is missing; run again.') from None
    try: return dict(evidence=_sha((folder/'evidence.json').read_bytes()), notebooks=_sha(notebooks.encode()), manifest=_sha((folder/'manifest.json').read_bytes()))
    except OSError as e: raise PlaybookError(f'{folder} is not a whole run: {Path(e.filename).name} is missing; make it again with `genai-playbook report {folder}`.') from None


def read_receipts(
    folder: Path,  # of a run
) -> list[dict]:  # as `ledger.receipt` makes them; raises PlaybookError when the file holds something else
    "The receipts of a run's entries, oldest first"
    try: found = json.loads((folder/RECEIPTS).read_text(encoding='utf-8'))
    except FileNotFoundError: return []
    except (OSError, ValueError): found = None
    if not isinstance(found, list) or not all(isinstance(r, dict) for r in found): raise PlaybookError(f'{folder/RECEIPTS} cannot be read: it was changed; restore it from a copy, or remove it and verify against the ledger alone.')
    return found


def keep_receipt(
    folder: Path,  # of a run
    log: Ledger,
    entry: Entry,
    key=None,  # private, of `ledger.load_key`: sign the checkpoint
):
    "Keep proof of an entry where the ledger's owner cannot reach it: whoever has the run folder has the proof"
    from genai_playbook.report import json_text, write_whole
    write_whole(folder/RECEIPTS, json_text([*read_receipts(folder), receipt(log, entry.seq, key)]))


def writable(folder: Path):
    "Raises PlaybookError where a receipt could not be left"
    if not os.access(folder, os.W_OK): raise PlaybookError(f'{folder} cannot be written, so it could not keep a receipt: copy the run to where you may write; nothing was written.')
    read_receipts(folder)


def record_run(
    evidence: dict,  # what `runner.run` returns
    clock=utc_now,
) -> Entry|None:  # None: the run folder is not on this machine
    "Write a finished run into the ledger beside its card"
    from genai_playbook.card import load_card
    where = str(evidence['folder'])
    folder = Path('evidence', evidence['poc']['name'], where.rsplit('/', 1)[-1]).resolve() if '://' in where else Path(where)  # what was sent to a store lies here, too
    if not folder.is_dir(): return None
    writable(folder)
    card, d = load_card(evidence['poc']['card']), evidence['decision']
    log = Ledger(ledger_path(card), clock)
    entry = log.append('run', tool(), f'{d["headline"]}', card.name, {**evidence['digests'], **run_digests(folder), 'package': package_digest()},
                       run=folder.name, verdict=d['verdict'], effort=evidence['effort'], partial=evidence['partial'])
    keep_receipt(folder, log, entry)
    return entry


def waivers_for(
    card,
    day: date|None = None,  # today, UTC, when None
) -> list[dict]:  # code, by, because, until: as `evidence.decide` takes them
    "The exceptions in force for a POC"
    entries = Ledger(ledger_path(card)).entries('waiver', poc=card.name)
    return [dict(code=e.facts['code'], by=e.who, because=e.why, until=e.facts['until']) for e in active_waivers(entries, day or utc_now().date())]
