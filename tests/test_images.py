"""Pictures offline: the forms that they come in, what goes together, and that nothing compiles for a new size."""

import io

import numpy as np
import pytest
from PIL import Image

from jaxpool import LLM, PoolingParams

from .tiny import tiny_bert, tiny_clip

RNG = np.random.default_rng(5)
PIXELS = RNG.integers(0, 256, (37, 52, 3), np.uint8)
IMAGE = Image.fromarray(PIXELS)


def prompt(image, **more):
    return {"multi_modal_data": {"image": image}, **more}


def encoded(image, kind="PNG"):
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def llm(directory):
    with LLM(directory) as llm:
        yield llm


def test_every_form_of_a_picture_is_the_same_picture(llm, tmp_path):
    file = tmp_path / "picture.png"
    IMAGE.save(file)
    forms = [IMAGE, PIXELS, PIXELS / 255, encoded(IMAGE), file, str(file)]
    prompts = [IMAGE, *(prompt(form) for form in forms), prompt([IMAGE]), prompt(IMAGE, prompt="")]
    vectors = llm.embed_array(prompts)
    np.testing.assert_allclose(vectors, np.tile(vectors[:1], (len(prompts), 1)), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)


def test_texts_and_pictures_in_one_call_keep_their_order(llm):
    texts = [f"text {i}" for i in range(40)]
    images = [Image.fromarray(RNG.integers(0, 256, (9 + i, 30, 3), np.uint8)) for i in range(40)]
    mixed = [item for pair in zip(texts, images, strict=True) for item in pair]
    together = llm.embed_array(mixed)
    np.testing.assert_allclose(together[::2], llm.embed_array(texts), atol=1e-6)
    np.testing.assert_allclose(together[1::2], llm.embed_array(images), atol=1e-6)
    streamed = np.stack(list(llm.embed_stream(mixed)))
    np.testing.assert_allclose(streamed, together, atol=1e-6)


def test_what_stands_beside_a_picture_is_counted_and_switched(llm):
    bare = llm.embed(IMAGE, pooling_params=PoolingParams(normalize=False), use_tqdm=False)[0].outputs.embedding
    (vector,) = llm.embed_array([IMAGE])
    np.testing.assert_allclose(bare / np.linalg.norm(bare), vector, atol=1e-6)
    assert not np.isclose(np.linalg.norm(bare), 1)


def test_no_size_compiles_anything(directory):
    with LLM(directory) as llm:
        llm.warmup()
        before = llm.stats.compilations
        for _ in range(12):
            shapes = RNG.integers(1, 120, (RNG.integers(1, 30), 2))
            llm.embed_array([Image.fromarray(RNG.integers(0, 256, (*shape, 3), np.uint8)) for shape in shapes])
            llm.embed_array(["some text", IMAGE])
        assert llm.stats.compilations == before


def test_the_processors_settings_of_an_instance_and_of_a_prompt(directory, llm):
    nearest = {"resample": 0}
    (wanted,) = llm.embed_array([prompt(IMAGE, mm_processor_kwargs=nearest)])
    assert np.abs(wanted - llm.embed_array([IMAGE])[0]).max() > 1e-4
    with LLM(directory, mm_processor_kwargs=nearest) as other:
        np.testing.assert_allclose(other.embed_array([IMAGE])[0], wanted, atol=1e-6)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (prompt(IMAGE, prompt="a text too"), "a text or one picture"),
        (prompt([IMAGE, IMAGE]), "a text or one picture; got 2 pictures"),
        (prompt("no/such/file.png"), r"prompts\[0\]\['multi_modal_data'\]\['image'\]"),
        (prompt(b"no picture"), r"prompts\[0\]\['multi_modal_data'\]\['image'\]"),
        (prompt(encoded(IMAGE)[:200]), "image"),
        (prompt(PIXELS[:, :, :2]), "image"),
        (prompt(IMAGE, mm_processor_kwargs={"sharpness": 1}), "sharpness"),
        (prompt(IMAGE, mm_processor_kwargs={"resample": "sharp"}), "resample"),
        (prompt(IMAGE, mm_processor_kwargs={"do_normalize": False}), "do_normalize"),
        (prompt(IMAGE, mm_processor_kwargs={"crop_size": {"height": 14, "width": 14}}), "14"),
        (prompt(Image.new("RGB", (1, 900))), "200 times"),
        ({"multi_modal_data": {"audio": 1}, "prompt": "x"}, "multi_modal_data"),
        ({"multi_modal_data": IMAGE}, "multi_modal_data"),
    ],
)
def test_bad_pictures(llm, given, said):
    with pytest.raises(ValueError, match=said):
        llm.embed([given], use_tqdm=False)
    assert llm.embed_array([IMAGE]).shape[0] == 1


def test_a_picture_has_one_vector(llm):
    with pytest.raises(ValueError, match="one vector"):
        llm.encode([IMAGE], pooling_task="token_embed", use_tqdm=False)


def test_models_that_only_read(tmp_path):
    directory = tiny_bert(tmp_path, layers=1)
    with LLM(directory) as llm, pytest.raises(ValueError, match="reads texts only"):
        llm.embed([IMAGE], use_tqdm=False)
    with pytest.raises(ValueError, match="reads texts only"):
        LLM(directory, mm_processor_kwargs={"resample": 0})


def test_other_batches_give_the_same_vectors(directory, llm):
    images = [Image.fromarray(RNG.integers(0, 256, (20 + i, 33, 3), np.uint8)) for i in range(13)]
    with LLM(directory, deterministic=True, max_num_batched_tokens=64) as other:
        np.testing.assert_allclose(
            other.embed_array([*images, "a text"]), llm.embed_array([*images, "a text"]), atol=1e-6
        )
