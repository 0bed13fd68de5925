"""Nothing is lost, nothing is too long, and cuts are where sentences end."""

from collections.abc import Sequence

import pytest

from tltasks.tasks.text.prompting import split_document

SENTENCE = "one two three four five. "
DOCUMENTS = {
    "sentences": SENTENCE * 9,
    "lines": "a heading\n\nfirst line without a stop\nsecond line\n" * 4,
    "a sentence that is too long": "word " * 50,
    "no spaces at all": "x" * 100,
    "Chinese": "今日は雨。家にいる。" * 12,
    "between long and short": SENTENCE + "word " * 40 + ". " + SENTENCE,
}


def count_words(texts: Sequence[str]) -> list[int]:
    return [len(text.split()) for text in texts]


def count_characters(texts: Sequence[str]) -> list[int]:
    return [len(text.strip()) for text in texts]


@pytest.mark.parametrize("kind", DOCUMENTS)
@pytest.mark.parametrize("room", [1, 7, 12, 1000])
def test_pieces_are_the_document_and_fit(kind: str, room: int) -> None:
    text = DOCUMENTS[kind]
    for count in (count_words, count_characters):
        pieces = split_document(text, room=room, count=count)
        assert "".join("".join(pieces).split()) == "".join(text.split())
        if count is count_words:
            assert max(count(pieces)) <= room
        else:
            assert (len(pieces) == 1) == (room == 1000)


def test_pieces_end_with_sentences_and_are_much_the_same_length() -> None:
    pieces = split_document(SENTENCE * 9, room=20, count=count_words)
    assert all(piece.endswith("five.") for piece in pieces)
    assert count_words(pieces) == [15, 15, 15]
