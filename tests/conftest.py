"What several test files need"
from datetime import datetime, timedelta, timezone

import pytest

START = datetime(2026, 3, 2, 9, tzinfo=timezone.utc)


class Clock:
    "A clock that moves a second with each look"
    def __init__(self, at=START): self.at = at
    def __call__(self):
        self.at += timedelta(seconds=1)
        return self.at


def make_tiny_model(folder, template: bool = True, context: int = 256, pad: bool = True, **config):
    "A random Llama with a tokenizer of one token for each byte, as `save_pretrained` writes it"
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    from transformers.utils import logging
    alphabet = ['<pad>', '<s>', '</s>', '<|user|>', '<|assistant|>', '<|system|>', *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer.add_special_tokens(alphabet[:6])
    tok = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token='<s>', eos_token='</s>', **(dict(pad_token='<pad>') if pad else {}))
    if template: tok.chat_template = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    torch.manual_seed(3)
    LlamaForCausalLM(LlamaConfig(**dict(vocab_size=len(alphabet), hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=context,
                                        bos_token_id=1, eos_token_id=2, pad_token_id=0, initializer_range=.3) | config)).save_pretrained(folder)
    tok.save_pretrained(folder)
    if bars: logging.enable_progress_bar()
    return folder


@pytest.fixture(scope='session')
def tiny_model(tmp_path_factory):
    "The folder of a tiny random model with a chat template; copy it before changing it"
    return make_tiny_model(tmp_path_factory.mktemp('models')/'tiny')


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    "An empty answer cache"
    monkeypatch.setenv('GENAI_PLAYBOOK_CACHE', str(tmp_path/'cache'))
    return tmp_path/'cache'


@pytest.fixture(scope='session', autouse=True)
def own_data(tmp_path_factory):
    "Ledgers of the bundled POCs go to a folder of the tests, never to the user's"
    import os
    old, os.environ['GENAI_PLAYBOOK_DATA'] = os.environ.get('GENAI_PLAYBOOK_DATA'), str(tmp_path_factory.mktemp('data'))
    yield
    del os.environ['GENAI_PLAYBOOK_DATA']
    if old is not None: os.environ['GENAI_PLAYBOOK_DATA'] = old
