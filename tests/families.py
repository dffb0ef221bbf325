"""Tiny, randomly initialised models of the real image-text-to-text classes, saved as the Hub's are.

Each builder pairs a class of transformers with the processor and image processor it is published with; only
sizes, the tokenizer and the wording of the chat template are ours.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers as hf
from tokenizers import Tokenizer
from transformers import PreTrainedModel, PreTrainedTokenizerFast, ProcessorMixin
from transformers.utils import is_torchvision_available

from xmem_utils.vlm.processors import without_video
from xmem_utils.vlm.tiny import BOS, EOS, PAD, SPECIAL, UNK, build_tokenizer

SIDE = 32
HIDDEN, LAYERS, HEADS = 48, 2, 3

# a turn as most families write it; {image} is what stands for a picture
TURNS = (
    "{% for message in messages %}<user-or-model>{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}{% if part['type'] == 'image' %}{image}"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<model>{% endif %}"
).replace("<user-or-model>", "{{ '<model>' if message['role'] == 'assistant' else '<user>' }}")

# PaliGemma's processor itself writes <bos> behind the picture and a line break behind the prompt, but takes no
# prompt without a picture: there the template writes them
PREFIX = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "{{ message['content'][0]['text'] }}<end_of_turn>{% else %}"
    "{% set pictures = message['content'] | selectattr('type', 'equalto', 'image') | list %}"
    "{% if pictures %}<image>{% else %}{{ bos_token }}{% endif %}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{% if not pictures %}\n{% endif %}{% endif %}{% endfor %}"
)


def tokenizer_of(texts: list[str], **special: str) -> PreTrainedTokenizerFast:
    """A tokenizer for `texts` with a class's own special tokens, each an attribute of the tokenizer."""
    backend: Tokenizer = build_tokenizer(texts)._tokenizer
    backend.add_special_tokens([token for token in special.values() if token not in SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        eos_token=EOS,
        bos_token=BOS,
        unk_token=UNK,
        extra_special_tokens=special,
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )


def text_config(tokenizer: PreTrainedTokenizerFast, **more: object) -> dict[str, object]:
    """A tiny language model's config."""
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": HIDDEN,
        "intermediate_size": 2 * HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "head_dim": HIDDEN // HEADS,
        "max_position_embeddings": 2048,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        # louder than the usual 0.02: a frozen random model must tell its inputs apart
        "initializer_range": 0.1,
        **more,
    }


SIGHT = {"hidden_size": HIDDEN, "intermediate_size": 2 * HIDDEN, "num_hidden_layers": 2, "num_attention_heads": HEADS,
         "image_size": SIDE, "patch_size": 8}  # fmt: skip


def video_free(cls: type[ProcessorMixin], *args: object, **kwargs: object) -> ProcessorMixin:
    """A processor whose class has a video half, which needs torchvision."""
    return without_video(cls)(*args, **kwargs)


def gemma3(texts: list[str], **text: object) -> tuple[PreTrainedModel, ProcessorMixin]:
    tokenizer = tokenizer_of(
        texts, boi_token="<start_of_image>", eoi_token="<end_of_image>", image_token="<image_soft_token>"
    )
    config = hf.Gemma3Config(
        text_config=text_config(tokenizer, query_pre_attn_scalar=16, **text),
        vision_config={**SIGHT, "vision_use_head": False},
        mm_tokens_per_image=16,
        boi_token_index=tokenizer.boi_token_id,
        eoi_token_index=tokenizer.eoi_token_id,
        image_token_index=tokenizer.image_token_id,
    )
    model = hf.Gemma3ForConditionalGeneration(config)
    # the class starts its projector at zero, to which every picture is the same
    torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight, std=0.2)
    images = hf.Gemma3ImageProcessor(size={"height": SIDE, "width": SIDE}, do_pan_and_scan=False)
    template = "{{ bos_token }}" + TURNS.replace("{image}", "<start_of_image>")
    return model, hf.Gemma3Processor(images, tokenizer, chat_template=template, image_seq_length=16)


def _qwen(texts: list[str], config_class, model_class, processor_class, sight, patch: int, **rope: object):
    tokenizer = tokenizer_of(
        texts,
        image_token="<|image_pad|>",
        video_token="<|video_pad|>",
        vision_start_token="<|vision_start|>",
        vision_end_token="<|vision_end|>",
    )
    parameters = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10_000.0, **rope}
    config = config_class(
        text_config=text_config(tokenizer, rope_parameters=parameters),
        vision_config={
            "hidden_size": HIDDEN,
            "out_hidden_size": HIDDEN,
            "intermediate_size": 2 * HIDDEN,
            "depth": 2,
            "num_heads": HEADS,
            "patch_size": patch,
            **sight,
        },
        image_token_id=tokenizer.image_token_id,
        video_token_id=tokenizer.video_token_id,
        vision_start_token_id=tokenizer.vision_start_token_id,
        vision_end_token_id=tokenizer.vision_end_token_id,
        tie_word_embeddings=True,
    )
    images = hf.Qwen2VLImageProcessor(
        patch_size=patch, merge_size=2, size={"shortest_edge": 16 * 16, "longest_edge": SIDE * SIDE}
    )
    template = TURNS.replace("{image}", "<|vision_start|><|image_pad|><|vision_end|>")
    return model_class(config), video_free(processor_class, images, tokenizer, None, chat_template=template)


def qwen2_5_vl(texts: list[str]) -> tuple[PreTrainedModel, ProcessorMixin]:
    sight = {"window_size": 32, "fullatt_block_indexes": [1], "spatial_merge_size": 2}
    return _qwen(texts, hf.Qwen2_5_VLConfig, hf.Qwen2_5_VLForConditionalGeneration, hf.Qwen2_5_VLProcessor, sight, 8)


def qwen3_vl(texts: list[str]) -> tuple[PreTrainedModel, ProcessorMixin]:
    sight = {"num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1], "spatial_merge_size": 2}
    classes = (hf.Qwen3VLConfig, hf.Qwen3VLForConditionalGeneration, hf.Qwen3VLProcessor)
    return _qwen(texts, *classes, sight, 8, mrope_interleaved=True)


def _idefics(texts: list[str], config_class, model_class) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    tokenizer = tokenizer_of(
        texts,
        image_token="<image>",
        fake_image_token="<fake_token_around_image>",
        global_image_token="<global-img>",
        end_of_utterance_token=EOS,
        **{f"tile_{r}_{c}": f"<row_{r}_col_{c}>" for r in (1, 2, 3, 4) for c in (1, 2, 3, 4)},
    )
    config = config_class(
        text_config=hf.LlamaConfig(**text_config(tokenizer)).to_dict(),
        vision_config=SIGHT,
        scale_factor=2,
        image_token_id=tokenizer.image_token_id,
        tie_word_embeddings=True,
    )
    return model_class(config), tokenizer


TILES = {"size": {"longest_edge": 2 * SIDE}, "max_image_size": {"longest_edge": SIDE}}


def idefics3(texts: list[str]) -> tuple[PreTrainedModel, ProcessorMixin]:
    model, tokenizer = _idefics(texts, hf.Idefics3Config, hf.Idefics3ForConditionalGeneration)
    template = TURNS.replace("{image}", "<image>")
    return model, hf.Idefics3Processor(
        hf.Idefics3ImageProcessor(**TILES), tokenizer, image_seq_len=4, chat_template=template
    )


def smolvlm(texts: list[str]) -> tuple[PreTrainedModel, ProcessorMixin]:
    model, tokenizer = _idefics(texts, hf.SmolVLMConfig, hf.SmolVLMForConditionalGeneration)
    template, images = TURNS.replace("{image}", "<image>"), hf.SmolVLMImageProcessor(**TILES)
    return model, video_free(hf.SmolVLMProcessor, images, tokenizer, None, image_seq_len=4, chat_template=template)


def llava(texts: list[str]) -> tuple[PreTrainedModel, ProcessorMixin]:
    tokenizer = tokenizer_of(texts, image_token="<image>")
    config = hf.LlavaConfig(
        text_config=hf.LlamaConfig(**text_config(tokenizer, tie_word_embeddings=True)).to_dict(),
        vision_config=hf.CLIPVisionConfig(**SIGHT).to_dict(),
        image_token_index=tokenizer.image_token_id,
        image_seq_length=16,
    )
    images = hf.LlavaImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    return hf.LlavaForConditionalGeneration(config), hf.LlavaProcessor(
        images,
        tokenizer,
        patch_size=8,
        num_additional_image_tokens=1,
        vision_feature_select_strategy="default",
        chat_template=TURNS.replace("{image}", "<image>"),
    )


def deepseek_vl(texts: list[str]) -> tuple[PreTrainedModel, ProcessorMixin]:
    tokenizer = tokenizer_of(texts, image_token="<image_placeholder>")
    config = hf.DeepseekVLConfig(
        text_config=hf.LlamaConfig(**text_config(tokenizer)).to_dict(),
        vision_config=hf.SiglipVisionConfig(**SIGHT, vision_use_head=False).to_dict(),
        image_token_id=tokenizer.image_token_id,
    )
    images = hf.DeepseekVLImageProcessor(size={"height": SIDE, "width": SIDE})
    template = TURNS.replace("{image}", "<image_placeholder>")
    return hf.DeepseekVLForConditionalGeneration(config), hf.DeepseekVLProcessor(
        images, tokenizer, num_image_tokens=16, chat_template=template
    )


def mllama(texts: list[str]) -> tuple[PreTrainedModel, ProcessorMixin]:
    tokenizer = tokenizer_of(texts, image_token="<|image|>")
    fields = text_config(tokenizer, num_hidden_layers=3, cross_attention_layers=[1])
    fields.pop("head_dim")
    config = hf.MllamaConfig(
        text_config=fields,
        vision_config={
            "hidden_size": HIDDEN,
            "intermediate_size": 2 * HIDDEN,
            "num_hidden_layers": 2,
            "num_global_layers": 1,
            "attention_heads": HEADS,
            "vision_output_dim": 2 * HIDDEN,
            "intermediate_layers_indices": [1],
            "image_size": SIDE,
            "patch_size": 8,
        },
        image_token_index=tokenizer.image_token_id,
    )
    model = hf.MllamaForConditionalGeneration(config)
    for name, gate in model.named_parameters():  # the class starts its cross-attention shut
        if "cross_attn" in name and "gate" in name:
            torch.nn.init.ones_(gate)
    images = hf.MllamaImageProcessor(size={"height": SIDE, "width": SIDE})
    return model, hf.MllamaProcessor(images, tokenizer, chat_template=TURNS.replace("{image}", "<|image|>"))


def gemma4(texts: list[str]) -> tuple[PreTrainedModel, ProcessorMixin]:
    tokens = {"boi": "<|image>", "eoi": "<image|>", "image": "<|image|>"}
    tokens |= {"boa": "<|audio>", "eoa": "<audio|>", "audio": "<|audio|>", "video": "<|video|>"}
    tokenizer = tokenizer_of(texts, **{f"{k}_token": v for k, v in tokens.items()})
    ids = {k: tokenizer.convert_tokens_to_ids(v) for k, v in tokens.items()}
    config = hf.Gemma4Config(
        text_config=text_config(
            tokenizer,
            layer_types=["sliding_attention", "full_attention"],
            global_head_dim=HIDDEN // HEADS,
            vocab_size_per_layer_input=len(tokenizer),
            hidden_size_per_layer_input=8,
            use_bidirectional_attention="vision",
        ),
        vision_config={
            "hidden_size": HIDDEN,
            "intermediate_size": 2 * HIDDEN,
            "num_hidden_layers": 2,
            "num_attention_heads": HEADS,
            "num_key_value_heads": HEADS,
            "head_dim": HIDDEN // HEADS,
            "patch_size": 8,
            "pooling_kernel_size": 2,
            "position_embedding_size": 64,
            "initializer_range": 0.1,
        },
        audio_config=None,
        **{f"{k}_token_id": v for k, v in ids.items() if k != "eoa"},
        eoa_token_index=ids["eoa"],
    )
    model = hf.Gemma4ForConditionalGeneration(config)
    # the class starts its position embeddings at one, beside which every picture is the same
    torch.nn.init.normal_(model.model.vision_tower.patch_embedder.position_embedding_table, std=0.1)
    torch.nn.init.normal_(model.model.embed_vision.embedding_projection.weight, std=0.2)
    # the class makes of every picture as many tokens as fit
    images = hf.Gemma4ImageProcessor(patch_size=8, pooling_kernel_size=2, max_soft_tokens=70)
    processor = video_free(
        hf.Gemma4Processor,
        hf.Gemma4AudioFeatureExtractor(),
        images,
        tokenizer,
        None,
        chat_template="{{ bos_token }}" + TURNS.replace("{image}", "<|image|>"),
    )
    return model, processor


def mistral3(texts: list[str]) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Its processor needs torchvision."""
    tokenizer = tokenizer_of(texts, image_token="[IMG]", break_token="[IMG_BREAK]", end_token="[IMG_END]")
    sight = {k: v for k, v in SIGHT.items() if k != "image_size"}
    config = hf.Mistral3Config(
        text_config=hf.MistralConfig(**text_config(tokenizer, sliding_window=None, tie_word_embeddings=True)).to_dict(),
        vision_config={"model_type": "pixtral", **sight, "image_size": 2 * SIDE},
        image_token_index=tokenizer.image_token_id,
        spatial_merge_size=2,
    )
    images = hf.PixtralImageProcessor(size={"longest_edge": SIDE}, patch_size={"height": 8, "width": 8})
    return hf.Mistral3ForConditionalGeneration(config), hf.PixtralProcessor(
        images, tokenizer, patch_size=8, spatial_merge_size=2, chat_template=TURNS.replace("{image}", "[IMG]")
    )


def llava_onevision(texts: list[str]) -> tuple[PreTrainedModel, ProcessorMixin]:
    tokenizer = tokenizer_of(texts, image_token="<image>", video_token="<video>")
    grid = [[SIDE * r, SIDE * c] for r in (1, 2) for c in (1, 2)]
    config = hf.LlavaOnevisionConfig(
        text_config=hf.Qwen2Config(**text_config(tokenizer, tie_word_embeddings=True)).to_dict(),
        vision_config=hf.SiglipVisionConfig(**SIGHT, vision_use_head=False).to_dict(),
        image_token_index=tokenizer.image_token_id,
        video_token_index=tokenizer.video_token_id,
        image_grid_pinpoints=grid,
        tie_word_embeddings=True,
    )
    images = hf.LlavaOnevisionImageProcessor(size={"height": SIDE, "width": SIDE}, image_grid_pinpoints=grid)
    processor = video_free(
        hf.LlavaOnevisionProcessor,
        images,
        tokenizer,
        None,
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        chat_template=TURNS.replace("{image}", "<image>"),
    )
    return hf.LlavaOnevisionForConditionalGeneration(config), processor


def paligemma2(texts: list[str]) -> tuple[PreTrainedModel, ProcessorMixin]:
    tokenizer = tokenizer_of(texts, image_token="<image>")
    images = hf.SiglipImageProcessor(size={"height": SIDE, "width": SIDE})
    images.image_seq_length = 16
    processor = hf.PaliGemmaProcessor(images, tokenizer, chat_template=PREFIX)  # adds <loc..> and <seg..> tokens
    config = hf.PaliGemmaConfig(
        text_config=hf.Gemma2Config(
            **text_config(tokenizer, query_pre_attn_scalar=16, sliding_window=4096, tie_word_embeddings=True)
        ).to_dict(),
        vision_config=hf.SiglipVisionConfig(**SIGHT, vision_use_head=False).to_dict(),
        image_token_index=tokenizer.image_token_id,
        projection_dim=HIDDEN,
        hidden_size=HIDDEN,
        vocab_size=len(tokenizer),
    )
    return hf.PaliGemmaForConditionalGeneration(config), processor


def internvl(texts: list[str]) -> tuple[PreTrainedModel, ProcessorMixin]:
    tokenizer = tokenizer_of(
        texts,
        start_image_token="<img>",
        end_image_token="</img>",
        context_image_token="<IMG_CONTEXT>",
        video_token="<video>",
    )
    config = hf.InternVLConfig(
        text_config=hf.Qwen2Config(**text_config(tokenizer, tie_word_embeddings=True)).to_dict(),
        vision_config={**SIGHT, "image_size": (SIDE, SIDE), "patch_size": (8, 8)},
        image_token_id=tokenizer.context_image_token_id,
        image_seq_length=4,
        downsample_ratio=0.5,
    )
    images = hf.GotOcr2ImageProcessor(size={"height": SIDE, "width": SIDE}, min_patches=1, max_patches=4)
    template = TURNS.replace("{image}", "<IMG_CONTEXT>")
    processor = video_free(hf.InternVLProcessor, images, tokenizer, None, image_seq_length=4, chat_template=template)
    return hf.InternVLForConditionalGeneration(config), processor


FAMILIES: dict[str, Callable[..., tuple[PreTrainedModel, ProcessorMixin]]] = {
    f.__name__: f
    for f in (
        gemma3,
        qwen2_5_vl,
        qwen3_vl,
        idefics3,
        llava_onevision,
        paligemma2,
        internvl,
        mllama,
        smolvlm,
        gemma4,
        llava,
        deepseek_vl,
        mistral3,
    )
}


NEED_TORCHVISION = {"mistral3"}
ANY_RESOLUTION = {"Gemma4Processor"}


def skip_without_torchvision(family: str) -> None:
    """Skip the test of a family whose processor cannot do without torchvision, where that is not installed."""
    if family in NEED_TORCHVISION and not is_torchvision_available():
        pytest.skip("its processor needs torchvision, which has no release for CPUs among the pinned versions")


VIDEO = {
    "smolvlm": "SmolVLMVideoProcessor",
    "gemma4": "Gemma4VideoProcessor",
    "qwen2_5_vl": "Qwen2VLVideoProcessor",
    "qwen3_vl": "Qwen3VLVideoProcessor",
    "llava_onevision": "LlavaOnevisionVideoProcessor",
    "internvl": "InternVLVideoProcessor",
}


def save(family: str, texts: list[str], folder: Path, **text: object) -> Path:
    """Build a family's tiny model and save it with its processor; returns the folder."""
    torch.manual_seed(0)
    model, processor = FAMILIES[family](texts, **text)
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    if family in VIDEO:  # the Hub's folders have one: read where torchvision is installed
        config = json.dumps({"video_processor_type": VIDEO[family]})
        (folder / "video_preprocessor_config.json").write_text(config)
    return folder
