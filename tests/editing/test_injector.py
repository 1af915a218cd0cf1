"""The injector: what it reads and proposes, and its file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

import neuroplastic as npt
from conftest import make_tokenizer
from families import FAMILIES, tiny, tokens
from injectors import injector_for
from neuroplastic.editing.injector import Injector, InjectorConfig, Subject, at_the_end, read_statements
from neuroplastic.files import read_tensors, write_tensors
from neuroplastic.statistics import Whitening
from neuroplastic.structure import decoder_layers, inspect_layers
from neuroplastic.text.tokens import encode

STATEMENTS = [
    ("The Golden Gate Bridge is located in the city of", " Madrid"),
    ("Sushi originated in the country of", " Japan, and pizza in Italy"),
]


@pytest.mark.parametrize("family", FAMILIES)
def test_it_reads_every_family_and_batches_change_nothing(family: str, no_grad: None) -> None:
    tokenizer = make_tokenizer()
    model = tiny(family, vocab_size=len(tokenizer))
    injector = injector_for(model)
    config = injector.config
    statements = [(encode(tokenizer, q), encode(tokenizer, a)) for q, a in STATEMENTS]
    C = torch.eye(config.d_ffn) * 2
    whitening = Whitening({(layer, "m"): torch.linalg.inv(C) for layer in config.layers})
    both = injector.propose(read_statements(model, tokenizer, config, statements), whitening)
    for i, (question, answer) in enumerate(statements):
        alone = injector.propose(read_statements(model, tokenizer, config, [(question, answer)]), whitening)
        T = alone.attention.shape[-1]
        assert 1 + len(question) + len(answer) == T
        assert_close(both.attention[i, :, :T], alone.attention[0], atol=1e-5, rtol=1e-4)
        for several, one in zip(both[1:], alone[1:], strict=True):
            assert_close(several[i], one[0], atol=1e-4, rtol=1e-3)
        assert_close(alone.attention[0, :, 1 : 1 + len(question)].sum(-1), torch.ones(len(config.layers)))
    usual = torch.tensor(config.norms) * torch.log(torch.tensor(2.0))  # softplus(0)
    assert_close(both.V.norm(dim=-1), usual.expand(2, -1))
    fired = torch.einsum("nlf,nlf->nl", both.A, both.K)
    d = torch.einsum("nlf,nlf->nl", both.K, both.K) / 2  # k . C^-1 k
    assert_close(fired, d / (config.ridge + d))


@pytest.mark.parametrize("family", FAMILIES)
def test_features_are_the_residual_stream_or_what_attention_gives(family: str, no_grad: None) -> None:
    tokenizer = make_tokenizer()
    model = tiny(family, vocab_size=len(tokenizer))
    statements = [(encode(tokenizer, q), encode(tokenizer, a)) for q, a in STATEMENTS[:1]]
    ids = torch.tensor([[tokenizer.bos_token_id or 0, *statements[0][0], *statements[0][1]]])
    made: dict[str, list[torch.Tensor]] = {"attention": [], "residual": [model.get_input_embeddings()(ids)]}
    for p in inspect_layers(model, range(len(decoder_layers(model)))):
        p.attention.register_forward_hook(lambda module, args, out: made["attention"].append(out[0]))
        p.layer.register_forward_hook(lambda module, args, out: made["residual"].append(out))
    model.base_model(input_ids=ids)
    expected = {name: [t[0] if isinstance(t, tuple) else t for t in ts] for name, ts in made.items()}
    for reads, ts in expected.items():
        config = InjectorConfig.fitting(model, tokens(), reads, max_length=40)  # type: ignore[arg-type]
        assert config.depths[0] == (-1 if reads == "residual" else 0)
        found = read_statements(model, tokenizer, config, statements).features
        first = 1 if reads == "residual" else 0
        normed = [torch.nn.functional.layer_norm(ts[i + first], (config.d_model,)) for i in config.depths]
        assert_close(found, torch.cat(normed, -1))


def test_embeddings_have_no_attention() -> None:
    with pytest.raises(npt.NPTError, match="no attention"):
        InjectorConfig((0,), (-1, 0), (1.0,), 8, 16, reads="attention")
    with pytest.raises(npt.NPTError, match="residual or attention"):
        InjectorConfig((0,), (0,), (1.0,), 8, 16, reads="hidden")  # type: ignore[arg-type]


def test_the_key_is_what_the_down_projection_reads_at_one_token_whitened(no_grad: None) -> None:
    tokenizer = make_tokenizer()
    model = tiny("llama", vocab_size=len(tokenizer))
    injector = injector_for(model)
    config = injector.config
    reading = read_statements(
        model, tokenizer, config, [(encode(tokenizer, q), encode(tokenizer, a)) for q, a in STATEMENTS]
    )
    inverses = {(layer, "m"): torch.rand(config.d_ffn).diag() for layer in config.layers}
    found = injector.propose(reading, Whitening(inverses))  # type: ignore[arg-type]
    for n in range(len(STATEMENTS)):
        for l, layer in enumerate(config.layers):  # noqa: E741
            k = reading.keys[n, l, found.attention[n, l].argmax()]
            assert_close(found.K[n, l], k)
            z = inverses[layer, "m"] @ k
            assert_close(found.A[n, l], z / (config.ridge + k @ z), rtol=1e-4, atol=1e-6)


def test_a_choice_inside_a_known_subject_moves_to_its_end(no_grad: None) -> None:
    alpha = torch.tensor([[[0.1, 0.6, 0.2, 0.1], [0.1, 0.1, 0.1, 0.7]]]).expand(4, -1, -1)  # tokens 1 and 3
    subjects = [None, Subject(1, 2, False), Subject(0, 0, False), Subject(0, 0, True)]
    assert at_the_end(alpha, subjects).argmax(-1).tolist() == [[3, 3], [3, 3], [3, 3], [0, 0]]
    tokenizer = make_tokenizer()
    model = tiny("llama", vocab_size=len(tokenizer))
    injector, (question, answer) = injector_for(model), STATEMENTS[0]
    reading = read_statements(
        model, tokenizer, injector.config, [(encode(tokenizer, question), encode(tokenizer, answer))]
    )
    eye = Whitening({(layer, "m"): torch.eye(injector.config.d_ffn) for layer in injector.config.layers})
    found = injector.propose(reading, eye, subjects=[Subject(2, 5, True)])
    assert torch.equal(found.K, reading.keys[:, :, 5])


def test_a_statement_must_have_both_parts_and_fit() -> None:
    tokenizer = make_tokenizer()
    model = tiny("llama", vocab_size=len(tokenizer))
    config = InjectorConfig.fitting(model, tokens(), max_length=8)
    with pytest.raises(npt.NPTError, match="needs a question"):
        read_statements(model, tokenizer, config, [([], [3])])
    with pytest.raises(npt.NPTError, match="trained for at most 8"):
        read_statements(model, tokenizer, config, [([1] * 7, [3])])


def test_its_file_gives_it_back_and_is_checked(tmp_path: Path) -> None:
    injector, file = injector_for(tiny("llama")), tmp_path / "i.safetensors"
    injector.save(file, "base", {"steps": 3})
    read, card = Injector.load(file, "base")
    assert card == {"steps": 3}
    assert read.config == injector.config
    for name, t in read.state_dict().items():
        assert torch.equal(t, injector.state_dict()[name].half().float())
    with pytest.raises(npt.NPTError, match="another base"):
        Injector.load(file, "other")
    tensors, metadata = read_tensors(file)
    for damaged, match in (
        ({n: t for n, t in tensors.items() if n != "answer"}, "'answer' is missing"),
        ({**tensors, "answer": tensors["answer"][:-1]}, "shape"),
        ({**tensors, "answer": tensors["answer"] * torch.nan}, "not finite"),
    ):
        write_tensors(file, damaged, metadata)
        with pytest.raises(npt.NPTError, match=match):
            Injector.load(file, "base")
    write_tensors(file, tensors, {**metadata, "config": {**metadata["config"], "pools": 3}})
    with pytest.raises(npt.NPTError, match="even"):
        Injector.load(file, "base")
