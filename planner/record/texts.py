"""Text files become sequences of tokens for a recording: one domain per file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from planner.errors import InputError, Place, ProblemLog
from planner.files import read_text

_LIMIT_BYTES: Final = 1 << 30
_CHARACTERS_PER_TOKEN: Final = 64
"""No tokenizer of natural text or code needs more for a token on average."""


@dataclass(frozen=True)
class Text:
    """A file that was read."""

    path: Path
    domain: str
    content: str


@dataclass(frozen=True)
class Passage:
    """One sequence of a recording."""

    domain: str
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class Passages:
    """All sequences in the order in which they are recorded, and what should be said about them."""

    sequences: tuple[Passage, ...]
    warnings: tuple[str, ...]


def read_texts(paths: Sequence[Path]) -> list[Text]:
    """Read files, before a large model is loaded for them; the name of each without its ending becomes a domain.

    Raises:
        InputError: a file is empty or not text; all such files at once.
        UsageError: a file is not there.
    """
    log, texts = ProblemLog(), []
    for path, domain in zip(paths, _domains(paths), strict=True):
        try:
            texts.append(Text(path, domain, read_text(path, limit_bytes=_LIMIT_BYTES)))
        except InputError as error:
            log.extend(error.problems)
            continue
        if not texts[-1].content.strip():
            log.add("holds no text", where=Place(str(path)), hint="a domain needs some text")
    log.raise_if_any()
    return texts


def passages_of(texts: Sequence[Text], tokenizer: Any, *, length: int, tokens_per_file: int, mixed: bool) -> Passages:
    """Tokenise texts and cut them into sequences.

    Args:
        texts: one for each domain.
        tokenizer: of Hugging Face transformers.
        length: tokens of a sequence, a beginning-of-text token included; the last of a file may be shorter.
        tokens_per_file: at most so many tokens are taken from the beginning of each file.
        mixed: files take turns, each as often as it is long, as requests of several kinds reach a server;
            otherwise one file comes after the other.

    Raises:
        InputError: the tokenizer makes nothing of a text; all such files at once.
    """
    log, ordered, warnings = ProblemLog(), [], []
    for text in texts:
        path, domain = text.path, text.domain
        cut = text.content[: tokens_per_file * _CHARACTERS_PER_TOKEN]
        tokens = tokenizer(cut, add_special_tokens=False, verbose=False)["input_ids"]
        if not tokens:
            log.add("the tokenizer makes no token of it", where=Place(str(path)), hint="a domain needs some text")
            continue
        if len(tokens) > tokens_per_file or len(cut) < len(text.content):
            warnings.append(f"{path}: only the first {tokens_per_file:,} tokens are recorded (--tokens-per-file)")
        pieces = list(_pieces(tokens[:tokens_per_file], _opening(tokenizer), length))
        ordered += [((place + 0.5) / len(pieces), Passage(domain, piece)) for place, piece in enumerate(pieces)]
    log.raise_if_any()
    if mixed:
        ordered.sort(key=lambda pair: pair[0])
    return Passages(tuple(passage for _, passage in ordered), tuple(warnings))


def _pieces(tokens: list[int], opening: tuple[int, ...], length: int) -> Iterator[tuple[int, ...]]:
    step = max(1, length - len(opening))
    for start in range(0, len(tokens), step):
        yield (*opening, *tokens[start : start + step])


def _opening(tokenizer: Any) -> tuple[int, ...]:
    """The beginning-of-text token, if the tokenizer puts one before every text."""
    bos = tokenizer.bos_token_id
    return (bos,) if bos is not None and tokenizer("a")["input_ids"][:1] == [bos] else ()


def _domains(paths: Sequence[Path]) -> list[str]:
    """File names without ending; the whole path where two are alike."""
    stems = [path.stem for path in paths]
    return [stem if stems.count(stem) == 1 else str(path) for stem, path in zip(stems, paths, strict=True)]
