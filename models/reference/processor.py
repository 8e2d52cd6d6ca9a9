"""Words, characters and pixels: the reference model's tokenizer and HF processor.

Words of the question templates, colours, shapes and picture classes are whole tokens; every other word and every
number is spelled character by character, so that any string can be asked for and read.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import CLIPImageProcessorPil, LlavaProcessor, PreTrainedTokenizerFast

from foveate.models.reference.architecture import GRID, PATCH, PIXELS
from foveate.tasks.base import CHARACTERS, COLOURS, PICTURES, SHAPES
from foveate.tasks.questions import WORDINGS

# `</s>` must not be id 2: CLIP text models take that id as the sign of a legacy tokenizer.
SPECIAL = ("<pad>", "<s>", "<unk>", "</s>", "<image>", "<answer>")
SIZE = 256  # ids, spare ones included
EXTRA = (
    "left right above below of top bottom middle yes no none a an and the on with page text number word chart table "
    "receipt form picture photo digit digits plate bar bars object objects plain"
).split()
CHAT = (
    "{% for m in messages %}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<image>{% else %}{{ c['text'] }}{% endif %}{% endfor %}"
    "{% if m['role'] == 'user' %}<answer>{% else %}</s>{% endif %}{% endfor %}"
)


def vocabulary(more: Sequence[str] = ()) -> dict[str, int]:
    """Token -> id, in an order that does not depend on the process.

    Args:
        more: words that take spare ids; all others keep theirs.
    Raises:
        ValueError: more of them than there are spare ids.
    """
    words: dict[str, None] = {}
    for wordings in WORDINGS.values():
        for wording in wordings:
            words.update(dict.fromkeys(re.findall(r"[a-z]+", re.sub(r"\{.*?\}", " ", wording))))
    words.update(dict.fromkeys(EXTRA))
    for name in (*COLOURS, *SHAPES, *PICTURES):  # pictures last: a new class takes a spare id and moves no other
        words.update(dict.fromkeys((name, f"{name}s")))
    tokens = [*SPECIAL, *CHARACTERS, *(f"##{c}" for c in CHARACTERS), *"?.,:;!'\"-+/%$()"]
    tokens += [w for w in words if w not in CHARACTERS]
    tokens += [w for w in more if w not in tokens]
    if len(tokens) > SIZE:
        raise ValueError(f"vocabulary: {len(more)} more words make {len(tokens)} tokens, there are {SIZE} ids")
    tokens += [f"<spare{n}>" for n in range(SIZE - len(tokens))]
    return {token: number for number, token in enumerate(tokens)}


def build_tokenizer(more: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """The tokenizer: lower case, greedy longest word, else characters; `<s>` in front. `more`: see `vocabulary`."""
    core = Tokenizer(models.WordPiece(vocabulary(more), unk_token="<unk>", max_input_chars_per_word=64))
    core.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.decoder = decoders.WordPiece(prefix="##")
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", vocabulary()["<s>"])])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=["<image>", "<answer>"],
        padding_side="left",
        model_max_length=1024,
    )


def build_processor(pixels: int = PIXELS, more: Sequence[str] = ()) -> LlavaProcessor:
    """The processor that `AutoProcessor.from_pretrained` gives back; `pixels`: side of what the ViT sees, `more`: see
    `vocabulary`."""
    image = CLIPImageProcessorPil(
        size={"height": pixels, "width": pixels},
        crop_size={"height": pixels, "width": pixels},
        do_center_crop=False,
        resample=3,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.25, 0.25, 0.25],
    )
    return LlavaProcessor(
        image_processor=image,
        tokenizer=build_tokenizer(more),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT,
    )


def tokens_per_image() -> int:
    """Visual tokens of one image before any compression."""
    return GRID * GRID
