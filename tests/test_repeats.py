"Chapter 01 where the model samples, and where it gives log-likelihoods"
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from genai_playbook.asking import as_choices, ask_repeatedly, counting, metric_inputs, samples, solved, solved_rate, tries_needed
from genai_playbook.card import load_card
from genai_playbook.metrics import NotAvailable
from genai_playbook.success import metric_table

CARD = '''poc: coin
outcome: {promise: half}
model: MODEL
data: {evaluation: rows.csv, columns: {choices: options}}
success: {SUCCESS}
'''
COIN = "import itertools\nn = itertools.count()\ndef answer(prompt): return 'heads' if next(n)//40 % 2 else 'tails'\ndef fixed(prompt): return 'heads' if int(prompt.split()[1]) % 2 else 'tails'\n"


@pytest.fixture
def card(tmp_path, own_cache):
    def write(model='{kind: python, target: "coin_of_tests:answer", concurrency: 1}', success='repeats: 4', n=40):
        (tmp_path/'coin_of_tests.py').write_text(COIN)
        (tmp_path/'rows.csv').write_text('id,prompt,reference,options\n' + ''.join(f'{i},say {i},heads,heads|tails\n' for i in range(n)))
        (tmp_path/'poc.yaml').write_text(CARD.replace('MODEL', model).replace('SUCCESS', success))
        return load_card(tmp_path/'poc.yaml')
    return write


def asked(c):
    section, rows = c.section('success'), c.evaluation()
    tries, seeds = ask_repeatedly(c, c.prompts(rows), tries_needed(c, section))
    inputs = metric_inputs(c, rows, tries)
    rows['solved'] = solved(tries[0], rows['reference'], section.metric, section.solved_from, **inputs)
    return section, rows, tries, seeds, inputs


def test_repeats_average_and_do_not_pose_as_rows(card):
    c = card('{kind: python, target: "coin_of_tests:fixed"}')
    section, rows, tries, seeds, inputs = asked(c)
    rate = solved_rate(c, section, rows, tries, inputs)
    assert len(tries) == 4 and seeds == [None]*4 and rate.value == pytest.approx(.5) and rate.clusters == 40
    assert rate.low < .45 and rate.high > .55  # 160 rows would claim more; 40 prompts are 40


def test_pass_at_k_asks_k_times_and_is_computed(card):
    c = card(success='also: [exact_match, {name: pass_at_k, k: 2, of: exact_match}]')
    section, rows, tries, seeds, inputs = asked(c)
    table = metric_table(tries[0], rows['reference'], section.also, **inputs)
    assert len(tries) == 2 and table['mean'].iloc[1] == 1 and table['mean'].iloc[0] == 0


def test_what_never_varies_is_asked_once_and_not_tested(card):
    c = card('{kind: python, target: "coin_of_tests:answer", deterministic: true}', 'also: [{name: pass_at_k, k: 5}]')
    section, rows, tries, seeds, inputs = asked(c)
    assert not samples(c) and len(tries) == 1
    assert metric_table(tries[0], rows['reference'], section.also, **inputs)['method'].iloc[0].startswith('NOT TESTED: metric `pass_at_k` needs several tries')


def test_a_sampling_model_gets_another_seed_each_time(card, tiny_model):
    c = card(f'{{kind: transformers, path: {json.dumps(str(tiny_model))}, temperature: 2.0, seed: 7, max_new_tokens: 8}}', 'repeats: 3', 6)
    told = []
    tries, seeds = ask_repeatedly(c, c.prompts(c.evaluation()), 3, lambda done, total: told.append((done, total)))
    assert seeds == [7, 8, 9] and len({tuple(a.text for a in one) for one in tries}) == 3 and told[-1] == (18, 18)


@pytest.fixture
def by_seed():
    "An endpoint on loopback that says heads or tails by the seed it is sent; `asked` has the seeds"
    class Handler(BaseHTTPRequestHandler):
        asked = []
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
            self.asked.append(body['seed'])
            said = json.dumps(dict(choices=[dict(message=dict(content='heads' if body['seed'] % 2 else 'tails'), finish_reason='stop')], usage=dict(prompt_tokens=3, completion_tokens=1))).encode()
            self.send_response(200)
            self.send_header('Content-Type', 'application/json')
            self.send_header('Content-Length', str(len(said)))
            self.end_headers()
            self.wfile.write(said)
        def log_message(self, *args): pass
    server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Handler.url = f'http://127.0.0.1:{server.server_address[1]}/v1'
    yield Handler
    server.shutdown()
    server.server_close()


def test_an_endpoint_is_sent_another_seed_each_time(card, by_seed):
    c = card(f'{{kind: openai, base_url: "{by_seed.url}", model: coin, temperature: 1.0, seed: 4}}', 'repeats: 3', 10)
    section, rows, tries, seeds, inputs = asked(c)
    rate = solved_rate(c, section, rows, tries, inputs)
    assert seeds == [4, 5, 6] and sorted(by_seed.asked) == [4]*10 + [5]*10 + [6]*10
    assert [{a.text for a in one} for one in tries] == [{'tails'}, {'heads'}, {'tails'}]
    assert rate.value == pytest.approx(1/3) and rate.clusters == 10 and rate.n == 30
    asked(c)
    assert len(by_seed.asked) == 30  # answers of each seed are in the cache


def test_an_endpoint_without_chance_is_asked_once(card, by_seed):
    c = card(f'{{kind: openai, base_url: "{by_seed.url}", model: coin, temperature: 0, seed: 4}}', 'repeats: 3', 10)
    assert len(asked(c)[2]) == 1 and len(by_seed.asked) == 10


def test_progress_is_one_line_that_is_rewritten(monkeypatch):
    import IPython.display as d
    shown = []
    class Line:
        def update(self, text): shown.append(('rewritten', text.data))
    monkeypatch.setattr(d, 'display', lambda text, display_id: shown.append(('new', text.data)) or Line())
    tell = counting('tries')
    for i in range(2001): tell(i, 2000)
    counting()(0, 0)
    assert [how for how, _ in shown[:101]] == ['new'] + ['rewritten']*100 and shown[100] == ('rewritten', '2,000 of 2,000 tries') and shown[101] == ('new', '0 of 0 answers')


def test_likelihoods_come_from_a_transformers_model_only(card, tiny_model):
    wanted = 'also: [perplexity, choice]'
    c = card(f'{{kind: transformers, path: {json.dumps(str(tiny_model))}, max_new_tokens: 2}}', wanted, 6)
    section, rows, tries, _, inputs = asked(c)
    table = metric_table(tries[0], rows['reference'], section.also, **inputs)
    assert table['mean']['perplexity'] > 1 and 0 <= table['mean']['choice'] <= 1 and table['n']['choice'] == 6
    section, rows, tries, _, inputs = asked(card(success=wanted))
    assert all('NOT TESTED: ' in m and 'transformers' in m for m in metric_table(tries[0], rows['reference'], section.also, **inputs)['method'])
    with pytest.raises(NotAvailable): solved(tries[0], rows['reference'], 'choice', **inputs)


@pytest.mark.parametrize('cell, found', [('["a", "b|c"]', ['a', 'b|c']), ('a | b', ['a', 'b']), (['a', 1], ['a', '1']), ('', None), (None, None), (float('nan'), None), ('[]', None), ('{"a": 1}', None), ('[broken', ['[broken'])])
def test_choices_of_any_cell(cell, found): assert as_choices(cell) == found
