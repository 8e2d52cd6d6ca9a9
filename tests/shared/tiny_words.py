"""What tiny models read: a vocabulary of whole words, its tokenizer, a chat template, questions."""

from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

SPECIALS = ("<pad>", "<s>", "<unk>", "</s>")
WORDS = "USER : ASSISTANT what is the colour of this thing there red green blue left right one two three ?".split()
CHAT = (
    "{% for m in messages %}USER : {% for c in m['content'] %}{% if c['type'] == 'image' %}<image> "
    "{% elif c['type'] == 'video' %}<video> {% else %}{{ c['text'] }}{% endif %}{% endfor %} ASSISTANT :{% endfor %}"
)
TALK = (
    "{% for m in messages %}{{ m['role'] | upper }} : {% for c in m['content'] %}{% if c['type'] == 'image' %}<image> "
    "{% else %}{{ c['text'] }}{% endif %}{% endfor %} {% endfor %}{% if add_generation_prompt %}ASSISTANT :{% endif %}"
)
"""A template that writes conversations, where the one above glues turns together."""
QUESTIONS = ["what is this ?", "what is the colour of this thing there ?", "left ?", "is the thing red or blue ?"]


def word_tokenizer(markers: Sequence[str]) -> PreTrainedTokenizerFast:
    """Whole words, with markers of pictures behind the specials; <s> comes first."""
    vocabulary = {word: i for i, word in enumerate([*SPECIALS, *markers, *WORDS])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return begun(core, additional_special_tokens=list(markers))


def begun(core: Tokenizer, **named: Any) -> PreTrainedTokenizerFast:
    """A tokenizer that puts <s> in front and pads on the left."""
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        padding_side="left",
        **named,
    )
