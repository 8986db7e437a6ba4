"""What other engines run is served like weights of any other kind."""

import openai
import pytest
from installed import needs_engine
from serve.running import client, counted, running
from tiny import tiny_llama

from potstill.export.ctranslate import export_ctranslate2
from potstill.models.chat import open_chat_model
from potstill.models.engines import GgufModel

ASK = [{"role": "user", "content": "Name three colours."}]


def test_a_folder_of_an_engine_in_this_process_is_served_piece_by_piece(tmp_path):
    needs_engine("ctranslate2")
    export_ctranslate2(tiny_llama(tmp_path / "m"), tmp_path / "out", quant="float32")
    with running(open_chat_model(tmp_path / "out")) as server:
        create = client(server).chat.completions.create
        asked = {"model": "student", "messages": ASK, "temperature": 0, "max_tokens": 12}
        whole = create(**asked)
        pieces = [c.choices[0].delta.content or "" for c in create(**asked, stream=True)]
        assert "".join(pieces) == whole.choices[0].message.content
        assert sum(map(bool, pieces)) > 4
        plain = {"model": "student", "prompt": "Where is", "max_tokens": 8, "temperature": 0}
        goes_on = client(server).completions.create(**plain)
        chunks = list(client(server).completions.create(**plain, stream=True))
        assert "".join(chunk.choices[0].text for chunk in chunks) == goes_on.choices[0].text
        assert goes_on.usage.completion_tokens == 8
        for refused, words in ({"presence_penalty": 1}, "penalties"), ({"logprobs": True}, "log"):
            with pytest.raises(openai.BadRequestError, match=words):
                create(**asked, **refused)


@pytest.mark.slow
def test_a_gguf_file_is_served_by_llama_cpp(smollm2):
    pytest.importorskip("xllamacpp")
    model = GgufModel(smollm2.source, name="smol", threads=1, slots=2, context=512)
    with running(model, settings={"name": "smol"}) as server:
        create = client(server).chat.completions.create
        asked = {"model": "smol", "messages": ASK, "temperature": 0, "max_tokens": 16}
        whole = create(**asked)
        assert whole.model == "smol" and whole.usage.completion_tokens == 16
        chunks = list(create(**asked, stream=True, stream_options={"include_usage": True}))
        pieces = [c.choices[0].delta.content or "" for c in chunks[:-1]]
        assert "".join(pieces) == whole.choices[0].message.content
        assert sum(map(bool, pieces)) > 8 and chunks[-1].usage.completion_tokens == 16
        hot = {**asked, "temperature": 1.2, "seed": 4}
        assert create(**hot).choices[0].message == create(**hot).choices[0].message
        with pytest.raises(openai.BadRequestError) as caught:
            create(**{**asked, "messages": [{"role": "user", "content": "colour " * 900}]})
        assert caught.value.code == "context_length_exceeded"
        told = create(**asked, logprobs=True, top_logprobs=2).choices[0].logprobs.content
        assert b"".join(bytes(t.bytes) for t in told).decode() == whole.choices[0].message.content
        assert all(t.logprob == t.top_logprobs[0].logprob for t in told)  # greedy
        numbers = create(**asked, logprobs=True, extra_body={"return_tokens_as_token_ids": True})
        assert numbers.choices[0].logprobs.content[0].token.startswith("token_id:")
        plain = {"model": "smol", "prompt": "The capital of France is", "max_tokens": 8}
        goes_on = client(server).completions.create(**plain, temperature=0)
        assert "Paris" in goes_on.choices[0].text and goes_on.usage.completion_tokens == 8
        chunks = list(client(server).completions.create(**plain, temperature=0, stream=True))
        assert "".join(chunk.choices[0].text for chunk in chunks) == goes_on.choices[0].text
        assert sum(bool(chunk.choices[0].text) for chunk in chunks) > 3
        assert counted(server, "potstill_open_requests") == 0
