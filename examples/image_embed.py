"""Pictures and texts in one space (CLIP, SigLIP), or pictures among a text's tokens (Qwen2-VL, LLaVA-NeXT, Phi-3-V).

    python examples/image_embed.py openai/clip-vit-base-patch32 cat.jpg "a photo of a cat"
    python examples/image_embed.py MrLight/dse-qwen2-2b-mrl-v1 page.png "What is the invoice's total?"

Prints the cosine of every picture with every text. Arguments that are files are pictures.
"""

import sys
from pathlib import Path

import numpy as np

from jaxpool import LLM

# How each family was trained to be asked: a picture's prompt, and a text's.
PROMPTS = {
    "clip": (None, "{}"),
    "siglip": (None, "{}"),
    "qwen2_vl": (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        "<|vision_start|><|image_pad|><|vision_end|>What is shown in this image?<|im_end|>\n<|endoftext|>",
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        "<|vision_start|><|image_pad|><|vision_end|>Query: {}<|im_end|>\n<|endoftext|>",
    ),
    "llava_next": (
        "<|start_header_id|>user<|end_header_id|>\n\n<image>\nSummary above image in one word: <|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n \n",
        "<|start_header_id|>user<|end_header_id|>\n\n{}\nSummary above sentence in one word: <|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n \n",
    ),
    "phi3_v": ("<|image_1|> Represent the given image with the following question: What is in the image",
               "Find me an everyday image that matches the given caption: {}"),
}  # fmt: skip


def main(model: str, *given: str) -> np.ndarray:
    """Prints and returns the cosines [pictures, texts]."""
    pictures = [argument for argument in given if Path(argument).is_file()]
    texts = [argument for argument in given if argument not in pictures]
    with LLM(model) as llm:
        of_picture, of_text = PROMPTS[llm.recipe.family.name]
        prompts = [
            {**({"prompt": of_picture} if of_picture else {}), "multi_modal_data": {"image": Path(picture)}}
            for picture in pictures
        ]
        queries = [of_text.format(text) for text in texts]
        if "<|image_pad|>" in of_text:  # a picture of nothing, as the model saw with every query
            nothing = np.zeros((28, 28, 3), np.uint8)
            queries = [{"prompt": query, "multi_modal_data": {"image": nothing}} for query in queries]
        outputs = llm.embed([*prompts, *queries], use_tqdm=False)
    vectors = np.array([output.outputs.embedding for output in outputs])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = vectors[: len(pictures)] @ vectors[len(pictures) :].T
    for picture, row in zip(pictures, cosines, strict=True):
        for text, cosine in zip(texts, row, strict=True):
            print(f"{cosine:.4f}  {Path(picture).name}  {text}")
    return cosines


if __name__ == "__main__":
    main(*sys.argv[1:])
