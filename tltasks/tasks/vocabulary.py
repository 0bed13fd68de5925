"""Characters that a tokenizer loses: those it cannot read, or cannot write."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import datasets
from transformers import PreTrainedTokenizerBase

from tltasks.data.splits import Columns, EncodedSplit
from tltasks.errors import DataError

MOST_LOST = 0.1
"""Share of a target's characters that may be lost; more, and the model learns to write something else."""
MOST_UNREAD = 0.5
"""Share of an input's characters that may be unknown."""
_RARE = "ᚠ𓂀𐎀"
"""Letters that only a vocabulary of bytes has."""


def lost_characters(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    ids: Sequence[Sequence[int]],
    *,
    unknown_only: bool = False,
) -> list[str]:
    """The characters of each text that are not in its ids, by decoding these: case, width and white space aside.

    With `unknown_only` what a tokenizer leaves out on purpose, as accents, is not counted: enough to read a text.
    """
    lost = [""] * len(texts)
    if writes_bytes(tokenizer):
        return lost
    unknown = tokenizer.unk_token_id
    doubtful = [i for i, row in enumerate(ids) if not unknown_only or unknown is None or unknown in row]
    known = [[token for token in ids[i] if token != unknown] for i in doubtful]
    for i, text in zip(doubtful, _decoded(tokenizer, known), strict=True):
        if (whole := _plain(texts[i])) != text:
            lost[i] = "".join((Counter(whole) - Counter(text)).elements())
    return lost


def ordinary_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of texts, those with a meaning of their own aside."""
    known = set(tokenizer.get_vocab().values())
    return sorted(known - {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}) or sorted(known)


def writes_bytes(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Tell whether the tokenizer loses no character, because it falls back to bytes."""
    return _decoded(tokenizer, [tokenizer(_RARE, add_special_tokens=False)["input_ids"]]) == [_RARE]


def _decoded(tokenizer: PreTrainedTokenizerBase, ids: Sequence[Sequence[int]]) -> list[str]:
    return [_plain(text) for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]


def _plain(text: str) -> str:
    """Without white space and controls (which join and break words), differences of case and of width."""
    kept = (c for c in unicodedata.normalize("NFKC", text).casefold() if unicodedata.category(c) not in {"Cc", "Cf"})
    return "".join("".join(kept).split())


def n_characters(text: str) -> int:
    """Characters of a text, white space aside."""
    return len("".join(text.split()))


def lost_share(
    lost: Iterable[str],
    total: int,
    *,
    most: float,
    where: str,
    hint: str = "Name a checkpoint whose vocabulary has them.",
) -> float:
    """The share of `total` characters that is lost; raises DataError where that is more than `most`.

    `where` begins the message, whose tokenizer does not know them, and `hint` ends it.
    """
    counts: Counter[str] = Counter()
    for characters in lost:
        counts.update(characters)
    share = min(1.0, counts.total() / max(1, total))
    if share > most:
        examples = " ".join(character for character, _ in counts.most_common(10))
        raise DataError(f"{where} {share:.0%} of the characters ({examples}), and {most:.0%} may be lost. {hint}")
    return share


# ------------------------------------------------------------------------- texts that are only read


LOST = {"lost": datasets.Value("string"), "characters": datasets.Value("int32")}
"""Columns of an encoded text: its characters that are unknown, and how many it has."""


def lost_columns(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], ids: Sequence[Sequence[int]]) -> Columns:
    lost = lost_characters(tokenizer, texts, ids, unknown_only=True)
    return {"lost": lost, "characters": list(map(n_characters, texts))}


def unknown_shares(encoded: Mapping[str, EncodedSplit], *, most: float, whose: str) -> dict[str, dict[str, float]]:
    """The share of each split's characters that are unknown; raises DataError where one is more than `most`."""
    return {
        name: {
            "characters_unknown_share": lost_share(
                split.rows["lost"],
                sum(split.rows["characters"]),
                most=most,
                where=f"{split.origin}: the tokenizer of {whose} does not know",
            )
        }
        for name, split in encoded.items()
    }
