"YAML as a POC card needs it: a line for every key, no silent surprises, and limits that a hostile file cannot pass"
import re
from dataclasses import dataclass, field
from typing import Any

import yaml

__all__ = ['Parsed', 'YamlProblem', 'compose_yaml', 'parse_yaml', 'decode_utf8', 'MAX_BYTES', 'MAX_NODES', 'MAX_DEPTH']

MAX_BYTES, MAX_NODES, MAX_DEPTH = 262_144, 10_000, 24   # a card is a page or two; these bound what aliases may unfold to, too


class YamlProblem(Exception):
    "What keeps a file from being read at all: one sentence and the line (None: the whole file)"
    def __init__(self, message: str, line: int|None = None):
        super().__init__(message)
        self.message, self.line = message, line


@dataclass
class Parsed:
    "Plain values with the place and the spelling of each"
    value: Any = None
    lines: dict[tuple, int] = field(default_factory=dict)              # path of keys and indices -> line, from 1
    raw: dict[tuple, str] = field(default_factory=dict)                # path of a scalar -> as it is spelt in the file
    duplicates: list[tuple[tuple, int]] = field(default_factory=list)  # path, line of the second one

    def line(self, path: tuple) -> int:
        "Line of `path`, or of the nearest thing around it"
        while path and path not in self.lines: path = path[:-1]
        return self.lines.get(path, 1)


class _Loader(yaml.SafeLoader):
    "YAML 1.2's core types: `no`, `off`, `1:30` and dates are text, `1e-3` is a number"
    yaml_implicit_resolvers = {}
    nodes = depth = 0

    def compose_node(self, parent, index):
        self.nodes += 1; self.depth += 1
        if self.nodes > MAX_NODES or self.depth > MAX_DEPTH: raise YamlProblem(_too_much, self.peek_event().start_mark.line + 1)
        try: return super().compose_node(parent, index)
        finally: self.depth -= 1


_too_much = f'the file is nested or repeated beyond what a card needs ({MAX_DEPTH} levels, {MAX_NODES:,} values)'
_core = 'tag:yaml.org,2002:'
_types = dict(null=(r'~|null|Null|NULL|', ['~', 'n', 'N', '']), bool=(r'true|True|TRUE|false|False|FALSE', list('tTfF')),
              int=(r'[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+', list('-+0123456789')),
              float=(r'[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)', list('-+.0123456789')))
for _name, (_pattern, _first) in _types.items(): _Loader.add_implicit_resolver(_core + _name, re.compile(rf'^(?:{_pattern})$'), _first)


def decode_utf8(data: bytes) -> str:
    "Bytes as text, or a sentence that says which byte is wrong and how to convert the file"
    if data[:2] in (b'\xff\xfe', b'\xfe\xff'): raise YamlProblem('the file is UTF-16; save it as UTF-8')
    if b'\0' in data: raise YamlProblem('this is a binary file, not text')
    try: return data.decode('utf-8-sig')
    except UnicodeDecodeError as e:
        line = data.count(b'\n', 0, e.start) + 1
        raise YamlProblem(f'byte {e.start:,} (0x{data[e.start]:02x}, on line {line}) is not UTF-8; '
                          'convert the file with `iconv -f WINDOWS-1252 -t UTF-8`, or save it as UTF-8', line) from None


def _sentence(e: yaml.YAMLError) -> YamlProblem:
    "PyYAML's complaint in one sentence, without a snippet of the file"
    mark = getattr(e, 'problem_mark', None) or getattr(e, 'context_mark', None)
    problem = getattr(e, 'problem', None) or 'a character that YAML does not allow'
    context = getattr(e, 'context', None)
    if r"'\t'" in problem: problem, context = 'a tab stands where YAML wants spaces; indent with spaces', None
    elif 'end of stream' in problem and 'quoted' in (context or ''): problem, context, mark = 'a quotation mark opened on this line is never closed', None, e.context_mark
    elif 'flow' in (context or '') and 'stream end' in problem: problem, context, mark = 'a bracket opened on this line is never closed', None, e.context_mark
    elif problem == 'mapping values are not allowed here':
        problem = 'a `: ` where none is expected; look at the indentation and at the line above, and put text that holds `: ` in quotes'
    elif problem == "could not find expected ':'": problem, context = 'this is no `key: value`; is a `:` missing, or the space after it?', None
    elif problem.startswith('found undefined alias'): problem, context = 'text that starts with `*` is a YAML alias; put it in quotes', None
    elif 'cannot start any token' in problem: problem, context = 'text cannot start with this character; put it in quotes', None
    elif 'expected <block end>' in problem: problem, context = 'the indentation does not fit the lines above', None
    return YamlProblem(problem + (f' ({context})' if context else ''), mark.line + 1 if mark else None)


def _scalar(node: yaml.ScalarNode) -> Any:
    kind = node.tag.removeprefix(_core)
    text = node.value
    try:
        if kind == 'null': return None
        if kind == 'bool': return text.lower() == 'true'
        if kind == 'int': return int(text, 0) if text[:2] in ('0x', '0o') else int(text)
        if kind == 'float': return float(re.sub(r'\.(inf|nan)$', r'\1', text.lower()))
    except ValueError: pass
    return text


def _build(node: yaml.Node, path: tuple, out: Parsed, count: list[int]) -> Any:
    count[0] += 1
    if count[0] > MAX_NODES or len(path) > MAX_DEPTH: raise YamlProblem(_too_much, node.start_mark.line + 1)
    if node.tag not in {_core + k for k in ('null', 'bool', 'int', 'float', 'str', 'map', 'seq')}:
        raise YamlProblem('YAML tags (`!name`) are not read in a card; write plain values', node.start_mark.line + 1)
    if isinstance(node, yaml.ScalarNode):
        out.raw[path] = node.value
        return _scalar(node)
    if isinstance(node, yaml.SequenceNode):
        for i, item in enumerate(node.value): out.lines.setdefault((*path, i), item.start_mark.line + 1)
        return [_build(item, (*path, i), out, count) for i, item in enumerate(node.value)]
    res = {}
    for key, val in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode): raise YamlProblem('a key has to be plain text, not a list or a mapping', line)
        if (name := key.value) in res: out.duplicates.append(((*path, name), line)); continue
        out.lines[(*path, name)] = line
        res[name] = _build(val, (*path, name), out, count)
    return res


def compose_yaml(data: bytes|str) -> yaml.Node:
    "The nodes of one YAML document, each with its place in the text; raises `YamlProblem` with one sentence and a line"
    if len(data) > MAX_BYTES: raise YamlProblem(f'the file has {len(data):,} bytes; a card has at most {MAX_BYTES:,}')
    text = decode_utf8(data) if isinstance(data, bytes) else data
    loader = None
    try:
        loader = _Loader(text)
        if not loader.check_node(): raise YamlProblem('the file is empty; `genai-playbook init` writes a card to start from')
        node = loader.get_node()
        if loader.check_node(): raise YamlProblem('a second YAML document starts here (`---`); a card is one document', loader.peek_event().start_mark.line + 1)
        return node
    except yaml.reader.ReaderError as e:
        raise YamlProblem(f'character {e.position + 1:,} is a control character, which YAML does not allow', text.count('\n', 0, e.position) + 1) from None
    except yaml.YAMLError as e: raise _sentence(e) from None
    except RecursionError: raise YamlProblem(_too_much) from None
    finally:
        if loader: loader.dispose()


def parse_yaml(data: bytes|str) -> Parsed:
    "Read one YAML document; raises `YamlProblem` with one sentence and a line"
    out = Parsed()
    out.value = _build(compose_yaml(data), (), out, [0])
    return out
