"A person's decision on a run, and exceptions with an end: entries of the ledger, never edits of the card"
from datetime import date
from pathlib import Path

from genai_playbook.errors import PlaybookError
from genai_playbook.ledger import Entry, Ledger, approval, ledger_path, load_key, utc_now
from genai_playbook.witness import keep_receipt, run_digests, waivers_for, writable

__all__ = ['signers_needed', 'decision_on', 'sign', 'told', 'waive', 'attest']


def signers_needed(card) -> int:
    "Four eyes where the card says that the risk is high"
    return 2 if card.spec.risk_tier == 'high' else 1


def decision_on(
    run,  # of `runner.load_run`
    card,
    day: date,  # whose waivers count
    gates: list|None = None,  # of `runner.gather`; None: they are read from the notebooks
):  # evidence.Decision
    "What the evidence of a run says on a day"
    from dataclasses import asdict
    from genai_playbook.evidence import decide
    from genai_playbook.runner import gather
    return decide(gather(run)[0] if gates is None else gates, [asdict(c) for c in run.chapters], card.exemptions, waivers_for(card, day), run.chosen, day, run.effort)


def _why_no_go(run, card, day: date) -> str:
    "What stands against a GO now, with today's waivers; '' when nothing does"
    from genai_playbook.evidence import GO
    d = decision_on(run, card, day)
    if d.verdict == GO: return ''
    return f'the evidence says {d.verdict} ({"; ".join(d.reasons[:3]) or d.headline}{" …" if len(d.reasons) > 3 else ""})'


def sign(
    folder: Path,  # a finished run
    go: bool,
    by: str,  # who decides
    because: str,
    key: Path|None = None,  # PEM of a private key, to sign the receipt with
    clock=utc_now,
) -> tuple[Entry, str, list[str]]:  # the entry; where the decision stands now, as `approval` says
    "Record a person's GO or NO-GO on a run; raises PlaybookError, and writes nothing, where the evidence cannot carry it"
    from genai_playbook.card import load_card
    from genai_playbook.runner import load_run
    from genai_playbook.verifying import verify
    folder = Path(folder)
    run, secret = load_run(folder), load_key(key) if key else None
    writable(folder)
    v = verify(folder)
    if wrong := v.wrong: raise PlaybookError(f'{folder.name} cannot be signed, because it does not verify: {wrong[0].said}. Run again; nothing was written.')
    card = load_card(run.card)
    if go and v.stale: raise PlaybookError(f'GO cannot be signed: the evidence is stale ({", ".join(v.stale)} changed since). Run again; nothing was written.')
    if go and (why := _why_no_go(run, card, clock().date())): raise PlaybookError(f'GO cannot be signed: {why}. Mend it and run again, or waive single gates with `genai-playbook waive`; nothing was written.')
    log = Ledger(ledger_path(card), clock)
    found = run_digests(folder)
    entry = log.append('decision', by, because, card.name, {**run.digests, **found}, go=go, run=folder.name, needed=signers_needed(card))
    keep_receipt(folder, log, entry, secret)
    return entry, *approval(log.entries('decision', poc=card.name), found['evidence'], signers_needed(card))


def told(
    entry: Entry,  # of a decision
    state: str,  # where the decision stands with it, as `approval` says
    names: list[str],  # who said GO
) -> str:
    "What a signature did, in one sentence"
    needed = entry.facts['needed']
    said = f'{len(names)} of {needed} signatures: another person has to sign before it counts.' if state == 'waiting' else f'The decision on this run is {state}.'
    return f'Entry {entry.seq} of the ledger: {"GO" if entry.facts["go"] else "NO-GO"} by {entry.who}. {said}'


def _last_day(until: str, today: date, what: str) -> str:
    try: day = date.fromisoformat(until)
    except ValueError: raise PlaybookError(f'--until {until}: write a day such as {today.replace(month=12, day=31)}; nothing was written.') from None
    if day < today: raise PlaybookError(f'--until {until} has passed: {what} that is over sets nothing aside; nothing was written.')
    return day.isoformat()


def waive(
    code: str,  # of a gate
    by: str,
    because: str,
    until: str,  # ISO date, the last day
    poc: str|Path = '.',  # card, its folder, or a bundled name
    clock=utc_now,
) -> Entry:
    "Set one gate aside until a day"
    from genai_playbook.card import load_card
    from genai_playbook.tables import did_you_mean
    card = load_card(poc)
    codes = [g.code for g in card.gates()]
    if code not in codes: raise PlaybookError(f'There is no gate `{code}`' + did_you_mean(code, codes, 'gates') + '; nothing was written.')
    last = _last_day(until, clock().date(), 'a waiver')
    return Ledger(ledger_path(card), clock).append('waiver', by, because, card.name, code=code, until=last)


def attest(
    item: str,  # identifier in the compliance matrix
    by: str,
    because: str,  # what was looked at, and where it can be found
    until: str,  # ISO date, the last day on which it counts
    poc: str|Path = '.',
    clock=utc_now,
) -> Entry:
    "Vouch, until a day, for something that no gate can measure"
    from genai_playbook.card import load_card
    from genai_playbook.compliance import load_catalogues
    from genai_playbook.tables import nearest
    card, names = load_card(poc), [i.name for c in load_catalogues() for i in c.items]
    if item not in names:
        near = nearest(item, names)
        raise PlaybookError(f'The matrix has no item `{item}`' + (f'; did you mean `{near}`?' if near else ' (write catalogue and identifier, such as "GDPR Art. 30").') + ' Nothing was written.')
    last = _last_day(until, clock().date(), 'an attestation')
    return Ledger(ledger_path(card), clock).append('attest', by, because, card.name, item=item, until=last)
