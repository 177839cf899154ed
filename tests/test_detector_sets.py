"The labelled sets of the detectors are what their README says: well formed, right check digits, disjoint parts, unchanged since they were written."
import hashlib, json, re, unicodedata
from collections import Counter
from importlib.resources import files

import pytest

ROOT = files('genai_playbook')/'data'/'detectors'
NAMES, PARTS = ('refusal', 'pii', 'secrets', 'profanity', 'injection'), ('dev', 'held')
KINDS = {
    'pii': {'email', 'iban', 'card', 'ssn', 'phone', 'ip', 'url'},
    'secrets': {'aws_key', 'github_token', 'slack_token', 'private_key', 'jwt', 'password_assignment', 'generic_api_key', 'bearer', 'connection_string'},
    'profanity': {'insult', 'swearing', 'threat', 'leetspelt', 'boundary', 'clean_lookalike', 'clean'},
    'injection': {'direct', 'indirect', 'extraction', 'roleplay', 'prefix', 'many_shot', 'exfiltration', 'tool_abuse', 'multilingual', 'benign_hard', 'benign'}}
FIELDS = {
    'refusal': {'id', 'source', 'prompt', 'text', 'label'}, 'pii': {'id', 'text', 'spans', 'frame'}, 'secrets': {'id', 'text', 'spans', 'frame'},
    'profanity': {'id', 'text', 'label', 'kind'}, 'injection': {'id', 'text', 'label', 'kind'}}
LEAST = {'refusal': (300, 400), 'pii': (300, 500), 'secrets': (120, 200), 'profanity': (120, 200), 'injection': (300, 400)}


def rows(name, part):
    "The rows of one file."
    return [json.loads(line) for line in (ROOT/f'{name}.{part}.jsonl').read_text(encoding='utf-8').splitlines()]


def masked(row):
    "The text in lower case with spans and numbers replaced, so that a filled slot does not hide a repeated sentence."
    text = row['text']
    for s in reversed(row.get('spans', [])): text = f"{text[:s['start']]}§{text[s['end']:]}"
    return re.sub(r'[\w/+-]*\d[\w/+-]*', '0', unicodedata.normalize('NFKC', text).lower())


def shingles(text):
    "Triples of neighbouring words; of fewer than five words only the text itself."
    w = re.findall(r'\w+|§', text)
    return {tuple(w[i:i + 3]) for i in range(len(w) - 2)} if len(w) >= 5 else {text}


def likeness(a, b):
    "Jaccard likeness of two sets."
    return len(a & b)/len(a | b) if a | b else 1.0


def luhn(digits):
    "Whether `digits` satisfy the Luhn check."
    return sum(d if i % 2 == 0 else sum(divmod(2*d, 10)) for i, d in enumerate(map(int, reversed(digits)))) % 10 == 0


def mod97(iban):
    "Whether an IBAN satisfies ISO 7064 mod 97-10."
    s = re.sub(r'\s', '', iban).upper()
    return int(''.join(str(int(c, 36)) for c in s[4:] + s[:4])) % 97 == 1


def spans(name, part):
    "Every span of one file."
    return [s for r in rows(name, part) for s in r['spans']]


each = pytest.mark.parametrize('name', NAMES)
both = pytest.mark.parametrize('part', PARTS)


@each
@both
def test_rows_have_the_documented_fields(name, part):
    for r in rows(name, part):
        assert set(r) == FIELDS[name], r['id']
        assert r['text'].strip() and r['id'].startswith(f'{name}-{part}-')
        if 'label' in r: assert isinstance(r['label'], bool)
        if 'kind' in r: assert r['kind'] in KINDS[name], r['id']


@each
def test_ids_and_texts_are_unique(name):
    both_parts = [r for part in PARTS for r in rows(name, part)]
    assert max(Counter(r['id'] for r in both_parts).values()) == 1
    key = lambda r: (r.get('prompt', ''), ' '.join(r['text'].lower().split()))
    assert [k for k, n in Counter(map(key, both_parts)).items() if n > 1] == []


@each
def test_parts_are_large_enough(name):
    assert tuple(len(rows(name, p)) >= n for p, n in zip(PARTS, LEAST[name])) == (True, True)


@each
def test_held_has_no_near_duplicate_in_dev(name):
    dev = {r['id']: shingles(masked(r)) for r in rows(name, 'dev')}
    held = {r['id']: shingles(masked(r)) for r in rows(name, 'held')}
    near = [(h, d) for h in held for d in dev if likeness(held[h], dev[d]) >= 0.5]
    assert near == []


@pytest.mark.parametrize('name', ['refusal', 'injection', 'profanity'])
def test_held_has_no_near_duplicate_in_what_was_trained_on(name):
    held = [shingles(masked(r)) for r in rows(name, 'held')]
    at = {}
    for i, h in enumerate(held):
        for g in h: at.setdefault(g, []).append(i)
    near = set()
    for r in rows(name, 'train'):
        mine = shingles(masked(r))
        near |= {r['frame'] for i in {i for g in mine for i in at.get(g, ())} if likeness(mine, held[i]) >= 0.5 and len(mine) > 3}
    assert sorted(near) == [] # frames of the training texts only: no held text is shown


@pytest.mark.parametrize('name', ['pii', 'secrets'])
@both
def test_offsets_give_the_value(name, part):
    for r in rows(name, part):
        end = 0
        for s in r['spans']:
            assert set(s) == {'start', 'end', 'kind', 'value'} and s['kind'] in KINDS[name]
            assert end <= s['start'] < s['end'] and r['text'][s['start']:s['end']] == s['value'], r['id']
            end = s['end']


@both
def test_check_digits_of_pii(part):
    for s in spans('pii', part):
        if s['kind'] == 'card': assert luhn(re.sub(r'\D', '', s['value'])), s
        if s['kind'] == 'iban': assert mod97(s['value']), s
        if s['kind'] == 'ssn':
            area, group, serial = re.split('[ -]', s['value'])
            assert area not in ('000', '666') and area < '900' and group != '00' and serial != '0000', s


@both
def test_texts_without_spans_hold_no_valid_card_or_iban(part):
    clean = [r for r in rows('pii', part) if not r['spans']]
    cards = [m for r in clean for m in re.findall(r'(?<![\w.])\d(?:[ .-]?\d){11,18}(?!\w)', r['text']) if luhn(re.sub(r'\D', '', m))]
    assert [m for m in cards if not (m.startswith('35') and len(m) == 15)] == []
    assert [m for r in clean for m in re.findall(r'\b[A-Z]{2}\d{2}[A-Z0-9]{11,30}\b', r['text'].replace(' ', '')) if mod97(m)] == []


def test_held_pii_is_balanced():
    counts = Counter(s['kind'] for s in spans('pii', 'held'))
    assert all(counts[k] >= (120 if k == 'phone' else 60) for k in KINDS['pii']), counts
    held = rows('pii', 'held')
    assert sum(not r['spans'] for r in held) >= 0.4*len(held)


@both
def test_labels_are_balanced(part):
    share = {n: sum(r['label'] for r in rows(n, part))/len(rows(n, part)) for n in ('refusal', 'profanity', 'injection')}
    assert all(0.35 <= s <= 0.6 for s in share.values()), share
    benign = [r for r in rows('injection', part) if not r['label']]
    assert sum(r['kind'] == 'benign_hard' for r in benign) >= 0.6*len(benign)


def test_held_refusals_speak_in_styles_that_dev_never_shows():
    dev, held = ({r['source'] for r in rows('refusal', p)} for p in PARTS)
    assert len(dev | held) >= 8 and len(held - dev) >= 4


@pytest.mark.parametrize('name', ['pii', 'secrets'])
def test_frames_are_many_and_never_shared(name):
    dev, held = ({r['frame'] for r in rows(name, p)} for p in PARTS)
    assert min(len(dev), len(held)) >= 60 and not dev & held


def test_every_kind_of_secret_is_there():
    assert all(set(Counter(s['kind'] for s in spans('secrets', p))) == KINDS['secrets'] for p in PARTS)


def test_files_are_those_that_were_written():
    digests = json.loads((ROOT/'digests.json').read_text())
    assert set(digests) == {f'{n}.{p}.jsonl' for n in NAMES for p in PARTS} | {'README.md'}
    assert {f: hashlib.sha256((ROOT/f).read_bytes()).hexdigest() for f in digests} == digests
    assert sum((ROOT/f).stat().st_size for f in digests) < 1_000_000
