"""The gate: an artefact that differs from its source does not leave the house."""

import pytest
import torch
from tiny import tiny_llama
from transformers import AutoModelForCausalLM, AutoTokenizer

from potstill.errors import ExportError
from potstill.export.engine import Continuation, Step
from potstill.export.folder_engine import run_folder
from potstill.export.manifest import read_manifest, write_manifest
from potstill.export.parity import check_gguf
from potstill.types import Message

PROMPTS = [(Message(role="user", content=text),) for text in ("Where is my order?", "No.")]


class HuggingFaceEngine:
    """Runs a model folder in the artefact's stead; `noise` makes it differ."""

    __name__ = "huggingface"

    def __init__(self, folder, *, noise=0.0, extra_token=False, after_end=False):
        self.model = AutoModelForCausalLM.from_pretrained(folder)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.noise, self.extra_token, self.after_end = noise, extra_token, after_end

    @torch.inference_mode()
    def __call__(self, artefact, prompts, num_tokens, num_top):
        generator = torch.Generator().manual_seed(0)
        found = []
        for text, ids in prompts:
            row, steps = list(ids), []
            for _ in range(4):
                logits = self.model(torch.tensor([row])).logits[0, -1]
                logits = logits + self.noise * torch.randn(logits.shape, generator=generator)
                top = logits.log_softmax(-1).topk(num_top)
                steps.append(
                    Step(
                        int(top.indices[0]),
                        dict(zip(top.indices.tolist(), top.values.tolist(), strict=True)),
                    )
                )
                row.append(steps[-1].token)
            if self.after_end:
                steps[1] = Step(self.tokenizer.eos_token_id, steps[1].top)
            own = self.tokenizer(text, add_special_tokens=False).input_ids
            found.append(Continuation((*own, *([5] if self.extra_token else [])), tuple(steps)))
        return found


@pytest.fixture
def exported(tmp_path):
    """A source folder and the folder of an artefact with its manifest."""

    def make(quant="f32"):
        source, folder = tiny_llama(tmp_path / "m"), tmp_path / "out"
        folder.mkdir()
        (folder / "model.gguf").write_bytes(b"stands for the file")
        write_manifest(folder, format="gguf", quant=quant, main="model.gguf", source=source)
        return source, folder / "model.gguf"

    return make


def check(source, artefact, *, limits=None, keep_failed=False, **faults):
    return check_gguf(
        source,
        artefact,
        PROMPTS,
        engine=HuggingFaceEngine(source, **faults),
        limits=limits,
        min_prompts=2,
        keep_failed=keep_failed,
    )


def test_an_equal_artefact_passes_and_its_manifest_says_so(exported):
    source, artefact = exported()
    parity = check(source, artefact)
    assert parity.passed
    assert (parity.num_prompts, parity.num_tokens) == (2, 8)
    assert parity.mean_kl_nats == pytest.approx(0.0, abs=1e-6)
    assert read_manifest(artefact.parent).parity == parity


@pytest.mark.parametrize(
    ("quant", "message"),
    [
        ("f32", "max_logprob_difference is .* at most 0.001"),
        ("f16", "argmax_agreement is .* at least 0.995"),
        ("q8_0", "mean_kl_nats is .* at most 0.01"),
        ("q4_0", "mean_kl_nats is .* at most 0.1"),
    ],
)
def test_an_artefact_that_differs_is_refused_and_removed(exported, quant, message):
    source, artefact = exported(quant)
    with pytest.raises(ExportError, match=message):
        check(source, artefact, noise=1.0)
    assert not artefact.parent.exists()


def test_a_failed_artefact_is_kept_only_when_told(exported):
    source, artefact = exported()
    with pytest.raises(ExportError):
        check(source, artefact, noise=1.0, keep_failed=True)
    assert not read_manifest(artefact.parent).parity.passed


def test_limits_that_were_changed_stand_in_the_manifest(exported):
    source, artefact = exported("q8_0")
    check(source, artefact, noise=0.3, limits={"mean_kl_nats": 5.0})
    parity = read_manifest(artefact.parent).parity
    assert parity.limits["mean_kl_nats"] == 5.0
    assert parity.changed_limits == {"mean_kl_nats": 5.0}


def test_a_number_format_without_a_limit_does_not_pass(exported):
    source, artefact = exported("q2_k")
    with pytest.raises(ExportError, match="nobody said how near 'q2_k' must be"):
        check(source, artefact)
    assert not artefact.parent.exists()


def test_a_changed_limit_leaves_the_others_as_they_are(exported):
    source, artefact = exported("f32")
    check(source, artefact, limits={"mean_kl_nats": 5.0})
    parity = read_manifest(artefact.parent).parity
    assert parity.limits["argmax_agreement"] == 1.0
    assert parity.limits["max_logprob_difference"] == 1e-3


def test_a_folder_is_run_like_any_artefact(exported):
    source, _ = exported()
    found = run_folder(source / "model.safetensors", [("No.", [5, 6, 7])], 4, 3)
    model = AutoModelForCausalLM.from_pretrained(source)
    said = model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=4, do_sample=False)[0, 3:]
    assert [step.token for step in found[0].steps] == said.tolist()
    with torch.inference_mode():
        last = model(torch.tensor([[5, 6, 7, *said[:-1].tolist()]])).logits[0, -1].log_softmax(-1)
    top = found[0].steps[-1].top
    assert top == pytest.approx({token: float(last[token]) for token in top}, abs=1e-5)


def test_a_tokenizer_that_cuts_otherwise_is_refused(exported):
    source, artefact = exported()
    with pytest.raises(ExportError, match="tokenizer_agreement is 0 "):
        check(source, artefact, extra_token=True)


def test_an_artefact_that_talks_on_after_its_end_token_is_refused(exported):
    source, artefact = exported()
    with pytest.raises(ExportError, match="talks on after its end token"):
        check(source, artefact, after_end=True)


def test_an_engine_that_breaks_leaves_no_artefact(exported):
    source, artefact = exported()

    def broken(*_):
        raise ExportError("llama.cpp cannot load this file")

    with pytest.raises(ExportError, match="cannot load"):
        check_gguf(source, artefact, PROMPTS, engine=broken, min_prompts=2)
    assert not artefact.parent.exists()


def test_a_handful_of_prompts_is_not_a_comparison(exported):
    source, artefact = exported()
    with pytest.raises(ExportError, match="at least 32 prompts, got 2"):
        check_gguf(source, artefact, PROMPTS)
