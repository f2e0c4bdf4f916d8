"""The examples, each run on a small model and held to numbers worked out another way."""

import re
import runpy
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from jaxpool import LLM
from jaxpool.hub import MINILM
from tests.tiny import tiny_bert, write_model

EXAMPLES = Path(__file__).parent.parent / "examples"
SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "max_position_embeddings": 1024,
}
DECODER = SIZES | {"num_key_value_heads": 2, "rms_norm_eps": 1e-6}
# As Qwen3-Reranker's model card writes it.
QWEN3 = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct provided. "
    'Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n<Instruct>: {}\n<Query>: {}\n'
    "<Document>: {}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
)


@pytest.fixture
def run(monkeypatch, capsys):
    """(name of the example, arguments) -> its globals, what it printed."""

    def example(name, *arguments):
        monkeypatch.setattr("sys.argv", [name, *map(str, arguments)])
        monkeypatch.setattr("jaxpool.models._REGISTERED", [])
        capsys.readouterr()
        values = runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        return values, capsys.readouterr().out

    return example


def numbers(label, text):
    """What stands behind each `label` at the beginning of a line: one number, or a list of them."""
    found = re.findall(rf"^{label}: \[?([-\d., ]+)", text, re.MULTILINE)
    return [[float(x) for x in line.rstrip(", ").split(", ")] for line in found]


def leading(text):
    """The numbers that lines begin with."""
    return [float(x) for x in re.findall(r"^(-?\d\.\d{4})  ", text, re.MULTILINE)]


def hidden_states(directory, prompts, **options):
    with LLM(directory, task="embed", pooler_config={"normalize": False, **options}) as llm:
        return [output.outputs.data for output in llm.encode(list(prompts), use_tqdm=False)]


def test_embed(run):
    _, text = run("embed", "--model", MINILM)
    # sentence-transformers' own vector of "Hello, my name is".
    expected = [-0.0783, -0.0071, 0.0256, 0.0648, -0.1163, -0.0886, 0.1411, 0.0163]
    np.testing.assert_allclose(numbers("Embedding", text)[0], expected, atol=1.5e-4)
    assert text.count("(size=384)") == 4


def test_matryoshka(run, tmp_path):
    directory = tiny_bert(tmp_path, positions=512)  # one batch, so one program
    values, text = run("matryoshka", "--model", directory, "--dimensions", 8)
    with LLM(directory) as llm:
        vectors = llm.embed_array(values["TEXTS"])
    small = vectors[:, :8] / np.linalg.norm(vectors[:, :8], axis=1, keepdims=True)
    np.testing.assert_allclose(leading(text), [*vectors @ vectors[0], *small @ small[0]], atol=6e-5)
    assert " 32 dimensions" in text
    assert " 8 dimensions" in text


def test_classify(run, tmp_path):
    labels = {str(i): name for i, name in enumerate(("calm", "default", "hate"))}
    kind = ("Qwen2ForSequenceClassification", "qwen2")
    directory = write_model(tmp_path / "tiny", *kind, id2label=labels, **DECODER)
    values, text = run("classify", "--model", directory)
    head = load_file(directory / "model.safetensors")["score.weight"]
    logits = np.stack(hidden_states(directory, values["PROMPTS"])) @ head.T
    probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(numbers("Class probabilities", text), probs, atol=6e-5)
    assert re.findall("^Class: (.*)", text, re.MULTILINE) == [labels[str(i)] for i in probs.argmax(1)]


def test_score_by_the_cosine(run):
    _, text = run("score", "--model", MINILM)
    brazil, france, nobody = (score for (score,) in numbers("Score", text))
    assert france > 0.8 > brazil > nobody
    assert "(cosine)" in text


def test_score_with_a_cross_encoder(run, tmp_path):
    directory = write_model(tmp_path / "tiny", "BertForSequenceClassification", "bert", num_labels=1, **SIZES)
    values, text = run("score", "--model", directory)
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    pairs = tokenizer.encode_batch([(values["QUESTION"], answer) for answer in values["TEXTS"]])
    prompts = [{"prompt_token_ids": pair.ids, "token_type_ids": pair.type_ids} for pair in pairs]
    with LLM(directory, task="classify") as llm:
        expected = [output.outputs.probs for output in llm.classify(prompts, use_tqdm=False)]
    np.testing.assert_allclose(numbers("Score", text), expected, atol=6e-5)
    assert "(cross-encoder)" in text


def test_rerank_writes_the_models_prompt(run, tmp_path):
    extra = {"tie_word_embeddings": True, "head_dim": 4}
    directory = tmp_path / "Qwen3-Reranker-tiny"
    write_model(directory, "Qwen3ForCausalLM", "qwen3", ("yes", "no"), **extra, **DECODER)
    values, text = run("rerank", "--model", directory, "--instruction", "Find what is about many hands.")
    prompts = [QWEN3.format("Find what is about many hands.", values["QUERY"], text) for text in values["DOCUMENTS"]]
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    table = load_file(directory / "model.safetensors")["embed_tokens.weight"]
    yes_no = table[tokenizer.token_to_id("yes")] - table[tokenizer.token_to_id("no")]
    scores = 1 / (1 + np.exp(-np.stack(hidden_states(directory, prompts)) @ yes_no))
    ranking = re.findall(r"^\d\. (\S+)  \[(\d)\] (.*)", text, re.MULTILINE)
    assert [int(index) for _, index, _ in ranking] == np.argsort(-scores).tolist()
    np.testing.assert_allclose([float(score) for score, _, _ in ranking], -np.sort(-scores), atol=6e-5)
    assert [document for _, _, document in ranking] == [values["DOCUMENTS"][i] for i in np.argsort(-scores)]


def test_rerank_with_a_cross_encoder(run, tmp_path):
    directory = write_model(tmp_path / "tiny", "BertForSequenceClassification", "bert", num_labels=1, **SIZES)
    values, text = run("rerank", "--model", directory)
    ranking = re.findall(r"^\d\. (\S+)  \[(\d)\] (.*)", text, re.MULTILINE)
    scores = [float(score) for score, _, _ in ranking]
    assert scores == sorted(scores, reverse=True)
    assert sorted(document for _, _, document in ranking) == sorted(values["DOCUMENTS"])
    assert "Instruction: None" in text


def test_reward(run, tmp_path):
    directory = write_model(tmp_path / "tiny", "InternLM2ForRewardModel", "internlm2", bias=False, **DECODER)
    values, text = run("reward", "--model", directory)
    head = load_file(directory / "model.safetensors")["v_head.weight"][0]
    expected = [tokens @ head for tokens in hidden_states(directory, values["PROMPTS"], pooling_type="ALL")]
    for found, rewards in zip(numbers("Rewards", text), expected, strict=True):
        np.testing.assert_allclose(found, rewards, atol=6e-5)
    np.testing.assert_allclose(numbers("Last token", text), [[rewards[-1]] for rewards in expected], atol=6e-5)


def test_process_reward(run, tmp_path):
    kind = ("Qwen2ForProcessRewardModel", "qwen2")
    directory = write_model(tmp_path / "tiny", *kind, ("<extra_0>",), **DECODER)
    values, text = run("process_reward", "--model", directory)
    answer = "".join(f"{step}<extra_0>" for step in values["STEPS"])
    said = zip(("system", "user", "assistant"), (values["SYSTEM"], values["QUESTION"], answer), strict=True)
    prompt = "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in said)
    (tokens,) = hidden_states(directory, [prompt], pooling_type="ALL")
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    steps = tokens[np.array(tokenizer.encode(prompt).ids) == tokenizer.token_to_id("<extra_0>")]
    w = load_file(directory / "model.safetensors")
    inner = np.maximum(steps @ w["score.0.weight"].T + w["score.0.bias"], 0)
    wrong, right = (inner @ w["score.2.weight"].T + w["score.2.bias"]).T
    np.testing.assert_allclose(np.ravel(numbers("Right", text)), 1 / (1 + np.exp(wrong - right)), atol=6e-5)
    assert len(steps) == 3


def test_register(run, tmp_path):
    values, text = run("register")
    values["save"](tmp_path)
    w = load_file(tmp_path / "model.safetensors")
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    vectors = []
    for words in values["TEXTS"]:
        rows = w["words.weight"][tokenizer.encode(words).ids]
        mean = np.tanh(rows @ w["dense.weight"].T + w["dense.bias"]).mean(0)
        vectors.append(mean / np.linalg.norm(mean))
    np.testing.assert_allclose(leading(text), np.stack(vectors) @ vectors[0], atol=6e-5)
    assert "BagOfWordsModel" in text


def test_pictures_and_words(run, tmp_path):
    """A CLIP that was trained for a minute tells colours and shapes apart, in pictures that it has not seen."""
    from examples import tiny_clip

    loss = tiny_clip.train(tmp_path / "model", seed=3)
    assert loss < 0.5
    rng = np.random.default_rng(99)
    wanted = [("red", "circle"), ("blue", "star"), ("green", "square")]
    files = []
    for colour, shape in wanted:
        files.append(tmp_path / f"{colour}.png")
        tiny_clip.draw(colour, shape, rng).save(files[-1])
    texts = [f"a {colour} {shape}" for colour, shape in wanted]
    _, printed = run("image_embed", tmp_path / "model", *files, *texts)
    cosines = np.reshape(leading(printed), (3, 3))
    assert cosines.argmax(1).tolist() == [0, 1, 2]
