"Data as they really come: empty, one row, wrong types, damaged, leaked"
import random
from datetime import datetime, timezone

import numpy as np
import pandas as pd
import pytest

from genai_playbook.card import load_card
from genai_playbook.errors import PlaybookError
from genai_playbook.quality import bad_rows, check_schema, damaged, duplicates, examine, infer_schema, leakage, likeness, load_schema, missing, near_duplicates, outliers, save_schema, shingles, signatures, stale, table, thin

WORDS = 'where when parcel order delivery late refund money address street house damage photo person call today tomorrow monday friday please thanks hello broken lost shop open'.split()


def sentence(rng, n=20): return ' '.join(rng.choices(WORDS, k=n))


@pytest.mark.parametrize('df', [pd.DataFrame(dict(prompt=pd.Series([], dtype='str'), reference=pd.Series([], dtype='str'))), pd.DataFrame(dict(prompt=['x'], reference=['y'])), pd.DataFrame(dict(prompt=[None, None], reference=['y', None])),
                                pd.DataFrame(dict(prompt=['', ' '], context=['a', 'a'], score=[np.nan, np.inf])), pd.DataFrame(dict(prompt=['a']*50))])
def test_small_and_empty_data(df):
    found = examine(df, list(df['prompt'].fillna('')), ['group'], [])
    assert len(table(found, len(df))) == len(found) and bad_rows(found) <= set(range(1, len(df)+1))
    assert check_schema(df, infer_schema(df)) == []


def test_planted_defects_are_found_with_their_rows():
    rng = random.Random(0)
    texts = [sentence(rng) for _ in range(500)]
    df = pd.DataFrame(dict(prompt=texts, reference=['ok']*500, group=['a']*497+['b']*3, timestamp=pd.to_datetime(['2026-01-01']*500, utc=True)))
    df.loc[3, 'prompt'] = None
    df.loc[5, 'prompt'] = 'CafÃ© ist zu spÃ¤t'
    df.loc[7, 'prompt'] = df.loc[6, 'prompt'].upper()+'!'
    df.loc[9, 'prompt'], df.loc[9, 'reference'] = df.loc[8, 'prompt'], 'not ok'
    df.loc[11, 'prompt'] = df.loc[10, 'prompt']+' now'
    df.loc[13, 'prompt'] = 'x '*4000
    trained = [df.loc[20, 'prompt'], df.loc[21, 'prompt']+' please', 'something else']
    found = examine(df, list(df['prompt'].fillna('')), ['group'], trained, days=30, now=datetime(2026, 3, 3, tzinfo=timezone.utc))
    by = {(f.check, f.column): f.rows for f in found}
    assert by['missing', 'prompt'] == (4,) and 6 in by['encoding', 'prompt'] and by['duplicate', 'prompt'] == (8, 10) and by['label conflict', 'reference'] == (9, 10)
    assert by['near-duplicate', 'prompt'] == (12,) and by['leakage', 'prompt'] == (21,) and by['near leakage', 'prompt'] == (22,)
    assert 14 in by['outlier', 'prompt'] and by['coverage', 'group'] == (498, 499, 500) and by['staleness', 'timestamp'] == ()
    assert bad_rows(found) == {4, 6, 9, 10, 21}


def test_minhash_estimates_likeness():
    rng = random.Random(1)
    for share in (.5, .8, .95):
        a = [str(i) for i in range(400)]
        b = [w if rng.random() < share else f'x{w}' for w in a]
        x, y = shingles(' '.join(a), 1), shingles(' '.join(b), 1)
        sig = signatures([x, y])
        assert abs((sig[0] == sig[1]).mean()-likeness(x, y)) < .2


def test_near_duplicates_recall_and_precision():
    rng = random.Random(2)
    base = [sentence(rng, 40) for _ in range(300)]
    copies = [t+' thanks' for t in base[:100]]
    found = near_duplicates(base+copies)
    assert len(found) >= 97 and all(i >= 300 and j == i-300 for i, j, _ in found)


def test_four_thousand_rows_cost_little():
    import time
    rng = random.Random(3)
    texts = [sentence(rng, 30) for _ in range(4000)]
    start = time.process_time()
    near_duplicates(texts)
    assert time.process_time()-start < 2 # CPU, not wall clock


def test_identical_texts_do_not_explode():
    assert len(near_duplicates(['the same long sentence again and again and again']*20_000)) == 19_999


@pytest.mark.parametrize('text,hit', [('Ã¤', True), ('Ärger über Ölpreise, naïve café', False), ('a &amp; b', True), ('AT&T; R&D', False), ('\x07', True), ('\ttab\nline', False), ('â€™s', True), ('10 € · “quote”', False), ('A\ufffdB', True)])
def test_damage(text, hit): assert bool(damaged(pd.DataFrame(dict(prompt=[text])), ['prompt'])) == hit


def test_conflicts_need_the_same_input():
    assert duplicates(['a', 'b'], ['x', 'y']) == [] and [f.check for f in duplicates(['a', 'A '], ['x', 'x'])] == ['duplicate']
    assert leakage([''], ['']) == [] and leakage(['a'], []) == []


def test_a_schema_survives_its_file(tmp_path):
    df = load_card('demo').evaluation(300)
    schema = infer_schema(df)
    again = load_schema(save_schema(schema, tmp_path/'schema.json'))
    assert check_schema(df, again) == [] and save_schema(again, tmp_path/'b.json').read_text() == (tmp_path/'schema.json').read_text()
    worse = df.assign(intent=df['intent'].where(df.index != 4, 'rant')).drop(columns='region')
    assert {(f.column, f.rows) for f in check_schema(worse, again)} == {('intent', (5,)), ('region', ())}
    (tmp_path/'bad.json').write_text('{"columns": 3}')
    for bad in ('bad.json', 'none.json'):
        with pytest.raises(PlaybookError, match='schema'): load_schema(tmp_path/bad)


def test_numbers_far_out_and_thin_groups():
    df = pd.DataFrame(dict(score=[*np.random.default_rng(0).normal(5, 1, 200), 900.], group=['a']*200+['b']))
    assert outliers(df, ['score'])[0].rows == (201,) and thin(df, ['group'])[0].rows == (201,)
    assert missing(df, ['score']) == [] and stale(pd.Series(pd.to_datetime([None], utc=True)), 1.) == []


def test_the_demo_data_are_clean():
    card = load_card('demo')
    df = card.evaluation()
    assert not bad_rows(examine(df, card.prompts(df), card.slices()))
