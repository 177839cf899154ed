"The ledger under hostile hands: tampering, concurrent writers, kill -9, foreign files, clocks, keys"
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from datetime import date, datetime, timedelta

import pytest
from conftest import START, Clock
from hypothesis import given, settings
from hypothesis import strategies as st

from genai_playbook.errors import PlaybookError
from genai_playbook.ledger import (Checkpoint, Entry, Ledger, active_waivers, check_signature, checkpoint, growth_proof, ledger_problems, load_key, receipt, receipt_problem,
                                   served_at)
from genai_playbook.merkle import consistency_proof, inclusion_proof, leaf_hash, tree_root, verify_consistency, verify_inclusion


def filled(path, n=40, clock=None):
    log = Ledger(path, clock or Clock())
    for i in range(n): log.append(['run', 'decision', 'waiver', 'promote'][i % 4], f'person {i % 3}', f'reason {i}', 'demo', dict(model=f'{i % 5:04x}'), go=i % 2 == 0, until='2026-04-01')
    return log


def sql(path, *statements):
    "What somebody with the file can do"
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute('PRAGMA synchronous=OFF')
        for t in 'no_update', 'no_delete': db.execute(f'DROP TRIGGER IF EXISTS {t}')
        for s in statements: db.execute(*(s if isinstance(s, tuple) else (s,)))


def rows(path):
    with closing(sqlite3.connect(path)) as db: return db.execute('SELECT seq, entry FROM entries ORDER BY seq').fetchall()


# --- the tree -----------------------------------------------------------------------------------
LEAVES = [leaf_hash(bytes.fromhex(h)) for h in ('', '00', '10', '2021', '3031', '40414243', '5051525354555657', '606162636465666768696a6b6c6d6e6f')]
A, B, C, D = '96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7', '5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e', \
    '6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4', 'bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b'
E, F, G, H, I = 'ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0', 'd37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7', \
    'fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125', '6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d', \
    '0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a'


@pytest.mark.parametrize('index, size, proof', [(0, 1, []), (0, 8, [A, B, C]), (5, 8, [D, E, F]), (2, 3, [G]), (1, 5, [H, B, D])])
def test_published_inclusion_proofs(index, size, proof):
    "Vectors of transparency-dev/merkle"
    assert [p.hex() for p in inclusion_proof(LEAVES[:size], index)] == proof


@pytest.mark.parametrize('old, new, proof', [(1, 1, []), (1, 8, [A, B, C]), (6, 8, [I, E, F]), (2, 5, [B, D])])
def test_published_consistency_proofs(old, new, proof):
    assert [p.hex() for p in consistency_proof(LEAVES[:new], old)] == proof


@given(st.integers(1, 70), st.data())
@settings(max_examples=150, deadline=None)
def test_every_proof_holds_and_a_changed_one_does_not(n, data):
    leaves = [leaf_hash(bytes([i])) for i in range(n)]
    i, m = data.draw(st.integers(0, n-1)), data.draw(st.integers(1, n))
    root, proof = tree_root(leaves), inclusion_proof(leaves, i)
    assert verify_inclusion(leaves[i], i, n, proof, root)
    grown = consistency_proof(leaves, m)
    assert verify_consistency(m, n, grown, tree_root(leaves[:m]), root)
    for p, holds in (proof, lambda p: verify_inclusion(leaves[i], i, n, p, root)), (grown, lambda p: verify_consistency(m, n, p, tree_root(leaves[:m]), root)):
        if not p: continue
        k, bit = data.draw(st.integers(0, len(p)-1)), data.draw(st.integers(0, 255))
        bad = bytes(b ^ (1 << bit % 8) if j == bit//8 else b for j, b in enumerate(p[k]))
        assert not holds([*p[:k], bad, *p[k+1:]]) and not holds(p[:-1]) and not holds([*p, leaves[0]])


# --- tampering ----------------------------------------------------------------------------------
def tamper(path, rnd):
    "One random edit, deletion, exchange, insertion or cut, mended so that the file agrees with itself where a careful hand could"
    have = rows(path)
    n, i = len(have), rnd.randrange(len(have))
    how = rnd.choice(['edit', 'delete', 'delete and close up', 'exchange', 'cut', 'insert', 'hash'])
    put = lambda seq, text: ('UPDATE entries SET entry=?, leaf=? WHERE seq=?', (text, leaf_hash(text.encode()), seq))
    if how == 'edit':
        text, at = have[i][1], rnd.randrange(len(have[i][1]))
        new = text[:at] + chr((ord(text[at])-31) % 90 + 32) + text[at+1:]
        sql(path, put(i, new) if rnd.random() < .5 else ('UPDATE entries SET entry=? WHERE seq=?', (new, i)))
    elif how == 'delete': sql(path, f'DELETE FROM entries WHERE seq={i}')
    elif how == 'delete and close up':
        texts = [json.dumps(json.loads(t) | dict(seq=j), sort_keys=True, separators=(',', ':')) for j, t in enumerate(t for k, (_, t) in enumerate(have) if k != i)]
        sql(path, 'DELETE FROM entries', *[('INSERT INTO entries VALUES (?,?,?)', (j, leaf_hash(t.encode()), t)) for j, t in enumerate(texts)])
    elif how == 'exchange':
        j = rnd.choice([k for k in range(n) if k != i])
        sql(path, put(i, have[j][1]), put(j, have[i][1]))
    elif how == 'cut': sql(path, f'DELETE FROM entries WHERE seq>={i}')
    elif how == 'insert':
        text = have[i][1].replace('person', 'nobody')
        sql(path, f'UPDATE entries SET seq=-seq-1 WHERE seq>={i}', 'UPDATE entries SET seq=-seq WHERE seq<0', ('INSERT INTO entries VALUES (?,?,?)', (i, leaf_hash(text.encode()), text)))
    else: sql(path, ('UPDATE entries SET leaf=? WHERE seq=?', (rnd.randbytes(32), i)))
    return how


def test_a_thousand_tamperings_are_found(tmp_path):
    log, rnd, missed, kinds = filled(tmp_path/'ledger.sqlite'), random.Random(7), [], set()
    kept = checkpoint(log)
    for k in range(1000):
        copy = shutil.copy(log.path, tmp_path/'copy.sqlite')
        how = tamper(copy, rnd)
        kinds.add(how)
        if not ledger_problems(Ledger(copy), kept): missed.append((k, how))
    assert missed == [] and len(kinds) == 7
    assert ledger_problems(log, kept) == []


def test_bytes_changed_in_the_file_never_pass_for_another_history(tmp_path):
    log, rnd = filled(tmp_path/'ledger.sqlite', 12), random.Random(3)
    kept, whole = checkpoint(log), log.path.read_bytes()
    before, found = log.entries(), 0
    for _ in range(200):
        raw = bytearray(whole)
        raw[rnd.randrange(len(raw))] ^= 1 << rnd.randrange(8)
        (tmp_path/'copy.sqlite').write_bytes(raw)
        copy = Ledger(tmp_path/'copy.sqlite')
        try: ok = not ledger_problems(copy, kept)
        except PlaybookError: ok = False
        if ok: assert copy.entries() == before  # the bit lay in a page's slack, or in the header
        else: found += 1
    assert found > 50


def test_sql_cannot_change_what_is_written(tmp_path):
    log = filled(tmp_path/'ledger.sqlite', 3)
    for s in 'UPDATE entries SET entry=1', 'DELETE FROM entries WHERE seq=0', 'REPLACE INTO entries VALUES (0, 1, 2)':
        with closing(sqlite3.connect(log.path)) as db, pytest.raises(sqlite3.IntegrityError):
            db.execute('PRAGMA recursive_triggers=1')
            db.execute(s)
    assert len(log) == 3


def test_entries_of_odd_types_are_a_sentence_and_no_traceback(tmp_path):
    log = filled(tmp_path/'ledger.sqlite', 3)
    kept = checkpoint(log)
    for value in b'\xff\xfe', '[]', '{}', 'null', 7, '{"seq": 1, "at": 3}', '\ud800':
        text = value if isinstance(value, (bytes, int)) else value.encode('utf-8', 'surrogatepass')
        shutil.copy(log.path, tmp_path/'copy.sqlite')
        raw = text if isinstance(text, bytes) else str(text).encode()
        sql(tmp_path/'copy.sqlite', ('UPDATE entries SET entry=?, leaf=? WHERE seq=1', (text, leaf_hash(raw))))
        assert ledger_problems(Ledger(tmp_path/'copy.sqlite'), kept)
        with pytest.raises(PlaybookError, match='cannot be read|cannot be vouched'): checkpoint(Ledger(tmp_path/'copy.sqlite'))


# --- processes ----------------------------------------------------------------------------------
WRITER = '''
import sys
from genai_playbook.ledger import Ledger
log = Ledger(sys.argv[1])
for i in range(int(sys.argv[3])):
    e = log.append('run', sys.argv[2], f'entry {i}', 'demo')
    print(e.seq, flush=True)
'''


def writer(path, name, n): return subprocess.Popen([sys.executable, '-c', WRITER, str(path), name, str(n)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_processes_that_begin_a_ledger_together_lose_nothing(tmp_path):
    path = tmp_path/'new'/'ledger.sqlite'
    procs = [writer(path, f'writer {i}', 25) for i in range(6)]
    outs = [p.communicate(timeout=120) for p in procs]
    assert [p.returncode for p in procs] == [0]*6, outs
    log = Ledger(path)
    assert sorted(int(s) for out, _ in outs for s in out.split()) == list(range(150))
    assert ledger_problems(log) == [] and len(log) == 150
    for i in range(6): assert [e.why for e in log.entries() if e.who == f'writer {i}'] == [f'entry {k}' for k in range(25)]


def test_a_killed_writer_leaves_whole_entries_and_all_it_was_told_of(tmp_path):
    path, seen = tmp_path/'ledger.sqlite', []
    for round_ in range(4):
        p = writer(path, f'round {round_}', 10**6)
        for _ in range(5 + 3*round_): seen.append(int(p.stdout.readline()))
        time.sleep(.003*round_)
        os.kill(p.pid, signal.SIGKILL)
        seen += [int(line) for line in p.communicate()[0].split()]
        assert ledger_problems(Ledger(path)) == []
    there = {e.seq for e in Ledger(path).entries()}  # an entry may be in it of which nobody was told any more, never the reverse
    assert seen == sorted(set(seen)) and set(seen) <= there == set(range(len(there)))
    Ledger(path).append('run', 'the next', 'goes on', 'demo')


def test_a_batch_is_written_whole_or_not_at_all(tmp_path):
    log = filled(tmp_path/'ledger.sqlite', 2)
    with pytest.raises(PlaybookError): log.extend([dict(kind='run', poc='demo', who='a', why='b', digests={}, facts={}), dict(kind='run', poc='demo', who='', why='b', digests={}, facts={})])
    assert len(log) == 2


def test_a_hundred_thousand_entries(tmp_path):
    log = Ledger(tmp_path/'ledger.sqlite')
    made = log.extend(dict(kind='run', poc='demo', who='bench', why=f'entry {i}', digests=dict(model=f'{i:064x}'), facts={}) for i in range(100_000))
    cp = checkpoint(log)
    assert len(made) == len(log) == cp.size == 100_000 and ledger_problems(log, cp) == []


# --- bad input ----------------------------------------------------------------------------------
def unchanged(path, work, match):
    before = path.read_bytes() if path.exists() else None
    with pytest.raises(PlaybookError, match=match) as e: work()
    assert '\n' not in str(e.value)
    assert (path.read_bytes() if path.exists() else None) == before


def test_foreign_files_are_refused_and_left_alone(tmp_path):
    other, text, newer = tmp_path/'other.sqlite', tmp_path/'text.sqlite', tmp_path/'newer.sqlite'
    with closing(sqlite3.connect(other)) as db: db.execute('CREATE TABLE entries (x)')
    text.write_text('poc: demo\n'*200)
    filled(newer, 1)
    sql(newer, 'PRAGMA user_version=2')
    for path, why in (other, 'no ledger'), (text, 'damaged or no ledger'), (newer, 'another version'):
        unchanged(path, lambda path=path: Ledger(path).append('run', 'a', 'b', 'demo'), why)
        unchanged(path, lambda path=path: Ledger(path).entries(), why)
        unchanged(path, lambda path=path: checkpoint(Ledger(path)), why)
    unchanged(tmp_path/'none.sqlite', lambda: checkpoint(Ledger(tmp_path/'none.sqlite')), 'There is no ledger')
    unchanged(tmp_path/'none.sqlite', lambda: Ledger(text/'below'/'x.sqlite').append('run', 'a', 'b', 'demo'), 'cannot be written')
    assert Ledger(tmp_path/'none.sqlite').entries() == []


def test_a_folder_without_rights_can_still_be_read(tmp_path):
    log = filled(tmp_path/'there'/'ledger.sqlite', 3)
    os.chmod(log.path, 0o444)
    os.chmod(log.path.parent, 0o555)
    try: assert len(log.entries()) == 3 and ledger_problems(log) == []
    finally: os.chmod(log.path.parent, 0o755)


def test_a_clock_that_goes_back_is_refused(tmp_path):
    log = filled(tmp_path/'ledger.sqlite', 3)
    unchanged(log.path, lambda: Ledger(log.path, lambda: START-timedelta(days=1)).append('run', 'a', 'b', 'demo'), 'set the clock')
    same = Ledger(log.path, lambda: datetime.fromisoformat(log.entries()[-1].at))
    assert same.append('run', 'a', 'the same instant', 'demo').seq == 3


@pytest.mark.parametrize('change', [dict(kind='decison'), dict(who=''), dict(why='  '), dict(poc=''), dict(who=None), dict(facts=dict(x=object()))])
def test_half_an_entry_is_refused(tmp_path, change):
    log = filled(tmp_path/'ledger.sqlite', 1)
    draft = dict(kind='decision', poc='demo', who='a', why='b', digests={}, facts={}) | change
    unchanged(log.path, lambda: log.extend([draft]), '.')


@given(st.text(), st.text(min_size=1), st.dictionaries(st.text(), st.none() | st.booleans() | st.floats() | st.text() | st.integers()))
@settings(max_examples=60, deadline=None)
def test_any_text_comes_back_as_it_was(tmp_path_factory, who, why, facts):
    log = Ledger(tmp_path_factory.mktemp('any')/'ledger.sqlite')
    try: e = log.extend([dict(kind='run', poc='demo', who=who, why=why, digests={}, facts=facts)])[0]
    except PlaybookError: return
    assert log.entries() == [e] and ledger_problems(log, checkpoint(log)) == [] and receipt_problem(receipt(log, 0)) == ''


# --- keys ---------------------------------------------------------------------------------------
def pem(tmp_path, key, name='key.pem', password=None, public=False):
    from cryptography.hazmat.primitives import serialization as s
    lock = s.BestAvailableEncryption(password) if password else s.NoEncryption()
    raw = key.public_key().public_bytes(s.Encoding.PEM, s.PublicFormat.SubjectPublicKeyInfo) if public else key.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, lock)
    (tmp_path/name).write_bytes(raw)
    return tmp_path/name


def test_keys_that_are_none_are_one_sentence(tmp_path):
    from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
    key = ed25519.Ed25519PrivateKey.generate()
    (tmp_path/'empty.pem').write_bytes(b'')
    (tmp_path/'half.pem').write_bytes(pem(tmp_path, key).read_bytes()[:60])
    bad = [tmp_path/'none.pem', tmp_path, tmp_path/'empty.pem', tmp_path/'half.pem', pem(tmp_path, key, 'locked.pem', b'secret-word'), pem(tmp_path, key, 'public.pem', public=True),
           pem(tmp_path, rsa.generate_private_key(65537, 2048), 'rsa.pem')]
    for path in bad:
        with pytest.raises(PlaybookError) as e: load_key(path)
        assert '\n' not in str(e.value) and 'secret-word' not in str(e.value) and 'BEGIN' not in str(e.value)
    with pytest.raises(PlaybookError): load_key(pem(tmp_path, key), private=False)


@pytest.mark.parametrize('kind', ['ed25519', 'P-256', 'P-384'])
def test_a_signature_holds_for_its_key_and_for_nothing_else(tmp_path, kind):
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519
    make = {'ed25519': ed25519.Ed25519PrivateKey.generate, 'P-256': lambda: ec.generate_private_key(ec.SECP256R1()), 'P-384': lambda: ec.generate_private_key(ec.SECP384R1())}[kind]
    key, other, log = make(), make(), filled(tmp_path/'ledger.sqlite', 5)
    private, public = load_key(pem(tmp_path, key)), load_key(pem(tmp_path, key, 'public.pem', public=True), private=False)
    cp = checkpoint(log, private)
    assert check_signature(cp, public) == '' and 'another key' in check_signature(cp, other.public_key())
    for change in dict(size=4), dict(root='0'*64), dict(at='2027'), dict(signature='AAAA'), dict(signature='?'): assert 'does not hold' in check_signature(Checkpoint(**cp.to_dict() | change), public)
    assert Checkpoint.from_dict(json.loads(json.dumps(cp.to_dict()))) == cp


@pytest.mark.parametrize('d', [{}, dict(size=-1, root='0'*64, at=''), dict(size=True, root='0'*64, at=''), dict(size=1, root='xyz', at=''), dict(size=1, root=None, at=''), [], 'x'])
def test_a_checkpoint_of_another_kind(d):
    with pytest.raises(PlaybookError, match='no checkpoint'): Checkpoint.from_dict(d)


# --- questions ----------------------------------------------------------------------------------
def test_receipts_and_growth(tmp_path):
    log = filled(tmp_path/'ledger.sqlite', 17)
    old = checkpoint(log)
    filled(log.path, 14, Clock(START+timedelta(days=1)))
    slip = json.loads(json.dumps(receipt(log, 9)))
    assert receipt_problem(slip) == ''
    for bad in slip | dict(entry=slip['entry'] | dict(why='x')), slip | dict(proof=slip['proof'][1:]), slip | dict(entry=slip['entry'] | dict(seq=8)), {}, dict(slip, proof=['zz']): assert receipt_problem(bad)
    g = growth_proof(log, old)
    assert verify_consistency(17, 31, [bytes.fromhex(p) for p in g['proof']], bytes.fromhex(old.root), bytes.fromhex(g['new']['root']))
    with pytest.raises(PlaybookError, match='was cut'): growth_proof(filled(tmp_path/'short.sqlite', 3), old)
    with pytest.raises(PlaybookError, match='no entry 31'): receipt(log, 31)


def test_a_later_no_go_withdraws_an_approval_and_other_pocs_do_not_count(tmp_path):
    clock = Clock()
    log, m = Ledger(tmp_path/'ledger.sqlite', clock), dict(model='aa', evidence='ee')
    log.append('decision', 'owner', 'good', 'demo', m, go=True)
    log.append('decision', 'owner', 'found a leak', 'demo', m, go=False)
    log.append('promote', 'job', 'no one looked', 'demo', m)
    log.append('promote', 'job', 'another POC', 'other', dict(model='bb'))
    now = served_at(log, 'demo', clock())
    assert now.entry.digests['model'] == 'aa' and now.approval is None and 'nobody' in str(now)
    assert served_at(log, 'demo', START) is None and served_at(log, 'unknown', clock()) is None


def test_two_signatures_where_two_are_needed(tmp_path):
    log, m = Ledger(tmp_path/'ledger.sqlite', Clock()), dict(model='aa', evidence='ee')
    log.append('decision', 'A', 'fine', 'demo', m, go=True, needed=2)
    log.append('promote', 'job', 'too early', 'demo', m)
    assert served_at(log, 'demo', log.clock()).approval is None
    log.append('decision', 'B', 'fine', 'demo', m, go=True, needed=2)
    log.append('promote', 'job', 'again', 'demo', m)
    assert served_at(log, 'demo', log.clock()).approval.who == 'B'


def test_waivers_end_with_their_day(tmp_path):
    log = Ledger(tmp_path/'ledger.sqlite', Clock())
    log.append('waiver', 'owner', 'known, small', 'demo', code='SEC01', until='2026-03-31')
    active = lambda *d: [e.facts['code'] for e in active_waivers(log.entries(), date(*d))]
    assert active(2026, 3, 31) == ['SEC01'] and active(2026, 4, 1) == [] and active(2026, 3, 1) == []


def test_an_entry_is_plain_data():
    assert set(json.loads(Entry(0, 'x', 'run', 'demo', 'a', 'b').to_bytes())) == {'seq', 'at', 'kind', 'poc', 'who', 'why', 'digests', 'facts'}
