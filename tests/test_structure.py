"""The house: who may import whom, what importing costs, and that torch is never there."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import jaxpool

PACKAGE = Path(jaxpool.__file__).parent
CONVERTERS = Path(sys.modules.get("jaxpool.converters", __import__("jaxpool.converters").converters).__file__).parent

# From the face down; a module imports only from lines below its own. Leaves stand in the last lines.
STREET = [
    {"__main__"},
    {"cli"},
    {"server.run_batch"},
    {"server.command"},
    {"server.app", "server.flags", "server.middleware", "server.listening"},
    {"server.gate", "server.tracing", "server.fast_path", "server.garbage"},
    {"server.routes.page"},
    {"server.routes.invocations"},
    {"server.routes.cohere", "server.routes.tei"},
    {"server.routes.texts", "server.routes.pairs", "server.routes.tokens", "server.routes.operations"},
    {"server.tei_replies"},
    {"server.cohere_protocol", "server.tei_protocol"},
    {"server.vectors"},
    {"server.context", "server.replies"},
    {"server.chat", "server.registry"},
    {"server.serving"},
    {"server.readers"},
    {"server.metrics", "server.encoding", "server.limits", "server.pictures"},
    {"server.scheduler", "server.mailbox", "server.protocol", "server.errors", "server.paths", "server.spelling"},
    {"server", "server.routes"},
    {"corpus.command"},
    {"corpus.shards"},
    {"corpus.job", "inspection", "convert", "plan"},
    {"ahead"},
    {"ahead.tpu", "ahead.gpu"},
    {"corpus.embedding", "corpus.fingerprint"},
    {"integrations.ray"},
    {"integrations.tables"},
    {"llm", "model"},
    {"corpus.writing", "corpus.files", "corpus.report", "engine", "pooler_config", "memory", "calls"},
    {"scoring"},
    {"reading", "corpus.reading"},
    {"images.reading"},
    {"images.clip", "images.siglip", "images.qwen2_vl", "images.llava_next", "images.phi3_v"},
    {"images.fixed"},
    {"placement", "images.processors", "endings"},
    {"pooling_params", "pipeline", "loading"},
    {"program"},
    {"runner"},
    {"images.picture"},
    {"hosts"},
    {"hosts.schedule"},
    {"hosts.messages", "hosts.tokens", "hosts.rows", "hosts.gather"},
    {"recipe"},
    {"head_choice"},
    {"sentence_transformers", "tokens", "rerankers"},
    {"tokenizer_files", "post_processing"},
    {"sentencepiece_model"},
    {"models"},
    {"models.internlm2", "models.qwen2_vl", "models.llava_next", "models.phi3_v"},
    {
        "models.clip",
        "models.siglip",
        "models.bert",
        "models.mpnet",
        "models.roberta",
        "models.jina",
        "models.distilbert",
        "models.modernbert",
        "models.llama",
        "models.gemma",
    },
    {"models.post_norm", "models.pre_norm", "models.classification", "models.vit"},
    {"models.family", "attention", "rotary", "lora"},
    {"images.format"},
    {"attention.blocked", "attention.native", "attention.flash"},
    {"attention.plain", "attention.splash", "attention.cudnn"},
    {"attention.mask", "attention.nvidia", "attention.kernels"},
    {"heads", "poolers", "models.hf_config"},
    {"chunks"},
    {"layers", "converters.export"},
    {"batch"},
    {"quantization", "norms"},
    {"packing"},
    {"native"},
    {"sharding"},
    {"converters.checkpoint"},
    {"converters.torch_bin"},
    {"converters.gemma", "converters.qwen2_vl", "converters.llava_next", "converters.phi3_v"},
    {"converters.roberta", "converters.siglip"},
    {
        "converters.bert",
        "converters.mpnet",
        "converters.distilbert",
        "converters.modernbert",
        "converters.llama",
        "converters.internlm2",
        "converters.jina",
        "converters.clip",
        "converters.head",
    },
    {"converters.rules"},
    {"converters.transforms"},
    {"image_chat_templates"},
    {
        "params",
        "equations",
        "converters",
        "activations",
        "activation_flags",
        "batching",
        "chat_templates",
        "hf_overrides",
        "outputs",
        "prompts",
        "progress",
        "similarity",
        "compile_cache",
        "hub",
        "tasks",
        "vllm_arguments",
        "sentencepiece_file",
        "slices",
    },
    {"corpus.chunk", "corpus.sources", "corpus.directory"},
    {"images", "images.opening", "images.fetching"},
    {"corpus", "corpus.arrow", "corpus.stopping", "integrations", "whole"},
    {"log"},
]
FLOOR = {name: depth for depth, names in enumerate(STREET) for name in names}


def modules():
    for root, prefix in ((PACKAGE, ""), (CONVERTERS, "converters.")):
        for path in root.rglob("*.py"):
            name = prefix + ".".join(path.relative_to(root).with_suffix("").parts)
            yield name.removesuffix(".__init__").removesuffix("__init__").removesuffix("."), path


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "jaxpool":
            base = node.module.removeprefix("jaxpool").removeprefix(".")
            for alias in node.names:
                full = f"{base}.{alias.name}".removeprefix(".")
                yield full if full in FLOOR else base
        if isinstance(node, ast.Import):
            for alias in node.names:
                assert alias.name.split(".")[0] != "torch", f"{path} imports torch"


def test_imports_run_one_way():
    wrong = []
    for name, path in modules():
        if name == "":
            continue  # jaxpool/__init__.py only names the others
        assert name in FLOOR, f"{name}: give it a line in STREET"
        for target in imports(path):
            if target and target != name and FLOOR[target] <= FLOOR[name] and not target.startswith(f"{name}."):
                wrong.append(f"{name} imports {target}")
    assert not wrong


def test_every_package_is_installed():
    listed = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    there = {".".join(path.parent.relative_to(PACKAGE.parent).parts) for path in PACKAGE.rglob("__init__.py")}
    assert set(listed) == there | {"jaxpool.converters"}


def test_families_have_twins():
    families = {p.stem for p in (PACKAGE / "models").glob("*.py")} - {
        "__init__",
        "classification",
        "family",
        "hf_config",
        "post_norm",
        "pre_norm",
        "vit",
    }
    for family in families:
        assert (CONVERTERS / f"{family}.py").exists()


def run(code, **env):
    import os

    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env={**os.environ, **env}
    )
    assert done.returncode == 0, done.stderr
    return done


def test_importing_is_light():
    code = """
import sys, jaxpool
heavy = {'jax', 'numpy', 'transformers', 'tokenizers', 'flax', 'torch', 'huggingface_hub'} & set(sys.modules)
assert not heavy, heavy
assert jaxpool.__version__ and set(dir(jaxpool)) >= {'LLM', 'load_params', 'PoolerConfig'}
"""
    run(code)


def test_quiet_where_transformers_is_needed(tmp_path):
    import shutil

    from jaxpool.hub import resolve

    for name in ("vocab.txt", "tokenizer_config.json", "config.json"):
        shutil.copy(resolve("all-MiniLM-L6-v2") / name, tmp_path)
    code = f"""
import sys
from pathlib import Path
from jaxpool.tokens import load_tokenizer
assert load_tokenizer(Path({str(tmp_path)!r})).encode(["hello world"], 9)[0].ids.tolist() == [101, 7592, 2088, 102]
assert 'transformers' in sys.modules
"""
    done = run(code)
    assert done.stdout == ""
    assert "PyTorch was not found" not in done.stderr


def test_embedding_is_quiet_and_without_torch_or_transformers():
    code = """
import sys
from jaxpool import LLM
with LLM('sentence-transformers/all-MiniLM-L6-v2', task='embed') as llm:
    (out,) = llm.embed('Hello, my name is', use_tqdm=False)
assert len(out.outputs.embedding) == 384
assert 'torch' not in sys.modules
assert 'transformers' not in sys.modules
"""
    done = run(code, HF_HUB_OFFLINE="1")
    assert done.stdout == ""
    assert done.stderr == ""
