"""A released folder with one thing wrong: what is wrong is said in a line, or the model is the one that was saved."""

import json
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import SegformerConfig, SegformerForSemanticSegmentation

from helpers.native_names import pil_processor
from helpers.tiny import LABELS, TINY
from hf_segkd.evaluation.segmenter import Segmenter
from hf_segkd.loading.any_model import load_model

IMAGE = torch.randint(256, (3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def own(folder):
    torch.manual_seed(0)
    model, processor = load_model({**TINY, "use_decoder": True}, id2label=LABELS)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def native(folder):
    torch.manual_seed(0)
    config = SegformerConfig(
        id2label=LABELS,
        depths=[1] * 4,
        hidden_sizes=[8, 8, 16, 16],
        num_attention_heads=[1, 1, 2, 2],
        decoder_hidden_size=16,
    )
    SegformerForSemanticSegmentation(config).save_pretrained(folder)
    pil_processor("segformer", "Segformer")().save_pretrained(folder)


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """A folder of each kind, and what its model says of an image."""
    found = {}
    for make in (own, native):
        folder = tmp_path_factory.mktemp(make.__name__) / "model"
        make(folder)
        found[make.__name__] = folder, Segmenter(*load_model(str(folder)))(IMAGE)
    return found


def content(name, data: bytes):
    return lambda folder: (folder / name).write_bytes(data)


def gone(name):
    return lambda folder: (folder / name).unlink()


def cut(name, share):
    def act(folder):
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: int(share * len(data))])

    return act


def fields(name, **changes):
    """`...` removes a field."""

    def act(folder):
        content = json.loads((folder / name).read_text()) | changes
        (folder / name).write_text(json.dumps({key: x for key, x in content.items() if x is not ...}))

    return act


def nested(name):
    def act(folder):
        (folder / name).write_text("[" * 100_000 + "]" * 100_000)

    return act


def tensors(change):
    def act(folder):
        found = load_file(folder / "model.safetensors")
        key = next(key for key, x in found.items() if x.ndim == 4)
        save_file(change(dict(found), key), folder / "model.safetensors", metadata={"format": "pt"})

    return act


def folder_in_place_of(name):
    def act(folder):
        (folder / name).unlink()
        (folder / name).mkdir()

    return act


def index(weight_map):
    def act(folder):
        (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
        keys = load_file(folder / "model-00001-of-00001.safetensors")
        text = weight_map if isinstance(weight_map, str) else json.dumps(weight_map(keys))
        (folder / "model.safetensors.index.json").write_text(text)

    return act


CONFIG, WEIGHTS, PROCESSOR = "config.json", "model.safetensors", "preprocessor_config.json"
EXTRA = {"id2label": {str(index): name for index, name in LABELS.items()}}
CASES = {
    **{f"no {name}": gone(name) for name in (CONFIG, WEIGHTS)},
    **{f"empty {name}": content(name, b"") for name in (CONFIG, WEIGHTS, PROCESSOR)},
    **{f"{name} garbled": content(name, bytes(range(256)) * 4) for name in (CONFIG, WEIGHTS, PROCESSOR)},
    **{f"{name} is text": content(name, b"<html>404</html>") for name in (CONFIG, WEIGHTS, PROCESSOR)},
    **{f"{name} half": cut(name, 0.5) for name in (CONFIG, WEIGHTS, PROCESSOR)},
    **{f"{name} nearly whole": cut(name, 0.999) for name in (CONFIG, WEIGHTS, PROCESSOR)},
    **{f"{name} is a list": content(name, b"[]") for name in (CONFIG, PROCESSOR)},
    **{f"{name} is a number": content(name, b"1") for name in (CONFIG, PROCESSOR)},
    **{f"{name} is null": content(name, b"null") for name in (CONFIG, PROCESSOR)},
    **{f"{name} is an empty mapping": content(name, b"{}") for name in (CONFIG,)},
    **{f"{name} is nested": nested(name) for name in (CONFIG, PROCESSOR)},
    **{f"{name} is a folder": folder_in_place_of(name) for name in (CONFIG, WEIGHTS)},
    **{
        f"{name} a Git LFS pointer": content(name, b"version https://git-lfs.github.com/spec/v1\n")
        for name in (WEIGHTS,)
    },
    "model_type missing": fields(CONFIG, model_type=...),
    "model_type unknown": fields(CONFIG, model_type="nothing"),
    "model_type a list": fields(CONFIG, model_type=["segformer"]),
    "model_type a number": fields(CONFIG, model_type=3),
    "model_type of a language model": fields(CONFIG, model_type="bert"),
    "id2label a list": fields(CONFIG, id2label=list(LABELS.values())),
    "id2label text": fields(CONFIG, id2label="road"),
    "id2label with gaps": fields(CONFIG, id2label={"0": "a", "5": "b"}),
    "id2label with words for numbers": fields(CONFIG, id2label={"zero": "a", "one": "b"}),
    "id2label empty": fields(CONFIG, id2label={}),
    "id2label with numbers for words": fields(CONFIG, id2label={key: 1 for key in EXTRA["id2label"]}),
    "id2label one too few": fields(CONFIG, id2label=dict(list(EXTRA["id2label"].items())[:-1])),
    "id2label one too many": fields(CONFIG, id2label={**EXTRA["id2label"], "10": "more"}),
    "id2label negative": fields(CONFIG, id2label={**EXTRA["id2label"], "-1": "more"}),
    "num_labels wrong": fields(CONFIG, num_labels=3),
    "hidden_sizes text": fields(CONFIG, hidden_sizes="many"),
    "hidden_sizes negative": fields(CONFIG, hidden_sizes=[-4, 10, 10, 10]),
    "hidden_sizes too short": fields(CONFIG, hidden_sizes=[4]),
    "hidden_sizes of floats": fields(CONFIG, hidden_sizes=[4.5, 10, 10, 10]),
    "hidden_sizes others": fields(CONFIG, hidden_sizes=[8, 20, 20, 20]),
    "hidden_sizes huge": fields(CONFIG, hidden_sizes=[10**9] * 4),
    "depths empty": fields(CONFIG, depths=[]),
    "depths others": fields(CONFIG, depths=[2, 2, 2, 2]),
    "dtype unknown": fields(CONFIG, dtype="float99"),
    "auto_map garbled": fields(CONFIG, auto_map=3),
    "architectures garbled": fields(CONFIG, architectures=3),
    "quantization of a package that is missing": fields(
        CONFIG, quantization_config={"quant_method": "gptq", "bits": 4}
    ),
    "a tensor missing": tensors(lambda found, key: {name: x for name, x in found.items() if name != key}),
    "a tensor of another shape": tensors(lambda found, key: {**found, key: found[key][:1]}),
    "a tensor with a name too many": tensors(lambda found, key: {**found, "more": torch.zeros(3)}),
    "a tensor of integers": tensors(lambda found, key: {**found, key: found[key].to(torch.int8)}),
    "a tensor with NaN": tensors(lambda found, key: {**found, key: found[key] * float("nan")}),
    "no tensors": tensors(lambda found, key: {}),
    "names of another model": tensors(lambda found, key: {f"x.{name}": x for name, x in found.items()}),
    "index garbled": index("{"),
    "index a list": index("[]"),
    "index without map": index("{}"),
    "index of a file that is gone": index(lambda keys: {"weight_map": dict.fromkeys(keys, "gone.safetensors")}),
    "index that leads elsewhere": index(lambda keys: {"weight_map": dict.fromkeys(keys, "../../x.safetensors")}),
    "index that lacks tensors": index(
        lambda keys: {"metadata": {}, "weight_map": dict.fromkeys(list(keys)[:2], "model-00001-of-00001.safetensors")}
    ),
    "mean of two values": fields(PROCESSOR, image_mean=[0.5, 0.5]),
    "mean of text": fields(PROCESSOR, image_mean="grey"),
    "mean null": fields(PROCESSOR, do_normalize=True, image_mean=None),
    "mean NaN": fields(PROCESSOR, do_normalize=True, image_mean=math.nan),
    "std zero": fields(PROCESSOR, do_normalize=True, image_std=[0, 0, 0]),
    "rescale_factor text": fields(PROCESSOR, do_rescale=True, rescale_factor="much"),
    "rescale_factor zero": fields(PROCESSOR, do_rescale=True, rescale_factor=0),
    "image_processor_type unknown": fields(PROCESSOR, image_processor_type="Nothing"),
    "image_processor_type a number": fields(PROCESSOR, image_processor_type=3),
    "size text": fields(PROCESSOR, size="large"),
}


@pytest.mark.parametrize("kind", ["own", "native"])
@pytest.mark.parametrize("case", CASES)
def test_malformed_folder_is_refused_in_one_line(released, tmp_path, kind, case):
    """10 of 59 ended in a traceback of twenty lines from inside transformers."""
    source, expected = released[kind]
    folder = shutil.copytree(source, tmp_path / "model")
    CASES[case](folder)
    try:
        found = Segmenter(*load_model(str(folder)))(IMAGE)
    except (ValueError, OSError) as error:
        text = str(error)
        assert len(text) > 20 and text.count("\n") <= 2 and "Traceback" not in text, text
    else:
        assert torch.equal(found, expected), "another model, without a word"
