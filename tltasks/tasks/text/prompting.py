"""The way in which a checkpoint reads a document and writes a summary: prompt, template, special tokens, limits."""

from __future__ import annotations

import bisect
import contextlib
import itertools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import datasets
import numpy as np
from numpy.typing import NDArray
from transformers import GenerationConfig, PretrainedConfig, PreTrainedTokenizerBase

from tltasks.config.model import Checkpoint
from tltasks.config.tasks.text import Generation, TextData, TextModel
from tltasks.data.languages import Languages
from tltasks.data.splits import EncodedSplit
from tltasks.errors import CheckpointError, DataError, RecipeError
from tltasks.metrics.rouge import sentence_ends
from tltasks.models.loading import open_generation, open_tokenizer
from tltasks.tasks.base import content_key, digest_of
from tltasks.tasks.chat import fix_date
from tltasks.tasks.vocabulary import lost_characters

Ids = list[int]
SUFFIXES = frozenset({".md", ".rst", ".text", ".txt"})
"""Endings of files that are taken for documents."""
MOST_TOKENS = 1024
"""Tokens of a document, for a checkpoint that does not say how long its documents were and could read more."""
PLAIN_PROMPT = "{document}\n\nTL;DR:"
"""For decoders without a chat template. Source: Radford et al., Language Models are Unsupervised Multitask Learners,
2019, §3.6."""
CHAT_PROMPT = "Summarize the following text.\n\n{document}"
LINE_END = "<n>"
"""PEGASUS writes it between sentences."""
_LANGUAGE = re.compile(r"[a-z]{2,3}(_[A-Za-z]+)?|__\w+__")
"""Names and tokens of languages; of programming languages, too (PLBart)."""
BY_ROW = "language_of_each_row"
"""Set in `task_specific_params` of a checkpoint that was told each row's language: its tokenizer's is any of them."""
_MARK = "summary\u241fmark"


@dataclass(frozen=True)
class TextFormat:
    """Documents and summaries as token ids, cut to the recipe's limits."""

    tokenizer: PreTrainedTokenizerBase
    prompt: str
    """Text around the document, which stands at `{document}`."""
    encoder_decoder: bool
    chat: bool
    """The prompt is a user's message in the tokenizer's chat template."""
    end: int
    """Id that ends a summary."""
    pad: int
    lead: str
    """Text between a decoder's prompt and the summary."""
    start: int
    """Id that an encoder-decoder begins to write after."""
    opening: tuple[int, ...]
    """Ids before a summary's text that are to be written: a first token (BART), or its language."""
    closing: tuple[int, ...]
    """Ids after a summary's text: the end, and in some vocabularies its language."""
    language: int | None
    """Id of the language, where the vocabulary has such."""
    max_document_tokens: int
    max_summary_tokens: int
    splits: bool
    """Documents that are too long are read in pieces outside training."""
    dated: bool
    """The chat template said what day it is, and has another date instead."""
    languages: Languages
    """Those that texts may be framed by."""
    language_ids: Mapping[str, int]
    """Ids of these by code."""
    tail: int
    """Special tokens that the tokenizer puts behind a text, of which a decoder would take that its prompt has ended."""

    @property
    def key(self) -> str:
        """All that encoded rows depend on."""
        parts = (content_key(self.tokenizer), self.prompt, self.encoder_decoder)
        frame = (self.chat, self.tail, self.lead, self.start, self.opening, self.closing)
        limits = (self.max_document_tokens, self.max_summary_tokens, self.splits)
        return digest_of(*parts, *frame, *limits)

    # ------------------------------------------------------------------------------------ documents

    def encode_documents(self, texts: Sequence[str]) -> tuple[list[Ids], list[int], list[str]]:
        """Token ids of each document in its prompt, the tokens of the whole document so, and characters unknown."""
        whole = self._plain_ids(texts)
        around = len(self._framed([""])[0])
        room = self.max_document_tokens - around
        framed = self._framed([self._cut(text, ids, room) for text, ids in zip(texts, whole, strict=True)])
        counts = [len(ids) + around if len(ids) > room else len(framed[i]) for i, ids in enumerate(whole)]
        for i, ids in enumerate(framed):  # tokens merge otherwise at a cut, which may leave one too many
            left = room
            while len(ids) > self.max_document_tokens and left > 0:
                left -= len(ids) - self.max_document_tokens
                ids = self._framed([self._cut(texts[i], whole[i], left)])[0]
            framed[i] = ids
        with one_vocabulary(self.tokenizer, "encoder"):
            return framed, counts, lost_characters(self.tokenizer, texts, whole, unknown_only=True)

    def encode_pieces(self, texts: Sequence[str]) -> list[list[Ids]]:
        """Token ids of each document in its prompt, of those that are too long piece by piece."""
        room = self.max_document_tokens - len(self._framed([""])[0])
        pieces = [
            split_document(text, room=room, count=lambda parts: [len(ids) for ids in self._plain_ids(parts)])
            if size > room
            else [text]
            for text, size in zip(texts, map(len, self._plain_ids(texts)), strict=True)
        ]
        return [self.encode_documents(parts)[0] for parts in pieces]

    def _plain_ids(self, texts: Sequence[str]) -> list[Ids]:
        ids: list[Ids] = self.tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    def _cut(self, text: str, ids: Ids, room: int) -> str:
        """The part of the text that its first tokens cover."""
        if len(ids) <= room:
            return text
        if not self.tokenizer.is_fast:
            fits = bisect.bisect(range(len(text) + 1), room, key=lambda end: len(self._plain_ids([text[:end]])[0]))
            return text[: max(0, fits - 1)]
        offsets = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return text[: offsets["offset_mapping"][room - 1][1]] if room > 0 else ""

    def _framed(self, documents: Sequence[str]) -> list[Ids]:
        """In the prompt, with special tokens."""
        texts = [self.prompt.replace("{document}", document) for document in documents]
        if self.chat:
            texts = [_chat(self.tokenizer, [{"role": "user", "content": text}], answer_next=True) for text in texts]
        ids: list[Ids] = self.tokenizer(texts, add_special_tokens=not self.chat, verbose=False)["input_ids"]
        return [row[: len(row) - self.tail] for row in ids]

    # ------------------------------------------------------------------------------------ summaries

    def encode_summaries(self, texts: Sequence[str]) -> tuple[list[Ids], list[int], list[str]]:
        """Token ids of each summary with what closes it, the tokens of the whole summary, and characters lost."""
        closing = list(self.closing)
        if self.encoder_decoder:
            around = {"add_special_tokens": False, "verbose": False}
            with one_vocabulary(self.tokenizer, "decoder"):
                ids: list[Ids] = self.tokenizer(text_target=list(texts), **around)["input_ids"]
            ids = [[*self.opening, *row] for row in ids]
        else:
            ids = self._plain_ids([f"{self.lead}{text}" for text in texts])
        room = self.max_summary_tokens - len(closing)
        lost = lost_characters(self.tokenizer, texts, ids)
        return [[*row[:room], *closing] for row in ids], [len(row) + len(closing) for row in ids], lost

    def decode(self, ids: Iterable[int]) -> str:
        """The text of generated ids."""
        # M2M-100's tokenizer takes its languages for words (transformers 5.24, tokenization_m2m_100.py, __init__).
        signs = {self.language, *self.language_ids.values()}
        text: str = self.tokenizer.decode([i for i in ids if i not in signs], skip_special_tokens=True)
        return text.replace(LINE_END, "\n").strip()

    # ------------------------------------------------------------------------------------ languages

    def own_language(self, name: str | None) -> int:
        """The id of a row's language, by its name in the data."""
        return self.language_ids[self.languages.code(name)]

    def in_language(self, ids: Ids, language: int | None) -> Ids:
        """A framed text with its own language in the place of the format's, which is among the first or last ids."""
        if language is None:
            return ids
        ends = {0, len(ids) - 2, len(ids) - 1}
        return [language if i in ends and one == self.language else one for i, one in enumerate(ids)]

    # ----------------------------------------------------------------------------------- generation

    def decoding(self, own: GenerationConfig, keys: Generation) -> GenerationConfig:
        """Settings by which summaries are generated: the checkpoint's, the recipe's over them, and never by chance."""
        config = GenerationConfig.from_dict(own.to_dict())
        # Settings of sampling beside do_sample=False make save_pretrained refuse (transformers 5.24,
        # generation/configuration_utils.py, validate).
        for name in ("temperature", "top_p", "top_k", "min_p", "typical_p", "max_length"):
            setattr(config, name, None)
        config.do_sample = False
        config.max_new_tokens = self.max_summary_tokens
        for name, value in keys.model_dump().items():
            if value is not None:
                setattr(config, name, value)
        if (config.num_beams or 1) == 1:
            config.length_penalty = config.early_stopping = None
        if keys.min_new_tokens is not None or (config.min_length or 0) >= self.max_summary_tokens:
            config.min_length = None
        ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
        others = [end for end in ends if end is not None and end != self.end]
        config.eos_token_id = [self.end, *others] if others else self.end
        config.pad_token_id = self.pad
        if self.encoder_decoder:
            config.decoder_start_token_id = self.start
        if self.language is not None:
            config.forced_bos_token_id = self.language if self.language in self.opening else None
        return config


def open_format(
    source: Checkpoint, config: PretrainedConfig, model: TextModel, data: TextData, *, by_row: bool = False
) -> TextFormat:
    """The format of a checkpoint, with what the recipe says of it; raises CheckpointError or RecipeError.

    With rows that tell their language (`by_row`), none has to be named.
    """
    tokenizer, name = open_tokenizer(source), source.display_name
    encoder_decoder = bool(config.is_encoder_decoder)
    chat = not encoder_decoder and bool(tokenizer.chat_template)
    languages = known_languages(tokenizer, config, display_name=name)
    language = set_language(tokenizer, model.language, languages, by_row=by_row)
    default = languages.default if model.language is None or not languages.codes else languages.code(model.language)
    dated = chat and fix_date(tokenizer, display_name=name)
    prompt = model.prompt or _own_prompt(config, chat=chat)
    end = _end(tokenizer, config)
    if end is None:
        raise CheckpointError(f"model {name}: its tokenizer names no end token (eos_token), so no summary would end.")
    lead, end = _answer(tokenizer) if chat else (" ", end)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else end
    start, opening, closing = _frame(source, config, tokenizer, end) if encoder_decoder else (end, (), (end,))
    made = TextFormat(
        tokenizer,
        prompt,
        encoder_decoder,
        chat,
        end,
        pad,
        lead,
        start,
        opening,
        closing,
        language,
        data.max_document_tokens,
        data.max_summary_tokens,
        data.long_documents == "split",
        dated,
        replace(languages, default=default),
        _language_ids(tokenizer, languages, language),
        0 if encoder_decoder or chat else _tail(tokenizer),
    )
    _check_room(made, config, display_name=name)
    return made


def _own_prompt(config: PretrainedConfig, *, chat: bool) -> str:
    """The prompt that the checkpoint was trained with."""
    known = (getattr(config, "task_specific_params", None) or {}).get("summarization", {})
    if "prefix" in known:
        return f"{known['prefix']}{{document}}{known.get('suffix', '')}"
    if not config.is_encoder_decoder:
        return CHAT_PROMPT if chat else PLAIN_PROMPT
    return "summarize: {document}" if config.model_type == "t5" else "{document}"


def _chat(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], *, answer_next: bool) -> str:
    # enable_thinking is heeded by templates that know it and ignored by others.
    text: str = tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=answer_next, enable_thinking=False
    )
    return text


def _answer(tokenizer: PreTrainedTokenizerBase) -> tuple[str, int]:
    """The template's text before an answer, the prompt aside, and the id after it: not always the end token."""
    asked = {"role": "user", "content": "text"}
    prompt = _chat(tokenizer, [asked], answer_next=True)
    text = _chat(tokenizer, [asked, {"role": "assistant", "content": _MARK}], answer_next=False)
    before, _, behind = text.rpartition(_MARK)
    lead = before.removeprefix(prompt) if before.startswith(prompt) else ""
    after = tokenizer(behind.strip(), add_special_tokens=False)["input_ids"]
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    end: int = after[0] if after and after[0] in special else tokenizer.eos_token_id
    return lead, end


def _tail(tokenizer: PreTrainedTokenizerBase) -> int:
    """Special tokens that the tokenizer puts behind a text."""
    ids: Ids = tokenizer("the", verbose=False)["input_ids"]
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    return len(list(itertools.takewhile(special.__contains__, reversed(ids))))


def _end(tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig) -> int | None:
    """The id that ends a text; of ProphetNet and pairs of BERTs the configuration knows it, or it is what separates."""
    named = getattr(config, "eos_token_id", None)
    ends = (tokenizer.eos_token_id, named[0] if isinstance(named, list) else named, tokenizer.sep_token_id)
    return next((end for end in ends if end is not None), None)


def _frame(
    source: Checkpoint, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase, end: int
) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    """The id that an encoder-decoder writes after, and those around a target's text, as its tokenizer puts them.

    A first token that is the same as what is written after would stand there twice.
    """
    ids: Ids = tokenizer(text_target="", verbose=False)["input_ids"]
    last = len(ids) - 1 - ids[::-1].index(end) if end in ids else len(ids)
    opening, closing = ids[:last], ids[last:] or [end]
    generation = open_generation(source)
    starts = (
        closing[-1] if len(closing) > 1 else None,  # mBART of 25 languages: the language that closes a text begins it
        generation.decoder_start_token_id,
        getattr(config, "decoder_start_token_id", None),
        generation.bos_token_id,
        *opening,
        end,
    )
    start = next(start for start in starts if start is not None)
    return start, tuple(opening[1:] if opening[:1] == [start] else opening), tuple(closing)


@contextlib.contextmanager
def one_vocabulary(tokenizer: PreTrainedTokenizerBase, side: str) -> Iterator[None]:
    """The `encoder`'s vocabulary or the `decoder`'s for both, where a tokenizer has two.

    FSMT's reads targets by the one and writes them by the other (transformers 5.24, tokenization_fsmt.py).
    """
    if not hasattr(tokenizer, "tgt_vocab_size"):
        yield
        return
    held = tokenizer.encoder, tokenizer.decoder
    if side == "decoder":
        tokenizer.encoder = {token: i for i, token in held[1].items()}
    else:
        tokenizer.decoder = {i: token for token, i in held[0].items()}
    try:
        yield
    finally:
        tokenizer.encoder, tokenizer.decoder = held


def token_counts(rows: datasets.Dataset) -> NDArray[np.int64]:
    """The column `tokens` of encoded rows."""
    counts: NDArray[np.int64] = np.asarray(rows.with_format("numpy")["tokens"][:])
    return counts


def token_room(
    config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase, asked: int, *, with_data: bool, name: str
) -> int:
    """Most tokens that are read of a text: as many as are asked for, or, without data, as there are.

    Raises RecipeError where the checkpoint has positions for fewer.
    """
    longest: int | None = positions(config)[0]
    if longest is not None:  # RoBERTa's table has two positions that are never used
        longest = min(longest, int(tokenizer.model_max_length))
    if longest is None or asked <= longest:
        return asked
    if with_data:
        raise RecipeError(f"data.max_tokens: {name} reads at most {longest} tokens, and this asks for {asked}.")
    return longest


def cut_shares(encoded: Mapping[str, EncodedSplit], most: int) -> dict[str, dict[str, float]]:
    """The share of each split's texts that have more than so many tokens, as `data_checks` has it."""
    return {name: {"texts_cut_share": float((token_counts(it.rows) > most).mean())} for name, it in encoded.items()}


def known_languages(tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig, *, display_name: str) -> Languages:
    """The languages that a tokenizer has tokens of, and its own, where that reads and writes the same."""
    own = getattr(tokenizer, "tgt_lang", None)
    names = getattr(tokenizer, "lang_code_to_id", None) or tokenizer.all_special_tokens
    known = sorted(name.strip("_") for name in names if hasattr(tokenizer, "tgt_lang") and _LANGUAGE.fullmatch(name))
    of_rows = (getattr(config, "task_specific_params", None) or {}).get("summarization", {}).get(BY_ROW)
    is_own = known and own == tokenizer.src_lang and not of_rows
    return Languages(tuple(known), display_name, default=own.strip("_") if own is not None and is_own else None)


def set_language(
    tokenizer: PreTrainedTokenizerBase, language: str | None, languages: Languages, *, by_row: bool = False
) -> int | None:
    """Set the language of what is read and written, and return its id; None where texts are framed by no language.

    Unset, it is the checkpoint's own, or any where rows tell theirs. Raises RecipeError where it is not known, or not
    asked for.
    """
    known, display_name = languages.codes, languages.display_name
    if not known:
        if language is not None:
            raise RecipeError(
                f"model.language: the tokenizer of {display_name} has no language tokens; take the key out."
            )
        return None
    language = language or languages.default or (known[0] if by_row else None)
    if language is None:
        raise RecipeError(
            f"model.language: {display_name} knows {len(known)} languages; name the one of the documents and "
            f"summaries, e.g. `language: {known[0]}`, or in `data.columns.language` a column of each row's. It knows: "
            f"{', '.join(known)}."
        )
    try:
        name = languages.code(language)
    except DataError as reason:
        raise RecipeError(f"model.language: {reason}") from reason
    for spelled in (name, f"__{name}__"):  # as tokenizers want it
        with contextlib.suppress(KeyError):
            tokenizer.src_lang = tokenizer.tgt_lang = spelled
            for i in tokenizer(text_target="", verbose=False)["input_ids"]:
                if str(tokenizer.convert_ids_to_tokens(i)).strip("_") == name:
                    return int(i)
    raise RecipeError(f"model.language: {display_name} has no token of its language {name}.")


def _language_ids(tokenizer: PreTrainedTokenizerBase, languages: Languages, one: int | None) -> dict[str, int]:
    """Ids of all languages, whose tokens are spelled as that of the `one` which is set."""
    if one is None:
        return {}
    token = str(tokenizer.convert_ids_to_tokens(one))
    pattern = token.replace(token.strip("_"), "{}")
    return {code: int(tokenizer.convert_tokens_to_ids(pattern.format(code))) for code in languages.codes}


def _check_room(made: TextFormat, config: PretrainedConfig, *, display_name: str) -> None:
    around = len(made._framed([""])[0])
    if made.max_document_tokens <= around:
        raise RecipeError(
            f"data.max_document_tokens: {made.max_document_tokens} leaves no room for a document; "
            f"the prompt alone takes {around} tokens."
        )
    longest, summaries = positions(config)
    needed = made.max_document_tokens + (0 if made.encoder_decoder else made.max_summary_tokens)
    if longest is not None and needed > longest:
        raise RecipeError(
            f"data.max_document_tokens: {display_name} reads at most {longest} tokens, and this asks for {needed}"
            + ("." if made.encoder_decoder else " with the summary's.")
        )
    if made.encoder_decoder and summaries is not None and made.max_summary_tokens > summaries:
        raise RecipeError(f"data.max_summary_tokens: {display_name} writes at most {summaries} tokens.")


def stored_task(made: TextFormat, batches: str | None = None) -> dict[str, dict[str, object]]:
    """All that a later user of the checkpoint must know, as `task_specific_params` of its configuration.

    `batches`: the rows that it writes for together as it does for each alone, where these are not any.
    """
    prefix, _, suffix = made.prompt.partition("{document}")
    told = {"prefix": prefix, "suffix": suffix, "max_document_tokens": made.max_document_tokens}
    if made.languages.codes and made.languages.default is None:
        told[BY_ROW] = True
    return {"summarization": {**told, "batches": batches} if batches else told}


def stored_batches(config: PretrainedConfig) -> str | None:
    """The rows that a configuration says may be written for together; None where these are any."""
    known: str | None = (getattr(config, "task_specific_params", None) or {}).get("summarization", {}).get("batches")
    return known


def own_limits(source: Checkpoint, config: PretrainedConfig, data: TextData) -> TextData:
    """`data` with the limits that it leaves unset as the checkpoint was trained, or as it can read and write."""
    stored = (getattr(config, "task_specific_params", None) or {}).get("summarization", {})
    longest, longest_summary = positions(config)
    summary = own_summary_limit(source, config) or stored.get("max_length") or data.max_summary_tokens
    summary = min(summary, (longest_summary if config.is_encoder_decoder else longest and longest // 4) or summary)
    document = stored.get("max_document_tokens") or min(longest or data.max_document_tokens, MOST_TOKENS)
    if longest is not None and not config.is_encoder_decoder:
        document = min(document, longest - summary)
    limits = {"max_document_tokens": document, "max_summary_tokens": summary}
    return data.model_copy(update={k: v for k, v in limits.items() if k not in data.model_fields_set})


def own_summary_limit(source: Checkpoint, config: PretrainedConfig) -> int | None:
    """Most tokens that a checkpoint writes by its own settings; its `max_length` counts what a decoder starts with."""
    generation = open_generation(source)
    if generation.max_length is not None and config.is_encoder_decoder:
        generation.max_length = max(1, generation.max_length - 1)
    limit: int | None = generation.max_new_tokens or generation.max_length
    return limit


def positions(config: PretrainedConfig) -> tuple[int | None, int | None]:
    """Most tokens of a document and of a summary; None without an end, as T5's and XLNet's relative positions (-1)."""

    def own(side: str) -> int | None:
        parts = (config, getattr(config, side, None), config.get_text_config(decoder=True))  # of several models
        names = (f"max_{side}_position_embeddings", "max_position_embeddings")
        found = (getattr(of, name, None) for of in parts for name in names)
        return next((int(longest) for longest in found if longest is not None and longest > 0), None)

    return own("encoder"), own("decoder") or own("encoder")


# -------------------------------------------------------------------------------- documents in pieces


def split_document(text: str, *, room: int, count: Callable[[Sequence[str]], list[int]]) -> list[str]:
    """Pieces of at most `room` tokens and much the same length, cut where sentences or lines end.

    `count` gives the tokens of each of several texts. Only a sentence that is too long itself is cut inside.

    >>> def words(texts): return [len(text.split()) for text in texts]
    >>> split_document("It rains. We stay in. Then it stops.", room=6, count=words)
    ['It rains. We stay in.', 'Then it stops.']
    """
    ends = sentence_ends(text)
    parts = [text[start:end] for start, end in itertools.pairwise([0, *ends])]
    sizes = count(parts)
    while any(size > room and len(part) > 1 for part, size in zip(parts, sizes, strict=True)):
        parts = [
            half
            for part, size in zip(parts, sizes, strict=True)
            for half in (_halves(part) if size > room and len(part) > 1 else (part,))
        ]
        sizes = count(parts)
    share = sum(sizes) / max(1, math.ceil(sum(sizes) / room))
    pieces: list[str] = []
    filled = room
    for part, size in zip(parts, sizes, strict=True):
        if filled + size > room or filled >= share:
            pieces.append("")
            filled = 0
        pieces[-1] += part
        filled += size
    return [piece.strip() for piece in pieces if piece.strip()]


def _halves(text: str) -> tuple[str, str]:
    """Cut at the space nearest before the middle, or else behind it, or else in the middle."""
    middle = len(text) // 2
    before, behind = text.rfind(" ", 1, middle), text.find(" ", middle, len(text) - 1)
    cut = next((space for space in (before, behind) if space > 0), middle)
    return text[:cut], text[cut:]
