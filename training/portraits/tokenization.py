"""The two tokenizers, trained on captions: a CLIP style BPE and a T5 style unigram model.

Both fold case. Letters that no caption holds are part of both alphabets, so that any prompt has
tokens; what is outside the T5 alphabet becomes ``<unk>``.
"""

from __future__ import annotations

import json
import math
import string
from collections import Counter
from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE, Unigram
from tokenizers.trainers import BpeTrainer
from transformers import CLIPTokenizer, PreTrainedTokenizerFast

CLIP_LENGTH = 77
T5_LENGTH = 64
"""Text tokens the transformer is trained on mostly; divisible by 8, as are its heads."""

BOS, EOS = "<|startoftext|>", "<|endoftext|>"


def train_clip_tokenizer(captions: Iterable[str], vocab_size: int = 1024) -> CLIPTokenizer:
    """Byte-level BPE with CLIP's own normalisation; pads with the end-of-text token."""
    template = CLIPTokenizer()
    trainee = Tokenizer(BPE(end_of_word_suffix="</w>", unk_token=EOS))
    trainee.normalizer = template.backend_tokenizer.normalizer
    trainee.pre_tokenizer = template.backend_tokenizer.pre_tokenizer
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainee.train_from_iterator(
        captions,
        BpeTrainer(
            vocab_size=vocab_size - 2 - len(alphabet),
            special_tokens=[],
            initial_alphabet=alphabet,
            end_of_word_suffix="</w>",
            show_progress=False,
        ),
    )
    merges = [tuple(merge) for merge in _merges(trainee)]
    tokens = [*alphabet, *(f"{letter}</w>" for letter in alphabet)]
    tokens += [a + b for a, b in merges]
    vocab = {token: index for index, token in enumerate(dict.fromkeys([*tokens, BOS, EOS]))}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=CLIP_LENGTH)


def train_t5_tokenizer(captions: Iterable[str], least: int = 20) -> PreTrainedTokenizerFast:
    """Unigram pieces with T5's special tokens: pad 0, end of sequence 1, unknown 2.

    Every word that the captions use at least ``least`` times is a piece, scored by its frequency;
    single characters, far less likely, spell everything else.
    """
    normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Punctuation(),
            pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always"),
        ]
    )
    words: Counter[str] = Counter()
    for caption in captions:
        normal = normalizer.normalize_str(caption)
        words.update(word for word, _ in pre_tokenizer.pre_tokenize_str(normal))
    total = sum(words.values())
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces += [
        (word, math.log(count / total)) for word, count in words.most_common() if count >= least
    ]
    known = {piece for piece, _ in pieces}
    alphabet = "▁" + string.ascii_lowercase + string.digits + string.punctuation
    pieces += [(letter, -2 * math.log(total)) for letter in alphabet if letter not in known]
    tokenizer = Tokenizer(Unigram(pieces, unk_id=2))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=T5_LENGTH,
    )


def _merges(tokenizer: Tokenizer) -> list[list[str]]:
    model = json.loads(tokenizer.to_str())["model"]
    return [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
