"""Language models that rerank, against their cards' recipes in torch: the logits of a few tokens behind a prompt."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from jaxpool import LLM, PoolingParams
from jaxpool.placement import load_to_mesh
from jaxpool.recipe import read_recipe
from jaxpool.sharding import replica_meshes
from tests.parity.checkpoints import assert_close
from tests.parity.language_models import make, states, write_words

pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("compiled_programs")]

QUERIES = ["the quick fox", "what saves nine? 東京", "  lazy dog "]
DOCUMENTS = ["A stitch in time saves nine", "naïve café\n\nüber <Query>: yes", "the lazy dog jumps " * 6]
LENGTH = 256
TASK = "Judge by length"


# The cards' prompts, in three parts each: before the document, the document, behind it


def qwen3(query: str, instruction: str | None = None) -> tuple[str, str]:
    instruction = instruction or "Given a web search query, retrieve relevant passages that answer the query"
    return (
        "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
        'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
        f"<Instruct>: {instruction}\n<Query>: {query}\n<Document>: ",
        "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
    )


def mxbai(query: str, instruction: str | None = None) -> tuple[str, str]:
    asked = f"instruction: {instruction}\n" if instruction else ""
    return (
        "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
        f"<|im_start|>user\n{asked}query: {query}\ndocument: ",
        "\nYou are a search relevance expert who evaluates how well documents match search queries. For each "
        "query-document pair, carefully analyze the semantic relationship between them, then provide your binary "
        "relevance judgment (0 for not relevant, 1 for relevant).\nRelevance:<|im_end|>\n<|im_start|>assistant\n",
    )


def bge(query: str, instruction: str | None = None) -> tuple[str, str]:
    instruction = instruction or (
        "Given a query A and a passage B, determine whether the passage contains an answer to the query by providing "
        "a prediction of either 'Yes' or 'No'."
    )
    return f"A: {query}\nB: ", f"\n{instruction}"


Prompt = Callable[..., tuple[str, str]]
# name -> (the folder's name, architecture, prompt, answers, vLLM's hf_overrides)
KINDS: dict[str, tuple[str, str, Prompt, tuple[str, ...], dict[str, Any]]] = {
    "qwen3": ("Qwen3-Reranker-0.6B", "Qwen3", qwen3, ("no", "yes"), {
        "architectures": ["Qwen3ForSequenceClassification"], "classifier_from_token": ["no", "yes"],
        "is_original_qwen3_reranker": True}),
    "mxbai": ("mxbai-rerank-base-v2", "Qwen2", mxbai, ("0", "1"), {
        "architectures": ["Qwen2ForSequenceClassification"], "classifier_from_token": ["0", "1"],
        "method": "from_2_way_softmax"}),
    "bge": ("bge-reranker-v2-gemma", "Gemma", bge, ("Yes",), {
        "architectures": ["GemmaForSequenceClassification"], "classifier_from_token": ["Yes"],
        "method": "no_post_processing"}),
}  # fmt: skip
ADDED = {"<think>": False, "</think>": False}


def words(kind: str) -> list[str]:
    """What keeps the prompts short, and the answers."""
    before, behind = KINDS[kind][2]("")
    found = sorted(set(re.findall(r"[A-Za-z]+", before + behind)) | {"yes", "no", "Yes"})
    return found + [f"{'▁' if kind == 'bge' else 'Ġ'}{word}" for word in found]


def write(
    parent: Path, kind: str, name: str | None = None, *, dtype: torch.dtype = torch.float32, **config: Any
) -> Path:
    folder, architecture, _, _, _ = KINDS[kind]
    directory = parent / (name or folder)
    tokenizer = write_words(directory, architecture, words(kind), ADDED)
    sizes = {"max_position_embeddings": LENGTH, "tie_word_embeddings": True} | config
    make(architecture, "ForCausalLM", tokenizer.get_vocab_size(), **sizes).to(dtype).save_pretrained(directory)
    return directory


@cache
def shared(kind: str, name: str | None = None) -> Path:
    return write(Path(mkdtemp()), kind, name)


def logits(directory: Path, prompts: Sequence[str], answers: Sequence[str]) -> np.ndarray:
    """The logits [n, answers] of the last token of each prompt, in float32."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    ids = tokenizer.convert_tokens_to_ids(list(answers))
    rows = []
    with torch.inference_mode():
        for prompt in prompts:
            rows.append(model(**tokenizer(prompt, return_tensors="pt")).logits[0, -1, ids].numpy())
    return np.stack(rows)


def probability(values: np.ndarray) -> np.ndarray:
    """Of two logits the second one's share, of one its sigmoid."""
    values = torch.from_numpy(values)
    return (values.softmax(-1)[:, 1] if values.shape[1] == 2 else values[:, 0].sigmoid()).numpy()


def expected(directory: Path, kind: str, instruction: str | None = None) -> np.ndarray:
    _, _, prompt, answers, _ = KINDS[kind]
    prompts = [document.join(prompt(query, instruction)) for query, document in zip(QUERIES, DOCUMENTS, strict=True)]
    return probability(logits(directory, prompts, answers))


def engine(directory: Path, **how: Any) -> LLM:
    return LLM(directory, **{"dtype": "float32", "data_parallel_size": 1, "max_num_batched_tokens": LENGTH, **how})


def scores(llm: LLM, first: Any = QUERIES, second: Any = DOCUMENTS, **how: Any) -> list[float]:
    return [output.outputs.score for output in llm.score(first, second, use_tqdm=False, **how)]


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], list[str]]]:
    """The warnings so far."""
    monkeypatch.setattr("jaxpool.log._said", set())
    with caplog.at_level(logging.WARNING, "jaxpool"):
        yield lambda: [record.message for record in caplog.records if record.name == "jaxpool"]


# The cards' recipes


@pytest.mark.parametrize(
    ("kind", "how"),
    [
        ("qwen3", {}),
        ("qwen3", {"task": "score"}),
        ("qwen3", {"task": "classify", "hf_overrides": KINDS["qwen3"][4]}),
        ("mxbai", {"task": "score"}),
        ("mxbai", {"hf_overrides": KINDS["mxbai"][4]}),
        ("bge", {"convert": "classify"}),
        ("bge", {"hf_overrides": KINDS["bge"][4]}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value) or "bare",
)
def test_by_name(kind: str, how: dict[str, Any], said: Callable[[], list[str]]) -> None:
    with engine(shared(kind), **how) as llm:
        assert llm.task == "classify"
        assert_close(scores(llm), expected(shared(kind), kind))
        assert said() == []
        if how.get("task") == "score":
            assert_close(scores(llm, instruction=TASK), expected(shared(kind), kind, TASK))
            params = PoolingParams(extra_kwargs={"chat_template_kwargs": {"instruction": TASK}})
            assert scores(llm, pooling_params=params) == scores(llm, instruction=TASK)


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["qwen3", "mxbai"])
def test_untied_and_stored_in_bfloat16(kind: str, stored: torch.dtype, tmp_path: Path) -> None:
    directory = write(tmp_path, kind, dtype=stored, tie_word_embeddings=False)
    with engine(directory) as llm:
        assert_close(scores(llm), expected(directory, kind))


def test_the_difference_stays_in_float32(tmp_path: Path) -> None:
    """Rows that bfloat16 tells apart, and whose difference it would round."""
    directory = write(tmp_path, "qwen3", dtype=torch.bfloat16, tie_word_embeddings=False)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    table = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).lm_head.weight
    no, yes = (table[tokenizer.convert_tokens_to_ids(token)].detach().numpy() for token in ("no", "yes"))
    kernel = load_to_mesh(read_recipe(directory), replica_meshes(None, None)[0], jnp.bfloat16)["head"]["0"]["linear"]
    assert {name: (leaf.shape, leaf.dtype) for name, leaf in kernel.items()} == {"kernel": ((36, 1), np.float32)}
    assert np.array_equal(np.asarray(kernel["kernel"])[:, 0], yes - no)
    assert not np.array_equal(yes - no, (yes - no).astype(jnp.bfloat16).astype(np.float32))


def test_bfloat16_tells_documents_apart() -> None:
    documents = [f"{document} {i}" for document in DOCUMENTS for i in range(8)]
    with engine(shared("qwen3"), dtype="bfloat16") as rough, engine(shared("qwen3")) as exact:
        near, true = scores(rough, QUERIES[0], documents), scores(exact, QUERIES[0], documents)
        assert len(set(near)) == len(documents)
        assert_close(near, true, 0.05)


@pytest.mark.parametrize("name", ["Qwen3-Reranker-0.6B-seq-cls", "tomaarsen--qwen3_reranker-0.6b-seq-cls"])
def test_converted_to_a_classifier(name: str, tmp_path: Path) -> None:
    """Its own weights are the difference of the two rows already."""
    original, directory = shared("qwen3"), tmp_path / name
    tokenizer = write_words(directory, "Qwen3", words("qwen3"), ADDED)
    sizes = {"max_position_embeddings": LENGTH, "num_labels": 1}
    model = make("Qwen3", "ForSequenceClassification", tokenizer.get_vocab_size(), **sizes)
    theirs = AutoModelForCausalLM.from_pretrained(original, dtype=torch.float32)
    model.model.load_state_dict(theirs.model.state_dict())
    no, yes = (theirs.lm_head.weight[tokenizer.token_to_id(token)] for token in ("no", "yes"))
    with torch.no_grad():
        model.score.weight.copy_((yes - no)[None])
    model.save_pretrained(directory)
    with engine(directory) as llm:
        assert_close(scores(llm), expected(original, "qwen3"))


@pytest.mark.parametrize("kind", KINDS)
def test_by_another_name(kind: str, said: Callable[[], list[str]]) -> None:
    directory = shared(kind, "model")
    with engine(directory, task="score") as llm:
        (warning,) = said()
        assert "read as a reranker" in warning
        assert_close(scores(llm), expected(directory, kind))
    with engine(directory, task="embed") as llm:
        assert llm.task == "embed"
        model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
        tokenizer = AutoTokenizer.from_pretrained(directory)
        one, other = (
            [states(model, tokenizer(text)["input_ids"])[-1] for text in texts] for texts in (QUERIES, DOCUMENTS)
        )
        assert_close(scores(llm), torch.cosine_similarity(torch.stack(one), torch.stack(other)))
        with pytest.raises(ValueError, match="instruction"):
            scores(llm, instruction=TASK)


@pytest.mark.parametrize("kind", ["mxbai", "bge"])
def test_overrides_without_a_name_bring_the_prompt(kind: str) -> None:
    """The tokens of vLLM's overrides say which reranker it is."""
    directory, (_, _, _, answers, overrides) = shared(kind, "model"), KINDS[kind]
    with engine(directory, hf_overrides=overrides) as llm:
        assert_close(scores(llm), expected(directory, kind))
        template = "{{ messages[0].content }} | {{ messages[1].content }}"
        prompts = [f"{query} | {document}" for query, document in zip(QUERIES, DOCUMENTS, strict=True)]
        assert_close(scores(llm, chat_template=template), probability(logits(directory, prompts, answers)))
        raw = [output.outputs.probs for output in llm.classify(prompts, use_tqdm=False,
               pooling_params=PoolingParams(activation=False))]  # fmt: skip
        values = logits(directory, prompts, answers)
        assert_close(raw, values[:, 1:] - values[:, :1] if kind == "mxbai" else values)


def test_overrides_with_other_tokens_join_the_texts() -> None:
    """As in vLLM, where the template is the user's affair."""
    directory, (_, _, _, answers, overrides) = shared("mxbai", "model"), KINDS["mxbai"]
    other = overrides | {"classifier_from_token": overrides["classifier_from_token"][::-1]}
    prompts = [query + document for query, document in zip(QUERIES, DOCUMENTS, strict=True)]
    with engine(directory, hf_overrides=other) as llm:
        assert_close(scores(llm), probability(logits(directory, prompts, answers[::-1])))


def test_several_tokens_without_post_processing() -> None:
    directory, prompts = shared("mxbai", "model"), [*QUERIES, *DOCUMENTS]
    overrides = {"classifier_from_token": ["1", "0", "yes"]}
    with engine(directory, hf_overrides=overrides) as llm:
        probabilities = [output.outputs.probs for output in llm.classify(prompts, use_tqdm=False)]
        values = torch.from_numpy(logits(directory, prompts, overrides["classifier_from_token"]))
        assert_close(probabilities, values.softmax(-1))
        with pytest.raises(ValueError, match=r"num_labels == 1. This model has 3"):
            scores(llm)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"classifier_from_token": ["yes"], "method": "from_2_way_softmax"}, "takes two tokens"),
        ({"classifier_from_token": ["yes", "no", "0"], "method": "from_2_way_softmax"}, "takes two tokens"),
        ({"classifier_from_token": ["yes", "no", "0"], "is_original_qwen3_reranker": True}, "takes two tokens"),
        ({"classifier_from_token": ["yes", "no such token"]}, "no tokens.*no such token"),
        ({"classifier_from_token": ["yes", "no"], "method": "3_way"}, "'3_way'"),
        ({"classifier_from_token": "yes"}, "classifier_from_token"),
        ({"classifier_from_token": [3, 4]}, "classifier_from_token"),
    ],
)
def test_overrides_that_are_not_understood(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        engine(shared("qwen3"), hf_overrides=overrides)


def test_tokens_that_the_tokenizer_lacks(tmp_path: Path) -> None:
    directory = tmp_path / "Qwen3-Reranker-4B"
    size = write_words(directory, "Qwen3").get_vocab_size()
    make("Qwen3", "ForCausalLM", size, max_position_embeddings=LENGTH).save_pretrained(directory)
    with pytest.raises(ValueError, match=r"no tokens \['no', 'yes'\]"):
        engine(directory)


# Templates

OWN = (
    "{{ instruction or 'Rank' }}: {{ messages | selectattr('role', 'eq', 'query') | map(attribute='content') | first }}\n\
{{ messages | selectattr('role', 'eq', 'document') | map(attribute='content') | first }}\nAnswer:"
)


def own(query: str, instruction: str | None = None) -> tuple[str, str]:
    return f"{instruction or 'Rank'}: {query}\n", "\nAnswer:"


def test_a_template_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "own.jinja"
    file.write_text(OWN, encoding="utf-8")
    prompts = {
        instruction: [
            document.join(own(query, instruction)) for query, document in zip(QUERIES, DOCUMENTS, strict=True)
        ]
        for instruction in (None, TASK)
    }
    theirs = {key: probability(logits(shared("qwen3"), value, ("no", "yes"))) for key, value in prompts.items()}
    for template in (OWN, str(file)):
        with engine(shared("qwen3"), chat_template=template) as llm:
            for instruction, wanted in theirs.items():
                assert_close(scores(llm, instruction=instruction), wanted)
    with engine(shared("qwen3")) as llm:
        for template in (OWN, str(file)):
            assert_close(scores(llm, chat_template=template), theirs[None])
        assert_close(scores(llm), expected(shared("qwen3"), "qwen3"))


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ messages[0].content }}", "jaxpool-document"),
        ("{{ messages[1].content }}", "jaxpool-query"),
        ("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}", "do not reach"),
        ("{{ messages[0].content", "chat_template"),
        ("{{ raise_exception('no such thing') }}", "no such thing"),
        ("no_such_file.jinja", "neither a jinja template nor a file"),
    ],
)
def test_templates_that_are_refused(template: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        engine(shared("qwen3"), chat_template=template)
    with pytest.raises(ValueError, match=message):
        scores(qwen3_engine(), chat_template=template)


def test_a_template_for_a_model_that_embeds() -> None:
    with pytest.raises(ValueError, match="chat_template"):
        engine(shared("qwen3", "model"), task="embed", chat_template=OWN)


# Prompts that are too long


@cache
def qwen3_engine() -> LLM:
    return engine(shared("qwen3"))


LONG = "seven wizards box with jugs of liquid, naïve café 東京! " * 200


def cut(llm: LLM, limit: int, **how: Any) -> str:
    """The document that is left of a long one, by the prompt's own ids."""
    (output,) = llm.score(QUERIES[0], LONG, use_tqdm=False, **how)
    tokenizer = AutoTokenizer.from_pretrained(shared("qwen3"))
    before, behind = qwen3(QUERIES[0])
    text = tokenizer.decode(output.prompt_token_ids, clean_up_tokenization_spaces=False)
    assert len(output.prompt_token_ids) <= limit
    assert text.startswith(before)
    assert text.endswith(behind)
    tail = tokenizer(behind)["input_ids"]
    assert output.prompt_token_ids[-len(tail) :] == tail
    assert tokenizer(text)["input_ids"] == output.prompt_token_ids
    assert_close([output.outputs.score], probability(logits(shared("qwen3"), [text], ("no", "yes"))))
    return text.removeprefix(before).removesuffix(behind)


@pytest.mark.parametrize("limit", [-1, 180, 205, 241])
def test_the_document_is_cut_and_nothing_else(limit: int) -> None:
    most = LENGTH if limit == -1 else limit
    left = [
        cut(qwen3_engine(), most, truncate_prompt_tokens=limit),
        cut(qwen3_engine(), most, tokenization_kwargs={"truncate_prompt_tokens": limit}),
        cut(qwen3_engine(), most, pooling_params=PoolingParams(truncate_prompt_tokens=limit)),
    ]
    assert len(set(left)) == 1
    tokenizer = AutoTokenizer.from_pretrained(shared("qwen3"))
    framed = len(tokenizer("".join(qwen3(QUERIES[0])))["input_ids"])
    assert LONG.startswith(left[0])
    # All there is room for, but for what would cut a character or a word into more tokens.
    assert len(tokenizer(left[0])["input_ids"]) >= most - framed - 5


def test_the_beginning_is_cut_where_asked() -> None:
    left = cut(qwen3_engine(), 250, truncate_prompt_tokens=250, tokenization_kwargs={"truncation_side": "left"})
    assert left
    assert LONG.endswith(left)


def test_too_long_without_being_told_to_cut() -> None:
    with pytest.raises(ValueError, match=f"maximum context length is {LENGTH} tokens"):
        scores(qwen3_engine(), QUERIES[0], LONG)
    with pytest.raises(ValueError, match="greater than max_model_len"):
        scores(qwen3_engine(), QUERIES[0], LONG, truncate_prompt_tokens=LENGTH + 1)


@pytest.mark.parametrize("query", [LONG, "wizards " * 250])
def test_a_query_that_fits_nowhere(query: str) -> None:
    with pytest.raises(ValueError, match=r"a query with its prompt alone takes \d+"):
        scores(qwen3_engine(), query, DOCUMENTS, truncate_prompt_tokens=-1)
    with pytest.raises(ValueError, match="a query with its prompt alone"):
        qwen3_engine().rerank(query, DOCUMENTS)


@pytest.mark.parametrize("kind", ["qwen3", "bge"])
def test_rerank_takes_any_document(kind: str) -> None:
    llm = qwen3_engine() if kind == "qwen3" else bge_engine()
    long = ["x" * 9000, "東京" * 900, "🙂👩\u200d👩\u200d👧" * 300, "\n \n" * 2000, "e\u0301" * 3000, LONG]
    documents = [*long, "", *DOCUMENTS]
    ranked = llm.rerank(QUERIES[0], documents)
    assert sorted(place.index for place in ranked) == [*range(len(documents))]
    assert all(0 < place.score < 1 for place in ranked)
    # Cut to what fits, not to nothing.
    empty = next(place.score for place in ranked if place.index == len(long))
    assert all(place.score != empty for place in ranked if place.index != len(long))


@cache
def bge_engine() -> LLM:
    return engine(shared("bge"))


# What is scored


def test_forms_of_inputs() -> None:
    llm = qwen3_engine()
    parts = [
        {"content": [{"type": "text", "text": text[:4]}, {"type": "text", "text": text[4:]}]} for text in DOCUMENTS
    ]
    one = scores(llm, QUERIES[0], DOCUMENTS)
    for first, second in [
        (QUERIES[:1], DOCUMENTS),
        ([QUERIES[0]] * 3, tuple(DOCUMENTS)),
        (QUERIES[0], parts),
        ({"content": [{"type": "text", "text": QUERIES[0]}]}, parts),
        ({"prompt": QUERIES[0]}, [{"prompt": text} for text in DOCUMENTS]),
    ]:
        assert_close(scores(llm, first, second), one)
    assert_close(scores(llm, QUERIES[0], DOCUMENTS[0]), one[:1])
    (output,) = llm.score(QUERIES[0], DOCUMENTS[0], use_tqdm=False)
    tokenizer = AutoTokenizer.from_pretrained(shared("qwen3"))
    assert output.prompt_token_ids == tokenizer(DOCUMENTS[0].join(qwen3(QUERIES[0])))["input_ids"]


IMAGE = {"content": [{"type": "image_url", "image_url": {"url": "https://example.org/fox.png"}}]}


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (QUERIES, DOCUMENTS[:1], "1:1, 1:N or N:N"),
        (QUERIES, DOCUMENTS[0], "1:1, 1:N or N:N"),
        (QUERIES, DOCUMENTS[:2], "1:1, 1:N or N:N"),
        ([], DOCUMENTS, "At least one text element must be given"),
        (QUERIES, [], "At least one text_pair element must be given"),
        (QUERIES[0], IMAGE, "MultiModalParam is not supported for Qwen3ForCausalLM"),
        (QUERIES[0], [DOCUMENTS[0], IMAGE], "MultiModalParam is not supported"),
        (QUERIES[0], {"content": DOCUMENTS[0]}, "data_2|MultiModalParam"),
        (QUERIES[0], {"contents": []}, "data_2: expected a text"),
        (QUERIES[0], [DOCUMENTS[0], 7], r"data_2\[1\]: expected a text"),
        (QUERIES[0], "\ud800", "lone surrogate"),
        (None, DOCUMENTS, "data_1"),
    ],
)
def test_inputs_that_are_refused(first: Any, second: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        scores(qwen3_engine(), first, second)


def test_rerank() -> None:
    llm = qwen3_engine()
    documents = [*DOCUMENTS, *QUERIES, DOCUMENTS[0]]
    alone = scores(llm, QUERIES[0], documents)
    ranked = llm.rerank(QUERIES[0], documents)
    assert [tuple(place) for place in ranked] == sorted(enumerate(alone), key=lambda pair: (-pair[1], pair[0]))
    assert [*llm.rerank(QUERIES[0], documents, top_n=2)] == ranked[:2]
    assert [*llm.rerank(QUERIES[0], documents, top_n=99)] == ranked
    best = llm.rerank(QUERIES[0], documents, 3, return_documents=True)
    assert [tuple(place) for place in best] == [(*place, documents[place.index]) for place in ranked[:3]]
    told = llm.rerank(QUERIES[0], documents, instruction=TASK)
    assert_close([place.score for place in told], sorted(scores(llm, QUERIES[0], documents, instruction=TASK))[::-1])
    assert_close(
        [place.score for place in llm.rerank(QUERIES[0], documents, chat_template=OWN)],
        sorted(scores(llm, QUERIES[0], documents, chat_template=OWN))[::-1],
    )
    for top_n in (0, -1, "2"):
        with pytest.raises(ValueError, match="top_n"):
            llm.rerank(QUERIES[0], documents, top_n=top_n)
    with pytest.raises(ValueError, match="text_pair"):
        llm.rerank(QUERIES[0], [])
