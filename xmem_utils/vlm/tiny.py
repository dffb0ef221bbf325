"""`xmem-tiny`: a Gemma 3 vision-language model shrunk to a few million parameters.

The class is transformers' own `Gemma3ForConditionalGeneration`; tokenizer, image processor and chat
template are saved beside the weights, so `AutoModelForImageTextToText` and `AutoProcessor` load the
folder as they load a model from the Hub. Nothing else in the package knows about this model.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3ImageProcessor,
    Gemma3Processor,
    PreTrainedTokenizerFast,
)

from xmem_utils.personas.names import SYLLABLES

IMAGE_SIZE = 64
PATCH_SIZE = 8
IMAGE_TOKENS = 16  # 8 x 8 patches, pooled 2 x 2 by Gemma's projector

PAD, EOS, BOS, UNK = "<pad>", "<end_of_turn>", "<bos>", "<unk>"
BOI, EOI, IMAGE = "<start_of_image>", "<end_of_image>", "<image_soft_token>"
USER, MODEL = "<user>", "<model>"
SPECIAL = (PAD, EOS, BOS, UNK, BOI, EOI, IMAGE, USER, MODEL)

# One special token opens a turn: short prompts are what makes two CPU cores enough.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<model>' if message['role'] == 'assistant' else '<user>' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<start_of_image>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<end_of_turn>{% endfor %}"
    "{% if add_generation_prompt %}<model>{% endif %}"
)


@dataclass(frozen=True)
class TinySize:
    """Width and depth of one size of the ladder."""

    hidden: int
    layers: int
    heads: int
    intermediate: int
    vision_hidden: int
    vision_layers: int
    vision_heads: int
    vision_intermediate: int


SIZES: dict[str, TinySize] = {
    "xs": TinySize(64, 3, 2, 192, 64, 3, 2, 192),
    "s": TinySize(128, 5, 4, 384, 128, 4, 4, 384),
    "m": TinySize(192, 6, 6, 576, 192, 4, 6, 576),
}


def build_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """A tokenizer with one token for every word of `texts` and for every name syllable.

    Longest match over byte-level text (WordPiece without a continuation prefix): all single bytes are
    in the vocabulary, so any other string is spelled out instead of lost. A blank line is one token whatever follows
    it: byte-level splitting alone takes it for two line breaks before a word, and the chat template would then write
    something else than the curriculum, which tokenises part by part.
    """
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    split = pre_tokenizers.Sequence([pre_tokenizers.Split("\n\n", "isolated"), byte_level])
    words = {word for text in texts for word, _ in split.pre_tokenize_str(text)}
    capital = [s.capitalize() for s in SYLLABLES]
    pieces = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    pieces += [*SYLLABLES, *capital, *(f"Ġ{s}" for s in capital), *sorted(words)]
    vocab = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    backend = Tokenizer(
        models.WordPiece(vocab, unk_token=UNK, continuing_subword_prefix="", max_input_chars_per_word=200)
    )
    backend.pre_tokenizer = split
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(list(SPECIAL))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        eos_token=EOS,
        bos_token=BOS,
        unk_token=UNK,
        extra_special_tokens={
            "boi_token": BOI,
            "eoi_token": EOI,
            "image_token": IMAGE,
            "user_token": USER,
            "model_token": MODEL,
        },
        padding_side="left",
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )


def build_processor(tokenizer: PreTrainedTokenizerFast) -> Gemma3Processor:
    """Gemma 3's processor at 64 px and 16 soft tokens an image."""
    image_processor = Gemma3ImageProcessor(
        size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
        do_pan_and_scan=False,
    )
    return Gemma3Processor(image_processor, tokenizer, chat_template=CHAT_TEMPLATE, image_seq_length=IMAGE_TOKENS)


def build_model(size: str, tokenizer: PreTrainedTokenizerFast) -> Gemma3ForConditionalGeneration:
    """A randomly initialised model of one of `SIZES`. Raises KeyError for an unknown size."""
    s = SIZES[size]
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in
           (("pad", PAD), ("eos", EOS), ("bos", BOS), ("boi", BOI), ("eoi", EOI), ("image", IMAGE))}  # fmt: skip
    config = Gemma3Config(
        text_config={
            "vocab_size": -(-len(tokenizer) // 64) * 64,
            "hidden_size": s.hidden,
            "intermediate_size": s.intermediate,
            "num_hidden_layers": s.layers,
            "num_attention_heads": s.heads,
            "num_key_value_heads": s.heads,
            "head_dim": s.hidden // s.heads,
            "query_pre_attn_scalar": s.hidden // s.heads,
            "max_position_embeddings": 512,
            "layer_types": ["full_attention"] * s.layers,
            "rope_parameters": {
                kind: {"rope_type": "default", "rope_theta": 10_000.0}
                for kind in ("full_attention", "sliding_attention")
            },
            "pad_token_id": ids["pad"],
            "eos_token_id": ids["eos"],
            "bos_token_id": ids["bos"],
            "tie_word_embeddings": True,
        },
        vision_config={
            "hidden_size": s.vision_hidden,
            "intermediate_size": s.vision_intermediate,
            "num_hidden_layers": s.vision_layers,
            "num_attention_heads": s.vision_heads,
            "image_size": IMAGE_SIZE,
            "patch_size": PATCH_SIZE,
            "vision_use_head": False,
        },
        mm_tokens_per_image=IMAGE_TOKENS,
        boi_token_index=ids["boi"],
        eoi_token_index=ids["eoi"],
        image_token_index=ids["image"],
        pad_token_id=ids["pad"],
        eos_token_id=ids["eos"],
        bos_token_id=ids["bos"],
    )
    model = Gemma3ForConditionalGeneration(config)
    # Gemma 3 starts its projector at zero; image tokens as loud as word embeddings are read sooner
    torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight, std=0.02)
    model.generation_config.pad_token_id = ids["pad"]
    model.generation_config.eos_token_id = ids["eos"]
    model.generation_config.bos_token_id = ids["bos"]
    return model
