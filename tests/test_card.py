"What no reader wants in the notebook: hostile and broken cards and tables, properties, and the committed schema"
import json
import os
import random
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import jsonschema
import pandas as pd
import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field

from genai_playbook import card as C
from genai_playbook import tables as T
from genai_playbook.card import Card, CardError, CardSpec, card_schema, card_template, find_card, init_poc, load_card, parse_card, write_schema
from genai_playbook.errors import PlaybookError
from genai_playbook.strict_yaml import MAX_BYTES, YamlProblem, parse_yaml


class Section(BaseModel):
    "Settings of the success chapter"
    model_config = ConfigDict(extra='forbid')
    target: float = Field(.9, ge=0, le=1, description='Share that must be solved')
    metric: str = 'exact'
    tries: int | None = None


SPEC = SimpleNamespace(code='SUC01', name='Solved', key='success.target', default=.9, hard=True, direction='>=', unit='share')
LEVEL = SimpleNamespace(code='LAT01', name='Fast', key='service_levels.ttft_ms', default=700, hard=True, direction='<=', unit='ms')
SECTIONS = dict(success=Section, latency=None)
CARD = '''\
poc: parcels
outcome:
  promise: Solves nine of ten cases
  baseline: 0.4
model:
  kind: python
  target: bot:answer
  deterministic: true
data:
  evaluation: cases.csv
  columns: {prompt: question, cluster: talk, groups: [region]}
prompt:
  template: "{context}\\n{prompt}"
success:
  target: 0.85
gates:
  SUC01: {hard: false, because: a first trial}
exemptions:
  - {chapter: bias, owner: Ada, reason: no people}
'''
CASES = 'id,question,context,talk,region\n001,Where is it?,Order 7,a,NA\n002,When?,Order 8,a,north\n003,How?,,b,null\n'


@pytest.fixture
def folder(tmp_path):
    (tmp_path/'cases.csv').write_text(CASES)
    (tmp_path/'bot.py').write_text('def answer(prompt): return "On Monday."\n')
    return tmp_path


@pytest.fixture
def read(folder):
    return lambda text=CARD: parse_card(text, folder/'poc.yaml', sections=SECTIONS, gates=[SPEC, LEVEL])


@pytest.fixture
def wrong(read):
    def wrong(*changes, text=CARD):
        for old, new in changes:
            assert old in text
            text = text.replace(old, new, 1)
        with pytest.raises(CardError) as e: read(text)
        return [str(e.value).split('\n')[i] for i in range(len(e.value.problems))]
    return wrong


# --- YAML -----------------------------------------------------------------------------------------
@pytest.mark.parametrize('text, line, words', [
    ('', None, 'empty'), ('# nothing\n', None, 'empty'), ('a: 1\n---\nb: 2', 2, 'second YAML document'), ('a:\n\t- b', 2, 'indent with spaces'), ('a: b: c', 1, 'quotes'),
    ('a: [1, 2', 1, 'never closed'), ('a: {b: 1', 1, 'never closed'), ('x: 1\na: "x\nb: 2', 2, 'never closed'), ('a: *x', 1, 'alias'), ('a: @x', 1, 'quotes'), ('a:\n  b: 1\n c: 2', 3, 'indentation'),
    ('a: !!python/object/apply:os.system [x]', 1, 'tags'), ('a: !x 1', 1, 'tags'), ('? [a]\n: 1', 1, 'plain text'), ('a: \x01', 1, 'control character'), ('a: &a [*a]', 1, 'nested'),
    ('[' * 60_000, 1, 'nested'), ('a: ' + '[' * 30 + ']' * 30, 1, 'nested'), (b'a: 1\nb: caf\xe9', 2, 'byte 11 (0xe9, on line 2) is not UTF-8'), (b'\x00\x01\x02', None, 'binary'),
    (b'\xff\xfea\x00', None, 'UTF-16'), ('x' * (MAX_BYTES + 1), None, 'at most'), ('\n'.join(f'k{i}: 1' for i in range(9000)), None, 'nested'),
    ('a: &a [x,x,x,x,x,x,x,x,x]\n' + '\n'.join(f'{chr(98 + i)}: &{chr(98 + i)} [{",".join(["*" + chr(97 + i)] * 9)}]' for i in range(9)), None, 'repeated')])
def test_yaml_that_is_refused(text, line, words):
    with pytest.raises(YamlProblem, match=re.escape(words)) as e: parse_yaml(text)
    assert line is None or e.value.line == line


def test_yaml_types_are_those_of_1_2():
    text = 'a: no\nb: off\nc: 2026-01-01\nd: 1:30\ne: 1e-3\nf: 0x10\ng: 1_000\nh: true\ni: ~\nj:\nk: "1"\nno: yes\nl: |\n  x\n  y\nm: -.5\n' + 'n: ' + '9' * 5000
    assert parse_yaml(text).value == dict(a='no', b='off', c='2026-01-01', d='1:30', e=.001, f=16, g='1_000', h=True, i=None, j=None, k='1', no='yes', l='x\ny\n', m=-.5, n='9' * 5000)
    assert parse_yaml('\ufeffa: 1\r\nb: 2').value == dict(a=1, b=2)


def test_a_few_aliases_are_fine():
    assert parse_yaml('a: &x [1]\nb: [*x, *x]').value == dict(a=[1], b=[[1], [1]])


# --- validation -----------------------------------------------------------------------------------
def test_good_card(read):
    card = read()
    assert (card.name, card.outcome.baseline, card.section('success').target, card.threshold(SPEC), card.is_hard(SPEC)) == ('parcels', .4, .85, .85, False)
    assert (card.threshold(LEVEL), card.is_hard(LEVEL), card.section('latency'), card.exempt()['bias'].owner) == (700, True, None, 'Ada')
    assert read(CARD + 'service_levels: {ttft_ms: 300}').threshold(LEVEL) == 300
    no_section = CARD.replace('success:\n  target: 0.85\n', '')
    assert read(no_section).section('success') == Section() and read(no_section).threshold(SPEC) == .9


def test_text_keeps_its_spelling_and_numbers_are_read_leniently(read):
    card = read(CARD.replace('poc: parcels', 'poc: 1.10').replace('promise: Solves nine of ten cases', 'promise: 007').replace('baseline: 0.4', 'baseline: "0.4"\n  volume_per_month: 1_000')
                + 'owners: {risk: no, product: true, technical: 2026-01-01}')
    assert (card.name, card.outcome.promise, card.outcome.baseline, card.outcome.volume_per_month) == ('1.10', '007', .4, 1000)
    assert card.spec.owners.model_dump() == dict(risk='no', product='true', technical='2026-01-01')
    assert read(CARD.replace('deterministic: true', 'deterministic: off')).model_spec.deterministic is False


@pytest.mark.parametrize('old, new, said', [
    ('  target: 0.85', '  targt: 0.85', 'poc.yaml:15: success.targt: unknown key; did you mean `target`? (accepted: target, metric, tries)'),
    ('target: 0.85', 'target: ninety', "poc.yaml:15: success.target: expected a number between 0 and 1, got 'ninety'"),
    ('target: 0.85', 'target: 90%', "poc.yaml:15: success.target: expected a number between 0 and 1, got '90%'; write 0.9 for 90%"),
    ('target: 0.85', 'target: 85', 'poc.yaml:15: success.target: expected a number between 0 and 1, got 85'),
    ('target: 0.85', 'target: true', 'poc.yaml:15: success.target: expected a number between 0 and 1, got true'),
    ('target: 0.85', 'target:', 'poc.yaml:15: success.target: expected a number between 0 and 1, got nothing'),
    ('target: 0.85', 'target: [1]', 'poc.yaml:15: success.target: expected a number between 0 and 1, got a list'),
    ('target: 0.85', 'tries: 1.5', 'poc.yaml:15: success.tries: expected a whole number, got 1.5'),
    ('baseline: 0.4', 'baseline: .nan', 'poc.yaml:4: outcome.baseline: expected a number between 0 and 1, got nan'),
    ('  promise: Solves nine of ten cases\n', '', 'poc.yaml:2: outcome.promise: this key is missing: What the system is to achieve, in one sentence that can turn out false'),
    ('promise: Solves nine of ten cases', 'promise: ""', "poc.yaml:3: outcome.promise: expected text that is not empty, got ''"),
    ('kind: python', 'kind: pyton', "poc.yaml:6: model.kind: unknown kind 'pyton'; did you mean `python`? (accepted: openai, python, recorded, transformers)"),
    ('  kind: python\n', '', 'poc.yaml:5: model: expected a mapping with `kind: openai` or `kind: python` or `kind: recorded` or `kind: transformers`; the key that says which is missing'),
    ('target: bot:answer', 'target: bot.answer', 'poc.yaml:7: model.target: expected `module:function`, such as `my_bot:answer`'),
    ('deterministic: true', 'seed: 1', 'poc.yaml:8: model.seed: unknown key (accepted: kind, target, concurrency, deterministic)'),
    ('groups: [region]', 'groups: region', "poc.yaml:11: data.columns.groups: expected a list (`- …`) of text that is not empty, got 'region'"),
    ('poc: parcels', 'poc: "../up"', 'poc.yaml:1: poc: expected a short name of letters, digits, `-`, `_` and `.` (it names a folder)'),
    ('hard: false, ', '', 'poc.yaml:17: gates.SUC01.hard: this key is missing: true: can stop the release; false: informs'),
    (', because: a first trial', '', 'poc.yaml:17: gates.SUC01.because: this key is missing: Why; stands in the report beside the gate'),
    ('SUC01:', 'SUC1:', 'poc.yaml:17: gates.SUC1: unknown gate `SUC1`; did you mean `SUC01`? (gates: SUC01, LAT01)'),
    ('chapter: bias', 'chapter: biass', 'poc.yaml:19: exemptions[1].chapter: unknown chapter `biass`; did you mean `bias`? (accepted: '
     'success, latency, load, cost, trust, bias, robustness, security, monitoring, governance, delivery, rollback)'),
    ('  - {chapter: bias', '  - {chapter: bias, owner: Bo, reason: x}\n  - {chapter: bias', 'poc.yaml:20: exemptions[2].chapter: `bias` is exempt already'),
    ('chapter: bias', 'chapter: decision', 'poc.yaml:19: exemptions[1].chapter: the decision cannot be exempt'),
    ('success:', 'sucess:', 'poc.yaml:14: sucess: unknown key; did you mean `success`?'),
    ('success:\n  target: 0.85', 'latency: {p95: 3}', 'poc.yaml:14: latency: chapter `latency` takes no settings in the card'),
    ('success:\n  target: 0.85', 'success:', 'poc.yaml:14: success: the section is empty; leave it out, or give it keys (target, metric, tries)'),
    ('success:', 'system: x\nsuccess:', 'poc.yaml:14: system: unknown key here; it belongs under `prompt`'),
    ('success:', 'poc: again\nsuccess:', 'poc.yaml:14: poc: the key `poc` is given twice; the first is on line 1'),
    ('cases.csv', 'case.csv', 'poc.yaml:10: data.evaluation: there is no file `case.csv` (relative to the card); did you mean `cases.csv`?'),
    ('cases.csv', '.', 'poc.yaml:10: data.evaluation: `.` is a folder; name a file in it'),
    ('cases.csv', 'https://x.org/a.csv', 'poc.yaml:10: data.evaluation: files are read from this machine; download it and name the copy'),
    ('cases.csv', 'bot.py', 'poc.yaml:10: data.evaluation: bot.py: files of kind .csv, .tsv, .jsonl, .ndjson, .parquet are read; save it as one of them'),
    ('prompt: question', 'prompt: qestion', 'poc.yaml:11: data.columns.prompt: there is no column `qestion`; did you mean `question`? (columns: id, question, context, talk, region)'),
    ('prompt: question, ', '', 'poc.yaml:11: data.columns.prompt: no column is named `prompt`; say which one holds what the user writes (columns: id, question, context, talk, region)'),
    ('groups: [region]', 'groups: [Regio]', 'poc.yaml:11: data.columns.groups[1]: there is no column `Regio`; did you mean `region`? (columns: id, question, context, talk, region)'),
    ('groups: [region]', 'reference: region, context: talk', 'poc.yaml:11: data.columns.context: the data also has a column named `context`, so `context` would mean two things; rename that column'),
    ('{context}', '{contxt}', 'poc.yaml:13: prompt.template: unknown placeholder `{contxt}`; did you mean `context`?'),
    ('{context}', '{prompt.__class__}', 'poc.yaml:13: prompt.template: unknown placeholder `{prompt.__class__}`; only plain column names are filled in'),
    ('{context}', '{prompt!r}', 'poc.yaml:13: prompt.template: unknown placeholder `{prompt!r}`; only plain column names are filled in'),
    ('{context}', '{0}', 'poc.yaml:13: prompt.template: unknown placeholder `{0}`'),
    ('{context}', '{', 'poc.yaml:13: prompt.template: a single `{`; write `{{` for a brace')])
def test_one_mistake_one_line(wrong, old, new, said):
    lines = wrong((old, new))
    assert len(lines) == 1 and lines[0].startswith(said), lines


def test_everything_at_once(wrong):
    lines = wrong(('promise:', 'promised:'), ('baseline: 0.4', 'baseline: high'), ('  target: 0.85', '  target: 2'), ('talk,', 'tolk,'), ('{context}', '{contxt}'), ('SUC01', 'SUC1'))
    assert [x.split(': ')[1] for x in lines] == ['outcome.promised', 'outcome.baseline', 'data.columns.cluster', 'prompt.template', 'success.target', 'gates.SUC1']


def test_no_mistake_is_reported_for_what_follows_from_another(wrong):
    assert len(wrong(('prompt: question', 'promt: question'))) == 1
    assert len(wrong(('evaluation: cases.csv', 'evaluation: [cases.csv]'))) == 1
    assert len(wrong(('data:\n  evaluation: cases.csv\n  columns: {prompt: question, cluster: talk, groups: [region]}\n', ''))) == 1


def test_a_section_with_unions_and_required_keys(folder):
    class Hard(BaseModel, extra='forbid'):
        rate: float | str
        size: int
        parts: list[dict[str, int]] = []
    with pytest.raises(CardError) as e: parse_card(CARD + 'load: {rate: [1], parts: [{a: b}], size: false}', folder/'poc.yaml', sections=SECTIONS | dict(load=Hard), gates=[SPEC])
    assert str(e.value).split('\n') == ['poc.yaml:20: load.rate: expected a number or text, got a list', "poc.yaml:20: load.parts[1].a: expected a whole number, got 'b'",
                                        'poc.yaml:20: load.size: expected a whole number, got false'] or len(e.value.problems) == 3
    card = parse_card(CARD, folder/'poc.yaml', sections=SECTIONS | dict(load=Hard), gates=[SPEC])
    with pytest.raises(CardError, match='chapter `load` needs `load.rate`, `load.size`'): card.section('load')


@pytest.mark.parametrize('text', ['- a\n- b', 'just text', '42', '---\n', 'null'])
def test_a_card_is_a_mapping(wrong, text):
    lines = wrong(text=text)
    assert len(lines) == 1 and 'a card is a mapping' in lines[0]


def test_errors_are_printable_lines(wrong):
    lines = wrong(('poc: parcels', 'poc: "\\e[31mred\\nnext"'), ('success:', f'"\\e[0m{"k" * 900}": 1\nsuccess:'), ('cases.csv', '"a\\0b"'))
    assert len(lines) == 3 and all(x.isprintable() and len(x) < 2500 for x in lines)


@pytest.mark.parametrize('path, ok', [('gpt2', True), ('org/name', True), ('~nobody-here/x', False), ('./x', False), ('x' * 5000, False), ('/no/where', False), ('a b', False), ('sub/x', False), ('../x', False)])
def test_where_a_model_may_be(wrong, read, folder, path, ok):
    (folder/'sub').mkdir()
    change = ('kind: python\n  target: bot:answer\n  deterministic: true', f'kind: transformers\n  path: "{path}"')
    if ok:
        assert read(CARD.replace(*change)).model_spec.path == path
        return
    lines = wrong(change)
    assert len(lines) == 1 and lines[0].startswith('poc.yaml:7: model.path: ')


# --- secrets --------------------------------------------------------------------------------------
KEY = 'sk-' + 'aB3dE5gH7jK9mN1pQ3rS5t'


@pytest.mark.parametrize('change', [
    ('success:', f'api_key: {KEY}\nsuccess:'), ('success:', f'apiKey: {KEY}\nsuccess:'), ('deterministic: true', f'token: {KEY}'), ('deterministic: true', f'access-token: {KEY}'),
    ('success:', 'password: hunter2\nsuccess:'), ('Solves nine of ten cases', f'use {KEY} please'), ('poc: parcels', f'poc: {KEY}'), ('bot:answer', KEY),
    ('success:', f'{KEY}: 1\nsuccess:'), ('success:', f'x: [{{secret: {KEY}}}]\nsuccess:'), ('cases.csv', f'https://me:{KEY}@x.org/a.csv'), ('promise: Solves', f'promise: *{KEY}'),
    ('kind: python\n  target: bot:answer\n  deterministic: true', f'kind: openai\n  base_url: http://x/v1\n  model: m\n  api_key_env: {KEY}'),
    ('kind: python\n  target: bot:answer\n  deterministic: true', 'kind: openai\n  base_url: http://x/v1\n  model: m\n  api_key_env: a1b2c3d4e5f6a1b2c3d4hunter2'),
    ('kind: python\n  target: bot:answer\n  deterministic: true', 'kind: openai\n  base_url: http://u:hunter2@x/v1\n  model: m'),
    ('kind: python', f'kind: {KEY}'), ('target: 0.85', f'target: {KEY}'), ('"{context}', f'"{{{KEY}}}'), ('prompt: question', f'prompt: {KEY}'), ('groups: [region]', f'groups: [{KEY}]')])
def test_secrets_are_refused_and_never_shown(wrong, change):
    said = '\n'.join(wrong(change))
    assert KEY not in said and 'hunter2' not in said and 'a1b2c3' not in said and 'poc.yaml:' in said


@pytest.mark.parametrize('word', ['risk-management-and-controlling', 'max_new_tokens', 'hf_transformers', 'The token of our affection'])
def test_words_that_only_resemble_secrets(read, word):
    assert read(CARD.replace('Solves nine of ten cases', word)).outcome.promise == word


def test_a_missing_variable_matters_when_the_model_is_needed(read, monkeypatch):
    monkeypatch.delenv('PLAYBOOK_TEST_KEY', raising=False)
    card = read(CARD.replace('kind: python\n  target: bot:answer\n  deterministic: true', 'kind: openai\n  base_url: http://x/v1\n  model: m\n  api_key_env: PLAYBOOK_TEST_KEY'))
    with pytest.raises(PlaybookError, match='PLAYBOOK_TEST_KEY') as e: card.model()
    assert '\n' not in str(e.value)


# --- finding a card -------------------------------------------------------------------------------
def test_where_a_card_is(folder, monkeypatch, tmp_path_factory):
    monkeypatch.chdir(folder)
    (folder/'poc.yaml').write_text(CARD)
    path = load_card(folder, SECTIONS, [SPEC]).path
    assert path == folder/'poc.yaml' == load_card(folder/'poc.yaml', SECTIONS, [SPEC]).path == load_card('.', SECTIONS, [SPEC]).path == load_card('poc.yaml', SECTIONS, [SPEC]).path
    ours = tmp_path_factory.mktemp('data')
    (ours/'demo').mkdir()
    (ours/'demo'/'poc.yaml').write_text(CARD)
    monkeypatch.setattr(C, '_DATA', ours)
    assert find_card('demo') == (ours/'demo'/'poc.yaml', True)
    (folder/'demo').mkdir()
    assert find_card('demo') == (ours/'demo'/'poc.yaml', True)
    for text, said in {'./demo': 'has no poc.yaml', 'demo/poc.yaml': 'no card', 'demmo': 'did you mean `demo`', 'pox.yaml': 'did you mean `poc.yaml`', '': 'no card was named', 'zzz': 'bundled: demo',
                       'a\0b': 'no', 'x' * 5000: 'cannot be opened', '~nobody-here/x': 'cannot be opened', 'cases.cvs': 'no card'}.items():
        with pytest.raises(CardError, match=re.escape(said)) as e: find_card(text)
        assert len(e.value.problems) == 1 and '\n' not in str(e.value)
    (folder/'demo'/'poc.yaml').write_text(CARD)
    assert find_card('demo') == (Path('demo/poc.yaml'), False)


def test_files_that_are_no_cards(folder):
    for name, data, said in [('big.yaml', b'a' * 10_000_000, 'at most'), ('bin.yaml', bytes(range(256)), 'binary'), ('latin.yaml', CARD.encode() + b'# caf\xe9', 'not UTF-8'), ('none.yaml', b'', 'empty')]:
        (folder/name).write_bytes(data)
        with pytest.raises(CardError, match=said) as e: load_card(folder/name, SECTIONS, [SPEC])
        assert str(e.value).startswith(str(folder/name))


@pytest.mark.skipif(os.geteuid() == 0, reason='root may read everything')
def test_a_card_that_may_not_be_read(folder):
    (folder/'poc.yaml').write_text(CARD)
    (folder/'poc.yaml').chmod(0)
    with pytest.raises(CardError, match='permission denied'): load_card(folder, SECTIONS, [SPEC])


# --- tables ---------------------------------------------------------------------------------------
@pytest.mark.parametrize('name, data, said', [
    ('a.csv', b'', 'is empty'), ('a.csv', b'  \n\n', 'is empty'), ('a.csv', b'id,prompt\n', 'columns but no rows'), ('a.csv', b'id,prompt\n1,a,b\n2\n', 'line 2 has 3, line 3 has 1'),
    ('a.csv', b'id,prompt\n' + b'1\n' * 9, '(and 6 more rows)'), ('a.csv', b'id,prompt\n1,"open\n2,b\n', 'starts on line 2 has a quotation mark'), ('a.csv', b'id,prompt\n1,"a"b"\n', 'quotation mark'),
    ('a.csv', b'id,prompt\n1,' + b'x' * 1_000_001, 'more than 1,000,000'), ('a.csv', b'id,id\n1,2\n', '`id` twice'), ('a.csv', b'id,prompt\n1,caf\xe9\n', 'byte 15 (0xe9, on line 2) is not UTF-8'),
    ('a.csv', 'id,prompt'.encode('utf-16'), 'UTF-16'), ('a.csv', b'PK\x03\x04\0\0', 'binary'), ('a.xlsx', b'PK', 'files of kind'), ('a', b'x', 'files of kind'),
    ('a.jsonl', b'{"a": 1}\n{"a": ', 'a.jsonl:2: not JSON'), ('a.jsonl', b'[{"a": 1}]', 'not a list'), ('a.jsonl', b'[\n{"a": 1}]', 'one object a line, not one array'), ('a.jsonl', b'1', 'not a number'),
    ('a.jsonl', b'{"a": ' + b'[' * 100_000, 'nested too deeply'), ('a.jsonl', b'{"a": ' + b'9' * 5000 + b'}', 'too long'), ('a.jsonl', b'{}', 'no rows'), ('a.jsonl', b'\n\n', 'empty'), ('a.parquet', b'PAR1', 'not a Parquet file')])
def test_tables_that_are_refused(tmp_path, name, data, said):
    (tmp_path/name).write_bytes(data)
    with pytest.raises(T.DataError, match=re.escape(said)) as e: T.read_table(tmp_path/name)
    assert '\n' not in str(e.value) and e.value.exit_code == 2


@pytest.mark.parametrize('data', ['id;text\n1;a,b\n2;c,d\n', 'id,text\n1,"a,b"\n2,"c,d"\n', 'id\ttext\n1\ta,b\n2\tc,d\n', '\ufeffid,text\r\n1,"a,b"\r\n2,"c,d"\r\n', 'id,text,\n1,"a,b",\n2,"c,d",\n', 'id,text\n\n1,"a,b",,\n2,"c,d"\n\n'])
def test_csv_in_its_dialects(tmp_path, data):
    (tmp_path/'a.csv').write_text(data, newline='')
    df = T.read_table(tmp_path/'a.csv')
    assert df[['id', 'text']].values.tolist() == [['1', 'a,b'], ['2', 'c,d']] and T.columns_of(tmp_path/'a.csv') == list(df.columns)


def test_numbers_from_json_and_parquet_are_spelt_as_they_are_stored(tmp_path):
    rows = pd.DataFrame(dict(id=pd.array([7, None, 9], dtype='Int64'), name=['007', 'NA', None], flag=[True, False, True], x=[.5, 1., 2.]))
    rows.to_parquet(tmp_path/'a.parquet')
    (tmp_path/'a.jsonl').write_text('\n'.join(json.dumps(dict(id=i, name=n, flag=f, x=x)) for i, n, f, x in zip([7, None, 9], ['007', 'NA', None], [True, False, True], [.5, 1., 2.])))
    for name in ('a.parquet', 'a.jsonl'):
        df = T.read_table(tmp_path/name)
        assert T.as_text(df.id).fillna('-').tolist() == ['7', '-', '9'] and T.as_text(df.name).fillna('-').tolist() == ['007', 'NA', '-']
        assert T.as_text(df.flag).tolist() == ['true', 'false', 'true'] and T.as_number(df.x).tolist() == [.5, 1., 2.] and T.columns_of(tmp_path/name) == list(df.columns)


@given(st.lists(st.text(st.characters(codec='utf-8', exclude_characters='\0'), max_size=20), min_size=1, max_size=30), st.sampled_from(',;\t'))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_survives_a_csv_file(tmp_path, texts, sep):
    import csv
    with open(tmp_path/'r.csv', 'w', newline='', encoding='utf-8') as f: csv.writer(f, delimiter=sep).writerows([['id', 'text', 'more'], *([i, t, 'x'] for i, t in enumerate(texts))])
    assert T.read_table(tmp_path/'r.csv')['text'].fillna('').tolist() == [t if t.strip() else '' for t in texts]


@given(st.lists(st.sampled_from('abcdefghij'), min_size=1, max_size=60), st.integers(1, 60), st.integers(0, 5))
@settings(max_examples=80, deadline=None)
def test_a_sample_is_whole_clusters_and_stable(clusters, n, seed):
    taken = T.sample_clusters(clusters, n, seed)
    chosen = {clusters[i] for i in taken}
    assert taken == [i for i, c in enumerate(clusters) if c in chosen] and len(taken) >= min(n, len(clusters))
    turned = list(reversed(clusters))
    assert {turned[i] for i in T.sample_clusters(turned, n, seed)} == chosen
    grown = clusters + [f'new{i}' for i in range(7)]
    assert {grown[i] for i in T.sample_clusters(grown, n, seed)} & set(clusters) <= chosen | (set() if n < len(clusters) else set(clusters))


# --- the evaluation data --------------------------------------------------------------------------
def test_evaluation_has_the_roles_and_keeps_text(read):
    df = read().evaluation()
    assert df.columns.tolist() == ['id', 'question', 'context', 'talk', 'region', 'prompt', 'cluster']
    assert df.id.tolist() == ['001', '002', '003'] and df.region.tolist() == ['NA', 'north', 'null']
    assert read().prompts(df) == ['Order 7\nWhere is it?', 'Order 8\nWhen?', '\nHow?']
    assert set(read().evaluation(1).cluster) in ({'a'}, {'b'})
    df.loc[0, 'id'] = 'changed'
    assert read().evaluation().id[0] == '001'


@pytest.mark.parametrize('data, said', [
    (CASES.replace('003', '001'), 'cases.csv: ids in column `id` must be unique, but row 3 repeats one (1 such rows)'), (CASES.replace('002', ''), '1 row(s) have no id in column `id`; the first is row 2')])
def test_ids(read, folder, data, said):
    (folder/'cases.csv').write_text(data)
    with pytest.raises(T.DataError, match=re.escape(said)): read().evaluation()


def test_typed_roles(read, folder):
    (folder/'cases.csv').write_text('question,context,talk,region,score,timestamp\na,,,x,0.5,2026-05-01\nb,,,x,,2026-05-01T12:30\n,,c,x,1e0,\n')
    df = read().evaluation()
    assert df.score.tolist()[::2] == [.5, 1.] and str(df.timestamp.dtype).endswith('UTC]') and df.prompt.isna().tolist() == [False, False, True]
    assert df.cluster.nunique() == 3 and df.id.nunique() == 3 and read().prompts(df)[2] == ''
    (folder/'cases.csv').write_text('question,context,talk,region,score\nprivate words,,,x,a secret thing\n')
    with pytest.raises(T.DataError, match='column `score` should hold numbers, but row 1 does not') as e: read().evaluation()
    assert 'secret thing' not in str(e.value)


def test_data_with_braces_passes_untouched(read, folder):
    (folder/'cases.csv').write_text('question,context,talk,region\n"{prompt} {0} {{x}} %s {context.__class__}","{prompt}",a,b\n')
    assert read().prompts(read().evaluation()) == ['{prompt}\n{prompt} {0} {{x}} %s {context.__class__}']


def test_lines_that_only_json_knows(tmp_path):
    (tmp_path/'a.jsonl').write_text('{"a": "x\u2028y\x85z"}\r\n{"a": "b"}\r\n', encoding='utf-8', newline='')
    assert T.read_table(tmp_path/'a.jsonl').a.tolist() == ['x\u2028y\x85z', 'b']


def test_a_long_cell(tmp_path):
    (tmp_path/'a.csv').write_text('id;prompt\n1;' + 'x,' * 200_000 + '\n')
    assert T.read_table(tmp_path/'a.csv').prompt.str.len().tolist() == [400_000]


def test_private_data_is_not_shown(read):
    card = read(CARD.replace('  evaluation:', '  private: true\n  evaluation:'))
    shown = card.mask(card.evaluation()).to_csv()
    assert 'Where is it?' not in shown and 'Order 7' not in shown and '[private, 12 characters]' in shown and '001' in shown and 'north' in shown
    assert card.show('hello') == '[private, 5 characters]' and read().show('hello') == 'hello'
    assert 'Where is it?' not in card._repr_markdown_()


def test_the_face_escapes_what_it_shows(read):
    face = read(CARD.replace('Solves nine of ten cases', '"<b>a|b</b>\\n| x |"').replace('template:', 'system: hush hush\n  template:'))._repr_markdown_()
    assert '<b>' not in face and 'a\\|b' in face and 'hush' not in face and '≥ 0.85 (advisory: a first trial)' in face


# --- models and digests ---------------------------------------------------------------------------
def test_model_system_and_answers(read, folder):
    (folder/'cases.csv').write_text(CASES + '004,,x,c,y\n')
    card = read()
    df = card.evaluation()
    for model in (card.model(), card.system()):
        found = model.answer(card.prompts(df))
        assert [a.text for a in found] == ['On Monday.'] * 3 + [''] and found[3].error and len(found) == len(df)


def test_recorded_answers_are_joined_by_id_or_prompt(read, folder, wrong):
    (folder/'log.csv').write_text('id,sent,answer\n003,x,three\n001,y,one\n')
    change = ('kind: python\n  target: bot:answer\n  deterministic: true', 'kind: recorded\n  path: log.csv')
    card = read(CARD.replace(*change))
    with pytest.warns(UserWarning, match='1 of 3 prompts'): found = card.system().answer(card.prompts(card.evaluation()))
    assert [a.text for a in found] == ['one', '', 'three'] and found[1].error and not card.model().live
    (folder/'log.csv').write_text('sent,answer\n"Order 7\nWhere is it?",one\n')
    assert wrong(change) == ['poc.yaml:5: model: name the column of the log to join by, `prompt` or `id` (columns: sent, answer)']
    assert wrong((change[0], change[1] + '\n  prompt: snt'))[0].startswith('poc.yaml:8: model.prompt: there is no column `snt`; did you mean `sent`?')
    card = read(CARD.replace(change[0], change[1] + '\n  prompt: sent'))
    assert card.model().answer(card.prompts(card.evaluation())[:1])[0].text == 'one'


def test_digests_change_with_what_matters(read, folder):
    base = read().digests()
    assert set(base) == {'card', 'model', 'prompt', 'guards', 'fallbacks', 'thresholds', 'data.evaluation'} and all(re.fullmatch('[0-9a-f]{8,64}', d) for d in base.values())
    def changed(old, new): return {k for k, v in read(CARD.replace(old, new)).digests().items() if v != base[k]}
    for old, new in [('Solves nine', 'Answers nine'), ('poc: parcels', '# a comment\npoc:   parcels'), ('a first trial', 'another reason'), ('owner: Ada', 'owner: Bob'), ('success:', 'owners: {risk: Cyd}\nsuccess:'), ('0.85', '.850')]:
        assert not changed(old, new), (old, new)
    assert changed('0.85', '0.95') == {'card', 'thresholds'}
    assert changed('hard: false', 'hard: true') == {'card', 'thresholds'}
    assert changed('{context}', 'Facts: {context}') == {'card', 'prompt'}
    assert changed('success:', 'fallbacks: [{text: Sorry}]\nsuccess:') == {'card', 'fallbacks'}
    (folder/'cases.csv').write_text(CASES + '4,x,y,z,w\n')
    assert {k for k, v in read().digests().items() if v != base[k]} == {'data.evaluation'}


# --- schema and template --------------------------------------------------------------------------
def test_the_committed_schema_is_what_the_models_make(tmp_path):
    made = write_schema(tmp_path/'s.json').read_text(encoding='utf-8')
    assert made == (Path(C.__file__).with_name('poc.schema.json')).read_text(encoding='utf-8'), 'run: python -c "from genai_playbook.card import write_schema; write_schema()"'


def test_the_schema_accepts_and_refuses_what_the_reader_does():
    schema = card_schema(SECTIONS)
    jsonschema.Draft202012Validator.check_schema(schema)
    check = jsonschema.Draft202012Validator(schema)
    assert not list(check.iter_errors(yaml.safe_load(CARD)))
    for old, new in [('promise:', 'promised:'), ('kind: python', 'kind: pyton'), ('target: 0.85', 'target: 85'), ('success:', 'sucess:'), ('hard: false, ', '')]:
        assert list(check.iter_errors(yaml.safe_load(CARD.replace(old, new)))), (old, new)


def keys(node, root):
    node = root['$defs'][node['$ref'].split('/')[-1]] if '$ref' in node else node
    for part in [*node.get('anyOf', []), *node.get('oneOf', []), *([node['items']] if 'items' in node else []), *([node['additionalProperties']] if isinstance(node.get('additionalProperties'), dict) else [])]: yield from keys(part, root)
    for k, v in node.get('properties', {}).items():
        yield k, v.get('description') or root['$defs'][v['$ref'].split('/')[-1]]['description']
        yield from keys(v, root)


def test_the_template_teaches_every_key_and_every_key_is_described():
    schema, text = CardSpec.model_json_schema(), card_template(sections=SECTIONS)
    for key, description in keys(schema, schema):
        assert description and re.search(rf'\b{key}:', text), key


def _with_model(text, kind):
    "The template with another of its models"
    blocks = re.split(r'(?m)^(?=#? ?model: )|^(?=# model:)|^(?=model:)|^(?=prompt:)', text)
    return ''.join(re.sub(r'(?m)^# ?', '', b) if f'kind: {kind}' in b else '' if b.startswith(('model:', '# model:')) else b for b in blocks)


@pytest.mark.parametrize('kind', ['transformers', 'openai', 'python', 'recorded'])
def test_each_model_of_the_template_can_be_uncommented(tmp_path, kind):
    head = 'id,prompt,reference,context,intent,conversation_id,timestamp,outcome,decision_score,answer_today,group,region,channel'
    (tmp_path/'evaluation.csv').write_text(head + '\n' + ','.join('x' * head.count(',')) + ',x\n')
    (tmp_path/'reviews.csv').write_text('id,label\n1,a\n')
    (tmp_path/'log.csv').write_text('id,prompt,answer\n1,a,b\n')
    (tmp_path/'model').mkdir()
    text = re.sub(r'(?m)^# (?=success:)|^# (?=  (target|metric|tries):)', '', _with_model(card_template(sections=SECTIONS), kind))
    card = parse_card(text, tmp_path/'poc.yaml', sections=SECTIONS, gates=[SPEC])
    assert card.model_spec.kind == kind and card.section('success').target == .9


def test_init_makes_a_whole_folder_and_never_overwrites(tmp_path, monkeypatch):
    package = tmp_path/'package'
    shutil.copytree(C._DATA.parent/'templates', package/'templates')
    shutil.copytree(C._DATA/'demo', package/'data'/'demo')
    (package/'data'/'demo'/'model').mkdir(exist_ok=True)
    monkeypatch.setattr(C, '_DATA', package/'data')
    path = init_poc(tmp_path/'My first POC!')
    card = load_card(path)
    assert path == tmp_path/'My first POC!'/'poc.yaml' and card.name == 'My-first-POC' and len(card.evaluation()) > 100 and len(card.table('reviews')) > 100
    assert C.model_path('model', card.folder) == str(card.folder/'model')
    assert json.loads((path.parent/'poc.schema.json').read_text())['title']
    before = path.read_text()
    with pytest.raises(PlaybookError, match='already has'): init_poc(tmp_path/'My first POC!')
    assert path.read_text() == before
    (tmp_path/'file').write_text('')
    with pytest.raises(PlaybookError, match='cannot be written'): init_poc(tmp_path/'file'/'x')


@pytest.mark.parametrize('name', sorted(C.bundled_cards()))
def test_bundled_cards_fit_the_schema(name):
    card = load_card(name)
    assert card.bundled and card.name == name and len(card.evaluation()) > 100
    jsonschema.validate(yaml.safe_load(card.path.read_text(encoding='utf-8')), json.loads(Path(C.__file__).with_name('poc.schema.json').read_text(encoding='utf-8')))


# --- whatever happens, a card or a sentence ---------------------------------------------------------
WORDS = ['', ' ', ':', '-', '{', '}', '[', ']', '"', "'", '#', '&a', '*a', '!!', '!x', '|', '>', '\t', '\n', '\n  ', '\x00', '\x85', '\ud7ff', 'é', '🙂', '~', 'null', 'true', '1e999', '.nan', '9' * 50, '0x', '<<', '---', '...', '%',
         '{a.b}', '{{', '../..', '/', 'https://', '\\', '@', '`', ',', '? ', 'model', 'kind', 'data', 'success', 'gates', 'bias']


@given(st.lists(st.tuples(st.integers(0, len(CARD)), st.integers(0, 25), st.one_of(st.sampled_from(WORDS), st.text(max_size=6))), min_size=1, max_size=4))
@example([(0, len(CARD), '- a')])
@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_mutations_give_a_card_or_a_sentence(read, edits):
    text = CARD
    for at, cut, word in edits: text = text[:at] + word + text[at + cut:]
    try: card = read(text.encode('utf-8', 'surrogatepass'))
    except CardError as e:
        assert e.problems and all(len(p.text) > 8 for p in e.problems)
        assert 'Traceback' not in str(e) and 'pydantic' not in str(e) and 'object at 0x' not in str(e)
        assert len(str(e).split('\n')) == len(e.problems)
    else:
        assert isinstance(card, Card) and card._repr_markdown_() and card.evaluation() is not None


def _values(draw_from): return st.recursive(draw_from, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*CardSpec.model_fields, 'kind', 'target', 'x']), inner, max_size=3), max_leaves=6)


@given(st.dictionaries(st.sampled_from([*CardSpec.model_fields, 'success', 'latency', 'x']), _values(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just('cases.csv'))))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_structure_gives_a_card_or_a_sentence(read, tree):
    base = yaml.safe_load(CARD)
    for part in (tree, base | tree, *({**base, k: (base[k] | v) if isinstance(v, dict) and isinstance(base.get(k), dict) else v} for k, v in tree.items())):
        try: read(yaml.safe_dump(part))
        except CardError as e: assert e.problems and 'pydantic' not in str(e)


@given(st.binary(max_size=60) | st.text('ab:-[]{}"\'#&*!|>%@` \n\t,?~', max_size=40).map(str.encode))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_yaml_or_a_sentence(data):
    try: parse_yaml(data)
    except YamlProblem as e: assert len(e.message) > 8


def test_shuffled_lines_give_a_card_or_a_sentence(read):
    rng = random.Random(0)
    for _ in range(60):
        lines = CARD.split('\n')
        rng.shuffle(lines)
        try: read('\n'.join(lines))
        except CardError as e: assert e.problems
