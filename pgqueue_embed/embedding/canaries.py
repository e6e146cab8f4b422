"""Known texts of many lengths and scripts, by which a device and a precision are judged."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle, islice

from tokenizers import Tokenizer

from pgqueue_embed.chunking import Chunk, Chunker

_MAX_TOKENS = 240

_ENGLISH = (
    "The infusion pump's alarm (model X-200) was silenced at 03:15 and then re-started. "
    "No harm to the patient was reported, but therapy was interrupted for about 40 minutes; "
    "the device was returned to the manufacturer for evaluation! "
)
_SCRIPTS = (
    "设备在使用过程中突然停止工作，护士立即更换了备用设备。患者没有受到伤害！",
    "Устройство перестало работать, пациент не пострадал. Ça n'était pas prévu.",
    "장치가 작동을 멈췄습니다. 機器が停止しました。توقف الجهاز عن العمل.",
    "Temperature 37 °C, naïve co\u00f6perate, ﬁne, x²=4, 🙂🙂 [SEP] end [MASK]",
)
TEXTS = ("pump", "The pump failed.", _ENGLISH, _ENGLISH * 6, *_SCRIPTS, " ".join(_SCRIPTS))


def canary_chunks(tokenizer: Tokenizer, content_budget: int) -> list[Chunk]:
    """Return chunks from one token up to the budget or a few hundred tokens long."""
    chunker = Chunker(tokenizer, max_tokens=min(content_budget, _MAX_TOKENS), overlap_tokens=0)
    return [chunk for document in chunker.chunk(TEXTS) for chunk in document.chunks]


def full_chunks(tokenizer: Tokenizer, tokens: int) -> list[Chunk]:
    """Return chunks of English text of at most ``tokens`` tokens, most of them nearly as long."""
    chunker = Chunker(tokenizer, max_tokens=tokens, overlap_tokens=0)
    (document,) = chunker.chunk([_ENGLISH * 20])
    return list(document.chunks[:-1] or document.chunks)


def of_shape(lengths: Sequence[int], rows: int, length: int) -> list[int]:
    """Return the numbers of ``rows`` canaries, of these ``lengths``, that fit into ``length``.

    The longest ones first, and the shortest where none fits; again from the first where there are
    too few.
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
    fitting = [number for number in order if lengths[number] <= length]
    return list(islice(cycle(fitting or order[-1:]), rows))
