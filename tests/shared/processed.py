"""What an HF processor makes of pictures and questions."""

from collections.abc import Sequence
from typing import Any

from PIL import Image


def hf_inputs(processor: Any, images: Sequence[Any], questions: Sequence[str]) -> Any:
    """One picture and one question a row, padded on the left."""
    if processor.chat_template:
        talks = [[{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": q}]}] for q in questions]
        texts = [processor.apply_chat_template(talk, add_generation_prompt=True, tokenize=False) for talk in talks]
    else:
        texts = [f"USER: <image>\n{q} ASSISTANT:" for q in questions]
    return processor(images=[Image.fromarray(i) for i in images], text=texts, return_tensors="pt", padding=True)


def hf_talks(processor: Any, images: Sequence[Any], talks: Sequence[Sequence[str]]) -> Any:
    """One picture and one conversation a row (question, reply, question ...), padded on the left."""
    texts = []
    for said in talks:
        talk = [
            {
                "role": ("user", "assistant")[i % 2],
                "content": [*[{"type": "image"}] * (i == 0), {"type": "text", "text": t}],
            }
            for i, t in enumerate(said)
        ]
        texts.append(processor.apply_chat_template(talk, add_generation_prompt=True, tokenize=False))
    return processor(images=[Image.fromarray(i) for i in images], text=texts, return_tensors="pt", padding=True)
