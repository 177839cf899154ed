"The command line: thin, and quick to say what it can do"
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from genai_playbook.errors import PlaybookError

app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode='rich', pretty_exceptions_enable=False,
                  help='From a generative-AI proof of concept to one decision: GO, NO-GO or INSUFFICIENT EVIDENCE.',
                  epilog='First steps:  [bold]genai-playbook run demo[/]   then   [bold]genai-playbook init my-poc[/]')
Poc = Annotated[str, typer.Argument(metavar='POC', help='A card (poc.yaml), its folder, or a bundled POC: demo, demo-hardened, demo-regressed.')]


def _console(**kw):
    from rich.console import Console
    console = Console(highlight=False, soft_wrap=True, **kw)
    if not console.is_terminal: console.width = 160  # a log has no edge to fold tables at
    return console


def _version(value: bool):
    if value:
        from genai_playbook import __version__
        print(f'genai-playbook {__version__}')
        raise typer.Exit


@app.callback()
def main_options(version: Annotated[bool, typer.Option('--version', callback=_version, is_eager=True, help='Print the version.')] = False):
    "Options that need no command"


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help='A new folder for your POC.')],
):
    "Write a commented card with the demo's data and model: it runs at once, and is easy to point at your own."
    from genai_playbook.card import init_poc
    path = init_poc(folder)
    _console().print(f'Wrote {path}\n\nIt runs as it is:   genai-playbook run {path}\nThen open it and point `model` and `data` at your own.')


@app.command()
def check(poc: Poc):
    "Load the model, get one answer, and say what a run will need: rows for each gate, time, money, and which chapters cannot run."
    from genai_playbook.checking import check_poc, print_check
    raise typer.Exit(print_check(check_poc(poc), _console()))


@app.command()
def run(
    pocs: Annotated[list[str], typer.Argument(metavar='POC...', help='A card (poc.yaml), its folder, or a bundled POC: demo, demo-hardened, demo-regressed. Several run one after the other.')],
    effort: Annotated[str, typer.Option(help='[bold]quick[/]: a first answer from small samples. [bold]full[/]: all the data.')] = 'full',
    chapters: Annotated[str|None, typer.Option(help='Only these, separated by commas; the result is then PARTIAL. See `genai-playbook chapters`.')] = None,
    param: Annotated[list[str]|None, typer.Option('-p', '--param', metavar='CHAPTER.NAME=VALUE', help="Set one chapter's parameter; may be given again.")] = None,
    out: Annotated[str, typer.Option(help='Folder for evidence, or an address that papermill can write (s3://, gs://, abfs://).')] = 'evidence',
    jobs: Annotated[int|None, typer.Option(min=1, help='Chapters side by side; as many as there are cores when left out. Those that measure time always run alone.')] = None,
    timeout: Annotated[float, typer.Option(min=1, help='Seconds that one chapter may take.')] = 1800,
    resume: Annotated[bool, typer.Option(help='Go on with the newest run if it was cut off or a chapter broke; finished chapters that are still valid are kept.')] = False,
    cold: Annotated[bool, typer.Option('--cold', help='Start every kernel afresh instead of forking it: some seconds more for each chapter, the same evidence.')] = False,
    matrix: Annotated[bool, typer.Option('--matrix', help='Every model of these cards with every POC of them.')] = False,
    executor: Annotated[str, typer.Option(help='Who runs chapters: threads (here), dask:local, or dask:ADDRESS of a scheduler; see docs/scale-out.md.')] = 'threads',
    quiet: Annotated[bool, typer.Option('--quiet', '-q', help='Only the decision, and what went wrong.')] = False,
    json_: Annotated[bool, typer.Option('--json', help='One JSON object a line for each event, the decision last.')] = False,
    yes: Annotated[bool, typer.Option('--yes', help="Let chapter load spend more than its budget at a paid endpoint (the budget: -p load.budget=5).")] = False,
    accept_partial: Annotated[bool, typer.Option(help='Exit 0 for a partial run in which nothing failed.')] = False,
):
    """Run the playbook on a POC: executed notebooks, a report, one decision.

    Exit code: 0 GO, 1 NO-GO, 2 bad card or usage, 3 insufficient evidence or partial, 4 a chapter broke, 130 interrupted."""
    from genai_playbook.runner import run as run_playbook
    from genai_playbook.scaling import run_matrix
    from genai_playbook.screen import print_matrix
    chosen = [c.strip() for c in chapters.split(',') if c.strip()] if chapters is not None else None
    if chosen == []: raise PlaybookError('--chapters names no chapter; see `genai-playbook chapters`.')
    if quiet and json_: raise PlaybookError('--quiet and --json exclude each other: leave one out.')
    params = parse_params(param or [])
    if yes and (chosen is None or 'load' in chosen): params.setdefault('load', {})['yes'] = True
    options = dict(chapters=chosen, effort=effort, params=params, out=out, jobs=jobs, timeout=timeout, resume=resume, cold=cold, executor=executor)
    if len(pocs) == 1: raise typer.Exit(_shown(lambda progress: run_playbook(pocs[0], progress=progress, **options), quiet, json_, accept_partial))
    with _progress(quiet, json_) as progress: results = run_matrix(pocs, matrix, progress=progress, **options)
    for ev in results.values():
        _witness(ev, _console(stderr=json_))
        if json_: progress.say('decision', poc=ev['poc']['name'], folder=ev['folder'], **ev['decision'])
    raise typer.Exit(print_matrix(results, _console(stderr=json_)))


def _progress(quiet: bool, json_: bool):
    from genai_playbook.screen import JsonProgress, QuietProgress, ScreenProgress
    return JsonProgress() if json_ else QuietProgress(_console()) if quiet else ScreenProgress(_console())


def _shown(work, quiet: bool, json_: bool, accept_partial: bool) -> int:
    "Do it while its progress is shown, show what came of it; its exit code"
    from genai_playbook.screen import print_result
    with _progress(quiet, json_) as progress: evidence = work(progress)
    _witness(evidence, _console(stderr=json_))
    d = evidence['decision']
    if json_: progress.say('decision', poc=evidence['poc']['name'], folder=evidence['folder'], **d)
    elif quiet: _console().print(f'{d["headline"]}\n{evidence["folder"]}/index.html', markup=False)
    else: print_result(evidence, _console())
    clean = accept_partial and evidence['partial'] and d['exit_code'] == 3 and not any(g['verdict'] in ('INSUFFICIENT', 'NOT TESTED') and g['hard'] for g in evidence['gates'])
    return 0 if clean else d['exit_code']


@app.command()
def answer(
    poc: Poc,
    prompts: Annotated[Path, typer.Argument(help='A .csv, .jsonl or .parquet file with a column `prompt`, of any length.')],
    out: Annotated[Path, typer.Argument(help='Folder for part-000000.parquet and so on.')],
    chunk: Annotated[int, typer.Option(min=1, help='Rows that a worker holds in memory.')] = 10_000,
    executor: Annotated[str, typer.Option(help='threads (here), dask:local, or dask:ADDRESS of a scheduler.')] = 'threads',
    jobs: Annotated[int|None, typer.Option(min=1, help='Chunks under way at once on a cluster.')] = None,
):
    "Answer a file of prompts, in chunks that are stored as they are finished; what was answered before is not asked again."
    from genai_playbook.scaling import answer_file
    console = _console()
    with console.status('answering') as status:
        rows = answer_file(poc, prompts, out, chunk, executor, jobs, lambda n: status.update(f'{n:,} rows answered'))
    console.print(f'{rows:,} rows answered in {out}')


@app.command()
def serve(
    poc: Poc,
    host: Annotated[str, typer.Option(help='Address to listen on; 0.0.0.0 lets other machines in.')] = '127.0.0.1',
    port: Annotated[int, typer.Option(min=0, max=65535, help='0: any that is free.')] = 8000,
    batch: Annotated[int, typer.Option(min=1, help='Most requests computed together.')] = 32,
    max_waiting: Annotated[int, typer.Option(min=1, help='Requests that may wait; more are refused with 429 and Retry-After.')] = 128,
    max_wait: Annotated[float|None, typer.Option(min=.001, help="Seconds that a request may have to wait; more are refused. Half of the card's time to the first token when left out.")] = None,
    workers: Annotated[int|None, typer.Option(min=1, help='Threads that compute; as many as are of use when left out.')] = None,
    timeout: Annotated[float, typer.Option(min=.1, help='Seconds for one answer, waiting included.')] = 60.,
    drain: Annotated[float, typer.Option(min=0, help='Seconds that accepted requests get to end when the server is stopped.')] = 30.,
    api_key_env: Annotated[str|None, typer.Option(help='NAME of the environment variable with the key that clients must send.')] = None,
    cores: Annotated[str, typer.Option(help='Keep to these cores, separated by commas.')] = '',
    parent: Annotated[bool, typer.Option('--parent', help='Stop when standard input closes, that is, when whoever started this is gone.')] = False,
):
    "Serve what users would meet, model behind prompt, guards and fallbacks, on an OpenAI-compatible endpoint."
    from genai_playbook.serve import Service, serve_until, use_cores
    if cores and not all(c.strip().isdigit() for c in cores.split(',')): raise PlaybookError(f'--cores {cores}: write numbers separated by commas, such as --cores 2,3.')
    use_cores([int(c) for c in cores.split(',')] if cores else [])
    from genai_playbook.card import load_card
    card = load_card(poc)
    key = os.environ.get(api_key_env, '').strip() if api_key_env else ''
    if api_key_env and not key: raise PlaybookError(f'the environment variable {api_key_env}, which --api-key-env names, is not set.')
    max_wait = max_wait or (card.spec.service_levels.ttft_ms or float('inf'))/2000
    service = Service(card.system().uncached, card.name, batch, max_waiting, max_wait, workers, timeout, key=key)
    serve_until(service, host, port, drain, parent, lambda url: print(f'{card.name} answers at {url}', flush=True))


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help='A run folder: evidence/<poc>/<time>-<digest>.')],
):
    "Make the report of a run again from its executed notebooks."
    from genai_playbook.card import load_card
    from genai_playbook.runner import finish, load_run
    from genai_playbook.report import chapter_html
    state = load_run(folder)
    for c in state.chapters:
        if c.notebook: chapter_html(state.folder/c.notebook, state.folder/c.html, c.error)
    _witness(finish(state, load_card(state.card)), _console())
    _console().print(f'{state.folder/"index.html"}')


def _witness(evidence: dict, console):
    "Write the run into the ledger; a ledger that refuses does not undo a run"
    from genai_playbook.witness import record_run
    try: record_run(evidence)
    except PlaybookError as e: console.print(f'The run is not in the ledger: {e}', style='yellow', markup=False)


By = Annotated[str, typer.Option('--by', help='Who: a person or a role that can be asked.')]
Because = Annotated[str, typer.Option('--because', help='Why, in one sentence; it stays in the ledger.')]
Until = Annotated[str, typer.Option('--until', metavar='YYYY-MM-DD', help='The last day on which it counts.')]
OfPoc = Annotated[str, typer.Option('--poc', help='The card, its folder, or a bundled POC.')]
RunFolder = Annotated[Path, typer.Argument(metavar='RUN', help='A run folder: evidence/<poc>/<time>-<digest>.')]


@app.command()
def sign(
    run: RunFolder,
    by: By,
    because: Because,
    go: Annotated[bool|None, typer.Option('--go/--no-go', help='The decision.')] = None,
    key: Annotated[Path|None, typer.Option(help='PEM file with your Ed25519 or ECDSA private key: the receipt is then signed.')] = None,
):
    "Record a person's decision on a run in the ledger. GO is refused over a failed, undecided or stale gate that nobody waived."
    from genai_playbook.signing import sign as sign_
    from genai_playbook.signing import told
    if go is None: raise PlaybookError('Say --go or --no-go.')
    _console().print(told(*sign_(run, go, by, because, key)), markup=False)


@app.command()
def waive(
    code: Annotated[str, typer.Argument(metavar='CODE', help='A gate, such as SUC01.')],
    by: By,
    because: Because,
    until: Until,
    poc: OfPoc = '.',
):
    "Set one gate aside until a day. The decision of the next run, and of `report`, counts it as waived."
    from genai_playbook.signing import waive as waive_
    e = waive_(code, by, because, until, poc)
    _console().print(f'Entry {e.seq} of the ledger of {e.poc}: {code} is waived until {e.facts["until"]} by {e.who}.', markup=False)


@app.command()
def attest(
    item: Annotated[str, typer.Argument(metavar='ITEM', help='An identifier in the compliance matrix of chapter 10.')],
    by: By,
    because: Because,
    until: Until,
    poc: OfPoc = '.',
):
    "Vouch, until a day, for a requirement that no gate can measure."
    from genai_playbook.signing import attest as attest_
    e = attest_(item, by, because, until, poc)
    _console().print(f'Entry {e.seq} of the ledger of {e.poc}: {e.who} vouches for {item} until {e.facts["until"]}.', markup=False)


@app.command()
def verify(
    run: RunFolder,
    rerun: Annotated[bool, typer.Option('--rerun', help='Execute the chapters again and compare every gate.')] = False,
    public: Annotated[Path|None, typer.Option(help='PEM file with the public key that must have signed the receipts.')] = None,
):
    """Hold a run against its manifest, its notebooks, its receipts and the ledger.

    Exit code: 0 it holds, 1 it does not or is stale, 2 it is no finished run."""
    from genai_playbook.screen import ScreenProgress, print_verification
    from genai_playbook.verifying import rerun as rerun_
    from genai_playbook.verifying import verify as verify_
    console = _console()
    v = verify_(run, public)
    if rerun:
        with ScreenProgress(console) as progress: v.claims = rerun_(run, progress)
    print_verification(v, console)
    raise typer.Exit(v.exit_code)


@app.command()
def compare(
    a: Annotated[str, typer.Argument(metavar='A', help='The old: a run folder (evidence/<poc>/<time>-<digest>), or a POC.')],
    b: Annotated[str, typer.Argument(metavar='B', help='The new: the same kind of thing. A POC answers the cases of A.')],
    margin: Annotated[float, typer.Option(help='Largest loss that is acceptable, as a share of the cases.')] = .02,
    cases: Annotated[int|None, typer.Option(min=1, help='For POCs: how many cases to ask, in whole clusters; all of them when left out.')] = None,
    out: Annotated[Path, typer.Option(help='Folder for compare.html and compare.json.')] = Path('comparison'),
    strict: Annotated[bool, typer.Option(help='Exit 1 also when a slice or another metric got worse, corrected for how many were looked at.')] = False,
):
    """Is B better than A on the same cases, not worse, worse, or can they not tell?

    Exit code: 0 better or not worse, 1 worse, 2 bad usage, 3 cannot tell. It is the verdict on all cases; a slice that got worse is named loudly, and decides with --strict."""
    from genai_playbook.head_to_head import compare as compare_
    from genai_playbook.screen import Asking, print_comparison
    console = _console()
    with Asking(console) as asking: result = compare_(a, b, margin, cases, out, asking, strict)
    print_comparison(result, console, out)
    raise typer.Exit(result['exit_code'])


@app.command(context_settings=dict(allow_extra_args=True, ignore_unknown_options=True))
def lab(
    more: typer.Context,
    poc: Annotated[str, typer.Argument(metavar='[POC]', help='A card (poc.yaml), its folder, or a bundled POC. Left out: the poc.yaml of this folder, else the demo.')] = '',
    browser: Annotated[bool, typer.Option('--browser/--no-browser', help='Open a browser.')] = True,
    port: Annotated[int|None, typer.Option(min=1, max=65535, help="JupyterLab's port.")] = None,
):
    "Open JupyterLab in a workspace beside the card (playbook-lab/): start_here and the chapters, as copies that point at it. Other options, behind the POC, are JupyterLab's, such as --allow-root."
    from genai_playbook.lab import lab_command, open_lab, prepare
    poc, others = ('', [poc, *more.args]) if poc.startswith('-') else (poc, more.args)
    ws = prepare(poc or ('.' if Path('poc.yaml').is_file() else 'demo'))
    command = [*lab_command(ws, browser, port), *others]
    _console().print(f'Workspace: {ws.folder}' + (f'\nKept as you changed them (delete one to get it fresh): {", ".join(ws.kept)}' if ws.kept else ''), markup=False)
    open_lab(command)


@app.command()
def retrain(
    poc: Poc,
    seed: Annotated[int, typer.Option(help='Of the training.')] = 0,
    out: Annotated[Path|None, typer.Option(help='Folder for models and evidence; `releases` beside the ledger when left out.')] = None,
    chapters: Annotated[str|None, typer.Option(help='Chapters that gate the candidate, separated by commas; those of the card when left out.')] = None,
    effort: Annotated[str, typer.Option(help='[bold]quick[/]: the gates see a sample. [bold]full[/]: all the data.')] = 'full',
    if_due: Annotated[bool, typer.Option('--if-due', help='Do nothing unless new feedback or the age of the model call for it.')] = False,
):
    """Train a candidate on reviewed feedback, gate it, compare it with what serves, and register it. Nothing is promoted.

    Exit code: 0 ready (or nothing due), 1 held, 2 bad usage, 3 undecided."""
    from genai_playbook.pipeline import HELD, OPEN, retrain_poc
    from genai_playbook.retraining import Trigger
    from genai_playbook.screen import QuietProgress
    console, say = _console(), lambda text: _console().print(text, markup=False)
    chosen = [c.strip() for c in chapters.split(',') if c.strip()] if chapters else None
    r = retrain_poc(poc, seed, out, chosen, effort, if_due, QuietProgress(console), lambda step: say(f'  {step}'))
    if isinstance(r, Trigger): return say(f'Nothing to do: {r.because}.')
    say(f'Version {r.version.number} is {r.verdict}: {r.because}.\nIts card: {r.card.path}' + (f'\nEvidence: {r.found.where}/index.html' if r.found.where else ''))
    say(f'Next:  genai-playbook run {r.card.path}   then sign that run, and   genai-playbook promote {poc} {r.version.number} --by … --because …')
    raise typer.Exit({HELD: 1, OPEN: 3}.get(r.verdict, 0))


@app.command()
def promote(
    poc: Poc,
    version: Annotated[int, typer.Argument(help='Its number in the registry.')],
    by: By,
    because: Because,
):
    "Put a registered version in front of users. Refused without a signed GO on it, after a failed hard gate, or when its files changed."
    from genai_playbook.pipeline import promote_poc
    m = promote_poc(poc, version, by, because)
    _console().print(f'Version {m.version} serves' + (f' instead of version {m.before}.' if m.before else '.'), markup=False)


@app.command()
def rollback(poc: Poc, by: By, because: Because):
    "Record that the version which served before serves again. Needs no approval; refused when there is none, or when its files changed."
    from genai_playbook.pipeline import roll_back_poc
    m = roll_back_poc(poc, by, because)
    _console().print(f'Version {m.version} serves again instead of version {m.before}.', markup=False)


@app.command()
def ci(
    forge: Annotated[str, typer.Argument(metavar='github|gitlab', help='Whose CI shall run the playbook.')],
    poc: Annotated[str, typer.Option(help='The card, its folder, or a bundled POC.')] = 'poc.yaml',
    schedule: Annotated[str|None, typer.Option(metavar='CRON', help="Also run it as an audit: five fields in UTC, such as '0 3 * * 1' for Mondays at 3:00.")] = None,
    out: Annotated[Path|None, typer.Option(metavar='PATH', help='The file; where the forge looks for it when left out.')] = None,
    fail_on: Annotated[str, typer.Option(help='[bold]insufficient[/]: the check is red unless the decision is GO. [bold]no-go[/]: INSUFFICIENT EVIDENCE is a warning.')] = 'insufficient',
    effort: Annotated[str, typer.Option(help='Of a run on a change, quick or full; an audit is always full.')] = 'full',
    install: Annotated[str, typer.Option(metavar='COMMAND', help='What installs the playbook and what the POC imports; this version and requirements.txt when left out.')] = '',
    force: Annotated[bool, typer.Option('--force', help='Overwrite a file that differs.')] = False,
):
    "Write a workflow that runs the playbook on every pull or merge request, shows the summary, keeps the evidence and fails on NO-GO."
    from genai_playbook.delivery_ci import write_ci
    path, written = write_ci(forge, poc, schedule, out, fail_on, effort, install, force)
    _console().print(f'Wrote {path}; its first lines say what it needs.' if written else f'{path} is as it should be.', markup=False)


@app.command()
def chapters():
    "List the chapters, what each answers, and its parameters."
    import json

    from rich.table import Table

    from genai_playbook.chapters import find_chapters
    from genai_playbook.runner import OWN, notebook_parameters
    console, t = _console(), Table('chapter', 'it answers', 'parameters (-p chapter.name=value)', show_lines=True)
    for c in find_chapters().values():
        ps = notebook_parameters(json.loads(c.path.read_text(encoding='utf-8')), c.path.name).values()
        t.add_row(f'[bold]{c.name}[/]', c.question, '\n'.join(f'{p.name} = {p.default!r}  [dim]{p.help}[/]' for p in ps if p.name not in OWN))
    console.print(t)


def parse_params(
    items: list[str],  # 'chapter.name=value', the value as YAML would read it
) -> dict[str, dict]:
    "Chapter: {name: value}; raises PlaybookError on another form"
    import yaml
    res: dict[str, dict] = {}
    for item in items:
        key, eq, value = item.partition('=')
        chapter, dot, name = key.partition('.')
        if not (eq and dot and chapter and name): raise PlaybookError(f'-p {item}: write chapter.name=value, for example -p success.worst=5.')
        try: res.setdefault(chapter, {})[name] = yaml.safe_load(value)
        except yaml.YAMLError: res.setdefault(chapter, {})[name] = value
    return res


def _stop_like_ctrl_c():
    "A scheduler that ends a job (CI, Slurm, Kubernetes) leaves as much behind as Ctrl-C does"
    import signal
    import threading
    def stop(*_): raise KeyboardInterrupt
    if threading.current_thread() is threading.main_thread(): signal.signal(signal.SIGTERM, stop)


def main():
    "Entry point: what a user can mend is one sentence and exit code 2, our own bug is 70"
    os.environ.setdefault('TOKENIZERS_PARALLELISM', 'false')
    _stop_like_ctrl_c()
    try: app()
    except PlaybookError as e:
        _console(stderr=True).print(str(e), style='red', markup=False)
        sys.exit(e.exit_code)
    except KeyboardInterrupt:
        print('Interrupted: finished chapters are kept; go on with --resume.', file=sys.stderr)
        sys.exit(130)
    except Exception:
        import traceback
        traceback.print_exc()
        print('This is a bug in genai_playbook, not in your POC: please report the lines above.', file=sys.stderr)
        sys.exit(70)


if __name__ == '__main__': main()
