"""What is printed for other tools can be pasted, and holds what they must not lose."""

import json
import shlex
import subprocess

import pytest
from tiny import tiny_llama

from potstill.errors import ConfigError
from potstill.export.handover import TOOLS, handover

NEEDED = {
    "vllm": ["serve", "--served-model-name", "--max-model-len"],
    "olive": ["optimize", "--model_name_or_path", "--precision", "--output_path"],
    "openvino": ["export", "openvino", "--task", "text-generation-with-past", "--weight-format"],
    "executorch": ["export", "executorch", "--recipe", "xnnpack", "--output_dir"],
    "mlx": ["--hf-path", "--mlx-path", "-q", "--model"],
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model in a folder whose name a shell would take apart."""
    return tiny_llama(tmp_path_factory.mktemp("hand") / "it's a $(model)")


@pytest.mark.parametrize("tool", TOOLS)
def test_the_script_is_one_that_a_shell_reads_and_names_the_folder(tool, model):
    text = handover(tool, model, name="faq student")
    done = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    commands = [shlex.split(line) for line in text.splitlines() if line and line[0] != "#"]
    words = [word for command in commands for word in command]
    assert str(model) in words
    assert set(NEEDED[tool]) <= set(words)
    assert all(command[0].startswith(("python3", f"{tool}-env/bin/")) for command in commands)


@pytest.mark.parametrize("tool", TOOLS)
def test_the_script_says_where_an_answer_ends_and_what_a_prompt_becomes(tool, model):
    text = handover(tool, model, name="faq")
    assert "<|im_end|> (1)" in text
    assert json.dumps("<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n") in text


def test_every_id_of_the_generation_config_is_an_end(model):
    place = model / "generation_config.json"
    before = place.read_text()
    place.write_text(json.dumps({"eos_token_id": [1, 7]}))
    try:
        assert "(7)" in handover("vllm", model, name="faq")
    finally:
        place.write_text(before)


def test_an_unknown_tool_gets_the_nearest_name(model):
    with pytest.raises(ConfigError, match="did you mean olive"):
        handover("oliv", model, name="faq")
