"""An architecture of one's own: declared, registered, saved as a checkpoint, and served like any other.

`BagOfWordsModel` embeds each token, adds one dense layer with a tanh, and averages: no attention at all.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import jax.numpy as jnp
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

import jaxpool
from jaxpool.converters.rules import Rule, Table, linear, to_checkpoint
from jaxpool.layers import dense
from jaxpool.models.family import Family, Output
from jaxpool.models.hf_config import HFConfig
from jaxpool.params import embedding, flatten, random_params
from jaxpool.params import linear as linear_specs

TEXTS = ("the cat sat on the mat", "on the mat sat the cat", "stocks fell sharply")


@dataclass(frozen=True, kw_only=True)
class Config:
    vocab_size: int
    hidden_size: int
    max_length: int

    @property
    def activation_bytes_per_token(self):
        return 2 * 4 * self.hidden_size


def config_from_hf(values):
    hf = HFConfig(values)  # reads attribute by attribute; finish() refuses what nobody read
    length = hf.get("max_position_embeddings", 512)
    config = Config(vocab_size=hf.need("vocab_size"), hidden_size=hf.need("hidden_size"), max_length=length)
    hf.finish()
    return config


def param_specs(config):
    width = config.hidden_size
    return {
        "word": embedding(config.vocab_size, width, "vocab"),
        "dense": linear_specs({"embed": width}, {"mlp": width}),
    }


def forward(params, batch, config, *, capture=()):
    table = params["word"]["embedding"]
    return Output(jnp.tanh(dense(params["dense"], table[batch.ids])).astype(table.dtype), {})  # [R, T, D]


TABLE = Table((Rule("words.weight", "word/embedding"), *linear("dense", "dense")))  # checkpoint key -> leaf
BAG_OF_WORDS = Family(
    name="bag_of_words", architectures=("BagOfWordsModel",), model_types=("bag_of_words",), captures=(),
    config_from_hf=config_from_hf, param_specs=param_specs, forward=forward, pooling="mean", table=TABLE,
)  # fmt: skip


def save(directory: Path, width: int = 32) -> None:
    """Writes an untrained checkpoint: config.json, tokenizer.json and model.safetensors."""
    words = ["[UNK]", *sorted({word for text in TEXTS for word in text.split()})]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {"architectures": ["BagOfWordsModel"], "vocab_size": len(words), "hidden_size": width}
    (directory / "config.json").write_text(json.dumps(config))
    params = random_params(param_specs(config_from_hf(config)), scale=1.0)
    save_file(dict(to_checkpoint(flatten(params), TABLE)), directory / "model.safetensors")


def main() -> None:
    jaxpool.register(BAG_OF_WORDS)
    with TemporaryDirectory() as directory:
        save(Path(directory))
        with jaxpool.LLM(directory) as llm:
            vectors = llm.embed_array(TEXTS)
            print(f"\n{llm.recipe.architecture}: cosines with the first text\n" + "-" * 60)
            for text, cosine in zip(TEXTS, llm.similarity(vectors[:1], vectors)[0], strict=True):
                print(f"{cosine:.4f}  {text}\n" + "-" * 60)


if __name__ == "__main__":
    main()
