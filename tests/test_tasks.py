"""Tasks: their names over vLLM's versions, and several of them from one instance."""

import numpy as np
import pytest

from jaxpool import LLM, PoolingParams
from jaxpool.tasks import asked_task, pooling_task
from tests.tiny import tiny_bert, tiny_classifier

SETTINGS = {"data_parallel_size": 1, "max_num_batched_tokens": 32}
TEXTS = ["the quick fox", "a dog", "seven small birds sing"]

# task, runner, convert
ASKED = [
    (("auto", "auto", "auto"), "auto"),
    (("auto", "pooling", "none"), "auto"),
    (("embed", "auto", "auto"), "embed"),
    (("embedding", "auto", "auto"), "embed"),
    (("classify", "pooling", "auto"), "classify"),
    (("score", "auto", "auto"), "score"),
    (("reward", "auto", "auto"), "token_classify"),
    (("token_embed", "auto", "auto"), "token_embed"),
    (("auto", "pooling", "embed"), "embed"),
    (("auto", "pooling", "classify"), "classify"),
    (("auto", "auto", "reward"), "token_classify"),
    (("embedding", "auto", "embed"), "embed"),
    (("token_embed", "auto", "embed"), "token_embed"),
    (("token_classify", "auto", "classify"), "token_classify"),
    (("score", "auto", "classify"), "classify"),
    (("score", "auto", "embed"), "embed"),
]
NOT_ASKED = [
    (("generate", "auto", "auto"), "Unsupported task: 'generate' Supported tasks: "),
    (("auto", "generate", "auto"), "runner is 'generate', expected one of"),
    (("auto", "draft", "auto"), "runner is 'draft'"),
    (("auto", "auto", "generate"), "convert is 'generate', expected one of"),
    (("embed", "auto", "classify"), "task 'embed' and convert 'classify' contradict each other"),
    (("classify", "auto", "embed"), "contradict each other"),
    (("score", "auto", "reward"), "contradict each other"),
]


def test_asked_task():
    for arguments, expected in ASKED:
        assert asked_task(*arguments) == expected, arguments
    for arguments, message in NOT_ASKED:
        with pytest.raises(ValueError, match=message):
            asked_task(*arguments)


OF_EMBEDDER, OF_CLASSIFIER = ("embed", "token_embed"), ("classify", "token_classify")
# pooling_task, the model's tasks (its own first)
POOLING = [
    ((None, OF_EMBEDDER), "embed"),
    (("embed", OF_EMBEDDER), "embed"),
    (("embedding", OF_EMBEDDER), "embed"),
    (("token_embed", OF_EMBEDDER), "token_embed"),
    (("encode", OF_EMBEDDER), "token_embed"),
    (("encode", OF_EMBEDDER[::-1]), "token_embed"),
    (("encode", OF_CLASSIFIER), "token_classify"),
    (("reward", OF_CLASSIFIER), "token_classify"),
    ((None, OF_CLASSIFIER[::-1]), "token_classify"),
    (("classify", OF_CLASSIFIER[::-1]), "classify"),
]
NO_POOLING = [
    (("classify", OF_EMBEDDER), r"Unsupported task: 'classify' Supported tasks: \('embed', 'token_embed'\)"),
    (("reward", OF_EMBEDDER), "Unsupported task: 'reward'"),
    (("plugin", OF_CLASSIFIER), "Unsupported task: 'plugin' Supported tasks: "),
    (("score", OF_CLASSIFIER), "`score` is no task of encode; use LLM.score, or `classify`"),
    (("token_embed", ("embed",)), r"Supported tasks: \('embed',\)"),
]


def test_pooling_task():
    for (name, supported), expected in POOLING:
        assert pooling_task(name, supported[0], supported) == expected, (name, supported)
    for (name, supported), message in NO_POOLING:
        with pytest.raises(ValueError, match=message):
            pooling_task(name, supported[0], supported)


@pytest.fixture(scope="module")
def embedder(tmp_path_factory):
    directory = tiny_bert(tmp_path_factory.mktemp("embedder"), positions=32)
    with LLM(directory, hf_overrides={"is_matryoshka": True}, **SETTINGS) as llm:
        yield llm


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    with LLM(tiny_classifier(tmp_path_factory.mktemp("classifier"), labels=3), **SETTINGS) as llm:
        yield llm


def data(outputs):
    return [output.outputs.data for output in outputs]


def close(a, b):
    assert [x.shape for x in a] == [x.shape for x in b]
    for x, y in zip(a, b, strict=True):
        np.testing.assert_allclose(x, y, atol=1e-6)


def test_every_token_of_an_embedder(embedder):
    with LLM(embedder.model, pooler_config={"task": "token_embed"}, **SETTINGS) as every:
        expected = data(every.encode(TEXTS, use_tqdm=False))
        pooled = data(every.encode(TEXTS, pooling_task="embed", use_tqdm=False))
        assert every.task == "token_embed"
        with pytest.raises(ValueError, match="use encode"):
            every.embed(TEXTS, use_tqdm=False)
    for name in ("token_embed", "encode"):
        close(data(embedder.encode(TEXTS, pooling_task=name, use_tqdm=False)), expected)
    close(data(embedder.encode(TEXTS, use_tqdm=False)), pooled)
    close([np.array(o.outputs.embedding) for o in embedder.embed(TEXTS, use_tqdm=False)], pooled)


def test_every_token_of_a_classifier(classifier):
    whole = data(classifier.encode(TEXTS, use_tqdm=False))
    close([np.array(o.outputs.probs) for o in classifier.classify(TEXTS, use_tqdm=False)], whole)
    by_token = classifier.encode(TEXTS, pooling_task="token_classify", use_tqdm=False)
    assert [o.outputs.data.shape for o in by_token] == [(len(o.prompt_token_ids), 3) for o in by_token]
    close([rows[0] for rows in data(by_token)], whole)  # BERT's head reads the first token
    close(data(classifier.reward(TEXTS, use_tqdm=False)), data(by_token))


WRONG = [
    ("embedder", "classify", "Classification API is not supported by this model. .*`--convert classify`"),
    ("embedder", "reward", "Reward API is not supported by this model. .*`--convert reward`"),
    ("classifier", "embed", "Embedding API is not supported by this model. .*`--convert embed`"),
    ("classifier", "embed_array", "Embedding API is not supported by this model"),
    ("classifier", "embed_stream", "Embedding API is not supported by this model"),
]


@pytest.mark.parametrize(("instance", "method", "message"), WRONG)
def test_the_wrong_method(request, instance, method, message):
    with pytest.raises(ValueError, match=message):
        getattr(request.getfixturevalue(instance), method)(TEXTS)


def test_a_classifier_of_three_gives_no_score(classifier):
    with pytest.raises(ValueError, match=r"Scoring API is only enabled for num_labels == 1"):
        classifier.score("the fox", "a dog", use_tqdm=False)


def test_the_wrong_pooling_task(embedder, classifier):
    with pytest.raises(ValueError, match=r"Unsupported task: 'classify' Supported tasks: \('embed', 'token_embed'\)"):
        embedder.encode(TEXTS, pooling_task="classify", use_tqdm=False)
    with pytest.raises(ValueError, match="Unsupported task: 'embed' Supported tasks: "):
        classifier.warmup("embed")


def test_warmup_is_of_the_own_task_unless_others_are_named(tmp_path):
    with LLM(tiny_bert(tmp_path), **SETTINGS) as llm:
        shapes = len(llm.engine.runner.ladder.shapes)
        llm.warmup()
        assert llm.stats.compilations == shapes
        llm.embed_array(TEXTS)
        llm.score(*TEXTS[:2], use_tqdm=False)
        assert llm.stats.compilations == shapes
        llm.warmup(*llm.supported_tasks)
        assert llm.stats.compilations == 2 * shapes


def test_no_mixture_compiles_anything(embedder):
    assert embedder.supported_tasks == ("embed", "token_embed")
    embedder.warmup(*embedder.supported_tasks)
    compiled = embedder.stats.compilations
    assert compiled == 2 * len(embedder.engine.runner.ladder.shapes)
    rng = np.random.default_rng(0)
    for _ in range(12):
        params = [PoolingParams(dimensions=int(rng.integers(1, 33)), normalize=bool(rng.integers(2))) for _ in TEXTS]
        texts = [" ".join(rng.permutation(TEXTS)[: rng.integers(1, 4)]) for _ in TEXTS]
        for task in ("embed", "token_embed"):
            embedder.encode(texts, params, pooling_task=task, use_tqdm=False)
    assert embedder.stats.compilations == compiled
