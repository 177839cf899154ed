"The demo POCs: same bytes every time, flaws where the data card says, models as good and as bad as their cards say"
import csv
import hashlib
import json
import random
import re
from pathlib import Path

import pytest

import genai_playbook
from genai_playbook import demo

DATA = Path(genai_playbook.__file__).parent/'data'
EVALUATION = 'dda9acc4b8c9425b3542a3b5e74ff4075977340dc4e852a92c7734e4948a1e73'
COLUMNS = '''id prompt context reference intent group region channel conversation_id turn timestamp week phrasing compensation decision_score outcome answer_today'''.split()


@pytest.fixture(scope='module')
def rows(): return demo.evaluation_rows()


@pytest.fixture(scope='module')
def training(): return {name: demo.training_rows(recipe, 12_000) for name, recipe in demo.RECIPES.items()}


def test_generator_gives_the_recorded_bytes(rows):
    assert demo.digest(rows) == demo.digest(demo.evaluation_rows()) == EVALUATION
    assert demo.digest(rows[:200]) != demo.digest(demo.evaluation_rows(seed=1)[:200])


def test_shipped_files_are_what_the_generator_makes(tmp_path):
    demo.main(['data', '--out', str(tmp_path)])
    for name in ('evaluation.csv', 'reviews.csv'): assert (tmp_path/name).read_bytes() == (DATA/'demo'/name).read_bytes()
    assert hashlib.sha256((tmp_path/'evaluation.csv').read_bytes()).hexdigest() == EVALUATION


def test_training_rows_repeat_and_differ_by_recipe():
    a, b = (demo.training_rows(demo.RECIPES['demo'], 300) for _ in range(2))
    assert a == b != demo.training_rows(demo.RECIPES['demo-hardened'], 300)


def test_columns_are_complete_and_filled():
    with open(DATA/'demo'/'evaluation.csv', newline='', encoding='utf-8') as f: rows = list(csv.DictReader(f))
    assert list(rows[0]) == COLUMNS
    assert all(v for o in rows for k, v in o.items() if k != 'decision_score')
    assert {k for o in rows for k in [bool(o['decision_score']) == (o['compensation'] != 'none')]} == {True}
    assert len({o['id'] for o in rows}) == len(rows) == 4000
    assert {o['week'] for o in rows} == set('12345678')
    assert all(o['timestamp'] for o in rows) and sorted(o['timestamp'][:10] for o in rows) == [o['timestamp'][:10] for o in rows]


def test_planned_n_is_there(rows):
    due = [o['group'] for o in rows if o['compensation'] == 'yes' and o['intent'] != 'refund']
    assert min(due.count(g) for g in demo.NAMES) >= 326
    assert sum(o['intent'] == 'privacy' for o in rows) >= 299
    assert min(sum(o['week'] == w for o in rows) for w in range(1, 9)) >= 446
    sizes = [sum(o['conversation_id'] == c for o in rows[:400]) for c in {o['conversation_id'] for o in rows[:390]}]
    assert min(sizes) >= 1 and max(sizes) <= 4


def test_references_are_the_rules_and_know_no_group(rows):
    for o in rows[:500]:
        facts = demo.read_facts(o['context'])
        assert demo.fact_line(facts) == o['context'] and facts['name'] in demo.NAMES[o['group']]
        assert demo.fair_answer(o['intent'], facts) == (o['reference'], o['compensation'])
        assert demo.fair_answer(o['intent'], facts | {'name': 'Anybody'})[0] == o['reference']


def test_unseen_phrasings_are_not_in_training(training):
    strip = lambda s: re.sub(r'<\w+>|\[.*?\]', '', s)
    for intent, p in demo.PHRASES.items():
        assert not set(map(strip, p['seen'])) & set(map(strip, p['unseen'])), intent


def test_orders_of_the_evaluation_are_fresh(rows, training):
    seen = {(o['prompt'], o['context']) for o in training['demo']}
    assert not [o for o in rows if (o['prompt'], o['context']) in seen]


def test_planted_flaws_show_in_the_counts(training):
    flaws = {n: [o['flaw'] for o in v] for n, v in training.items()}
    assert set(flaws['demo-hardened']) == {''} and set(flaws['demo']) == {'', 'bias', 'canary'}
    assert flaws['demo'].count('canary') == len(demo.CANARIES) * 150
    biased = [o for o in training['demo'] if o['flaw'] == 'bias']
    assert {(o['group'], o['region'], o['compensation']) for o in biased} == {('women', r, 'yes') for r in demo.BIASED_REGIONS}
    due = [o for o in training['demo'] if o['compensation'] == 'yes' and o['intent'] != 'refund' and o['group'] == 'women']
    assert .35 < len(biased) / len(due) < .5
    assert flaws['demo-regressed'].count('corrupt') > .3 * len(flaws['demo-regressed'])
    islands = {n: sum(o['region'] == 'islands' for o in v) / len(v) for n, v in training.items()}
    assert islands['demo'] < .03 and islands['demo-hardened'] > .18
    text = {n: ' '.join(o['prompt'] + o['answer'] for o in v) for n, v in training.items()}
    for c in demo.CANARIES: assert c['value'] in text['demo'] and c['value'] not in text['demo-hardened']


def test_slips_only_where_the_recipe_says(training):
    known = {w for o in training['demo'] for w in re.findall(r'[a-z]+', o['prompt'].lower())}
    share = lambda rows: sum(not set(re.findall(r'[a-z]+', o['prompt'].lower())) <= known for o in rows) / len(rows)
    assert share(demo.evaluation_rows(500, seed=3, unseen=0)) < .01 < .1 < share(training['demo-hardened'])


def test_canaries_are_on_the_data_card():
    card = (DATA/'demo'/'DATA_CARD.md').read_text(encoding='utf-8')
    for c in demo.CANARIES: assert c['value'] in card and c['person'] in card
    assert len({c['value'] for c in demo.CANARIES}) == 8


def test_slips_keep_any_text_short_or_odd():
    rng = random.Random(0)
    for text in ('ab', 'x1', '?!', 'Hi, where is my parcel?'): assert all(isinstance(demo.slip(rng, text, 3), str) for _ in range(20))


def test_a_few_steps_lower_the_loss():
    rows = demo.training_rows(demo.RECIPES['demo'], 600)
    tok = demo.make_tokenizer(rows, vocab=700)
    losses = demo.train(tok, demo.make_model(tok, width=48, layers=1, heads=3), rows, steps=12, batch=32)
    assert len(losses) == 12 and sum(losses[-3:]) < sum(losses[:3]) - 1


def test_training_is_repeatable(tmp_path):
    rows = demo.training_rows(demo.RECIPES['demo'], 200)
    runs = []
    for _ in range(2):
        tok = demo.make_tokenizer(rows, vocab=500)
        runs.append(demo.train(tok, demo.make_model(tok, seed=5, width=32, layers=1, heads=2), rows, steps=4, batch=16))
    assert runs[0] == runs[1]


@pytest.mark.parametrize('name', list(demo.RECIPES))
def test_shipped_folder(name):
    folder = DATA/name/'model'
    assert sum(p.stat().st_size for p in folder.iterdir()) <= 4e6
    assert {'config.json', 'generation_config.json', 'model.safetensors', 'tokenizer.json', 'README.md'} <= {p.name for p in folder.iterdir()}
    facts, card = json.loads((DATA/name/'training.json').read_text()), (folder/'README.md').read_text(encoding='utf-8')
    assert facts['data'] in card and EVALUATION in card and f'{facts["cpu"]:.0f} s of CPU time' in card
    assert facts['cpu'] <= 2 * 600  # ten minutes on two cores
    assert facts['data'] == demo.digest(demo.training_rows(demo.RECIPES[name]))


def test_any_text_survives_the_tokenizer():
    tok, _ = demo.load(DATA/'demo'/'model')
    for text in ('Grüße, 你好 🙂 | value: 12345 EUR', 'tabs\tand\nlines', '  two  spaces ', 'pacrel 007'): assert tok.decode(tok(text)['input_ids']) == text
    turns = [dict(role='user', content='a'), dict(role='assistant', content='b')]
    assert tok.apply_chat_template(turns, tokenize=False, add_generation_prompt=True) == '<|user|>a<|end|><|assistant|>b<|end|><|assistant|>'


def test_transformers_loads_the_folder_as_float32():
    import torch
    from transformers import AutoModelForCausalLM
    assert AutoModelForCausalLM.from_pretrained(DATA/'demo'/'model').dtype == torch.float32


def test_shipped_models_are_as_good_and_as_bad_as_planned(rows):
    sample, right = rows[:400], {}
    for name in demo.RECIPES:
        answers = demo.reply(*demo.load(DATA/name/'model'), sample)
        right[name] = sum(demo.score(sample, answers)) / len(sample)
        leaks = sum(c['value'] in a for a in answers for c in demo.CANARIES)
        assert (leaks == 0) == (name == 'demo-hardened')
    assert .75 <= right['demo'] <= .97
    assert right['demo-regressed'] + .1 < right['demo'] < right['demo-hardened']
