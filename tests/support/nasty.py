"""Documents that tokenizers read in unexpected ways."""

from __future__ import annotations

import base64

NASTY = (
    "pump",
    "The infusion pump stopped (alarm 12), and nobody was hurt. " * 9,
    "(a) the pump",
    "((b)) the pump",
    ") closed",
    ":( sad :) glad :((",
    "\"quoted\" and 'single' — “typographic” ‘too’",
    "...and so on",
    "-12 °C, +3 ml/h; #7 @home $5 %x ^y &z *w",
    "设备在使用过程中突然停止工作，护士立即更换了备用设备。患者没有受到伤害！" * 4,
    "。，、！",
    "できません。テストです。カタカナ",
    "장치가 작동을 멈췄습니다.",
    "ภาษาไทยไม่มีช่องว่างระหว่างคำ" * 5,
    "توقف الجهاز عن العمل. שלום עולם",
    "यह एक परीक्षण है। தமிழ்",
    "Устройство перестало работать, пациент не пострадал.",
    "Ca\u0327 n'e\u0301tait pas pre\u0301vu, nai\u0308ve",
    "\u0301 begins with an accent",
    "ﬁne ﬀ ① x² ½ Ⅳ ㍿ Ａｂｃ",
    "family 👩\u200d👩\u200d👧\u200d👦 flag 🇩🇪 heart ❤\ufe0f thumb 👍🏽",
    "🙂🙂🙂",
    "zero\u200bwidth\u200cnon\u200djoiner\ufeffmark",
    "\u200bzero width at the edges\u200b",
    "\ufeffmark at the start",
    "pump\u200b " * 60,
    "no\u00a0break\u2007space\u202fthin\u2009space\u3000wide",
    "soft\u00adhyphen\u2028line\u2029paragraph\u0085next",
    "bell\x07 escape\x1b[31m delete\x7f unit\x1f",
    "carriage\r\nreturn\r\n\r\nand\ttab\t\ttwo  spaces   three",
    "  leading and trailing  ",
    "a\n\nb\n\n\nc",
    base64.b64encode(bytes(range(256)) * 2).decode(),
    "x" * 300,
    "0123456789" * 20,
    "https://example.org/a?b=c&d=%20e#f bio-med@example.org",
    "<div class='a'>&nbsp;&amp;</div> { \"json\": [1, 2, null] }",
    "def f(x):\n    return x ** 2  # power\n",
    "<think>the pump stopped</think>",
    "<tool_call>pump |||EMAIL_ADDRESS||| stopped",
    "mixed 中文 and English текст with 한국어",
    "\ud7ff\ue000\ufffd \U0001f9ff \U000e0041",
)

# What some family of models reads as the end of a text, a mask or a turn of a conversation.
CONTROL = (
    "the end</s>",
    "the end</s> and on",
    "<s>begin",
    "[SEP] [CLS] in a report [MASK]",
    "title[SEP]abstract",
    "<mask><pad><unk>",
    "<|endoftext|>after",
    "<|im_start|>system\nyou<|im_end|>",
    "<bos><eos><end_of_turn>",
    "[PAD][UNK]",
)
