"Metrics: nasty texts, properties, options that are wrong, and what a card may say"
import json
import math
import random
import sys
from collections import namedtuple
from decimal import Decimal
from functools import partial
from types import ModuleType, SimpleNamespace

import jsonschema
import numpy as np
import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from genai_playbook import metrics as M
from genai_playbook.card import CardError, card_schema, parse_card
from genai_playbook.checking import check_instruments
from genai_playbook.errors import PlaybookError
from genai_playbook.metrics import METRICS, NotAvailable, as_spec, metric, row_scores, scorer
from genai_playbook.metrics_model import choice, corpus_perplexity, perplexity
from genai_playbook.metrics_repeats import over_tries, pass_at_k, pass_hat_k
from genai_playbook.metrics_structured import as_decimal, json_valid, numeric_match, quantities, refusal, regex_match
from genai_playbook.metrics_text import common_subsequence, rouge_l
from genai_playbook.asking import solved
from genai_playbook.success import Section, metric_table

Found = namedtuple('Found', 'total tokens')
TEXT = ['exact_match', 'normalised_match', 'token_f1', 'rouge_l', 'bleu', 'chrf', 'numeric_match', 'refusal', 'words', 'characters']
NASTY = ['x', '…', '🙂👩‍👩‍👧', 'ﬁ Straße İ', 'مرحبا ١٢٫٥', '東京は24度', '\x00', 'a\u0301', '-', '.', '$', '%', '{}', 'NaN', '1e999', '1,2,3', '(' * 50, '\\', '\u202e24', '١٢']
nan = lambda xs: [x != x for x in xs]


# --- texts ----------------------------------------------------------------------------------------
def lcs(a, b):
    row = [0] * (len(b) + 1)
    for x in a:
        old, row = row, [0]
        for j, y in enumerate(b): row.append(old[j] + 1 if x == y else max(old[j + 1], row[j]))
    return row[-1]


@given(st.lists(st.integers(0, 3), max_size=90), st.lists(st.integers(0, 3), max_size=90))
@settings(deadline=None)
def test_common_subsequence_is_that_of_the_table(a, b): assert common_subsequence(a, b) == lcs(a, b) == common_subsequence(b, a)


def test_scores_of_any_text_are_in_range_and_perfect_on_itself():
    texts = [(a, b) for a in NASTY for b in NASTY]
    for name in TEXT:
        s = scorer(name)
        for a, b in texts:
            score = s.fn(a, b) if len(s.reads) == 2 else s.fn(a)
            assert s.low <= score <= s.high or name == 'numeric_match' and score != score, (name, a, b)
    for name in ('exact_match', 'normalised_match', 'token_f1', 'rouge_l'): assert all(METRICS[name].fn(t, t) == 1 for t in [*NASTY, ''])
    assert METRICS['chrf'].fn('東京は24度', '東京は24度') == METRICS['bleu'].fn('a b c d', 'a b c d') == 1


@pytest.mark.parametrize('name', TEXT)
def test_row_scores_of_empty_missing_unicode_and_broken_rows(name):
    answers, references = ['', ' \n', None, float('nan'), 'é 5 🙂', 'half \ud83d 5', '5'], ['5', '5', '5', '5', 'É 5 🙂', '5', None]
    scores = row_scores(name, answers, references)
    assert len(scores) == 7 and nan(scores)[:6] == [True] * 4 + [False] * 2
    assert nan(scores)[6] == ('references' in scorer(name).reads)
    assert row_scores(name, [], []) == [] and nan(row_scores(name, [None], [None])) == [True]


def test_row_scores_want_a_reference_for_each_answer():
    with pytest.raises(PlaybookError, match='2 answers meet 1 references'): row_scores('exact_match', ['a', 'b'], ['a'])
    with pytest.raises(NotAvailable, match='reads the references'): row_scores('exact_match', ['a'], None)


def test_huge_texts():
    rnd = random.Random(0)
    a, b = (''.join(rnd.choice('ab 1.,') for _ in range(20_000)) for _ in range(2))
    words = [' '.join(rnd.choice('abcdef') for _ in range(10_000)) for _ in range(2)]
    assert common_subsequence(words[0].split()[:300], words[1].split()[:300]) == lcs(words[0].split()[:300], words[1].split()[:300])
    assert .5 < rouge_l(*words) < .8
    for name in TEXT: assert len(row_scores(name, [a, words[0]], [b, words[1]])) == 2
    for t in ('1,' * 10_000, '1 ' * 10_000, '123 ' * 5_000, '€' * 20_000, '1' * 20_000, '1 ' + 'a/' * 10_000, "i'm so " * 3_000): quantities(t), refusal(t)


# --- numbers --------------------------------------------------------------------------------------
@given(st.integers(0, 10**9), st.integers(0, 99))
@settings(deadline=None)
def test_every_spelling_of_an_amount_is_the_same(whole, cents):
    value, plain = Decimal(f'{whole}.{cents:02}'), f'{whole}.{cents:02}'
    english = f'{whole:,}.{cents:02}'
    german = english.translate(str.maketrans(',.', '.,'))
    for text in (plain, plain.replace('.', ','), english, german, english.replace(',', '\u202f'), english.replace(',', "'"), german.replace('.', ' ')): assert as_decimal(text) == value == as_decimal(text, ','), text
    for text in (f'{english} EUR', f'€{german}', f'EUR {plain}', f'-{plain} €'): assert numeric_match(text, f'{plain} EUR') == (not text.startswith('-') or value == 0), text
    assert not numeric_match(f'{whole + 1}.{cents:02} EUR', f'{plain} EUR') and not numeric_match(plain, f'{plain} EUR')


@pytest.mark.parametrize('text, found', [
    ('', []), ('none', []), ('24.12.2026', []), ('v1.2.3', []), ('192.168.0.100', []), ('B2B', []), ('1,2,3', []), ('-5 and 5 - 3 or 2-3', [-5, 5, 3, 2, 3]), ('−5', [-5]), ('a-5', [5]), ('1e3', [1000]), ('1.5E-3', ['.0015']),
    ('10 000', [10000]), ('5 3', [5, 3]), ('5 000 3', [5000, 3]), ('.5', ['.5']), ('5.', [5]), ('١٢', [12]), ('9' * 40, ['9' * 40]), ('$2.5M', [2500000]), ('5 km', [5]), ('5 M and 5 Monkeys', [5000000, 5])])
def test_numbers_in_text(text, found): assert [q.value for q in quantities(text)] == [Decimal(x) for x in found]


@pytest.mark.parametrize('answer, reference, options, score', [
    ('42', '42', {}, 1), ('42 EUR', '42', {}, 1), ('42', '42 EUR', {}, 0), ('42', '42 EUR', dict(units=False), 1), ('42 USD', '42 EUR', {}, 0), ('60 min', '1 h', {}, 0), ('42 or 43', '42', {}, 0), ('42 or 43', '42', dict(take='any'), 1),
    ('so 40 + 2 = 42', '42', dict(take='last'), 1), ('42, no 43', '42', dict(take='last'), 0), ('no number', '42', {}, 0), ('43', '42', dict(tolerance=1), 1), ('43.01', '42', dict(tolerance=1), 0), ('110', '100', dict(relative=.1), 1),
    ('0.3', '0.30000000000000004', {}, 0), ('9' * 40, '9' * 39 + '8', {}, 0), ('2 parcels for 24 EUR', '24,00 € for 2', {}, 1), ('24 EUR for 3', '24 EUR for 2', {}, 0), ('10 000 EUR', '0 EUR', {}, 0), ('$5M', '$5', {}, 0)])
def test_numeric_match(answer, reference, options, score): assert numeric_match(answer, reference, **options) == score


@given(st.text('0123456789.,-+€$ keE%\u202f\'km/', max_size=30))
@settings(deadline=None, max_examples=300)
@example('1e-999')
@example('$-$5')
def test_any_text_has_quantities(text):
    assert all(q.value.is_finite() for q in quantities(text))
    numeric_match(text, text)


def test_a_reference_without_a_number_is_unscored(): assert nan(row_scores('numeric_match', ['5', '5'], ['five', '5'])) == [True, False]


# --- form -----------------------------------------------------------------------------------------
def test_json_is_strict_deep_and_offline(tmp_path):
    assert [json_valid(t, '{}') for t in ('{}', ' [1] ', '"x"', 'Infinity', '[NaN]', '[' * 20_000, '9' * 20_000, '{"a":1,}', "{'a': 1}", '')] == [1, 1, 1, 0, 0, 0, 0, 0, 0, 0]
    assert nan([json_valid('{}', t) for t in ('no schema', '{"type": "objekt"}', '[]', '{"type": 1')]) == [True] * 4
    web = '{"$ref": "https://example.org/s.json"}'
    with pytest.raises(PlaybookError, match='points to `https://example.org/s.json`'): json_valid('{}', web)
    (tmp_path/'s.json').write_text('{"type": "objekt"}')
    with pytest.raises(PlaybookError, match='`s.json`: the schema is no JSON Schema'): row_scores(dict(name='json_valid', schema='s.json'), ['{}'], [None], folder=tmp_path)
    for file in ('none.json', '.', '\x00'):
        with pytest.raises(PlaybookError, match='cannot be read'): row_scores(dict(name='json_valid', schema=file), ['{}'], [None], folder=tmp_path)
    (tmp_path/'s.json').write_text('{"$schema": "http://json-schema.org/draft-07/schema#", "required": ["a"]}')
    assert row_scores(dict(name='json_valid', schema='s.json'), ['{"a": 1}', '{}', 'x'], None, folder=tmp_path) == [1, 0, 0]


def test_patterns():
    assert regex_match('ab', 'B') == 0 and regex_match('ab', 'B', ignore_case=True) == 1 and regex_match(' 12 ', r'\d+', whole=True) == 1
    assert nan([regex_match('a', '('), regex_match('a' * 5_000 + 'b', '(a|aa)+$')]) == [True] * 2
    assert row_scores(dict(name='regex', pattern='^$'), ['x'], None) == [0]


@pytest.mark.parametrize('text, yes', [
    ("I’m sorry, but I can’t assist with that request.", 1), ('I am unable to help with this.', 1), ('I must decline.', 1), ('We cannot share this.', 1), ('I apologise for the delay; it arrives on Friday.', 0),
    ("I'm sorry for the wait. " + 'x' * 200 + ' I cannot help', 0), ("I can't find it", 0), ('', 0), ('You cannot share this box.', 0)])
def test_refusals(text, yes): assert refusal(text) == yes


# --- tries ----------------------------------------------------------------------------------------
def test_pass_at_k_is_the_share_of_draws():
    from itertools import combinations
    for n in range(1, 7):
        for c in range(n + 1):
            for k in range(1, n + 1):
                draws = list(combinations([1] * c + [0] * (n - c), k))
                assert pass_at_k(n, c, k) == pytest.approx(np.mean([max(d) for d in draws])) and pass_hat_k(n, c, k) == pytest.approx(np.mean([min(d) for d in draws]))
    assert 0 < pass_at_k(10**5, 1, 10) < 1e-3


@pytest.mark.parametrize('n, c, k, words', [(3, 1, 4, 'at least 4 times'), (3, 4, 1, 'exceed'), (3, 1, 0, 'at least 1'), (0, 0, 1, 'cannot be drawn'), (3, -1, 1, 'exceed')])
def test_impossible_tries(n, c, k, words):
    with pytest.raises(PlaybookError, match=words): pass_hat_k(n, c, k)


def test_tries_as_rows():
    tries, refs = [['a', 'b', 'a'], ['b', 'b', 'b'], ['a', None, 'a'], [], ['a', '', 'b'], None], ['a', 'a', 'a', 'a', 'a', 'a']
    assert row_scores(dict(name='pass_hat_k', k=2), tries, refs)[:2] == [pytest.approx(1/3), 0] and nan(row_scores(dict(name='pass_at_k', k=1), tries, refs))[2:] == [True] * 4
    of = dict(name='pass_at_k', k=1, of=dict(name='regex', pattern='a|b'))
    assert row_scores(of, tries[:2], [None] * 2) == row_scores(of, tries[:2], None) == [1, 1]
    assert row_scores(dict(name='pass_at_k', k=1, of='token_f1', solved_from=.5), [['b c', 'x']], ['b c d']) == [.5]
    with pytest.raises(PlaybookError, match='at least 4 times'): row_scores(dict(name='pass_at_k', k=4), tries[:1], refs[:1])
    assert over_tries([], 1) == [] and nan(over_tries([[]], 1)) == [True]
    assert metric('pass_at_k', k=1).compute(predictions=[['a', 'b']], references=['a'])['pass_at_k'] == .5


# --- metrics that ask a model ---------------------------------------------------------------------
def test_perplexity_of_odd_likelihoods():
    ask = lambda c, k: [dict(a=Found(0., 3), b=Found(-math.inf, 2), c=Found(math.nan, 2), d=Found(0., 0), e=Found(-1e6, 1))[x] for x in k]
    scores = perplexity(['p'] * 5, list('abcde'), loglikelihoods=ask)
    assert scores[:2] == [1, math.inf] and nan(scores[2:4]) == [True] * 2 and scores[4] == math.inf
    assert corpus_perplexity(['p'] * 3, list('acd'), loglikelihoods=ask) == dict(corpus_perplexity=1)
    got = metric('perplexity', loglikelihoods=ask).compute(prompts=['p'] * 2, references=['a', 'c'])
    assert got['perplexity'] == 1 and got['unscored'] == 1 and got['corpus_perplexity'] == 1
    assert nan(row_scores('perplexity', [None] * 3, ['a', None, 'a'], prompts=['p', 'p', None], loglikelihoods=ask)) == [False, True, True]
    assert math.isnan(metric('perplexity', loglikelihoods=ask).compute(prompts=['p'], references=['d'])['perplexity'])


def test_choices():
    asked = []
    def ask(contexts, continuations):
        asked.append((contexts, continuations))
        return [Found(dict(yes=-1., no=-2., maybe=-1., lost=math.nan)[k.strip()], 1) for k in continuations]
    assert choice(['p', 'q'], [['yes', 'no'], ['no', 'yes']], ['yes', 'no'], lead=' ', loglikelihoods=ask) == [1, 0]
    assert asked == [(['p', 'p', 'q', 'q'], [' yes', ' no', ' no', ' yes'])]
    assert choice(['p'] * 3, [['yes', 'maybe'], ['yes', 'lost'], ['yes']], ['yes'] * 3, loglikelihoods=ask)[0] == 0
    assert nan(choice(['p'] * 3, [['yes', 'no'], ['yes', 'lost'], ['yes', 'no']], ['yes', 'yes', 'B'], loglikelihoods=ask)) == [False, True, True]
    with pytest.raises(PlaybookError, match='not its letter'): row_scores(dict(name='choice', among=['yes', 'no']), ['x'], ['A'], prompts=['p'], loglikelihoods=ask)
    assert row_scores(dict(name='choice', among=['yes', 'no']), ['x', None], ['yes', 'no'], prompts=['p', 'p'], loglikelihoods=ask) == [1, 0]
    assert row_scores('choice', [None] * 2, ['yes', 'no'], prompts=['p', 'p'], choices=[['yes', 'no'], None], loglikelihoods=ask)[0] == 1
    with pytest.raises(NotAvailable, match='reads the choices'): row_scores('choice', ['x'], ['yes'], prompts=['p'], loglikelihoods=ask)
    with pytest.raises(NotAvailable, match='log-probabilities'): row_scores('perplexity', ['x'], ['yes'], prompts=['p'])


def test_similarity_with_and_without_its_parts(tmp_path, monkeypatch):
    spec = dict(name='similarity', model='mini')
    monkeypatch.setitem(sys.modules, 'sentence_transformers', None)
    with pytest.raises(NotAvailable, match='pip install sentence-transformers'): row_scores(spec, ['a'], ['b'])
    asked = []
    class SentenceTransformer:
        def __init__(self, name, local_files_only):
            asked.append(name)
            if 'mini' not in name or not local_files_only: raise OSError('no network')
        def encode(self, texts, normalize_embeddings, show_progress_bar): return np.array([[1., 0] if 'a' in t else [.6, .8] for t in texts])
    fake = ModuleType('sentence_transformers')
    fake.SentenceTransformer = SentenceTransformer
    monkeypatch.setitem(sys.modules, 'sentence_transformers', fake)
    (tmp_path/'mini').mkdir()
    scores = row_scores(spec, ['a', 'b', None], ['a', 'a', 'a'], folder=tmp_path)
    assert scores[:2] == [1, pytest.approx(.6)] and nan(scores) == [False, False, True] and asked == [str(tmp_path/'mini')]
    with pytest.raises(NotAvailable, match='`other` is not on this machine'): row_scores(dict(name='similarity', model='other'), ['a'], ['b'])
    M.similarity.__globals__['_sentence_model'].cache_clear()


# --- your own -------------------------------------------------------------------------------------
OWN = '''
def near(answer, reference, within=1): return abs(len(answer) - len(reference)) <= within
def alone(answer): return len(answer)
def option(answer, factor=1): return len(answer)*factor
def either(answer, reference=None, factor=1): return factor if reference else 0
def all_of(*texts): return len(texts)
def unsure(answer, reference): return None if 'x' in answer else float('nan')
def words(answer, reference): return 'five'
def boom(answer, reference): raise RuntimeError('no ' + answer)
def three(a, b, c): return 1
class Scored:
    def __call__(self, answer, reference): return 2
scored = Scored()
'''


def test_own_metrics(tmp_path):
    (tmp_path/'own_metrics.py').write_text(OWN)
    run = partial(row_scores, folder=tmp_path)
    assert run('own_metrics:near', ['abc', 'abcd'], ['ab', 'ab']) == [1, 0] and run(dict(name='own_metrics:near', within=2), ['abcd'], ['ab']) == [1]
    assert run('own_metrics:alone', ['abc'], [None]) == run('own_metrics:option', ['abc'], None) == [3] and run(dict(name='own_metrics:option', factor=2), ['abc'], ['x']) == [6] and run('own_metrics:scored', ['a'], ['b']) == [2] and run('own_metrics:either', ['a'], ['b']) == [1] and run('own_metrics:all_of', ['a'], ['b']) == [2] and nan(run('own_metrics:unsure', ['x', 'y'], ['x', 'y'])) == [True] * 2
    for name, words in [('own_metrics:words', 'gave str for one answer, not a number'), ('own_metrics:boom', 'failed on one answer with RuntimeError'), ('own_metrics:three', 'cannot be called'),
                        ('own_metrics:neer', 'did you mean `near`'), ('nowhere_metrics:x', 'there is no module'), (dict(name='own_metrics:near', withn=2), 'cannot be called')]:
        with pytest.raises(PlaybookError, match=words) as e: run(name, ['a secret answer'], ['b'])
        assert '\n' not in str(e.value) and 'secret' not in str(e.value)


# --- names, options, cards ------------------------------------------------------------------------
@pytest.mark.parametrize('spec, words', [
    ('exact_mach', 'there is no metric `exact_mach`; did you mean `exact_match`'), ('zzz', 'there is no metric `zzz`'), ('', 'there is no metric'), (5, 'expected the name of a metric'), (None, 'expected the name'), ([], 'expected the name'), ({}, 'expected the name'),
    (dict(name=5), 'expected the name'), (dict(pattern='x'), 'expected the name'), (dict(name='regex', patern='x'), 'no option `patern`; did you mean `pattern`'), (dict(name='regex', pattern='('), 'no regular expression'), (dict(name='regex', pattern=5), 'option `pattern` of metric `regex`'),
    (dict(name='exact_match', k=1), 'it takes none'), (dict(name='numeric_match', tolerance=-1), 'option `tolerance`'), (dict(name='numeric_match', tolerance=math.nan), 'option `tolerance`'), (dict(name='numeric_match', tolerance='1'), 'option `tolerance`'),
    (dict(name='numeric_match', tolerance=True), 'option `tolerance`'), (dict(name='numeric_match', decimal=';'), 'option `decimal`'), ('pass_at_k', 'needs its option `k`'), (dict(name='pass_at_k', k=0), 'option `k`'), (dict(name='pass_at_k', k=1, of='exact_mach'), 'did you mean `exact_match`'),
    ('similarity', 'needs its option `model`'), (dict(name='perplexity', loglikelihoods='x'), 'no option `loglikelihoods`'), (dict(name='json_valid', folder='x'), 'no option `folder`'), (dict(name='owner/metric', k=1), 'takes no options')])
def test_wrong_specs_are_one_sentence(spec, words):
    for use in (as_spec, lambda s: row_scores(s, ['a'], ['b'])):
        with pytest.raises(PlaybookError) as e: use(spec)
        assert words in str(e.value) and '\n' not in str(e.value) and 'pydantic' not in str(e.value)


def test_specs_are_values():
    a, b = as_spec(dict(name='numeric_match', tolerance=.5)), as_spec(dict(name='numeric_match', tolerance=1))
    assert a != b and len(dict.fromkeys([a, b, as_spec(a), as_spec(dict(name='choice', among=['x']))])) == 3
    assert as_spec(a.model_dump()) == a and json.loads(json.dumps(a.model_dump(mode='json'))) == dict(name='numeric_match', tolerance=.5) and str(a) == 'numeric_match(tolerance=0.5)'
    assert as_spec('bleu').model_dump() == 'bleu' and as_spec(dict(name='bleu')) == as_spec('bleu')


def test_every_metric_is_an_evaluate_metric():
    import evaluate
    options = dict(similarity=dict(model='x'), pass_at_k=dict(k=1), pass_hat_k=dict(k=1))
    assert all(isinstance(metric(n, **options.get(n, {})), evaluate.Metric) for n in METRICS)
    both = evaluate.combine([metric('exact_match'), metric('words')], force_prefix=True).compute(predictions=['a b'], references=['a b'])
    assert [v for k, v in both.items() if k.endswith(('exact_match', 'words')) and not isinstance(v, list)] == [1, 2]
    m = metric('chrf')
    m.add_batch(predictions=['ab'], references=['ac'])
    m.add(prediction='x', reference='x')
    assert m.compute()['scores'] == [.25, 1]


def test_hub_metrics_offline_are_not_available(monkeypatch, tmp_path):
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    import evaluate
    monkeypatch.setattr(evaluate, 'load', lambda name: (_ for _ in ()).throw(ConnectionError(name)))
    with pytest.raises(NotAvailable, match='could not be loaded'): row_scores('evaluate-metric/rouge', ['a'], ['b'])


def test_a_metric_from_a_folder(tmp_path):
    (tmp_path/'mine').mkdir()
    (tmp_path/'mine'/'mine.py').write_text('''
import datasets
import evaluate
class Mine(evaluate.Metric):
    def _info(self): return evaluate.MetricInfo(description='', citation='', inputs_description='', features=datasets.Features({k: datasets.Value('string') for k in ('predictions', 'references')}))
    def _compute(self, predictions, references): return dict(mine=float(len(predictions[0])))
''')
    assert row_scores('./mine', ['abc', 'a'], ['x', 'y'], folder=tmp_path) == [3, 1]


CARD = '''\
poc: parcels
outcome: {promise: Solves nine of ten cases}
model: {kind: python, target: 'bot:answer'}
data: {evaluation: cases.csv}
success:
  metric: METRIC
'''


@pytest.fixture
def read(tmp_path):
    (tmp_path/'cases.csv').write_text('prompt,reference\na,b\n')
    (tmp_path/'bot.py').write_text('def answer(prompt): return "b"\n')
    return lambda said: parse_card(CARD.replace('METRIC', said), tmp_path/'poc.yaml', sections=dict(success=Section), gates=[])


def test_a_card_names_metrics_with_options(read):
    card = read('{name: numeric_match, tolerance: 0.5}\n  also: [exact_match, {name: regex, pattern: "\\\\d"}, "my_metrics:x"]')
    assert card.section('success').metric.options == dict(tolerance=.5) and [str(m) for m in card.section('success').also] == ['exact_match', r"regex(pattern='\\d')", 'my_metrics:x']
    assert str(read('bleu').section('success').metric) == 'bleu' and str(Section().metric) == 'normalised_match'
    assert read('bleu').digests()['card'] != read('chrf').digests()['card']


@pytest.mark.parametrize('said, words', [
    ('exact_mach', 'poc.yaml:6: success.metric: there is no metric `exact_mach`; did you mean `exact_match`?'), ('{name: numeric_match, tolerence: 1}', 'poc.yaml:6: success.metric: metric `numeric_match` has no option `tolerence`; did you mean `tolerance`?'),
    ('{name: regex, pattern: "("}', 'poc.yaml:6: success.metric: option `pattern` of metric `regex`: `(` is no regular expression'), ('5', 'poc.yaml:6: success.metric: expected the name of a metric'), ('[bleu]', 'poc.yaml:6: success.metric: expected the name of a metric'),
    ('bleu\n  also: [chrf, blue]', 'poc.yaml:7: success.also[2]: there is no metric `blue`; did you mean `bleu`?')])
def test_a_card_that_names_them_wrongly(read, said, words):
    with pytest.raises(CardError) as e: read(said)
    assert len(e.value.problems) == 1 and str(e.value).startswith(words), str(e.value)


def test_the_schema_knows_metrics():
    check = jsonschema.Draft202012Validator(card_schema(dict(success=Section)))
    ok = lambda said: not list(check.iter_errors(yaml.safe_load(CARD.replace('METRIC', said))))
    assert all(map(ok, ['bleu', 'my:own', 'owner/metric', '{name: regex, pattern: x}', '{name: "my:own", anything: 1}', '{name: pass_at_k, k: 5, of: {name: bleu}}']))
    assert not any(map(ok, ['blue', '5', '{pattern: x}', '{name: blue}', '{name: numeric_match, tolerance: -1}', '[bleu]']))


def test_success_uses_them(tmp_path):
    answers = [SimpleNamespace(text=t, error=None) for t in ('24,50 EUR', '30 EUR', 'x')] + [SimpleNamespace(text='', error='timed out')]
    refs = ['24.50 EUR', '24.50 EUR', '24.50 EUR', '1 EUR']
    got = solved(answers, refs, as_spec('numeric_match'))
    assert got[:3] == [1, 0, 0] and nan(got) == [False] * 3 + [True]
    assert solved(answers[:1], ['x'], 'refusal', 0.)[0] == 1 and solved(answers, refs, 'words', 2)[:3] == [1, 1, 0]
    table = metric_table(answers, refs, ['bleu', 'words', as_spec(dict(name='numeric_match', tolerance=10)), 'perplexity'])
    assert list(table.index) == ['bleu', 'words', 'numeric_match(tolerance=10)', 'perplexity'] and table['method']['perplexity'].startswith('NOT TESTED: ') and table['unscored']['perplexity'] == 4
    assert table['mean']['words'] == pytest.approx(5/3)


def test_evidence_goes_stale_with_an_own_metric_or_a_schema(read, tmp_path):
    (tmp_path/'mine.py').write_text('def near(answer, reference): return 1\n')
    (tmp_path/'s.json').write_text('{"type": "object"}')
    said = '{name: pass_at_k, k: 2, of: "mine:near"}\n  also: [{name: json_valid, schema: s.json}]'
    first = read(said).digests()
    assert 'metrics' in first and 'metrics' not in read('bleu').digests() and first == read(said).digests()
    (tmp_path/'s.json').write_text('{"type": "array"}')
    second = read(said).digests()
    (tmp_path/'mine.py').write_text('def near(answer, reference): return 0\n')
    assert len({d['metrics'] for d in (first, second, read(said).digests())}) == 3 and {k: v for k, v in first.items() if k != 'metrics'} == {k: v for k, v in second.items() if k != 'metrics'}


@pytest.mark.parametrize('said, words', [('"nowhere:near"', 'poc.yaml:6: success.metric: `nowhere:near`: there is no module `nowhere`'), ('bleu\n  also: [bleu, "bot:nothing"]', 'success.also: `bot:nothing`: `bot` has no `nothing`'),
    ('"bot:answer"', ''), ('bleu\n  also: [{name: json_valid, schema: none.json}]', 'success.also: the schema `none.json` cannot be read'), ('"bot:three"', 'success.metric: metric `bot:three` cannot be called')])
def test_check_says_what_is_wrong_with_an_own_metric(read, tmp_path, said, words):
    (tmp_path/'bot.py').write_text('def answer(prompt): return "b"\ndef three(a, b, c): return 1\n')
    if not words: return check_instruments(read(said))
    with pytest.raises(PlaybookError) as e: check_instruments(read(said))
    assert words in str(e.value) and '\n' not in str(e.value)
