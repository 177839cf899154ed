"The registry under hostile hands: racing promoters, kills, half-written and foreign entries, and MLflow beside it"
import multiprocessing
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
from datetime import timedelta, timezone
from types import SimpleNamespace

import pytest
from conftest import START, Clock

from genai_playbook.errors import PlaybookError
from genai_playbook.ledger import Ledger, ledger_problems, served_at
from genai_playbook.registry import (ALIAS, TAG, LedgerRegistry, MLflowRegistry, Move, against, champion, history_problems, history_table, plot_history, rollback_target, served_then,
                                     standing, unusable)


def go(reg, version, who='Head of service', **facts):
    v = next(v for v in reg.versions() if v.number == version)
    reg.ledger.append('decision', who, 'a test', reg.poc, dict(v.digests, evidence=f'e{version}'), **{'go': True, **facts})


@pytest.fixture
def reg(tmp_path):
    "Three versions, all approved; the first serves"
    r = LedgerRegistry(Ledger(tmp_path/'ledger.sqlite', Clock()), 'mine')
    for i in range(1, 4):
        r.register(dict(model=f'{i:04x}', prompt='p', data='left out'), f'v{i}.yaml', 'Pipeline', f'training {i}')
        go(r, i)
    r.move('promote', 1, None, 'Release job', 'signed')
    return r


def entries(reg): return [(e.kind, e.facts.get('version')) for e in reg.ledger.entries()]


# --- what is kept -------------------------------------------------------------------------------
def test_a_registry_that_nobody_wrote_to_is_empty_and_says_so(tmp_path):
    r = LedgerRegistry(Ledger(tmp_path/'none.sqlite'), 'mine')
    assert (r.versions(), r.moves(), champion(r), rollback_target(r), history_problems(r), served_then(r, START)) == ([], [], None, None, [], None)
    assert len(history_table(r)) == 0 and not r.ledger.path.exists()
    with pytest.raises(PlaybookError, match='no version 1, and no other one; nothing was written'): r.move('promote', 1, None, 'me', 'why')
    with pytest.raises(PlaybookError, match='digest of its model'): r.register({}, 'x', 'me', 'why')
    assert r.ledger.entries() == []


def test_a_version_keeps_the_digests_of_the_system_and_the_same_system_is_the_same_version(reg):
    assert [v.digests for v in reg.versions()] == [dict(model=f'{i:04x}', prompt='p') for i in (1, 2, 3)]
    assert reg.register(dict(model='0002', prompt='p'), 'elsewhere.yaml', 'Another', 'again').number == 2
    assert reg.register(dict(model='0002', prompt='q'), 'v4.yaml', 'Pipeline', 'other prompt').number == 4


def test_two_pocs_share_a_ledger_and_nothing_else(reg):
    other = LedgerRegistry(reg.ledger, 'other')
    assert other.versions() == [] and other.register(dict(model='0001'), 'x', 'me', 'why').number == 1
    assert champion(other) is None and champion(reg).number == 1


# --- moving the champion ------------------------------------------------------------------------
@pytest.mark.parametrize('kind,version,expect,said', [('promote', 1, 1, 'serves already'), ('promote', 9, 1, 'no version 9'), ('promote', 2, 3, 'version 1 serves now, not version 3: somebody was faster'),
                                                      ('promote', 2, None, 'not nothing'), ('rollback', 2, 1, 'never served'), ('rollback', 1, 1, 'serves already'), ('promote', True, 1, 'serves already'), ('promote', None, 1, 'no version None')])
def test_a_move_that_may_not_be_writes_nothing(reg, kind, version, expect, said):
    before = entries(reg)
    with pytest.raises(PlaybookError, match=said): reg.move(kind, version, expect, 'me', 'why')
    assert entries(reg) == before


@pytest.mark.parametrize('who,why', [('', 'why'), ('me', '  '), (None, 'why')])
def test_a_move_needs_somebody_and_a_reason(reg, who, why):
    with pytest.raises(PlaybookError, match='nothing was written'): reg.move('promote', 2, 1, who, why)
    assert champion(reg).number == 1


def test_a_signature_that_is_taken_back_after_promotion_stops_the_next_promotion_and_no_rollback(reg):
    reg.move('promote', 2, 1, 'Release job', 'signed')
    go(reg, 1, go=False)
    with pytest.raises(PlaybookError, match='NO-GO'): reg.move('promote', 1, 2, 'me', 'why')
    assert reg.move('rollback', 1, 2, 'On call', 'errors').version == 1  # the way back asks nobody


def test_the_last_verdict_counts_whatever_was_signed(reg):
    two, run = reg.versions()[1], lambda v: reg.ledger.append('run', 'genai-playbook', 'x', 'mine', dict(two.digests), verdict=v)
    assert against(reg.ledger.entries(), two) == ''
    run('NO-GO')
    assert 'NO-GO' in against(reg.ledger.entries(), two)
    run('INSUFFICIENT EVIDENCE')
    assert 'NO-GO' in against(reg.ledger.entries(), two)  # a later run that cannot tell takes nothing back
    run('GO')
    assert against(reg.ledger.entries(), two) == ''
    reg.ledger.append('retrain', 'Pipeline', 'x', 'mine', dict(two.digests), step='gated', failed=['BIA01'])
    reg.ledger.append('retrain', 'Pipeline', 'x', 'mine', dict(two.digests), step='gated', failed=[])
    assert 'BIA01 failed' in against(reg.ledger.entries(), two)
    run('GO')
    bad = reg.register(dict(model='0bad'), 'x', 'Pipeline', 'why', failed=['SEC01'])
    go(reg, bad.number)
    assert 'SEC01 failed' in against(reg.ledger.entries(), bad)


def _press(path, version, start, told):
    r = LedgerRegistry(Ledger(path), 'mine')
    start.wait()
    try: told.put(r.move('promote', version, 1, f'process {os.getpid()}', 'signed').version)
    except PlaybookError as e: told.put(str(e))


def test_of_promoters_in_several_processes_one_wins_and_the_others_are_told(tmp_path, reg):
    path = tmp_path/'now.sqlite'  # the machine's clock, which all processes share
    r = LedgerRegistry(Ledger(path), 'mine')
    for i in (1, 2, 3):
        r.register(dict(model=f'{i:04x}'), 'x', 'me', 'why')
        go(r, i)
    r.move('promote', 1, None, 'me', 'why')
    ctx = multiprocessing.get_context('fork')
    start, told = ctx.Event(), ctx.Queue()
    jobs = [ctx.Process(target=_press, args=(path, 2 + i % 2, start, told)) for i in range(6)]
    for j in jobs: j.start()
    start.set()
    said = [told.get(timeout=60) for _ in jobs]
    for j in jobs: j.join()
    assert sum(isinstance(s, int) for s in said) == 1 and len(r.moves()) == 2 and history_problems(r) == []
    assert all('somebody was faster' in s or 'serves already' in s for s in said if isinstance(s, str))


def test_numbers_given_at_the_same_time_are_never_given_twice(tmp_path):
    r = LedgerRegistry(Ledger(tmp_path/'l.sqlite'), 'mine')
    got = []
    jobs = [threading.Thread(target=lambda i=i: got.append(r.register(dict(model=f'{i}'), 'x', 'me', 'why').number)) for i in range(12)]
    for j in jobs: j.start()
    for j in jobs: j.join()
    assert sorted(got) == list(range(1, 13)) and history_problems(r) == []


KILLED = '''
import os, signal, sys
from genai_playbook.ledger import Ledger
from genai_playbook.registry import LedgerRegistry
r = LedgerRegistry(Ledger(sys.argv[1]), 'mine')
v = r.register(dict(model='beef'), 'v.yaml', 'Pipeline', 'why')
def die(entries): os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[2] == 'between': die(None)
r._draft = lambda *args: die(None)  # inside the transaction
r.move('promote', v.number, None, 'Release job', 'signed')
'''


@pytest.mark.parametrize('when', ['between', 'while the move is written'])
def test_killed_between_register_and_promote_nothing_is_half_done(tmp_path, when):
    path = tmp_path/'l.sqlite'
    assert subprocess.run([sys.executable, '-c', KILLED, str(path), when]).returncode == -signal.SIGKILL
    r = LedgerRegistry(Ledger(path), 'mine')
    assert [v.number for v in r.versions()] == [1] and r.moves() == [] and champion(r) is None and ledger_problems(r.ledger) == []
    assert r.register(dict(model='beef'), 'v.yaml', 'Pipeline', 'again').number == 1
    go(r, 1)
    assert r.move('promote', 1, None, 'Release job', 'signed').version == 1


# --- what others wrote --------------------------------------------------------------------------
def test_a_promotion_past_the_registry_is_found_and_blocks_who_compared_with_something_else(reg):
    reg.ledger.append('promote', 'Somebody', 'by hand', 'mine', dict(model='0002'))  # of a version that is known by its model
    assert champion(reg).number == 2 and history_problems(reg) == []
    reg.ledger.append('promote', 'Somebody', 'by hand', 'mine', dict(model='feed'))
    assert champion(reg) is None and len(history_problems(reg)) == 1 and reg.moves()[-1].version is None
    with pytest.raises(PlaybookError, match='nothing serves now, not version 2'): reg.move('promote', 3, 2, 'me', 'why')
    assert reg.move('promote', 3, None, 'me', 'found it').version == 3


@pytest.mark.parametrize('facts', [dict(step='registered'), dict(step='registered', version='two'), dict(step='registered', version=None), dict(step='registered', version=[1]), dict(version=7), {}])
def test_entries_that_only_look_like_versions_are_none(reg, facts):
    reg.ledger.append('retrain', 'Somebody', 'by hand', 'mine', dict(model='0007'), **facts)
    assert [v.number for v in reg.versions()] == [1, 2, 3]


def test_a_gap_in_the_numbers_is_named(reg):
    reg.ledger.append('retrain', 'Somebody', 'by hand', 'mine', dict(model='0009'), step='registered', version=9, where='x')
    assert 'numbered [1, 2, 3, 9]' in history_problems(reg)[0] and reg.register(dict(model='000a'), 'x', 'me', 'why').number == 10


@pytest.mark.parametrize('damage', ['cut', 'text', 'other database'])
def test_a_damaged_registry_is_one_sentence(tmp_path, reg, damage):
    path = reg.ledger.path
    if damage == 'cut': path.write_bytes(path.read_bytes()[:5000])
    if damage == 'text': path.write_text('not a database at all, but long enough to be looked at' * 20)
    if damage == 'other database':
        path.unlink()
        with sqlite3.connect(path) as db: db.execute('CREATE TABLE t (x)')
    for use in (reg.versions, reg.moves, lambda: reg.register(dict(model='1'), 'x', 'me', 'why')):
        with pytest.raises(PlaybookError, match='damaged|no ledger'): use()


# --- what the moves say -------------------------------------------------------------------------
def test_standing_never_leads_back_to_what_was_rolled_back_from():
    rng = random.Random(4)
    for _ in range(300):
        stack, moves = [], []
        for _ in range(rng.randint(1, 15)):
            if len(stack) > 1 and rng.random() < .4:
                bad = stack.pop()
                moves.append(Move('', 'rollback', stack[-1], bad, '', ''))
                assert bad not in standing(moves)
            else:
                new = rng.choice([v for v in range(1, 6) if not stack or v != stack[-1]])
                stack = [v for v in stack if v != new] + [new]
                moves.append(Move('', 'promote', new, None, '', ''))
            assert standing(moves) == stack


def test_what_served_agrees_with_the_ledger_itself_at_every_moment(reg):
    clock = reg.ledger.clock
    for kind, version, expect in (('promote', 2, 1), ('promote', 3, 2), ('rollback', 2, 3), ('rollback', 1, 2)):
        clock.at += timedelta(days=1)
        reg.move(kind, version, expect, 'me', 'why')
    by = {v.number: v.digests['model'] for v in reg.versions()}
    for hours in range(0, 120, 5):
        at, n = START + timedelta(hours=hours), served_then(reg, START + timedelta(hours=hours))
        then = served_at(reg.ledger, 'mine', at)
        assert (then and then.entry.digests['model']) == by.get(n)
    assert served_then(reg, START.astimezone(timezone(timedelta(hours=5))) + timedelta(days=30)) == 1
    import matplotlib.pyplot as plt
    plt.close(plot_history(reg, START + timedelta(days=9)))


def test_files_that_are_gone_or_changed_are_named(tmp_path, reg):
    assert 'its card cannot be read' in unusable(reg.versions()[0])
    (tmp_path/'rows.csv').write_text('id,prompt,reference\n1,a,a\n')
    (tmp_path/'bot.py').write_text('def echo(prompt): return prompt\n')
    (tmp_path/'poc.yaml').write_text('poc: mine\noutcome: {promise: it works}\nmodel: {kind: python, target: "bot:echo", deterministic: true}\ndata: {evaluation: rows.csv}\n')
    from genai_playbook.card import load_card
    v = reg.register(load_card(tmp_path).digests(), str(tmp_path/'poc.yaml'), 'me', 'why')
    assert unusable(v) == ''
    (tmp_path/'bot.py').write_text('def echo(prompt): return "no"\n')
    assert unusable(v) == 'model changed since it was registered'
    (tmp_path/'poc.yaml').write_bytes(b'\x00\xff')
    assert 'cannot be read' in unusable(v)


# --- MLflow -------------------------------------------------------------------------------------
class Client:
    "What of MLflow's client is used, with faults"
    def __init__(self): self.rows, self.aliases, self.model, self.down = [], {}, False, False
    def _up(self):
        if self.down: raise ConnectionError('http://user:secret@mlflow.example/api')
    def search_registered_models(self, query): self._up(); return [self] * self.model
    def create_registered_model(self, name): self._up(); self.model = True
    def get_registered_model(self, name): self._up(); return self
    def search_model_versions(self, query): self._up(); return self.rows
    def create_model_version(self, name, source, description, tags): self._up(); self.rows.append(SimpleNamespace(version=str(len(self.rows) + 1), tags=tags))
    def set_registered_model_alias(self, name, alias, version): self._up(); self.aliases[alias] = version


def real_client(tmp_path):
    pytest.importorskip('mlflow', reason="MLflow is not installed: pip install 'genai_playbook[mlflow]'")
    pytest.importorskip('alembic', reason='MLflow without alembic has no sqlite')
    from genai_playbook.registry import mlflow_client
    return mlflow_client(f'sqlite:///{tmp_path}/mlflow.db')


@pytest.fixture(params=['small', 'mlflow'])
def mirror(request, tmp_path, reg):
    client = Client() if request.param == 'small' else real_client(tmp_path)
    return MLflowRegistry(reg.ledger, 'mine', client=client)


def test_mlflow_follows_the_ledger(mirror):
    mirror.sync()
    assert mirror.shown() == 1
    assert mirror.register(dict(model='0004'), 'v4.yaml', 'Pipeline', 'why').number == 4
    mirror.move('promote', 3, 1, 'Release job', 'signed')
    mirror.move('rollback', 1, 3, 'On call', 'errors')
    assert mirror.shown() == champion(mirror).number == 1 and len(mirror.client.search_model_versions("name='mine'")) == 4
    mirror.client.set_registered_model_alias('mine', ALIAS, mirror._there()[2])  # somebody moves it by hand
    assert mirror.shown() == 2 and champion(mirror).number == 1
    mirror.sync()
    assert mirror.shown() == 1 and len(mirror.moves()) == 3


def test_versions_of_others_in_mlflow_are_left_alone(mirror):
    if not mirror.client.search_registered_models("name='mine'"): mirror.client.create_registered_model('mine')
    mirror.client.create_model_version('mine', source='theirs', description='', tags={TAG: 'not a number'})
    mirror.sync()
    assert mirror.shown() == 1 and mirror._there()[1] == '2'
    with pytest.raises(PlaybookError, match='nobody has approved'):
        v = mirror.register(dict(model='0005'), 'x', 'me', 'why')
        mirror.move('promote', v.number, 1, 'me', 'why')
    assert mirror.shown() == 1


def test_mlflow_that_is_down_undoes_no_move_and_is_caught_up_with_later(reg):
    m = MLflowRegistry(reg.ledger, 'mine', client=Client())
    m.client.down = True
    with pytest.raises(PlaybookError, match='The ledger is written, but MLflow does not follow') as e: m.move('promote', 2, 1, 'Release job', 'signed')
    assert champion(m).number == 2 and 'secret' not in str(e.value)
    m.client.down = False
    m.sync()
    assert m.shown() == 2


def test_without_mlflow_the_extra_is_named(reg, monkeypatch):
    monkeypatch.setitem(sys.modules, 'mlflow', None)
    with pytest.raises(PlaybookError, match=r'genai_playbook\[mlflow\]'): MLflowRegistry(reg.ledger, 'mine', 'sqlite:///x.db')
