"""`xmem-tiny`: a Gemma 3 vision-language model shrunk to a few million parameters.

The class is transformers' own `Gemma3ForConditionalGeneration`; tokenizer, image processor and chat
template are saved beside the weights, so `AutoModelForImageTextToText` and `AutoProcessor` load the
folder as they load a model from the Hub. Nothing else in the package knows about this model.
"""

from __future__ import annotations

from collections.abc import Iterable

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
CONTEXT = 512  # tokens
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


# Width, layers of the language model, layers of the vision tower. A head is 32 wide, an MLP three times the width.
SIZES: dict[str, tuple[int, int, int]] = {"xs": (64, 3, 3), "s": (128, 5, 4), "m": (192, 6, 4)}
HEAD = 32


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
        **dict(pad_token=PAD, eos_token=EOS, bos_token=BOS, unk_token=UNK),
        extra_special_tokens=dict(boi_token=BOI, eoi_token=EOI, image_token=IMAGE, user_token=USER, model_token=MODEL),
        padding_side="left",
        model_max_length=CONTEXT,
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
    width, layers, vision_layers = SIZES[size]
    heads, index = width // HEAD, tokenizer.convert_tokens_to_ids
    both = {"hidden_size": width, "intermediate_size": 3 * width, "num_attention_heads": heads}
    special = {"pad_token_id": index(PAD), "eos_token_id": index(EOS), "bos_token_id": index(BOS)}
    rope = {"rope_type": "default", "rope_theta": 10_000.0}
    config = Gemma3Config(
        text_config={
            "vocab_size": -(-len(tokenizer) // 64) * 64,
            "num_hidden_layers": layers,
            "num_key_value_heads": heads,
            "head_dim": HEAD,
            "query_pre_attn_scalar": HEAD,
            "max_position_embeddings": CONTEXT,
            "layer_types": ["full_attention"] * layers,
            "rope_parameters": {"full_attention": rope, "sliding_attention": dict(rope)},
            "tie_word_embeddings": True,
            **both,
            **special,
        },
        vision_config={
            "num_hidden_layers": vision_layers,
            "image_size": IMAGE_SIZE,
            "patch_size": PATCH_SIZE,
            "vision_use_head": False,
            **both,
        },
        mm_tokens_per_image=IMAGE_TOKENS,
        boi_token_index=index(BOI),
        eoi_token_index=index(EOI),
        image_token_index=index(IMAGE),
        **special,
    )
    model = Gemma3ForConditionalGeneration(config)
    # Gemma 3 starts its projector at zero; image tokens as loud as word embeddings are read sooner
    torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight, std=0.02)
    model.generation_config.update(**special)
    return model
