"""A folder as the tutorial's reader has it: data, and names that mean tiny local models."""

import json
import shutil
from pathlib import Path

import pytest
from tiny import tiny_llama


def talk_to(folder: Path, answer: str, num_steps: int) -> Path:
    """A tiny model that has learned to say one thing, and to stop after it."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(1)
    tiny_llama(folder, seed=len(answer))
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = []
    for question in questions(0, 8):
        messages = [{"role": "user", "content": question}]
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        start = tokenizer(prompt)["input_ids"]
        ids = start + tokenizer(answer + "<|im_end|>")["input_ids"]
        rows.append((torch.tensor([ids]), len(start)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(num_steps):
        ids, start = rows[step % len(rows)]
        labels = ids.clone()
        labels[:, :start] = -100
        model(ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    return folder


def questions(start: int, number: int) -> list[str]:
    return [f"Where is my order {i}?" for i in range(start, start + number)]


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """A teacher that knows the answer and a student that does not."""
    folder = tmp_path_factory.mktemp("models")
    talk_to(folder / "teacher", "It will arrive on Monday.", 60)
    talk_to(folder / "student", "Please read the news.", 60)
    return folder


@pytest.fixture
def desk(models, tmp_path, monkeypatch):
    """The current folder of somebody who follows the tutorial."""
    for name in ("teacher", "student"):
        shutil.copytree(models / name, tmp_path / name)
    names = {
        "deepseek-v3": "./teacher",
        "deepseek-ai/DeepSeek-V3": "./teacher",
        "phi-4-mini": "./student",
        "microsoft/Phi-4-mini": "./student",
    }
    (tmp_path / "potstill.yaml").write_text(json.dumps({"models": names, "home": "jobs"}))
    for file, start, number in (
        ("training_data.jsonl", 0, 6),
        ("validation_data.jsonl", 100, 2),
        ("test_data.jsonl", 200, 3),
    ):
        rows = [
            {
                "messages": [
                    {"role": "user", "content": question},
                    {"role": "assistant", "content": "It will arrive on Monday."},
                ]
            }
            for question in questions(start, number)
        ]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / file).write_text(text)
        (tmp_path / f"your_{file}").write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path
