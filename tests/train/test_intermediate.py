"""Between the layers: each term is its definition, and padding and packing change nothing."""

import math

import pytest
import torch

from potstill.config import LossConfig
from potstill.errors import ConfigError
from potstill.train.beside import Matching
from potstill.train.intermediate import (
    find_places,
    hidden_cosine,
    hidden_mse,
    layer_pairs,
    relation_heads,
    relation_kl,
)

L, STUDENT, TEACHER, HEADS = 7, 12, 20, 4


def drawn(*shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator) for shape in shapes]


def by_hand(student_LD, teacher_LD, heads, causal):
    """MiniLMv2's formula, number by number, in float64."""

    def relation(x_LD, head, token):
        size = x_LD.shape[1] // heads
        x_Ld = x_LD[:, head * size : (head + 1) * size]
        others = range(token + 1 if causal else len(x_LD))
        logits = [x_Ld[token].dot(x_Ld[other]) / math.sqrt(size) for other in others]
        return torch.stack(logits).softmax(0)

    found = []
    for token in range(len(student_LD)):
        values = []
        for head in range(heads):
            p, q = (relation(x.double(), head, token) for x in (teacher_LD, student_LD))
            values.append((p * (p / q).log()).sum())
        found.append(torch.stack(values).mean())
    return torch.stack(found)


@pytest.mark.parametrize("causal", [True, False])
def test_relations_are_compared_as_defined_whatever_the_widths(causal):
    student, teacher = drawn((L, STUDENT), (L, TEACHER))
    ours, theirs = student.clone().requires_grad_(), student.double().requires_grad_()
    found = relation_kl(ours, teacher, heads=HEADS, causal=causal)
    wanted = by_hand(theirs, teacher, HEADS, causal)
    torch.testing.assert_close(found.double(), wanted, atol=1e-5, rtol=1e-5)
    found.sum().backward()
    wanted.sum().backward()
    torch.testing.assert_close(ours.grad.double(), theirs.grad, atol=1e-5, rtol=1e-4)


def test_a_model_agrees_with_itself():
    (x,) = drawn((L, STUDENT))
    zeros = torch.zeros(L)
    torch.testing.assert_close(relation_kl(x, x, heads=HEADS), zeros, atol=1e-6, rtol=0)
    torch.testing.assert_close(hidden_cosine(x, x), zeros, atol=1e-6, rtol=0)
    torch.testing.assert_close(hidden_mse(x, x), zeros)


def test_later_tokens_do_not_change_a_relation():
    student, teacher = drawn((L, STUDENT), (L, TEACHER))
    whole = relation_kl(student, teacher, heads=HEADS)
    start = relation_kl(student[:4], teacher[:4], heads=HEADS)
    torch.testing.assert_close(whole[:4], start)


def test_the_distances_of_hidden_states_are_their_definitions():
    student, teacher = drawn((L, STUDENT), (L, STUDENT))
    a, b = student.double(), teacher.double()
    cosine = 1 - (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))
    torch.testing.assert_close(hidden_cosine(student, teacher), cosine.float())
    torch.testing.assert_close(hidden_mse(student, teacher), ((a - b) ** 2).mean(-1).float())


@pytest.mark.parametrize("distance", [hidden_cosine, hidden_mse])
def test_the_teacher_gets_no_gradient(distance):
    student, teacher = (x.requires_grad_() for x in drawn((L, STUDENT), (L, STUDENT)))
    (distance(student, teacher).sum() + relation_kl(student, teacher, heads=3).sum()).backward()
    assert teacher.grad is None
    assert student.grad.abs().sum() > 0


def test_what_cannot_be_compared_is_refused():
    student, teacher = drawn((L, STUDENT), (L, TEACHER))
    with pytest.raises(ValueError, match="7 and 5 tokens"):
        relation_kl(student, teacher[:5], heads=HEADS)
    with pytest.raises(ValueError, match="3 relation heads do not divide a width of 20"):
        relation_kl(student, teacher, heads=3)


@pytest.mark.parametrize(
    ("widths", "wanted", "heads"),
    [
        ((576, 192), None, 12),
        ((1024, 2048, 512), None, 32),
        ((32, 16), None, 1),
        ((7, 9), None, 1),
        ((576, 192), 48, 48),
    ],
)
def test_relation_heads_divide_every_width(widths, wanted, heads):
    assert relation_heads(widths, wanted) == heads


def test_relation_heads_that_do_not_divide_are_refused_with_what_does():
    with pytest.raises(ConfigError, match=r"heads: 5 .*192, 576.*divisor of 192"):
        relation_heads((576, 192), 5)


@pytest.mark.parametrize(
    ("layers", "counts", "pairs"),
    [
        ("last", (2, 5), [(1, 4)]),
        ("uniform", (3, 6), [(0, 1), (1, 3), (2, 5)]),
        ("uniform", (2, 3), [(0, 1), (1, 2)]),
        ("uniform", (4, 2), [(0, 0), (1, 0), (2, 1), (3, 1)]),
        ([(1, 0), (0, 4)], (2, 5), [(0, 4), (1, 0)]),
    ],
)
def test_layers_are_mapped_evenly_last_to_last_or_by_hand(layers, counts, pairs):
    assert layer_pairs(layers, *counts) == pairs


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([(2, 0)], r"loss.hidden.layers: \[2, 0\] names a layer that does not exist.*0 to 1"),
        ([(0, 5)], r"\[0, 5\] names a layer"),
        ([(0, 1), (0, 2)], "layer 0 of the student stands in two pairs"),
    ],
)
def test_a_layer_map_that_cannot_be_is_refused(layers, message):
    with pytest.raises(ConfigError, match=message):
        layer_pairs(layers, 2, 5, key="loss.hidden.layers")


LABELS = torch.tensor([[0, 0, 1, 1, 0, 0], [0, 1, 0, 0, 1, 0]]).bool()


def test_places_behind_the_last_label_are_padding():
    places = find_places(LABELS)
    assert places.is_real_BT.int().tolist() == [[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 0]]
    padded_left = torch.tensor([[0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    places = find_places(LABELS, attention_BT=padded_left)
    assert places.is_real_BT[0].int().tolist() == [0, 1, 1, 1, 0, 0]


def test_a_document_counts_as_its_loss_tokens_do():
    weights = find_places(LABELS).weights("all")
    torch.testing.assert_close(weights[0], torch.tensor([0.5, 0.5, 0.5, 0.5, 0, 0]))
    torch.testing.assert_close(weights.sum(-1), LABELS.sum(-1).float())
    torch.testing.assert_close(find_places(LABELS).weights("answer"), LABELS.float())


def test_documents_of_a_packed_row_stay_apart():
    numbers = torch.tensor([[4, 4, 4, 4, 9, 9], [4, 4, 7, 7, 7, 9]])
    places = find_places(LABELS, documents_BT=numbers)
    assert [d.tolist() for d in places.documents()] == [[0, 1, 2, 3], [6, 7], [8, 9, 10]]
    expected = [[0.5, 0.5, 0.5, 0.5, 0, 0], [0.5, 0.5, 1 / 3, 1 / 3, 1 / 3, 0]]
    torch.testing.assert_close(places.weights("all"), torch.tensor(expected))


@pytest.fixture
def matching():
    """Compares one layer of two tiny models; only its arithmetic is used here."""
    from transformers import LlamaConfig, LlamaForCausalLM

    def model(heads):
        config = LlamaConfig(
            vocab_size=97,
            hidden_size=32,
            intermediate_size=24,
            num_hidden_layers=1,
            num_attention_heads=heads,
            num_key_value_heads=heads // 2,
        )
        return LlamaForCausalLM(config)

    def make(tokens="all"):
        loss = LossConfig(
            hidden={"kind": "mse", "tokens": tokens}, attention={"heads": 2, "tokens": tokens}
        )
        return Matching(model(4), model(8), loss)

    return make


def states(matching, *shape, seed):
    """What the parts of both models gave, drawn by chance."""
    found = []
    for side, parts in enumerate(matching.parts):
        keys = sorted(parts)
        widths = [parts[key].width or 32 for key in keys]
        values = drawn(*((*shape, width) for width in widths), seed=10 * seed + side)
        found.append(dict(zip(keys, values, strict=True)))
    return found


@pytest.mark.parametrize("tokens", ["all", "answer"])
def test_packed_documents_give_the_terms_of_documents_apart(matching, tokens):
    matching = matching(tokens)
    labels = [torch.tensor([[0, 1, 1]]).bool(), torch.tensor([[0, 0, 0, 1]]).bool()]
    inside = [states(matching, 1, part.shape[1], seed=n) for n, part in enumerate(labels)]
    apart = [matching(*each, find_places(part)) for each, part in zip(inside, labels, strict=True)]
    packed = [
        {key: torch.cat([inside[n][side][key] for n in range(2)], dim=1) for key in inside[0][side]}
        for side in range(2)
    ]
    numbers = torch.tensor([[0, 0, 0, 1, 1, 1, 1]])
    whole = matching(*packed, find_places(torch.cat(labels, dim=1), documents_BT=numbers))
    for name, value in whole.items():
        torch.testing.assert_close(value, apart[0][name] + apart[1][name])


@pytest.mark.parametrize("tokens", ["all", "answer"])
def test_what_stands_in_the_padding_does_not_count(matching, tokens):
    matching = matching(tokens)
    labels = torch.tensor([[0, 1, 1, 0, 0]]).bool()
    ours, theirs = states(matching, 1, 5, seed=3)
    short = [{key: value[:, :3] for key, value in side.items()} for side in (ours, theirs)]
    padded = matching(ours, theirs, find_places(labels))
    plain = matching(*short, find_places(labels[:, :3]))
    assert plain.keys() == {"hidden_mse", "attention_nats"}
    for name, value in plain.items():
        torch.testing.assert_close(padded[name], value)
